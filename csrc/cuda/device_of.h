// Where a kernel is to run.
#pragma once

#include <memory>

#include "arguments.h"

namespace fastpair::cuda {

// Makes the device of a tensor the current one, and knows its current stream.
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

}  // namespace fastpair::cuda
