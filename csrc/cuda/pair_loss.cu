// A pair loss and its gradients in one launch.
//
// Phases with a barrier of the whole grid between them: norms (where needed) | scores | statistics and losses of the
// anchors | slopes | gradients. If a loss is a sum over pairs, the third and fourth phase are one: its slopes wait for
// no statistics, except for the number of terms that a mean over terms divides by.

#include <algorithm>
#include <iterator>

#include "cuda/launch.h"
#include "cuda/pairs.h"
#include "pair_losses/generated.h"

namespace fastpair::cuda {
namespace {

// The statistics of an anchor's pairs of one kind: the part of one lane, then of the whole warp.
template <Pool POOLED>
struct Partial {
  int pairs = 0;
  float highest = -INFINITY;  // for a log-sum-exp and a maximum
  int place = -1;             // for a maximum: where it is
  float value = 0;            // the sum; for a log-sum-exp, of the exponentials relative to the highest
  float nonzeros = 0, by_negatives_lse = 0, terms = 0;

  __device__ __forceinline__ void add(float u, float by_lse, int j) {
    ++pairs;
    if constexpr (POOLED == Pool::Sum) {
      value += u, nonzeros += nonzero(u), by_negatives_lse += by_lse;
    } else if constexpr (POOLED == Pool::LogSumExp) {
      highest = highest < u ? u : highest;
    } else {
      take(u, j);
    }
  }

  // In a second pass, when `highest` is that of all lanes.
  __device__ __forceinline__ void add_exponential(float u) {
    if constexpr (POOLED == Pool::LogSumExp) value += exponential(u - shift_of(highest)), terms += u;
  }

  // For a maximum: NaN counts as the largest, so that it shows, and the first of equals is taken.
  __device__ __forceinline__ void take(float other, int other_place) {
    const bool bad = highest != highest, other_bad = other != other;
    const bool equal = bad ? other_bad : other == highest;
    if (equal ? other_place >= 0 && (place < 0 || other_place < place) : !bad && (other_bad || other > highest)) {
      highest = other, place = other_place;
    }
  }

  __device__ __forceinline__ void combine_highest() {
    pairs = warp_sum(pairs);
    if constexpr (POOLED == Pool::LogSumExp) highest = warp_max(highest);
    if constexpr (POOLED == Pool::Max) {
      for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, highest, step);
        take(other, __shfl_xor_sync(ALL_LANES, place, step));
      }
    }
  }

  __device__ __forceinline__ void combine_sums() {
    value = warp_sum(value), terms = warp_sum(terms);
    nonzeros = warp_sum(nonzeros), by_negatives_lse = warp_sum(by_negatives_lse);
  }

  __device__ Statistic statistic() const {
    if constexpr (POOLED == Pool::Sum) {
      return {.pairs = double(pairs), .value = value, .nonzero = nonzeros, .by_negatives_lse = by_negatives_lse};
    } else if constexpr (POOLED == Pool::LogSumExp) {
      const double log_sum = value == 0 ? 0 : log(double(value));
      return {.pairs = double(pairs), .value = highest, .log_sum = log_sum, .sum = terms};
    } else {
      return {.pairs = double(pairs), .value = highest};
    }
  }
};

// The factors of the slopes, by kind.
struct Scales {
  float of[2];
};

// The weight in the gradient of an anchor's loss, or of the part of it that comes from its pairs of one kind.
struct AnchorWeights {
  const float *each, *given;
  float all[2];
  bool differ;  // whether each anchor has its own
  float share;  // anchors of two sides have half the weight each

  __device__ AnchorWeights(const PairLossProblem& p, bool separate_means)
      : each(p.row_grad),
        given(p.weights),
        all{1, 1},
        differ(p.row_grad && p.reduction != Reduction::Totals),
        share(p.two_sided ? 0.5f : 1.0f) {
    if (differ || !p.row_grad) return;
    all[Negative] = p.row_grad[separate_means ? 2 : 0];
    all[Positive] = p.row_grad[0];
  }

  __device__ __forceinline__ float of(int i, Kind kind) const {
    return (given ? given[i] : share) * (differ ? each[i] : all[kind]);
  }
};

