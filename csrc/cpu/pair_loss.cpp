// fastpair::pair_loss on the CPU: a loss over all pairs, and its gradients.
//
// A first sweep over the score matrix pools the terms of each anchor's positives and negatives; these statistics give
// the anchors' losses and the weights of the pairs in the gradient, which a second sweep computes. Where the weights
// are known beforehand, as for sums, one sweep does both. Samples are sorted by label first, so that the positives of a
// row are one range of columns and no loop over pairs reads a label.
//
// Cost in units of 2nmd flops, with references = anchors: 0.5 for the scores, and again for a second sweep if they were
// not kept, + 1 for the gradient.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "cpu/listed_pairs.h"
#include "cpu/listed_sweep.h"
#include "cpu/pair_sweep.h"
#include "cpu/rows.h"
#include "cpu/samples.h"
#include "cpu/simd/added_loss.h"
#include "cpu/simd/kernels.h"
#include "cpu/triplets.h"

namespace fastpair {
namespace {

template <typename T>
const PairKernels<T>& find_loss(const PairLossArguments& args) {
  const std::span losses(kernels<T>().pair_losses, kernels<T>().pair_loss_count);
  const auto found = std::ranges::find(losses, args.loss, &PairKernels<T>::name);
  const PairKernels<T>* loss = found != losses.end() ? &*found : added_loss<T>(args.loss.c_str(), args.distance.metric);
  STD_TORCH_CHECK(loss != nullptr, "no CPU kernel for the loss ", args.loss);
  args.check_params(loss->param_count);
  args.check_scalars("anchor_scalars", args.anchor_scalars, loss->anchor_scalars, args.embeddings);
  args.check_scalars("ref_scalars", args.ref_scalars, loss->ref_scalars,
                     args.ref_emb ? *args.ref_emb : args.embeddings);
  const bool learns = loss->learned > 0 || loss->scale > 0;
  STD_TORCH_CHECK(learns || !(args.learned || args.grad_learned), "no parameter of ", args.loss, " learns");
  STD_TORCH_CHECK(loss->pool[Positive] != Pool::Max || args.prefixes.empty(), args.loss, " must have no prefixes");
  STD_TORCH_CHECK(loss->bias == 0 || args.distance.metric == Metric::Dot, args.loss, " is a loss of dot products");
  return *loss;
}

// What the exponentials and logarithms of an anchor take, in operations of the loops over rows.
constexpr int64_t ANCHOR_WORK = 512;

// What a sum is divided by for a mean over `count`.
double divisor(double count) { return count > 0 ? count : 1; }

// The arguments of a call as the kernels take them.
template <typename T>
struct Batch {
  const PairLossArguments& args;
  Samples<T> x;
  std::optional<Samples<T>> y;
  std::vector<int64_t> selves;  // the sorted position of the reference that sorted anchor i is itself, -1 for none
  std::vector<T> weights, row_grad, anchor_scalars, ref_scalars;

  // `learns_by_rows`: whether the gradients by scale and bias are wanted, which are made of those by the rows.
  explicit Batch(const PairLossArguments& arguments, bool learns_by_rows = false)
      : args(arguments),
        x(args.embeddings, single(args.labels)),
        y(args.ref_emb ? std::optional<Samples<T>>(std::in_place, *args.ref_emb, single(*args.ref_labels))
                       : std::nullopt),
        weights(args.weights ? floating_vector<T>(*args.weights) : std::vector<T>()),
        row_grad(args.row_grad ? floating_vector<T>(*args.row_grad) : std::vector<T>()) {
    const std::vector<T> center = center_of<T>(args.embeddings, args.distance);
    // A product changes with the rows of either side, a distance with both.
    const bool distances = args.distance.metric != Metric::Dot, by_x = learns_by_rows && (distances || !args.grad_ref);
    x.load(args.embeddings, args.distance, center, args.grad_embeddings || by_x, learns_by_rows, args.prefixes);
    if (y) {
      y->load(*args.ref_emb, args.distance, center, args.grad_ref || (learns_by_rows && distances), learns_by_rows,
              args.prefixes);
    }
    if (args.anchor_scalars) anchor_scalars = sorted_rows(*args.anchor_scalars, x.order);
    if (args.ref_scalars) ref_scalars = sorted_rows(*args.ref_scalars, references().order);
    find_selves();
  }

