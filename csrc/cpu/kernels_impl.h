// The bodies of the loops of kernels.h. Included once for each SIMD level, with that level's code generation switched
// on and FASTPAIR_SIMD_LEVEL naming the namespace. Nothing here may call a function that is compiled out of line in a
// header: the linker keeps one copy of those, and it may be one that this machine cannot run.

#include <type_traits>

#include "cpu/kernels.h"
#include "terms.h"

namespace fastpair::FASTPAIR_SIMD_LEVEL {
namespace {

FASTPAIR_INLINE int64_t clip(int64_t j, int64_t end) { return j < 0 ? 0 : (j > end ? end : j); }

// As wide as T: a vector of them is then a mask for a vector of T. In loops of mixed widths, int over double, sums that
// GCC 12 makes are wrong.
template <typename T>
using Count = std::conditional_t<sizeof(T) == sizeof(int), int, int64_t>;

// Runs f(begin, count, has) for the positives, or the negatives, in a row of the tile: the columns begin + k, k in
// [0, count), with has(k), counted from the tile's first. The self-pair is neither. Negatives are all columns but a
// stretch: one loop with a mask over the row runs on whole vectors, where loops up to the stretch and beyond it would
// be mostly remainders. k starts at 0: from elsewhere an int may wrap, for all that a compiler told -fwrapv knows, and
// loads would be gathers.
template <bool Positive, typename T, typename F>
FASTPAIR_INLINE void row_pairs(const Tile<T>& tile, int64_t r, const F& f) {
  const int64_t i = tile.row + r, self = tile.self ? tile.self[i] - tile.col : -1;
  const int64_t pos_begin = clip(tile.pos_begin[i] - tile.col, tile.cols);
  const int64_t pos_end = clip(tile.pos_end[i] - tile.col, tile.cols);
  if (Positive) {
    const auto all = [](Count<T>) __attribute__((always_inline)) { return true; };
    const bool among = self >= pos_begin && self < pos_end;
    const int64_t begin = among ? self + 1 : pos_begin;
    if (among) f(pos_begin, Count<T>(self - pos_begin), all);
    f(begin, Count<T>(pos_end - begin), all);
  } else if (pos_end - pos_begin < tile.cols) {
    const auto has = [first = Count<T>(pos_begin), last = Count<T>(pos_end), self = Count<T>(self)](Count<T> k)
                         __attribute__((always_inline)) { return ((k < first) | (k >= last)) & (k != self); };
    f(0, Count<T>(tile.cols), has);
  }
}

// x for a pair, `none` for a column that is no pair. x is an argument so that it is computed either way: what stands
// behind a condition is loaded and computed with masks, which is slower.
template <typename T>
FASTPAIR_INLINE T if_pair(bool pair, T x, T none) {
  return pair ? x : none;
}

template <bool Positive, typename Term, typename T>
FASTPAIR_INLINE T value_of(const Term& term, T s, T given) {
  return Positive ? term.positive(s, given) : term.negative(s, given);
}

template <bool Positive, typename Term, typename T>
FASTPAIR_INLINE T slope_of(const Term& term, T s, T given) {
  return Positive ? term.positive_slope(s, given) : term.negative_slope(s, given);
}

template <bool Positive, typename Term>
constexpr bool GIVEN = Positive && Term::POSITIVES_GIVEN;
template <bool Positive, typename Term>
constexpr bool SUMMED = Positive && Term::NEEDS_SUM;

template <bool Positive, bool Cols, typename T, typename Term>
void add_up(const Tile<T>& tile, const Term& term, const T* row_given, const T* col_given, T* const* rows,
            T* const* cols) {
  T* __restrict col_sum = Cols ? cols[0] : nullptr;
  T* __restrict col_nonzero = Cols ? cols[1] : nullptr;
  T* __restrict col_given_slope = Cols ? cols[2] : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const T given = GIVEN<Positive, Term> ? row_given[tile.row + r] : T(0);
    T sum = 0, nonzero = 0, given_slope = 0;
    row_pairs<Positive>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum, nonzero, given_slope)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = if_pair(pair, value_of<Positive>(term, s[j], given), T(0));
        sum += value;
        nonzero += value == T(0) ? T(0) : T(1);
        if constexpr (GIVEN<Positive, Term>) given_slope += if_pair(pair, term.given_slope(s[j], given), T(0));
        if constexpr (Cols) {
          if constexpr (GIVEN<Positive, Term>) {
            const T other = col_given[tile.col + j];
            value = if_pair(pair, value_of<Positive>(term, s[j], other), T(0));
            col_given_slope[j] += if_pair(pair, term.given_slope(s[j], other), T(0));
          }
          col_sum[j] += value;
          col_nonzero[j] += value == T(0) ? T(0) : T(1);
        }
      }
    });
    rows[0][r] = sum;
    rows[1][r] = nonzero;
    rows[2][r] = given_slope;
  }
}

