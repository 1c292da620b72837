// A pair loss and its gradients in one launch.
//
// Phases with a barrier of the whole grid between them: norms (where needed) | scores | statistics and losses of the
// anchors | slopes | gradients. The slopes of a loss that is a sum over pairs wait for no statistics, unless for the
// count of terms that its mean divides by: there the third and fourth phase are one.

#include <algorithm>
#include <iterator>

#include "cuda/launch.h"
#include "cuda/pairs.h"
#include "terms.h"

namespace fastpair::cuda {
namespace {

// What an anchor's pairs of one kind come to: the part of one lane, then of the warp.
template <Reduction REDUCTION>
struct Partial {
  int pairs = 0;
  float highest = -INFINITY;  // of a log-sum-exp and a maximum
  int place = -1;             // of a maximum: where it is
  float value = 0;            // the sum; of a log-sum-exp, of the exponentials relative to the highest
  float nonzero = 0, given_slope = 0, terms = 0;

  __device__ __forceinline__ void add(float u, float slope, int j) {
    ++pairs;
    if constexpr (REDUCTION == Reduction::Sum) {
      value += u, nonzero += u == 0 ? 0 : 1, given_slope += slope;
    } else if constexpr (REDUCTION == Reduction::LogSumExp) {
      highest = highest < u ? u : highest;
    } else {
      take(u, j);
    }
  }

  // In a second round, when `highest` is that of all lanes.
  __device__ __forceinline__ void add_exponential(float u) {
    if constexpr (REDUCTION == Reduction::LogSumExp) value += exponential(u - shift_of(highest)), terms += u;
  }

  // Of a maximum: NaN passes for the largest, so that it shows, and among equals the first is taken.
  __device__ __forceinline__ void take(float other, int other_place) {
    const bool bad = highest != highest, other_bad = other != other;
    const bool equal = bad ? other_bad : other == highest;
    if (equal ? other_place >= 0 && (place < 0 || other_place < place) : !bad && (other_bad || other > highest)) {
      highest = other, place = other_place;
    }
  }

  __device__ __forceinline__ void combine_highest() {
    pairs = warp_sum(pairs);
    if constexpr (REDUCTION == Reduction::LogSumExp) highest = warp_max(highest);
    if constexpr (REDUCTION == Reduction::Max) {
      for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, highest, step);
        take(other, __shfl_xor_sync(ALL_LANES, place, step));
      }
    }
  }

  __device__ __forceinline__ void combine_sums() {
    value = warp_sum(value), terms = warp_sum(terms);
    nonzero = warp_sum(nonzero), given_slope = warp_sum(given_slope);
  }

  __device__ Statistic statistic() const {
    if constexpr (REDUCTION == Reduction::Sum) {
      return {.pairs = double(pairs), .value = value, .nonzero = nonzero, .given_slope = given_slope};
    } else if constexpr (REDUCTION == Reduction::LogSumExp) {
      const double log_sum = value == 0 ? 0 : log(double(value));
      return {.pairs = double(pairs), .value = highest, .log_sum = log_sum, .sum = terms};
    } else {
      return {.pairs = double(pairs), .value = highest};
    }
  }
};

// What the slopes of negatives and of positives are multiplied by.
struct Scales {
  float of[2];
};

template <typename Term>
struct Loss {
  static constexpr bool SUMS = Term::NEGATIVES == Reduction::Sum && Term::POSITIVES == Reduction::Sum;

  const PairLoss& p;
  const Term term;

  __device__ explicit Loss(const PairLoss& p) : p(p), term(p.params, p.metric == Metric::Dot) {}

  // ---- pairs

  // Of row i of side s with row j of the other.
  __device__ __forceinline__ bool is_self(int s, int i, int j) const {
    if (p.symmetric) return i == j;
    return p.self_index && p.self_index[s == 0 ? i : j] == (s == 0 ? j : i);
  }

  // f(j, score, whether it is a positive, as a constant) for the pairs of row i of side s, shared by the lanes of a
  // warp.
  template <typename F>
  __device__ __forceinline__ void for_pairs(int s, int i, const F& f) const {
    const Side &side = p.side[s], &other = p.side[1 - s];
    const int64_t label = side.labels[i];
    const float* scores = side.scores + i * side.ld;
    for (int j = lane(); j < other.n; j += WARP) {
      if (is_self(s, i, j)) continue;
      if (other.labels[j] == label) {
        f(j, scores[j], std::true_type());
      } else {
        f(j, scores[j], std::false_type());
      }
    }
  }

  template <bool POSITIVE>
  __device__ __forceinline__ float value(float score, float given) const {
    return POSITIVE ? term.positive(score, given) : term.negative(score, given);
  }

  __device__ __forceinline__ float given_slope(float score, float given) const {
    if constexpr (Term::POSITIVES_GIVEN) return term.given_slope(score, given);
    return 0;
  }

  // ---- statistics

