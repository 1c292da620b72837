"""What every part of the package means by its precision, and the elementary functions that need care."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that results and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(x: Tensor) -> Tensor:
    """x_i / |x_i|; a zero row stays zero, with gradient 0."""
    squared_norm = x.square().sum(1, keepdim=True)
    return torch.where(squared_norm > 0, x * torch.where(squared_norm > 0, squared_norm, 1).rsqrt(), x * 0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last digit: beyond 40 it is x, by default beyond 20."""
    return F.softplus(x, threshold=40)


def log_sum_exp(u: Tensor, pairs: Tensor) -> Tensor:
    """The log-sum-exp of each row of u (n, m) over its ``pairs``, booleans (n, m); minus infinity, with gradient zero,
    where it has none."""
    return torch.where(pairs, u, -torch.inf).logsumexp(1)


def reduced(per_row: Tensor, mean: Tensor, reduction: str) -> Tensor:
    """What ``reduction`` "none", "sum" or "mean" makes of the losses of rows and their mean."""
    return {"none": per_row, "sum": per_row.sum(), "mean": mean}[reduction]