// Twice over the tile: the maxima, then the exponentials relative to those of the row and of the column.
template <bool Positive, bool Cols, typename T, typename Term>
void add_exponentials(const Tile<T>& tile, const Term& term, T* const* rows, T* const* cols) {
  constexpr T none = -__builtin_inf();
  T* __restrict col_max = Cols ? cols[0] : nullptr;
  T* __restrict col_exponentials = Cols ? cols[1] : nullptr;
  T* __restrict col_sum = Cols ? cols[2] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_max[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T highest = none;
    row_pairs<Positive>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(max : highest)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const T value = if_pair(has(k), value_of<Positive>(term, s[j], T(0)), none);
        highest = highest < value ? value : highest;
        if (Cols) col_max[j] = col_max[j] < value ? value : col_max[j];
      }
    });
    rows[0][r] = highest;
  }
  T col_shift[MAX_BLOCK];
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_shift[j] = shift_of(col_max[j]);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const T shift = shift_of(rows[0][r]);
    T exponentials = 0, sum = 0;
    row_pairs<Positive>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : exponentials, sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        const T value = value_of<Positive>(term, s[j], T(0));
        exponentials += exponential(if_pair(pair, value - shift, none));
        if (Cols) col_exponentials[j] += exponential(if_pair(pair, value - col_shift[j], none));
        if (SUMMED<Positive, Term>) {
          sum += if_pair(pair, value, T(0));
          if (Cols) col_sum[j] += if_pair(pair, value, T(0));
        }
      }
    });
    rows[1][r] = exponentials;
    rows[2][r] = sum;
  }
}

// Among equals the first; NaN passes for the largest, so that it shows.
template <bool Positive, bool Cols, typename T, typename Term>
void find_maxima(const Tile<T>& tile, const Term& term, T* const* rows, T* const* cols) {
  constexpr T none = -__builtin_inf();
  T* __restrict col_best = Cols ? cols[0] : nullptr;
  T* __restrict col_place = Cols ? cols[1] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_best[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T best = none, place = 0;
    row_pairs<Positive>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
      const auto value_at = [&](Count<T> k) __attribute__((always_inline)) {
        return if_pair(has(k), value_of<Positive>(term, s[begin + k], T(0)), none);
      };
      T highest = none;
      int bad = 0;
#pragma omp simd reduction(max : highest) reduction(| : bad)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const T value = value_at(k);
        highest = highest < value ? value : highest;
        bad |= value != value;
        if (Cols) {
          const bool better = (value > col_best[j]) | (value != value);
          col_best[j] = better ? value : col_best[j];
          col_place[j] = better ? T(r + 1) : col_place[j];
        }
      }
      if (!(highest > best) && !bad) return;
      for (Count<T> k = 0; k < count; ++k) {
        const T value = value_at(k);
        if (bad ? value != value : value == highest) {
          best = value;
          place = T(begin + k + 1);
          break;
        }
      }
    });
    rows[0][r] = best;
    rows[1][r] = place;
  }
}

template <bool Positive, bool Cols, typename T, typename Term>
FASTPAIR_INLINE void statistics_of(const Tile<T>& tile, const Term& term, const T* row_given, const T* col_given,
                                   T* const* rows, T* const* cols) {
  constexpr Reduction reduction = Positive ? Term::POSITIVES : Term::NEGATIVES;
  if constexpr (reduction == Reduction::Sum) {
    add_up<Positive, Cols>(tile, term, row_given, col_given, rows, cols);
  } else if constexpr (reduction == Reduction::LogSumExp) {
    add_exponentials<Positive, Cols>(tile, term, rows, cols);
  } else {
    find_maxima<Positive, Cols>(tile, term, rows, cols);
  }
}

