"""The C++ kernels of csrc/cpu: the operators of ``torch.ops.fastpair`` on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.call import CrossEntropyCall, PairLossCall, SPCECall

_operators = torch.ops.fastpair


def pair_loss(call: PairLossCall) -> tuple[Tensor, ...]:
    return _operators.pair_loss.default(*call)


def linear_cross_entropy(call: CrossEntropyCall) -> tuple[Tensor, ...]:
    return _operators.linear_cross_entropy.default(*call)


def spce(call: SPCECall) -> tuple[Tensor, ...]:
    return _operators.spce.default(*call)


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    return _operators.pairwise_distance.default(x, y, metric)


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, metric: str, grad_x: bool, grad_y: bool
) -> tuple[Tensor, Tensor]:
    return _operators.pairwise_distance_backward.default(grad, x, y, metric, grad_x, grad_y)
