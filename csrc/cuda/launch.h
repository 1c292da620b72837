// Launches of kernels whose blocks wait for each other: no more blocks than fit on the device at once.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/device.h"
#include "cuda/pairs.h"
#include "cuda/problem.h"

namespace fastpair::cuda {

// The number of blocks that the largest phase can use: tiles, or rows in groups of one per warp.
inline int64_t largest_phase(const Pairs& p) {
  const int64_t rows = p.side[0].n, cols = p.side[1].n;
  const int64_t high = tile_count(rows), wide = tile_count(cols), deep = tile_count(p.d);
  return std::max({p.symmetric ? high * (high + 1) / 2 : high * wide, std::max(high, wide) * deep,
                   (std::max(rows, cols) + WARPS - 1) / WARPS, int64_t(1)});
}

// How many blocks of a kernel fit on the current device at once.
template <typename Problem>
cudaError_t resident_blocks(void (*kernel)(Problem), int* blocks) {
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Problem), int>, int> known;
  int device;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard lock(mutex);
  int& count = known[{kernel, device}];
  if (count == 0) {
    int processors, each;
    if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
      return error;
    }
    if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, THREADS, 0)) {
      return error;
    }
    count = processors * each;
  }
  *blocks = count;
  return cudaSuccess;
}

template <typename Problem>
const char* launch(void (*kernel)(Problem), const Problem& problem, int64_t work, Stream stream) {
  int most = 0;
  cudaError_t error = resident_blocks(kernel, &most);
  if (error == cudaSuccess) {
    Problem copy = problem;
    void* arguments[] = {&copy};
    error = cudaLaunchCooperativeKernel(kernel, dim3(std::min<int64_t>(work, most)), dim3(THREADS), arguments, 0,
                                        static_cast<cudaStream_t>(stream));
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastpair::cuda
