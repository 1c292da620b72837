// The bodies of the loops of kernels.h. Included once for each SIMD level, with that level's code generation switched
// on and FASTPAIR_SIMD_LEVEL naming the namespace. Nothing here may call a header's function that is compiled out of
// line: the linker keeps one copy of it, which may be one that this machine cannot run.
//
// An added loss, see added_loss.h, is compiled while a user waits: FASTPAIR_METRIC names the one metric that it is
// compiled for, and of the loops only those over pairs are.

#include <type_traits>
#include <utility>

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

// tile.kinds of a row, as wide as T: in loops of bytes and floats too GCC 12 loses terms, of maxima of zeros for
// instance.
template <typename T>
struct RowKinds {
  Count<T> of[MAX_BLOCK];

  FASTPAIR_INLINE RowKinds(const ScoreTile<T>& tile, int64_t r) {
    const uint8_t* __restrict kinds = tile.kinds + r * MAX_BLOCK;
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) of[k] = kinds[k];
  }
};

// Runs f(begin, count, has) for the positives, or the negatives, in a row of the tile: the columns begin + k, k in
// [0, count), with has(k), counted from the tile's first. The self-pair is neither. Negatives are all columns but a
// stretch: one loop with a mask over the row runs on whole vectors, while loops before and after the stretch would be
// mostly remainders. k starts at 0: from elsewhere an int might wrap, as far as a compiler with -fwrapv knows, and
// loads would become gathers. BYTES: whether tile.kinds says what pairs are.
template <Kind KIND, bool BYTES, typename T, typename F>
FASTPAIR_INLINE void row_pairs(const ScoreTile<T>& tile, int64_t r, const F& f) {
  const int64_t i = tile.row + r, self = tile.self ? tile.self[i] - tile.col : -1;
  const int64_t pos_begin = clip(tile.pos_begin[i] - tile.col, tile.cols);
  const int64_t pos_end = clip(tile.pos_end[i] - tile.col, tile.cols);
  if constexpr (BYTES) {
    const int64_t begin = KIND == Positive ? pos_begin : 0, end = KIND == Positive ? pos_end : tile.cols;
    const RowKinds<T> row(tile, r);
    const auto has = [kinds = row.of + begin](Count<T> k) __attribute__((always_inline)) { return kinds[k] == KIND; };
    f(begin, Count<T>(end - begin), has);
  } else if constexpr (KIND == Positive) {
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

// x where the condition holds, else y. They are arguments so that they are computed either way: behind a condition they
// would be loaded and computed with masks, which is slower.
template <typename T>
FASTPAIR_INLINE T either(bool condition, T x, T y) {
  return condition ? x : y;
}

// The same of numbers in memory, which GCC would load behind the condition all the same.
template <typename T>
FASTPAIR_INLINE T either_loaded(bool condition, T x, T y) {
  const Count<T> mask = -Count<T>(condition);
  return __builtin_bit_cast(T, (__builtin_bit_cast(Count<T>, x) & mask) | (__builtin_bit_cast(Count<T>, y) & ~mask));
}

template <Kind KIND, typename Terms>
constexpr bool READS_LSE = KIND == Positive && Terms::READS_NEGATIVES_LSE;
template <Kind KIND, typename Terms>
constexpr bool SUMMED = KIND == Positive && Terms::NEEDS_SUM;
// Whether a pair's term depends on which of its samples is the anchor.
template <Kind KIND, typename Terms>
constexpr bool ONE_WAY = READS_LSE<KIND, Terms> || Terms::READS_SCALARS;

// The numbers of a tile's samples: copied pointers, since GCC would read those of a tile in every step of a loop.
template <typename T>
struct TileScalars {
  const T *row_anchor, *row_ref, *col_anchor, *col_ref;
  int64_t rows, cols;

  FASTPAIR_INLINE explicit TileScalars(const ScoreTile<T>& tile)
      : row_anchor(from(tile.row_scalars.anchor, tile.row)),
        row_ref(from(tile.row_scalars.ref, tile.row)),
        col_anchor(from(tile.col_scalars.anchor, tile.col)),
        col_ref(from(tile.col_scalars.ref, tile.col)),
        rows(tile.row_scalars.n),
        cols(tile.col_scalars.n) {}

  FASTPAIR_INLINE static const T* from(const T* data, int64_t first) { return data ? data + first : nullptr; }
};

// In loops for #pragma omp simd, objects of struct types keep GCC from vectorising, but not those inside the functions
// that it inlines there: hence the functions of the pair (r, j) of the tile, whose closeness is s.

// The terms, with the numbers of the samples, if the row or the column is the anchor.
template <bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE decltype(auto) terms_at(const Terms& terms, const TileScalars<T>& of, int64_t r, int64_t j) {
  if constexpr (!Terms::READS_SCALARS) {
    return (terms);
  } else if constexpr (COL_ANCHOR) {
    return terms.at(of.col_anchor + j, of.cols, of.row_ref + r, of.rows);
  } else {
    return terms.at(of.row_anchor + r, of.rows, of.col_ref + j, of.cols);
  }
}

template <Kind KIND, bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T term_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s,
                          T negatives_lse) {
  return term_of<KIND>(terms_at<COL_ANCHOR>(terms, of_tile, r, j), s, negatives_lse);
}

// The term of a pair that is positive or negative.
template <bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T mixed_term_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s,
                                bool positive) {
  return either(positive, term_at<Positive, COL_ANCHOR>(terms, of_tile, r, j, s, T(0)),
                term_at<Negative, COL_ANCHOR>(terms, of_tile, r, j, s, T(0)));
}

