// Code that the CUDA kernels share below the level of matrices: elements, warps, blocks, the grid.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "elementary.h"

namespace fastpair::cuda {

constexpr int WARP = 32, WARPS = 8, THREADS = WARP * WARPS;
constexpr unsigned ALL_LANES = 0xffffffff;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16(x);
  if constexpr (std::is_same_v<T, __half>) return __float2half(x);
  if constexpr (std::is_same_v<T, float>) return x;
}

__device__ __forceinline__ int lane() { return threadIdx.x % WARP; }

// Every lane gets the same bits, since both lanes of a pair add the same two numbers.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// NaN is ignored.
__device__ __forceinline__ float warp_max(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(ALL_LANES, x, step);
    x = x < other ? other : x;
  }
  return x;
}

// The sum over the block's threads, in every thread; `room` must not be used until the next barrier.
__device__ __forceinline__ double block_sum(double x, double (&room)[WARPS]) {
  x = warp_sum(x);
  if (lane() == 0) room[threadIdx.x / WARP] = x;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < WARPS; ++warp) sum += room[warp];
  __syncthreads();
  return sum;
}

// f(i) for i in [0, count), each by a whole warp; the grid's warps share the work.
template <typename F>
__device__ __forceinline__ void for_each_warp(int count, const F& f) {
  // Neighbours go to different blocks: a few rows still use every multiprocessor.
  const int warp = threadIdx.x / WARP * gridDim.x + blockIdx.x;
  for (int i = warp; i < count; i += WARPS * gridDim.x) f(i);
}

// No thread passes before all have arrived, and writes before it are seen after it.
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace fastpair::cuda
