// CUDA on the host, enough of it to run the kernels of csrc/cuda on CPU tensors.
//
// Every thread of the grid is a fiber. A fiber runs until it waits for its warp, its block or the grid, and the order
// in which those that can go on are resumed is chosen by FASTPAIR_EMULATED_ORDER: results that depend on it show a
// missing barrier. Waiting where others never come is an error, and so is reading what an asynchronous copy has yet to
// bring. Blocks take turns at barriers of the grid alone, so that one block's shared memory at a time is enough.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace emulated {

enum class Wait { None, Warp, Block, Grid };

// The thread that runs, and how it waits.
extern dim3 thread, block, grid;
void wait(Wait for_whom);

// What the lanes of a warp show each other: 16 words each.
constexpr int WORDS = 16;
uint64_t (&warp_board())[32][WORDS];

// Copies that arrive at the wait for them.
void copy_later(void* to, const void* from, size_t size, size_t zeros);
void commit_copies();
void wait_for_copies(size_t groups_left);

bool run(const std::function<void()>& kernel, dim3 grid, dim3 block);

}  // namespace emulated

#define threadIdx emulated::thread
#define blockIdx emulated::block
#define gridDim emulated::grid

inline void __syncthreads() { emulated::wait(emulated::Wait::Block); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
  auto& board = emulated::warp_board();
  const unsigned lane = threadIdx.x % 32;
  std::memcpy(board[lane], &value, sizeof(T));
  emulated::wait(emulated::Wait::Warp);
  T other;
  std::memcpy(&other, board[lane ^ step], sizeof(T));
  emulated::wait(emulated::Wait::Warp);
  return other;
}

// Products that no compiler fuses with a sum: those of the host lose their name where loops become vectors.
inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline double __dmul_rn(double a, double b) {
  volatile double product = a * b;
  return product;
}

// ---- host side

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t) { return "the emulated kernel failed"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// Few, so that blocks have several tiles and rows to do.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 1, cudaSuccess;
}
template <typename Problem>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Problem), dim3 grid, dim3 block, void** arguments, size_t,
                                        cudaStream_t) {
  const Problem& problem = *static_cast<Problem*>(arguments[0]);
  return emulated::run([&] { kernel(problem); }, grid, block) ? cudaSuccess : cudaErrorLaunchFailure;
}
