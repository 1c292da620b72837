#include "cpu/gemm.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd/kernels.h"
#include "error_code.h"

// Exported by the BLAS inside libtorch_cpu on most platforms; where it is not, the dispatcher's product takes over.
extern "C" {
__attribute__((weak)) void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*,
                                  const float*, const int*, const float*, const int*, const float*, float*, const int*);
__attribute__((weak)) void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*,
                                  const double*, const int*, const double*, const int*, const double*, double*,
                                  const int*);
// MKL's: with how many threads it computes what the calling thread asks for; 0: as many as all others. Returns how many
// they were.
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int);
}

namespace fastpair {
namespace {

template <typename T>
Tensor view(const T* data, Op op, int64_t rows, int64_t columns, int64_t ld) {
  const std::array<int64_t, 2> sizes{rows, columns};
  const std::array<int64_t, 2> strides{op == Op::None ? ld : 1, op == Op::None ? 1 : ld};
  return torch::stable::from_blob(const_cast<T*>(data), {sizes.data(), 2}, {strides.data(), 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU, 0), scalar_type<T>);
}

// Goes through torch's dispatcher: a few microseconds per call, and any dtype on any platform.
template <typename T>
void dispatched(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
                const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(view(a, op_a, m, k, lda)),
                                    torch::stable::detail::from(view(b, op_b, k, n, ldb)),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// C += the product of m rows that multiply(out) writes, one after the other.
template <typename T, typename F>
void add_product(int64_t m, int64_t n, T* c, int64_t ldc, const F& multiply) {
  const Scratch<T> product(m * n);
  multiply(product.get());
  for (int64_t i = 0; i < m; ++i) kernels<T>().add_to(c + i * ldc, product.get() + i * n, n);
}

template <typename T>
void gemm_dispatched(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                     int64_t ldb, bool accumulate, T* c, int64_t ldc) {
  if (!accumulate) return dispatched(op_a, op_b, m, n, k, a, lda, b, ldb, view(c, Op::None, m, n, ldc));
  add_product(m, n, c, ldc,
              [&](T* out) { dispatched(op_a, op_b, m, n, k, a, lda, b, ldb, view(out, Op::None, m, n, n)); });
}

// As long as it lives, MKL computes by the calling thread alone. In the parallel region of a team it does so anyway,
// but after torch.set_num_threads(k) by a sixth slower: it cuts the product for k threads.
class OneThread {
 public:
  OneThread() : before_(applies_ ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneThread() {
    if (applies_) MKL_Set_Num_Threads_Local(before_);
  }

 private:
  const bool applies_ = Team::current() != nullptr && MKL_Set_Num_Threads_Local != nullptr;
  const int before_;
};

template <typename T, typename Blas>
void row_major(Blas blas, Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
               int64_t ldb, bool accumulate, T* c, int64_t ldc) {
  // BLAS is column-major, which reads a row-major matrix as its transpose: C^T = op(B)^T op(A)^T.
  const char ta = op_a == Op::None ? 'N' : 'T', tb = op_b == Op::None ? 'N' : 'T';
  const int m_ = static_cast<int>(m), n_ = static_cast<int>(n), k_ = static_cast<int>(k);
  const int lda_ = static_cast<int>(lda), ldb_ = static_cast<int>(ldb), ldc_ = static_cast<int>(ldc);
  const T one = 1, beta = accumulate ? 1 : 0;
  const OneThread only;
  blas(&tb, &ta, &n_, &m_, &k_, &one, b, &ldb_, a, &lda_, &beta, c, &ldc_);
}

// Whether there is nothing to multiply, which BLAS does not accept: C is then zeroed, or stays as it is.
template <typename T>
bool is_empty(int64_t m, int64_t n, int64_t k, bool accumulate, T* c, int64_t ldc) {
  if (m > 0 && n > 0 && k > 0) return false;
  for (int64_t i = 0; !accumulate && i < m; ++i) std::fill_n(c + i * ldc, n, T(0));
  return true;
}

}  // namespace

bool has_blas() {
  static const bool use = [] {
    const char* choice = std::getenv("FASTPAIR_BLAS");
    return sgemm_ != nullptr && dgemm_ != nullptr && !(choice && std::strcmp(choice, "0") == 0);
  }();
  return use;
}

namespace {

template <typename T, typename Blas>
void multiply(Blas blas, Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
              int64_t ldb, bool accumulate, T* c, int64_t ldc) {
  if (has_blas()) return row_major(blas, op_a, op_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  gemm_dispatched(op_a, op_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

// Where C has so few rows or columns, BLAS may add its products one by one, from the first to the last, to what C
// holds: in float32 a gradient over 90,000 references lost three digits. Of shorter sums, added up in turn, it loses
// none.
constexpr int64_t NARROW = 8, LONGEST_SUM = 512;

template <typename T, typename Blas>
void in_short_sums(Blas blas, Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                   int64_t ldb, bool accumulate, T* c, int64_t ldc) {
  if (is_empty(m, n, k, accumulate, c, ldc)) return;
  if (std::min(m, n) > NARROW) return multiply(blas, op_a, op_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
  for (int64_t first = 0; first < k; first += LONGEST_SUM) {
    const T* a_part = a + (op_a == Op::None ? first : first * lda);
    const T* b_part = b + (op_b == Op::None ? first * ldb : first);
    const auto multiply_part = [&](T* out, int64_t ld) {
      multiply(blas, op_a, op_b, m, n, std::min(LONGEST_SUM, k - first), a_part, lda, b_part, ldb, false, out, ld);
    };
    if (first > 0 || accumulate) {
      add_product(m, n, c, ldc, [&](T* out) { multiply_part(out, n); });
    } else {
      multiply_part(c, ldc);
    }
  }
}

}  // namespace

template <>
void gemm<float>(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                 int64_t ldb, bool accumulate, float* c, int64_t ldc) {
  in_short_sums(sgemm_, op_a, op_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

template <>
void gemm<double>(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
                  int64_t ldb, bool accumulate, double* c, int64_t ldc) {
  in_short_sums(dgemm_, op_a, op_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

}  // namespace fastpair
