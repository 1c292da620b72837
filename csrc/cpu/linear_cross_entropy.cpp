// fastpair::linear_cross_entropy and fastpair::spce on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/gemm.h"
#include "cpu/interrupt.h"
#include "cpu/rows.h"
#include "cpu/simd/kernels.h"
#include "margins.h"

namespace fastpair {
namespace {

// Bytes for the logits of a block of rows and everything else that grows with the block.
constexpr int64_t WORK_BUDGET = int64_t(56) << 20;
// With every block of rows the class weights are read and their gradient is read and written. For fewer rows than this
// that takes longer than to compute logits twice.
constexpr int64_t LEAST_ROWS = 32;
// The most classes in a task: its class weights stay in the second-level cache.
constexpr int64_t CLASS_BLOCK = 256;
// Where there are no more classes than that, a task is one of rows: the most of them.
constexpr int64_t ROW_BLOCK = 128;

template <typename T>
void set_zero(T* data, int64_t count) {
  if (data != nullptr) std::memset(data, 0, count * sizeof(T));
}

// Cross-entropy of a linear classifier, value and gradients, from plain row-major memory.
template <typename T>
struct LinearCrossEntropy {
  int64_t rows, classes, d;

  // The rows, whose labels lie in [0, classes): copies rows [begin, begin + count) into `out`, or returns a pointer to
  // them where they are.
  std::function<const T*(int64_t begin, int64_t count, T* out)> embeddings;
  // Likewise for the class weights.
  std::function<const T*(int64_t begin, int64_t count, T* out)> weight;
  const T* bias;  // null: none
  TargetLogit<T> target;
  const std::vector<int64_t>& labels;
  double label_smoothing;

  std::vector<T> row_weights;  // how much each row counts in the gradients
  // Each is null where it is not wanted, and overwritten where it is.
  T *grad_embeddings, *grad_weight, *grad_bias;

  // Returns the rows' losses. Cost: 3 products of 2 * rows * classes * d flops, 4 where WORK_BUDGET holds the logits of
  // LEAST_ROWS rows no more, 1 without gradients.
  std::vector<double> run() const;

 private:
  bool gradients() const { return grad_embeddings || grad_weight || grad_bias; }

  // With tasks of classes: one pass over blocks of rows, the logits of a block being made, turned into their gradients
  // in place, and used for all three gradients. Logits that are not kept from the first to the second are made again.
  void run_by_classes(std::vector<double>& losses) const;

  // With tasks of rows, which need no sums over tasks for a row, then tasks of classes for their gradients.
  void run_by_rows(std::vector<double>& losses) const;

  // Of the logits of row r, of the classes [first, first + width), that of its target; null if it is not among them.
  T* target_among(T* logits, int64_t r, int64_t first, int64_t width) const {
    const int64_t own = labels[r] - first;
    return own >= 0 && own < width ? logits + own : nullptr;
  }

  // Makes products of row r, of the classes [first, first + width), logits. Returns the derivative of the target's
  // logit by its product, 1 for other classes.
  T make_logits(T* products, int64_t r, int64_t first, int64_t width) const {
    T* const own = target_among(products, r, first, width);
    const T target_slope = own ? target.apply(own) : T(1);
    if (bias) kernels<T>().add_to(products, bias + first, width);
    return target_slope;
  }

  // The loss of a row, given the sums over its logits relative to the maximum.
  double loss_of(T maximum, double sum_exp, double above, T target_logit) const {
    const double log_sum = std::log(sum_exp), lse = maximum + log_sum;
    const double smooth = label_smoothing == 0 ? 0 : label_smoothing * (log_sum - above / classes);
    return (1 - label_smoothing) * (lse - target_logit) + smooth;
  }

