"""``fastpair::pairwise_distance``: a matrix of scores, with gradients to both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.autograd import distinct, fake_gradients, input_gradients, refuse_transforms
from fastpair.ops.kernels import define, operator
from fastpair.ops.pair_loss import is_large

define(
    "pairwise_distance",
    "(Tensor x, Tensor? y, str metric) -> Tensor",
    lambda x, y, metric: x.new_empty((x.shape[0], (x if y is None else y).shape[0])),
)
define(
    "pairwise_distance_backward",
    "(Tensor grad, Tensor x, Tensor? y, str metric, bool grad_x, bool grad_y) -> (Tensor, Tensor)",
    lambda grad, x, y, metric, grad_x, grad_y: fake_gradients((x, y), (grad_x, grad_y)),
)


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
        return *input_gradients(gradients, wanted, (x, y), grad), None, None


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str, backend: str | None) -> Tensor:
    checks.matrix("x", x)
    if y is not None:
        checks.like("y", y, "x", x)
    checks.one_of("metric", metric, checks.METRICS)
    backend = choose_backend(x.device.type, backend, x.dtype, large=is_large(x, x if y is None else y))
    if backend == "reference":
        return reference.pairwise_distance(x, y, metric)
    refuse_transforms()
    if torch.compiler.is_compiling():
        x, y = distinct((x, y))
    return _PairwiseDistance.apply(x, y, metric, backend)
