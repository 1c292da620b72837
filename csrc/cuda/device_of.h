// The device that a kernel runs on, and memory there.
#pragma once

#include <initializer_list>
#include <memory>

#include "arguments.h"

namespace fastpair::cuda {

// Makes the device of a tensor the current one, and holds its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;

  void* stream = nullptr;

 private:
  struct Guard;
  std::unique_ptr<Guard> guard_;
};

// An uninitialised float32 tensor on the device of another one, contiguous, with at most two dimensions.
Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes);

}  // namespace fastpair::cuda
