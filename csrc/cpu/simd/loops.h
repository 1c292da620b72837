// The bodies of the loops of kernels.h. Included once for each SIMD level, with that level's code generation switched
// on and FASTPAIR_SIMD_LEVEL naming the namespace. Nothing here may call a header's function that is compiled out of
// line: the linker keeps one copy of it, which may be one that this machine cannot run.
//
// An added loss, see added_loss.h, is compiled while a user waits: FASTPAIR_METRIC names the one metric that it is
// compiled for, and of the loops only those over pairs are.

#include <type_traits>

#include "cpu/simd/kernels.h"

// A header as fastpair/formulas/to_cpp.py prints it: the package's own, or that of an added loss, see added_loss.h.
#ifndef FASTPAIR_FORMULAS
#define FASTPAIR_FORMULAS "pair_losses/generated.h"
#endif
#include FASTPAIR_FORMULAS

namespace fastpair::FASTPAIR_SIMD_LEVEL {
namespace {

FASTPAIR_INLINE int64_t clip(int64_t j, int64_t end) { return j < 0 ? 0 : (j > end ? end : j); }

// An integer as wide as T: a vector of them is then a mask for a vector of T. In loops of mixed widths, int over
// double, GCC 12 miscomputes sums.
template <typename T>
using Count = std::conditional_t<sizeof(T) == sizeof(int), int, int64_t>;

// Runs f(begin, count, has) for the positives, or the negatives, in a row of the tile: the columns begin + k, k in
// [0, count), with has(k), counted from the tile's first. The self-pair is neither. Negatives are all columns but a
// stretch: one loop with a mask over the row runs on whole vectors, while loops before and after the stretch would be
// mostly remainders. k starts at 0: from elsewhere an int might wrap, as far as a compiler with -fwrapv knows, and
// loads would become gathers.
template <Kind KIND, typename T, typename F>
FASTPAIR_INLINE void row_pairs(const ScoreTile<T>& tile, int64_t r, const F& f) {
  const int64_t i = tile.row + r, self = tile.self ? tile.self[i] - tile.col : -1;
  const int64_t pos_begin = clip(tile.pos_begin[i] - tile.col, tile.cols);
  const int64_t pos_end = clip(tile.pos_end[i] - tile.col, tile.cols);
  if (tile.kinds) {
    const int64_t begin = KIND == Positive ? pos_begin : 0, end = KIND == Positive ? pos_end : tile.cols;
    const auto has = [kinds = tile.kinds + r * MAX_BLOCK + begin](Count<T> k)
                         __attribute__((always_inline)) { return kinds[k] == KIND; };
    f(begin, Count<T>(end - begin), has);
  } else if (KIND == Positive) {
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

// x for a pair, `none` for a column that is no pair. x is an argument so that it is computed either way: behind a
// condition it would be loaded and computed with masks, which is slower.
template <typename T>
FASTPAIR_INLINE T if_pair(bool pair, T x, T none) {
  return pair ? x : none;
}

template <Kind KIND, typename Terms>
constexpr bool READS_LSE = KIND == Positive && Terms::READS_NEGATIVES_LSE;
template <Kind KIND, typename Terms>
constexpr bool SUMMED = KIND == Positive && Terms::NEEDS_SUM;

template <Kind KIND, bool Cols, typename T, typename Terms>
void add_up(const ScoreTile<T>& tile, const Terms& terms, const T* row_lse, const T* col_lse, T* const* rows,
            T* const* cols) {
  T* __restrict col_sum = Cols ? cols[0] : nullptr;
  T* __restrict col_nonzeros = Cols ? cols[1] : nullptr;
  T* __restrict col_by_lse = Cols ? cols[2] : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const T lse = READS_LSE<KIND, Terms> ? row_lse[tile.row + r] : T(0);
    T sum = 0, nonzeros = 0, by_lse = 0;
    row_pairs<KIND>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum, nonzeros, by_lse)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = if_pair(pair, term_of<KIND>(terms, s[j], lse), T(0));
        sum += value;
        nonzeros += nonzero(value);
        if constexpr (READS_LSE<KIND, Terms>) by_lse += if_pair(pair, terms.slope_by_negatives_lse(s[j], lse), T(0));
        if constexpr (Cols) {
          if constexpr (READS_LSE<KIND, Terms>) {
            const T other = col_lse[tile.col + j];
            value = if_pair(pair, term_of<KIND>(terms, s[j], other), T(0));
            col_by_lse[j] += if_pair(pair, terms.slope_by_negatives_lse(s[j], other), T(0));
          }
          col_sum[j] += value;
          col_nonzeros[j] += nonzero(value);
        }
      }
    });
    rows[0][r] = sum;
    rows[1][r] = nonzeros;
    rows[2][r] = by_lse;
  }
}