template <typename T, typename Term>
void statistics(const Tile<T>& tile, const double* params, bool similarity, bool positives, const T* row_given,
                const T* col_given, const Parts<T>& rows, const Parts<T>* cols) {
  const Term term(params, similarity);
  T* const* none = nullptr;
  if (positives && cols) {
    statistics_of<true, true>(tile, term, row_given, col_given, rows.of[1], cols->of[1]);
  } else if (positives) {
    statistics_of<true, false>(tile, term, row_given, col_given, rows.of[1], none);
  } else if (cols) {
    statistics_of<false, true>(tile, term, row_given, col_given, rows.of[0], cols->of[0]);
  } else {
    statistics_of<false, false>(tile, term, row_given, col_given, rows.of[0], none);
  }
}

template <typename T, typename Term>
Anchor anchor(const double* params, bool similarity, const Statistic& pos, const Statistic& neg) {
  return Term(params, similarity).anchor(pos, neg);
}

// d(distance)/d(dot product), up to the terms that the gradient of the norms takes care of.
template <Metric M, typename T>
FASTPAIR_INLINE T score_slope(T score) {
  if (M == Metric::Dot) return T(1);
  if (M == Metric::SqEuclidean) return T(-2);
  return score == T(0) ? T(0) : T(-1) / score;
}

// The derivative of one anchor's loss by the score of a pair.
template <bool Positive, typename T, typename Term>
FASTPAIR_INLINE T anchor_slope(const Term& term, T s, T given, T factor, T shift, T constant) {
  constexpr Reduction reduction = Positive ? Term::POSITIVES : Term::NEGATIVES;
  T weight = constant;
  if constexpr (reduction == Reduction::LogSumExp) {
    weight = multiply_add(factor, exponential(value_of<Positive>(term, s, given) - shift), constant);
  }
  return slope_of<Positive>(term, s, given) * weight;
}

template <bool Positive, bool Cols, Metric M, typename T, typename Term>
void write_slopes(const Tile<T>& tile, const Term& term, const Weights<T>& rows, const Weights<T>* cols, T* row_sums,
                  T* __restrict col_sums) {
  const auto kind = rows.of[Positive];
  const T* __restrict factors = Cols ? cols->of[Positive].factor + tile.col : nullptr;
  const T* __restrict shifts = Cols ? cols->of[Positive].shift + tile.col : nullptr;
  const T* __restrict constants = Cols ? cols->of[Positive].constant + tile.col : nullptr;
  const T* __restrict givens = Cols && GIVEN<Positive, Term> ? cols->given + tile.col : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* __restrict s = tile.scores + r * tile.ld;
    const int64_t i = tile.row + r;
    const T factor = kind.factor[i], shift = kind.shift[i], constant = kind.constant[i];
    const T given = GIVEN<Positive, Term> ? rows.given[i] : T(0);
    T sum = 0;
    row_pairs<Positive>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = anchor_slope<Positive>(term, s[j], given, factor, shift, constant);
        if (Cols) {
          value += anchor_slope<Positive>(term, s[j], GIVEN<Positive, Term> ? givens[j] : T(0), factors[j], shifts[j],
                                          constants[j]);
        }
        value *= score_slope<M>(s[j]);
        s[j] = if_pair(pair, value, s[j]);
        if (M != Metric::Dot) {
          sum += if_pair(pair, value, T(0));
          col_sums[j] += if_pair(pair, value, T(0));
        }
      }
    });
    if (M != Metric::Dot) row_sums[r] += sum;
  }
}

template <Metric M, typename T, typename Term>
void slopes_of(const Tile<T>& tile, const Term& term, const Weights<T>& rows, const Weights<T>* cols, T* row_sums,
               T* col_sums) {
  if (cols) {
    write_slopes<false, true, M>(tile, term, rows, cols, row_sums, col_sums);
    write_slopes<true, true, M>(tile, term, rows, cols, row_sums, col_sums);
  } else {
    write_slopes<false, false, M>(tile, term, rows, cols, row_sums, col_sums);
    write_slopes<true, false, M>(tile, term, rows, cols, row_sums, col_sums);
  }
  if (tile.self == nullptr) return;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t self = tile.self[tile.row + r] - tile.col;
    if (self >= 0 && self < tile.cols) tile.scores[r * tile.ld + self] = 0;
  }
}

