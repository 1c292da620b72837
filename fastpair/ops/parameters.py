"""Parameters of losses: numbers, or tensors of one element, which may learn."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastpair.numerics import accumulate_dtype


def single(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A parameter as computations take it: a number, or a tensor without dimensions that is at least as exact as sums
    over ``like``."""
    if not isinstance(value, Tensor):
        return value
    return value.reshape(()).to(like.device, torch.promote_types(value.dtype, accumulate_dtype(like.dtype)))


def learn(params: Sequence[float | Tensor]) -> bool:
    """Whether operators take the parameters as a tensor."""
    return any(isinstance(value, Tensor) for value in params)


def separated(params: Sequence[float | Tensor]) -> tuple[list[float], Sequence[float | Tensor]]:
    """The parameters as numbers and none that learn; or no numbers and all of them, if tensors are among them."""
    return ([], params) if learn(params) else (list(map(float, params)), ())


def stacked(params: Sequence[float | Tensor], like: Tensor) -> Tensor:
    """The parameters (P,) as one tensor."""
    if not params:
        return like.new_empty(0, dtype=accumulate_dtype(like.dtype))
    values, least = [single(value, like) for value in params], accumulate_dtype(like.dtype)
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in values if isinstance(value, Tensor)), least)
    # Made on the device: a copy to it would have to wait for it.
    return torch.stack(
        [
            value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=like.device)
            for value in values
        ]
    )
