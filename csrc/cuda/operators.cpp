#include "cuda/operators.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <limits>

#include "cuda/device_of.h"
#include "cuda/problem.h"

namespace fastpair::cuda {
namespace {

constexpr int64_t MOST_ELEMENTS = std::numeric_limits<int32_t>::max();

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Element::Float32;
    case ScalarType::BFloat16:
      return Element::BFloat16;
    case ScalarType::Half:
      return Element::Float16;
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

Tensor as_vector(const Tensor& t, ScalarType dtype) {
  const Tensor out = t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  return out.is_contiguous() ? out : torch::stable::contiguous(out);
}

// The arrays of a launch, in one piece of memory.
class Workspace {
 public:
  // Asks for an array, whose address is at *where after `allocate`.
  template <typename T>
  void want(T** where, int64_t count) {
    STD_TORCH_CHECK(count <= MOST_ELEMENTS && count_ < wanted_.size(), "an array of ", count,
                    " elements is too large for the cuda backend");
    wanted_[count_++] = {reinterpret_cast<void**>(where), bytes_};
    bytes_ += (count * int64_t(sizeof(T)) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }

  void allocate(const Tensor& like) {
    memory_ = new_tensor(like, {bytes_ / int64_t(sizeof(float))});
    for (size_t i = 0; i < count_; ++i) {
      *wanted_[i].where = static_cast<char*>(memory_->mutable_data_ptr()) + wanted_[i].offset;
    }
  }

 private:
  static constexpr int64_t ALIGNMENT = 256;
  struct Wanted {
    void** where;
    int64_t offset;
  };
  std::array<Wanted, 16> wanted_;
  size_t count_ = 0;
  int64_t bytes_ = 0;
  std::optional<Tensor> memory_;
};

// The rows of x (and y) as the two sides of a problem, with the tensors that keep their memory alive.
class Operands {
 public:
  Operands(Pairs& problem, const Tensor& x, const OptionalTensor& y, const Distance& distance)
      : problem_(problem), x_(rows_of(x)), y_(y ? std::optional(rows_of(*y)) : std::nullopt) {
    problem.d = int(x.size(1));
    problem.element = element_of(x);
    problem.metric = distance.metric;
    problem.unit = distance.unit_rows;
    problem.symmetric = !y;
    take(problem.side[0], x_);
    if (y_) take(problem.side[1], *y_);
  }

  void want_prepared_rows(Workspace& workspace) {
    const bool converted = problem_.element != Element::Float32 || (problem_.unit && problem_.metric != Metric::Dot);
    for (int s = 0; s < sides(); ++s) {
      Side& side = problem_.side[s];
      if (problem_.unit) workspace.want(&side.inverse_norms, side.n);
      if (converted) workspace.want(&side.prepared, int64_t(side.n) * problem_.d);
    }
  }

  // The second side's scores are a matrix of their own.
  void want_scores(Workspace& workspace, bool of_second_side) {
    for (int s = 0; s < (of_second_side ? sides() : 1); ++s) {
      Side& side = problem_.side[s];
      side.ld = (problem_.side[sides() - 1 - s].n + SCORES_ALIGNMENT - 1) / SCORES_ALIGNMENT * SCORES_ALIGNMENT;
      workspace.want(&side.scores, int64_t(side.n) * side.ld);
    }
  }

  void want_gradients(Workspace& workspace, bool first, bool second) {
    for (int s = 0; s < sides(); ++s) {
      if (!(s == 0 ? first : second)) continue;
      Side& side = problem_.side[s];
      gradients_[s] = new_tensor(x_, {side.n, problem_.d});
      side.gradient = static_cast<float*>(gradients_[s]->mutable_data_ptr());
      if (problem_.unit) workspace.want(&side.along, side.n);
    }
  }

  // To be called after the workspace has its memory.
  void finish() {
    for (Side& side : problem_.side) {
      side.rows = side.prepared ? side.prepared : static_cast<const float*>(side.given_rows);
      side.stride = side.prepared ? problem_.d : side.given_stride;
    }
    if (problem_.symmetric) problem_.side[1] = problem_.side[0];
  }

  int sides() const { return y_ ? 2 : 1; }
  Tensor gradient(int s) const { return gradients_[s] ? *gradients_[s] : new_tensor(x_, {0}); }

 private:
  // A tensor whose elements are adjacent within a row, and no further apart than the kernels can count.
  static Tensor rows_of(const Tensor& t) {
    const bool dense = t.size(1) <= 1 || t.stride(1) == 1;
    return dense && t.stride(0) * t.size(0) <= MOST_ELEMENTS ? t : torch::stable::contiguous(t);
  }

  void take(Side& side, const Tensor& t) {
    const int64_t n = t.size(0), stride = t.stride(0);
    STD_TORCH_CHECK(n * std::max<int64_t>(t.size(1), 1) <= MOST_ELEMENTS, n, " rows of ", t.size(1),
                    " elements are too many for the cuda backend");
    side.n = int(n);
    side.given_rows = t.const_data_ptr();
    side.given_stride = int(stride);
  }

