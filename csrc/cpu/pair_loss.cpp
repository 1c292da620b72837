// fastpair::pair_loss on the CPU: a loss over all pairs, and its gradients, from sweeps over the tiles of the score
// matrix. No tile outlives its visit unless all of them fit the memory budget.
//
// Samples are sorted by label first, so that the positives of a row are one stretch of columns and no loop over pairs
// looks at a label. Where the references are the anchors, only tiles on and above the diagonal are computed: such a
// tile stands for its mirror image too, and with H = G + G^T the gradient is H X. Each block of gradient rows is
// written by one task in a fixed order, so that results are the same bits from run to run.
//
// Cost in units of 2nmd flops, with references = anchors: 0.5 for the scores + 1 for the gradient.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/samples.h"

namespace fastpair {
namespace {

// Scores are visited in squares of SQUARE x SQUARE, and kept between the sweeps where one square holds them all: 16
// MiB, which a third-level cache can hold and which serves call after call.
constexpr int64_t SQUARE = 2048;
constexpr int64_t KEPT_SCORES = SQUARE * SQUARE;
// The most rows and columns of a tile: it stays in the second-level cache while it is worked on.
constexpr int64_t MAX_BLOCK = 256;

// What each anchor's terms add up to.
struct Totals {
  std::vector<double> pos, neg, pos_count, neg_count;
  explicit Totals(int64_t n) : pos(n), neg(n), pos_count(n), neg_count(n) {}
};

template <typename T>
class PairSweep {
 public:
  PairSweep(const PairKernels<T>& loss, const std::vector<double>& params, const Distance& distance,
            Samples<T>& anchors, Samples<T>& references)
      : loss_(loss),
        params_(params),
        distance_(distance),
        x_(anchors),
        y_(references),
        symmetric_(&anchors == &references),
        totals(anchors.n),
        pos_begin_(anchors.n),
        pos_end_(anchors.n) {
    for (int64_t i = 0; i < x_.n; ++i) {
      const auto stretch = std::equal_range(y_.labels.begin(), y_.labels.end(), x_.labels[i]);
      pos_begin_[i] = stretch.first - y_.labels.begin();
      pos_end_[i] = stretch.second - y_.labels.begin();
    }
    const bool kept = keeps_scores();
    block_ = task_length(kept ? std::max(x_.n, y_.n) : SQUARE, MAX_BLOCK);
    square_rows_ = kept ? round_up(x_.n) : SQUARE;
    square_cols_ = kept ? round_up(y_.n) : SQUARE;
    // An odd number of cache lines between rows: a power of two would map them all to a few sets of the cache.
    ld_ = square_cols_ + (square_cols_ / 16 % 2 == 0 ? 16 : 0);
    scores_ = Scratch<T>(square_rows_ * ld_);
    partial_[0] = Scratch<T>(CHANNELS * blocks(square_cols_) * square_rows_);
    partial_[1] = Scratch<T>(CHANNELS * blocks(square_rows_) * square_cols_);
  }

  // In whole tiles of the largest size: with few anchors a row of tiles is mostly padding.
  bool keeps_scores() const {
    const auto padded = [](int64_t n) { return (n + MAX_BLOCK - 1) / MAX_BLOCK * MAX_BLOCK; };
    return padded(x_.n) * padded(y_.n) <= KEPT_SCORES;
  }

  struct Pass {
    bool compute_scores = true;
    bool add_totals = false;
    const Weights<T>* weights = nullptr;  // null: no gradient
    bool only_positives = false;          // tiles without positives are passed over
  };

  // Visits every pair once. Gradients are added to those of the samples that have them.
  void run(const Pass& pass) {
    for (int64_t top = 0; top < x_.n; top += square_rows_) {
      for (int64_t left = symmetric_ ? top : 0; left < y_.n; left += square_cols_) {
        visit_square({top, std::min(square_rows_, x_.n - top), left, std::min(square_cols_, y_.n - left)}, pass);
      }
    }
  }

 private:
  static constexpr int CHANNELS = 5;  // four sums, and the sums of the slopes

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
    const int64_t first = s.top + I * block_, last = std::min(first + block_, s.top + s.rows) - 1;
    const int64_t begin = s.left + J * block_, end = std::min(begin + block_, s.left + s.cols);
    // Sorted labels: the stretches of the tile's rows follow each other.
    return pos_begin_[first] < end && pos_end_[last] > begin;
  }

  T* tile_scores(int64_t I, int64_t J) const { return scores_.get() + I * block_ * ld_ + J * block_; }

