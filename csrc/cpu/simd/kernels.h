// The loops over the pairs of a tile, compiled once for each SIMD level.
#pragma once

#include <cstdint>

#include "pair_losses/statistics.h"
#include "settings.h"

namespace fastpair {

// The most rows and columns of a tile: it stays in the second-level cache while it is worked on.
constexpr int64_t MAX_BLOCK = 256;

constexpr uint8_t NO_PAIR = 2;  // beside the values of Kind

// The numbers of samples that a formula reads of anchors and of references, `n` of each, in their order.
template <typename T>
struct SampleScalars {
  const T *anchor = nullptr, *ref = nullptr;
  int64_t n = 0;
};

// A tile of the score matrix. `row` and `col` are its place in the matrix; references are sorted by label, so that the
// positives of row i are the columns [pos_begin[i], pos_end[i]). Column self[i], if `self` is not null, is the same
// sample as row i and makes no pair with it. Where that does not say it all, `kinds` does, in rows of MAX_BLOCK: each
// column is a Kind or NO_PAIR, and the positives are among [pos_begin[i], pos_end[i]).
template <typename T>
struct ScoreTile {
  T* scores;
  int64_t ld;
  int64_t row, rows, col, cols;
  const int64_t *pos_begin, *pos_end;
  const int64_t* self;
  SampleScalars<T> row_scalars, col_scalars;
  const uint8_t* kinds = nullptr;
};

// The contribution of a tile to the statistics of its rows, or of its columns, by kind:
//               of[kind][0]   of[kind][1]                                of[kind][2]
//   Sum         sum           how many terms are not zero                derivative of the sum by negatives_lse
//   LogSumExp   maximum       sum of the exponentials relative to it;    sum of the terms, where needed
//                             0 where the tile has no such pairs
//   Max         maximum       its column (row), counted from 1 at the    –
//                             tile's first; 0 where there is none
constexpr int STATISTICS = 3;
template <typename T>
struct Parts {
  T* of[2][STATISTICS];
};

// By kind and anchor, the derivatives of the anchors' losses by their terms, see Slope, and the log-sum-exps that terms
// of positives read.
template <typename T>
struct Weights {
  const T *factor[2], *shift[2], *constant[2];
  const T* negatives_lse;
};

template <typename T>
struct PairKernels {
  const char* name;
  int param_count, anchor_scalars, ref_scalars, learned, scale, bias;
  Pool pool[2];  // by kind
  bool is_sum, reads_negatives_lse, separate_means;

  // The statistics of the tile's pairs of one kind: for its rows and, unless null, its columns. Both log-sum-exps,
  // indexed by anchor, are read only for positives with reads_negatives_lse.
  void (*statistics)(const ScoreTile<T>&, const double* params, Kind, const T* row_negatives_lse,
                     const T* col_negatives_lse, const Parts<T>& of_rows, const Parts<T>* of_cols);

  // The same of both kinds at once, for a tile with `kinds`. Null for losses whose kinds are pooled differently, or one
  // after the other.
  void (*mixed_statistics)(const ScoreTile<T>&, const double* params, const Parts<T>& of_rows, const Parts<T>* of_cols);

  // `scalars`: those of the anchor.
  Anchor (*anchor)(const double* params, const double* scalars, const Statistic& pos, const Statistic& neg);

  // The derivatives of both parts of an anchor's loss by the parameters that learn, its terms being constant.
  void (*anchor_derivatives)(const double* params, const double* scalars, const Statistic& pos, const Statistic& neg,
                             double* part, double* neg_part);

  // The derivative of a term by its closeness.
  T (*term_slope)(const double* params, Kind, T closeness);

  // Replaces the closenesses of a tile by the derivatives of the loss with respect to the dot products, given the
  // weights of the rows as anchors and, unless null, of the columns. For a distance, and for a loss with a bias,
  // row_sums and col_sums receive the sums of the derivatives.
  void (*slopes)(const ScoreTile<T>&, const double* params, Metric, const Weights<T>& of_rows,
                 const Weights<T>* of_cols, T* row_sums, T* col_sums);

