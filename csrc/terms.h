// The formulas of the pair losses, one struct each. Shared by the C++ and the CUDA kernels. Parameters come as
// fastpair/formulas has them: in the order in which its formulas name them, and values of the score as those of the
// closeness, which of a distance is the negative.
//
// An anchor's positives have terms u(s), its negatives terms v(s); each kind is reduced to a sum, a log-sum-exp or a
// maximum, and `anchor` makes the loss of both: l = h(A, B). The functions of a pair are branch-free, so that loops
// over pairs vectorise, and are written so that NaN stays NaN. `given` is the anchor's log-sum-exp over its negatives
// where the terms of its positives need it (POSITIVES_GIVEN), and 0 elsewhere.
#pragma once

#include "elementary.h"

namespace fastpair {

// What a score is made of. A cosine is the dot product of rows that were divided by their norms.
enum class Metric { Dot, SqEuclidean, Euclidean };

enum class Reduction { Sum, LogSumExp, Max };

// What an anchor's positives, or its negatives, come to. A log-sum-exp stays in two parts, the maximum and the
// logarithm of the sum of the exponentials relative to it: beside large scores their sum has lost the second.
struct Statistic {
  double pairs;        // how many there are
  double value;        // the sum or maximum of their terms, also of a log-sum-exp; minus infinity for a maximum of none
  double log_sum;      // of a log-sum-exp: the other part
  double nonzero;      // of a sum: how many of its terms are not zero
  double given_slope;  // of a sum: its derivative by `given`
  double sum;          // of a log-sum-exp with NEEDS_SUM: the sum of the terms

  FASTPAIR_INLINE double log_sum_exp() const { return value + log_sum; }
};

FASTPAIR_INLINE double log_of_ratio(const Statistic& a, const Statistic& b) {
  return (a.value - b.value) + (a.log_sum - b.log_sum);
}

// The derivative of an anchor's loss by a term u: factor * (the share of u in the log-sum-exp) + constant, the first
// part only where the terms are reduced to one.
struct Slope {
  double factor = 0, constant = 0;
};

// A slope times `weight`, in the precision of the pairs: factor * exp(u - shift) + constant.
template <typename T>
struct RoundedSlope {
  T factor, shift, constant;

  FASTPAIR_INLINE RoundedSlope(const Slope& slope, const Statistic& of_terms, double weight)
      : factor(T(slope.factor * weight * exponential(-of_terms.log_sum))),
        // The shift of none makes every exponential 0.
        shift(of_terms.pairs == 0 ? T(__builtin_inf()) : T(of_terms.value)),
        constant(T(slope.constant * weight)) {}
};

// An anchor's loss, what it counts in the mean, and its derivatives. Where the loss has SEPARATE_MEANS, the mean of its
// two parts are added; elsewhere all of it is in the first.
struct Anchor {
  double loss = 0, count = 0;
  double neg_loss = 0, neg_count = 0;
  Slope pos, neg;
};

// What most losses are: both kinds reduced to log-sum-exps, one mean over anchors.
struct PairTerms {
  static constexpr Reduction POSITIVES = Reduction::LogSumExp, NEGATIVES = Reduction::LogSumExp;
  static constexpr bool POSITIVES_GIVEN = false, NEEDS_SUM = false, SEPARATE_MEANS = false;
};

// [d - pos_margin]_+^p on positives, [neg_margin - d]_+^p on negatives; for a similarity the signs are flipped.
// Hadsell et al., CVPR 2006; Boudiaf et al., ECCV 2020, Table 1.
template <typename T, int Power>
struct Contrastive : PairTerms {
  static_assert(Power == 1 || Power == 2);
  static constexpr int PARAMS = 2;
  static constexpr Reduction POSITIVES = Reduction::Sum, NEGATIVES = Reduction::Sum;
  static constexpr bool SEPARATE_MEANS = Power == 1;

  T pos_margin, neg_margin, sign;

  FASTPAIR_INLINE Contrastive(const double* params, bool similarity)
      : pos_margin(T(similarity ? params[0] : -params[0])),
        neg_margin(T(similarity ? params[1] : -params[1])),
        sign(similarity ? T(1) : T(-1)) {}

