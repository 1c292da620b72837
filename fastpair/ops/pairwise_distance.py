"""``fastpair::pairwise_distance``: a matrix of scores, with gradients to both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import choose_backend, dense
from fastpair.ops import checks
from fastpair.ops.autograd import distinct, input_gradients, refuse_transforms
from fastpair.ops.pair_loss import is_large
from fastpair.ops.registration import operator


class _PairwiseDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, metric, backend):
        ctx.save_for_backward(x, y)
        ctx.metric, ctx.backend = metric, backend
        return operator("pairwise_distance", backend)(x, y, metric)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        with torch.no_grad():
            gradients = operator("pairwise_distance_backward", ctx.backend)(grad, x, y, ctx.metric, *wanted)
        return *input_gradients(gradients, wanted, (x, y), grad, (x, y)), None, None


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str, backend: str | None) -> Tensor:
    checks.matrix("x", x)
    if y is not None:
        checks.like("y", y, "x", x)
    backend = choose_backend(x.device.type, backend, x.dtype, large=is_large(x, x if y is None else y))
    if backend == "reference":
        return dense.pairwise_distance(x, y, metric)
    refuse_transforms()
    if torch.compiler.is_compiling():
        x, y = distinct((x, y))
    return _PairwiseDistance.apply(x, y, metric, backend)
