// The operators, for tensors on a CUDA device. Their schemas are those of the operators without `cuda_`, in
// fastpair/ops.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"

namespace fastpair::cuda {

using OptionalTensor = std::optional<Tensor>;

PairLossResults pair_loss(const PairLossArguments& args);
// Not inside the template below, where GCC 12 refers to the instance by a symbol that it then does not emit.
constexpr auto registered_pair_loss = &pair_loss_operator<&pair_loss>;

Tensor pairwise_distance(const Tensor& x, const OptionalTensor& y, const std::string& metric);

std::tuple<Tensor, Tensor> pairwise_distance_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& y,
                                                      const std::string& metric, bool grad_x, bool grad_y);

// The inverse norms of the rows of x and of y.
std::tuple<Tensor, Tensor> inverse_norms(const Tensor& x, const Tensor& y);

// Turns `gradient`, by the rows of x divided by their norms, into the gradient by x, in place.
void project_gradient(Tensor gradient, const Tensor& x, const Tensor& inverse_norms);

// The value of cross-entropy given the products of embeddings and class weights. The derivatives by these go to
// `slopes`, and the remainders of their rounding to `rest`.
Tensor softmax(const Tensor& products, const OptionalTensor& bias, const OptionalTensor& row_norms,
               const OptionalTensor& class_norms, const Tensor& labels, const OptionalTensor& row_grad,
               const std::string& logits, double scale, double margin, double label_smoothing, int64_t ignore_index,
               const std::string& reduction, std::optional<Tensor> slopes, std::optional<Tensor> rest);

template <typename Library>
void register_operators(Library& m) {
  m.impl("cuda_pair_loss", TORCH_BOX(registered_pair_loss));
  m.impl("cuda_pairwise_distance", TORCH_BOX(&pairwise_distance));
  m.impl("cuda_pairwise_distance_backward", TORCH_BOX(&pairwise_distance_backward));
  m.impl("cuda_inverse_norms", TORCH_BOX(&inverse_norms));
  m.impl("cuda_project_gradient", TORCH_BOX(&project_gradient));
  m.impl("cuda_softmax", TORCH_BOX(&softmax));
}

}  // namespace fastpair::cuda
