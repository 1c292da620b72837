// The scores of all pairs, and the gradients by both sides given the gradient by the scores, each in one launch.

#include "cuda/launch.h"
#include "cuda/pairs.h"

namespace fastpair::cuda {
namespace {

__global__ void __launch_bounds__(THREADS, 2) scores_kernel(const __grid_constant__ Pairs p) {
  __shared__ Buffers buffers;
  prepare(p);
  with_products(p, [&](auto products) { write_scores<decltype(products)>(p, buffers, 1); });
}

__global__ void __launch_bounds__(THREADS, 2) gradient_kernel(const __grid_constant__ ScoreGradient p) {
  __shared__ Buffers buffers;
  prepare(p);
  write_closenesses(p, buffers);
  grid_barrier();
  const float sign = p.metric == Metric::Dot ? 1 : -1;  // the incoming gradient is by the distances
  const auto incoming = [&](int row, int col) { return sign * p.incoming[row * p.row_stride + col * p.col_stride]; };
  for_gradients(p, [&](int s) {
    const Side side = p.side[s], other = p.side[1 - s];
    for_each_warp(side.n, [&](int i) {
      SlopesOfRow slopes(p, side, other, i);
      for (int j = lane(); j < other.n; j += WARP) {
        slopes.store(j, side.scores[i * side.ld + j], [&] {
          const float slope = s == 0 ? incoming(i, j) : incoming(j, i);
          return p.symmetric ? slope + incoming(j, i) : slope;
        });
      }
      slopes.finish();
    });
  });
  grid_barrier();
  with_products(
      p, [&](auto products) { for_gradients(p, [&](int s) { write_gradient<decltype(products)>(p, s, buffers); }); });
}

}  // namespace

const char* launch_scores(const Pairs& p, Stream stream) { return launch(scores_kernel, p, largest_phase(p), stream); }

const char* launch_score_gradient(const ScoreGradient& p, Stream stream) {
  return launch(gradient_kernel, p, largest_phase(p), stream);
}

}  // namespace fastpair::cuda