// Row i of side s with the rows of the other side, and which of these makes no pair with it.
class Row {
 public:
  __device__ __forceinline__ Row(const PairLossProblem& p, int s, int i)
      : n_(p.side[1 - s].n),
        scores_(p.side[s].scores + i * p.side[s].ld),
        labels_(p.side[1 - s].labels),
        label_(p.pairs ? 1 : p.side[s].labels[i]),
        selves_(p.self_index),
        of_others_(s == 1 && p.self_index),
        pairs_(p.pairs ? p.pairs + (s == 0 ? i * n_ : i) : nullptr),
        pairs_stride_(s == 0 ? 1 : p.side[1].n) {
    if (p.pairs) {
      self_ = 0;
    } else if (p.symmetric || of_others_) {
      self_ = i;
    } else if (p.self_index) {
      self_ = p.self_index[i];
    }
  }

  // f(j, closeness, kind as a constant) for the pairs, shared by the lanes of a warp, and none(j) where there is no
  // pair. In a small batch there are hardly other warps to run while one waits for memory: the reads of AHEAD pairs are
  // in flight before the first pair is used.
  template <int AHEAD, typename F, typename None>
  __device__ __forceinline__ void for_pairs(const F& f, const None& none) const {
    for (int first = lane(); first < n_; first += AHEAD * WARP) {
      float scores[AHEAD];
      int64_t labels[AHEAD], selves[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        const int j = first + k * WARP;
        if (j >= n_) continue;
        scores[k] = scores_[j];
        if (pairs_) {
          labels[k] = selves[k] = pairs_[j * pairs_stride_];
        } else {
          labels[k] = labels_[j], selves[k] = of_others_ ? selves_[j] : j;
        }
      }
#pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        const int j = first + k * WARP;
        if (j >= n_) break;
        if (selves[k] == self_) {
          none(j);
        } else if (labels[k] == label_) {
          f(j, scores[k], std::integral_constant<Kind, Positive>());
        } else {
          f(j, scores[k], std::integral_constant<Kind, Negative>());
        }
      }
    }
  }

 private:
  const int n_;
  const float* const scores_;
  const int64_t* const labels_;
  const int64_t label_;
  const int64_t* const selves_;
  const bool of_others_;       // whether `selves` has an entry for each of the other rows
  const int8_t* const pairs_;  // null where labels say which pairs there are, else both label and self
  const int pairs_stride_;
  int64_t self_ = -1;  // the entry, or the index of the other row, that makes no pair with this one
};

// The parameters of the formula.
struct Params {
  double of[std::size(PairLossProblem().params)];

  __device__ explicit Params(const PairLossProblem& p) {
#pragma unroll
    for (size_t k = 0; k < std::size(of); ++k) of[k] = p.params[k];
  }

  __device__ Params(const PairLossProblem& p, int learned) : Params(p) {
    if (!p.learned) return;
    for (int k = 0; k < learned; ++k) of[k] = p.learned[k];
  }
};

template <typename Terms>
struct Loss {
  static constexpr bool LEARNS = Terms::SCALE > 0;

  const PairLossProblem& p;
  const Params params;
  const Terms terms;
  const AnchorWeights anchor_weights;

  __device__ explicit Loss(const PairLossProblem& p)
      : p(p), params(p, LEARNS ? Terms::PARAMS : 0), terms(params.of), anchor_weights(p, Terms::SEPARATE_MEANS) {}

  template <Kind KIND>
  __device__ __forceinline__ float by_negatives_lse(float closeness, float negatives_lse) const {
    if constexpr (KIND == Positive && Terms::READS_NEGATIVES_LSE) {
      return terms.slope_by_negatives_lse(closeness, negatives_lse);
    }
    return 0;
  }

  // ---- statistics

