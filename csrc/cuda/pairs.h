// The phases of a kernel over pairs that are the same for every loss: norms, scores, and the product of slopes and
// embeddings. Each is shared by all blocks of the grid, and inlined into its kernel: only there does the compiler know
// that the problem is constant and its addresses are in global memory. Behind a call every store might change any
// field, and all fields would be loaded again for every pair. A side that is picked at run time is copied before a loop
// over pairs, since an index turns even a constant into a load.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/problem.h"
#include "cuda/tile.h"

namespace fastpair::cuda {

// The row and column of tile t, counting only tiles on and above the diagonal.
__device__ inline void upper_tile(int t, int tiles, int* row, int* col) {
  *row = 0;
  while (t >= tiles - *row) t -= tiles - (*row)++;
  *col = *row + t;
}

__host__ __device__ inline int tile_count(int n) { return (n + TILE - 1) / TILE; }

// Writes, before pairs are visited, the rows in the form that the products take, unless they are given in it, and
// 1 / |x| of unit rows.
template <typename T>
__device__ __forceinline__ void prepare_rows(const Pairs& p) {
  const int n = p.side[0].n;
  for_each_warp(n + (p.symmetric ? 0 : p.side[1].n), [&](int row) {
    const Side side = p.side[row < n ? 0 : 1];
    const int i = row < n ? row : row - n;
    const T* x = static_cast<const T*>(side.given_rows) + i * side.given_stride;
    double scale = 1;
    if (p.unit) {
      float squares = 0;
      for (int k = lane(); k < p.d; k += WARP) squares = fmaf(to_float(x[k]), to_float(x[k]), squares);
      scale = inverse_norm(double(warp_sum(squares)));
      if (lane() == 0) side.inverse_norms[i] = float(scale);
    }
    if (side.prepared) {
      // Rounded once, as near duplicates require: an inverse in single precision would be a second rounding.
      const double by = p.metric == Metric::Dot ? 1 : scale;
      for (int k = lane(); k < p.d; k += WARP) side.prepared[i * p.d + k] = float(by * to_float(x[k]));
    }
  });
}

__device__ __forceinline__ void prepare(const Pairs& p) {
  if (!p.unit && !p.side[0].prepared) return;
  if (p.element == Element::Float32) prepare_rows<float>(p);
  if (p.element == Element::BFloat16) prepare_rows<__nv_bfloat16>(p);
  if (p.element == Element::Float16) prepare_rows<__half>(p);
  grid_barrier();
}

// How products are computed. Half precision by the tensor cores, which multiply it exactly; float32 in float32;
// distances as sums of squared differences: none is lost among large norms, and that of equal rows is 0.
struct InTensorCores {
  static constexpr bool DISTANCES = false;
  using Scores = TensorSums<false>;
  using Gradient = TensorSums<true>;
};
struct InFloat32 {
  static constexpr bool DISTANCES = false;
  using Scores = LaneSums<Multiply>;
  using Gradient = LaneSums<Multiply>;
};
struct OfDifferences {
  static constexpr bool DISTANCES = true;
  using Scores = LaneSums<SquareDifference>;
  using Gradient = LaneSums<WeighDifference>;
};
template <typename F>
__device__ __forceinline__ void with_products(const Pairs& p, const F& f) {
  if (p.metric != Metric::Dot) return f(OfDifferences());
  if (p.element == Element::Float32) return f(InFloat32());
  f(InTensorCores());
}

// Writes every score, a product or a distance times `sign`, to the scores of side[0] and, if it has any, to those of
// side[1]. For symmetric pairs the latter are the mirror image, and tiles below the diagonal are not computed.
template <typename Products>
__device__ __forceinline__ void write_scores(const Pairs& p, Buffers& buffers, float sign) {
  const Side &rows = p.side[0], &cols = p.side[1];
  const int high = tile_count(rows.n), wide = tile_count(cols.n);
  const int tiles = p.symmetric ? high * (high + 1) / 2 : high * wide;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    int I = t / wide, J = t % wide;
    if (p.symmetric) upper_tile(t, high, &I, &J);
    const int top = I * TILE, left = J * TILE;
    const bool mirror = cols.scores && !(p.symmetric && I == J);
    typename Products::Scores sums(buffers);
    tile_product<false>(buffers, sums, {rows.rows + top * rows.stride, rows.stride, rows.n - top, p.d},
                        {cols.rows + left * cols.stride, cols.stride, cols.n - left, p.d},
                        [&](int r, int c, float sum) {
                          const int i = top + r, j = left + c;
                          if (i >= rows.n || j >= cols.n) return;
                          float score = sum;
                          if constexpr (Products::DISTANCES) {
                            score = sign * (p.metric == Metric::Euclidean ? square_root(sum) : sum);
                          } else if (p.unit) {
                            score *= rows.inverse_norms[i] * cols.inverse_norms[j];
                          }
                          rows.scores[i * rows.ld + j] = score;
                          if (mirror) cols.scores[j * cols.ld + i] = score;
                        });
  }
}

