// Matrices of embeddings on their way into and out of the kernels: any dtype, any strides.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arguments.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"

namespace fastpair {

template <typename T>
constexpr ScalarType scalar_type = ScalarType::Undefined;
template <>
inline constexpr ScalarType scalar_type<float> = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type<double> = ScalarType::Double;

// The elements of a user's tensor. They may lie at any address: torch.frombuffer takes any offset.
template <typename In>
class Elements {
 public:
  using value_type = In;

  explicit Elements(const void* data) : data_(static_cast<const char*>(data)) {}
  Elements operator+(int64_t offset) const { return Elements(data_ + offset * int64_t(sizeof(In))); }
  In operator[](int64_t i) const {
    In value;
    std::memcpy(&value, data_ + i * int64_t(sizeof(In)), sizeof(In));
    return value;
  }

 private:
  const char* data_;
};

// f(the elements in their own type), for the floating dtypes.
template <typename F>
void with_floating(const Tensor& t, const F& f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(Elements<float>(t.const_data_ptr()));
    case ScalarType::Double:
      return f(Elements<double>(t.const_data_ptr()));
    case ScalarType::BFloat16:
      return f(Elements<torch::headeronly::BFloat16>(t.const_data_ptr()));
    case ScalarType::Half:
      return f(Elements<torch::headeronly::Half>(t.const_data_ptr()));
    default:
      STD_TORCH_CHECK(false, "expected a floating dtype, got ", torch::headeronly::toString(t.scalar_type()));
  }
}

// Computes in float64 for float64 tensors and in float32 for all others: f(T{}).
template <typename F>
auto with_compute_type(const Tensor& t, const F& f) {
  return t.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

// out = t[row, :], `data` being the elements of t.
template <typename In, typename T>
void copy_row(const Tensor& t, Elements<In> data, int64_t row, T* out) {
  const int64_t d = t.size(1), stride = t.stride(1);
  const Elements<In> from = data + row * t.stride(0);
  if (stride == 1) {
    for (int64_t j = 0; j < d; ++j) out[j] = static_cast<T>(from[j]);
  } else {
    for (int64_t j = 0; j < d; ++j) out[j] = static_cast<T>(from[j * stride]);
  }
}

// out[r, :] = t[row(r), :] for r in [0, n), out contiguous.
template <typename T, typename Row>
void copy_rows(const Tensor& t, int64_t n, const Row& row, T* out) {
  const int64_t d = t.size(1);
  with_floating(
      t, [&](const auto data) { parallel_rows(n, d, [&](int64_t r) { copy_row(t, data, row(r), out + r * d); }); });
}

double sum(const std::vector<double>& values);

// The elements of a vector of any floating dtype.
template <typename T>
std::vector<T> floating_vector(const Tensor& t) {
  std::vector<T> out(t.numel());
  const int64_t stride = t.stride(0);
  with_floating(t, [&](const auto data) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<T>(data[i * stride]);
  });
  return out;
}

// The elements of a vector of any integer dtype.
std::vector<int64_t> integer_vector(const Tensor& t);

// The permutation that sorts the labels, equal ones in their original order.
std::vector<int64_t> sorting_order(const std::vector<int64_t>& labels);

// Whether t is already what copy_rows would make of it.
template <typename T>
bool is_plain(const Tensor& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % alignof(T) == 0;
  return t.scalar_type() == scalar_type<T> && t.is_contiguous() && aligned;
}

// An uninitialised tensor on the CPU.
Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype);

template <typename T>
Tensor new_scalar(T value) {
  Tensor out = new_tensor({}, scalar_type<T>);
  *static_cast<T*>(out.mutable_data_ptr()) = value;
  return out;
}

template <typename T>
Tensor new_vector(const std::vector<T>& values) {
  Tensor out = new_tensor({static_cast<int64_t>(values.size())}, scalar_type<T>);
  std::copy(values.begin(), values.end(), static_cast<T*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace fastpair