  // The pairs of row i of side s; those of a kind that is null are passed over.
  __device__ __forceinline__ void add_up(int s, int i, float given, Partial<Term::NEGATIVES>* neg,
                                         Partial<Term::POSITIVES>* pos) const {
    const auto for_kinds = [&](const auto& f) {
      if (neg) f(*neg);
      if (pos) f(*pos);
    };
    for_pairs(s, i, [&](int j, float score, auto positive) {
      if constexpr (positive) {
        if (pos) pos->add(value<true>(score, given), given_slope(score, given), j);
      } else {
        if (neg) neg->add(value<false>(score, given), 0, j);
      }
    });
    for_kinds([](auto& of) { of.combine_highest(); });
    if constexpr (Term::NEGATIVES == Reduction::LogSumExp || Term::POSITIVES == Reduction::LogSumExp) {
      for_pairs(s, i, [&](int, float score, auto positive) {
        if constexpr (positive) {
          if (pos) pos->add_exponential(value<true>(score, given));
        } else {
          if (neg) neg->add_exponential(value<false>(score, given));
        }
      });
    }
    for_kinds([](auto& of) { of.combine_sums(); });
  }

  // Loss and count of row i of side s as an anchor, and its weights in the gradient but for the means' counts. Returns
  // the loss.
  __device__ double anchor(int s, int i) const {
    const Side& side = p.side[s];
    Partial<Term::NEGATIVES> neg;
    Partial<Term::POSITIVES> pos;
    float given = 0;
    if constexpr (Term::POSITIVES_GIVEN) {
      add_up(s, i, given, &neg, nullptr);
      given = float(neg.statistic().log_sum_exp());
      add_up(s, i, given, nullptr, &pos);
    } else {
      add_up(s, i, given, &neg, &pos);
    }
    const Statistic of_pos = pos.statistic(), of_neg = neg.statistic();
    const Anchor a = term.anchor(of_pos, of_neg);
    if (lane() == 0) {
      double* totals = side.totals + i;
      totals[0] = a.loss, totals[side.n] = a.count, totals[2 * side.n] = a.neg_loss, totals[3 * side.n] = a.neg_count;
      if constexpr (!SUMS) {
        store_weights(side, i, 0, a.neg, of_neg, neg.place);
        store_weights(side, i, 1, a.pos, of_pos, pos.place);
        side.weights[6 * side.n + i] = given;
      }
    }
    return a.loss + a.neg_loss;
  }

  __device__ __forceinline__ void store_weights(const Side& side, int i, int kind, const Slope& slope,
                                                const Statistic& of_terms, int place) const {
    const RoundedSlope<float> rounded(slope, of_terms, anchor_weight(i, kind));
    float* out = side.weights + 3 * kind * side.n + i;
    out[0] = rounded.factor, out[side.n] = rounded.shift, out[2 * side.n] = rounded.constant;
    if constexpr (Term::NEGATIVES == Reduction::Max) side.extremes[kind * side.n + i] = place;
  }

  // Anchors of two sides have half the weight each.
  __device__ double share() const { return p.two_sided ? 0.5 : 1; }
  // Of the part of an anchor's loss that its negatives or its positives make.
  __device__ double anchor_weight(int i, int kind) const {
    if (p.row_grad && p.mean == Mean::Totals) return p.row_grad[kind == 0 && Term::SEPARATE_MEANS ? 2 : 0];
    return share() * (p.row_grad ? p.row_grad[i] : 1);
  }

  // ---- slopes

  // The derivative of the loss of anchor i of a side by its score with row j of the other.
  template <bool POSITIVE>
  __device__ __forceinline__ float slope(const Side& side, int i, int j, float score) const {
    constexpr Reduction reduction = POSITIVE ? Term::POSITIVES : Term::NEGATIVES;
    float given = 0, weight;
    if constexpr (SUMS) {
      weight = float(anchor_weight(i, POSITIVE));
    } else {
      const float* of = side.weights + 3 * POSITIVE * side.n + i;
      weight = of[2 * side.n];
      if constexpr (Term::POSITIVES_GIVEN) given = side.weights[6 * side.n + i];
      if constexpr (reduction == Reduction::LogSumExp) {
        weight += of[0] * exponential(value<POSITIVE>(score, given) - of[side.n]);
      }
      if constexpr (reduction == Reduction::Max) {
        if (side.extremes[POSITIVE * side.n + i] != j) return 0;
      }
    }
    return weight * (POSITIVE ? term.positive_slope(score, given) : term.negative_slope(score, given));
  }

  // Replaces the scores of row i of side s. The scales are those of what the side's and the other side's anchors say.
  __device__ __forceinline__ void slopes(int s, int i, const Scales& own, const Scales& others) const {
    const Side &side = p.side[s], &other = p.side[1 - s];
    float along = 0;
    for_pairs(s, i, [&](int j, float score, auto positive) {
      float sum = 0;
      if (side.anchors) sum += own.of[positive] * slope<positive>(side, i, j, score);
      if (other.anchors) sum += others.of[positive] * slope<positive>(other, j, i, score);
      store_slope(p, side, other, i, j, score, sum, &along);
    });
    for (int j = lane(); j < other.n; j += WARP) {
      if (is_self(s, i, j)) side.scores[i * side.ld + j] = 0;
    }
    store_along(p, side, i, along);
  }