  Pairs& problem_;
  const Tensor x_;
  const std::optional<Tensor> y_;
  std::optional<Tensor> gradients_[2];
};

void want_anchors(Workspace& workspace, Side& side) {
  side.anchors = true;
  workspace.want(&side.weights, int64_t(WEIGHTS) * side.n);
  workspace.want(&side.extremes, 2 * int64_t(side.n));
  workspace.want(&side.totals, int64_t(TOTALS) * side.n);
}

void check_launch(const char* problem) { STD_TORCH_CHECK(!problem, "CUDA: ", problem ? problem : ""); }

}  // namespace

PairLossResults pair_loss(const PairLossArguments& args) {
  STD_TORCH_CHECK(args.labels.dim() == 1 && !args.ids, "the CUDA kernels take single labels, or pairs");
  const OnDevice device(args.embeddings);
  PairLossProblem problem;
  int param_count = 0;
  problem.loss = find_pair_loss(args.loss, &param_count);
  STD_TORCH_CHECK(problem.loss >= 0, "no CUDA kernel for the loss ", args.loss);
  args.check_params(param_count);
  std::copy(args.params.begin(), args.params.end(), problem.params);
  problem.reduction = args.reduction;
  problem.two_sided = args.two_sided;

  Operands operands(problem, args.embeddings, args.ref_emb, args.distance);
  Workspace workspace;
  operands.want_prepared_rows(workspace);
  operands.want_scores(workspace, args.grad_ref || args.two_sided);
  operands.want_gradients(workspace, args.grad_embeddings, args.grad_ref);
  want_anchors(workspace, problem.side[0]);
  if (args.two_sided) want_anchors(workspace, problem.side[1]);
  workspace.allocate(args.embeddings);

  std::array<OptionalTensor, 5> vectors;
  if (args.self_index) vectors[0] = as_vector(*args.self_index, ScalarType::Long);
  if (args.row_grad) vectors[1] = as_vector(*args.row_grad, ScalarType::Float);
  vectors[2] = as_vector(args.labels, ScalarType::Long);
  if (args.ref_labels) vectors[3] = as_vector(*args.ref_labels, ScalarType::Long);
  if (args.weights) vectors[4] = as_vector(*args.weights, ScalarType::Float);
  const auto data = [&](int i) { return vectors[i] ? vectors[i]->const_data_ptr() : nullptr; };
  problem.self_index = static_cast<const int64_t*>(data(0));
  if (args.pairs) problem.pairs = static_cast<const int8_t*>(args.pairs->const_data_ptr());
  problem.weights = static_cast<const float*>(data(4));
  problem.row_grad = static_cast<const float*>(data(1));
  problem.side[0].labels = static_cast<const int64_t*>(data(2));
  problem.side[1].labels = static_cast<const int64_t*>(data(3));
  operands.finish();

  Tensor value = problem.reduction == Reduction::None     ? new_tensor(args.embeddings, {problem.side[0].n})
                 : problem.reduction == Reduction::Totals ? new_tensor(args.embeddings, {TOTALS})
                                                          : new_tensor(args.embeddings, {});
  problem.value = static_cast<float*>(value.mutable_data_ptr());
  check_launch(launch_pair_loss(problem, device.stream));
  return {value, operands.gradient(0), operands.gradient(1)};
}

Tensor pairwise_distance(const Tensor& x, const OptionalTensor& y, const std::string& metric) {
  check_matrix("x", x);
  if (y) check_like("y", *y, x);
  const OnDevice device(x);
  Pairs problem;
  Operands operands(problem, x, y, distance_named(metric));
  Workspace workspace;
  operands.want_prepared_rows(workspace);
  workspace.allocate(x);
  Side& side = problem.side[0];
  side.ld = problem.side[operands.sides() - 1].n;
  STD_TORCH_CHECK(int64_t(side.n) * side.ld <= MOST_ELEMENTS, side.n, " x ", side.ld,
                  " distances are too many for the cuda backend");
  const Tensor out = new_tensor(x, {side.n, side.ld});
  side.scores = static_cast<float*>(out.mutable_data_ptr());
  operands.finish();
  check_launch(launch_scores(problem, device.stream));
  return problem.element == Element::Float32 ? out : torch::stable::to(out, x.scalar_type());
}

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& y,
                                                      const std::string& metric, bool grad_x, bool grad_y) {
  check_matrix("x", x);
  if (y) check_like("y", *y, x);
  check_matrix("grad", grad);
  STD_TORCH_CHECK(!grad_y || y, "grad_y needs y");
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.size(1) == (y ? *y : x).size(0),
                  "grad must be the gradient with respect to all distances");
  const OnDevice device(x);
  const Tensor incoming = torch::stable::to(grad, ScalarType::Float);
  ScoreGradient problem;
  problem.incoming = static_cast<const float*>(incoming.const_data_ptr());
  problem.row_stride = incoming.stride(0);
  problem.col_stride = incoming.stride(1);
  Operands operands(problem, x, y, distance_named(metric));
  Workspace workspace;
  operands.want_prepared_rows(workspace);
  operands.want_scores(workspace, grad_y);
  operands.want_gradients(workspace, grad_x, grad_y);
  workspace.allocate(x);
  operands.finish();
  check_launch(launch_score_gradient(problem, device.stream));
  return {operands.gradient(0), operands.gradient(1)};
}