template <typename T, typename Term>
void slopes(const Tile<T>& tile, const double* params, Metric metric, bool similarity, const Weights<T>& rows,
            const Weights<T>* cols, T* row_sums, T* col_sums) {
  const Term term(params, similarity);
  switch (metric) {
    case Metric::Dot:
      return slopes_of<Metric::Dot>(tile, term, rows, cols, row_sums, col_sums);
    case Metric::SqEuclidean:
      return slopes_of<Metric::SqEuclidean>(tile, term, rows, cols, row_sums, col_sums);
    case Metric::Euclidean:
      return slopes_of<Metric::Euclidean>(tile, term, rows, cols, row_sums, col_sums);
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
      const T squared = relu(multiply_add(T(-2), s[j], norms));
      inaccurate |= !(squared >= T(SMALL_DISTANCE) * norms);
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
void row_softmax(T* __restrict logits, int64_t n, const T* __restrict bias, T* maximum, T* sum_exp, T* above) {
  T highest = -__builtin_inf(), total = 0, exponentials = 0;
  if (bias) {
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) logits[j] += bias[j];
  }
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < n; ++j) highest = highest < logits[j] ? logits[j] : highest;
  const T shift = shift_of(highest);
#pragma omp simd reduction(+ : exponentials, total)
  for (int64_t j = 0; j < n; ++j) {
    exponentials += exponential(logits[j] - shift);
    total += logits[j] - shift;
  }
  *maximum = highest;
  *sum_exp = exponentials;
  *above = total;
}

template <typename T>
void row_probabilities(T* __restrict logits, int64_t n, T shift, T scale, T offset) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] = multiply_add(scale, exponential(logits[j] - shift), offset);
}

template <typename T>
void smooth_triplets(T threshold, T from, T to, const T* __restrict d, int64_t n, T* __restrict slopes, T* sums) {
  T loss = 0, count = 0, slope_sum = 0;
#pragma omp simd reduction(+ : loss, count, slope_sum)
  for (int64_t j = 0; j < n; ++j) {
    const bool chosen = !(d[j] < from) & (d[j] < to);
    const T value = chosen ? softplus(threshold - d[j]) : T(0);
    const T slope = chosen ? sigmoid(threshold - d[j]) : T(0);
    loss += value;
    count += value == T(0) ? T(0) : T(1);
    slope_sum += slope;
    slopes[j] -= slope;
  }
  sums[0] = loss;
  sums[1] = count;
  sums[2] = slope_sum;
}

template <typename T>
void add_to(T* __restrict x, const T* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] += y[j];
}

template <typename T>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum = multiply_add(x[j], y[j], sum);
  return sum;
}

template <typename T>
T squared_distance(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T difference = x[j] - y[j];
    sum = multiply_add(difference, difference, sum);
  }
  return sum;
}

template <typename T, typename Term>
constexpr PairKernels<T> pair_kernels(std::string_view name) {
  return {
      .name = name,
      .param_count = Term::PARAMS,
      .reduction = {Term::NEGATIVES, Term::POSITIVES},
      .positives_given = Term::POSITIVES_GIVEN,
      .separate_means = Term::SEPARATE_MEANS,
      .statistics = &statistics<T, Term>,
      .anchor = &anchor<T, Term>,
      .slopes = &slopes<T, Term>,
  };
}

#define FASTPAIR_ENTRY(name, ...) pair_kernels<T, __VA_ARGS__>(name)
template <typename T>
constexpr PairKernels<T> PAIR_LOSSES[] = {FASTPAIR_PAIR_LOSSES(FASTPAIR_ENTRY, T)};
#undef FASTPAIR_ENTRY

template <typename T>
constexpr Kernels<T> KERNELS = {
    .pair_losses = PAIR_LOSSES<T>,
    .pair_loss_count = sizeof(PAIR_LOSSES<T>) / sizeof(PAIR_LOSSES<T>[0]),
    .distances = &distances<T>,
    .row_softmax = &row_softmax<T>,
    .row_probabilities = &row_probabilities<T>,
    .smooth_triplets = &smooth_triplets<T>,
    .add_to = &add_to<T>,
    .dot = &dot<T>,
    .squared_distance = &squared_distance<T>,
};

}  // namespace

const Kernels<float>& float_kernels() { return KERNELS<float>; }
const Kernels<double>& double_kernels() { return KERNELS<double>; }

}  // namespace fastpair::FASTPAIR_SIMD_LEVEL