// Passes twice over the tile: for the maxima, then for the exponentials relative to those of the row and the column.
template <Kind KIND, bool Cols, typename T, typename Terms>
void add_exponentials(const ScoreTile<T>& tile, const Terms& terms, T* const* rows, T* const* cols) {
  constexpr T none = -__builtin_inf();
  T* __restrict col_max = Cols ? cols[0] : nullptr;
  T* __restrict col_exponentials = Cols ? cols[1] : nullptr;
  T* __restrict col_sum = Cols ? cols[2] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_max[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T highest = none;
    row_pairs<KIND>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(max : highest)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const T value = if_pair(has(k), term_of<KIND>(terms, s[j], T(0)), none);
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
    row_pairs<KIND>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : exponentials, sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        const T value = term_of<KIND>(terms, s[j], T(0));
        exponentials += exponential(if_pair(pair, value - shift, none));
        if (Cols) col_exponentials[j] += exponential(if_pair(pair, value - col_shift[j], none));
        if (SUMMED<KIND, Terms>) {
          sum += if_pair(pair, value, T(0));
          if (Cols) col_sum[j] += if_pair(pair, value, T(0));
        }
      }
    });
    rows[1][r] = exponentials;
    rows[2][r] = sum;
  }
}

// The first of equal maxima; NaN counts as the largest, so that it shows.
template <Kind KIND, bool Cols, typename T, typename Terms>
void find_maxima(const ScoreTile<T>& tile, const Terms& terms, T* const* rows, T* const* cols) {
  constexpr T none = -__builtin_inf();
  T* __restrict col_best = Cols ? cols[0] : nullptr;
  T* __restrict col_place = Cols ? cols[1] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_best[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T best = none, place = 0;
    row_pairs<KIND>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
      const auto value_at = [&](Count<T> k) __attribute__((always_inline)) {
        return if_pair(has(k), term_of<KIND>(terms, s[begin + k], T(0)), none);
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

template <Kind KIND, bool Cols, typename T, typename Terms>
FASTPAIR_INLINE void statistics_of(const ScoreTile<T>& tile, const Terms& terms, const T* row_lse, const T* col_lse,
                                   T* const* rows, T* const* cols) {
  constexpr Pool pool = POOL<KIND, Terms>;
  if constexpr (pool == Pool::Sum) {
    add_up<KIND, Cols>(tile, terms, row_lse, col_lse, rows, cols);
  } else if constexpr (pool == Pool::LogSumExp) {
    add_exponentials<KIND, Cols>(tile, terms, rows, cols);
  } else {
    find_maxima<KIND, Cols>(tile, terms, rows, cols);
  }
}

template <typename T, typename Terms>
void statistics(const ScoreTile<T>& tile, const double* params, Kind kind, const T* row_lse, const T* col_lse,
                const Parts<T>& rows, const Parts<T>* cols) {
  const Terms terms(params);
  T* const* none = nullptr;
  if (kind == Positive && cols) {
    statistics_of<Positive, true>(tile, terms, row_lse, col_lse, rows.of[Positive], cols->of[Positive]);
  } else if (kind == Positive) {
    statistics_of<Positive, false>(tile, terms, row_lse, col_lse, rows.of[Positive], none);
  } else if (cols) {
    statistics_of<Negative, true>(tile, terms, row_lse, col_lse, rows.of[Negative], cols->of[Negative]);
  } else {
    statistics_of<Negative, false>(tile, terms, row_lse, col_lse, rows.of[Negative], none);
  }
}

// Wrappers, since taking the address of a struct's own function would emit it out of line: see above.
template <typename T, typename Terms>
Anchor anchor(const double* params, const Statistic& pos, const Statistic& neg) {
  return Terms::anchor(params, pos, neg);
}

template <typename T, typename Terms>
T term_slope(const double* params, Kind kind, T closeness) {
  const Terms terms(params);
  return kind == Positive ? slope_of<Positive>(terms, closeness, T(0)) : slope_of<Negative>(terms, closeness, T(0));
}

// The derivative of one anchor's loss by the closeness of a pair.
template <Kind KIND, typename T, typename Terms>
FASTPAIR_INLINE T anchor_slope(const Terms& terms, T s, T lse, T factor, T shift, T constant) {
  T weight = constant;
  if constexpr (POOL<KIND, Terms> == Pool::LogSumExp) {
    weight = multiply_add(factor, exponential(term_of<KIND>(terms, s, lse) - shift), constant);
  }
  return slope_of<KIND>(terms, s, lse) * weight;
}

template <Kind KIND, bool Cols, Metric M, typename T, typename Terms>
void write_slopes(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows, const Weights<T>* cols,
                  T* row_sums, T* __restrict col_sums) {
  const T* __restrict factors = Cols ? cols->factor[KIND] + tile.col : nullptr;
  const T* __restrict shifts = Cols ? cols->shift[KIND] + tile.col : nullptr;
  const T* __restrict constants = Cols ? cols->constant[KIND] + tile.col : nullptr;
  const T* __restrict lses = Cols && READS_LSE<KIND, Terms> ? cols->negatives_lse + tile.col : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* __restrict s = tile.scores + r * tile.ld;
    const int64_t i = tile.row + r;
    const T factor = rows.factor[KIND][i], shift = rows.shift[KIND][i], constant = rows.constant[KIND][i];
    const T lse = READS_LSE<KIND, Terms> ? rows.negatives_lse[i] : T(0);
    T sum = 0;
    row_pairs<KIND>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = anchor_slope<KIND>(terms, s[j], lse, factor, shift, constant);
        if (Cols) {
          value += anchor_slope<KIND>(terms, s[j], READS_LSE<KIND, Terms> ? lses[j] : T(0), factors[j], shifts[j],
                                      constants[j]);
        }
        value *= closeness_slope(M, s[j]);
        // A distance of zero has gradient zero, also where the term, as a square root, has an infinite slope.
        if (M != Metric::Dot) value = s[j] == T(0) ? T(0) : value;
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

template <Metric M, typename T, typename Terms>
void slopes_of(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows, const Weights<T>* cols,
               T* row_sums, T* col_sums) {
  if (cols) {
    write_slopes<Negative, true, M>(tile, terms, rows, cols, row_sums, col_sums);
    write_slopes<Positive, true, M>(tile, terms, rows, cols, row_sums, col_sums);
  } else {
    write_slopes<Negative, false, M>(tile, terms, rows, cols, row_sums, col_sums);
    write_slopes<Positive, false, M>(tile, terms, rows, cols, row_sums, col_sums);
  }
  for (int64_t r = 0; tile.kinds && r < tile.rows; ++r) {
    const uint8_t* kinds = tile.kinds + r * MAX_BLOCK;
    T* __restrict s = tile.scores + r * tile.ld;
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) s[k] = kinds[k] == NO_PAIR ? T(0) : s[k];
  }
  if (tile.kinds || tile.self == nullptr) return;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t self = tile.self[tile.row + r] - tile.col;
    if (self >= 0 && self < tile.cols) tile.scores[r * tile.ld + self] = 0;
  }
}

template <typename T, typename Terms>
void slopes(const ScoreTile<T>& tile, const double* params, Metric metric, const Weights<T>& rows,
            const Weights<T>* cols, T* row_sums, T* col_sums) {
  const Terms terms(params);
#ifdef FASTPAIR_METRIC
  slopes_of<Metric::FASTPAIR_METRIC>(tile, terms, rows, cols, row_sums, col_sums);
#else
  switch (metric) {
    case Metric::Dot:
      return slopes_of<Metric::Dot>(tile, terms, rows, cols, row_sums, col_sums);
    case Metric::SqEuclidean:
      return slopes_of<Metric::SqEuclidean>(tile, terms, rows, cols, row_sums, col_sums);
    case Metric::Euclidean:
      return slopes_of<Metric::Euclidean>(tile, terms, rows, cols, row_sums, col_sums);
  }
#endif
}

template <typename T>
bool distances(Metric metric, T sign, T* scores, int64_t ld, int64_t rows, int64_t cols, const T* row_norms,
               const T* __restrict col_norms) {
  const bool root = metric == Metric::Euclidean;
  const T square_sign = root ? T(1) : sign;
  int inaccurate = 0;
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict s = scores + r * ld;
    const T norm = row_norms[r];
#pragma omp simd reduction(| : inaccurate)
    for (int64_t j = 0; j < cols; ++j) {
      const T norms = norm + col_norms[j];
      const T squared = relu(multiply_add(T(-2), s[j], norms));
      inaccurate |= !(squared >= T(SMALL_DISTANCE) * norms);
      s[j] = square_sign * squared;
    }
    if (root) {
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) s[j] = sign * square_root(s[j]);
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
    count += nonzero(value);
    slope_sum += slope;
    slopes[j] -= slope;
  }
  sums[0] = loss;
  sums[1] = count;
  sums[2] = slope_sum;
}

inline void shared_labels(const int32_t* own, const int32_t* others, int64_t words, int64_t ld, int64_t n,
                          uint8_t* __restrict kinds) {
  int32_t shared[MAX_BLOCK];
  for (int64_t start = 0; start < n; start += MAX_BLOCK) {
    const int count = int(n - start < MAX_BLOCK ? n - start : MAX_BLOCK);
    for (int k = 0; k < count; ++k) shared[k] = 0;
    for (int64_t w = 0; w < words; ++w) {
      const int32_t mine = own[w], *__restrict theirs = others + w * ld + start;
      for (int k = 0; k < count; ++k) shared[k] |= theirs[k] & mine;
    }
    for (int k = 0; k < count; ++k) kinds[start + k] = shared[k] != 0 ? Positive : Negative;
  }
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

template <typename T, typename Terms>
constexpr PairKernels<T> pair_kernels(const char* name) {
  return {
      .name = name,
      .param_count = Terms::PARAMS,
      .pool = {Terms::NEGATIVES, Terms::POSITIVES},
      .is_sum = Terms::IS_SUM,
      .reads_negatives_lse = Terms::READS_NEGATIVES_LSE,
      .separate_means = Terms::SEPARATE_MEANS,
      .statistics = &statistics<T, Terms>,
      .anchor = &anchor<T, Terms>,
      .term_slope = &term_slope<T, Terms>,
      .slopes = &slopes<T, Terms>,
  };
}

#define FASTPAIR_ENTRY(name, ...) pair_kernels<T, __VA_ARGS__>(name)
template <typename T>
constexpr PairKernels<T> PAIR_LOSSES[] = {FASTPAIR_PAIR_LOSSES(FASTPAIR_ENTRY, T)};
#undef FASTPAIR_ENTRY

#ifndef FASTPAIR_METRIC
template <typename T>
constexpr Kernels<T> KERNELS = {
    .pair_losses = PAIR_LOSSES<T>,
    .pair_loss_count = sizeof(PAIR_LOSSES<T>) / sizeof(PAIR_LOSSES<T>[0]),
    .distances = &distances<T>,
    .row_softmax = &row_softmax<T>,
    .row_probabilities = &row_probabilities<T>,
    .smooth_triplets = &smooth_triplets<T>,
    .shared_labels = &shared_labels,
    .add_to = &add_to<T>,
    .dot = &dot<T>,
    .squared_distance = &squared_distance<T>,
};
#endif

}  // namespace

#ifndef FASTPAIR_METRIC
template <typename T>
const Kernels<T>& kernels() {
  return KERNELS<T>;
}
template const Kernels<float>& kernels();
template const Kernels<double>& kernels();
#endif

}  // namespace fastpair::FASTPAIR_SIMD_LEVEL
