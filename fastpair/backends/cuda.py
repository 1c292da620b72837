"""The CUDA kernels of csrc/cuda, for small batches on the GPU. A pair loss, or distances, take one launch. For
cross-entropy all logits are held at once: cuBLAS computes the three products, and in between one kernel of
csrc/cuda/softmax.cu the losses, their mean and the slopes. The others are operators that take the fields of a call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.call import CrossEntropyCall
from fastpair.backends.products import Factor, product

_operators = torch.ops.fastpair


pair_loss = _operators.cuda_pair_loss.default
labelled_pair_loss = _operators.cuda_labelled_pair_loss.default
pairwise_distance = _operators.cuda_pairwise_distance.default
pairwise_distance_backward = _operators.cuda_pairwise_distance_backward.default


def linear_cross_entropy(call: CrossEntropyCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A label out of range makes the loss NaN: raising an error would mean waiting for the device."""
    x, w = call.embeddings.contiguous(), call.weight.contiguous()
    (n, _), classes = x.shape, len(w)
    x_norms, w_norms = (None, None) if call.logits == "linear" else _operators.cuda_inverse_norms(x, w)
    # A multiple of 16 keeps all rows as well aligned as the first.
    room = x.new_empty(n, -(-classes // 16) * 16, dtype=torch.float32)
    products = product(x, w.T, room[:, :classes])
    slopes = []
    if call.grad_embeddings or call.grad_weight or call.grad_bias:
        x_factor, w_factor = Factor(x), Factor(w)
        in_place = x_factor.dtype == torch.float32
        for _ in range(x_factor.slope_parts):
            slopes.append(products if in_place else torch.empty_like(room, dtype=x_factor.dtype)[:, :classes])
    value = _operators.cuda_softmax(
        products,
        call.bias,
        x_norms,
        w_norms,
        call.labels,
        call.row_grad,
        call.logits,
        call.scale,
        call.margin,
        call.label_smoothing,
        call.ignore_index,
        call.reduction,
        *(*slopes, None, None)[:2],
    )
    dx = w_factor.products(slopes) if call.grad_embeddings else room.new_empty(0)
    dw = x_factor.products(slopes, transposed=True) if call.grad_weight else room.new_empty(0)
    db = sum(part.sum(0, dtype=torch.float32) for part in slopes) if call.grad_bias else room.new_empty(0)
    if x_norms is not None and call.grad_embeddings:
        _operators.cuda_project_gradient(dx, x, x_norms)
    if w_norms is not None and call.grad_weight:
        _operators.cuda_project_gradient(dw, w, w_norms)
    return value, dx, dw, db
