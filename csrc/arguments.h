// The operators' arguments, and checks of them. The Python layer reports errors in the user's terms; these keep a
// direct call of an operator from reading beyond the data.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "margins.h"
#include "settings.h"

namespace fastpair {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, name, " must have 2 dimensions, got ", t.dim());
}

inline void check_length(const char* name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == n, name, " must have ", n, " elements in one dimension, got ", t.numel(),
                  " in ", t.dim());
}

inline void check_like(const char* name, const Tensor& t, const Tensor& other) {
  check_matrix(name, t);
  STD_TORCH_CHECK(t.size(1) == other.size(1), name, " must have ", other.size(1), " columns, got ", t.size(1));
  STD_TORCH_CHECK(t.scalar_type() == other.scalar_type(), name, " must be ",
                  torch::headeronly::toString(other.scalar_type()), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

// Checks of fastpair::pairwise_distance and of its gradient.
inline void check_sides(const Tensor& x, const std::optional<Tensor>& y) {
  check_matrix("x", x);
  if (y) check_like("y", *y, x);
}

inline void check_gradient(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& y, bool grad_y) {
  check_sides(x, y);
  check_matrix("grad", grad);
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(1) == (y ? *y : x).size(0),
                  "grad must have the shape of the distances");
  STD_TORCH_CHECK(!grad_y || y, "grad_y needs y");
}

// How a score is made: `metric` of the rows, which are divided by their norms first if `unit_rows`.
struct Distance {
  Metric metric;
  bool unit_rows;
};

inline Distance distance_named(const std::string& name) {
  if (name == "cosine") return {Metric::Dot, true};
  if (name == "dot") return {Metric::Dot, false};
  if (name == "sqeuclidean") return {Metric::SqEuclidean, false};
  if (name == "unit_sqeuclidean") return {Metric::SqEuclidean, true};
  if (name == "unit_euclidean") return {Metric::Euclidean, true};
  STD_TORCH_CHECK(name == "euclidean", "unknown distance ", name);
  return {Metric::Euclidean, false};
}

inline Reduction reduction_named(const std::string& name, bool has_totals = false) {
  if (name == "mean") return Reduction::Mean;
  if (name == "sum") return Reduction::Sum;
  if (name == "totals" && has_totals) return Reduction::Totals;
  STD_TORCH_CHECK(name == "none", "unknown reduction ", name);
  return Reduction::None;
}

// The margin on the logit of the own class. All logits but "linear" are cosines.
inline Margin margin_named(const std::string& logits) {
  if (logits == "linear") return Margin::None;
  if (logits == "cosface") return Margin::CosFace;
  STD_TORCH_CHECK(logits == "arcface", "unknown logits ", logits);
  return Margin::ArcFace;
}

inline const std::optional<Tensor> NO_TENSOR;
inline const std::vector<int64_t> NO_PREFIXES;
inline const std::vector<double> NO_WEIGHTS;

// The arguments of fastpair::pair_loss.
struct PairLossArguments {
  const Tensor& embeddings;
  const std::optional<Tensor>& ref_emb;
  const Tensor& labels;
  const std::optional<Tensor>&ref_labels, &self_index, &row_grad;
  const std::string& loss;
  const std::vector<double>& params;
  const Distance distance;
  const bool two_sided;
  const Reduction reduction;
  const bool grad_embeddings, grad_ref, grad_learned = false;
  const std::optional<Tensor>&learned = NO_TENSOR, &ids = NO_TENSOR, &ref_ids = NO_TENSOR, &pairs = NO_TENSOR,
        &weights = NO_TENSOR, &anchor_scalars = NO_TENSOR, &ref_scalars = NO_TENSOR;
  // Rising numbers of columns: the loss is the weighted sum of those of the first columns. None: one of all columns.
  const std::vector<int64_t>& prefixes = NO_PREFIXES;
  const std::vector<double>& prefix_weights = NO_WEIGHTS;

  void check() const {
    check_matrix("embeddings", embeddings);
    const int64_t n = embeddings.size(0);
    check_labels("labels", labels, n);
    STD_TORCH_CHECK(ref_emb.has_value() == ref_labels.has_value(), "ref_emb and ref_labels go together");
    STD_TORCH_CHECK(!grad_ref || ref_emb, "grad_ref needs ref_emb");
    STD_TORCH_CHECK(!self_index || ref_emb, "self_index needs ref_emb");
    STD_TORCH_CHECK(!two_sided || (ref_emb && !self_index), "two_sided needs ref_emb and no self_index");
    STD_TORCH_CHECK(!two_sided || reduction != Reduction::Totals, "two_sided has no totals");
    if (ref_emb) {
      check_like("ref_emb", *ref_emb, embeddings);
      check_labels("ref_labels", *ref_labels, ref_emb->size(0));
      STD_TORCH_CHECK(!two_sided || ref_emb->size(0) == n, "two_sided needs as many references as anchors");
    }
    if (self_index) check_length("self_index", *self_index, n);
    if (ids) check_length("ids", *ids, n);
    STD_TORCH_CHECK(ids && ref_emb ? ref_ids.has_value() : !ref_ids.has_value(),
                    "ref_ids must go with ids and ref_emb");
    if (ref_ids) check_length("ref_ids", *ref_ids, ref_emb->size(0));
    if (pairs) check_pairs();
    if (weights) check_length("weights", *weights, n);
    STD_TORCH_CHECK(!weights || !two_sided, "two_sided has no weights");
    if (learned) check_length("learned", *learned, learned->numel());
    if (row_grad) check_length("row_grad", *row_grad, reduction == Reduction::Totals ? 4 : n);
    if (!prefixes.empty()) check_prefixes();
  }

  void check_prefixes() const {
    STD_TORCH_CHECK(distance.metric == Metric::Dot && reduction != Reduction::Totals,
                    "prefixes must have a similarity, and no totals");
    int64_t last = 0;
    for (const int64_t columns : prefixes) {
      STD_TORCH_CHECK(columns > last && columns <= embeddings.size(1), "prefixes must have rising lengths up to ",
                      embeddings.size(1), ", got ", columns, " after ", last);
      last = columns;
    }
    STD_TORCH_CHECK(prefix_weights.size() == prefixes.size(), "prefix_weights must have ", prefixes.size(),
                    " elements, got ", prefix_weights.size());
  }

  // One label a sample, or a set of them, whose bits are those of 32-bit words.
  void check_labels(const char* name, const Tensor& t, int64_t n) const {
    if (t.dim() != 2) return check_length(name, t, n);
    STD_TORCH_CHECK(
        labels.dim() == 2 && t.size(0) == n && t.size(1) == labels.size(1) && t.scalar_type() == ScalarType::Int, name,
        " must be int32 (", n, ", words)");
  }

  // `count` numbers of each row of `owner`.
  void check_scalars(const char* name, const std::optional<Tensor>& t, int64_t count, const Tensor& owner) const {
    if (!t && count == 0) return;
    STD_TORCH_CHECK(t && !two_sided && t->dim() == 2 && t->size(0) == count && t->size(1) == owner.size(0), name,
                    " must have shape (", count, ", ", owner.size(0), "), without two_sided");
  }

  void check_pairs() const {
    STD_TORCH_CHECK(ref_emb && !ids && !self_index && !two_sided && labels.dim() == 1,
                    "pairs need ref_emb, single labels, and no ids, self_index or two_sided");
    STD_TORCH_CHECK(pairs->dim() == 2 && pairs->size(0) == embeddings.size(0) && pairs->size(1) == ref_emb->size(0) &&
                        pairs->scalar_type() == ScalarType::Char && pairs->is_contiguous(),
                    "pairs must be a contiguous int8 matrix of anchors and references");
  }

  void check_params(int64_t count) const {
    const int64_t given = learned ? learned->numel() : params.size();
    STD_TORCH_CHECK(given == count, "params must have ", count, " elements, got ", given);
  }
};

// The value, and the gradients with respect to embeddings, ref_emb and learned, empty where they are not wanted.
struct PairLossResults {
  Tensor value, by_embeddings, by_ref;
  std::optional<Tensor> by_learned;  // null for empty

  // As operators return them.
  std::tuple<Tensor, Tensor, Tensor, Tensor> tensors(const Tensor& embeddings) const {
    const bool wide = embeddings.scalar_type() == ScalarType::Double;
    const auto empty = [&] {
      return torch::stable::new_empty(embeddings, {0}, wide ? ScalarType::Double : ScalarType::Float);
    };
    return {value, by_embeddings, by_ref, by_learned ? *by_learned : empty()};
  }
};

// The operators as they are registered, for a backend that computes them with RUN.
template <PairLossResults (*RUN)(const PairLossArguments&)>
struct PairLossOperators {
  using Optional = std::optional<Tensor>;

  // `further`: the last fields of PairLossArguments, by default as for labels alone.
  template <typename... Further>
  static PairLossResults run(const Tensor& embeddings, const Optional& ref_emb, const Tensor& labels,
                             const Optional& ref_labels, const Optional& self_index, const Optional& row_grad,
                             const std::string& loss, const std::vector<double>& params, const std::string& distance,
                             bool two_sided, const std::string& reduction, bool grad_embeddings, bool grad_ref,
                             const Further&... further) {
    const Distance scores = distance_named(distance);
    const Reduction reduced = reduction_named(reduction, true);
    const PairLossArguments arguments{embeddings, ref_emb,   labels, ref_labels, self_index, row_grad,
                                      loss,       params,    scores, two_sided,  reduced,    grad_embeddings,
                                      grad_ref,   further...};
    arguments.check();
    return RUN(arguments);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> pair_loss(
      const Tensor& embeddings, const Optional& ref_emb, const Optional& learned, const Tensor& labels,
      const Optional& ref_labels, const Optional& self_index, const Optional& row_grad, const std::string& loss,
      const std::vector<double>& params, const std::string& distance, bool two_sided, const std::string& reduction,
      bool grad_embeddings, bool grad_ref, bool grad_learned, const Optional& ids, const Optional& ref_ids,
      const Optional& pairs, const Optional& weights, const Optional& anchor_scalars, const Optional& ref_scalars) {
    return prefix_pair_loss(embeddings, ref_emb, learned, labels, ref_labels, self_index, row_grad, loss, params,
                            NO_PREFIXES, NO_WEIGHTS, distance, two_sided, reduction, grad_embeddings, grad_ref,
                            grad_learned, ids, ref_ids, pairs, weights, anchor_scalars, ref_scalars);
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> prefix_pair_loss(
      const Tensor& embeddings, const Optional& ref_emb, const Optional& learned, const Tensor& labels,
      const Optional& ref_labels, const Optional& self_index, const Optional& row_grad, const std::string& loss,
      const std::vector<double>& params, const std::vector<int64_t>& prefixes,
      const std::vector<double>& prefix_weights, const std::string& distance, bool two_sided,
      const std::string& reduction, bool grad_embeddings, bool grad_ref, bool grad_learned, const Optional& ids,
      const Optional& ref_ids, const Optional& pairs, const Optional& weights, const Optional& anchor_scalars,
      const Optional& ref_scalars) {
    const PairLossResults results =
        run(embeddings, ref_emb, labels, ref_labels, self_index, row_grad, loss, params, distance, two_sided, reduction,
            grad_embeddings, grad_ref, grad_learned, learned, ids, ref_ids, pairs, weights, anchor_scalars, ref_scalars,
            prefixes, prefix_weights);
    return results.tensors(embeddings);
  }

  static std::tuple<Tensor, Tensor, Tensor> labelled_pair_loss(
      const Tensor& embeddings, const Optional& ref_emb, const Tensor& labels, const Optional& ref_labels,
      const Optional& self_index, const Optional& row_grad, const std::string& loss, const std::vector<double>& params,
      const std::string& distance, bool two_sided, const std::string& reduction, bool grad_embeddings, bool grad_ref) {
    const PairLossResults results = run(embeddings, ref_emb, labels, ref_labels, self_index, row_grad, loss, params,
                                        distance, two_sided, reduction, grad_embeddings, grad_ref);
    return {results.value, results.by_embeddings, results.by_ref};
  }
};

}  // namespace fastpair
