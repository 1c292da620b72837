// The pair losses, one struct each. Made by `python -m fastpair.formulas` from the definitions in
// fastpair/formulas/pair_losses.py: not to be edited.
// clang-format off
#pragma once

#include "elementary.h"
#include "pair_losses/statistics.h"

namespace fastpair {

template <typename T>
struct Contrastive : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::Sum;
  static constexpr bool IS_SUM = true;
  static constexpr bool SEPARATE_MEANS = true;
  T pos_margin, neg_margin;
  FASTPAIR_INLINE explicit Contrastive(const double* params) : pos_margin(T(params[0])), neg_margin(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return relu(pos_margin - s); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return -step(pos_margin - s); }
  FASTPAIR_INLINE T negative(T s, T) const { return relu(s - neg_margin); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return step(s - neg_margin); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    Anchor a;
    a.loss = pos.value;
    a.count = pos.nonzero;
    a.neg_loss = neg.value;
    a.neg_count = neg.nonzero;
    a.pos.constant = 1;
    a.neg.constant = 1;
    return a;
  }
};

template <typename T>
struct SquaredContrastive : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::Sum;
  static constexpr bool IS_SUM = true;
  T pos_margin, neg_margin;
  FASTPAIR_INLINE explicit SquaredContrastive(const double* params) : pos_margin(T(params[0])), neg_margin(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return square(relu(pos_margin - s)); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return T(2) * -relu(pos_margin - s); }
  FASTPAIR_INLINE T negative(T s, T) const { return square(relu(s - neg_margin)); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return T(2) * relu(s - neg_margin); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    Anchor a;
    a.loss = pos.value + neg.value;
    a.count = 1;
    a.pos.constant = 1;
    a.neg.constant = 1;
    return a;
  }
};

template <typename T>
struct Snca : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  static constexpr int SCALE = 1;
  T scale;
  FASTPAIR_INLINE explicit Snca(const double* params) : scale(T(params[0])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0) return {};
    const double x2 = neg.value - pos.value + (neg.log_sum - pos.log_sum);
    const double x1 = sigmoid(x2);
    Anchor a;
    a.loss = softplus(x2);
    a.count = 1;
    a.pos.factor = -x1;
    a.neg.factor = x1;
    return a;
  }
};

template <typename T>
struct Supcon : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  static constexpr bool NEEDS_SUM = true;
  static constexpr int SCALE = 1;
  T scale;
  FASTPAIR_INLINE explicit Supcon(const double* params) : scale(T(params[0])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0) return {};
    const double x1 = neg.value - pos.value + (neg.log_sum - pos.log_sum);
    Anchor a;
    a.loss = pos.value - pos.sum / pos.pairs + (pos.log_sum + softplus(x1));
    a.count = 1;
    a.pos.factor = sigmoid(-x1);
    a.pos.constant = -1 / pos.pairs;
    a.neg.factor = sigmoid(x1);
    return a;
  }
};

template <typename T>
struct Dcl : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::LogSumExp;
  static constexpr int SCALE = 1;
  T scale;
  FASTPAIR_INLINE explicit Dcl(const double* params) : scale(T(params[0])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return scale * s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0 || neg.pairs == 0) return {};
    Anchor a;
    a.loss = neg.value - pos.value / pos.pairs + neg.log_sum;
    a.count = 1;
    a.pos.constant = -1 / pos.pairs;
    a.neg.factor = 1;
    return a;
  }
};

template <typename T>
struct Sincere : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::LogSumExp;
  static constexpr bool READS_NEGATIVES_LSE = true;
  static constexpr int SCALE = 1;
  T scale;
  FASTPAIR_INLINE explicit Sincere(const double* params) : scale(T(params[0])) {}
  FASTPAIR_INLINE T positive(T s, T negatives_lse) const { return softplus(negatives_lse - product(scale, s)); }
  FASTPAIR_INLINE T positive_slope(T s, T negatives_lse) const { return product(sigmoid(negatives_lse - product(scale, s)), -scale); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T slope_by_negatives_lse(T s, T negatives_lse) const { return sigmoid(negatives_lse - product(scale, s)); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic&) {
    if (pos.pairs == 0) return {};
    const double x1 = 1 / pos.pairs;
    Anchor a;
    a.loss = pos.value / pos.pairs;
    a.count = 1;
    a.pos.constant = x1;
    a.neg.factor = x1 * pos.by_negatives_lse;
    return a;
  }
};

