"""``fastpair::linear_cross_entropy`` for small batches on the GPU: all logits at a time, cuBLAS for the three products
and one kernel of csrc/cuda/softmax.cu between them, which makes the losses, their mean and the slopes.

The other operators of the cuda backend are C++ as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.products import Factor, product


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_grad: Tensor | None,
    logits: str,
    scale: float,
    margin: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    grad_embeddings: bool,
    grad_weight: bool,
    grad_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``fastpair::cuda_linear_cross_entropy``.

    A label that is no class makes the loss NaN: the device cannot raise an error without being waited for."""
    kernels = torch.ops.fastpair
    x, w = embeddings.contiguous(), weight.contiguous()
    (n, _), classes = x.shape, len(w)
    x_norms, w_norms = (None, None) if logits == "linear" else kernels.cuda_inverse_norms(x, w)
    # A multiple of 16 keeps all rows as well aligned as the first.
    room = x.new_empty(n, -(-classes // 16) * 16, dtype=torch.float32)
    products = product(x, w.T, room[:, :classes])
    slopes = []
    if grad_embeddings or grad_weight or grad_bias:
        x_factor, w_factor = Factor(x), Factor(w)
        in_place = x_factor.dtype == torch.float32
        for _ in range(x_factor.slope_parts):
            slopes.append(products if in_place else torch.empty_like(room, dtype=x_factor.dtype)[:, :classes])
    value = kernels.cuda_softmax(
        products,
        bias,
        x_norms,
        w_norms,
        labels,
        row_grad,
        logits,
        scale,
        margin,
        label_smoothing,
        ignore_index,
        reduction,
        *(*slopes, None, None)[:2],
    )
    dx = w_factor.products(slopes) if grad_embeddings else room.new_empty(0)
    dw = x_factor.products(slopes, transposed=True) if grad_weight else room.new_empty(0)
    db = sum(part.sum(0, dtype=torch.float32) for part in slopes) if grad_bias else room.new_empty(0)
    if x_norms is not None and grad_embeddings:
        kernels.cuda_project_gradient(dx, x, x_norms)
    if w_norms is not None and grad_weight:
        kernels.cuda_project_gradient(dw, w, w_norms)
    return value, dx, dw, db
