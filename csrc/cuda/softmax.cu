// Turns the logits of a linear classifier into losses and slopes, with the steps around this where rows are divided by
// their norms. cuBLAS computes the products before and after it.

#include "cuda/launch.h"
#include "cuda/pairs.h"

namespace fastpair::cuda {
namespace {

// The greatest x of the block's threads, NaN ignored; `room` as for block_sum.
__device__ __forceinline__ float block_max(float x, float (&room)[WARPS]) {
  x = warp_max(x);
  if (lane() == 0) room[threadIdx.x / WARP] = x;
  __syncthreads();
  float highest = -INFINITY;
  for (int warp = 0; warp < WARPS; ++warp) highest = highest < room[warp] ? room[warp] : highest;
  __syncthreads();
  return highest;
}

struct Room {
  float highest[WARPS];
  double sums[WARPS];
};

// One block per row. Slopes are written in type T, the remainder of rounding in `rest` unless that is null; in float32
// they may overwrite the logits.
template <typename T>
__device__ void softmax_rows(const Softmax& p, Room& room) {
  double counted = 0;
  if (p.reduction == Reduction::Mean) {
    for (int i = threadIdx.x; i < p.n; i += THREADS) counted += p.labels[i] != p.ignore_index;
    counted = block_sum(counted, room.sums);
  }
  const float share = counted < 1 ? 1.0f : float(1 / counted);
  const TargetLogit<float> target = {.margin_kind = p.margin_kind, .scale = p.scale, .margin = p.margin};
  const float spread = float(p.label_smoothing / p.classes), rest = float(1 - p.label_smoothing);
  for (int i = blockIdx.x; i < p.n; i += gridDim.x) {
    const int64_t label = p.labels[i];
    const bool ignored = label == p.ignore_index, known = label >= 0 && label < p.classes;
    const int own = !ignored && known ? int(label) : -1;
    const float row_scale = p.row_norms ? float(p.scale) * p.row_norms[i] : 1;
    const auto factor = [&](int k) { return p.class_norms ? row_scale * p.class_norms[k] : 1.0f; };
    const float* products = p.products + int64_t(i) * p.ld;
    float own_logit = 0, own_slope = 1;
    const auto bare = [&](int k) { return product(products[k], factor(k)) + (p.bias ? p.bias[k] : 0); };
    if (own >= 0) {
      own_logit = bare(own);
      own_slope = target.apply(&own_logit);
    }
    const auto logit = [&](int k) { return k == own ? own_logit : bare(k); };

    float highest = -INFINITY;
    for (int k = threadIdx.x; k < p.classes; k += THREADS) highest = highest < logit(k) ? logit(k) : highest;
    highest = block_max(highest, room.highest);
    float exponentials = 0, above = 0;
    for (int k = threadIdx.x; k < p.classes; k += THREADS) {
      exponentials += exponential(logit(k) - highest);
      if (spread != 0) above += logit(k) - highest;
    }
    const double sum_exp = block_sum(exponentials, room.sums);
    float loss = float(double(rest) * (highest - own_logit) + log(sum_exp));
    if (spread != 0) loss -= spread * float(block_sum(above, room.sums));
    // Raising an exception for a label out of range would mean waiting for the device.
    if (!known) loss = NAN;
    if (ignored) loss = 0;
    if (threadIdx.x == 0) p.losses[i] = loss;
    if (!p.slopes) continue;
    const float normaliser = float(1 / sum_exp);
    const float weight = ignored ? 0 : !known ? NAN : share * (p.row_grad ? p.row_grad[i] : 1);
    for (int k = threadIdx.x; k < p.classes; k += THREADS) {
      float slope = exponential(logit(k) - highest) * normaliser - spread;
      if (k == own) slope = (slope - rest) * own_slope;
      slope = ignored ? 0 : slope * weight * factor(k);
      const T rounded = from_float<T>(slope);
      static_cast<T*>(p.slopes)[int64_t(i) * p.ld + k] = rounded;
      if (p.rest) static_cast<T*>(p.rest)[int64_t(i) * p.ld + k] = from_float<T>(slope - to_float(rounded));
    }
  }
  if (p.reduction == Reduction::None) return;
  grid_barrier();
  if (blockIdx.x != 0) return;
  double sum = 0;
  for (int i = threadIdx.x; i < p.n; i += THREADS) sum += p.losses[i];
  sum = block_sum(sum, room.sums);
  if (threadIdx.x == 0) *p.value = float(sum * share);
}

__global__ void __launch_bounds__(THREADS) softmax_kernel(const __grid_constant__ Softmax p) {
  __shared__ Room room;
  if (p.slope_element == Element::Float32) softmax_rows<float>(p, room);
  if (p.slope_element == Element::BFloat16) softmax_rows<__nv_bfloat16>(p, room);
}

__global__ void __launch_bounds__(THREADS) norms_kernel(const __grid_constant__ Pairs p) { prepare(p); }

// Subtracts from the gradient by a unit row its component along that row.
template <typename T>
__device__ void project(const Projection& p) {
  for_each_warp(p.n, [&](int i) {
    const T* x = static_cast<const T*>(p.rows) + int64_t(i) * p.d;
    float* gradient = p.gradient + int64_t(i) * p.d;
    float along = 0;
    for (int k = lane(); k < p.d; k += WARP) along = fmaf(gradient[k], to_float(x[k]), along);
    const float inverse = p.inverse_norms[i];
    along = warp_sum(along) * inverse;
    for (int k = lane(); k < p.d; k += WARP) gradient[k] -= along * (inverse * to_float(x[k]));
  });
}

__global__ void __launch_bounds__(THREADS) projection_kernel(const __grid_constant__ Projection p) {
  if (p.element == Element::Float32) project<float>(p);
  if (p.element == Element::BFloat16) project<__nv_bfloat16>(p);
  if (p.element == Element::Float16) project<__half>(p);
}

int64_t blocks_for_rows(int64_t n) { return std::max<int64_t>((n + WARPS - 1) / WARPS, 1); }

}  // namespace

const char* launch_softmax(const Softmax& p, Stream stream) {
  return launch(softmax_kernel, p, std::max(p.n, 1), stream);
}

const char* launch_norms(const Pairs& p, Stream stream) {
  return launch(norms_kernel, p, blocks_for_rows(int64_t(p.side[0].n) + p.side[1].n), stream);
}

const char* launch_projection(const Projection& p, Stream stream) {
  return launch(projection_kernel, p, blocks_for_rows(p.n), stream);
}

}  // namespace fastpair::cuda
