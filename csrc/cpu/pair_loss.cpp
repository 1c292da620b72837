// fastpair::pair_loss on the CPU: a loss over all pairs, and its gradients.
//
// A first sweep over the score matrix reduces the terms of each anchor's positives and negatives; from these statistics
// come the anchors' losses and the weights of the pairs in the gradient, which a second sweep writes. Where the weights
// are known before, as for sums, one sweep does both. Samples are sorted by label first, so that the positives of a row
// are one stretch of columns and no loop over pairs looks at a label.
//
// Cost in units of 2nmd flops, with references = anchors: 0.5 for the scores, once more for a second sweep over scores
// that were not kept, + 1 for the gradient.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pair_sweep.h"
#include "cpu/rows.h"
#include "cpu/samples.h"
#include "cpu/triplets.h"

namespace fastpair {
namespace {

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

using Results = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
class PairLoss {
 public:
  explicit PairLoss(const PairLossArguments& arguments)
      : args_(arguments),
        distance_(distance_named(args_.distance)),
        triplets_(triplet_terms(args_.loss, args_.params)),
        loss_(triplets_ ? nullptr : &find_loss<T>(args_.loss, args_.params)),
        x_(args_.embeddings, &args_.labels),
        y_(args_.ref_emb ? std::optional<Samples<T>>(std::in_place, *args_.ref_emb, &*args_.ref_labels)
                         : std::nullopt) {
    const std::vector<T> center = center_of<T>(args_.embeddings, distance_);
    x_.load(args_.embeddings, distance_, center, args_.grad_embeddings);
    if (y_) y_->load(*args_.ref_emb, distance_, center, args_.grad_ref);
    rows_.emplace(x_, references());
    if (y_) other_.emplace(*y_, x_);
    find_selves();
  }

  Results run() { return triplets_ ? run_triplets() : run_pairs(); }

 private:
  // The triplets of an anchor are a sum that pairs are not: its row of scores is needed as a whole.
  Results run_triplets() {
    const bool gradients = args_.grad_embeddings || args_.grad_ref;
    const std::vector<T> row_grad = incoming();
    std::vector<T> weights(x_.n);
    for (int64_t i = 0; i < x_.n; ++i) weights[i] = T(weight(row_grad, *rows_, i, 1));
    const TripletSums sums = sweep_triplets<T>(*triplets_, distance_, x_, references(), rows_->pos_begin,
                                               rows_->pos_end, selves(), gradients ? weights.data() : nullptr);
    const double share = args_.reduction == "mean" ? 1 / std::max(sum(sums.counts), 1.0) : 1;
    for_samples([&](Samples<T>& samples) {
      if (samples.has_gradient && share != 1) samples.scale_gradient(T(share));
    });
    totals_ = {sum(sums.losses), sum(sums.counts), 0, 0};
    value_ = share * totals_[0];
    values_.resize(x_.n);
    for (int64_t i = 0; i < x_.n; ++i) values_[x_.order[i]] = T(sums.losses[i]);
    return results();
  }

  Results run_pairs() {
    const bool gradients = args_.grad_embeddings || args_.grad_ref;
    rows_->start(*loss_);
    if (y_) other_->start(*loss_);
    PairSweep<T> sweep(*loss_, args_.params, distance_, *rows_, columns(), selves(), args_.two_sided);
    const bool kept = sweep.keeps_scores();
    const bool sums = loss_->reduction[0] == Reduction::Sum && loss_->reduction[1] == Reduction::Sum;
    const bool means_over_terms = args_.reduction == "mean" && loss_->separate_means;

    if (sums && !(means_over_terms && kept)) {
      // The weights of the pairs are known before, up to the means over terms: there the negatives' gradient is added
      // up unscaled, and a second sweep over the few tiles that have positives adds theirs.
      if (gradients) set_sums_weights(means_over_terms ? 0 : 1, 1);
      sweep.run({.add = {true, true}, .gradient = gradients});
      finish();
      if (gradients && means_over_terms) {
        const double pos_weight = 1 / counts_[1], neg_weight = 1 / counts_[0];
        for_samples([&](Samples<T>& samples) {
          if (samples.has_gradient) samples.scale_gradient(T(neg_weight));
        });
        for (AnchorSide<T>* side : sides()) {
          std::fill(side->constant[1].begin(), side->constant[1].end(), T(pos_weight));
          std::fill(side->constant[0].begin(), side->constant[0].end(), T(0));
        }
        sweep.run({.gradient = true, .only_positives = true});
      }
      return results();
    }
    if (loss_->positives_given) {
      sweep.run({.add = {true, false}});
      for (AnchorSide<T>* side : sides()) {
        for (int64_t i = 0; i < side->samples.n; ++i) side->given[i] = T(statistic(*side, 0, i).log_sum_exp());
      }
      sweep.run({.compute_scores = !kept, .add = {false, true}, .only_positives = true});
    } else {
      sweep.run({.add = {true, true}});
    }
    finish();
    if (gradients && loss_->reduction[1] == Reduction::Max) {
      add_extreme_pairs();
    } else if (gradients) {
      sweep.run({.compute_scores = !kept, .gradient = true});
    }
    return results();
  }

