// Anchors and references as the kernels take them, and the scores between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/simd/kernels.h"

namespace fastpair {

// A tile on the diagonal is its own mirror image: it is halved, down to products of the size of the smallest tiles.
constexpr int64_t LEAST_OWN = 32;

// Anchors or references, sorted by label and brought into the form that the metric's dot products need.
template <typename T>
struct Samples {
  int64_t n, d;
  std::vector<int64_t> order;   // sorted position -> row of the tensor
  std::vector<int64_t> labels;  // sorted
  Scratch<T> storage;
  const T* rows;
  std::vector<T> norms;          // squared norms, for distances
  std::vector<T> inverse_norms;  // for cosines: 1/|x|, 0 for a zero row
  bool has_gradient = false;
  T* gradient = nullptr;  // with respect to `rows`
  // By prefix and row, whether there is something in the gradient of the block of rows that begins there.
  std::vector<uint8_t> started;
  std::vector<T> slope_sums;  // for distances: the part of the gradient that comes from the norms; or asked for
  // The columns that products are of.
  int64_t first_column = 0, columns;
  // For losses of the first columns: how many. The rows are not divided by their norms; inverse_norms has those of the
  // first prefix, then of the next, or ones for dot products, and along_prefixes the products of the rows with their
  // gradients by way of each prefix.
  std::vector<int64_t> prefixes;
  bool unit_prefixes = false;
  std::vector<T> along_prefixes;

  // Without labels the samples keep their order.
  Samples(const Tensor& x, const Tensor* label_tensor) : n(x.size(0)), d(x.size(1)), columns(d) {
    const std::vector<int64_t> unsorted = label_tensor ? integer_vector(*label_tensor) : std::vector<int64_t>(n);
    order = sorting_order(unsorted);
    labels.reserve(n);
    for (const int64_t row : order) labels.push_back(unsorted[row]);
  }

  void load(const Tensor& x, const Distance& distance, const std::vector<T>& center, bool want_gradient,
            bool want_slope_sums = false, const std::vector<int64_t>& prefix_lengths = {}) {
    const bool distances = distance.metric != Metric::Dot;
    const bool in_order = std::is_sorted(order.begin(), order.end());
    prefixes = prefix_lengths;
    unit_prefixes = distance.unit_rows && !prefixes.empty();
    const bool unit = distance.unit_rows && prefixes.empty();
    const bool in_place = !distances && !unit && in_order && is_plain<T>(x);
    if (!in_place) storage = Scratch<T>(n * d);
    rows = in_place ? static_cast<const T*>(x.const_data_ptr()) : storage.get();
    if (unit) inverse_norms.resize(n);
    if (!prefixes.empty()) inverse_norms.assign(prefixes.size() * n, T(1));
    along_prefixes.assign(prefixes.size() * n, T(0));
    if (distances) norms.resize(n);
    if (distances || want_slope_sums) slope_sums.assign(n, T(0));
    has_gradient = want_gradient;
    if (want_gradient) make_gradient(in_order);

    const Kernels<T>& k = kernels<T>();
    const T* const plain = is_plain<T>(x) ? static_cast<const T*>(x.const_data_ptr()) : nullptr;
    with_floating(x, [&](const auto data) {
      parallel_rows(n, d, [&](int64_t r) {
        T* row = storage.get() + r * d;
        const T* from = plain ? plain + order[r] * d : row;
        if (!plain) copy_row(x, data, order[r], row);
        if (unit) {
          inverse_norms[r] = inverse_norm(k.dot(from, from, d));
          k.scaled(inverse_norms[r], from, d, row);
        } else if (plain && !in_place) {
          std::copy_n(from, d, row);
        }
        if (unit_prefixes) find_prefix_norms(r);
        if (!center.empty()) {
          for (int64_t j = 0; j < d; ++j) row[j] -= center[j];
        }
        if (distances) norms[r] = k.dot(row, row, d);
      });
    });
  }