template <typename T>
struct Ntxent : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::LogSumExp;
  static constexpr bool READS_NEGATIVES_LSE = true;
  static constexpr int SCALE = 1;
  T scale;
  FASTPAIR_INLINE explicit Ntxent(const double* params) : scale(T(params[0])) {}
  FASTPAIR_INLINE T positive(T s, T negatives_lse) const { return softplus(negatives_lse - product(scale, s)); }
  FASTPAIR_INLINE T positive_slope(T s, T negatives_lse) const { return product(sigmoid(negatives_lse - product(scale, s)), -scale); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE T slope_by_negatives_lse(T s, T negatives_lse) const { return sigmoid(negatives_lse - product(scale, s)); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic&) {
    Anchor a;
    a.loss = pos.value;
    a.count = pos.pairs;
    a.pos.constant = 1;
    a.neg.factor = pos.by_negatives_lse;
    return a;
  }
};

template <typename T>
struct Sigmoid : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::Sum;
  static constexpr bool IS_SUM = true;
  static constexpr int SCALE = 1;
  static constexpr int BIAS = 2;
  T scale, bias;
  FASTPAIR_INLINE explicit Sigmoid(const double* params) : scale(T(params[0])), bias(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return softplus(-(scale * s + bias)); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return sigmoid(-(scale * s + bias)) * -scale; }
  FASTPAIR_INLINE T negative(T s, T) const { return softplus(scale * s + bias); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return sigmoid(scale * s + bias) * scale; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    Anchor a;
    a.loss = pos.value + neg.value;
    a.count = 1;
    a.pos.constant = 1;
    a.neg.constant = 1;
    return a;
  }
};

template <typename T>
struct MultiSimilarity : PairTerms {
  static constexpr int PARAMS = 3;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  T alpha, base, beta;
  FASTPAIR_INLINE explicit MultiSimilarity(const double* params) : alpha(T(params[0])), base(T(params[1])), beta(T(params[2])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return product(-alpha, s - base); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return -alpha; }
  FASTPAIR_INLINE T negative(T s, T) const { return product(beta, s - base); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return beta; }
  FASTPAIR_INLINE static Anchor anchor(const double* params, const Statistic& pos, const Statistic& neg) {
    const double alpha = params[0];
    const double beta = params[2];
    const double x2 = neg.value + neg.log_sum;
    const double x1 = pos.value + pos.log_sum;
    Anchor a;
    a.loss = softplus(x1) / alpha + softplus(x2) / beta;
    a.count = 1;
    a.pos.factor = sigmoid(x1) / alpha;
    a.neg.factor = sigmoid(x2) / beta;
    return a;
  }
};

template <typename T>
struct ProxyAnchor : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  static constexpr bool SEPARATE_MEANS = true;
  T alpha, margin;
  FASTPAIR_INLINE explicit ProxyAnchor(const double* params) : alpha(T(params[0])), margin(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return product(-alpha, s - margin); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return -alpha; }
  FASTPAIR_INLINE T negative(T s, T) const { return product(alpha, s + margin); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return alpha; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    const double x2 = neg.value + neg.log_sum;
    const double x1 = pos.value + pos.log_sum;
    Anchor a;
    a.loss = softplus(x1);
    a.count = step(pos.pairs);
    a.neg_loss = softplus(x2);
    a.neg_count = 1;
    a.pos.factor = sigmoid(x1);
    a.neg.factor = sigmoid(x2);
    return a;
  }
};

template <typename T>
struct Circle : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  T gamma, m;
  FASTPAIR_INLINE explicit Circle(const double* params) : gamma(T(params[0])), m(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return product(product(-gamma, relu(T(1) + m - s)), s - T(1) + m); }
  FASTPAIR_INLINE T positive_slope(T s, T) const { return product(-gamma, relu(T(1) + m - s)); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(product(gamma, relu(s + m)), s - m); }
  FASTPAIR_INLINE T negative_slope(T s, T) const { return product(gamma, relu(s + m)); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0 || neg.pairs == 0) return {};
    const double x2 = pos.value + pos.log_sum + (neg.value + neg.log_sum);
    const double x1 = sigmoid(x2);
    Anchor a;
    a.loss = softplus(x2);
    a.count = 1;
    a.pos.factor = x1;
    a.neg.factor = x1;
    return a;
  }
};

template <typename T>
struct LiftedStructure : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::LogSumExp, NEGATIVES = Pool::LogSumExp;
  T pos_margin, neg_margin;
  FASTPAIR_INLINE explicit LiftedStructure(const double* params) : pos_margin(T(params[0])), neg_margin(T(params[1])) {}
  FASTPAIR_INLINE T positive(T s, T) const { return pos_margin - s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return T(-1); }
  FASTPAIR_INLINE T negative(T s, T) const { return s - neg_margin; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return T(1); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0 || neg.pairs == 0) return {};
    const double x2 = pos.value + pos.log_sum + (neg.value + neg.log_sum);
    const double x1 = step(x2);
    Anchor a;
    a.loss = relu(x2);
    a.count = 1;
    a.pos.factor = x1;
    a.neg.factor = x1;
    return a;
  }
};

