// A pair loss that is compiled while the package is in use, for the machine, the precision and the metric at hand: a
// library of its own with one symbol, fastpair_added_loss.
#pragma once

#include "cpu/simd/kernels.h"

namespace fastpair {

struct AddedLoss {
  // Null for the precision that it is not compiled for.
  const PairKernels<float>* of_float;
  const PairKernels<double>* of_double;
  Metric metric;
};

// Loads a library. The structs above have to be those that it was compiled with. Throws std::runtime_error.
void add_loss(const char* path);

// The kernels of an added loss, null if there are none with this name and metric.
template <typename T>
const PairKernels<T>* added_loss(const char* name, Metric metric);

}  // namespace fastpair