  // Sums for the samples [at, at + block) of one side that come from block `other` of the other side.
  T* partial(int side, int channel, int64_t other, int64_t at) const {
    const int64_t others = blocks(side == 0 ? square_cols_ : square_rows_);
    return partial_[side].get() + (channel * others + other) * (side == 0 ? square_rows_ : square_cols_) + at;
  }
  Sums<T> partial_sums(int side, int64_t other, int64_t at) const {
    return {partial(side, 0, other, at), partial(side, 1, other, at), partial(side, 2, other, at),
            partial(side, 3, other, at)};
  }

  void visit_square(const Square& s, const Pass& pass) {
    // On the diagonal both sides are the same samples: a block gets sums from the tiles right of it by its rows, and
    // from those above it by its columns.
    const int col_side = on_diagonal(s) ? 0 : 1;
    const int64_t row_blocks = blocks(s.rows), col_blocks = blocks(s.cols);
    for (int side = 0; side <= col_side; ++side) {
      std::memset(partial_[side].get(), 0, (partial(side, CHANNELS, 0, 0) - partial_[side].get()) * sizeof(T));
    }
    std::vector<std::pair<int64_t, int64_t>> tiles;
    for (int64_t I = 0; I < row_blocks; ++I) {
      for (int64_t J = 0; J < col_blocks; ++J) {
        if (visited(s, I, J, pass)) tiles.emplace_back(I, J);
      }
    }
    parallel_for(tiles.size(), [&](int64_t t) { visit_tile(s, tiles[t].first, tiles[t].second, col_side, pass); });

    collect(s.top, s.rows, 0, col_blocks, pass);
    if (col_side == 1) collect(s.left, s.cols, 1, row_blocks, pass);
    if (pass.weights) add_gradients(s, pass);
  }

  void visit_tile(const Square& s, int64_t I, int64_t J, int col_side, const Pass& pass) {
    const int64_t at_row = I * block_, at_col = J * block_;
    Tile<T> tile;
    tile.scores = tile_scores(I, J);
    tile.ld = ld_;
    tile.row = s.top + at_row;
    tile.rows = std::min(block_, s.rows - at_row);
    tile.col = s.left + at_col;
    tile.cols = std::min(block_, s.cols - at_col);
    tile.pos_begin = pos_begin_.data();
    tile.pos_end = pos_end_.data();
    tile.self_pairs = symmetric_;
    const bool mirrored = symmetric_ && tile.row != tile.col;

    if (pass.compute_scores) {
      compute_scores(x_, tile.row, tile.rows, y_, tile.col, tile.cols, distance_.metric, tile.scores, tile.ld);
    }
    if (pass.add_totals) {
      const Sums<T> of_cols = partial_sums(col_side, I, at_col);
      loss_.sums(tile, params_.data(), distance_.similarity, partial_sums(0, J, at_row), mirrored ? &of_cols : nullptr);
    }
    if (pass.weights) {
      // Every tile is all that its rows and columns get from each other, save that a tile on the diagonal holds both
      // (i, j) and (j, i): there the weights of both meet in each entry, and its column sums are its row sums.
      T* row_sums = partial(0, 4, J, at_row);
      const bool diagonal_tile = symmetric_ && !mirrored;
      std::vector<T> unused(diagonal_tile ? tile.cols : 0);
      T* col_sums = diagonal_tile ? unused.data() : partial(col_side, 4, I, at_col);
      loss_.slopes(tile, params_.data(), distance_.metric, distance_.similarity, *pass.weights, symmetric_, row_sums,
                   col_sums);
    }
  }

  // Adds up what the tiles of a square left for the samples [begin, begin + count) of one side, in a fixed order.
  void collect(int64_t begin, int64_t count, int side, int64_t others, const Pass& pass) {
    Samples<T>& samples = side == 0 || symmetric_ ? x_ : y_;
    const auto total = [&](int channel, int64_t i) {
      double sum = 0;
      for (int64_t other = 0; other < others; ++other) sum += partial(side, channel, other, i)[0];
      return sum;
    };
    parallel_rows(count, CHANNELS * others, [&](int64_t i) {
      if (pass.add_totals && (side == 0 || symmetric_)) {
        totals.pos[begin + i] += total(0, i);
        totals.neg[begin + i] += total(1, i);
        totals.pos_count[begin + i] += total(2, i);
        totals.neg_count[begin + i] += total(3, i);
      }
      if (pass.weights && !samples.slope_sums.empty()) samples.slope_sums[begin + i] += T(total(4, i));
    });
  }

