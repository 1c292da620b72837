#include "cuda/operators.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <tuple>

#include "arguments.h"
#include "cuda/device_of.h"
#include "cuda/problem.h"

namespace fastpair::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

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

// The vectors of a launch as the kernels read them: contiguous, integers as int64_t and others as float.
class Vectors {
 public:
  const int64_t* integers(const OptionalTensor& t) { return static_cast<const int64_t*>(data(t, ScalarType::Long)); }
  const float* floats(const OptionalTensor& t) { return static_cast<const float*>(data(t, ScalarType::Float)); }

 private:
  const void* data(const OptionalTensor& t, ScalarType dtype) {
    if (!t) return nullptr;
    const Tensor converted = t->scalar_type() == dtype ? *t : torch::stable::to(*t, dtype);
    Tensor& kept = kept_.at(count_++).emplace(converted);
    if (!kept.is_contiguous()) kept = torch::stable::contiguous(kept);
    return kept.const_data_ptr();
  }
  std::array<OptionalTensor, 6> kept_;
  size_t count_ = 0;
};

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

// The rows of x (and y) as the two sides of a problem, with the tensors that keep their memory alive, and the arrays
// for the launch.
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

  void want_prepared_rows() {
    const bool converted = problem_.element != Element::Float32 || (problem_.unit && problem_.metric != Metric::Dot);
    for (int s = 0; s < sides(); ++s) {
      Side& side = problem_.side[s];
      if (problem_.unit) workspace_.want(&side.inverse_norms, side.n);
      if (converted) workspace_.want(&side.prepared, int64_t(side.n) * problem_.d);
    }
  }

  // The second side's scores are a matrix of their own.
  void want_scores(bool of_second_side) {
    for (int s = 0; s < (of_second_side ? sides() : 1); ++s) {
      Side& side = problem_.side[s];
      side.ld = (problem_.side[sides() - 1 - s].n + SCORES_ALIGNMENT - 1) / SCORES_ALIGNMENT * SCORES_ALIGNMENT;
      workspace_.want(&side.scores, int64_t(side.n) * side.ld);
    }
  }

  void want_gradients(bool first, bool second) {
    for (int s = 0; s < sides(); ++s) {
      if (!(s == 0 ? first : second)) continue;
      Side& side = problem_.side[s];
      gradients_[s] = new_tensor(x_, {side.n, problem_.d});
      side.gradient = static_cast<float*>(gradients_[s]->mutable_data_ptr());
      if (problem_.unit) workspace_.want(&side.along, side.n);
    }
  }

  void want_closeness_sums(int s) {
    Side& side = problem_.side[s];
    workspace_.want(&side.closeness_sums, 2 * int64_t(side.n));
  }

  void want_anchors(int s) {
    Side& side = problem_.side[s];
    side.anchors = true;
    workspace_.want(&side.weights, int64_t(WEIGHTS) * side.n);
    workspace_.want(&side.extremes, 2 * int64_t(side.n));
    workspace_.want(&side.totals, int64_t(TOTALS) * side.n);
  }

  // To be called when all that the launch needs has been asked for.
  void finish() {
    workspace_.allocate(x_);
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
  Workspace workspace_;
  std::optional<Tensor> gradients_[2];
};

void check_launch(const char* problem) { STD_TORCH_CHECK(!problem, "CUDA: ", problem ? problem : ""); }

PairLossResults pair_loss(const PairLossArguments& args) {
  STD_TORCH_CHECK(args.labels.dim() == 1 && !args.ids, "the CUDA kernels take single labels, or pairs");
  STD_TORCH_CHECK(!args.anchor_scalars && !args.ref_scalars, "the CUDA kernels take no numbers of rows");
  const OnDevice device(args.embeddings);
  PairLossProblem problem;
  int param_count = 0;
  bool learns = false;
  problem.loss = find_pair_loss(args.loss, &param_count, &learns);
  STD_TORCH_CHECK(problem.loss >= 0, "no CUDA kernel for the loss ", args.loss);
  args.check_params(param_count);
  STD_TORCH_CHECK(learns || !(args.learned || args.grad_learned), "no parameter of ", args.loss, " learns");
  std::copy(args.params.begin(), args.params.end(), problem.params);
  problem.reduction = args.reduction;
  problem.two_sided = args.two_sided;

  Operands operands(problem, args.embeddings, args.ref_emb, args.distance);
  operands.want_prepared_rows();
  operands.want_scores(args.grad_ref || args.two_sided);
  // The gradient by the parameters is made with that by the rows.
  const bool first = args.grad_embeddings || (args.grad_learned && !args.grad_ref);
  operands.want_gradients(first, args.grad_ref);
  if (args.grad_learned) operands.want_closeness_sums(first ? 0 : 1);
  operands.want_anchors(0);
  if (args.two_sided) operands.want_anchors(1);
  Vectors vectors;
  problem.self_index = vectors.integers(args.self_index);
  if (args.pairs) problem.pairs = static_cast<const int8_t*>(args.pairs->const_data_ptr());
  problem.weights = vectors.floats(args.weights);
  problem.learned = vectors.floats(args.learned);
  const OptionalTensor by_learned =
      args.grad_learned ? OptionalTensor(new_tensor(args.embeddings, {param_count})) : std::nullopt;
  if (by_learned) problem.by_learned = static_cast<float*>(by_learned->mutable_data_ptr());
  problem.row_grad = vectors.floats(args.row_grad);
  problem.side[0].labels = vectors.integers(args.labels);
  problem.side[1].labels = vectors.integers(args.ref_labels);
  operands.finish();

  Tensor value = problem.reduction == Reduction::None     ? new_tensor(args.embeddings, {problem.side[0].n})
                 : problem.reduction == Reduction::Totals ? new_tensor(args.embeddings, {TOTALS})
                                                          : new_tensor(args.embeddings, {});
  problem.value = static_cast<float*>(value.mutable_data_ptr());
  check_launch(launch_pair_loss(problem, device.stream));
  return {value, args.grad_embeddings ? operands.gradient(0) : new_tensor(args.embeddings, {0}), operands.gradient(1),
          by_learned};
}

