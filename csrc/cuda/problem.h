// The arguments of a kernel: addresses, sizes and settings, no tensors. The operators include this file, too.
#pragma once

#include <cstdint>
#include <string_view>

#include "margins.h"
#include "settings.h"

namespace fastpair::cuda {

enum class Element { Float32, BFloat16, Float16 };

// The weights of an anchor in the gradient: factor, shift and constant of the slopes of negatives and of positives, see
// RoundedSlope in pair_losses/statistics.h, and the log-sum-exp over its negatives that terms of positives read.
constexpr int WEIGHTS = 7;
// The loss and count of an anchor, then those of its negatives where these have a mean of their own.
constexpr int TOTALS = 4;

// The embeddings of one side of the pairs, and arrays for their results as anchors. Arrays are contiguous, except the
// rows, and the scores, whose ld is a multiple of SCORES_ALIGNMENT. No array has more than 2^31 - 1 elements.
constexpr int SCORES_ALIGNMENT = 32;
struct Side {
  int n = 0;
  const void* given_rows = nullptr;  // (n, d), given_stride elements from one to the next
  int given_stride = 0;
  // (n, d): the rows as the products take them, float32, divided by their norms for distances between unit rows. They
  // are the given rows, or the kernel writes them to `prepared`, which is null otherwise.
  const float* rows = nullptr;
  int stride = 0;
  float* prepared = nullptr;
  const int64_t* labels = nullptr;
  float* gradient = nullptr;       // (n, d), null where it is not wanted
  float* inverse_norms = nullptr;  // (n,), of unit rows: 0 for a zero row
  // The scores of row i with the other side's rows, later replaced by the slopes, the derivatives by the scores in the
  // form that the product for the gradient needs. Null for the second side if nothing is computed for its rows.
  float* scores = nullptr;  // (n, ld)
  int ld = 0;
  float* along = nullptr;  // (n,), of unit rows: the component along the row of the sum over its pairs

  bool anchors = false;
  float* weights = nullptr;  // (WEIGHTS, n)
  int* extremes = nullptr;   // (2, n), by kind: the pair that has the maximum, -1 for none
  double* totals = nullptr;  // (TOTALS, n)
  // (2, n): of each row's slopes g by closenesses s, the sums of g s and of g. Null where they are not wanted.
  float* closeness_sums = nullptr;
};

// All pairs of rows of side[0] and side[1], which are the same if `symmetric`.
struct Pairs {
  Side side[2];
  int d = 0;
  Element element = Element::Float32;
  Metric metric = Metric::Dot;
  bool unit = false;  // whether the rows are compared after division by their norms
  bool symmetric = false;
};

// If the pairs are symmetric, those of a row with itself do not count.
struct PairLossProblem : Pairs {
  int loss = 0;  // its index in the list
  double params[3] = {};
  const float* learned = nullptr;  // in place of params
  float* by_learned = nullptr;     // the gradient by them, of losses with a SCALE
  Reduction reduction = Reduction::Mean;
  bool two_sided = false;
  const int64_t* self_index = nullptr;  // (n,): the row of side[1] that is no pair of row i of side[0], -1 for none
  const int8_t* pairs = nullptr;        // (n, m): in place of labels, 1 for positive pairs, -1 for negative, 0 for none
  const float* weights = nullptr;       // (n,): factors of the anchors' losses and counts
  const float* row_grad = nullptr;      // (n,): weights of the anchors in the gradient; (TOTALS,): of the totals
  float* value = nullptr;               // (1,), (n,) for Reduction::None, (TOTALS,) for Reduction::Totals
};

struct ScoreGradient : Pairs {
  const float* incoming = nullptr;  // the gradient with respect to the scores
  int64_t row_stride = 0, col_stride = 0;
};

// The losses and slopes of the rows of a matrix of logits: products, times `scale` and both inverse norms if there are
// norms, plus the bias if there is one.
struct Softmax {
  int n = 0, classes = 0;
  const float* products = nullptr;  // (n, ld)
  int64_t ld = 0;
  const int64_t* labels = nullptr;
  const float* bias = nullptr;
  const float *row_norms = nullptr, *class_norms = nullptr;  // inverse
  Margin margin_kind = Margin::None;
  double scale = 1, margin = 0, label_smoothing = 0;
  int64_t ignore_index = 0;
  Reduction reduction = Reduction::Mean;
  const float* row_grad = nullptr;
  float* losses = nullptr;
  float* value = nullptr;
  // (n, ld): derivatives by the products, null where they are not wanted, and the remainders of their rounding.
  Element slope_element = Element::Float32;
  void *slopes = nullptr, *rest = nullptr;
};

// Turns gradients by the unit rows into gradients by the rows, in place.
struct Projection {
  int n = 0, d = 0;
  Element element = Element::Float32;
  const void* rows = nullptr;
  const float* inverse_norms = nullptr;
  float* gradient = nullptr;
};

// The index of a loss in the list of pair_losses/generated.h, or -1, how many parameters it has, and whether they may
// learn.
int find_pair_loss(std::string_view name, int* params, bool* learns);

// Launches on the current device. Each returns an error message, or null.
using Stream = void*;
const char* launch_pair_loss(const PairLossProblem& problem, Stream stream);
const char* launch_softmax(const Softmax& problem, Stream stream);
const char* launch_norms(const Pairs& problem, Stream stream);
const char* launch_projection(const Projection& problem, Stream stream);
const char* launch_scores(const Pairs& problem, Stream stream);
const char* launch_score_gradient(const ScoreGradient& problem, Stream stream);

}  // namespace fastpair::cuda