  const int64_t* selves() const { return self_.empty() ? nullptr : self_.data(); }
  Samples<T>& references() { return y_ ? *y_ : x_; }
  AnchorSide<T>& columns() { return other_ ? *other_ : *rows_; }
  // Those whose samples are anchors.
  std::vector<AnchorSide<T>*> sides() {
    return args_.two_sided ? std::vector<AnchorSide<T>*>{&*rows_, &*other_} : std::vector<AnchorSide<T>*>{&*rows_};
  }
  template <typename F>
  void for_samples(const F& f) {
    f(x_);
    if (y_) f(*y_);
  }

  // self_[i]: the sorted position of the reference that sorted anchor i is itself.
  void find_selves() {
    if (!y_) {
      self_.resize(x_.n);
      std::iota(self_.begin(), self_.end(), 0);
    } else if (args_.self_index) {
      const std::vector<int64_t> rows = integer_vector(*args_.self_index);
      std::vector<int64_t> position(y_->n);
      for (int64_t j = 0; j < y_->n; ++j) position[y_->order[j]] = j;
      self_.resize(x_.n);
      for (int64_t i = 0; i < x_.n; ++i) {
        const int64_t row = rows[x_.order[i]];
        STD_TORCH_CHECK(row >= -1 && row < y_->n, "self_index must hold rows of ref_emb or -1, got ", row);
        self_[i] = row < 0 ? -1 : position[row];
      }
    }
  }

  Statistic statistic(const AnchorSide<T>& side, int kind, int64_t i) const {
    const int64_t self = self_.empty() ? -1 : self_[i];
    const int64_t positives = side.pos_end[i] - side.pos_begin[i];
    const bool among_positives = self >= side.pos_begin[i] && self < side.pos_end[i];
    const int64_t others = (&side == &*rows_ && y_ ? *y_ : x_).n;
    const int64_t pairs =
        kind == 1 ? positives - among_positives : others - positives - (self >= 0 && !among_positives);
    const auto& [a, b, c] = side.totals[kind][i].of;
    switch (loss_->reduction[kind]) {
      case Reduction::Sum:
        return {.pairs = double(pairs), .value = a, .nonzero = b, .given_slope = c};
      case Reduction::LogSumExp:
        return {.pairs = double(pairs), .value = a, .log_sum = b == 0 ? 0 : std::log(b), .sum = c};
      case Reduction::Max:
        return {.pairs = double(pairs), .value = a};
    }
    __builtin_unreachable();
  }

  // How much the part of the loss of sorted anchor i of a side that its pairs of a kind make counts.
  double weight(const std::vector<T>& incoming, const AnchorSide<T>& side, int64_t i, int kind) const {
    const double share = args_.two_sided ? 0.5 : 1;
    if (incoming.empty()) return share;
    if (args_.reduction == "totals") return incoming[kind == 0 && loss_->separate_means ? 2 : 0];
    return share * incoming[side.samples.order[i]];
  }
  std::vector<T> incoming() const { return args_.row_grad ? floating_vector<T>(*args_.row_grad) : std::vector<T>(); }

  // The weights of a loss that is a sum, before the sweep.
  void set_sums_weights(double positives, double negatives) {
    const std::vector<T> row_grad = incoming();
    for (AnchorSide<T>* side : sides()) {
      const double count = args_.reduction == "mean" && !loss_->separate_means ? double(side->samples.n) : 1;
      for (int64_t i = 0; i < side->samples.n; ++i) {
        side->constant[1][i] = T(positives * weight(row_grad, *side, i, 1) / count);
        side->constant[0][i] = T(negatives * weight(row_grad, *side, i, 0) / count);
      }
    }
  }

