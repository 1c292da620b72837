// Sweeps over the tiles of a score matrix. No tile outlives its visit unless all of them fit the memory budget.
//
// Where the references are the anchors, only tiles on and above the diagonal are computed: each stands for its mirror
// image too, and with H = G + G^T the gradient is H X. Each block of gradient rows is written by one task in a fixed
// order, so that results are the same bits from run to run.
//
// Losses of the first columns, for prefixes of D_1 < D_2 < ... columns, have a layer of the matrix each. Products of
// prefixes are partial sums over the blocks of columns between, S_k = S_{k-1} + X_k Y_k^T, which the layers keep;
// scores are S_k times both samples' factors, the inverse norms for cosines. Its derivatives by S_k, plus those of the
// longer prefixes, are H_k, by which block k of the gradient is H_k Y_k. Of cosines, the part along each prefix of a
// row is summed with the slopes and taken away at the end. All prefixes together take the products of one loss of all
// columns, in units of 2nmd, and the loops over pairs of each.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "cpu/interrupt.h"
#include "cpu/parallel.h"
#include "cpu/relation.h"
#include "cpu/samples.h"
#include "cpu/simd/kernels.h"
#include "cpu/squares.h"

namespace fastpair {

// Panels of fewer anchors than this would make the products slow.
constexpr int64_t LEAST_PANEL = 64;

// What it takes to merge two statistics, in operations of the loops over rows.
constexpr int64_t MERGE_WORK = 128;

// At most this many scores are computed by one product.
constexpr int64_t RUN_SCORES = int64_t(1) << 17;

// An anchor's statistics of one kind so far: as in Parts, but in double, and for Max with the sorted position.
struct Total {
  double of[STATISTICS];
};

// Takes the part of some pairs into the statistics of one kind. `first`: the column that a maximum's place is counted
// from.
inline void merge(Pool pool, Total& total, const Total& part, int64_t first) {
  auto& [a, b, c] = total.of;
  const auto& [value, count, third] = part.of;
  switch (pool) {
    case Pool::Sum:
      a += value, b += count, c += third;
      return;
    case Pool::LogSumExp:
      c += third;
      // No terms, or only terms of minus infinity, which are in the sum `c`.
      if (count == 0) return;
      if (std::isinf(a) || std::isinf(value)) {
        // Nothing so far, or an infinite term, next to which nothing counts except NaN.
        b = (std::isnan(b) ? b : a < value ? 0 : b) + (std::isnan(count) || !(value < a) ? count : 0);
        a = std::max(a, value);
      } else if (a < value) {
        b = b * std::exp(a - value) + count;
        a = value;
      } else {
        b += count * std::exp(value - a);
      }
      return;
    case Pool::Max:
      if (count == 0 || !(value > a || std::isnan(value))) return;
      a = value, b = double(first) + count;
  }
}

template <typename F>
void for_kinds(const F& f) {
  f(Negative);
  f(Positive);
}

// What a sweep does with each pair.
struct Pass {
  bool compute_scores = true;
  bool add[2] = {false, false};  // the statistics, by kind
  bool gradient = false;
  std::vector<double>* learned = nullptr;  // takes in the gradient by the parameters that learn, through the terms
  bool only_positives = false;             // tiles without positives are skipped
};

// The samples of one side as anchors, with their statistics and their weights in the gradient, layer by layer.
template <typename T>
struct AnchorSide {
  Samples<T>& samples;
  const Relation relation;
  const SampleScalars<T> scalars;
  std::vector<Total> totals[2];
  std::vector<T> negatives_lse;
  std::vector<T> factor[2], shift[2], constant[2];

  AnchorSide(const PairKernels<T>& loss, Samples<T>& anchors, Relation to_others, const SampleScalars<T>& own)
      : samples(anchors),
        relation(std::move(to_others)),
        scalars(own),
        negatives_lse(loss.reads_negatives_lse ? layers() * anchors.n : 0, T(0)) {
    const int64_t count = layers() * anchors.n;
    for_kinds([&](Kind kind) {
      const double none = loss.pool[kind] == Pool::Sum ? 0 : -std::numeric_limits<double>::infinity();
      totals[kind].assign(count, Total{{none, 0, 0}});
      factor[kind].assign(count, T(0));
      shift[kind].assign(count, std::numeric_limits<T>::infinity());
      constant[kind].assign(count, T(0));
    });
  }