std::tuple<Tensor, Tensor> inverse_norms(const Tensor& x, const Tensor& y) {
  check_matrix("x", x);
  check_like("y", y, x);
  const OnDevice device(x);
  Pairs problem;
  const Operands operands(problem, x, y, distance_named("cosine"));
  const Tensor of_x = new_tensor(x, {x.size(0)}), of_y = new_tensor(x, {y.size(0)});
  problem.side[0].inverse_norms = static_cast<float*>(of_x.mutable_data_ptr());
  problem.side[1].inverse_norms = static_cast<float*>(of_y.mutable_data_ptr());
  check_launch(launch_norms(problem, device.stream));
  return {of_x, of_y};
}

void project_gradient(Tensor gradient, const Tensor& x, const Tensor& inverse_norms) {
  check_matrix("x", x);
  STD_TORCH_CHECK(x.is_contiguous() && gradient.is_contiguous() && gradient.scalar_type() == ScalarType::Float &&
                      gradient.numel() == x.numel(),
                  "gradient must be float32 of the shape of x, both contiguous");
  check_length("inverse_norms", inverse_norms, x.size(0));
  const OnDevice device(x);
  Projection problem;
  problem.n = int(x.size(0)), problem.d = int(x.size(1));
  problem.element = element_of(x);
  problem.rows = x.const_data_ptr();
  problem.inverse_norms = static_cast<const float*>(inverse_norms.const_data_ptr());
  problem.gradient = static_cast<float*>(gradient.mutable_data_ptr());
  check_launch(launch_projection(problem, device.stream));
}

Tensor softmax(const Tensor& products, const OptionalTensor& bias, const OptionalTensor& row_norms,
               const OptionalTensor& class_norms, const Tensor& labels, const OptionalTensor& row_grad,
               const std::string& logits, double scale, double margin, double label_smoothing, int64_t ignore_index,
               const std::string& reduction, std::optional<Tensor> slopes, std::optional<Tensor> rest) {
  check_matrix("products", products);
  const int64_t n = products.size(0), classes = products.size(1);
  STD_TORCH_CHECK(products.scalar_type() == ScalarType::Float && products.stride(1) == 1 && n < MOST_ELEMENTS &&
                      classes < MOST_ELEMENTS,
                  "products must be rows of float32");
  check_length("labels", labels, n);
  const OnDevice device(products);
  std::array<OptionalTensor, 4> kept;
  const auto floats = [&](int place, const char* name, const OptionalTensor& t, int64_t length) {
    if (!t) return static_cast<const float*>(nullptr);
    check_length(name, *t, length);
    kept[place] = as_vector(*t, ScalarType::Float);
    return static_cast<const float*>(kept[place]->const_data_ptr());
  };
  const Tensor label_vector = as_vector(labels, ScalarType::Long);
  Softmax problem;
  problem.n = int(n), problem.classes = int(classes);
  problem.products = static_cast<const float*>(products.const_data_ptr());
  problem.ld = products.stride(0);
  problem.labels = static_cast<const int64_t*>(label_vector.const_data_ptr());
  problem.bias = floats(0, "bias", bias, classes);
  problem.row_norms = floats(1, "row_norms", row_norms, n);
  problem.class_norms = floats(2, "class_norms", class_norms, classes);
  problem.row_grad = floats(3, "row_grad", row_grad, n);
  problem.margin_kind = margin_named(logits);
  problem.scale = scale, problem.margin = margin, problem.label_smoothing = label_smoothing;
  problem.ignore_index = ignore_index;
  problem.reduction = reduction_named(reduction);
  const auto output = [&](const char* name, std::optional<Tensor>& t) {
    if (!t) return static_cast<void*>(nullptr);
    check_matrix(name, *t);
    problem.slope_element = element_of(*t);
    STD_TORCH_CHECK(problem.slope_element != Element::Float16 && t->size(0) == n && t->size(1) == classes &&
                        t->stride(0) == problem.ld && t->stride(1) == 1,
                    name, " must be float32 or bfloat16 in the layout of products");
    return t->mutable_data_ptr();
  };
  problem.slopes = output("slopes", slopes);
  problem.rest = output("rest", rest);
  const Tensor losses = new_tensor(products, {n});
  problem.losses = static_cast<float*>(losses.mutable_data_ptr());
  const Tensor value = problem.reduction == Reduction::None ? losses : new_tensor(products, {});
  problem.value = static_cast<float*>(value.mutable_data_ptr());
  check_launch(launch_softmax(problem, device.stream));
  return value;
}

}  // namespace fastpair::cuda