  // From the statistics: the anchors' losses, the result, and the weights for the gradient sweep.
  void finish() {
    const std::vector<T> row_grad = incoming();
    values_.assign(args_.reduction == "none" ? x_.n : 0, 0);
    value_ = 0;
    for (AnchorSide<T>* side : sides()) {
      const int64_t n = side->samples.n;
      std::vector<Anchor> anchors(n);
      parallel_rows(n, 64, [&](int64_t i) {
        anchors[i] =
            loss_->anchor(args_.params.data(), distance_.similarity, statistic(*side, 1, i), statistic(*side, 0, i));
      });
      totals_ = {};
      for (const Anchor& a : anchors) {
        totals_[0] += a.loss, totals_[1] += a.count;
        totals_[2] += a.neg_loss, totals_[3] += a.neg_count;
      }
      counts_[1] = counts_[0] = 1;
      if (args_.reduction == "mean") {
        counts_[1] = std::max(totals_[1], 1.0);
        counts_[0] = loss_->separate_means ? std::max(totals_[3], 1.0) : counts_[1];
      }
      value_ += (args_.two_sided ? 0.5 : 1) * (totals_[0] / counts_[1] + totals_[2] / counts_[0]);
      for (int64_t i = 0; i < n; ++i) {
        for_kinds([&](int kind) {
          side->set_weight(i, kind, kind == 1 ? anchors[i].pos : anchors[i].neg, statistic(*side, kind, i),
                           weight(row_grad, *side, i, kind) / counts_[kind]);
        });
        if (args_.reduction == "none") {
          values_[side->samples.order[i]] += T((args_.two_sided ? 0.5 : 1) * (anchors[i].loss + anchors[i].neg_loss));
        }
      }
    }
  }

  // The gradient of maxima: one positive and one negative an anchor.
  void add_extreme_pairs() {
    std::vector<SinglePair<T>> pairs;
    const double sign = distance_.similarity ? 1 : -1;
    for (int64_t i = 0; i < x_.n; ++i) {
      for_kinds([&](int kind) {
        const Total& total = rows_->totals[kind][i];
        if (total.of[1] == 0) return;
        // The terms are the scores or their negatives.
        const double term_slope = kind == 1 ? -sign : sign, score = term_slope * total.of[0];
        const double score_slope = distance_.metric == Metric::Dot           ? 1
                                   : distance_.metric == Metric::SqEuclidean ? -2
                                   : score == 0                              ? 0
                                                                             : -1 / score;
        pairs.push_back({i, int64_t(total.of[1]) - 1, T(rows_->constant[kind][i] * term_slope * score_slope)});
      });
    }
    add_single_pairs(pairs, x_, &SinglePair<T>::row, references(), &SinglePair<T>::col);
    add_single_pairs(pairs, references(), &SinglePair<T>::col, x_, &SinglePair<T>::row);
  }

  Results results() {
    return {value(), x_.gradient_tensor(args_.embeddings),
            y_ ? y_->gradient_tensor(*args_.ref_emb) : new_tensor(args_.embeddings, {0}, scalar_type<T>)};
  }

  Tensor value() const {
    if (args_.reduction == "none") return new_vector(args_.embeddings, values_);
    if (args_.reduction == "totals") {
      return new_vector(args_.embeddings, std::vector<T>(totals_.begin(), totals_.end()));
    }
    return new_scalar(args_.embeddings, T(value_));
  }

  const PairLossArguments& args_;
  const Distance distance_;
  const std::optional<TripletTerms> triplets_;
  const PairKernels<T>* loss_;  // null for triplets
  Samples<T> x_;
  std::optional<Samples<T>> y_;
  std::optional<AnchorSide<T>> rows_, other_;
  std::vector<int64_t> self_;
  double value_ = 0, counts_[2] = {1, 1};
  std::array<double, 4> totals_;  // sum and count of each part of the mean
  std::vector<T> values_;
};

Results pair_loss(const Tensor& embeddings, const std::optional<Tensor>& ref_emb, const Tensor& labels,
                  const std::optional<Tensor>& ref_labels, const std::optional<Tensor>& self_index,
                  const std::optional<Tensor>& row_grad, const std::string& loss, const std::vector<double>& params,
                  const std::string& distance, bool two_sided, const std::string& reduction, bool grad_embeddings,
                  bool grad_ref) {
  const PairLossArguments args{embeddings, ref_emb,  labels,    ref_labels, self_index,      row_grad, loss,
                               params,     distance, two_sided, reduction,  grad_embeddings, grad_ref};
  args.check();
  return with_compute_type(embeddings, [&](auto zero) { return PairLoss<decltype(zero)>(args).run(); });
}

}  // namespace
}  // namespace fastpair

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) { m.impl("pair_loss", TORCH_BOX(&fastpair::pair_loss)); }
