// The loops over the pairs of a tile, compiled once for each SIMD level.
#pragma once

#include <cstdint>
#include <string_view>

namespace fastpair {

// What is done with the dot products of a tile. A cosine is the dot product of rows that were normalised before.
enum class Metric { Dot, SqEuclidean, Euclidean };

// A tile of the score matrix. `row` and `col` are its place in the whole; references are sorted by label, so that the
// positives of row i are the columns [pos_begin[i], pos_end[i]). Where `self_pairs` is set, rows and columns are the
// same samples and the pair (i, i), if the tile holds it, is no pair.
template <typename T>
struct Tile {
  T* scores;
  int64_t ld;
  int64_t row, rows, col, cols;
  const int64_t *pos_begin, *pos_end;
  bool self_pairs;
};

// Sums and numbers of non-zero terms of each row, or each column, of a tile; positives and negatives apart.
template <typename T>
struct Sums {
  T *pos, *neg, *pos_count, *neg_count;
};

// The weight of each anchor's positive and negative part in the loss, indexed by anchor.
template <typename T>
struct Weights {
  const T *pos, *neg;
};

template <typename T>
struct PairKernels {
  std::string_view name;
  int param_count;
  bool mean_over_terms;  // its mean is over the terms that are not zero, positives and negatives apart; else over
                         // anchors

  // Adds the terms of a tile to the rows' sums and, unless null, to the columns': a tile off the diagonal of a
  // symmetric matrix stands for its mirror image too.
  void (*sums)(const Tile<T>&, const double* params, bool similarity, const Sums<T>& of_rows, const Sums<T>* of_cols);

  // Replaces the scores of a tile by the derivatives of the loss with respect to the dot products. `mirrored` says that
  // the tile stands for its mirror image too. For a distance, row_sums and col_sums receive the sums of what is
  // written.
  void (*slopes)(const Tile<T>&, const double* params, Metric, bool similarity, const Weights<T>&, bool mirrored,
                 T* row_sums, T* col_sums);
};

template <typename T>
struct Kernels {
  const PairKernels<T>* pair_losses;
  int pair_loss_count;

  // Dot products (rows, cols) to distances, in place, given the squared norms. Returns whether some squared distance is
  // so small beside the norms that cancellation has cost it its accuracy.
  bool (*distances)(Metric, T* scores, int64_t ld, int64_t rows, int64_t cols, const T* row_norms, const T* col_norms);

  // One row of logits (n): adds the bias, if any, and returns maximum, sum of exponentials relative to it, and sum.
  void (*row_softmax)(T* logits, int64_t n, const T* bias, T* maximum, T* sum_exp, T* sum);

  // logits -> scale * exp(logit - shift) + offset, in place.
  void (*row_probabilities)(T* logits, int64_t n, T shift, T scale, T offset);

  void (*add_to)(T* x, const T* y, int64_t n);

  // From and to the bits of bfloat16, rounding to nearest even; out += where `accumulate`.
  void (*from_bfloat16)(const void* in, int64_t n, bool accumulate, T* out);
  void (*to_bfloat16)(const T* in, int64_t n, void* out);

  T (*dot)(const T* x, const T* y, int64_t n);
  T (*squared_distance)(const T* x, const T* y, int64_t n);
};

// Below this share of the norms a squared distance from the expansion |x|^2 + |y|^2 - 2xy has lost too many digits.
constexpr double SMALL_DISTANCE = 1.0 / 64;

// The kernels of the SIMD level in use.
template <typename T>
const Kernels<T>& kernels();

}  // namespace fastpair
