// Pairs that lists name, as miners make them: which there are, their scores, and the gradients from these.
//
// The rows of a pair are gathered from the samples: O(list + nd) memory. Where a block of rows has many pairs, a
// product of the block with all samples is faster than their rows one by one, and the scores of the pairs are picked
// from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "arguments.h"
#include "cpu/interrupt.h"
#include "cpu/parallel.h"
#include "cpu/samples.h"
#include "cpu/simd/kernels.h"

namespace fastpair {

// Where pairs are a set. The Python layer says it as a ValueError.
inline void check_one_kind(bool one, int64_t anchor, int64_t reference) {
  STD_TORCH_CHECK(one, "a pair must not be listed as positive and as negative, got (", anchor, ", ", reference,
                  ") as both");
}

// Row numbers: a tensor's where they lie side by side as int64, else a copy. The tensor has to outlive this.
class Indices {
 public:
  explicit Indices(const Tensor& list);
  explicit Indices(std::vector<int64_t> numbers) : copy_(std::move(numbers)), view_(copy_) {}
  Indices(Indices&&) = default;
  Indices& operator=(Indices&&) = default;

  std::span<const int64_t> view() const { return view_; }

 private:
  std::vector<int64_t> copy_;  // its elements stay where they are when it is moved
  std::span<const int64_t> view_;
};

// The lists of a call: pairs (anchor, positive) and (anchor, negative), the latter's anchors being those of the
// positives for triplets.
struct PairLists {
  Indices anchors, positives;
  std::optional<Indices> negative_anchors;
  Indices negatives;

  std::span<const int64_t> anchors_of(Kind kind) const {
    return (kind == Negative && negative_anchors ? *negative_anchors : anchors).view();
  }
  std::span<const int64_t> others_of(Kind kind) const { return (kind == Negative ? negatives : positives).view(); }
};

// Checks that the lists hold rows of n anchors and m references.
PairLists pair_lists(const Tensor& anchors, const Tensor& positives, const std::optional<Tensor>& negative_anchors,
                     const Tensor& negatives, int64_t n, int64_t m);

// Pairs (row, col) of n rows and m columns, grouped by row in the order of their list, and each of them once.
struct ListedPairs {
  int64_t n, m;
  // The listings of row i are listing[begin[i]], ..., listing[begin[i + 1] - 1]: places in the list.
  std::vector<int64_t> begin, listing;
  // The pairs of row i, each once, are [begin[i], end[i]), in the order of their first listings. pair[k] is that of
  // listing[k].
  std::vector<int64_t> end, col, pair;
  // The pairs of column j, in the order of their rows, are of_col[col_begin[j]], ..., and pair p has the row row[p].
  std::vector<int64_t> col_begin, of_col, row;

  struct List {
    std::span<const int64_t> rows, cols;
  };

  // The lists follow each other.
  ListedPairs(std::initializer_list<List> lists, int64_t row_count, int64_t col_count);

  // The pairs of an anchor are its positives, and then its negatives.
  static ListedPairs of(const PairLists& lists, Kind first, int64_t n, int64_t m);

  // Makes the groups by column.
  void group_by_column();

  // How many rows make a task that is worth a thread, if each of their listings takes `work`.
  int64_t grain(int64_t work) const {
    return GRAIN / (work * int64_t(listing.size()) / std::max<int64_t>(n, 1) + 1) + 1;
  }
  static constexpr int64_t GRAIN = int64_t(1) << 15;
};

// The pairs as a matrix int8 (n, m) of 1, -1 and 0, if there are enough of them for whole rows of scores to be faster.
// With `repeats`, only if no pair is listed twice; without, a pair that is listed as both kinds is an error.
std::optional<Tensor> matrix_of(const PairLists& lists, int64_t n, int64_t m, bool repeats);

// A pair's rows, gathered, cost as much time as this many entries of a product.
constexpr int64_t GATHERED_PAIR = 6;

// The closenesses of listed pairs of the samples x and y, and the gradients of these.
template <typename T>
class ListedScores {
 public:
  // `pairs` have to outlive this; the groups by column are made if there are gradients.
  ListedScores(Samples<T>& x, Samples<T>& y, Metric metric, ListedPairs& pairs)
      : x_(x),
        y_(y),
        metric_(metric),
        pairs_(pairs),
        scores_(pairs.col.size()),
        close_(metric != Metric::Dot && gradients() ? pairs.col.size() : 0) {}

  // By pair: closenesses, in place of which a caller puts the derivatives by the dot products.
  T* of_pairs() const { return scores_.get(); }

  bool gradients() const { return x_.has_gradient || y_.has_gradient; }

  void compute() {
    const auto task = [&](int64_t first, int64_t rows) {
      int64_t count = 0;
      for (int64_t i = first; i < first + rows; ++i) count += pairs_.end[i] - pairs_.begin[i];
      is_dense(count, rows, y_.n) ? pick(first, rows) : gather(first, rows);
    };
    for_blocks(x_.n, task);
  }

  // Adds the gradients, given the derivatives. Each row is written by one task in a fixed order.
  void add_gradients() {
    if (gradients()) pairs_.group_by_column();
    const bool same = &x_ == &y_;
    if (x_.has_gradient) add_to(x_, y_, true, same);
    if (y_.has_gradient && !same) add_to(y_, x_, false, true);
  }