__device__ __forceinline__ void write_closenesses(const Pairs& p, Buffers& buffers) {
  with_products(p, [&](auto products) { write_scores<decltype(products)>(p, buffers, -1); });
}

// The component along a unit row, per unit of weight, of one pair's part of the gradient by that row: of the other row,
// or of its difference from this one.
__device__ __forceinline__ float along_row(Metric metric, float closeness, float other_inverse_norm) {
  if (metric == Metric::Dot) return closeness;
  const float squared = metric == Metric::Euclidean ? -(closeness * closeness) : closeness;
  const float dot_zero_row = other_inverse_norm == 0 ? 1 : 0;
  return (squared - dot_zero_row) / 2;
}

// Receives the slopes of row i of a side, from the lanes of a warp.
class SlopesOfRow {
 public:
  __device__ __forceinline__ SlopesOfRow(const Pairs& p, const Side& side, const Side& other, int i)
      : i_(i),
        metric_(p.metric),
        scores_(side.scores + i * side.ld),
        unit_(p.unit),
        inverse_norms_(other.inverse_norms),
        inverse_norm_(p.unit ? side.inverse_norms[i] : 0),
        along_rows_(side.along) {}

  // Overwrites a closeness with slope(), the derivative by it, in the form that the product takes. The other row's norm
  // is being loaded meanwhile.
  template <typename F>
  __device__ __forceinline__ void store(int j, float closeness, const F& slope) {
    const float other = unit_ ? inverse_norms_[j] : 0;
    float weight = slope() * closeness_slope(metric_, closeness);
    if (unit_) {
      along_ += weight * along_row(metric_, closeness, other);
      if (metric_ == Metric::Dot) weight *= inverse_norm_ * other;
    }
    scores_[j] = weight;
  }

  // For an element that is no pair.
  __device__ __forceinline__ void store_none(int j) { scores_[j] = 0; }

  // After the last pair.
  __device__ __forceinline__ void finish() {
    if (!unit_) return;
    along_ = warp_sum(along_);
    if (lane() == 0) along_rows_[i_] = along_;
  }

 private:
  const int i_;
  const Metric metric_;
  float* const scores_;
  const bool unit_;
  const float* const inverse_norms_;  // of the other rows
  const float inverse_norm_;
  float* const along_rows_;
  float along_ = 0;
};

// The gradient with respect to the rows of side s, given the slopes: products with the other side's rows.
template <typename Products>
__device__ __forceinline__ void write_gradient(const Pairs& p, int s, Buffers& buffers) {
  const Side &side = p.side[s], &other = p.side[1 - s];
  const int wide = tile_count(p.d), tiles = tile_count(side.n) * wide;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int top = t / wide * TILE, left = t % wide * TILE;
    const float* own = side.rows + top * side.stride + left;
    const auto inside = [&](int r, int c) { return top + r < side.n && left + c < p.d; };
    if (p.metric != Metric::Dot) {
      for_tile([&](int r, int c) { buffers.own[r * SUMS_PITCH + c] = inside(r, c) ? own[r * side.stride + c] : 0; });
    }
    typename Products::Gradient sums(buffers);
    tile_product<true>(buffers, sums, {side.scores + top * side.ld, side.ld, side.n - top, other.n},
                       {other.rows + left, other.stride, p.d - left, other.n}, [&](int r, int c, float sum) {
                         if (!inside(r, c)) return;
                         const int i = top + r;
                         if (p.unit) {
                           const float inverse = side.inverse_norms[i], x = own[r * side.stride + c];
                           // Distances compare unit rows; for cosines the weights include the norms.
                           sum = p.metric == Metric::Dot ? sum - side.along[i] * inverse * (inverse * x)
                                                         : inverse * (sum - side.along[i] * x);
                           if (inverse == 0) sum = 0;  // a zero row has no direction to change
                         }
                         side.gradient[i * p.d + left + c] = sum;
                       });
  }
}

// f(s) for the sides whose gradient is wanted.
template <typename F>
__device__ __forceinline__ void for_gradients(const Pairs& p, const F& f) {
#pragma unroll 1  // one copy of what f inlines
  for (int s = 0; s < (p.symmetric ? 1 : 2); ++s) {
    if (p.side[s].gradient) f(s);
  }
}

}  // namespace fastpair::cuda