  SampleScalars<T> scalars_of(const Samples<T>& side) {
    return {&side == &x ? anchor_scalars.data() : nullptr, &side == &references() ? ref_scalars.data() : nullptr,
            side.n};
  }

  // The relation of the anchors to the references.
  Relation relation() { return Relation(args, x, references(), self()); }

  bool gradients() const { return x.has_gradient || (y && y->has_gradient); }
  Samples<T>& references() { return y ? *y : x; }
  const int64_t* self() const { return selves.empty() ? nullptr : selves.data(); }

  // The user's weight of sorted anchor i.
  double given_weight(int64_t i) const { return weights.empty() ? 1 : weights[x.order[i]]; }

  // The weight, in a sum, of the part of sorted anchor i's loss that comes from its pairs of one kind.
  double weight(const Samples<T>& side, int64_t i, Kind kind, bool separate_means) const {
    const double share = args.two_sided ? 0.5 : given_weight(i);
    if (row_grad.empty()) return share;
    if (args.reduction == Reduction::Totals) return share * row_grad[kind == Negative && separate_means ? 2 : 0];
    return share * row_grad[side.order[i]];
  }

  // The weights of the anchors' triplets.
  std::vector<T> triplet_weights() const {
    std::vector<T> out(x.n);
    for (int64_t i = 0; i < x.n; ++i) out[i] = T(weight(x, i, Positive, false));
    return out;
  }

  // How much n anchors count.
  double total_weight(int64_t n) const {
    return weights.empty() ? n : std::accumulate(weights.begin(), weights.end(), 0.0);
  }

  void scale_gradients(double factor) {
    if (x.has_gradient) x.scale_gradient(T(factor));
    if (y && y->has_gradient) y->scale_gradient(T(factor));
  }

  // Of the pairs' derivatives g by their closenesses s: the sums of g s and, for products, of g. When all rows grow, a
  // closeness does so by its degree, and products also when the rows of one side do.
  std::array<double, 2> closeness_sums() const {
    const bool distances = args.distance.metric != Metric::Dot, one_side = y && !distances;
    std::array<double, 2> sums{};
    for (const Samples<T>* side : {&x, y ? &*y : nullptr}) {
      if (side == nullptr || !side->has_gradient) continue;
      sums[0] += side->along_rows();
      sums[1] += std::accumulate(side->slope_sums.begin(), side->slope_sums.end(), 0.0);
      if (one_side) return sums;
    }
    const double degree = args.distance.metric == Metric::Euclidean ? 1 : 2;
    return {sums[0] / degree, sums[1] / degree};
  }

  // `values`: the losses of the rows, for Reduction::None. `learned`: the gradient by the parameters that learn.
  PairLossResults results(double value, const std::array<double, 4>& totals, const std::vector<T>& values,
                          const std::vector<double>& learned = {}) const {
    return {args.reduction == Reduction::None     ? new_vector(values)
            : args.reduction == Reduction::Totals ? new_vector(std::vector<T>(totals.begin(), totals.end()))
                                                  : new_scalar(T(value)),
            x.gradient_tensor(args.grad_embeddings),
            y ? y->gradient_tensor(args.grad_ref) : new_tensor({0}, scalar_type<T>),
            learned.empty() ? std::nullopt : std::optional(new_vector(std::vector<T>(learned.begin(), learned.end())))};
  }

 private:
  // The labels that samples are sorted by.
  static const Tensor* single(const Tensor& labels) { return labels.dim() == 1 ? &labels : nullptr; }

  // The rows of a matrix (K, n), their elements in the order given.
  static std::vector<T> sorted_rows(const Tensor& matrix, const std::vector<int64_t>& order) {
    const int64_t down = matrix.stride(0), across = matrix.stride(1);
    std::vector<T> out;
    with_floating(matrix, [&](const auto data) {
      for (int64_t k = 0; k < matrix.size(0); ++k) {
        for (const int64_t i : order) out.push_back(static_cast<T>(data[k * down + i * across]));
      }
    });
    return out;
  }