template <typename T>
struct RowLogsumexp : PairTerms {
  static constexpr int PARAMS = 2;
  static constexpr Pool POSITIVES = Pool::Sum, NEGATIVES = Pool::LogSumExp;
  static constexpr int SCALE = 1;
  T scale, hardness;
  FASTPAIR_INLINE explicit RowLogsumexp(const double* params) : scale(T(params[0])), hardness(T(params[1])) {}
  FASTPAIR_INLINE T positive(T, T) const { return T(0); }
  FASTPAIR_INLINE T positive_slope(T, T) const { return T(0); }
  FASTPAIR_INLINE T negative(T s, T) const { return product(scale, s) + product(hardness, s); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return scale; }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic&, const Statistic& neg) {
    Anchor a;
    a.loss = neg.value + neg.log_sum;
    a.count = 1;
    a.neg.factor = 1;
    return a;
  }
};

template <typename T>
struct BestPositive : PairTerms {
  static constexpr int PARAMS = 0;
  static constexpr Pool POSITIVES = Pool::Max, NEGATIVES = Pool::Sum;
  FASTPAIR_INLINE explicit BestPositive(const double*) {}
  FASTPAIR_INLINE T positive(T s, T) const { return s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return T(1); }
  FASTPAIR_INLINE T negative(T, T) const { return T(0); }
  FASTPAIR_INLINE T negative_slope(T, T) const { return T(0); }
  FASTPAIR_INLINE static Anchor anchor(const double*, const Statistic& pos, const Statistic&) {
    Anchor a;
    a.loss = pos.value;
    a.count = 1;
    a.pos.constant = 1;
    return a;
  }
};

template <typename T>
struct HardTriplet : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::Max, NEGATIVES = Pool::Max;
  FASTPAIR_INLINE explicit HardTriplet(const double*) {}
  FASTPAIR_INLINE T positive(T s, T) const { return -s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return T(-1); }
  FASTPAIR_INLINE T negative(T s, T) const { return s; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return T(1); }
  FASTPAIR_INLINE static Anchor anchor(const double* params, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0 || neg.pairs == 0) return {};
    const double margin = params[0];
    const double x3 = pos.value + neg.value + margin;
    const double x2 = step(x3);
    const double x1 = relu(x3);
    Anchor a;
    a.loss = x1;
    a.count = nonzero(x1);
    a.pos.constant = x2;
    a.neg.constant = x2;
    return a;
  }
};

template <typename T>
struct SmoothHardTriplet : PairTerms {
  static constexpr int PARAMS = 1;
  static constexpr Pool POSITIVES = Pool::Max, NEGATIVES = Pool::Max;
  FASTPAIR_INLINE explicit SmoothHardTriplet(const double*) {}
  FASTPAIR_INLINE T positive(T s, T) const { return -s; }
  FASTPAIR_INLINE T positive_slope(T, T) const { return T(-1); }
  FASTPAIR_INLINE T negative(T s, T) const { return s; }
  FASTPAIR_INLINE T negative_slope(T, T) const { return T(1); }
  FASTPAIR_INLINE static Anchor anchor(const double* params, const Statistic& pos, const Statistic& neg) {
    if (pos.pairs == 0 || neg.pairs == 0) return {};
    const double margin = params[0];
    const double x3 = pos.value + neg.value + margin;
    const double x2 = sigmoid(x3);
    const double x1 = softplus(x3);
    Anchor a;
    a.loss = x1;
    a.count = nonzero(x1);
    a.pos.constant = x2;
    a.neg.constant = x2;
    return a;
  }
};

// ENTRY(name, struct) for every loss, separated by commas.
#define FASTPAIR_PAIR_LOSSES(ENTRY, T) \
  ENTRY("contrastive", Contrastive<T>), \
  ENTRY("squared_contrastive", SquaredContrastive<T>), \
  ENTRY("snca", Snca<T>), \
  ENTRY("supcon", Supcon<T>), \
  ENTRY("dcl", Dcl<T>), \
  ENTRY("sincere", Sincere<T>), \
  ENTRY("ntxent", Ntxent<T>), \
  ENTRY("sigmoid", Sigmoid<T>), \
  ENTRY("multi_similarity", MultiSimilarity<T>), \
  ENTRY("proxy_anchor", ProxyAnchor<T>), \
  ENTRY("circle", Circle<T>), \
  ENTRY("lifted_structure", LiftedStructure<T>), \
  ENTRY("row_logsumexp", RowLogsumexp<T>), \
  ENTRY("best_positive", BestPositive<T>), \
  ENTRY("hard_triplet", HardTriplet<T>), \
  ENTRY("smooth_hard_triplet", SmoothHardTriplet<T>)

}  // namespace fastpair
