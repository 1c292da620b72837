// A pair loss that is compiled while the package is in use, for the machine at hand: a library of its own with one
// symbol.
#pragma once

#include <string>

#include "cpu/simd/kernels.h"

namespace fastpair {

struct AddedLoss {
  const PairKernels<float>* of_float;
  const PairKernels<double>* of_double;
};

// Loads a library. The structs above have to be those that it was compiled with. Throws std::runtime_error.
void add_loss(const std::string& path);

// The kernels of an added loss, null if there is none of this name.
template <typename T>
const PairKernels<T>* added_loss(std::string_view name);

}  // namespace fastpair
