#include "cpu/rows.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>

#include "error_code.h"

namespace fastpair {

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

std::vector<int64_t> integer_vector(const Tensor& t) {
  const int64_t stride = t.stride(0);
  const auto read = [&](const auto data) {
    std::vector<int64_t> out(t.numel());
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int64_t>(data[i * stride]);
    return out;
  };
  const void* data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Long:
      return read(Elements<int64_t>(data));
    case ScalarType::Int:
      return read(Elements<int32_t>(data));
    case ScalarType::Short:
      return read(Elements<int16_t>(data));
    case ScalarType::Char:
      return read(Elements<int8_t>(data));
    case ScalarType::Byte:
      return read(Elements<uint8_t>(data));
    default:
      STD_TORCH_CHECK(false, "expected integer labels, got ", torch::headeronly::toString(t.scalar_type()));
  }
}

std::vector<int64_t> sorting_order(const std::vector<int64_t>& labels) {
  std::vector<int64_t> order(labels.size());
  std::iota(order.begin(), order.end(), 0);
  if (std::is_sorted(labels.begin(), labels.end())) return order;
  const auto [low, high] = std::ranges::minmax(labels);
  const uint64_t range = uint64_t(high) - uint64_t(low);
  if (range > 4 * labels.size()) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
    return order;
  }
  std::vector<int64_t> next(range + 2);  // by label, where its next sample goes
  for (const int64_t label : labels) ++next[label - low + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (size_t i = 0; i < labels.size(); ++i) order[next[labels[i] - low]++] = i;
  return order;
}

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t k = sizes.size(); k-- > 1;) strides[k - 1] = strides[k] * std::max<int64_t>(sizes[k], 1);
  AtenTensorHandle handle;
  // Not by way of the dispatcher, which takes several microseconds.
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  Tensor out(handle);
  prefer_huge_pages(out.mutable_data_ptr(), out.numel() * out.element_size());
  return out;
}

}  // namespace fastpair