  int64_t layers() const { return std::max<int64_t>(samples.prefixes.size(), 1); }

  void set_weight(int64_t i, Kind kind, const Slope& slope, const Statistic& of_terms, double weight) {
    const RoundedSlope<T> rounded(slope, of_terms, weight);
    factor[kind][i] = rounded.factor;
    shift[kind][i] = rounded.shift;
    constant[kind][i] = rounded.constant;
  }

  Weights<T> weights(int64_t layer) const {
    const int64_t first = layer * samples.n;
    Weights<T> view;
    for_kinds([&](Kind kind) {
      view.factor[kind] = factor[kind].data() + first;
      view.shift[kind] = shift[kind].data() + first;
      view.constant[kind] = constant[kind].data() + first;
    });
    view.negatives_lse = negatives_lse.empty() ? nullptr : negatives_lse.data() + first;
    return view;
  }
};

template <typename T>
class PairSweep {
 public:
  // `self`: see ScoreTile. `two_sided`: the references are anchors as well.
  PairSweep(const PairKernels<T>& loss, const std::vector<double>& params, Metric metric, AnchorSide<T>& anchors,
            AnchorSide<T>& references, const int64_t* self, bool two_sided)
      : loss_(loss),
        params_(params),
        metric_(metric),
        rows_(anchors),
        cols_(references),
        x_(anchors.samples),
        y_(references.samples),
        self_(self),
        symmetric_(&anchors == &references),
        two_sided_(two_sided),
        layers_(anchors.layers()) {
    const bool kept = keeps_scores();
    const int64_t square = layers_ > 1 ? square_length / 2 : square_length;
    panel_ = kept ? 0 : rows_of_panel();
    block_ = task_length((symmetric_ ? 1 : 2) * (kept || panel_ > 0 ? std::max(x_.n, y_.n) : square), MAX_BLOCK);
    if (panel_ > block_) panel_ = panel_ / block_ * block_;
    square_rows_ = kept ? round_up(x_.n) : panel_ > 0 ? panel_ : square;
    square_cols_ = kept || panel_ > 0 ? round_up(y_.n) : square;
    // The part below the diagonal is never visited. Up to one square, saving its memory is not worth the shorter
    // products of panels of different lengths.
    upper_ = symmetric_ && kept && x_.n > square_length;
    int64_t size = 0;
    for (int64_t I = 0; I < blocks(square_rows_); ++I) {
      panels_.push_back(size - first_column(I));
      size += std::min(block_, square_rows_) * ld(I);
    }
    layer_size_ = size;
    scores_ = Scratch<T>(layers_ * size);
    close_.resize(blocks(square_rows_) * blocks(square_cols_));
    kinds_.resize(close_.size());
    derivatives_.resize(close_.size() * loss.learned);
    partial_[0] = Scratch<T>(CHANNELS * blocks(square_cols_) * square_rows_);
    if (!symmetric_ || !kept) partial_[1] = Scratch<T>(CHANNELS * blocks(square_rows_) * square_cols_);
  }

  // Counts whole tiles of the largest size: with few anchors a row of tiles is mostly padding.
  bool keeps_scores() const {
    const int64_t rows = padded(x_.n), cols = padded(y_.n);
    return layers_ * (symmetric_ ? rows * (rows + MAX_BLOCK) / 2 : rows * cols) <= kept_scores();
  }

  // Where scores are not kept between sweeps: of how many anchors they are if all passes over these follow each other;
  // 0 if of none.
  int64_t panel() const { return panel_; }

  // Visits every pair once. Gradients are added to the samples that have them.
  void run(const Pass& pass) {
    for (int64_t top = 0; top < x_.n; top += square_rows_) run_panel(pass, top);
    if (pass.gradient) x_.start_gradient(), y_.start_gradient();  // where there are no pairs
  }

  // Visits the pairs of the panel's anchors, the first being `top`.
  void run_panel(const Pass& pass, int64_t top) {
    for (int64_t left = symmetric_ ? top : 0; left < y_.n; left += square_cols_) {
      interruptions_.look();
      visit_square({top, std::min(square_rows_, x_.n - top), left, std::min(square_cols_, y_.n - left)}, pass);
    }
  }

