// The formulas of the losses: what one pair of a given score contributes, and its slope. Shared by the C++ and the CUDA
// kernels. Branch-free, so that loops over pairs vectorise, and written so that NaN stays NaN.
#pragma once

#if defined(__CUDACC__)
#define FASTPAIR_INLINE __host__ __device__ __forceinline__
#else
// Never emitted out of line: the linker would keep one copy for all SIMD levels.
#define FASTPAIR_INLINE inline __attribute__((always_inline))
#endif

namespace fastpair {

template <typename T>
FASTPAIR_INLINE T relu(T x) {
  return x < T(0) ? T(0) : x;
}

// [d - pos_margin]_+^p on positives, [neg_margin - d]_+^p on negatives; for a similarity the signs are flipped.
// Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020, Table 1.
template <typename T, int Power>
struct Contrastive {
  static_assert(Power == 1 || Power == 2);

  T pos_margin, neg_margin, sign;

  // params: pos_margin, neg_margin.
  FASTPAIR_INLINE Contrastive(const double* params, bool similarity)
      : pos_margin(T(params[0])), neg_margin(T(params[1])), sign(similarity ? T(-1) : T(1)) {}

  FASTPAIR_INLINE T positive(T s) const { return power(relu(sign * (s - pos_margin))); }
  FASTPAIR_INLINE T negative(T s) const { return power(relu(sign * (neg_margin - s))); }
  FASTPAIR_INLINE T positive_slope(T s) const { return sign * slope(sign * (s - pos_margin)); }
  FASTPAIR_INLINE T negative_slope(T s) const { return -sign * slope(sign * (neg_margin - s)); }

 private:
  FASTPAIR_INLINE static T power(T excess) { return Power == 1 ? excess : excess * excess; }
  FASTPAIR_INLINE static T slope(T excess) {
    if (Power == 1) return excess <= T(0) ? T(0) : T(1);
    return T(2) * relu(excess);
  }
};

}  // namespace fastpair