template <bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T slope_by_lse_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s, T lse) {
  return terms_at<COL_ANCHOR>(terms, of_tile, r, j).slope_by_negatives_lse(s, lse);
}

template <Kind KIND, bool Cols, bool BYTES, typename T, typename Terms>
void add_up(const ScoreTile<T>& tile, const Terms& terms, const T* row_lse, const T* col_lse, T* const* rows,
            T* const* cols) {
  const TileScalars<T> scalars(tile);
  T* __restrict col_sum = Cols ? cols[0] : nullptr;
  T* __restrict col_nonzeros = Cols ? cols[1] : nullptr;
  T* __restrict col_by_lse = Cols ? cols[2] : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const T lse = READS_LSE<KIND, Terms> ? row_lse[tile.row + r] : T(0);
    T sum = 0, nonzeros = 0, by_lse = 0;
    row_pairs<KIND, BYTES>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum, nonzeros, by_lse)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = either(pair, term_at<KIND, false>(terms, scalars, r, j, s[j], lse), T(0));
        sum += value;
        nonzeros += nonzero(value);
        if constexpr (READS_LSE<KIND, Terms>) {
          by_lse += either(pair, slope_by_lse_at<false>(terms, scalars, r, j, s[j], lse), T(0));
        }
        if constexpr (Cols) {
          const T other_lse = READS_LSE<KIND, Terms> ? col_lse[tile.col + j] : T(0);
          if constexpr (ONE_WAY<KIND, Terms>) {
            value = either(pair, term_at<KIND, true>(terms, scalars, r, j, s[j], other_lse), T(0));
          }
          if constexpr (READS_LSE<KIND, Terms>) {
            col_by_lse[j] += either(pair, slope_by_lse_at<true>(terms, scalars, r, j, s[j], other_lse), T(0));
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
template <Kind KIND, bool Cols, bool BYTES, typename T, typename Terms>
void add_exponentials(const ScoreTile<T>& tile, const Terms& terms, T* const* rows, T* const* cols) {
  const TileScalars<T> scalars(tile);
  constexpr T none = -__builtin_inf();
  T* __restrict col_max = Cols ? cols[0] : nullptr;
  T* __restrict col_exponentials = Cols ? cols[1] : nullptr;
  T* __restrict col_sum = Cols ? cols[2] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_max[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T highest = none;
    row_pairs<KIND, BYTES>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(max : highest)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        T value = either(has(k), term_at<KIND, false>(terms, scalars, r, j, s[j], T(0)), none);
        highest = highest < value ? value : highest;
        if (Cols && Terms::READS_SCALARS) {
          value = either(has(k), term_at<KIND, true>(terms, scalars, r, j, s[j], T(0)), none);
        }
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
    row_pairs<KIND, BYTES>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : exponentials, sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = term_at<KIND, false>(terms, scalars, r, j, s[j], T(0));
        exponentials += exponential(either(pair, value - shift, none));
        if (SUMMED<KIND, Terms>) sum += either(pair, value, T(0));
        if (Cols) {
          if (Terms::READS_SCALARS) value = term_at<KIND, true>(terms, scalars, r, j, s[j], T(0));
          col_exponentials[j] += exponential(either(pair, value - col_shift[j], none));
          if (SUMMED<KIND, Terms>) col_sum[j] += either(pair, value, T(0));
        }
      }
    });
    rows[1][r] = exponentials;
    rows[2][r] = sum;
  }
}