  // Makes products those of the columns that prefix k has beyond the one before.
  void select_columns(size_t k) {
    first_column = k == 0 ? 0 : prefixes[k - 1];
    columns = prefixes[k] - first_column;
  }

  // Makes the gradient of rows that no product was written to zero, as it is to be where something is added to it.
  void start_gradient() {
    if (!has_gradient || n == 0 || started.front()) return;
    parallel_rows(n, d, [&](int64_t r) { std::memset(gradient + r * d, 0, d * sizeof(T)); });
    std::ranges::fill(started, true);
  }

  void scale_gradient(T factor) {
    parallel_rows(n, d, [&](int64_t r) { kernels<T>().scaled(factor, gradient + r * d, d, gradient + r * d); });
    for (T& sum : slope_sums) sum *= factor;
  }

  // The sum over the rows of their products with the gradient by them.
  double along_rows() const {
    if (!prefixes.empty()) return std::accumulate(along_prefixes.begin(), along_prefixes.end(), 0.0);
    std::vector<double> along(n);
    parallel_rows(n, d, [&](int64_t r) {
      along[r] = kernels<T>().dot(rows + r * d, gradient + r * d, d);
      if (!norms.empty()) along[r] -= double(slope_sums[r]) * norms[r];
    });
    return sum(along);
  }

  // The gradient with respect to the tensor's rows, in their order; empty if it is not wanted.
  Tensor gradient_tensor(bool wanted) const {
    if (!wanted) return new_tensor({0}, scalar_type<T>);
    if (gradient_in_order && inverse_norms.empty() && norms.empty()) return *gradient_in_order;
    Tensor out = gradient_in_order ? *gradient_in_order : new_tensor({n, d}, scalar_type<T>);
    T* data = static_cast<T*>(out.mutable_data_ptr());
    const Kernels<T>& k = kernels<T>();
    parallel_rows(n, d, [&](int64_t r) {
      const T* g = gradient + r * d;
      const T* row = rows + r * d;
      T* to = data + order[r] * d;
      if (!prefixes.empty()) return write_prefix_gradient(r, to);
      // Distances: d|x|^2/dx adds a multiple of the row. Cosines: the part along the row does not change its
      // direction.
      const T along = !inverse_norms.empty() ? k.dot(row, g, d) : norms.empty() ? T(0) : slope_sums[r];
      const T scale = inverse_norms.empty() ? T(1) : inverse_norms[r];
      if (scale == T(0)) {
        std::fill(to, to + d, T(0));
      } else if (inverse_norms.empty() && norms.empty()) {
        std::copy(g, g + d, to);
      } else {  // in place where the rows are in order
        k.scaled_difference(scale, g, along, row, d, to);
      }
    });
    return out;
  }

 private:
  Scratch<T> gradient_storage;
  std::optional<Tensor> gradient_in_order;  // where the rows are: the memory of `gradient`

  void make_gradient(bool in_order) {
    if (in_order) {
      gradient_in_order = new_tensor({n, d}, scalar_type<T>);
      gradient = static_cast<T*>(gradient_in_order->mutable_data_ptr());
    } else {
      gradient_storage = Scratch<T>(n * d);
      gradient = gradient_storage.get();
    }
    started.assign(std::max<size_t>(prefixes.size(), 1) * n, false);
  }

  void find_prefix_norms(int64_t r) {
    T squared = 0;
    for (size_t k = 0; k < prefixes.size(); ++k) {
      const int64_t first = k == 0 ? 0 : prefixes[k - 1];
      const T* part = rows + r * d + first;
      squared += kernels<T>().dot(part, part, prefixes[k] - first);
      inverse_norms[k * n + r] = inverse_norm(squared);
    }
  }

