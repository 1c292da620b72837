// Row-major matrix products of tiles. Called from inside a parallel region a product runs on the calling thread.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>

namespace fastpair {

using torch::headeronly::BFloat16;

enum class Op { None, Transpose };

// C (m, n) = op(A) op(B), or += where `accumulate`; op(A) is (m, k), op(B) is (k, n), ld* the strides between rows.
template <typename T>
void gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
          bool accumulate, T* c, int64_t ldc);

// The same for bfloat16 factors, whose product is rounded to bfloat16 before it is written or added. Where the machine
// multiplies bfloat16 natively this is several times faster than gemm<float>; elsewhere it is slower.
void gemm(Op op_a, Op op_b, int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda, const BFloat16* b,
          int64_t ldb, bool accumulate, float* c, int64_t ldc);
bool has_native_bfloat16();

}  // namespace fastpair