// The first of equal maxima; NaN counts as the largest, so that it shows.
template <Kind KIND, bool Cols, bool BYTES, typename T, typename Terms>
void find_maxima(const ScoreTile<T>& tile, const Terms& terms, T* const* rows, T* const* cols) {
  constexpr T none = -__builtin_inf();
  T* __restrict col_best = Cols ? cols[0] : nullptr;
  T* __restrict col_place = Cols ? cols[1] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_best[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T best = none, place = 0;
    row_pairs<KIND, BYTES>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
      const auto value_at = [&](Count<T> k) __attribute__((always_inline)) {
        return either(has(k), term_of<KIND>(terms, s[begin + k], T(0)), none);
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

template <Kind KIND, bool Cols, bool BYTES, typename T, typename Terms>
FASTPAIR_INLINE void statistics_of(const ScoreTile<T>& tile, const Terms& terms, const T* row_lse, const T* col_lse,
                                   T* const* rows, T* const* cols) {
  constexpr Pool pool = POOL<KIND, Terms>;
  if constexpr (pool == Pool::Sum) {
    add_up<KIND, Cols, BYTES>(tile, terms, row_lse, col_lse, rows, cols);
  } else if constexpr (pool == Pool::LogSumExp) {
    add_exponentials<KIND, Cols, BYTES>(tile, terms, rows, cols);
  } else {
    find_maxima<KIND, Cols, BYTES>(tile, terms, rows, cols);
  }
}

// f(std::bool_constant...), for the values of `first` and `others`.
template <typename F>
FASTPAIR_INLINE auto with_flags(const F& f) {
  return f();
}
template <typename F, typename... Flags>
FASTPAIR_INLINE auto with_flags(const F& f, bool first, Flags... others) {
  const auto further = [&](auto flag) __attribute__((always_inline)) {
    return with_flags([&](auto... rest) __attribute__((always_inline)) { return f(flag, rest...); }, others...);
  };
  return first ? further(std::true_type()) : further(std::false_type());
}

template <typename T, typename Terms>
void statistics(const ScoreTile<T>& tile, const double* params, Kind kind, const T* row_lse, const T* col_lse,
                const Parts<T>& rows, const Parts<T>* cols) {
  const Terms terms(params);
  with_flags(
      [&](auto positive, auto of_cols, auto bytes) __attribute__((always_inline)) {
        constexpr Kind KIND = positive ? Positive : Negative;
        statistics_of<KIND, of_cols, bytes>(tile, terms, row_lse, col_lse, rows.of[KIND],
                                            cols ? cols->of[KIND] : nullptr);
      },
      kind == Positive, cols != nullptr, tile.kinds != nullptr);
}

// add_up of both kinds.
template <bool Cols, typename T, typename Terms>
void add_up_mixed(const ScoreTile<T>& tile, const Terms& terms, const Parts<T>& rows, const Parts<T>* cols) {
  const TileScalars<T> scalars(tile);
  T* __restrict col_pos = Cols ? cols->of[Positive][0] : nullptr;
  T* __restrict col_pos_nonzeros = Cols ? cols->of[Positive][1] : nullptr;
  T* __restrict col_neg = Cols ? cols->of[Negative][0] : nullptr;
  T* __restrict col_neg_nonzeros = Cols ? cols->of[Negative][1] : nullptr;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const RowKinds<T> row(tile, r);
    const Count<T>* __restrict kinds = row.of;
    T pos = 0, pos_nonzeros = 0, neg = 0, neg_nonzeros = 0;
#pragma omp simd reduction(+ : pos, pos_nonzeros, neg, neg_nonzeros)
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) {
      const bool positive = kinds[k] == Positive, negative = kinds[k] == Negative;
      T value = mixed_term_at<false>(terms, scalars, r, k, s[k], positive);
      T u = either(positive, value, T(0)), v = either(negative, value, T(0));
      pos += u, pos_nonzeros += nonzero(u);
      neg += v, neg_nonzeros += nonzero(v);
      if (Cols && Terms::READS_SCALARS) {
        value = mixed_term_at<true>(terms, scalars, r, k, s[k], positive);
        u = either(positive, value, T(0)), v = either(negative, value, T(0));
      }
      if (Cols) {
        col_pos[k] += u, col_pos_nonzeros[k] += nonzero(u);
        col_neg[k] += v, col_neg_nonzeros[k] += nonzero(v);
      }
    }
    rows.of[Positive][0][r] = pos, rows.of[Positive][1][r] = pos_nonzeros;
    rows.of[Negative][0][r] = neg, rows.of[Negative][1][r] = neg_nonzeros;
  }
}

// add_exponentials of both kinds: one exponential serves both.
template <bool Cols, typename T, typename Terms>
void add_mixed_exponentials(const ScoreTile<T>& tile, const Terms& terms, const Parts<T>& rows, const Parts<T>* cols) {
  const TileScalars<T> scalars(tile);
  constexpr T none = -__builtin_inf();
  T* __restrict col_pos_max = Cols ? cols->of[Positive][0] : nullptr;
  T* __restrict col_neg_max = Cols ? cols->of[Negative][0] : nullptr;
  T* __restrict col_pos = Cols ? cols->of[Positive][1] : nullptr;
  T* __restrict col_neg = Cols ? cols->of[Negative][1] : nullptr;
  T* __restrict col_sum = Cols ? cols->of[Positive][2] : nullptr;
  for (int64_t j = 0; Cols && j < tile.cols; ++j) col_pos_max[j] = col_neg_max[j] = none;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const RowKinds<T> row(tile, r);
    const Count<T>* __restrict kinds = row.of;
    T pos_max = none, neg_max = none;
#pragma omp simd reduction(max : pos_max, neg_max)
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) {
      const bool positive = kinds[k] == Positive, negative = kinds[k] == Negative;
      T value = mixed_term_at<false>(terms, scalars, r, k, s[k], positive);
      T u = either(positive, value, none), v = either(negative, value, none);
      pos_max = pos_max < u ? u : pos_max, neg_max = neg_max < v ? v : neg_max;
      if (Cols && Terms::READS_SCALARS) {
        value = mixed_term_at<true>(terms, scalars, r, k, s[k], positive);
        u = either(positive, value, none), v = either(negative, value, none);
      }
      if (Cols) col_pos_max[k] = col_pos_max[k] < u ? u : col_pos_max[k];
      if (Cols) col_neg_max[k] = col_neg_max[k] < v ? v : col_neg_max[k];
    }
    rows.of[Positive][0][r] = pos_max, rows.of[Negative][0][r] = neg_max;
  }
  T col_pos_shift[MAX_BLOCK], col_neg_shift[MAX_BLOCK];
  for (int64_t j = 0; Cols && j < tile.cols; ++j) {
    col_pos_shift[j] = shift_of(col_pos_max[j]), col_neg_shift[j] = shift_of(col_neg_max[j]);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    const RowKinds<T> row(tile, r);
    const Count<T>* __restrict kinds = row.of;
    const T pos_shift = shift_of(rows.of[Positive][0][r]), neg_shift = shift_of(rows.of[Negative][0][r]);
    T pos = 0, neg = 0, sum = 0;
#pragma omp simd reduction(+ : pos, neg, sum)
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) {
      const bool positive = kinds[k] == Positive, pair = kinds[k] != NO_PAIR;
      T value = mixed_term_at<false>(terms, scalars, r, k, s[k], positive);
      T share = exponential(either(pair, value - either(positive, pos_shift, neg_shift), none));
      pos += either(positive, share, T(0)), neg += either(positive, T(0), share);
      if (Terms::NEEDS_SUM) sum += either(positive, value, T(0));
      if (Cols) {
        if (Terms::READS_SCALARS) value = mixed_term_at<true>(terms, scalars, r, k, s[k], positive);
        share = exponential(either(pair, value - either_loaded(positive, col_pos_shift[k], col_neg_shift[k]), none));
        col_pos[k] += either(positive, share, T(0)), col_neg[k] += either(positive, T(0), share);
        if (Terms::NEEDS_SUM) col_sum[k] += either(positive, value, T(0));
      }
    }
    rows.of[Positive][1][r] = pos, rows.of[Negative][1][r] = neg, rows.of[Positive][2][r] = sum;
  }
}