  // Turns the logits of row r, of the classes [first, first + width), into the derivatives by them, `shift` and
  // `normaliser` making exponentials of them probabilities: two factors rather than exp(-lse), whose rounding error
  // would grow with the logits.
  void write_slopes(T* logits, int64_t r, int64_t first, int64_t width, T shift, T normaliser, T target_slope) const {
    const T scale = row_weights[r];
    kernels<T>().row_probabilities(logits, width, shift, scale * normaliser, -scale * T(label_smoothing / classes));
    T* const own = target_among(logits, r, first, width);
    if (own) *own = (*own - scale * T(1 - label_smoothing)) * target_slope;
  }
};

template <typename T>
std::vector<double> LinearCrossEntropy<T>::run() const {
  std::vector<double> losses(rows);
  set_zero(grad_weight, rows == 0 ? classes * d : 0);
  set_zero(grad_bias, classes);
  if (rows == 0) return losses;
  const int64_t bytes = (rows * (classes + d) + classes * d) * int64_t(sizeof(T));
  if (classes <= CLASS_BLOCK && bytes <= WORK_BUDGET) {
    run_by_rows(losses);
  } else {
    run_by_classes(losses);
  }
  return losses;
}

template <typename T>
void LinearCrossEntropy<T>::run_by_rows(std::vector<double>& losses) const {
  const Kernels<T>& k = kernels<T>();
  const Scratch<T> logits(rows * classes), copied_rows(rows * d), copied_weights(classes * d);
  const T* const x = embeddings(0, rows, copied_rows.get());
  const T* const w = weight(0, classes, copied_weights.get());

  const int64_t row_block = task_length(rows, ROW_BLOCK);
  parallel_for((rows + row_block - 1) / row_block, [&](int64_t task) {
    const int64_t begin = task * row_block, count = std::min(row_block, rows - begin);
    T* const block = logits.get() + begin * classes;
    gemm(Op::None, Op::Transpose, count, classes, d, x + begin * d, d, w, d, false, block, classes);
    for (int64_t r = begin; r < begin + count; ++r) {
      T* const row = logits.get() + r * classes;
      T maximum, sum_exp, above;
      const T target_slope = make_logits(row, r, 0, classes);
      k.row_softmax(row, classes, &maximum, &sum_exp, &above);
      // Where the maximum is infinite, the sums are relative to zero.
      const double total = sum_exp == T(0) ? 0 : sum_exp * std::exp(double(maximum) - maximum);
      losses[r] = loss_of(maximum, total, above + classes * (double(shift_of(maximum)) - maximum), row[labels[r]]);
      if (gradients()) write_slopes(row, r, 0, classes, maximum, T(1 / total), target_slope);
    }
    if (grad_embeddings) {
      gemm(Op::None, Op::None, count, d, classes, block, classes, w, d, false, grad_embeddings + begin * d, d);
    }
  });
  if (!grad_weight && !grad_bias) return;

  const int64_t class_block = task_length(classes, CLASS_BLOCK);
  const int64_t tasks = (classes + class_block - 1) / class_block, shares = column_parts(tasks, d);
  parallel_for(tasks * shares, [&](int64_t task_and_share) {
    const int64_t first = task_and_share / shares * class_block, width = std::min(class_block, classes - first);
    const int64_t share = task_and_share % shares, begin = share * d / shares, end = (share + 1) * d / shares;
    const T* const block = logits.get() + first;
    if (grad_weight) {
      gemm(Op::Transpose, Op::None, width, end - begin, rows, block, classes, x + begin, d, false,
           grad_weight + first * d + begin, d);
    }
    for (int64_t r = 0; grad_bias && share == 0 && r < rows; ++r) {
      k.add_to(grad_bias + first, block + r * classes, width);
    }
  });
}

template <typename T>
void LinearCrossEntropy<T>::run_by_classes(std::vector<double>& losses) const {
  const Kernels<T>& k = kernels<T>();
  const int64_t class_block = task_length(classes, CLASS_BLOCK);
  const int64_t class_blocks = (classes + class_block - 1) / class_block;
  const int64_t threads = std::min(thread_count(), class_blocks);
  struct LogitSums {
    T maximum, sum_exp, above;
  };
  const auto rows_within_budget = [&](int64_t logit_blocks) {
    const int64_t elements = logit_blocks * class_block + (1 + threads) * d;
    const int64_t bytes = elements * int64_t(sizeof(T)) + class_blocks * int64_t(sizeof(LogitSums));
    const int64_t passes = (rows * bytes + WORK_BUDGET - 1) / WORK_BUDGET;
    return (rows + passes - 1) / passes;
  };
  const bool kept = gradients() && rows_within_budget(class_blocks) >= std::min(rows, LEAST_ROWS);
  const int64_t logit_blocks = kept ? class_blocks : threads, row_block = rows_within_budget(logit_blocks);

  // Each block of classes, or each thread if they are not kept, has its own contiguous logits (row_block, class_block).
  const Scratch<T> logits(row_block * logit_blocks * class_block);
  const Scratch<T> block_rows(row_block * d);
  const Scratch<T> block_weights(threads * class_block * d);
  const Scratch<T> partial_gradient(grad_embeddings ? threads * row_block * d : 0);
  const Scratch<LogitSums> sums(class_blocks * row_block);
  std::vector<T> target_logit(row_block), target_slope(row_block), shift(row_block), normaliser(row_block);

  Interruptions interruptions;
  for (int64_t begin = 0; begin < rows; begin += row_block) {
    interruptions.look();
    const int64_t count = std::min(row_block, rows - begin);
    const T* x = embeddings(begin, count, block_rows.get());

    // f(thread, block, first class, classes, their weights); each thread has a contiguous range of blocks.
    const auto for_class_blocks = [&](const auto& f) {
      parallel_for(threads, [&](int64_t t) {
        for (int64_t b = t * class_blocks / threads; b < (t + 1) * class_blocks / threads; ++b) {
          const int64_t first = b * class_block, width = std::min(class_block, classes - first);
          f(t, b, first, width, weight(first, width, block_weights.get() + t * class_block * d));
        }
      });
    };

    const auto block_at = [&](int64_t t, int64_t b) { return logits.get() + (kept ? b : t) * row_block * class_block; };
    const auto multiply = [&](int64_t width, const T* w, T* block) {
      gemm(Op::None, Op::Transpose, count, width, d, x, d, w, d, false, block, class_block);
    };

    for_class_blocks([&](int64_t t, int64_t b, int64_t first, int64_t width, const T* w) {
      T* block = block_at(t, b);
      multiply(width, w, block);
      for (int64_t r = 0; r < count; ++r) {
        T* row = block + r * class_block;
        LogitSums& s = sums.get()[b * row_block + r];
        const T slope = make_logits(row, begin + r, first, width);
        k.row_softmax(row, width, &s.maximum, &s.sum_exp, &s.above);
        const T* const own = target_among(row, begin + r, first, width);
        if (own) target_slope[r] = slope, target_logit[r] = *own;
      }
    });

    parallel_rows(count, class_blocks, [&](int64_t r) {
      const LogitSums* s = sums.get() + r;
      T maximum = s[0].maximum;
      for (int64_t b = 1; b < class_blocks; ++b) maximum = std::max(maximum, s[b * row_block].maximum);
      double sum_exp = 0, above = 0;
      for (int64_t b = 0; b < class_blocks; ++b) {
        const LogitSums& part = s[b * row_block];
        // A block of minus infinities has no exponentials, and -inf - -inf must not make it NaN.
        if (part.sum_exp != T(0)) sum_exp += part.sum_exp * std::exp(double(part.maximum) - maximum);
        const int64_t width = std::min(class_block, classes - b * class_block);
        above += part.above + width * (double(shift_of(part.maximum)) - maximum);
      }
      shift[r] = maximum;
      normaliser[r] = T(1 / sum_exp);
      losses[begin + r] = loss_of(maximum, sum_exp, above, target_logit[r]);
    });
    if (!gradients()) continue;

    set_zero(partial_gradient.get(), grad_embeddings ? threads * row_block * d : 0);
    for_class_blocks([&](int64_t t, int64_t b, int64_t first, int64_t width, const T* w) {
      T* block = block_at(t, b);
      if (!kept) multiply(width, w, block);
      for (int64_t r = 0; r < count; ++r) {
        T* row = block + r * class_block;
        if (!kept) make_logits(row, begin + r, first, width);
        write_slopes(row, begin + r, first, width, shift[r], normaliser[r], target_slope[r]);
        if (grad_bias) k.add_to(grad_bias + first, row, width);
      }
      if (grad_weight) {
        gemm(Op::Transpose, Op::None, width, d, count, block, class_block, x, d, begin > 0, grad_weight + first * d, d);
      }
      if (grad_embeddings) {
        gemm(Op::None, Op::None, count, d, width, block, class_block, w, d, true,
             partial_gradient.get() + t * row_block * d, d);
      }
    });
    if (grad_embeddings) {
      parallel_rows(count, threads * d, [&](int64_t r) {
        T* to = grad_embeddings + (begin + r) * d;
        std::copy_n(partial_gradient.get() + r * d, d, to);
        for (int64_t t = 1; t < threads; ++t) k.add_to(to, partial_gradient.get() + (t * row_block + r) * d, d);
      });
    }
  }
}

// The rows' weights in the gradient: the incoming gradients, or those of the reduction.
template <typename T>
std::vector<T> weights_of_rows(const std::optional<Tensor>& row_grad, Reduction reduction,
                               const std::vector<int64_t>& row_of, int64_t counted) {
  if (!row_grad)
    return std::vector<T>(row_of.size(), reduction == Reduction::Mean ? T(1) / T(std::max<int64_t>(counted, 1)) : T(1));
  const std::vector<T> incoming = floating_vector<T>(*row_grad);
  std::vector<T> weights(row_of.size());
  for (size_t r = 0; r < row_of.size(); ++r) weights[r] = incoming[row_of[r]];
  return weights;
}

// The operator's first output. row_of: the row of each loss; rows without one have loss 0.
template <typename T>
Tensor reduced(const std::vector<double>& losses, Reduction reduction, const std::vector<int64_t>& row_of,
               int64_t rows) {
  if (reduction != Reduction::None) {
    const double total = sum(losses);
    return new_scalar(T(reduction == Reduction::Mean ? total / std::max<size_t>(losses.size(), 1) : total));
  }
  std::vector<T> values(rows, T(0));
  for (size_t r = 0; r < losses.size(); ++r) values[row_of[r]] = T(losses[r]);
  return new_vector(values);
}

// A gradient as it is returned, and where it is written; empty and null where it is not wanted.
template <typename T>
struct Gradient {
  const Tensor tensor;
  T* const data;