 private:
  static int64_t padded(int64_t n) { return (n + MAX_BLOCK - 1) / MAX_BLOCK * MAX_BLOCK; }

  // How many anchors' scores are few enough to be kept. 0 for too few, or where anchors have pairs in other rows.
  int64_t rows_of_panel() const {
    const int64_t rows = kept_scores() / padded(y_.n) / 32 * 32;
    if (symmetric_ || two_sided_ || layers_ > 1 || rows < LEAST_PANEL) return 0;
    return std::min(rows, (x_.n + 31) / 32 * 32);
  }

  static constexpr int CHANNELS = 2 * STATISTICS + 1;  // statistics of both kinds, and the sums of the slopes
  static constexpr int ALONG = 0;  // the parts along prefixes, where statistics are: with prefixes no pass makes both

  struct Square {
    int64_t top, rows, left, cols;
  };

  int64_t blocks(int64_t length) const { return (length + block_ - 1) / block_; }
  int64_t round_up(int64_t length) const { return blocks(length) * block_; }

  bool on_diagonal(const Square& s) const { return symmetric_ && s.top == s.left; }

  // Whether block row I and block column J of a square are visited (on the diagonal: as tile (I, J), not (J, I)).
  bool visited(const Square& s, int64_t I, int64_t J, const Pass& pass) const {
    if (on_diagonal(s) && J < I) return false;
    if (!pass.only_positives) return true;
    const int64_t row = I * block_, col = J * block_;
    return may_have_positives(s.top + row, std::min(block_, s.rows - row), s.left + col,
                              std::min(block_, s.cols - col));
  }

  bool may_have_positives(int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    // Labels are sorted: the ranges of the rows are consecutive.
    return rows_.relation.begin[row] < col + cols && rows_.relation.end[row + rows - 1] > col;
  }

  // The scores of block row I of a square form a panel of their own.
  int64_t first_column(int64_t I) const { return upper_ ? I * block_ : 0; }
  int64_t ld(int64_t I) const {
    // An odd number of cache lines between rows: a power of two would map them all to a few sets of the cache.
    const int64_t length = square_cols_ - first_column(I);
    return length + (length / 16 % 2 == 0 ? 16 : 0);
  }
  T* scores_at(int64_t I, int64_t col) const { return scores_.get() + layer_ * layer_size_ + panels_[I] + col; }

  // The partial results of the samples [at, at + block) of one side from block `other` of the other side.
  T* partial(int side, int channel, int64_t other, int64_t at) const {
    const int64_t others = blocks(side == 0 ? square_cols_ : square_rows_);
    return partial_[side].get() + (channel * others + other) * (side == 0 ? square_rows_ : square_cols_) + at;
  }
  Parts<T> parts(int side, int64_t other, int64_t at) const {
    Parts<T> view;
    for_kinds([&](Kind kind) {
      for (int k = 0; k < STATISTICS; ++k) view.of[kind][k] = partial(side, kind * STATISTICS + k, other, at);
    });
    return view;
  }

  void visit_square(const Square& s, const Pass& pass) {
    std::vector<std::pair<int64_t, int64_t>> tiles;
    for (int64_t J = 0; J < blocks(s.cols); ++J) {
      for (int64_t I = 0; I < blocks(s.rows); ++I) {
        if (visited(s, I, J, pass)) tiles.emplace_back(I, J);
      }
    }
    if (x_.prefixes.empty()) return visit_layer(s, tiles, pass);
    // Products come from those of fewer columns, slopes from those of more.
    if (pass.compute_scores || pass.add[Negative] || pass.add[Positive]) {
      Pass up = pass;
      up.gradient = false, up.learned = nullptr;
      for (int64_t k = 0; k < layers_; ++k) select_layer(k), visit_layer(s, tiles, up);
    }
    if (!pass.gradient && !pass.learned) return;
    const Pass down{.compute_scores = false, .gradient = pass.gradient, .learned = pass.learned};
    for (int64_t k = layers_ - 1; k >= 0; --k) select_layer(k), visit_layer(s, tiles, down);
  }