template <typename Terms>
constexpr bool MIXES =
    Terms::POSITIVES == Terms::NEGATIVES && Terms::POSITIVES != Pool::Max && !Terms::READS_NEGATIVES_LSE;

template <typename T, typename Terms>
void mixed_statistics(const ScoreTile<T>& tile, const double* params, const Parts<T>& rows, const Parts<T>* cols) {
  const Terms terms(params);
  with_flags(
      [&](auto of_cols) __attribute__((always_inline)) {
        if constexpr (Terms::POSITIVES == Pool::Sum) {
          add_up_mixed<of_cols>(tile, terms, rows, cols);
        } else {
          add_mixed_exponentials<of_cols>(tile, terms, rows, cols);
        }
      },
      cols != nullptr);
}

// Wrappers, since taking the address of a struct's own function would emit it out of line: see above.
template <typename T, typename Terms>
Anchor anchor(const double* params, const double* scalars, const Statistic& pos, const Statistic& neg) {
  if constexpr (Terms::ANCHOR_SCALARS > 0) {
    return Terms::anchor(params, scalars, pos, neg);
  } else {
    return Terms::anchor(params, pos, neg);
  }
}

template <typename T, typename Terms>
void anchor_derivatives(const double* params, const double* scalars, const Statistic& pos, const Statistic& neg,
                        double* part, double* neg_part) {
  for (int k = 0; k < Terms::LEARNED; ++k) part[k] = neg_part[k] = 0;
  if constexpr (Terms::LEARNED > 0 && Terms::ANCHOR_SCALARS > 0) {
    Terms::anchor_derivatives(params, scalars, pos, neg, part, neg_part);
  } else if constexpr (Terms::LEARNED > 0) {
    Terms::anchor_derivatives(params, pos, neg, part, neg_part);
  }
}

