// Cross-entropy of a linear classifier, value and gradients, from plain row-major memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "margins.h"

namespace fastpair {

template <typename T>
struct LinearCrossEntropy {
  int64_t rows, classes, d;

  // The rows, whose labels lie in [0, classes): copies rows [begin, begin + count) into `out`, or returns a pointer to
  // them where they are.
  std::function<const T*(int64_t begin, int64_t count, T* out)> embeddings;
  // Likewise for the class weights.
  std::function<const T*(int64_t begin, int64_t count, T* out)> weight;
  const T* bias;  // null: none
  TargetLogit<T> target;
  const std::vector<int64_t>& labels;
  double label_smoothing;

  std::vector<T> row_weights;  // how much each row counts in the gradients
  // Each is null where it is not wanted, and overwritten where it is.
  T *grad_embeddings, *grad_weight, *grad_bias;

  // Returns the rows' losses. One pass over blocks of rows: the logits of a block are made, turned into their gradients
  // in place, and used for all three gradients. Cost: 3 products of 2 * rows * classes * d flops, 1 without gradients.
  std::vector<double> run() const;
};

}  // namespace fastpair