  FASTPAIR_INLINE T positive(T s, T) const { return power(relu(sign * (pos_margin - s))); }
  FASTPAIR_INLINE T negative(T s, T) const { return power(relu(sign * (s - neg_margin))); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return -sign * slope(sign * (pos_margin - s)); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return sign * slope(sign * (s - neg_margin)); }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    a.pos.constant = a.neg.constant = 1;
    if (Power == 1) {
      a.loss = pos.value, a.count = pos.nonzero;
      a.neg_loss = neg.value, a.neg_count = neg.nonzero;
    } else {
      a.loss = pos.value + neg.value, a.count = 1;
    }
    return a;
  }

 private:
  FASTPAIR_INLINE static T power(T excess) { return Power == 1 ? excess : excess * excess; }
  FASTPAIR_INLINE static T slope(T excess) {
    if (Power == 1) return excess <= T(0) ? T(0) : T(1);
    return T(2) * relu(excess);
  }
};

// Terms scale * s of both kinds, s being -d for a distance.
template <typename T>
struct ScaledScores : PairTerms {
  static constexpr int PARAMS = 1;

  T scale;

  FASTPAIR_INLINE ScaledScores(const double* params, bool similarity)
      : scale(similarity ? T(params[0]) : -T(params[0])) {}

  FASTPAIR_INLINE T positive(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
};

// log sum_{P and N} exp(u) - log sum_P exp(u). Wu et al., ECCV 2018; Goldberger et al., NeurIPS 2004.
template <typename T>
struct Snca : ScaledScores<T> {
  FASTPAIR_INLINE Snca(const double* params, bool similarity) : ScaledScores<T>(params, similarity) {}

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0) return a;
    const double excess = log_of_ratio(neg, pos);
    a.loss = softplus(excess), a.count = 1;
    a.pos.factor = -sigmoid(excess);
    a.neg.factor = sigmoid(excess);
    return a;
  }
};

// log sum_{P and N} exp(u) - (1/|P|) sum_P u. Khosla et al., NeurIPS 2020, eq. 2.
template <typename T>
struct SupCon : ScaledScores<T> {
  static constexpr bool NEEDS_SUM = true;
  FASTPAIR_INLINE SupCon(const double* params, bool similarity) : ScaledScores<T>(params, similarity) {}

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0) return a;
    const double excess = log_of_ratio(neg, pos);
    a.loss = (pos.value - pos.sum / pos.pairs) + pos.log_sum + softplus(excess), a.count = 1;
    a.pos = {.factor = sigmoid(-excess), .constant = -1 / pos.pairs};
    a.neg.factor = sigmoid(excess);
    return a;
  }
};

// sum_P softplus(log sum_N exp(v) - u), averaged over the positive pairs. Sohn, NeurIPS 2016; Chen et al., ICML 2020.
template <typename T>
struct NtXent : ScaledScores<T> {
  static constexpr Reduction POSITIVES = Reduction::Sum;
  static constexpr bool POSITIVES_GIVEN = true;
  FASTPAIR_INLINE NtXent(const double* params, bool similarity) : ScaledScores<T>(params, similarity) {}

  FASTPAIR_INLINE T positive(T s, T given) const { return softplus(given - product(this->scale, s)); }
  FASTPAIR_INLINE T positive_slope(T s, T given) const { return -this->scale * given_slope(s, given); }
  FASTPAIR_INLINE T given_slope(T s, T given) const { return sigmoid(given - product(this->scale, s)); }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0) return a;
    a.loss = pos.value, a.count = pos.pairs;
    a.pos.constant = 1;
    a.neg.factor = pos.given_slope;
    return a;
  }
};

// softplus(-s) on positives, softplus(s) on negatives. Zhai et al., ICCV 2023, eq. 1.
template <typename T>
struct Sigmoid : PairTerms {
  static constexpr int PARAMS = 0;
  static constexpr Reduction POSITIVES = Reduction::Sum, NEGATIVES = Reduction::Sum;

  FASTPAIR_INLINE Sigmoid(const double*, bool) {}