template <typename T, typename Terms>
T term_slope(const double* params, Kind kind, T closeness) {
  const Terms terms(params);
  return kind == Positive ? slope_of<Positive>(terms, closeness, T(0)) : slope_of<Negative>(terms, closeness, T(0));
}

// The weights of one kind of pairs, for the anchors from `first` on.
template <Kind KIND, typename T, typename Terms>
struct AnchorWeights {
  const T *factor, *shift, *constant, *lse;

  FASTPAIR_INLINE AnchorWeights(const Weights<T>& of, int64_t first)
      : factor(of.factor[KIND] + first),
        shift(of.shift[KIND] + first),
        constant(of.constant[KIND] + first),
        lse(of.negatives_lse + first) {}

  FASTPAIR_INLINE T negatives_lse(int64_t i) const { return READS_LSE<KIND, Terms> ? lse[i] : T(0); }
};

// The derivative of the loss of anchor i by a term.
template <Kind KIND, typename T, typename Terms>
FASTPAIR_INLINE T weight_of(const Terms& terms, T s, const AnchorWeights<KIND, T, Terms>& of, int64_t i) {
  if constexpr (POOL<KIND, Terms> != Pool::LogSumExp) return of.constant[i];
  const T share = exponential(term_of<KIND>(terms, s, of.negatives_lse(i)) - of.shift[i]);
  return multiply_add(of.factor[i], share, of.constant[i]);
}

// The derivative of the loss of one of the pair's samples, the anchor i, by their closeness.
template <Kind KIND, bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T slope_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s,
                           const AnchorWeights<KIND, T, Terms>& of, int64_t i) {
  const auto& of_pair = terms_at<COL_ANCHOR>(terms, of_tile, r, j);
  return slope_of<KIND>(of_pair, s, of.negatives_lse(i)) * weight_of<KIND>(of_pair, s, of, i);
}

// The same by the parameter K of those that learn, through the term.
template <Kind KIND, int K, bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T derivative_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s,
                                const AnchorWeights<KIND, T, Terms>& of, int64_t i) {
  const auto& of_pair = terms_at<COL_ANCHOR>(terms, of_tile, r, j);
  return derivative_of<KIND, K>(of_pair, s, of.negatives_lse(i)) * weight_of<KIND>(of_pair, s, of, i);
}

// slope_at for a pair that is positive or negative: one exponential serves both.
template <bool COL_ANCHOR, typename T, typename Terms>
FASTPAIR_INLINE T mixed_slope_at(const Terms& terms, const TileScalars<T>& of_tile, int64_t r, int64_t j, T s,
                                 bool positive, const AnchorWeights<Positive, T, Terms>& pos,
                                 const AnchorWeights<Negative, T, Terms>& neg, int64_t i) {
  constexpr bool POS_LSE = POOL<Positive, Terms> == Pool::LogSumExp, NEG_LSE = POOL<Negative, Terms> == Pool::LogSumExp;
  const auto& of_pair = terms_at<COL_ANCHOR>(terms, of_tile, r, j);
  const T lse = pos.negatives_lse(i);
  const T slope = either(positive, slope_of<Positive>(of_pair, s, lse), slope_of<Negative>(of_pair, s, lse));
  const T constant = either_loaded(positive, pos.constant[i], neg.constant[i]);
  if constexpr (!POS_LSE && !NEG_LSE) return slope * constant;
  const T term = either(positive, term_of<Positive>(of_pair, s, lse), term_of<Negative>(of_pair, s, lse));
  const T exponent = term - either_loaded(positive, pos.shift[i], neg.shift[i]);
  // Of terms that are not pooled to a log-sum-exp the share is 0.
  const T share = exponential(either(positive ? POS_LSE : NEG_LSE, exponent, T(-__builtin_inf())));
  return slope * multiply_add(either_loaded(positive, pos.factor[i], neg.factor[i]), share, constant);
}

// The slope by the dot product. A distance of zero has gradient zero, also where the term, as a square root, has an
// infinite slope.
template <Metric M, typename T>
FASTPAIR_INLINE T by_product(T by_closeness, T s) {
  const T value = by_closeness * closeness_slope(M, s);
  if constexpr (M == Metric::Dot) return value;
  return s == T(0) ? T(0) : value;
}

// Whether the slopes of rows and columns are summed.
template <Metric M, typename Terms>
constexpr bool SLOPE_SUMS = M != Metric::Dot || Terms::BIAS > 0;