 private:
  static constexpr int64_t MAX_ROWS = 64;

  static bool is_dense(int64_t count, int64_t rows, int64_t cols) { return count * GATHERED_PAIR > rows * cols; }

  // An odd number of cache lines: a power of two would map the rows to a few sets of the cache.
  static int64_t row_length(int64_t cols) { return ((cols + 15) / 16 | 1) * 16; }

  // f(first, rows) for blocks of the rows of one side.
  template <typename F>
  void for_blocks(int64_t n, const F& f) const {
    const int64_t block = task_length(n, MAX_ROWS);
    const auto task = [&](int64_t t) { f(t * block, std::min(block, n - t * block)); };
    parallel_for((n + block - 1) / block, task, pairs_.grain(x_.d) / block + 1);
  }

  void gather(int64_t first, int64_t rows) {
    for (int64_t i = first; i < first + rows; ++i) {
      const int64_t begin = pairs_.begin[i], count = pairs_.end[i] - begin;
      T* s = scores_.get() + begin;
      kernels<T>().gathered_scores(metric_, x_.rows + i * x_.d, y_.rows, x_.d, pairs_.col.data() + begin, count, s);
      if (metric_ == Metric::Dot) continue;
      for (int64_t k = 0; k < count; ++k) s[k] = metric_ == Metric::Euclidean ? -std::sqrt(s[k]) : -s[k];
      mark_close(i);
    }
  }

  void pick(int64_t first, int64_t rows) {
    const int64_t ld = row_length(y_.n);
    const Scratch<T> panel(rows * ld);
    compute_scores(x_, first, rows, y_, 0, y_.n, metric_, panel.get(), ld);
    for (int64_t i = first; i < first + rows; ++i) {
      const T* row = panel.get() + (i - first) * ld;
      for (int64_t p = pairs_.begin[i]; p < pairs_.end[i]; ++p) scores_.get()[p] = row[pairs_.col[p]];
      mark_close(i);
    }
  }

  void mark_close(int64_t i) {
    if (close_.empty()) return;
    for (int64_t p = pairs_.begin[i]; p < pairs_.end[i]; ++p) {
      close_[p] = is_close(metric_, -scores_.get()[p], x_.norms[i] + y_.norms[pairs_.col[p]]);
    }
  }

  // f(pair, other sample) for the pairs of sample i, as the row and as the column.
  template <typename F>
  void for_pairs(int64_t i, bool as_row, bool as_col, const F& f) const {
    for (int64_t p = as_row ? pairs_.begin[i] : 0; p < (as_row ? pairs_.end[i] : 0); ++p) f(p, pairs_.col[p]);
    for (int64_t k = as_col ? pairs_.col_begin[i] : 0; k < (as_col ? pairs_.col_begin[i + 1] : 0); ++k) {
      f(pairs_.of_col[k], pairs_.row[pairs_.of_col[k]]);
    }
  }

  // The pairs of a sample that are added from their rows.
  struct Gathered {
    std::vector<int64_t> index;
    std::vector<T> slopes;

    void clear() { index.clear(), slopes.clear(); }
    void push(int64_t other, T slope) { index.push_back(other), slopes.push_back(slope); }
    void add(const Samples<T>& others, const T* origin, T* out) const {
      kernels<T>().add_gathered(slopes.data(), others.rows, others.d, index.data(), index.size(), origin, out);
    }
  };

  void add_to(Samples<T>& side, const Samples<T>& others, bool as_row, bool as_col) {
    side.start_gradient();
    for_blocks(side.n, [&](int64_t first, int64_t rows) {
      int64_t count = 0;
      for (int64_t i = first; i < first + rows; ++i) {
        for_pairs(i, as_row, as_col, [&](int64_t pair, int64_t) { count += scores_.get()[pair] != T(0); });
      }
      if (count == 0) return;
      const bool dense = is_dense(count, rows, others.n);
      const int64_t ld = row_length(others.n);
      const Scratch<T> panel(dense ? rows * ld : 0);
      if (dense) std::memset(panel.get(), 0, rows * ld * sizeof(T));
      Gathered gathered;
      for (int64_t i = first; i < first + rows; ++i) {
        gathered.clear();
        double sum = 0;
        for_pairs(i, as_row, as_col, [&](int64_t pair, int64_t other) {
          const T slope = scores_.get()[pair];
          if (slope == T(0)) return;
          const bool apart = !dense || (!close_.empty() && close_[pair]);
          if (apart) gathered.push(other, slope);
          if (!apart) panel.get()[(i - first) * ld + other] += slope;
          if (!apart || metric_ == Metric::Dot) sum += slope;
        });
        const T* origin = metric_ == Metric::Dot ? nullptr : side.rows + i * side.d;
        gathered.add(others, origin, side.gradient + i * side.d);
        if (!side.slope_sums.empty()) side.slope_sums[i] += T(sum);
      }
      if (dense) {
        add_products(Op::None, rows, others.n, panel.get(), ld, others, 0, side.gradient + first * side.d);
      }
    });
  }

  Samples<T>&x_, &y_;
  const Metric metric_;
  ListedPairs& pairs_;
  Scratch<T> scores_;
  std::vector<uint8_t> close_;  // by pair, for distances: see is_close
};

}  // namespace fastpair