  // The derivatives of the loss by the parameters that learn, through the terms of the tile's pairs.
  void (*term_derivatives)(const ScoreTile<T>&, const double* params, const Weights<T>& of_rows,
                           const Weights<T>* of_cols, double* out);
};

template <typename T>
struct Kernels {
  const PairKernels<T>* pair_losses;
  int pair_loss_count;

  // Turns dot products (rows, cols) into distances times `sign`, in place, given the squared norms. Returns whether
  // some squared distance is NaN, as differences of infinite norms are, or so small beside the norms that cancellation
  // has cost it its accuracy.
  bool (*distances)(Metric, T sign, T* scores, int64_t ld, int64_t rows, int64_t cols, const T* row_norms,
                    const T* col_norms);

  // Of one row of logits (n) the maximum, the sum of the exponentials relative to it, and the sum of the logits
  // relative to shift_of it, so that a common offset does not cost digits.
  void (*row_softmax)(const T* logits, int64_t n, T* maximum, T* sum_exp, T* above);

  // logits -> scale * exp(logit - shift) + offset, in place.
  void (*row_probabilities)(T* logits, int64_t n, T shift, T scale, T offset);

  // The smooth triplets of one positive, whose threshold is its distance plus the margin, with the negatives at
  // distances d (n) in [from, to): subtracts their slopes from `slopes`; sums receives their loss, number and slope.
  void (*smooth_triplets)(T threshold, T from, T to, const T* d, int64_t n, T* slopes, T* sums);

  // Where the least of the values x (n) above a bound is, the first of several; n if none is above it.
  int64_t (*least_above)(T bound, const T* x, int64_t n);

  // Whether a sample has a label in common with others, as kinds of pairs: `own` are the words of its set, word w of
  // the others' sets begins at others + w * ld.
  void (*shared_labels)(const int32_t* own, const int32_t* others, int64_t words, int64_t ld, int64_t n,
                        uint8_t* kinds);

  // The losses of triplets, given by how much the positive is farther than the negative, plus the margin: replaces
  // these by the losses' derivatives; sums receives the loss, and how many triplets have one that is not zero.
  void (*listed_triplets)(bool smooth, T* excess, int64_t n, T* sums);
  // A tile of products of the first columns: adds those of fewer columns, unless null, to those of the further ones,
  // and writes the scores to `out`, row by row of `cols`. A score is the product times both samples' factors.
  void (*prefix_scores)(T* products, const T* fewer, int64_t ld, int64_t rows, int64_t cols, const T* row_factors,
                        const T* col_factors, T* out);

  // Replaces such products by the derivatives by them, given those by the scores, plus the derivatives by the products
  // of more columns, unless null. row_along and col_along receive the sums of the scores times their derivatives.
  void (*prefix_slopes)(T* products, const T* more, int64_t ld, int64_t rows, int64_t cols, const T* row_factors,
                        const T* col_factors, const T* slopes, T* row_along, T* col_along);

  void (*add_to)(T* x, const T* y, int64_t n);

  // out = factor x, and factor (x - along y); `out` may be x.
  void (*scaled)(T factor, const T* x, int64_t n, T* out);
  void (*scaled_difference)(T factor, const T* x, T along, const T* y, int64_t n, T* out);

  T (*dot)(const T* x, const T* y, int64_t n);
  T (*squared_distance)(const T* x, const T* y, int64_t n);

  // The dot products, or the squared distances, of x (d) with rows[index[k], :], k in [0, count).
  void (*gathered_scores)(Metric, const T* x, const T* rows, int64_t d, const int64_t* index, int64_t count, T* out);

  // out (d) += sum_k slopes[k] (rows[index[k], :] - origin), `origin` (d) being null for zero.
  void (*add_gathered)(const T* slopes, const T* rows, int64_t d, const int64_t* index, int64_t count, const T* origin,
                       T* out);
};

// Below this share of the norms, a squared distance from the expansion |x|^2 + |y|^2 - 2xy has lost too many digits.
constexpr double SMALL_DISTANCE = 1.0 / 64;

// The kernels of the SIMD level in use.
template <typename T>
const Kernels<T>& kernels();

}  // namespace fastpair