  Gradient(const std::vector<int64_t>& sizes, bool wanted)
      : tensor(new_tensor(wanted ? sizes : std::vector<int64_t>{0}, scalar_type<T>)),
        data(wanted ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr) {}
};

// Rows of d elements as LinearCrossEntropy takes them.
template <typename T>
std::function<const T*(int64_t, int64_t, T*)> rows_at(const T* data, int64_t d) {
  return [data, d](int64_t begin, int64_t, T*) { return data + begin * d; };
}

// Likewise the rows of a tensor.
template <typename T>
std::function<const T*(int64_t, int64_t, T*)> rows_of(const Tensor& t) {
  if (is_plain<T>(t)) return rows_at(static_cast<const T*>(t.const_data_ptr()), t.size(1));
  return [&t](int64_t begin, int64_t count, T* out) {
    copy_rows(t, count, [begin](int64_t r) { return begin + r; }, out);
    return static_cast<const T*>(out);
  };
}

// Rows of a tensor scaled to length 1, computed when they are asked for.
template <typename T>
class UnitRows {
 public:
  UnitRows(const Tensor& t, std::vector<int64_t> rows) : t_(t), rows_(std::move(rows)), inverse_norm_(rows_.size()) {
    const int64_t d = t_.size(1);
    for_rows([&](int64_t r, T* row) {
      copy(r, row);
      inverse_norm_[r] = inverse_norm(kernels<T>().dot(row, row, d));
    });
  }