  void select_layer(int64_t k) {
    layer_ = k;
    x_.select_columns(k);
    y_.select_columns(k);
  }

  void visit_layer(const Square& s, const std::vector<std::pair<int64_t, int64_t>>& tiles, const Pass& pass) {
    // On the diagonal both sides are the same samples: a block gets sums as rows from the tiles to its right, and as
    // columns from the tiles above.
    const int col_side = on_diagonal(s) ? 0 : 1;
    const int64_t row_blocks = blocks(s.rows), col_blocks = blocks(s.cols);
    for (int side = 0; side <= col_side; ++side) {
      std::memset(partial_[side].get(), 0, (partial(side, CHANNELS, 0, 0) - partial_[side].get()) * sizeof(T));
    }
    if (pass.compute_scores) {
      for (std::vector<SinglePair<T>>& pairs : close_) pairs.clear();
    }
    parallel_ranges(tiles.size(), [&](int64_t begin, int64_t end) {
      const Scratch<T> of_prefix(x_.prefixes.empty() ? 0 : block_ * block_);
      for (int64_t t = begin, done = begin; t < end; ++t) {
        if (pass.compute_scores && t == done) done = score_run(s, tiles, t, end);
        visit_tile(s, tiles[t].first, tiles[t].second, col_side, pass, of_prefix.get());
      }
    });

    collect(rows_, s.top, s.rows, 0, s.left, col_blocks, pass);
    if (col_side == 1) collect(cols_, s.left, s.cols, 1, s.top, row_blocks, pass);
    if (pass.learned) {
      for (const auto& [I, J] : tiles) {
        for (int k = 0; k < loss_.learned; ++k) (*pass.learned)[k] += derivatives_at(I, J)[k];
      }
    }
    if (!pass.gradient) return;
    add_gradients(s, pass);
    add_close_pairs(on_diagonal(s));
  }

  // Computes the scores of tiles[t] and of the tiles before `end` that lie below it, as many as stay in the
  // second-level cache: one tall product is faster than several. Returns the first tile beyond.
  int64_t score_run(const Square& s, const std::vector<std::pair<int64_t, int64_t>>& tiles, int64_t t, int64_t end) {
    const auto [I, J] = tiles[t];
    const int64_t row = I * block_, col = J * block_, cols = std::min(block_, s.cols - col);
    std::vector<SinglePair<T>> close;
    std::vector<SinglePair<T>>* found = x_.has_gradient || y_.has_gradient ? &close : nullptr;
    // A tile on the diagonal is computed by itself if large enough to be halved, otherwise with the tiles above.
    const bool own = on_diagonal(s) && block_ >= 2 * LEAST_OWN;
    int64_t length = 1;
    if (own && I == J) {
      compute_upper_scores(x_, s.top + row, cols, metric_, scores_at(I, col), ld(I), found);
    } else {
      const int64_t most = upper_ ? 1 : std::min(RUN_SCORES / (block_ * block_), own ? J - I : end);
      while (length < most && t + length < end && tiles[t + length] == std::pair(I + length, J)) ++length;
      const int64_t rows = std::min(length * block_, s.rows - row);
      compute_scores(x_, s.top + row, rows, y_, s.left + col, cols, metric_, scores_at(I, col), ld(I), found);
    }
    const bool has_diagonal = on_diagonal(s) && I + length - 1 == J;
    if (has_diagonal) mirror(scores_at(J, col), cols, ld(J));
    for (const SinglePair<T>& p : close) {
      const int64_t tile = (p.row - s.top) / block_;
      std::vector<SinglePair<T>>& pairs = close_at(tile, J);
      if (!has_diagonal || tile != J) {
        pairs.push_back(p);
      } else if (p.row < p.col) {
        pairs.push_back(p);
        pairs.push_back({p.col, p.row, T(0)});
      }
    }
    return t + length;
  }