  FASTPAIR_INLINE T positive(T s, T) const { return softplus(-s); }
  FASTPAIR_INLINE T negative(T s, T) const { return softplus(s); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return -sigmoid(-s); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return sigmoid(s); }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    a.loss = pos.value + neg.value, a.count = 1;
    a.pos.constant = a.neg.constant = 1;
    return a;
  }
};

// (1/alpha) log(1 + sum_P exp(-alpha (s - base))) + (1/beta) log(1 + sum_N exp(beta (s - base))).
// Wang et al., CVPR 2019, eq. 16.
template <typename T>
struct MultiSimilarity : PairTerms {
  static constexpr int PARAMS = 3;

  double alpha, beta;
  T pos_scale, neg_scale, base;

  FASTPAIR_INLINE MultiSimilarity(const double* params, bool similarity)
      : alpha(params[0]),
        beta(params[2]),
        pos_scale(similarity ? -T(alpha) : T(alpha)),
        neg_scale(similarity ? T(beta) : -T(beta)),
        base(T(similarity ? params[1] : -params[1])) {}

  FASTPAIR_INLINE T positive(T s, T) const { return product(pos_scale, s - base); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(neg_scale, s - base); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return pos_scale; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return neg_scale; }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    const double pull = pos.log_sum_exp(), push = neg.log_sum_exp();
    a.loss = softplus(pull) / alpha + softplus(push) / beta, a.count = 1;
    a.pos.factor = sigmoid(pull) / alpha;
    a.neg.factor = sigmoid(push) / beta;
    return a;
  }
};

// log(1 + sum_P exp(-alpha (s - margin))), averaged over the anchors with positives, and
// log(1 + sum_N exp(alpha (s + margin))), averaged over all; the anchors are proxies. Kim et al., CVPR 2020, eq. 4.
template <typename T>
struct ProxyAnchor : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr bool SEPARATE_MEANS = true;

  T margin, alpha;

  FASTPAIR_INLINE ProxyAnchor(const double* params, bool) : margin(T(params[1])), alpha(T(params[0])) {}

  FASTPAIR_INLINE T positive(T s, T) const { return product(-alpha, s - margin); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(alpha, s + margin); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return -alpha; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return alpha; }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    const double pull = pos.log_sum_exp(), push = neg.log_sum_exp();
    a.loss = softplus(pull), a.count = pos.pairs > 0 ? 1 : 0;
    a.neg_loss = softplus(push), a.neg_count = 1;
    a.pos.factor = sigmoid(pull);
    a.neg.factor = sigmoid(push);
    return a;
  }
};

// softplus(log sum_P exp(-gamma [1+m-s]_+ (s-1+m)) + log sum_N exp(gamma [s+m]_+ (s-m))), the [.]_+ constants of the
// gradient. Sun et al., CVPR 2020, eq. 6 and 8.
template <typename T>
struct Circle : PairTerms {
  static constexpr int PARAMS = 2;

  T m, gamma;

  FASTPAIR_INLINE Circle(const double* params, bool) : m(T(params[1])), gamma(T(params[0])) {}

  FASTPAIR_INLINE T positive(T s, T) const { return product(positive_slope(s, 0), s - 1 + m); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(negative_slope(s, 0), s - m); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return -gamma * relu(1 + m - s); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return gamma * relu(s + m); }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0 || neg.pairs == 0) return a;
    const double total = pos.log_sum_exp() + neg.log_sum_exp();
    a.loss = softplus(total), a.count = 1;
    a.pos.factor = a.neg.factor = sigmoid(total);
    return a;
  }
};

// [log sum_P exp(d - pos_margin) + log sum_N exp(neg_margin - d)]_+; for a similarity the signs are flipped.
// Hermans et al., 2017, eq. 8.
template <typename T>
struct LiftedStructure : PairTerms {
  static constexpr int PARAMS = 2;

  T pos_margin, neg_margin, sign;

  FASTPAIR_INLINE LiftedStructure(const double* params, bool similarity)
      : pos_margin(T(similarity ? params[0] : -params[0])),
        neg_margin(T(similarity ? params[1] : -params[1])),
        sign(similarity ? T(1) : T(-1)) {}

