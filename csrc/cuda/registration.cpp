// What ties the operators to PyTorch on CUDA.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/device_of.h"
#include "cuda/operators.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fastpair::cuda {

OnDevice::OnDevice(const Tensor& t) : guard_(new torch::stable::accelerator::DeviceGuard(t.get_device_index())) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
}
OnDevice::~OnDevice() { delete static_cast<torch::stable::accelerator::DeviceGuard*>(guard_); }

}  // namespace fastpair::cuda

STABLE_TORCH_LIBRARY_IMPL(fastpair, CUDA, m) { fastpair::cuda::register_operators(m); }