  // `of_prefix`: where the scores of a prefix are made of its products. Null without prefixes.
  void visit_tile(const Square& s, int64_t I, int64_t J, int col_side, const Pass& pass, T* of_prefix) {
    const int64_t at_row = I * block_, at_col = J * block_;
    ScoreTile<T> tile{
        .scores = scores_at(I, at_col),
        .ld = ld(I),
        .row = s.top + at_row,
        .rows = std::min(block_, s.rows - at_row),
        .col = s.left + at_col,
        .cols = std::min(block_, s.cols - at_col),
        .pos_begin = rows_.relation.begin.data(),
        .pos_end = rows_.relation.end.data(),
        .self = self_,
        .row_scalars = rows_.scalars,
        .col_scalars = cols_.scalars,
    };
    // They stay as long as the scores do.
    std::unique_ptr<uint8_t[]>& kinds = kinds_[I * blocks(square_cols_) + J];
    if (pass.compute_scores && layer_ == 0) kinds = kinds_of(tile);
    tile.kinds = kinds.get();
    const bool diagonal = symmetric_ && tile.row == tile.col;
    const Weights<T> of_rows = rows_.weights(layer_), of_cols = cols_.weights(layer_);
    T* const products = tile.scores;
    const int64_t stride = tile.ld;
    const T *row_factors = nullptr, *col_factors = nullptr;
    if (of_prefix) {
      row_factors = x_.inverse_norms.data() + layer_ * x_.n + tile.row;
      col_factors = y_.inverse_norms.data() + layer_ * y_.n + tile.col;
      const T* fewer = pass.compute_scores && layer_ > 0 ? products - layer_size_ : nullptr;
      kernels<T>().prefix_scores(products, fewer, stride, tile.rows, tile.cols, row_factors, col_factors, of_prefix);
      tile.scores = of_prefix;
      tile.ld = tile.cols;
    }

    const Parts<T> row_parts = parts(0, J, at_row), of_col_anchors = parts(col_side, I, at_col);
    const Parts<T>* col_parts = two_sided_ || (symmetric_ && !diagonal) ? &of_col_anchors : nullptr;
    if (tile.kinds && loss_.mixed_statistics && pass.add[Negative] && pass.add[Positive]) {
      loss_.mixed_statistics(tile, params_.data(), row_parts, col_parts);
    } else {
      for_kinds([&](Kind kind) {
        // The partial results are zeros, which stand for no pairs.
        const bool none = kind == Positive && !may_have_positives(tile.row, tile.rows, tile.col, tile.cols);
        if (!pass.add[kind] || none) return;
        loss_.statistics(tile, params_.data(), kind, of_rows.negatives_lse, of_cols.negatives_lse, row_parts,
                         col_parts);
      });
    }
    if (pass.learned) {
      loss_.term_derivatives(tile, params_.data(), of_rows, symmetric_ && !diagonal ? &of_cols : nullptr,
                             derivatives_at(I, J));
    }
    if (pass.gradient) {
      // A tile is all that its rows and columns get from each other, but one on the diagonal holds both (i, j) and
      // (j, i): there each entry gets the weights of both, and the column sums equal the row sums.
      T* row_sums = partial(0, CHANNELS - 1, J, at_row);
      std::array<T, MAX_BLOCK> unused{};
      T* col_sums = diagonal ? unused.data() : partial(col_side, CHANNELS - 1, I, at_col);
      loss_.slopes(tile, params_.data(), metric_, of_rows, symmetric_ || two_sided_ ? &of_cols : nullptr, row_sums,
                   col_sums);
      take_out(tile, close_at(I, J), row_sums, col_sums);
      if (of_prefix) {
        const T* more = layer_ + 1 < layers_ ? products + layer_size_ : nullptr;
        T* col_along = diagonal ? unused.data() : partial(col_side, ALONG, I, at_col);
        kernels<T>().prefix_slopes(products, more, stride, tile.rows, tile.cols, row_factors, col_factors, of_prefix,
                                   partial(0, ALONG, J, at_row), col_along);
      }
    }
  }

  // See ScoreTile; null where ranges say it all.
  std::unique_ptr<uint8_t[]> kinds_of(const ScoreTile<T>& tile) const {
    const Relation& relation = rows_.relation;
    int64_t r = 0;
    while (r < tile.rows && relation.is_range(tile.row + r, tile.col, tile.cols)) ++r;
    if (r == tile.rows) return nullptr;
    auto kinds = std::make_unique_for_overwrite<uint8_t[]>(tile.rows * MAX_BLOCK);
    for (r = 0; r < tile.rows; ++r) {
      relation.write_kinds(tile.row + r, tile.col, tile.cols, kinds.get() + r * MAX_BLOCK);
    }
    return kinds;
  }

