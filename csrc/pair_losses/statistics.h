// The types that the structs of generated.h use, and functions by which kernels use these structs.
//
// An anchor's positives have terms u(s), its negatives terms v(s), s being the closeness of a pair: a similarity, or
// the negative of a distance. Each kind is pooled to a sum, a log-sum-exp or a maximum, and `anchor` makes the loss of
// both: l = h(A, B). The functions of a pair are branch-free, so that loops over pairs vectorise, and are written so
// that NaN stays NaN. `negatives_lse` is the anchor's log-sum-exp over its negatives where the terms of its positives
// read it (READS_NEGATIVES_LSE), and 0 elsewhere.
#pragma once

#include "elementary.h"

namespace fastpair {

// Whether a pair has the same label; the index of arrays that hold something for both kinds.
enum Kind : int { Negative, Positive };

enum class Pool { Sum, LogSumExp, Max };

// The statistics of an anchor's pairs of one kind. A log-sum-exp stays in two parts, the maximum and the logarithm of
// the sum of the exponentials relative to it, which would be lost in one number beside large closenesses.
struct Statistic {
  double pairs;             // how many there are
  double value;             // the sum of their terms, or their maximum, also for a log-sum-exp: -infinity without pairs
  double log_sum;           // for a log-sum-exp: the other part
  double nonzero;           // for a sum: how many of its terms are not zero
  double by_negatives_lse;  // for a sum: its derivative by `negatives_lse`
  double sum;               // for a log-sum-exp with NEEDS_SUM: the sum of the terms

  FASTPAIR_INLINE double log_sum_exp() const { return value + log_sum; }
};

// The derivative of an anchor's loss by a term u: factor * (the share of u in the log-sum-exp) + constant, the first
// part only where the terms are pooled to one.
struct Slope {
  double factor = 0, constant = 0;
};

// A slope times `weight`, in the precision of the pairs: factor * exp(u - shift) + constant.
template <typename T>
struct RoundedSlope {
  T factor, shift, constant;

  FASTPAIR_INLINE RoundedSlope(const Slope& slope, const Statistic& of_terms, double weight)
      : factor(T(slope.factor * weight * exponential(-of_terms.log_sum))),
        // Without pairs, the shift makes every exponential 0.
        shift(of_terms.pairs == 0 ? T(__builtin_inf()) : T(of_terms.value)),
        constant(T(slope.constant * weight)) {}
};

// An anchor's loss, how much it counts in the mean, and its derivatives. Where the loss has SEPARATE_MEANS, the means
// of its two parts are added; elsewhere all of it is in the first part.
struct Anchor {
  double loss = 0, count = 0;
  double neg_loss = 0, neg_count = 0;
  Slope pos, neg;
};

// The defaults for losses. IS_SUM: the loss is the sum of all terms, and an anchor counts as one, or as the number of
// its terms of a kind that are not zero. ANCHOR_SCALARS, REF_SCALARS: how many numbers of an anchor and of a reference
// the formula reads; READS_SCALARS: whether terms of pairs do, which `at` then gives them. LEARNED: by how many
// parameters there are derivatives. SCALE, BIAS: where, counted from 1, the parameters are in a formula that reads
// closenesses and parameters only as scale * s, or as scale * s + bias.
struct PairTerms {
  static constexpr bool IS_SUM = false, READS_NEGATIVES_LSE = false, NEEDS_SUM = false, SEPARATE_MEANS = false,
                        READS_SCALARS = false;
  static constexpr int ANCHOR_SCALARS = 0, REF_SCALARS = 0, LEARNED = 0, SCALE = 0, BIAS = 0;
};

// Members of a struct of generated.h, by the kind of the pairs.
template <Kind KIND, typename Terms>
constexpr Pool POOL = KIND == Positive ? Terms::POSITIVES : Terms::NEGATIVES;

template <Kind KIND, typename Terms, typename T>
FASTPAIR_INLINE T term_of(const Terms& terms, T closeness, T negatives_lse) {
  return KIND == Positive ? terms.positive(closeness, negatives_lse) : terms.negative(closeness, negatives_lse);
}

template <Kind KIND, typename Terms, typename T>
FASTPAIR_INLINE T slope_of(const Terms& terms, T closeness, T negatives_lse) {
  return KIND == Positive ? terms.positive_slope(closeness, negatives_lse)
                          : terms.negative_slope(closeness, negatives_lse);
}

// The derivative of a term by the parameter K of those that learn.
template <Kind KIND, int K, typename Terms, typename T>
FASTPAIR_INLINE T derivative_of(const Terms& terms, T closeness, T negatives_lse) {
  return KIND == Positive ? terms.template positive_by<K>(closeness, negatives_lse)
                          : terms.template negative_by<K>(closeness, negatives_lse);
}

}  // namespace fastpair