  void find_selves() {
    if (!y) {
      selves.resize(x.n);
      std::iota(selves.begin(), selves.end(), 0);
    } else if (args.self_index) {
      const std::vector<int64_t> rows = integer_vector(*args.self_index);
      std::vector<int64_t> position(y->n);
      for (int64_t j = 0; j < y->n; ++j) position[y->order[j]] = j;
      selves.resize(x.n);
      for (int64_t i = 0; i < x.n; ++i) {
        const int64_t row = rows[x.order[i]];
        STD_TORCH_CHECK(row >= -1 && row < y->n, "self_index must hold rows of ref_emb or -1, got ", row);
        selves[i] = row < 0 ? -1 : position[row];
      }
    }
  }
};

// The results of a loss over triplets, given the sums of each anchor in the order of the samples.
template <typename T>
PairLossResults of_triplets(TripletSums sums, Batch<T>& batch) {
  Samples<T>& x = batch.x;
  for (int64_t i = 0; i < x.n; ++i) sums.losses[i] *= batch.given_weight(i), sums.counts[i] *= batch.given_weight(i);
  const double loss = sum(sums.losses), count = sum(sums.counts);
  const double share = batch.args.reduction == Reduction::Mean ? 1 / divisor(count) : 1;
  if (share != 1) batch.scale_gradients(share);
  std::vector<T> values(x.n);
  for (int64_t i = 0; i < x.n; ++i) values[x.order[i]] = T(sums.losses[i]);
  return batch.results(share * loss, {loss, count, 0, 0}, values);
}

// A sum over triplets is not one over pairs: an anchor's row of scores is needed as a whole.
template <typename T>
PairLossResults triplet_loss(const TripletTerms& terms, Batch<T> batch) {
  const std::vector<T> weights = batch.triplet_weights();
  return of_triplets(sweep_triplets<T>(terms, batch.args.distance.metric, batch.x, batch.references(), batch.relation(),
                                       batch.self(), batch.gradients() ? weights.data() : nullptr),
                     batch);
}

template <typename T>
PairLossResults listed_triplet_loss(const TripletTerms& terms, const PairLists& lists, bool swap, Batch<T> batch) {
  const std::vector<T> weights = batch.triplet_weights();
  return of_triplets(sweep_listed_triplets<T>(terms, batch.args.distance.metric, batch.x, batch.references(), lists,
                                              swap, batch.gradients() ? weights.data() : nullptr),
                     batch);
}

// A loss whose terms belong to pairs.
template <typename T>
class PairLoss {
 public:
  // `listed`: the pairs, unless the arguments say what they are.
  PairLoss(const PairKernels<T>& loss, const PairLossArguments& args, const ListedKinds* listed = nullptr)
      : loss_(loss),
        args_(args),
        params_(parameters(loss, args)),
        learns_by_terms_(args.grad_learned && loss.learned > 0),
        learns_by_rows_(args.grad_learned && loss.learned == 0),
        batch_(args, learns_by_rows_),
        listed_(listed),
        rows_(loss, batch_.x, listed ? listed->relation : batch_.relation(), batch_.scalars_of(batch_.x)),
        derivatives_(args.grad_learned ? loss.param_count : 0),
        counts_(rows_.layers(), {1, 1}) {
    if (!batch_.y) return;
    other_.emplace(loss, *batch_.y, args.two_sided ? Relation(args, *batch_.y, batch_.x, nullptr, true) : Relation(),
                   batch_.scalars_of(*batch_.y));
  }

  PairLossResults run() {
    AnchorSide<T>& others = other_ ? *other_ : rows_;
    if (listed_) return run(ListedSweep<T>(loss_, params_, args_.distance.metric, rows_, others, *listed_));
    return run(PairSweep<T>(loss_, params_, args_.distance.metric, rows_, others, batch_.self(), args_.two_sided));
  }

 private:
  static std::vector<double> parameters(const PairKernels<T>& loss, const PairLossArguments& args) {
    std::vector<double> values = args.learned ? floating_vector<double>(*args.learned) : args.params;
    if (args.grad_learned && loss.learned == 0) values[loss.scale - 1] = learnable_scale(values[loss.scale - 1]);
    return values;
  }