  // Adds up the pairs of a row; those of a kind that is null are skipped.
  __device__ __forceinline__ void add_up(const Row& row, float negatives_lse, Partial<Terms::NEGATIVES>* neg,
                                         Partial<Terms::POSITIVES>* pos) const {
    const auto with_part = [&](auto kind, const auto& f) {
      if constexpr (kind == Positive) {
        if (pos) f(*pos);
      } else {
        if (neg) f(*neg);
      }
    };
    const auto for_kinds = [&](const auto& f) {
      if (neg) f(*neg);
      if (pos) f(*pos);
    };
    const auto for_pairs = [&](const auto& f) { row.for_pairs<4>(f, [](int) {}); };
    for_pairs([&](int j, float s, auto kind) {
      with_part(kind, [&](auto& of) {
        of.add(term_of<kind>(terms, s, negatives_lse), by_negatives_lse<kind>(s, negatives_lse), j);
      });
    });
    for_kinds([](auto& of) { of.combine_highest(); });
    if constexpr (Terms::NEGATIVES == Pool::LogSumExp || Terms::POSITIVES == Pool::LogSumExp) {
      for_pairs([&](int, float s, auto kind) {
        with_part(kind, [&](auto& of) { of.add_exponential(term_of<kind>(terms, s, negatives_lse)); });
      });
    }
    for_kinds([](auto& of) { of.combine_sums(); });
  }

  // Stores the loss and count of row i of side s as an anchor, and its weights in the gradient, without the division by
  // the means' counts. Returns the loss.
  __device__ __forceinline__ double anchor(int s, int i) const {
    const Side side = p.side[s];
    const Row row(p, s, i);
    Partial<Terms::NEGATIVES> neg;
    Partial<Terms::POSITIVES> pos;
    float negatives_lse = 0;
    if constexpr (Terms::READS_NEGATIVES_LSE) {
      add_up(row, negatives_lse, &neg, nullptr);
      negatives_lse = float(neg.statistic().log_sum_exp());
      add_up(row, negatives_lse, nullptr, &pos);
    } else {
      add_up(row, negatives_lse, &neg, &pos);
    }
    const Statistic of_pos = pos.statistic(), of_neg = neg.statistic();
    Anchor a = Terms::anchor(params.of, of_pos, of_neg);
    if (p.weights) {
      const double given = p.weights[i];
      a.loss *= given, a.count *= given, a.neg_loss *= given, a.neg_count *= given;
    }
    if (lane() == 0) {
      double* totals = side.totals + i;
      totals[0] = a.loss, totals[side.n] = a.count, totals[2 * side.n] = a.neg_loss, totals[3 * side.n] = a.neg_count;
      if constexpr (!Terms::IS_SUM) {
        store_weights(side, i, Negative, a.neg, of_neg, neg.place);
        store_weights(side, i, Positive, a.pos, of_pos, pos.place);
        side.weights[6 * side.n + i] = negatives_lse;
      }
    }
    return a.loss + a.neg_loss;
  }

  __device__ __forceinline__ void store_weights(const Side& side, int i, Kind kind, const Slope& slope,
                                                const Statistic& of_terms, int place) const {
    const RoundedSlope<float> rounded(slope, of_terms, anchor_weights.of(i, kind));
    float* out = side.weights + 3 * kind * side.n + i;
    out[0] = rounded.factor, out[side.n] = rounded.shift, out[2 * side.n] = rounded.constant;
    if constexpr (Terms::POSITIVES == Pool::Max || Terms::NEGATIVES == Pool::Max) {
      side.extremes[kind * side.n + i] = place;
    }
  }

  // ---- slopes

  // The weights of the slopes of an anchor's pairs of one kind, as store_weights stored them.
  struct Weights {
    float factor = 0, shift = 0, constant = 0, negatives_lse = 0;
    int extreme = -1;
  };

  template <Kind KIND>
  __device__ __forceinline__ Weights weights(const Side& side, int i) const {
    constexpr Pool pool = POOL<KIND, Terms>;
    Weights w;
    if constexpr (Terms::IS_SUM) {
      w.constant = anchor_weights.of(i, KIND);
    } else {
      const float* of = side.weights + 3 * KIND * side.n + i;
      w.constant = of[2 * side.n];
      if constexpr (Terms::READS_NEGATIVES_LSE) w.negatives_lse = side.weights[6 * side.n + i];
      if constexpr (pool == Pool::LogSumExp) w.factor = of[0], w.shift = of[side.n];
      if constexpr (pool == Pool::Max) w.extreme = side.extremes[KIND * side.n + i];
    }
    return w;
  }