Tensor pairwise_distance(const Tensor& x, const OptionalTensor& y, const std::string& metric) {
  check_sides(x, y);
  const OnDevice device(x);
  Pairs problem;
  Operands operands(problem, x, y, distance_named(metric));
  operands.want_prepared_rows();
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
  check_gradient(grad, x, y, grad_y);
  const OnDevice device(x);
  const Tensor incoming = torch::stable::to(grad, ScalarType::Float);
  ScoreGradient problem;
  problem.incoming = static_cast<const float*>(incoming.const_data_ptr());
  problem.row_stride = incoming.stride(0);
  problem.col_stride = incoming.stride(1);
  Operands operands(problem, x, y, distance_named(metric));
  operands.want_prepared_rows();
  operands.want_scores(grad_y);
  operands.want_gradients(grad_x, grad_y);
  operands.finish();
  check_launch(launch_score_gradient(problem, device.stream));
  return {operands.gradient(0), operands.gradient(1)};
}

// The inverse norms of the rows of x and of y.
std::tuple<Tensor, Tensor> inverse_norms(const Tensor& x, const Tensor& y) {
  check_sides(x, y);
  const OnDevice device(x);
  Pairs problem;
  const Operands operands(problem, x, y, distance_named("cosine"));
  const Tensor of_x = new_tensor(x, {x.size(0)}), of_y = new_tensor(x, {y.size(0)});
  problem.side[0].inverse_norms = static_cast<float*>(of_x.mutable_data_ptr());
  problem.side[1].inverse_norms = static_cast<float*>(of_y.mutable_data_ptr());
  check_launch(launch_norms(problem, device.stream));
  return {of_x, of_y};
}

// Turns `gradient`, by the rows of x divided by their norms, into the gradient by x, in place.
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

// The value of cross-entropy given the products of embeddings and class weights. The derivatives by these go to
// `slopes`, and the remainders of their rounding to `rest`.
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
  if (bias) check_length("bias", *bias, classes);
  if (row_norms) check_length("row_norms", *row_norms, n);
  if (class_norms) check_length("class_norms", *class_norms, classes);
  if (row_grad) check_length("row_grad", *row_grad, n);
  Vectors vectors;
  Softmax problem;
  problem.n = int(n), problem.classes = int(classes);
  problem.products = static_cast<const float*>(products.const_data_ptr());
  problem.ld = products.stride(0);
  problem.labels = vectors.integers(labels);
  problem.bias = vectors.floats(bias);
  problem.row_norms = vectors.floats(row_norms);
  problem.class_norms = vectors.floats(class_norms);
  problem.row_grad = vectors.floats(row_grad);
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

}  // namespace

void register_operators(torch::stable::detail::StableLibrary& m) {
  m.impl("cuda_pair_loss", TORCH_BOX(&PairLossOperators<&pair_loss>::pair_loss));
  m.impl("cuda_labelled_pair_loss", TORCH_BOX(&PairLossOperators<&pair_loss>::labelled_pair_loss));
  m.impl("cuda_pairwise_distance", TORCH_BOX(&pairwise_distance));
  m.impl("cuda_pairwise_distance_backward", TORCH_BOX(&pairwise_distance_backward));
  m.impl("cuda_inverse_norms", TORCH_BOX(&inverse_norms));
  m.impl("cuda_project_gradient", TORCH_BOX(&project_gradient));
  m.impl("cuda_softmax", TORCH_BOX(&softmax));
}

}  // namespace fastpair::cuda
