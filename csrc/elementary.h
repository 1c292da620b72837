// Elementary functions that loops over pairs can call: always inlined, so that the loops vectorise.
#pragma once

#if defined(__CUDACC__)
#define FASTPAIR_INLINE __host__ __device__ __forceinline__
#else
// Never emitted out of line: the linker would keep one copy for all SIMD levels.
#define FASTPAIR_INLINE inline __attribute__((always_inline))
#endif

namespace fastpair {

// a * b, rounded before it is used. A compiler that may fuse it into a sum or difference gets a different number there
// than elsewhere: the term in an exponent would not be the one whose maximum is its shift, and the difference of the
// two, for scores in the millions, could be anything. nvcc fuses all but intrinsics that round; the C++ compiler, whose
// vectoriser loses such intrinsics, is told to fuse nothing by itself (-ffp-contract=off, see setup.py).
template <typename T>
FASTPAIR_INLINE T product(T a, T b) {
#if defined(__CUDA_ARCH__) || defined(FASTPAIR_EMULATED)
  if constexpr (sizeof(T) == sizeof(float)) return __fmul_rn(a, b);
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// a * b + c, fused where the machine can.
template <typename T>
FASTPAIR_INLINE T multiply_add(T a, T b, T c) {
#if defined(FASTPAIR_FMA) || defined(__ARM_FEATURE_FMA)
  if constexpr (sizeof(T) == sizeof(float)) return __builtin_fmaf(a, b, c);
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <typename T>
FASTPAIR_INLINE T relu(T x) {
  return x < T(0) ? T(0) : x;
}

// 1 above 0, else 0; 1 for NaN.
template <typename T>
FASTPAIR_INLINE T step(T x) {
  return x <= T(0) ? T(0) : T(1);
}

// 0 for 0, else 1.
template <typename T>
FASTPAIR_INLINE T nonzero(T x) {
  return x == T(0) ? T(0) : T(1);
}

template <typename T>
FASTPAIR_INLINE T square(T x) {
  return x * x;
}

// Relative error at most 8.1e-8 (over every 37th float32 in [-87, 88]); 0 below, infinity above, NaN stays NaN.
FASTPAIR_INLINE float exponential(float x) {
  constexpr float low = -87.0f, high = 88.0f;
  const float clamped = x > high ? high : (x < low ? low : x);
  // Adding 1.5 * 2^23 leaves the rounded quotient in the low bits of the sum.
  constexpr float shift = 12582912.0f;
  const float shifted = multiply_add(clamped, 1.44269504089f, shift);
  const float n = shifted - shift;
  const float r = multiply_add(n, 2.12194440e-4f, multiply_add(n, -0.693359375f, clamped));
  float p = 1.9875691500e-4f;
  p = multiply_add(p, r, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = multiply_add(p * r, r, r) + 1.0f;
  const float scale = __builtin_bit_cast(float, (__builtin_bit_cast(int, shifted) << 23) + (127 << 23));
  const float result = p * scale;
  return x < low ? 0.0f : (x > high ? __builtin_inff() : result);
}
FASTPAIR_INLINE double exponential(double x) { return __builtin_exp(x); }

// log(1 + y) for y in [0, 1], as 2 atanh(y / (2 + y)): the terms beyond z^15 are below 1e-9 of the sum.
FASTPAIR_INLINE float log_one_plus(float y) {
  const float z = y / (2.0f + y), square = z * z;
  float p = 1.0f / 15;
  p = multiply_add(p, square, 1.0f / 13);
  p = multiply_add(p, square, 1.0f / 11);
  p = multiply_add(p, square, 1.0f / 9);
  p = multiply_add(p, square, 1.0f / 7);
  p = multiply_add(p, square, 1.0f / 5);
  p = multiply_add(p, square, 1.0f / 3);
  return 2 * z * multiply_add(p, square, 1.0f);
}
FASTPAIR_INLINE double log_one_plus(double y) { return __builtin_log1p(y); }

// log(1 + exp(x)) and its derivative 1 / (1 + exp(-x)).
template <typename T>
FASTPAIR_INLINE T softplus(T x) {
  return relu(x) + log_one_plus(exponential(x < T(0) ? x : -x));
}
template <typename T>
FASTPAIR_INLINE T sigmoid(T x) {
  return T(1) / (T(1) + exponential(-x));
}

// Relative error below 1.7e-7, as log z = 2 atanh((z - 1) / (z + 1)) for z in [sqrt(1/2), sqrt(2)): the terms beyond
// t^11 are below 1e-10 of the sum. Minus infinity at 0, NaN below.
FASTPAIR_INLINE float logarithm(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const float scaled = subnormal ? x * 8388608.0f : x;
  const int bits = __builtin_bit_cast(int, scaled);
  // The exponent that leaves the rest between the limits: 0x3f3504f3 is the square root of 1/2.
  const int exponent = (bits - 0x3f3504f3) >> 23;
  const float z = __builtin_bit_cast(float, bits - (exponent << 23));
  const float t = (z - 1.0f) / (z + 1.0f), q = t * t;
  float p = 1.0f / 11;
  p = multiply_add(p, q, 1.0f / 9);
  p = multiply_add(p, q, 1.0f / 7);
  p = multiply_add(p, q, 1.0f / 5);
  p = multiply_add(p, q, 1.0f / 3);
  const float n = static_cast<float>(exponent) - (subnormal ? 23.0f : 0.0f), doubled = 2 * t;
  const float low = multiply_add(doubled * q, p, n * -2.12194440e-4f);
  const float result = multiply_add(n, 0.693359375f, doubled + low);
  const float outside = x == 0.0f ? -__builtin_inff() : __builtin_nanf("");
  return x > 0.0f ? (x <= 3.4028235e38f ? result : x) : outside;
}
FASTPAIR_INLINE double logarithm(double x) { return __builtin_log(x); }

FASTPAIR_INLINE float absolute(float x) { return __builtin_fabsf(x); }
FASTPAIR_INLINE double absolute(double x) { return __builtin_fabs(x); }

// Below 0.3 a series, as the quotient of exponentials would lose digits there.
FASTPAIR_INLINE float tanh(float x) {
  const float q = x * x, y = exponential(-2 * absolute(x)), quotient = (1 - y) / (1 + y);
  float p = 1382.0f / 155925;
  p = multiply_add(p, -q, 62.0f / 2835);
  p = multiply_add(p, -q, 17.0f / 315);
  p = multiply_add(p, -q, 2.0f / 15);
  p = multiply_add(p, -q, 1.0f / 3);
  return q < 0.1f ? multiply_add(x * -q, p, x) : (x < 0.0f ? -quotient : quotient);
}
FASTPAIR_INLINE double tanh(double x) { return __builtin_tanh(x); }

template <typename T>
FASTPAIR_INLINE T minimum(T a, T b) {
  return (a < b) | (a != a) ? a : b;
}
template <typename T>
FASTPAIR_INLINE T maximum(T a, T b) {
  return (a > b) | (a != a) ? a : b;
}

// a where the condition is not 0, else b.
template <typename T>
FASTPAIR_INLINE T where(T condition, T a, T b) {
  return condition == T(0) ? b : a;
}

// x, minus infinity where the first is above 0.
template <typename T>
FASTPAIR_INLINE T excluded(T above, T x) {
  return above > T(0) ? T(-__builtin_inf()) : x;
}

FASTPAIR_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTPAIR_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// The shift of the exponentials of a log-sum-exp: its maximum, or 0 if that is infinite, since the difference of two
// infinities is NaN.
template <typename T>
FASTPAIR_INLINE T shift_of(T maximum) {
  return maximum == T(__builtin_inf()) || maximum == T(-__builtin_inf()) ? T(0) : maximum;
}

// 1 / |x|; 0 for a zero row, and NaN for an infinite norm, whose inverse must not pass for that of a zero row.
template <typename T>
FASTPAIR_INLINE T inverse_norm(T squared_norm) {
  const T norm = square_root(squared_norm);
  return norm == T(0) ? T(0) : norm == T(__builtin_inf()) ? T(__builtin_nan("")) : T(1) / norm;
}

}  // namespace fastpair
