// The operators, for tensors on a CUDA device. Their schemas are those of the operators without `cuda_`, in
// fastpair/ops.
#pragma once

#include <torch/csrc/stable/library.h>

namespace fastpair::cuda {

void register_operators(torch::stable::detail::StableLibrary& m);

}  // namespace fastpair::cuda