  // The rows as LinearCrossEntropy takes them, times `length`.
  std::function<const T*(int64_t, int64_t, T*)> at_length(T length) const {
    return [this, length](int64_t begin, int64_t count, T* out) {
      const int64_t d = t_.size(1);
      parallel_rows(count, 2 * d, [&](int64_t r) {
        copy(begin + r, out + r * d);
        const T scale = length * inverse_norm_[begin + r];
        for (int64_t j = 0; j < d; ++j) out[r * d + j] *= scale;
      });
      return static_cast<const T*>(out);
    };
  }

  // Turns the gradient by the unit rows into `length` times that by the rows, in place.
  void project(T length, T* gradient) const {
    const int64_t d = t_.size(1);
    for_rows([&](int64_t r, T* row) {
      T* g = gradient + r * d;
      copy(r, row);
      const T inverse = inverse_norm_[r], along = kernels<T>().dot(row, g, d) * inverse * inverse;
      for (int64_t j = 0; j < d; ++j) g[j] = inverse == T(0) ? T(0) : length * inverse * (g[j] - along * row[j]);
    });
  }

 private:
  template <typename F>
  void for_rows(const F& f) const {
    parallel_rows(rows_.size(), 4 * t_.size(1), [&](int64_t r) {
      const Scratch<T> row(t_.size(1));
      f(r, row.get());
    });
  }
  void copy(int64_t r, T* out) const {
    with_floating(t_, [&](const auto data) { copy_row(t_, data, rows_[r], out); });
  }

