// The bodies of the loops of kernels.h. Included once for each SIMD level, with that level's code generation switched
// on and FASTPAIR_SIMD_LEVEL naming the namespace. Nothing here may call a function that is compiled out of line in a
// header: the linker keeps one copy of those, and it may be one that this machine cannot run.

#include "cpu/kernels.h"
#include "terms.h"

namespace fastpair::FASTPAIR_SIMD_LEVEL {
namespace {

// Relative error at most 8.1e-8 (over every 37th float32 in [-87, 88]); 0 below, infinity above, NaN stays NaN.
FASTPAIR_INLINE float exponential(float x) {
  constexpr float low = -87.0f, high = 88.0f;
  const float clamped = x > high ? high : (x < low ? low : x);
  // Adding 1.5 * 2^23 leaves the rounded quotient in the low bits of the sum.
  constexpr float shift = 12582912.0f;
  const float shifted = clamped * 1.44269504089f + shift;
  const float n = shifted - shift;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = __builtin_bit_cast(float, (__builtin_bit_cast(int, shifted) << 23) + (127 << 23));
  const float result = p * scale;
  return x < low ? 0.0f : (x > high ? __builtin_inff() : result);
}
FASTPAIR_INLINE double exponential(double x) { return __builtin_exp(x); }

FASTPAIR_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
FASTPAIR_INLINE double square_root(double x) { return __builtin_sqrt(x); }

FASTPAIR_INLINE int64_t clip(int64_t j, int64_t begin, int64_t end) { return j < begin ? begin : (j > end ? end : j); }

// Runs f on each stretch of a row of the tile that holds negatives only or positives only: f(positive, begin, end),
// with columns counted from the tile's first. The self-pair belongs to none.
template <typename T, typename F>
FASTPAIR_INLINE void stretches(const Tile<T>& tile, int64_t r, const F& f) {
  const int64_t i = tile.row + r;
  const int64_t begin = clip(tile.pos_begin[i] - tile.col, 0, tile.cols);
  const int64_t end = clip(tile.pos_end[i] - tile.col, 0, tile.cols);
  const int64_t self = i - tile.col;
  if (begin > 0) f(false, int64_t(0), begin);
  if (tile.self_pairs && self >= begin && self < end) {
    if (self > begin) f(true, begin, self);
    if (end > self + 1) f(true, self + 1, end);
  } else if (end > begin) {
    f(true, begin, end);
  }
  if (tile.cols > end) f(false, end, tile.cols);
}

template <bool Positive, typename T, typename Term>
FASTPAIR_INLINE void add_terms(const Term& term, const T* __restrict s, int64_t begin, int64_t end, T* row_sum,
                               T* row_count, T* __restrict col_sum, T* __restrict col_count) {
  T sum = 0, count = 0;
  if (col_sum == nullptr) {
#pragma omp simd reduction(+ : sum, count)
    for (int64_t j = begin; j < end; ++j) {
      const T value = Positive ? term.positive(s[j]) : term.negative(s[j]);
      sum += value;
      count += value == T(0) ? T(0) : T(1);
    }
  } else {
#pragma omp simd reduction(+ : sum, count)
    for (int64_t j = begin; j < end; ++j) {
      const T value = Positive ? term.positive(s[j]) : term.negative(s[j]);
      const T one = value == T(0) ? T(0) : T(1);
      sum += value;
      count += one;
      col_sum[j] += value;
      col_count[j] += one;
    }
  }
  *row_sum += sum;
  *row_count += count;
}

template <typename T, typename Term>
void sums(const Tile<T>& tile, const double* params, bool similarity, const Sums<T>& rows, const Sums<T>* cols) {
  const Term term(params, similarity);
  const Sums<T> none{nullptr, nullptr, nullptr, nullptr};
  const Sums<T>& c = cols ? *cols : none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* s = tile.scores + r * tile.ld;
    stretches(tile, r, [&](bool positive, int64_t begin, int64_t end) {
      if (positive) {
        add_terms<true>(term, s, begin, end, rows.pos + r, rows.pos_count + r, c.pos, c.pos_count);
      } else {
        add_terms<false>(term, s, begin, end, rows.neg + r, rows.neg_count + r, c.neg, c.neg_count);
      }
    });
  }
}

// d(distance)/d(dot product), up to the terms that the gradient of the norms takes care of.
template <Metric M, typename T>
FASTPAIR_INLINE T score_slope(T score) {
  if (M == Metric::Dot) return T(1);
  if (M == Metric::SqEuclidean) return T(-2);
  return score == T(0) ? T(0) : T(-1) / score;
}

template <bool Positive, Metric M, typename T, typename Term>
FASTPAIR_INLINE void write_slopes(const Term& term, T* __restrict s, int64_t begin, int64_t end, T row_weight,
                                  const T* __restrict col_weight, T* row_sum, T* __restrict col_sums) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = begin; j < end; ++j) {
    const T weight = col_weight ? row_weight + col_weight[j] : row_weight;
    const T slope = Positive ? term.positive_slope(s[j]) : term.negative_slope(s[j]);
    const T value = slope * weight * score_slope<M>(s[j]);
    s[j] = value;
    if (M != Metric::Dot) {
      sum += value;
      col_sums[j] += value;
    }
  }
  if (M != Metric::Dot) *row_sum += sum;
}