  // The derivative of an anchor's loss by its closeness to row j of the other side.
  template <Kind KIND>
  __device__ __forceinline__ float slope(const Weights& of, int j, float closeness) const {
    constexpr Pool pool = POOL<KIND, Terms>;
    float weight = of.constant;
    if constexpr (pool == Pool::LogSumExp) {
      weight += of.factor * exponential(term_of<KIND>(terms, closeness, of.negatives_lse) - of.shift);
    }
    if constexpr (pool == Pool::Max) {
      if (of.extreme != j) return 0;
    }
    return weight * slope_of<KIND>(terms, closeness, of.negatives_lse);
  }

  // Replaces the scores of row i of side s by slopes. `own` and `others` scale the slopes from this side's anchors and
  // from the other side's; they are copies, since a value picked by its address has to lie in memory.
  __device__ __forceinline__ void slopes(int s, int i, Scales own, Scales others) const {
    const Side side = p.side[s], other = p.side[1 - s];
    const Row row(p, s, i);
    Weights as_anchor[2];
    if (side.anchors) {
      as_anchor[Negative] = weights<Negative>(side, i);
      as_anchor[Positive] = weights<Positive>(side, i);
    }
    SlopesOfRow slopes(p, side, other, i);
    float by_scaled = 0, by_shifted = 0;
    row.for_pairs<1>(  // more would make as many copies of the code below
        [&](int j, float closeness, auto kind) {
          slopes.store(j, closeness, [&] {
            // Being loaded while the first slope is computed.
            const Weights theirs = other.anchors ? weights<kind>(other, j) : Weights();
            float sum = 0;
            if (side.anchors) sum += own.of[kind] * slope<kind>(as_anchor[kind], j, closeness);
            if (other.anchors) sum += others.of[kind] * slope<kind>(theirs, i, closeness);
            if constexpr (LEARNS) by_scaled += sum * closeness;
            if constexpr (Terms::BIAS > 0) by_shifted += sum;
            return sum;
          });
        },
        [&](int j) { slopes.store_none(j); });
    slopes.finish();
    if constexpr (LEARNS) {
      if (!side.closeness_sums) return;
      by_scaled = warp_sum(by_scaled), by_shifted = warp_sum(by_shifted);
      if (lane() == 0) side.closeness_sums[i] = by_scaled, side.closeness_sums[side.n + i] = by_shifted;
    }
  }

  // Writes the gradient by the parameters, from the sums of the rows of a side: see PairFormula.is_scaled. To be called
  // by one block.
  __device__ void learn(double (&room)[WARPS]) const {
    const Side& side = p.side[p.side[0].closeness_sums ? 0 : 1];
    const int n = side.closeness_sums ? side.n : 0;
    double sums[2] = {};
    for (int i = threadIdx.x; i < n; i += THREADS) {
      sums[0] += side.closeness_sums[i], sums[1] += side.closeness_sums[side.n + i];
    }
    const double of_all[2] = {block_sum(sums[0], room), block_sum(sums[1], room)};
    if (threadIdx.x != 0) return;
    // Symmetric pairs are in the rows of both samples, with the slopes of both.
    const double part = (p.symmetric ? 0.5 : 1) / params.of[Terms::SCALE - 1];
    p.by_learned[Terms::SCALE - 1] = float(part * of_all[0]);
    if constexpr (Terms::BIAS > 0) p.by_learned[Terms::BIAS - 1] = float(part * of_all[1]);
  }

  // ---- all anchors

  // The sum or mean over the anchors of side s, the same in every thread of the grid, and the factors that it gives the
  // slopes. Writes the totals where they are the value.
  __device__ double reduce(int s, double (&room)[WARPS], Scales* scales) const {
    const Side& side = p.side[s];
    double totals[TOTALS] = {};
    for (int i = threadIdx.x; i < side.n; i += THREADS) {
#pragma unroll
      for (int k = 0; k < TOTALS; ++k) totals[k] += side.totals[k * side.n + i];
    }
#pragma unroll
    for (int k = 0; k < TOTALS; ++k) totals[k] = block_sum(totals[k], room);
    if (p.reduction == Reduction::Totals && blockIdx.x == 0 && threadIdx.x == 0) {
      for (int k = 0; k < TOTALS; ++k) p.value[k] = float(totals[k]);
    }
    double pos_count = 1, neg_count = 1;
    if (p.reduction == Reduction::Mean) {
      pos_count = totals[1] > 0 ? totals[1] : 1;
      neg_count = !Terms::SEPARATE_MEANS ? pos_count : totals[3] > 0 ? totals[3] : 1;
    }
    scales->of[Negative] = float(1 / neg_count), scales->of[Positive] = float(1 / pos_count);
    return anchor_weights.share * (totals[0] / pos_count + totals[2] / neg_count);
  }
};