  void add_gradients(const Square& s, const Pass& pass) {
    const int64_t row_blocks = blocks(s.rows), col_blocks = blocks(s.cols), d = x_.d;
    const bool diagonal = on_diagonal(s);
    Samples<T>& col_samples = symmetric_ ? x_ : y_;
    const int64_t row_tasks = x_.has_gradient ? row_blocks : 0;
    const int64_t col_tasks = !diagonal && col_samples.has_gradient ? col_blocks : 0;
    parallel_for(row_tasks + col_tasks, [&](int64_t task) {
      if (task < row_tasks) {
        const int64_t I = task, at = I * block_, rows = std::min(block_, s.rows - at);
        T* out = x_.gradient.get() + (s.top + at) * d;
        // Below the diagonal the tile is that of the mirrored place.
        for_runs(
            diagonal ? I : 0, col_blocks, s.cols, [&](int64_t J) { return visited(s, I, J, pass); },
            [&](int64_t from, int64_t length) {
              add_products(Op::None, rows, length, scores_.get() + at * ld_ + from, ld_, y_, s.left + from, out);
            });
        for_runs(
            0, diagonal ? I : 0, s.rows, [&](int64_t J) { return visited(s, J, I, pass); },
            [&](int64_t from, int64_t length) {
              add_products(Op::Transpose, rows, length, scores_.get() + from * ld_ + at, ld_, x_, s.top + from, out);
            });
      } else {
        const int64_t J = task - row_tasks, at = J * block_, cols = std::min(block_, s.cols - at);
        T* out = col_samples.gradient.get() + (s.left + at) * d;
        for_runs(
            0, row_blocks, s.rows, [&](int64_t I) { return visited(s, I, J, pass); },
            [&](int64_t from, int64_t length) {
              add_products(Op::Transpose, cols, length, scores_.get() + from * ld_ + at, ld_, x_, s.top + from, out);
            });
      }
    });
  }

  // f(first, length) for each unbroken run of the blocks [begin, end) that are wanted, in samples of a side of `limit`.
  template <typename Wanted, typename F>
  void for_runs(int64_t begin, int64_t end, int64_t limit, const Wanted& wanted, const F& f) const {
    for (int64_t b = begin; b < end; ++b) {
      if (!wanted(b)) continue;
      const int64_t first = b;
      while (b + 1 < end && wanted(b + 1)) ++b;
      f(first * block_, std::min((b + 1) * block_, limit) - first * block_);
    }
  }

  const PairKernels<T>& loss_;
  const std::vector<double>& params_;
  const Distance distance_;
  Samples<T>& x_;
  Samples<T>& y_;
  const bool symmetric_;

 public:
  Totals totals;