  // The derivatives by the parameters that learn, from one tile.
  double* derivatives_at(int64_t I, int64_t J) {
    return derivatives_.data() + (I * blocks(square_cols_) + J) * loss_.learned;
  }

  // The close pairs of a tile: see is_close.
  std::vector<SinglePair<T>>& close_at(int64_t I, int64_t J) { return close_[I * blocks(square_cols_) + J]; }

  // Moves the slopes of `pairs` from the tile into the pairs, and recomputes the sums of its rows and columns in which
  // they lie.
  static void take_out(const ScoreTile<T>& tile, std::vector<SinglePair<T>>& pairs, T* row_sums, T* col_sums) {
    const auto at = [&](int64_t r, int64_t c) -> T& { return tile.scores[r * tile.ld + c]; };
    for (SinglePair<T>& p : pairs) std::swap(p.slope, at(p.row - tile.row, p.col - tile.col));
    std::array<bool, MAX_BLOCK> row_done{}, col_done{};
    for (const SinglePair<T>& p : pairs) {
      const int64_t r = p.row - tile.row, c = p.col - tile.col;
      if (!std::exchange(row_done[r], true)) row_sums[r] = std::accumulate(&at(r, 0), &at(r, tile.cols), T(0));
      if (std::exchange(col_done[c], true)) continue;
      col_sums[c] = 0;
      for (int64_t i = 0; i < tile.rows; ++i) col_sums[c] += at(i, c);
    }
  }

  // Adds them in the order of the tiles. Tiles on the diagonal hold each pair twice, from either side.
  void add_close_pairs(bool diagonal) {
    std::vector<SinglePair<T>> by_row, by_col;
    const int64_t across = blocks(square_cols_);
    for (size_t tile = 0; tile < close_.size(); ++tile) {
      std::vector<SinglePair<T>>& pairs = close_[tile];
      by_row.insert(by_row.end(), pairs.begin(), pairs.end());
      if (!(diagonal && int64_t(tile) / across == int64_t(tile) % across)) {
        by_col.insert(by_col.end(), pairs.begin(), pairs.end());
      }
    }
    add_single_pairs(by_row, x_, &SinglePair<T>::row, y_, &SinglePair<T>::col);
    add_single_pairs(by_col, y_, &SinglePair<T>::col, x_, &SinglePair<T>::row);
  }

  // Sums the partial results of a square for the samples [begin, begin + count) of one side, in a fixed order. `other`
  // is the first sample of the blocks of the other side.
  void collect(AnchorSide<T>& anchors, int64_t begin, int64_t count, int side, int64_t other, int64_t others,
               const Pass& pass) {
    const bool statistics = side == 0 || symmetric_ || two_sided_;
    std::vector<T>& slope_sums = anchors.samples.slope_sums;
    parallel_rows(count, MERGE_WORK * others, [&](int64_t i) {
      for_kinds([&](Kind kind) {
        if (!pass.add[kind] || !statistics) return;
        Total& total = anchors.totals[kind][layer_ * anchors.samples.n + begin + i];
        for (int64_t J = 0; J < others; ++J) {
          const T* part = partial(side, kind * STATISTICS, J, i);
          const int64_t next = partial(side, 1, 0, 0) - partial(side, 0, 0, 0);
          merge(loss_.pool[kind], total, {{part[0], part[next], part[2 * next]}}, other + J * block_);
        }
      });
      if (!pass.gradient) return;
      const auto sum_of = [&](int channel) {
        double sum = 0;
        for (int64_t J = 0; J < others; ++J) sum += partial(side, channel, J, i)[0];
        return T(sum);
      };
      if (!slope_sums.empty()) slope_sums[begin + i] += sum_of(CHANNELS - 1);
      std::vector<T>& along = anchors.samples.along_prefixes;
      if (!along.empty()) along[layer_ * anchors.samples.n + begin + i] += sum_of(ALONG);
    });
  }