template <Kind KIND, bool Cols, Metric M, typename T, typename Terms>
void write_slopes(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows, const Weights<T>* cols,
                  T* row_sums, T* __restrict col_sums) {
  const TileScalars<T> scalars(tile);
  const AnchorWeights<KIND, T, Terms> of_rows(rows, tile.row), of_cols(Cols ? *cols : rows, Cols ? tile.col : 0);
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* __restrict s = tile.scores + r * tile.ld;
    T sum = 0;
    row_pairs<KIND, false>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        const bool pair = has(k);
        T value = slope_at<KIND, false>(terms, scalars, r, j, s[j], of_rows, r);
        if (Cols) value += slope_at<KIND, true>(terms, scalars, r, j, s[j], of_cols, j);
        value = by_product<M>(value, s[j]);
        s[j] = either(pair, value, s[j]);
        if (SLOPE_SUMS<M, Terms>) {
          sum += either(pair, value, T(0));
          col_sums[j] += either(pair, value, T(0));
        }
      }
    });
    if (SLOPE_SUMS<M, Terms>) row_sums[r] += sum;
  }
}

// Both kinds at once, where tile.kinds mixes them.
template <bool Cols, Metric M, typename T, typename Terms>
void write_mixed_slopes(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows, const Weights<T>* cols,
                        T* row_sums, T* __restrict col_sums) {
  const TileScalars<T> scalars(tile);
  const Weights<T>& others = Cols ? *cols : rows;
  const int64_t first = Cols ? tile.col : 0;
  const AnchorWeights<Positive, T, Terms> pos_of_rows(rows, tile.row), pos_of_cols(others, first);
  const AnchorWeights<Negative, T, Terms> neg_of_rows(rows, tile.row), neg_of_cols(others, first);
  for (int64_t r = 0; r < tile.rows; ++r) {
    T* __restrict s = tile.scores + r * tile.ld;
    const RowKinds<T> row(tile, r);
    const Count<T>* __restrict kinds = row.of;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Count<T> k = 0; k < Count<T>(tile.cols); ++k) {
      const bool positive = kinds[k] == Positive;
      T value = mixed_slope_at<false>(terms, scalars, r, k, s[k], positive, pos_of_rows, neg_of_rows, r);
      if (Cols) value += mixed_slope_at<true>(terms, scalars, r, k, s[k], positive, pos_of_cols, neg_of_cols, k);
      value = either(kinds[k] != NO_PAIR, by_product<M>(value, s[k]), T(0));
      s[k] = value;
      if (SLOPE_SUMS<M, Terms>) {
        sum += value;
        col_sums[k] += value;
      }
    }
    if (SLOPE_SUMS<M, Terms>) row_sums[r] += sum;
  }
}

template <Metric M, typename T, typename Terms>
void slopes_of(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows, const Weights<T>* cols,
               T* row_sums, T* col_sums) {
  with_flags(
      [&](auto of_cols, auto bytes) __attribute__((always_inline)) {
        if constexpr (bytes) {
          write_mixed_slopes<of_cols, M>(tile, terms, rows, cols, row_sums, col_sums);
        } else {
          write_slopes<Negative, of_cols, M>(tile, terms, rows, cols, row_sums, col_sums);
          write_slopes<Positive, of_cols, M>(tile, terms, rows, cols, row_sums, col_sums);
        }
      },
      cols != nullptr, tile.kinds != nullptr);
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

template <Kind KIND, int K, bool Cols, bool BYTES, typename T, typename Terms>
double sum_of_derivatives(const ScoreTile<T>& tile, const Terms& terms, const Weights<T>& rows,
                          const Weights<T>* cols) {
  const TileScalars<T> scalars(tile);
  const AnchorWeights<KIND, T, Terms> of_rows(rows, tile.row), of_cols(Cols ? *cols : rows, Cols ? tile.col : 0);
  double total = 0;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const T* __restrict s = tile.scores + r * tile.ld;
    T sum = 0;
    row_pairs<KIND, BYTES>(tile, r, [&](int64_t begin, Count<T> count, const auto& has) __attribute__((always_inline)) {
#pragma omp simd reduction(+ : sum)
      for (Count<T> k = 0; k < count; ++k) {
        const int64_t j = begin + k;
        T value = derivative_at<KIND, K, false>(terms, scalars, r, j, s[j], of_rows, r);
        if (Cols) value += derivative_at<KIND, K, true>(terms, scalars, r, j, s[j], of_cols, j);
        sum += either(has(k), value, T(0));
      }
    });
    total += sum;
  }
  return total;
}