  template <typename Sweep>
  PairLossResults run(Sweep sweep) {
    const bool gradients = batch_.gradients();
    const bool kept = sweep.keeps_scores();
    const bool means_over_terms = args_.reduction == Reduction::Mean && loss_.separate_means;

    if (loss_.is_sum && !(means_over_terms && kept) && !learns_by_terms_ && args_.prefixes.empty()) {
      // The weights of the pairs are known beforehand, except for means over terms: there the negatives' gradient is
      // summed unscaled, and a second sweep over the few tiles that have positives adds theirs.
      if (gradients) set_sums_weights(means_over_terms ? 0 : 1);
      sweep.run({.add = {true, true}, .gradient = gradients});
      finish();
      if (gradients && means_over_terms) {
        batch_.scale_gradients(1 / counts_[0][Negative]);
        for (AnchorSide<T>* side : sides()) {
          for (int64_t i = 0; i < side->samples.n; ++i) {
            side->constant[Positive][i] = T(weight(*side, i, Positive) / counts_[0][Positive]);
          }
          std::ranges::fill(side->constant[Negative], T(0));
        }
        sweep.run({.gradient = true, .only_positives = true});
      }
      return results();
    }
    const int64_t panel = kept || !gradients || means_over_terms || learns_by_terms_ ? 0 : sweep.panel();
    if (panel > 0 && loss_.pool[Positive] != Pool::Max) {
      for (int64_t top = 0; top < batch_.x.n; top += panel) {
        const int64_t end = std::min(top + panel, batch_.x.n);
        pool([&](const Pass& pass) { sweep.run_panel(pass, top); }, true, top, end);
        set_weights(rows_, 0, top, anchors_of(rows_, 0, top, end));
        sweep.run_panel({.compute_scores = false, .gradient = true}, top);
      }
      finish();
      if (counts_[0][Positive] != 1) batch_.scale_gradients(1 / counts_[0][Positive]);
      return results();
    }
    pool([&](const Pass& pass) { sweep.run(pass); }, kept, 0, rows_.layers() * batch_.x.n);
    finish();
    if (learns_by_terms_) add_anchor_derivatives();
    if (gradients && loss_.pool[Positive] == Pool::Max) {
      add_extreme_pairs();
    } else if (gradients || learns_by_terms_) {
      sweep.run(
          {.compute_scores = !kept, .gradient = gradients, .learned = learns_by_terms_ ? &derivatives_ : nullptr});
    }
    return results();
  }

  // Makes the statistics of the anchors [begin, end) by passes over their pairs, of which later ones may find the
  // scores kept.
  template <typename Visit>
  void pool(const Visit& visit, bool kept, int64_t begin, int64_t end) {
    if (!loss_.reads_negatives_lse) return visit({.add = {true, true}});
    visit({.add = {true, false}});
    for (AnchorSide<T>* side : sides()) {
      for (int64_t i = begin; i < end; ++i) {
        side->negatives_lse[i] = T(statistic(*side, Negative, i).log_sum_exp());
      }
    }
    visit({.compute_scores = !kept, .add = {false, true}, .only_positives = true});
  }

  PairLossResults results() {
    if (learns_by_rows_) {
      const double scale = params_[loss_.scale - 1];
      const auto [by_scale, by_bias] = batch_.closeness_sums();
      derivatives_[loss_.scale - 1] = by_scale / scale;
      if (loss_.bias > 0) derivatives_[loss_.bias - 1] = by_bias / scale;
    }
    return batch_.results(value_, totals_, values_, derivatives_);
  }

  // The sides whose samples are anchors.
  std::vector<AnchorSide<T>*> sides() {
    return args_.two_sided ? std::vector<AnchorSide<T>*>{&rows_, &*other_} : std::vector<AnchorSide<T>*>{&rows_};
  }

