"""The work on single rows before and after the passes over pairs: norms, and the gradients of the inputs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.launch import COMPILED, ROOM, ceil_div, whole

ROWS, MOST_COLUMNS = 8, 512  # per block of a program


@triton.jit(do_not_specialize=["n"])
def norms_kernel(x, norm, scale, n, d, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """norm and scale of row i: |x_i|^2 and 1, or with ``UNIT`` 1 and 1/|x_i|, but 0 and 0 for a zero row."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    at = x + rows.to(tl.int64)[:, None] * d
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, d, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        value = tl.load(at + k, mask=inside[:, None] & (k < d), other=0.0).to(tl.float32)
        squares += value * value
    squared = tl.sum(squares, 1)
    if UNIT:
        # The inverse of an infinite norm must not be 0, as for a zero row.
        defined = tl.where(squared == float("inf"), float("nan"), squared)
        tl.store(scale + rows, tl.where(squared == 0, 0.0, 1 / tl.sqrt_rn(defined)), mask=inside)
        tl.store(norm + rows, tl.where(squared == 0, 0.0, defined / defined), mask=inside)
    else:
        tl.store(norm + rows, squared, mask=inside)
        tl.store(scale + rows, tl.full((ROWS,), 1.0, tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n"])
def finish_kernel(x, gradient, scale, slope_sums, n, d, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Subtracts in place, from the sum over pairs of slope_ij y_j: for unit vectors the part along the row, whose
    length does not matter; for distances the row times the sum of its slopes, which comes from the squared norms."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    offset = rows.to(tl.int64)[:, None] * d
    if UNIT:
        products = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, d, COLUMNS):
            k = start + tl.arange(0, COLUMNS)[None, :]
            mask = inside[:, None] & (k < d)
            value = tl.load(x + offset + k, mask=mask, other=0.0).to(tl.float32)
            products += value * tl.load(gradient + offset + k, mask=mask, other=0.0)
        inverse = tl.load(scale + rows, mask=inside, other=0.0)
        along = tl.sum(products, 1) * inverse * inverse
    else:
        along = tl.load(slope_sums + rows, mask=inside, other=0.0)
    for start in range(0, d, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        mask = inside[:, None] & (k < d)
        value = tl.load(x + offset + k, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(gradient + offset + k, mask=mask, other=0.0)
        tl.store(gradient + offset + k, slope - along[:, None] * value, mask=mask)


class Rows:
    """Anchors, references or class vectors, contiguous, with the norms and scales that the metric needs.

    ``norm`` is the squared norm and ``scale`` the factor that brings a row to the length it is compared at."""

    def __init__(self, x: Tensor, unit: bool, distances: bool):
        self.x = x.contiguous()
        self.unit, self.distances = unit, distances
        n, d = x.shape
        self.norm = self.scale = None
        if (unit or distances) and n:
            room = torch.empty(2, whole(n, ROOM), dtype=torch.float32, device=x.device)
            self.norm, self.scale = room[:, :n].unbind()
            norms_kernel[grid(n)](self.x, self.norm, self.scale, n, d, UNIT=unit, **blocks(d))

    def __len__(self) -> int:
        return len(self.x)

    def scaled(self, x: Tensor, index: slice | Tensor = slice(None)) -> Tensor:
        return x if self.scale is None else x * self.scale[index, None]

    def compared(self, index: slice | Tensor = slice(None)) -> Tensor:
        """The rows scaled to the length at which they are compared, in float32."""
        return self.scaled(self.x[index].float(), index)

    def finish(self, gradient: Tensor, slope_sums: Tensor | None) -> Tensor:
        n, d = self.x.shape
        if n and (self.unit or self.distances):
            finish_kernel[grid(n)](self.x, gradient, self.scale, slope_sums, n, d, UNIT=self.unit, **blocks(d))
        return gradient


def grid(n: int) -> tuple[int]:
    return (ceil_div(n, ROWS),)


def blocks(d: int) -> dict:
    return {"ROWS": ROWS, "COLUMNS": min(triton.next_power_of_2(d), MOST_COLUMNS), **COMPILED}


def centered(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Subtracts the mean of x from both, in columns that lie far from zero for their spread: distances do not change,
    and their squares cancel less. Columns with NaN or infinity stay, or they would spoil all rows."""
    variance, mean = torch.var_mean(x, 0, correction=0)
    center = torch.where((mean.square() > 4 * variance) & mean.isfinite(), mean, 0)
    return x - center, None if y is None else y - center