  // ---- all anchors

  // The sum or mean over the anchors of side s, the same in every thread of the grid, and what it multiplies slopes by.
  // Writes the totals where they are the value.
  __device__ double reduce(int s, double (&room)[WARPS], Scales* scales) const {
    const Side& side = p.side[s];
    double totals[TOTALS] = {};
    for (int i = threadIdx.x; i < side.n; i += THREADS) {
#pragma unroll
      for (int k = 0; k < TOTALS; ++k) totals[k] += side.totals[k * side.n + i];
    }
#pragma unroll
    for (int k = 0; k < TOTALS; ++k) totals[k] = block_sum(totals[k], room);
    if (p.mean == Mean::Totals && blockIdx.x == 0 && threadIdx.x == 0) {
      for (int k = 0; k < TOTALS; ++k) p.value[k] = float(totals[k]);
    }
    double pos_count = 1, neg_count = 1;
    if (p.mean == Mean::Mean) {
      pos_count = totals[1] < 1 ? 1 : totals[1];
      neg_count = !Term::SEPARATE_MEANS ? pos_count : totals[3] < 1 ? 1 : totals[3];
    }
    scales->of[0] = float(1 / neg_count), scales->of[1] = float(1 / pos_count);
    return share() * (totals[0] / pos_count + totals[2] / neg_count);
  }
};

// From the scores to the slopes.
template <typename Term>
__device__ __noinline__ void scores_to_slopes(const PairLoss& p, double (&room)[WARPS]) {
  const Loss<Term> loss(p);
  const auto slopes = [&](const Scales& x_scales, const Scales& y_scales) {
    for_gradients(p, [&](int s) {
      for_each_warp(p.side[s].n,
                    [&](int i) { loss.slopes(s, i, s == 0 ? x_scales : y_scales, s == 0 ? y_scales : x_scales); });
    });
  };
  for_each_warp(p.side[0].n, [&](int i) {
    double value = loss.anchor(0, i);
    if (p.two_sided) value += loss.anchor(1, i);
    if (p.mean == Mean::None && lane() == 0) p.value[i] = float(loss.share() * value);
  });
  const bool at_once = Loss<Term>::SUMS && !(Term::SEPARATE_MEANS && p.mean == Mean::Mean);
  if (at_once) {
    // Every anchor of such a loss counts as one.
    const float scale = p.mean == Mean::Mean ? 1.0f / p.side[0].n : 1.0f;
    slopes({scale, scale}, {scale, scale});
  }
  grid_barrier();

  Scales x_scales, y_scales;
  double value = loss.reduce(0, room, &x_scales);
  if (p.two_sided) value += loss.reduce(1, room, &y_scales);
  if (p.symmetric) y_scales = x_scales;
  if ((p.mean == Mean::Sum || p.mean == Mean::Mean) && blockIdx.x == 0 && threadIdx.x == 0) p.value[0] = float(value);
  if (!at_once) {
    slopes(x_scales, y_scales);
    grid_barrier();
  }
}

template <typename... Terms>
struct Losses {
  static constexpr int PARAMS[] = {Terms::PARAMS...};

  __device__ static void scores_to_slopes(const PairLoss& p, double (&room)[WARPS]) {
    int i = 0;
    ((i++ == p.loss && (cuda::scores_to_slopes<Terms>(p, room), true)) || ...);
  }
};
#define FASTPAIR_TERM(name, ...) __VA_ARGS__
using AllLosses = Losses<FASTPAIR_PAIR_LOSSES(FASTPAIR_TERM, float)>;
#undef FASTPAIR_TERM

__global__ void __launch_bounds__(THREADS, 2) pair_loss_kernel(const __grid_constant__ PairLoss p) {
  __shared__ Buffers buffers;
  __shared__ double room[WARPS];
  prepare(p);
  with_products(p, [&](auto products) { write_scores<decltype(products)>(p, buffers); });
  grid_barrier();
  AllLosses::scores_to_slopes(p, room);
  with_products(
      p, [&](auto products) { for_gradients(p, [&](int s) { write_gradient<decltype(products)>(p, s, buffers); }); });
}

#define FASTPAIR_NAME(name, ...) name
constexpr std::string_view NAMES[] = {FASTPAIR_PAIR_LOSSES(FASTPAIR_NAME, float)};
#undef FASTPAIR_NAME

}  // namespace

int find_pair_loss(std::string_view name, int* params) {
  const auto found = std::find(std::begin(NAMES), std::end(NAMES), name);
  if (found == std::end(NAMES)) return -1;
  const int loss = int(found - NAMES);
  *params = AllLosses::PARAMS[loss];
  return loss;
}

const char* launch_pair_loss(const PairLoss& p, Stream stream) {
  return launch(pair_loss_kernel, p, largest_phase(p), stream);
}

}  // namespace fastpair::cuda