  // `i`: layer * n + anchor.
  Statistic statistic(const AnchorSide<T>& side, Kind kind, int64_t i) const {
    const double pairs = side.relation.pairs[kind][i % side.samples.n];
    const auto& [a, b, c] = side.totals[kind][i].of;
    switch (loss_.pool[kind]) {
      case Pool::Sum:
        return {.pairs = pairs, .value = a, .nonzero = b, .by_negatives_lse = c};
      case Pool::LogSumExp:
        // Numbers of rows may leave pairs out: terms that are all minus infinity are then as if there were none.
        return {.pairs = b == 0 && loss_.anchor_scalars + loss_.ref_scalars > 0 ? 0 : pairs,
                .value = a,
                .log_sum = b == 0 ? 0 : std::log(b),
                .sum = c};
      case Pool::Max:
        return {.pairs = pairs, .value = a};
    }
    __builtin_unreachable();
  }

  double weight(const AnchorSide<T>& side, int64_t i, Kind kind) const {
    return batch_.weight(side.samples, i, kind, loss_.separate_means);
  }

  // Sets the weights of a loss that is a sum, before the sweep. `positives` is a factor of the positives' weights.
  void set_sums_weights(double positives) {
    for (AnchorSide<T>* side : sides()) {
      const bool mean = args_.reduction == Reduction::Mean && !loss_.separate_means;
      const double count = mean ? divisor(batch_.total_weight(side->samples.n)) : 1;
      for (int64_t i = 0; i < side->samples.n; ++i) {
        side->constant[Positive][i] = T(positives * weight(*side, i, Positive) / count);
        side->constant[Negative][i] = T(weight(*side, i, Negative) / count);
      }
    }
  }

  // Computes, from the statistics, the anchors' losses, the result, and the weights for the gradient sweep.
  void finish() {
    values_.assign(args_.reduction == Reduction::None ? batch_.x.n : 0, 0);
    value_ = 0;
    for (AnchorSide<T>* side : sides()) {
      for (int64_t layer = 0; layer < side->layers(); ++layer) finish(*side, layer);
    }
  }

  double layer_weight(int64_t layer) const { return args_.prefixes.empty() ? 1 : args_.prefix_weights[layer]; }

  void finish(AnchorSide<T>& side, int64_t layer) {
    const int64_t n = side.samples.n;
    const double share = (args_.two_sided ? 0.5 : 1) * layer_weight(layer);
    std::vector<Anchor> anchors = anchors_of(side, layer, 0, n);
    if (!batch_.weights.empty()) {
      for (int64_t i = 0; i < n; ++i) {
        const double given = batch_.given_weight(i);
        anchors[i].loss *= given, anchors[i].count *= given;
        anchors[i].neg_loss *= given, anchors[i].neg_count *= given;
      }
    }
    totals_ = {};
    for (const Anchor& a : anchors) {
      totals_[0] += a.loss, totals_[1] += a.count;
      totals_[2] += a.neg_loss, totals_[3] += a.neg_count;
    }
    std::array<double, 2>& counts = counts_[layer];
    if (args_.reduction == Reduction::Mean) {
      counts[Positive] = divisor(totals_[1]);
      counts[Negative] = loss_.separate_means ? divisor(totals_[3]) : counts[Positive];
    }
    value_ += share * (totals_[0] / counts[Positive] + totals_[2] / counts[Negative]);
    set_weights(side, layer, 0, anchors);
    for (int64_t i = 0; i < n && args_.reduction == Reduction::None; ++i) {
      values_[side.samples.order[i]] += T(share * (anchors[i].loss + anchors[i].neg_loss));
    }
  }

  // The losses of the anchors [begin, end), from their statistics.
  std::vector<Anchor> anchors_of(const AnchorSide<T>& side, int64_t layer, int64_t begin, int64_t end) const {
    const int64_t first = layer * side.samples.n + begin;
    std::vector<Anchor> anchors(end - begin);
    parallel_rows(end - begin, ANCHOR_WORK, [&](int64_t i) {
      anchors[i] = loss_.anchor(params_.data(), scalars_of(side, begin + i).data(),
                                statistic(side, Positive, first + i), statistic(side, Negative, first + i));
    });
    return anchors;
  }

  // Sets the weights of the pairs of the anchors from `begin` on.
  void set_weights(AnchorSide<T>& side, int64_t layer, int64_t begin, const std::vector<Anchor>& anchors) {
    const int64_t first = layer * side.samples.n + begin;
    parallel_rows(anchors.size(), ANCHOR_WORK, [&](int64_t i) {
      for_kinds([&](Kind kind) {
        const double share = layer_weight(layer) * weight(side, begin + i, kind) / counts_[layer][kind];
        side.set_weight(first + i, kind, kind == Positive ? anchors[i].pos : anchors[i].neg,
                        statistic(side, kind, first + i), share);
      });
    });
  }