template <typename T, typename Terms>
void term_derivatives(const ScoreTile<T>& tile, const double* params, const Weights<T>& rows, const Weights<T>* cols,
                      double* out) {
  const Terms terms(params);
  with_flags(
      [&](auto of_cols, auto bytes) {
        constexpr bool COLS = of_cols, BYTES = bytes;
        [&]<int... K>(std::integer_sequence<int, K...>) {
          ((out[K] = sum_of_derivatives<Negative, K, COLS, BYTES>(tile, terms, rows, cols) +
                     sum_of_derivatives<Positive, K, COLS, BYTES>(tile, terms, rows, cols)),
           ...);
        }(std::make_integer_sequence<int, Terms::LEARNED>());
      },
      cols != nullptr, tile.kinds != nullptr);
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
void row_softmax(const T* __restrict logits, int64_t n, T* maximum, T* sum_exp, T* above) {
  T highest = -__builtin_inf(), total = 0, exponentials = 0;
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

template <typename T>
void listed_triplets(bool smooth, T* __restrict excess, int64_t n, T* sums) {
  T loss = 0, count = 0;
  if (smooth) {
#pragma omp simd reduction(+ : loss, count)
    for (int64_t j = 0; j < n; ++j) {
      const T value = softplus(excess[j]);
      loss += value;
      count += nonzero(value);
      excess[j] = sigmoid(excess[j]);
    }
  } else {
#pragma omp simd reduction(+ : loss, count)
    for (int64_t j = 0; j < n; ++j) {
      const T value = relu(excess[j]);
      loss += value;
      count += nonzero(value);
      excess[j] = step(excess[j]);
    }
  }
  sums[0] = loss;
  sums[1] = count;
}

template <typename T>
int64_t least_above(T bound, const T* __restrict x, int64_t n) {
  constexpr T none = __builtin_inf();
  T least = none;
  int above = 0;
#pragma omp simd reduction(min : least) reduction(| : above)
  for (int64_t j = 0; j < n; ++j) {
    const bool chosen = x[j] > bound;
    const T value = chosen ? x[j] : none;
    least = value < least ? value : least;
    above |= chosen;
  }
  if (!above) return n;
  // A chunk is looked through only if the value is in it: the loop over all of one has no exit, and vectorises.
  constexpr int64_t chunk = 64;
  for (int64_t begin = 0;; begin += chunk) {
    const int64_t end = n - begin < chunk ? n : begin + chunk;
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t j = begin; j < end; ++j) found |= x[j] == least;
    for (int64_t j = begin; found && j < end; ++j) {
      if (x[j] == least) return j;
    }
  }
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
void prefix_scores(T* products, const T* fewer, int64_t ld, int64_t rows, int64_t cols, const T* row_factors,
                   const T* __restrict col_factors, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict p = products + r * ld;
    T* __restrict s = out + r * cols;
    const T factor = row_factors[r];
    if (fewer) {
      const T* __restrict q = fewer + r * ld;
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) {
        p[j] += q[j];
        s[j] = p[j] * factor * col_factors[j];
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) s[j] = p[j] * factor * col_factors[j];
    }
  }
}

template <typename T>
void prefix_slopes(T* products, const T* more, int64_t ld, int64_t rows, int64_t cols, const T* row_factors,
                   const T* __restrict col_factors, const T* slopes, T* row_along, T* __restrict col_along) {
  for (int64_t r = 0; r < rows; ++r) {
    T* __restrict p = products + r * ld;
    const T* __restrict g = slopes + r * cols;
    const T factor = row_factors[r];
    T along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t j = 0; j < cols; ++j) {
      const T by_product = g[j] * factor * col_factors[j], part = by_product * p[j];
      along += part;
      col_along[j] += part;
      p[j] = by_product;
    }
    row_along[r] += along;
    if (more) {
      const T* __restrict q = more + r * ld;
#pragma omp simd
      for (int64_t j = 0; j < cols; ++j) p[j] += q[j];
    }
  }
}

template <typename T>
void add_to(T* __restrict x, const T* __restrict y, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] += y[j];
}

template <typename T>
void scaled(T factor, const T* x, int64_t n, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = factor * x[j];
}

template <typename T>
void scaled_difference(T factor, const T* x, T along, const T* y, int64_t n, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) out[j] = factor * (x[j] - along * y[j]);
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

// How many gathered rows are visited together: a sum waits for the one before it, and `x` and `out` are read anew.
constexpr int GATHERED = 4;

template <bool DISTANCES, typename T>
FASTPAIR_INLINE T add_score(T x, T y, T sum) {
  const T difference = x - y;
  return DISTANCES ? multiply_add(difference, difference, sum) : multiply_add(x, y, sum);
}