template <Metric M, typename T, typename Term>
void slopes_of(const Tile<T>& tile, const Term& term, const Weights<T>& weights, bool mirrored, T* row_sums,
               T* col_sums) {
  const T* col_pos = mirrored ? weights.pos + tile.col : nullptr;
  const T* col_neg = mirrored ? weights.neg + tile.col : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* s = tile.scores + r * tile.ld;
    const int64_t i = tile.row + r;
    stretches(tile, r, [&](bool positive, int64_t begin, int64_t end) {
      if (positive) {
        write_slopes<true, M>(term, s, begin, end, weights.pos[i], col_pos, row_sums + r, col_sums);
      } else {
        write_slopes<false, M>(term, s, begin, end, weights.neg[i], col_neg, row_sums + r, col_sums);
      }
    });
    const int64_t self = i - tile.col;
    if (tile.self_pairs && self >= 0 && self < tile.cols) s[self] = 0;
  }
}

template <typename T, typename Term>
void slopes(const Tile<T>& tile, const double* params, Metric metric, bool similarity, const Weights<T>& weights,
            bool mirrored, T* row_sums, T* col_sums) {
  const Term term(params, similarity);
  switch (metric) {
    case Metric::Dot:
      return slopes_of<Metric::Dot>(tile, term, weights, mirrored, row_sums, col_sums);
    case Metric::SqEuclidean:
      return slopes_of<Metric::SqEuclidean>(tile, term, weights, mirrored, row_sums, col_sums);
    case Metric::Euclidean:
      return slopes_of<Metric::Euclidean>(tile, term, weights, mirrored, row_sums, col_sums);
  }
}

template <typename T>
bool distances(Metric metric, T* scores, int64_t ld, int64_t rows, int64_t cols, const T* row_norms,
               const T* __restrict col_norms) {
  int inaccurate = 0;
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict s = scores + r * ld;
    const T norm = row_norms[r];
#pragma omp simd reduction(| : inaccurate)
    for (int64_t j = 0; j < cols; ++j) {
      const T norms = norm + col_norms[j];
      const T squared = relu(norms - 2 * s[j]);
      inaccurate |= squared < T(SMALL_DISTANCE) * norms;
      s[j] = squared;
    }
    if (metric == Metric::Euclidean) {
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) s[j] = square_root(s[j]);
    }
  }
  return inaccurate != 0;
}

template <typename T>
void row_softmax(T* __restrict logits, int64_t n, const T* __restrict bias, T* maximum, T* sum_exp, T* sum) {
  T highest = -__builtin_inf(), total = 0, exponentials = 0;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) logits[j] += bias[j];
  }
#pragma omp simd reduction(max : highest) reduction(+ : total)
  for (int64_t j = 0; j < n; ++j) {
    highest = highest < logits[j] ? logits[j] : highest;
    total += logits[j];
  }
  // A row of minus infinities has no maximum to shift by.
  const T shift = highest == T(-__builtin_inf()) ? T(0) : highest;
#pragma omp simd reduction(+ : exponentials)
  for (int64_t j = 0; j < n; ++j) exponentials += exponential(logits[j] - shift);
  *maximum = highest;
  *sum_exp = exponentials;
  *sum = total;
}

template <typename T>
void row_probabilities(T* __restrict logits, int64_t n, T shift, T scale, T offset) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] = scale * exponential(logits[j] - shift) + offset;
}

template <typename T>
void add_to(T* __restrict x, const T* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] += y[j];
}

template <typename T>
void from_bfloat16(const void* in, int64_t n, bool accumulate, T* __restrict out) {
  const uint16_t* __restrict bits = static_cast<const uint16_t*>(in);
  if (accumulate) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] += __builtin_bit_cast(float, uint32_t(bits[j]) << 16);
  } else {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) out[j] = __builtin_bit_cast(float, uint32_t(bits[j]) << 16);
  }
}

template <typename T>
void to_bfloat16(const T* __restrict in, int64_t n, void* out) {
  uint16_t* __restrict to = static_cast<uint16_t*>(out);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const float value = float(in[j]);
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[j] = uint16_t(value != value ? 0x7fc0 : rounded);
  }
}

template <typename T>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return sum;
}

template <typename T>
T squared_distance(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += (x[j] - y[j]) * (x[j] - y[j]);
  return sum;
}

template <typename T>
constexpr PairKernels<T> PAIR_LOSSES[] = {
    {"contrastive", 2, true, &sums<T, Contrastive<T, 1>>, &slopes<T, Contrastive<T, 1>>},
    {"squared_contrastive", 2, false, &sums<T, Contrastive<T, 2>>, &slopes<T, Contrastive<T, 2>>},
};

template <typename T>
constexpr Kernels<T> KERNELS = {
    .pair_losses = PAIR_LOSSES<T>,
    .pair_loss_count = sizeof(PAIR_LOSSES<T>) / sizeof(PAIR_LOSSES<T>[0]),
    .distances = &distances<T>,
    .row_softmax = &row_softmax<T>,
    .row_probabilities = &row_probabilities<T>,
    .add_to = &add_to<T>,
    .from_bfloat16 = &from_bfloat16<T>,
    .to_bfloat16 = &to_bfloat16<T>,
    .dot = &dot<T>,
    .squared_distance = &squared_distance<T>,
};

}  // namespace

const Kernels<float>& float_kernels() { return KERNELS<float>; }
const Kernels<double>& double_kernels() { return KERNELS<double>; }

}  // namespace fastpair::FASTPAIR_SIMD_LEVEL