  // The parts along a row's prefixes do not change their directions: each is taken from the columns of its prefix.
  void write_prefix_gradient(int64_t r, T* to) const {
    const T *g = gradient + r * d, *row = rows + r * d;
    std::fill(to + prefixes.back(), to + d, T(0));
    T along = 0;
    for (size_t k = prefixes.size(); k-- > 0;) {
      const T inverse = inverse_norms[k * n + r];
      if (unit_prefixes) along += along_prefixes[k * n + r] * inverse * inverse;
      for (int64_t j = k == 0 ? 0 : prefixes[k - 1]; j < prefixes[k]; ++j) to[j] = g[j] - along * row[j];
    }
  }
};

// The new origin. Distances do not change when the origin moves, and their squares cancel less near the middle of the
// samples. Only columns that lie far from zero for their spread are moved: there the subtraction hardly rounds,
// elsewhere it gains nothing. Empty where nothing is moved.
template <typename T>
std::vector<T> center_of(const Tensor& x, const Distance& distance) {
  if (distance.metric == Metric::Dot || distance.unit_rows) return {};
  const int64_t n = x.size(0), d = x.size(1), down = x.stride(0), across = x.stride(1);
  std::vector<double> sum(d, 0), squares(d, 0);
  with_floating(x, [&](const auto data) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        const double value = static_cast<double>(data[i * down + j * across]);
        sum[j] += value;
        squares[j] += value * value;
      }
    }
  });
  std::vector<T> center(d, T(0));
  for (int64_t j = 0; j < d; ++j) {
    const double mean = sum[j] / n, variance = squares[j] / n - mean * mean;
    // A column with NaN or infinity stays: it must not spoil the distances of all the other rows.
    if (mean * mean > 4 * variance && std::isfinite(mean)) center[j] = static_cast<T>(mean);
  }
  return center;
}

// Whether a distance is so small beside the norms that its square, as |x|^2 + |y|^2 - 2xy, has lost too many digits.
template <typename T>
bool is_close(Metric metric, T distance, T norms) {
  const T squared = metric == Metric::Euclidean ? square(distance) : distance;
  return squared <= T(SMALL_DISTANCE) * norms;
}

// A pair (row, col) that is added to a gradient by itself: its slope, by the dot product, times the difference of the
// samples. As the difference of one sum over samples and one over norms, little of it would survive for close ones.
template <typename T>
struct SinglePair {
  int64_t row, col;
  T slope;
};

// Scores of samples [row, row + rows) of x and [col, col + cols) of y, the strides between rows being ld: products, or
// distances times `sign`, which are closenesses unless it is 1. Distances of close pairs, and of infinite rows, are
// computed from differences. Close pairs, except of a sample with itself, are appended to `close` unless it is null.
template <typename T>
void compute_scores(const Samples<T>& x, int64_t row, int64_t rows, const Samples<T>& y, int64_t col, int64_t cols,
                    Metric metric, T* scores, int64_t ld, std::vector<SinglePair<T>>* close = nullptr, T sign = -1) {
  const int64_t d = x.d, first = x.first_column;
  gemm(Op::None, Op::Transpose, rows, cols, x.columns, x.rows + row * d + first, d, y.rows + col * d + first, d, false,
       scores, ld);
  if (metric == Metric::Dot) return;
  const Kernels<T>& k = kernels<T>();
  const T *row_norms = x.norms.data() + row, *col_norms = y.norms.data() + col;
  if (!k.distances(metric, sign, scores, ld, rows, cols, row_norms, col_norms)) return;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      T& score = scores[r * ld + c];
      const bool near = is_close(metric, sign * score, row_norms[r] + col_norms[c]);
      if (!near && !std::isnan(score)) continue;
      const T exact = k.squared_distance(x.rows + (row + r) * d, y.rows + (col + c) * d, d);
      score = sign * (metric == Metric::Euclidean ? std::sqrt(exact) : exact);
      if (close && near && !(&x == &y && row + r == col + c)) close->push_back({row + r, col + c, T(0)});
    }
  }
}