  const Tensor& t_;
  std::vector<int64_t> rows_;
  std::vector<T> inverse_norm_;
};

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// How logits are made from embeddings and class weights: products, or scaled cosines with a margin on the own class.
struct Logits {
  bool cosines;
  Margin margin_kind;
  double scale, margin;
};

Logits logits_named(const std::string& name, double scale, double margin) {
  if (name == "linear") return {.cosines = false, .margin_kind = Margin::None, .scale = 1, .margin = 0};
  return {.cosines = true, .margin_kind = margin_named(name), .scale = scale, .margin = margin};
}

template <typename T>
Results compute(const Tensor& embeddings, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& labels,
                const std::optional<Tensor>& row_grad, const Logits& logits, double label_smoothing,
                int64_t ignore_index, Reduction reduction, bool grad_embeddings, bool grad_weight, bool grad_bias) {
  const int64_t n = embeddings.size(0), d = embeddings.size(1), classes = weight.size(0);
  std::vector<int64_t> counted, kept_labels;
  for (int64_t i = 0; const int64_t label : integer_vector(labels)) {
    if (label != ignore_index) {
      STD_TORCH_CHECK(label >= 0 && label < classes, "labels must lie in [0, ", classes,
                      ") or be ignore_index = ", ignore_index, ", got ", label, " at position ", i);
      counted.push_back(i);
      kept_labels.push_back(label);
    }
    ++i;
  }
  const int64_t rows = counted.size();
  const bool all = rows == n;
  const std::vector<T> bias_values = bias ? floating_vector<T>(*bias) : std::vector<T>();

  const Gradient<T> dx({n, d}, grad_embeddings);
  const Gradient<T> dw({classes, d}, grad_weight), db({classes}, grad_bias);
  const Scratch<T> counted_gradient(grad_embeddings && !all ? rows * d : 0);

  LinearCrossEntropy<T> loss{
      .rows = rows,
      .classes = classes,
      .d = d,
      .embeddings = rows_of<T>(embeddings),
      .weight = rows_of<T>(weight),
      .bias = bias ? bias_values.data() : nullptr,
      .target = {.margin_kind = logits.margin_kind, .scale = logits.scale, .margin = logits.margin},
      .labels = kept_labels,
      .label_smoothing = label_smoothing,
      .row_weights = weights_of_rows<T>(row_grad, reduction, counted, rows),
      .grad_embeddings = all ? dx.data : counted_gradient.get(),
      .grad_weight = dw.data,
      .grad_bias = db.data,
  };
  std::optional<UnitRows<T>> unit_embeddings, unit_weight;
  if (logits.cosines) {
    std::vector<int64_t> every_class(classes);
    std::iota(every_class.begin(), every_class.end(), 0);
    loss.embeddings = unit_embeddings.emplace(embeddings, counted).at_length(T(logits.scale));
    loss.weight = unit_weight.emplace(weight, std::move(every_class)).at_length(1);
  } else if (!all) {
    loss.embeddings = [&](int64_t begin, int64_t count, T* out) {
      copy_rows(embeddings, count, [&](int64_t r) { return counted[begin + r]; }, out);
      return static_cast<const T*>(out);
    };
  }
  const std::vector<double> losses = loss.run();
  if (logits.cosines && grad_embeddings) unit_embeddings->project(T(logits.scale), loss.grad_embeddings);
  if (logits.cosines && grad_weight) unit_weight->project(1, loss.grad_weight);
  if (grad_embeddings && !all) {
    set_zero(dx.data, n * d);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(counted_gradient.get() + r * d, d, dx.data + counted[r] * d);
  }
  return {reduced<T>(losses, reduction, counted, n), dx.tensor, dw.tensor, db.tensor};
}

Results linear_cross_entropy(const Tensor& embeddings, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Tensor& labels, const std::optional<Tensor>& row_grad, const std::string& logits,
                             double scale, double margin, double label_smoothing, int64_t ignore_index,
                             const std::string& reduction, bool grad_embeddings, bool grad_weight, bool grad_bias) {
  check_matrix("embeddings", embeddings);
  check_like("weight", weight, embeddings);
  check_length("labels", labels, embeddings.size(0));
  if (bias) check_length("bias", *bias, weight.size(0));
  if (row_grad) check_length("row_grad", *row_grad, embeddings.size(0));
  STD_TORCH_CHECK(weight.size(0) > 0, "weight must have at least one row");
  STD_TORCH_CHECK(!grad_bias || bias.has_value(), "grad_bias needs a bias");
  STD_TORCH_CHECK(logits == "linear" || !bias, "cosines have no bias");
  return with_team(embeddings.size(0) * weight.size(0), embeddings.size(1), [&] {
    return with_compute_type(embeddings, [&](auto zero) {
      return compute<decltype(zero)>(embeddings, weight, bias, labels, row_grad, logits_named(logits, scale, margin),
                                     label_smoothing, ignore_index, reduction_named(reduction), grad_embeddings,
                                     grad_weight, grad_bias);
    });
  });
}

// SPCE(Z) = CE(Z, theta) with theta_k = (1/n) sum_{y_i = k} z_i. Samples are sorted by class, so that a class is a
// range of rows; theta passes its gradient on to the rows that it is made of.
template <typename T>
std::tuple<Tensor, Tensor> compute_spce(const Tensor& embeddings, const Tensor& labels,
                                        const std::optional<Tensor>& row_grad, Reduction reduction,
                                        bool grad_embeddings) {
  const int64_t n = embeddings.size(0), d = embeddings.size(1);
  const Kernels<T>& k = kernels<T>();
  const std::vector<int64_t> given = integer_vector(labels), order = sorting_order(given);
  std::vector<int64_t> class_of(n), first;  // sorted position -> class, class -> its first position
  for (int64_t r = 0; r < n; ++r) {
    if (r == 0 || given[order[r]] != given[order[r - 1]]) first.push_back(r);
    class_of[r] = static_cast<int64_t>(first.size()) - 1;
  }
  const int64_t classes = first.size();
  first.push_back(n);

  const Scratch<T> z(n * d), means(classes * d), dz(grad_embeddings ? n * d : 0);
  const Scratch<T> dmeans(grad_embeddings ? classes * d : 0);
  copy_rows(embeddings, n, [&](int64_t r) { return order[r]; }, z.get());
  const T share = T(1) / T(std::max<int64_t>(n, 1));
  parallel_rows(classes, d, [&](int64_t c) {
    T* mean = means.get() + c * d;
    std::copy_n(z.get() + first[c] * d, d, mean);
    for (int64_t r = first[c] + 1; r < first[c + 1]; ++r) k.add_to(mean, z.get() + r * d, d);
    for (int64_t j = 0; j < d; ++j) mean[j] *= share;
  });

  const std::vector<double> losses =
      LinearCrossEntropy<T>{
          .rows = n,
          .classes = classes,
          .d = d,
          .embeddings = rows_at<T>(z.get(), d),
          .weight = rows_at<T>(means.get(), d),
          .bias = nullptr,
          .target = {},
          .labels = class_of,
          .label_smoothing = 0,
          .row_weights = weights_of_rows<T>(row_grad, reduction, order, n),
          .grad_embeddings = dz.get(),
          .grad_weight = dmeans.get(),
          .grad_bias = nullptr,
      }
          .run();

  const Gradient<T> dx({n, d}, grad_embeddings);
  if (grad_embeddings) {
    parallel_rows(n, d, [&](int64_t r) {
      const T *direct = dz.get() + r * d, *through_mean = dmeans.get() + class_of[r] * d;
      T* to = dx.data + order[r] * d;
      for (int64_t j = 0; j < d; ++j) to[j] = direct[j] + share * through_mean[j];
    });
  }
  return {reduced<T>(losses, reduction, order, n), dx.tensor};
}

std::tuple<Tensor, Tensor> spce(const Tensor& embeddings, const Tensor& labels, const std::optional<Tensor>& row_grad,
                                const std::string& reduction, bool grad_embeddings) {
  check_matrix("embeddings", embeddings);
  check_length("labels", labels, embeddings.size(0));
  if (row_grad) check_length("row_grad", *row_grad, embeddings.size(0));
  return with_compute_type(embeddings, [&](auto zero) {
    return compute_spce<decltype(zero)>(embeddings, labels, row_grad, reduction_named(reduction), grad_embeddings);
  });
}

}  // namespace
}  // namespace fastpair

STABLE_TORCH_LIBRARY_IMPL(fastpair, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&fastpair::linear_cross_entropy));
  m.impl("spce", TORCH_BOX(&fastpair::spce));
}
