// One block's share of a matrix product: 32 x 32 sums over k of a(i, k) with b(j, k).
//
// The matrices are small, so that there are hardly more tiles than multiprocessors and the latency of a tile counts:
// its eight warps share the depth, not the area. A warp holds all 32 x 32 sums over its part of each chunk of 64, and
// the eight partial sums are added in a fixed order at the end.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/device.h"
#include "cuda/mma.h"

namespace fastpair::cuda {

constexpr int TILE = 32, CHUNK = 64, SLICE = CHUNK / WARPS;
// Four more floats per row put the rows that a warp reads at once into different banks.
constexpr int PITCH = CHUNK + 4, SUMS_PITCH = TILE + 4;

struct alignas(16) Buffers {
  float values[WARPS * TILE * SUMS_PITCH];  // two chunks of both matrices, then the partial sums
  float own[TILE * SUMS_PITCH];             // the operand `own` of WeighDifference, at the places of the sums
};
static_assert(WARPS * TILE * SUMS_PITCH >= 4 * TILE * PITCH);

// How a pair of elements adds to a sum; `own` is the element at the sum's row and column.
struct Multiply {
  static constexpr bool OWN = false;
  __device__ static float add(float sum, float a, float b, float) { return fmaf(a, b, sum); }
};
struct SquareDifference {
  static constexpr bool OWN = false;
  __device__ static float add(float sum, float a, float b, float) { return fmaf(a - b, a - b, sum); }
};
// a (b - own): no sum of large products is subtracted from another.
struct WeighDifference {
  static constexpr bool OWN = true;
  __device__ static float add(float sum, float a, float b, float own) { return fmaf(a, b - own, sum); }
};

// The sums of a warp on the float32 units: a lane has 4 x 8 sums, in rows lane / 4 + 8 r and columns lane % 4 + 4 c.
template <typename Combine>
struct LaneSums {
  float sums[4][8] = {};
  const float* own;

  __device__ explicit LaneSums(const Buffers& buffers) : own(buffers.own) {}

  // a and b point at the warp's part of the chunks.
  __device__ __forceinline__ void add(const float* a, const float* b) {
#pragma unroll
    for (int k = 0; k < SLICE; k += 4) {
      float4 rows[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) rows[r] = *reinterpret_cast<const float4*>(a + row(r) * PITCH + k);
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float4 other = *reinterpret_cast<const float4*>(b + col(c) * PITCH + k);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          float& sum = sums[r][c];
          const float x = Combine::OWN ? own[row(r) * SUMS_PITCH + col(c)] : 0.0f;
          sum = Combine::add(sum, rows[r].x, other.x, x);
          sum = Combine::add(sum, rows[r].y, other.y, x);
          sum = Combine::add(sum, rows[r].z, other.z, x);
          sum = Combine::add(sum, rows[r].w, other.w, x);
        }
      }
    }
  }

  __device__ __forceinline__ void store(float* out) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 8; ++c) out[row(r) * SUMS_PITCH + col(c)] = sums[r][c];
    }
  }

 private:
  __device__ __forceinline__ static int row(int r) { return lane() / 4 + 8 * r; }
  __device__ __forceinline__ static int col(int c) { return lane() % 4 + 4 * c; }
};

// The sums of a warp on the tensor cores, for b in half precision, which tf32 holds exactly. SPLIT: a is any float32,
// split into two parts that tf32 holds.
template <bool SPLIT>
struct TensorSums {
  float sums[2][4][4] = {};

  __device__ explicit TensorSums(const Buffers&) {}

