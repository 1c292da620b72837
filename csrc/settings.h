// The settings of a call, as C++ and CUDA kernels take them.
#pragma once

#include "elementary.h"

namespace fastpair {

// The kind of a score. A cosine is the dot product of rows that were divided by their norms.
enum class Metric { Dot, SqEuclidean, Euclidean };

// The derivative of a closeness, a dot product or the negative of a distance, by the dot product. That of a distance by
// the norms is added with the gradient.
template <typename T>
FASTPAIR_INLINE T closeness_slope(Metric metric, T closeness) {
  if (metric == Metric::Dot) return T(1);
  if (metric == Metric::SqEuclidean) return T(2);
  return closeness == T(0) ? T(0) : T(-1) / closeness;  // a distance of zero has no direction
}

// A scale whose derivative is made of those by the rows, which are multiples of the scale. Instead of zero it is a
// number that is lost beside every score.
FASTPAIR_INLINE double learnable_scale(double scale) { return scale == 0 ? 1e-30 : scale; }

// None: a value for each anchor or row. Totals, of pair losses: the sums and counts that the mean is made of.
enum class Reduction { Mean, Sum, None, Totals };

}  // namespace fastpair