  FASTPAIR_INLINE T positive(T s, T) const { return sign * (pos_margin - s); }
  FASTPAIR_INLINE T negative(T s, T) const { return sign * (s - neg_margin); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return -sign; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return sign; }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0 || neg.pairs == 0) return a;
    const double total = pos.log_sum_exp() + neg.log_sum_exp();
    a.loss = relu(total), a.count = 1;
    a.pos.factor = a.neg.factor = total > 0 ? 1 : 0;
    return a;
  }
};

// [max_P d - min_N d + margin]_+, or softplus of it, averaged over the anchors where it is not zero; d is -s for a
// similarity. Hermans et al., 2017, eq. 5.
template <typename T, bool Smooth>
struct HardTriplet : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Reduction POSITIVES = Reduction::Max, NEGATIVES = Reduction::Max;

  double margin;
  T sign;

  FASTPAIR_INLINE HardTriplet(const double* params, bool similarity)
      : margin(params[0]), sign(similarity ? T(1) : T(-1)) {}

  FASTPAIR_INLINE T positive(T s, T) const { return -sign * s; }
  FASTPAIR_INLINE T negative(T s, T) const { return sign * s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return -sign; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return sign; }

  FASTPAIR_INLINE Anchor anchor(const Statistic& pos, const Statistic& neg) const {
    Anchor a;
    if (pos.pairs == 0 || neg.pairs == 0) return a;
    const double excess = pos.value + neg.value + margin;
    a.loss = Smooth ? softplus(excess) : relu(excess), a.count = a.loss == 0 ? 0 : 1;
    a.pos.constant = a.neg.constant = Smooth ? sigmoid(excess) : (excess <= 0 ? 0 : 1);
    return a;
  }
};

// ENTRY(name, struct) for every loss, separated by commas.
#define FASTPAIR_PAIR_LOSSES(ENTRY, T)                                                                              \
  ENTRY("contrastive", Contrastive<T, 1>), ENTRY("squared_contrastive", Contrastive<T, 2>), ENTRY("snca", Snca<T>), \
      ENTRY("supcon", SupCon<T>), ENTRY("ntxent", NtXent<T>), ENTRY("sigmoid", Sigmoid<T>),                         \
      ENTRY("multi_similarity", MultiSimilarity<T>), ENTRY("proxy_anchor", ProxyAnchor<T>),                         \
      ENTRY("circle", Circle<T>), ENTRY("lifted_structure", LiftedStructure<T>),                                    \
      ENTRY("hard_triplet", HardTriplet<T, false>), ENTRY("smooth_hard_triplet", HardTriplet<T, true>)

// ---- classes

// The logit of a sample's own class as a function of its cosine c: scale * (c - margin), or scale * cos(theta + margin)
// as long as that falls with the angle theta, and scale * (c - margin sin(margin)) beyond.
// Wang et al., CVPR 2018; Deng et al., CVPR 2019.
enum class Margin { None, CosFace, ArcFace };
template <typename T>
struct TargetLogit {
  Margin kind = Margin::None;
  double scale = 1, margin = 0;

  // Replaces the logit scale * c, and returns the derivative of the new one by it.
  FASTPAIR_INLINE T apply(T* logit) const {
    if (kind == Margin::None) return 1;
    if (kind == Margin::CosFace) {
      *logit -= T(scale * margin);
      return 1;
    }
    const double cos_m = __builtin_cos(margin), sin_m = __builtin_sin(margin), c = *logit / scale;
    if (c < -cos_m) {
      *logit -= T(scale * margin * sin_m);
      return 1;
    }
    // sin(theta), whose slope is infinite at 0: within a thousandth of it a straight line through 0 takes its place.
    constexpr double least = 1e-6;
    const double square = 1 - c * c, root = 1 / square_root(square < least ? least : square);
    const double slope = square < 0 ? 0 : (square < least ? 2 : 1) * -c * root;
    *logit = T(scale * (c * cos_m - relu(square) * root * sin_m));
    return T(cos_m - slope * sin_m);
  }
};

}  // namespace fastpair
