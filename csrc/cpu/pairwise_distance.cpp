// fastpair::pairwise_distance and its gradient on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/samples.h"
#include "cpu/simd/kernels.h"

namespace fastpair {
namespace {

constexpr int64_t BLOCK = 128;

int64_t blocks(int64_t length) { return (length + BLOCK - 1) / BLOCK; }

// Both sides of a call; y is x itself if it is not given.
template <typename T>
struct Sides {
  Distance distance;
  Samples<T> x;
  std::optional<Samples<T>> other;

  Sides(const Tensor& x_tensor, const std::optional<Tensor>& y_tensor, const std::string& metric, bool grad_x = false,
        bool grad_y = false)
      : distance(distance_named(metric)), x(x_tensor, nullptr) {
    const std::vector<T> center = center_of<T>(x_tensor, distance);
    x.load(x_tensor, distance, center, grad_x);
    if (y_tensor) {
      other.emplace(*y_tensor, nullptr);
      other->load(*y_tensor, distance, center, grad_y);
    }
  }
  Samples<T>& y() { return other ? *other : x; }
};

// f(pointer) with the data of a tensor to be written.
template <typename F>
void with_floating_output(const Tensor& t, const F& f) {
  with_floating(t,
                [&](const auto data) { f(static_cast<typename decltype(data)::value_type*>(t.mutable_data_ptr())); });
}

Tensor pairwise_distance(const Tensor& x, const std::optional<Tensor>& y, const std::string& metric) {
  check_sides(x, y);
  return with_compute_type(x, [&](auto zero) {
    using T = decltype(zero);
    Sides<T> sides(x, y, metric);
    const int64_t n = sides.x.n, m = sides.y().n, across = blocks(m);
    const Tensor out = new_tensor({n, m}, x.scalar_type());
    with_floating_output(out, [&](auto* data) {
      using Out = std::remove_pointer_t<decltype(data)>;
      parallel_for(blocks(n) * across, [&](int64_t tile) {
        const int64_t row = tile / across * BLOCK, rows = std::min(BLOCK, n - row);
        const int64_t col = tile % across * BLOCK, cols = std::min(BLOCK, m - col);
        const auto compute = [&](T* scores, int64_t ld) {
          const T sign = 1;  // distances, not closenesses
          compute_scores<T>(sides.x, row, rows, sides.y(), col, cols, sides.distance.metric, scores, ld, nullptr, sign);
        };
        if constexpr (std::is_same_v<Out, T>) {
          compute(data + row * m + col, m);
        } else {
          const Scratch<T> scores(rows * cols);
          compute(scores.get(), cols);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < cols; ++c)
              data[(row + r) * m + col + c] = static_cast<Out>(scores.get()[r * cols + c]);
          }
        }
      });
    });
    return out;
  });
}

// Adds the contributions of all pairs to the gradient of one side. grad_at(i, j) is the incoming gradient of pair
// (i, j), i on the side that is differentiated. One task owns a block of its rows.
template <typename T, typename GradAt>
void add_gradient(Samples<T>& side, const Samples<T>& other, Metric metric, const GradAt& grad_at) {
  const int64_t d = side.d;
  parallel_for(blocks(side.n), [&](int64_t block) {
    const int64_t row = block * BLOCK, rows = std::min(BLOCK, side.n - row);
    const Scratch<T> tile(rows * BLOCK);
    std::vector<SinglePair<T>> close;
    for (int64_t col = 0; col < other.n; col += BLOCK) {
      const int64_t cols = std::min(BLOCK, other.n - col);
      close.clear();
      if (metric != Metric::Dot) {
        compute_scores(side, row, rows, other, col, cols, metric, tile.get(), BLOCK, &close);
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          T& slope = tile.get()[r * BLOCK + c];
          const T grad = grad_at(row + r, col + c);
          // The derivative by the dot product replaces the closeness; the sum accounts for the norms.
          slope = metric == Metric::Dot           ? grad
                  : metric == Metric::SqEuclidean ? T(-2) * grad
                  : slope == T(0)                 ? T(0)
                                                  : grad / slope;
        }
      }
      for (SinglePair<T>& p : close) std::swap(p.slope, tile.get()[(p.row - row) * BLOCK + p.col - col]);
      for (int64_t r = 0; r < rows && metric != Metric::Dot; ++r) {
        const T* slopes = tile.get() + r * BLOCK;
        side.slope_sums[row + r] += std::accumulate(slopes, slopes + cols, T(0));
      }
      add_products(Op::None, rows, cols, tile.get(), BLOCK, other, col, side.gradient + row * d,
                   std::exchange(side.started[row], true));
      for (const SinglePair<T>& p : close) {
        add_difference(p.slope, other.rows + p.col * d, side.rows + p.row * d, d, side.gradient + p.row * d);
      }
    }
  });
  side.start_gradient();  // where there are no pairs
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad, const Tensor& x,
                                                      const std::optional<Tensor>& y, const std::string& metric,
                                                      bool grad_x, bool grad_y) {
  check_gradient(grad, x, y, grad_y);
  return with_compute_type(x, [&](auto zero) {
    using T = decltype(zero);
    Sides<T> sides(x, y, metric, grad_x, grad_y);
    const int64_t down = grad.stride(0), across = grad.stride(1);
    with_floating(grad, [&](const auto g) {
      const auto of_row = [&](int64_t i, int64_t j) { return static_cast<T>(g[i * down + j * across]); };
      const auto of_col = [&](int64_t j, int64_t i) { return static_cast<T>(g[i * down + j * across]); };
      if (grad_x) add_gradient(sides.x, sides.y(), sides.distance.metric, of_row);
      if (grad_y || (grad_x && !y)) add_gradient(sides.y(), sides.x, sides.distance.metric, of_col);
    });
    return std::tuple(sides.x.gradient_tensor(grad_x),
                      y ? sides.y().gradient_tensor(grad_y) : new_tensor({0}, scalar_type<T>));
  });
}

}  // namespace
}  // namespace fastpair

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) {
  m.impl("pairwise_distance", TORCH_BOX(&fastpair::pairwise_distance));
  m.impl("pairwise_distance_backward", TORCH_BOX(&fastpair::pairwise_distance_backward));
}