  void add_gradients(const Square& s, const Pass& pass) {
    const int64_t row_blocks = blocks(s.rows), col_blocks = blocks(s.cols);
    const bool diagonal = on_diagonal(s);
    const int64_t row_tasks = x_.has_gradient ? row_blocks : 0;
    const int64_t col_tasks = !diagonal && y_.has_gradient ? col_blocks : 0;
    if (row_tasks + col_tasks == 0) return;
    // Long products of few blocks: their columns are shared out.
    const int64_t columns = x_.columns, shares = column_parts(row_tasks + col_tasks, columns);
    const int64_t width = (columns + shares - 1) / shares;
    parallel_for((row_tasks + col_tasks) * shares, [&](int64_t task_and_share) {
      const int64_t task = task_and_share / shares, begin = std::min(task_and_share % shares * width, columns);
      const Columns part{x_.first_column + begin, std::min(width, columns - begin)};
      if (task < row_tasks) {
        const int64_t I = task, at = I * block_, rows = std::min(block_, s.rows - at);
        Block<T> to{x_, s.top + at, rows, part, x_.started[layer_ * x_.n + s.top + at] != 0};
        // Below the diagonal, the tile at the mirrored place is used, see add_transposed.
        for_runs(
            diagonal ? I : 0, col_blocks, s.cols, false, [&](int64_t J) { return visited(s, I, J, pass); },
            [&](int64_t from, int64_t length) {
              to.add(Op::None, length, scores_at(I, from), ld(I), y_, s.left + from);
            });
        if (diagonal) add_transposed(s, I, at, I, pass, to);
      } else {
        const int64_t J = task - row_tasks, at = J * block_, cols = std::min(block_, s.cols - at);
        Block<T> to{y_, s.left + at, cols, part, y_.started[layer_ * y_.n + s.left + at] != 0};
        add_transposed(s, J, at, row_blocks, pass, to);
      }
    });
    for (int64_t I = 0; I < row_tasks; ++I) x_.started[layer_ * x_.n + s.top + I * block_] = true;
    for (int64_t J = 0; J < col_tasks; ++J) y_.started[layer_ * y_.n + s.left + J * block_] = true;
  }

  // Adds the transposed tiles (I, J), I in [0, end), times the rows' samples.
  void add_transposed(const Square& s, int64_t J, int64_t at, int64_t end, const Pass& pass, Block<T>& to) {
    for_runs(
        0, end, s.rows, upper_, [&](int64_t I) { return visited(s, I, J, pass); },
        [&](int64_t from, int64_t length) {
          const int64_t I = from / block_;
          to.add(Op::Transpose, length, scores_at(I, at), ld(I), x_, s.top + from);
        });
  }

  // f(first, length), in samples of a side of `limit`, for each unbroken run of wanted blocks in [begin, end), or for
  // each such block if `one_by_one`.
  template <typename Wanted, typename F>
  void for_runs(int64_t begin, int64_t end, int64_t limit, bool one_by_one, const Wanted& wanted, const F& f) const {
    for (int64_t b = begin; b < end; ++b) {
      if (!wanted(b)) continue;
      const int64_t first = b;
      while (!one_by_one && b + 1 < end && wanted(b + 1)) ++b;
      f(first * block_, std::min((b + 1) * block_, limit) - first * block_);
    }
  }

  const PairKernels<T>& loss_;
  const std::vector<double>& params_;
  const Metric metric_;
  AnchorSide<T>& rows_;
  AnchorSide<T>& cols_;
  Samples<T>& x_;
  Samples<T>& y_;
  const int64_t* self_;
  const bool symmetric_, two_sided_;
  const int64_t layers_;
  int64_t panel_;
  Interruptions interruptions_;
  int64_t block_, square_rows_, square_cols_, layer_size_, layer_ = 0;
  bool upper_ = false;
  std::vector<int64_t> panels_;
  Scratch<T> scores_;
  std::vector<std::vector<SinglePair<T>>> close_;  // of each tile of a square
  std::vector<std::unique_ptr<uint8_t[]>> kinds_;  // likewise, see ScoreTile
  std::vector<double> derivatives_;                // likewise
  Scratch<T> partial_[2];
};

}  // namespace fastpair