  // The numbers of anchor i that the formula reads.
  std::vector<double> scalars_of(const AnchorSide<T>& side, int64_t i) const {
    std::vector<double> out(loss_.anchor_scalars);
    for (size_t k = 0; k < out.size(); ++k) out[k] = side.scalars.anchor[k * side.scalars.n + i];
    return out;
  }

  // The gradient by the parameters that learn, as the anchors' losses read them beside their terms.
  void add_anchor_derivatives() {
    std::vector<double> parts[2];
    for_kinds([&](Kind kind) { parts[kind].resize(loss_.learned); });
    const int64_t n = batch_.x.n;
    for (int64_t i = 0; i < rows_.layers() * n; ++i) {
      loss_.anchor_derivatives(params_.data(), scalars_of(rows_, i % n).data(), statistic(rows_, Positive, i),
                               statistic(rows_, Negative, i), parts[Positive].data(), parts[Negative].data());
      for_kinds([&](Kind kind) {
        const double share = layer_weight(i / n) * weight(rows_, i % n, kind) / counts_[i / n][kind];
        for (int k = 0; k < loss_.learned; ++k) derivatives_[k] += share * parts[kind][k];
      });
    }
  }

  // The gradient of maxima: one positive and one negative per anchor.
  void add_extreme_pairs() {
    std::vector<SinglePair<T>> pairs;
    for (int64_t i = 0; i < batch_.x.n; ++i) {
      for_kinds([&](Kind kind) {
        const Total& total = rows_.totals[kind][i];
        if (total.of[1] == 0) return;
        // The terms are the closenesses or their negatives.
        const double term_slope = loss_.term_slope(params_.data(), kind, T(0));
        const double slope = term_slope * closeness_slope(args_.distance.metric, term_slope * total.of[0]);
        pairs.push_back({.row = i, .col = int64_t(total.of[1]) - 1, .slope = T(rows_.constant[kind][i] * slope)});
      });
    }
    Samples<T>&x = batch_.x, &y = batch_.references();
    x.start_gradient(), y.start_gradient();
    add_single_pairs(pairs, x, &SinglePair<T>::row, y, &SinglePair<T>::col);
    add_single_pairs(pairs, y, &SinglePair<T>::col, x, &SinglePair<T>::row);
  }