 private:
  std::vector<int64_t> pos_begin_, pos_end_;
  int64_t block_, square_rows_, square_cols_, ld_;
  Scratch<T> scores_;
  Scratch<T> partial_[2];
};

template <typename T>
const PairKernels<T>& find_loss(const std::string& name, const std::vector<double>& params) {
  const Kernels<T>& k = kernels<T>();
  for (int i = 0; i < k.pair_loss_count; ++i) {
    const PairKernels<T>& loss = k.pair_losses[i];
    if (loss.name != name) continue;
    STD_TORCH_CHECK(int64_t(params.size()) == loss.param_count, "params must have ", loss.param_count,
                    " elements, got ", params.size());
    return loss;
  }
  STD_TORCH_CHECK(false, "no CPU kernel for the loss ", name);
}

template <typename T>
struct WeightVectors {
  std::vector<T> pos, neg;
  WeightVectors(int64_t n, T pos_weight, T neg_weight) : pos(n, pos_weight), neg(n, neg_weight) {}
  Weights<T> view() const { return {pos.data(), neg.data()}; }
};

using Results = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
Results compute(const Tensor& embeddings, const std::optional<Tensor>& ref_emb, const Tensor& labels,
                const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& row_grad,
                const PairKernels<T>& loss, const std::vector<double>& params, const Distance& distance,
                const std::string& reduction, bool grad_embeddings, bool grad_ref) {
  Samples<T> anchors(embeddings, &labels);
  std::optional<Samples<T>> other;
  if (ref_emb) other.emplace(*ref_emb, &*ref_labels);
  Samples<T>& references = other ? *other : anchors;
  const int64_t n = anchors.n;

  const std::vector<T> center = distance.metric == Metric::Dot ? std::vector<T>() : center_of<T>(embeddings);
  anchors.load(embeddings, distance, center, grad_embeddings);
  if (other) other->load(*ref_emb, distance, center, grad_ref);
  const bool gradients = grad_embeddings || grad_ref;

  PairSweep<T> sweep(loss, params, distance, anchors, references);
  const Totals& totals = sweep.totals;
  const auto value_of_mean = [&](double pos_weight, double neg_weight) {
    return pos_weight * sum(totals.pos) + neg_weight * sum(totals.neg);
  };
  const auto finished = [&](Tensor value) {
    return Results(std::move(value), anchors.gradient_tensor(embeddings),
                   other ? other->gradient_tensor(*ref_emb) : new_tensor(embeddings, {0}, scalar_type<T>));
  };

  if (reduction == "none") {
    WeightVectors<T> weights(n, 0, 0);
    if (row_grad) {
      const std::vector<T> incoming = floating_vector<T>(*row_grad);
      for (int64_t i = 0; i < n; ++i) weights.pos[i] = weights.neg[i] = incoming[anchors.order[i]];
    }
    const Weights<T> view = weights.view();
    sweep.run({.add_totals = true, .weights = gradients ? &view : nullptr});
    std::vector<T> values(n);
    for (int64_t i = 0; i < n; ++i) values[anchors.order[i]] = T(totals.pos[i] + totals.neg[i]);
    return finished(new_vector(embeddings, values));
  }
  if (reduction == "sum" || !loss.mean_over_terms) {
    const double weight = reduction == "sum" ? 1.0 : 1.0 / static_cast<double>(std::max<int64_t>(n, 1));
    const WeightVectors<T> weights(n, T(weight), T(weight));
    const Weights<T> view = weights.view();
    sweep.run({.add_totals = true, .weights = gradients ? &view : nullptr});
    return finished(new_scalar(embeddings, T(value_of_mean(weight, weight))));
  }

  // A mean over terms: how much each counts is known when all have been seen. With the scores kept, the gradient
  // follows in a second sweep over them. Otherwise the one sweep also adds up the negatives' gradient, still unscaled,
  // and a second one over the few tiles that have positives adds theirs.
  const bool kept = sweep.keeps_scores();
  const WeightVectors<T> unscaled(n, 0, 1);
  const Weights<T> unscaled_view = unscaled.view();
  sweep.run({.add_totals = true, .weights = gradients && !kept ? &unscaled_view : nullptr});
  const double pos_weight = 1 / std::max(sum(totals.pos_count), 1.0);
  const double neg_weight = 1 / std::max(sum(totals.neg_count), 1.0);
  if (gradients && kept) {
    const WeightVectors<T> weights(n, T(pos_weight), T(neg_weight));
    const Weights<T> view = weights.view();
    sweep.run({.compute_scores = false, .weights = &view});
  } else if (gradients) {
    if (grad_embeddings) anchors.scale_gradient(T(neg_weight));
    if (grad_ref) references.scale_gradient(T(neg_weight));
    const WeightVectors<T> weights(n, T(pos_weight), 0);
    const Weights<T> view = weights.view();
    sweep.run({.weights = &view, .only_positives = true});
  }
  return finished(new_scalar(embeddings, T(value_of_mean(pos_weight, neg_weight))));
}

// The Python layer says what is wrong in the user's words; this keeps a direct call of the operator from reading beyond
// the data.
void check(const Tensor& embeddings, const std::optional<Tensor>& ref_emb, const Tensor& labels,
           const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& row_grad, bool grad_ref) {
  check_matrix("embeddings", embeddings);
  check_length("labels", labels, embeddings.size(0));
  STD_TORCH_CHECK(ref_emb.has_value() == ref_labels.has_value(), "ref_emb and ref_labels go together");
  STD_TORCH_CHECK(!grad_ref || ref_emb.has_value(), "grad_ref needs ref_emb");
  if (ref_emb) {
    check_like("ref_emb", *ref_emb, embeddings);
    check_length("ref_labels", *ref_labels, ref_emb->size(0));
  }
  if (row_grad) check_length("row_grad", *row_grad, embeddings.size(0));
}

Results pair_loss(const Tensor& embeddings, const std::optional<Tensor>& ref_emb, const Tensor& labels,
                  const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& row_grad,
                  const std::string& loss, const std::vector<double>& params, const std::string& distance,
                  const std::string& reduction, bool grad_embeddings, bool grad_ref) {
  check(embeddings, ref_emb, labels, ref_labels, row_grad, grad_ref);
  return with_compute_type(embeddings, [&](auto zero) {
    using T = decltype(zero);
    return compute<T>(embeddings, ref_emb, labels, ref_labels, row_grad, find_loss<T>(loss, params), params,
                      distance_named(distance), reduction, grad_embeddings, grad_ref);
  });
}

}  // namespace
}  // namespace fastpair

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) { m.impl("pair_loss", TORCH_BOX(&fastpair::pair_loss)); }