// Turns the scores into the slopes.
template <typename Terms>
__device__ __forceinline__ void scores_to_slopes(const PairLossProblem& p, double (&room)[WARPS]) {
  const Loss<Terms> loss(p);
  const auto slopes = [&](const Scales& x_scales, const Scales& y_scales) {
    for_gradients(p, [&](int s) {
      for_each_warp(p.side[s].n,
                    [&](int i) { loss.slopes(s, i, s == 0 ? x_scales : y_scales, s == 0 ? y_scales : x_scales); });
    });
  };
  for_each_warp(p.side[0].n, [&](int i) {
    double value = 0;
#pragma unroll 1  // one copy of what is inlined
    for (int s = 0; s < (p.two_sided ? 2 : 1); ++s) value += loss.anchor(s, i);
    if (p.reduction == Reduction::None && lane() == 0) p.value[i] = float(loss.anchor_weights.share * value);
  });
  // Every anchor of such a loss counts as one, unless it has a weight.
  const bool mean = p.reduction == Reduction::Mean;
  const bool at_once = Terms::IS_SUM && !(mean && (Terms::SEPARATE_MEANS || p.weights));
  if (at_once) {
    const float scale = mean ? 1.0f / p.side[0].n : 1.0f;
    slopes({scale, scale}, {scale, scale});
  }
  grid_barrier();

  Scales x_scales, y_scales;
  double value = loss.reduce(0, room, &x_scales);
  if (p.two_sided) value += loss.reduce(1, room, &y_scales);
  if (p.symmetric) y_scales = x_scales;
  const bool one_value = p.reduction == Reduction::Sum || p.reduction == Reduction::Mean;
  if (one_value && blockIdx.x == 0 && threadIdx.x == 0) p.value[0] = float(value);
  if (!at_once) {
    slopes(x_scales, y_scales);
    grid_barrier();
  }
  if constexpr (Loss<Terms>::LEARNS) {
    if (p.by_learned && blockIdx.x == 0) loss.learn(room);
  }
}

template <typename... Each>
struct Losses {
  static constexpr int PARAMS[] = {Each::PARAMS...};
  static constexpr bool LEARNS[] = {(Each::SCALE > 0)...};

  __device__ __forceinline__ static void scores_to_slopes(const PairLossProblem& p, double (&room)[WARPS]) {
    int i = 0;
    ((i++ == p.loss && (cuda::scores_to_slopes<Each>(p, room), true)) || ...);
  }
};
#define FASTPAIR_TERMS(name, ...) __VA_ARGS__
using AllLosses = Losses<FASTPAIR_PAIR_LOSSES(FASTPAIR_TERMS, float)>;
#undef FASTPAIR_TERMS

__global__ void __launch_bounds__(THREADS, 2) pair_loss_kernel(const __grid_constant__ PairLossProblem p) {
  __shared__ Buffers buffers;
  __shared__ double room[WARPS];
  prepare(p);
  write_closenesses(p, buffers);
  grid_barrier();
  AllLosses::scores_to_slopes(p, room);
  with_products(
      p, [&](auto products) { for_gradients(p, [&](int s) { write_gradient<decltype(products)>(p, s, buffers); }); });
}

#define FASTPAIR_NAME(name, ...) name
constexpr std::string_view NAMES[] = {FASTPAIR_PAIR_LOSSES(FASTPAIR_NAME, float)};
#undef FASTPAIR_NAME

}  // namespace

int find_pair_loss(std::string_view name, int* params, bool* learns) {
  const auto found = std::find(std::begin(NAMES), std::end(NAMES), name);
  if (found == std::end(NAMES)) return -1;
  const int loss = int(found - NAMES);
  *params = AllLosses::PARAMS[loss], *learns = AllLosses::LEARNS[loss];
  return loss;
}

const char* launch_pair_loss(const PairLossProblem& p, Stream stream) {
  return launch(pair_loss_kernel, p, largest_phase(p), stream);
}

}  // namespace fastpair::cuda