  const PairKernels<T>& loss_;
  const PairLossArguments& args_;
  const std::vector<double> params_;
  const bool learns_by_terms_, learns_by_rows_;
  Batch<T> batch_;
  const ListedKinds* listed_;
  AnchorSide<T> rows_;
  std::optional<AnchorSide<T>> other_;
  std::vector<double> derivatives_;  // by the parameters that learn
  double value_ = 0;
  std::vector<std::array<double, 2>> counts_;  // by layer, what the sums of both parts are divided by
  std::array<double, 4> totals_;               // sum and count of each part of the mean
  std::vector<T> values_;
};

PairLossResults pair_loss(const PairLossArguments& args) {
  const std::optional<TripletTerms> triplets = triplet_terms(args);
  STD_TORCH_CHECK(!triplets || args.prefixes.empty(), args.loss, " must have no prefixes");
  const int64_t references = (args.ref_emb ? *args.ref_emb : args.embeddings).size(0);
  // How many triplets there are, the shapes do not say.
  const int64_t work_of = triplets ? 64 : 1;
  return with_team(args.embeddings.size(0) * references * work_of, args.embeddings.size(1), [&] {
    return with_compute_type(args.embeddings, [&](auto zero) {
      using T = decltype(zero);
      return triplets ? triplet_loss(*triplets, Batch<T>(args)) : PairLoss<T>(find_loss<T>(args), args).run();
    });
  });
}

// The pairs of `lists` in place of those that labels make: see ListedPairLossCall in fastpair/backends/call.py.
PairLossResults of_lists(const PairLossArguments& args, const PairLists& lists, bool swap, bool repeats) {
  const std::optional<TripletTerms> triplets = triplet_terms(args);
  const int64_t n = args.embeddings.size(0), m = (args.ref_emb ? *args.ref_emb : args.embeddings).size(0);
  return with_compute_type(args.embeddings, [&](auto zero) {
    using T = decltype(zero);
    if (triplets) return listed_triplet_loss<T>(*triplets, lists, swap, Batch<T>(args));
    const PairKernels<T>& loss = find_loss<T>(args);
    ListedPairs pairs = ListedPairs::of(lists, Positive, n, m);
    const ListedKinds kinds(pairs, lists.others_of(Positive).size(), repeats);
    return PairLoss<T>(loss, args, &kinds).run();
  });
}

using Optional = std::optional<Tensor>;

// Labels of n samples whose pairs something else says.
Tensor equal_labels(int64_t n) {
  Tensor labels = new_tensor({n}, ScalarType::Char);
  std::memset(labels.mutable_data_ptr(), 0, n);
  return labels;
}

void add_to(Tensor& sum, const Tensor& other) {
  with_compute_type(sum, [&](auto zero) {
    using T = decltype(zero);
    T* to = static_cast<T*>(sum.mutable_data_ptr());
    const T* from = static_cast<const T*>(other.const_data_ptr());
    const int64_t d = sum.size(1);
    parallel_rows(sum.size(0), d, [&](int64_t i) { kernels<T>().add_to(to + i * d, from + i * d, d); });
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> listed_pair_loss(
    const Tensor& embeddings, const Optional& ref_emb, const Optional& learned, const Tensor& anchors,
    const Tensor& positives, const Optional& negative_anchors, const Tensor& negatives, const Optional& row_grad,
    const std::string& loss, const std::vector<double>& params, const std::string& distance, bool swap, bool repeats,
    const std::string& reduction, bool grad_embeddings, bool grad_ref, bool grad_learned, const Optional& weights,
    const Optional& anchor_scalars, const Optional& ref_scalars) {
  check_matrix("embeddings", embeddings);
  if (ref_emb) check_matrix("ref_emb", *ref_emb);
  const int64_t n = embeddings.size(0), m = (ref_emb ? *ref_emb : embeddings).size(0);
  const PairLists lists = pair_lists(anchors, positives, negative_anchors, negatives, n, m);
  const std::optional<Tensor> matrix = loss.ends_with("triplet") ? std::nullopt : matrix_of(lists, n, m, repeats);
  // A matrix is one of anchors and references, also where these are the same.
  const Optional references = matrix && !ref_emb ? Optional(embeddings) : ref_emb;
  const Tensor labels = equal_labels(n);
  const Optional ref_labels = references ? Optional(equal_labels(m)) : std::nullopt;
  const bool by_both = matrix && !ref_emb && grad_embeddings;
  const Distance scores = distance_named(distance);
  const PairLossArguments args{embeddings,
                               references,
                               labels,
                               ref_labels,
                               NO_TENSOR,
                               row_grad,
                               loss,
                               params,
                               scores,
                               false,
                               reduction_named(reduction, true),
                               grad_embeddings,
                               grad_ref || by_both,
                               grad_learned,
                               learned,
                               NO_TENSOR,
                               NO_TENSOR,
                               matrix,
                               weights,
                               anchor_scalars,
                               ref_scalars};
  args.check();
  PairLossResults results = matrix ? pair_loss(args) : of_lists(args, lists, swap, repeats);
  if (by_both) {
    add_to(results.by_embeddings, results.by_ref);
    results.by_ref = new_tensor({0}, results.by_embeddings.scalar_type());
  }
  return results.tensors(embeddings);
}

}  // namespace
}  // namespace fastpair

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) {
  using Operators = fastpair::PairLossOperators<&fastpair::pair_loss>;
  m.impl("pair_loss", TORCH_BOX(&Operators::pair_loss));
  m.impl("labelled_pair_loss", TORCH_BOX(&Operators::labelled_pair_loss));
  m.impl("listed_pair_loss", TORCH_BOX(&fastpair::listed_pair_loss));
  m.impl("prefix_pair_loss", TORCH_BOX(&Operators::prefix_pair_loss));
}
