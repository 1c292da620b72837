// In the place of csrc/cuda/registration.cpp: the operators of CUDA tensors for CPU tensors.

#include <torch/csrc/stable/library.h>

#include "cuda/device_of.h"
#include "cuda/operators.h"

namespace fastpair::cuda {

struct OnDevice::Guard {};

OnDevice::OnDevice(const Tensor&) {}
OnDevice::~OnDevice() = default;

}  // namespace fastpair::cuda

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) { fastpair::cuda::register_operators(m); }
