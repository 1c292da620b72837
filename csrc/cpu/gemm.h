// Row-major matrix products of tiles. Inside a parallel region, a product runs on the calling thread.
#pragma once

#include <cstdint>

namespace fastpair {

enum class Op { None, Transpose };

// C (m, n) = op(A) op(B), or += where `accumulate`; op(A) is (m, k), op(B) is (k, n), ld* the strides between rows.
template <typename T>
void gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
          bool accumulate, T* c, int64_t ldc);

}  // namespace fastpair
