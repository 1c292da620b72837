"""The precision used throughout the package, and the elementary functions that need care."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that results and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(x: Tensor) -> Tensor:
    """x_i / |x_i|; a zero row stays zero, with gradient 0."""
    squared_norm = x.square().sum(-1, keepdim=True)
    return torch.where(squared_norm > 0, x * torch.where(squared_norm > 0, squared_norm, 1).rsqrt(), x * 0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to the last digit: replaced by x beyond 40, not beyond 20 as by default."""
    return F.softplus(x, threshold=40)


def log_sum_exp(u: Tensor, pairs: Tensor) -> Tensor:
    """The log-sum-exp of each row of u (n, m) over its ``pairs``, booleans (n, m); minus infinity, with gradient zero,
    for a row without any."""
    return torch.where(pairs, u, -torch.inf).logsumexp(1)


def average(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 where nothing counts."""
    return total / torch.where(count > 0, count, 1)


def reduced(per_row: Tensor, mean: Tensor, reduction: str) -> Tensor:
    """The losses of the rows, their sum or the given mean, as ``reduction`` "none", "sum" or "mean" asks for."""
    return {"none": per_row, "sum": per_row.sum(), "mean": mean}[reduction]