template <bool DISTANCES, typename T>
void scores_of_rows(const T* __restrict x, const T* __restrict rows, int64_t d, const int64_t* index, int64_t count,
                    T* __restrict out) {
  int64_t k = 0;
  for (; k + GATHERED <= count; k += GATHERED) {
    const T *a = rows + index[k] * d, *b = rows + index[k + 1] * d;
    const T *c = rows + index[k + 2] * d, *e = rows + index[k + 3] * d;
    T of_a = 0, of_b = 0, of_c = 0, of_e = 0;
#pragma omp simd reduction(+ : of_a, of_b, of_c, of_e)
    for (int64_t j = 0; j < d; ++j) {
      of_a = add_score<DISTANCES>(x[j], a[j], of_a), of_b = add_score<DISTANCES>(x[j], b[j], of_b);
      of_c = add_score<DISTANCES>(x[j], c[j], of_c), of_e = add_score<DISTANCES>(x[j], e[j], of_e);
    }
    out[k] = of_a, out[k + 1] = of_b, out[k + 2] = of_c, out[k + 3] = of_e;
  }
  for (; k < count; ++k) {
    const T* y = rows + index[k] * d;
    out[k] = DISTANCES ? squared_distance(x, y, d) : dot(x, y, d);
  }
}

template <typename T>
void gathered_scores(Metric metric, const T* x, const T* rows, int64_t d, const int64_t* index, int64_t count, T* out) {
  metric == Metric::Dot ? scores_of_rows<false>(x, rows, d, index, count, out)
                        : scores_of_rows<true>(x, rows, d, index, count, out);
}

template <bool FROM_ZERO, typename T>
void add_rows(const T* slopes, const T* __restrict rows, int64_t d, const int64_t* index, int64_t count,
              const T* __restrict origin, T* __restrict out) {
  const auto from = [&](int64_t j) __attribute__((always_inline)) { return FROM_ZERO ? T(0) : origin[j]; };
  int64_t k = 0;
  for (; k + GATHERED <= count; k += GATHERED) {
    const T *a = rows + index[k] * d, *b = rows + index[k + 1] * d;
    const T *c = rows + index[k + 2] * d, *e = rows + index[k + 3] * d;
    const T of_a = slopes[k], of_b = slopes[k + 1], of_c = slopes[k + 2], of_e = slopes[k + 3];
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) {
      const T sum = multiply_add(of_b, b[j] - from(j), multiply_add(of_a, a[j] - from(j), out[j]));
      out[j] = multiply_add(of_e, e[j] - from(j), multiply_add(of_c, c[j] - from(j), sum));
    }
  }
  for (; k < count; ++k) {
    const T *a = rows + index[k] * d, of_a = slopes[k];
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) out[j] = multiply_add(of_a, a[j] - from(j), out[j]);
  }
}

template <typename T>
void add_gathered(const T* slopes, const T* rows, int64_t d, const int64_t* index, int64_t count, const T* origin,
                  T* out) {
  origin ? add_rows<false>(slopes, rows, d, index, count, origin, out)
         : add_rows<true>(slopes, rows, d, index, count, origin, out);
}

template <typename T, typename Terms>
constexpr auto mixed_statistics_if_any() -> decltype(PairKernels<T>::mixed_statistics) {
  if constexpr (MIXES<Terms>) return &mixed_statistics<T, Terms>;
  return nullptr;
}

template <typename T, typename Terms>
constexpr PairKernels<T> pair_kernels(const char* name) {
  return {
      .name = name,
      .param_count = Terms::PARAMS,
      .anchor_scalars = Terms::ANCHOR_SCALARS,
      .ref_scalars = Terms::REF_SCALARS,
      .learned = Terms::LEARNED,
      .scale = Terms::SCALE,
      .bias = Terms::BIAS,
      .pool = {Terms::NEGATIVES, Terms::POSITIVES},
      .is_sum = Terms::IS_SUM,
      .reads_negatives_lse = Terms::READS_NEGATIVES_LSE,
      .separate_means = Terms::SEPARATE_MEANS,
      .statistics = &statistics<T, Terms>,
      .mixed_statistics = mixed_statistics_if_any<T, Terms>(),
      .anchor = &anchor<T, Terms>,
      .anchor_derivatives = &anchor_derivatives<T, Terms>,
      .term_slope = &term_slope<T, Terms>,
      .slopes = &slopes<T, Terms>,
      .term_derivatives = &term_derivatives<T, Terms>,
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
    .least_above = &least_above<T>,
    .shared_labels = &shared_labels,
    .listed_triplets = &listed_triplets<T>,
    .prefix_scores = &prefix_scores<T>,
    .prefix_slopes = &prefix_slopes<T>,
    .add_to = &add_to<T>,
    .scaled = &scaled<T>,
    .scaled_difference = &scaled_difference<T>,
    .dot = &dot<T>,
    .squared_distance = &squared_distance<T>,
    .gathered_scores = &gathered_scores<T>,
    .add_gathered = &add_gathered<T>,
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
