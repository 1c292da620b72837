// The Python module fastpair._C_cuda, which registers the operators with PyTorch for CUDA.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <string>

#include "cuda/device_of.h"
#include "cuda/operators.h"
#include "error_code.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace fastpair::cuda {

struct OnDevice::Guard : torch::stable::accelerator::DeviceGuard {
  using DeviceGuard::DeviceGuard;
};

OnDevice::OnDevice(const Tensor& t) : guard_(std::make_unique<Guard>(t.get_device_index())) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
}
OnDevice::~OnDevice() = default;

// Calls the allocator directly: the dispatcher would add half of the time that the allocation takes.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes) {
  std::array<int64_t, 2> strides = {1, 1};
  if (sizes.size() == 2) strides[0] = *(sizes.begin() + 1);
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  AtenTensorHandle out;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides.data(),
                                                         aoti_torch_dtype_float32(), type, like.get_device_index(),
                                                         &out));
  return Tensor(out);
}

}  // namespace fastpair::cuda

STABLE_TORCH_LIBRARY_IMPL(fastpair, CUDA, m) { fastpair::cuda::register_operators(m); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The CUDA kernels for small batches: operators of torch.ops.fastpair.";
  m.attr("compiler") =
      "nvcc " + std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  m.attr("architectures") = FASTPAIR_CUDA_ARCHITECTURES;
}