  __device__ __forceinline__ void add(const float* a, const float* b) {
    static_assert(SLICE == 8);
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* at = a + (16 * r + g) * PITCH + t;
      float high[4] = {at[0], at[8 * PITCH], at[4], at[8 * PITCH + 4]}, low[4];
      if constexpr (SPLIT) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float whole = high[i];
          high[i] = rounded_to_tf32(whole);
          low[i] = rounded_to_tf32(whole - high[i]);
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float* from = b + (8 * c + g) * PITCH + t;
        const float cols[2] = {from[0], from[4]};
        if constexpr (SPLIT) add_product(sums[r][c], low, cols);
        add_product(sums[r][c], high, cols);
      }
    }
  }

  __device__ __forceinline__ void store(float* out) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float* to = out + (16 * r + g) * SUMS_PITCH + 8 * c + 2 * t;
        to[0] = sums[r][c][0], to[1] = sums[r][c][1];
        to[8 * SUMS_PITCH] = sums[r][c][2], to[8 * SUMS_PITCH + 1] = sums[r][c][3];
      }
    }
  }
};

// The elements (i, k) of a matrix from some row on, 0 beyond the last row and the last k.
struct Operand {
  const float* data;
  int ld, rows, depth;
};

// Copies a chunk into shared memory, asynchronously. Neighbouring threads copy elements that are neighbours in memory:
// along k, or, with BY_COLUMN, where element (i, k) lies at k * ld + i, along i (in groups of eight, which with four k
// go to 32 different banks).
template <bool BY_COLUMN>
__device__ __forceinline__ void copy_chunk(const Operand& from, int first, float* to) {
#pragma unroll 4  // fully unrolled, the addresses would take the registers that the sums need
  for (int step = 0; step < TILE * CHUNK / THREADS; ++step) {
    int i, k;
    if constexpr (BY_COLUMN) {
      i = lane() % 8 + 8 * (step / 2), k = threadIdx.x / WARP * SLICE + lane() / 8 + 4 * (step % 2);
    } else {
      i = threadIdx.x / CHUNK + THREADS / CHUNK * step, k = threadIdx.x % CHUNK;
    }
    const bool inside = i < from.rows && first + k < from.depth;
    const int offset = BY_COLUMN ? (first + k) * from.ld + i : i * from.ld + first + k;
    __pipeline_memcpy_async(to + i * PITCH + k, inside ? from.data + offset : from.data, sizeof(float),
                            inside ? 0 : sizeof(float));
  }
  __pipeline_commit();
}

// f(i, j) for the elements of a tile, each in one thread.
template <typename F>
__device__ __forceinline__ void for_tile(const F& f) {
#pragma unroll
  for (int i = threadIdx.x / WARP; i < TILE; i += WARPS) f(i, lane());
}

// Computes a tile's sums and calls emit(i, j, sum) for each.
template <bool B_BY_COLUMN, typename Sums, typename Emit>
__device__ __forceinline__ void tile_product(Buffers& buffers, Sums& sums, const Operand& a, const Operand& b,
                                             const Emit& emit) {
  const int warp = threadIdx.x / WARP;
  const auto chunk_a = [&](int turn) { return buffers.values + turn * 2 * TILE * PITCH; };
  const auto chunk_b = [&](int turn) { return chunk_a(turn) + TILE * PITCH; };
  const auto copy = [&](int k, int turn) {
    copy_chunk<false>(a, k, chunk_a(turn));
    copy_chunk<B_BY_COLUMN>(b, k, chunk_b(turn));
  };
  copy(0, 0);
  int turn = 0;
  for (int k = 0; k < a.depth; k += CHUNK, turn ^= 1) {
    __pipeline_wait_prior(0);
    // Now all threads have this chunk, and none still reads the previous one, which the next one replaces.
    __syncthreads();
    if (k + CHUNK < a.depth) copy(k + CHUNK, turn ^ 1);
    sums.add(chunk_a(turn) + warp * SLICE, chunk_b(turn) + warp * SLICE);
  }
  __pipeline_wait_prior(0);
  __syncthreads();
  sums.store(buffers.values + warp * TILE * SUMS_PITCH);
  __syncthreads();
  for_tile([&](int i, int j) {
    float sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += buffers.values[(w * TILE + i) * SUMS_PITCH + j];
    emit(i, j, sum);
  });
  __syncthreads();
}

}  // namespace fastpair::cuda