// Copies the part above the diagonal of a square below it: a product need not round (i, j) like (j, i).
template <typename T>
void mirror(T* scores, int64_t n, int64_t ld) {
  for (int64_t r = 1; r < n; ++r) {
    for (int64_t c = 0; c < r; ++c) scores[r * ld + c] = scores[c * ld + r];
  }
}

// compute_scores for samples [first, first + n) of x with each other, on and above the diagonal.
template <typename T>
void compute_upper_scores(const Samples<T>& x, int64_t first, int64_t n, Metric metric, T* scores, int64_t ld,
                          std::vector<SinglePair<T>>* close) {
  if (n < 2 * LEAST_OWN) return compute_scores(x, first, n, x, first, n, metric, scores, ld, close);
  const int64_t half = n / 2;
  compute_upper_scores(x, first, half, metric, scores, ld, close);
  compute_upper_scores(x, first + half, n - half, metric, scores + half * ld + half, ld, close);
  compute_scores(x, first, half, x, first + half, n - half, metric, scores + half, ld, close);
}

struct Columns {
  int64_t first, count;
};

// out (m, d) += op(slopes) samples[first ...] in some columns, op(slopes) being (m, k) with the derivatives by the dot
// products; without `add`, in place of what was there.
template <typename T>
void add_products(Op op, int64_t m, int64_t k, const T* slopes, int64_t ld, const Samples<T>& samples, int64_t first,
                  T* out, bool add, Columns columns) {
  const int64_t d = samples.d;
  gemm(op, Op::None, m, columns.count, k, slopes, ld, samples.rows + first * d + columns.first, d, add,
       out + columns.first, d);
}

// The same, in the columns that products are of.
template <typename T>
void add_products(Op op, int64_t m, int64_t k, const T* slopes, int64_t ld, const Samples<T>& samples, int64_t first,
                  T* out, bool add = true) {
  add_products(op, m, k, slopes, ld, samples, first, out, add, {samples.first_column, samples.columns});
}

// Some columns of the gradient of the samples [first, first + rows), to which products are added one after the other;
// unless it is `started`, the first takes the place of what was there.
template <typename T>
struct Block {
  Samples<T>& samples;
  int64_t first, rows;
  Columns columns;
  bool started;

  void add(Op op, int64_t k, const T* slopes, int64_t ld, const Samples<T>& others, int64_t first_other) {
    add_products(op, rows, k, slopes, ld, others, first_other, samples.gradient + first * samples.d,
                 std::exchange(started, true), columns);
  }
};

template <typename T>
void add_difference(T slope, const T* __restrict other, const T* __restrict own, int64_t d, T* __restrict out) {
  for (int64_t j = 0; j < d; ++j) out[j] += slope * (other[j] - own[j]);
}

// Adds single pairs to the gradient of the side whose rows they name in `own`; each row belongs to one task. A dot
// product has no norms: there a pair adds the other sample alone.
template <typename T>
void add_single_pairs(const std::vector<SinglePair<T>>& pairs, Samples<T>& side, int64_t SinglePair<T>::* own,
                      const Samples<T>& others, int64_t SinglePair<T>::* other) {
  if (!side.has_gradient || pairs.empty()) return;
  std::vector<int64_t> begin(side.n + 1, 0), by_row(pairs.size());
  for (const SinglePair<T>& p : pairs) ++begin[p.*own + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (size_t k = 0; k < pairs.size(); ++k) by_row[next[pairs[k].*own]++] = k;
  const int64_t d = side.d;
  const std::vector<T> origin(side.norms.empty() ? d : 0, T(0));
  parallel_rows(side.n, 2 * d, [&](int64_t i) {
    const T* self = side.norms.empty() ? origin.data() : side.rows + i * d;
    for (int64_t k = begin[i]; k < begin[i + 1]; ++k) {
      const SinglePair<T>& p = pairs[by_row[k]];
      add_difference(p.slope, others.rows + p.*other * d, self, d, side.gradient + i * d);
    }
  });
}

}  // namespace fastpair
