"""``fastpair::pairwise_distance`` and its gradient on the GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.pair_kernels import load_vector
from fastpair.backends.triton.pairs import NO_SLOPES, Pairs, Side, Slopes, ceil_div, sides
from fastpair.backends.triton.tiles import DOT, load_products, row_tile, scores, store_slopes


@triton.jit
def distance_kernel(
    x,
    y,
    products,
    ld,
    x_norm,
    y_norm,
    x_scale,
    y_scale,
    grad,
    grad_down,
    grad_across,
    out,
    residuals,
    out_ld,
    row_sums,
    col_sums,
    flags,
    d,
    top,
    bottom,
    left,
    right,
    SLOPES: tl.constexpr,
    SPLIT: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out`` (., out_ld) of the rectangle [top, bottom) x [left, right): its scores or, with ``SLOPES``, the incoming
    gradients times their derivatives by the dot products; ``residuals``, sums and ``flags``: see ``store_slopes``."""
    row_block, col_block = row_tile(tl.program_id(0), bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    rows = top + row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = left + col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < bottom)[:, None] & (cols < right)[None, :]
    row_scales = load_vector(x_scale, rows, bottom, UNIT or METRIC != DOT)
    col_scales = load_vector(y_scale, cols, right, UNIT or METRIC != DOT)
    s, close = scores(
        load_products(products, ld, top, left, rows, cols, bottom, right),
        x,
        y,
        rows,
        cols,
        load_vector(x_norm, rows, bottom, METRIC != DOT),
        load_vector(y_norm, cols, right, METRIC != DOT),
        row_scales,
        col_scales,
        inside,
        bottom,
        right,
        d,
        METRIC,
        UNIT,
    )
    at = (rows - top).to(tl.int64)[:, None] * out_ld + (cols - left)[None, :]
    if not SLOPES:
        tl.store(out + at, s.to(out.dtype.element_ty), mask=inside)
    else:
        incoming = grad + rows.to(tl.int64)[:, None] * grad_down + cols.to(tl.int64)[None, :] * grad_across
        slope = tl.load(incoming, mask=inside, other=0.0).to(tl.float32)
        store_slopes(
            slope,
            s,
            inside,
            True,
            close,
            row_scales,
            col_scales,
            products,
            out,
            residuals,
            row_sums,
            col_sums,
            flags,
            at,
            rows,
            cols,
            row_block,
            col_block,
            top,
            bottom,
            left,
            right,
            SPLIT,
            ROW_SUMS,
            METRIC,
            UNIT,
            BLOCK_N,
        )


def launch(pairs: Pairs, rectangle, out: Tensor, grad: Tensor | None = None, slopes: Slopes = NO_SLOPES) -> None:
    top, bottom, left, right = rectangle
    x, y, tile = pairs.x.rows, pairs.y.rows, pairs.tile
    products = pairs.dot_products(pairs.x, pairs.y, *rectangle)
    distance_kernel[(ceil_div(bottom - top, tile.rows) * ceil_div(right - left, tile.cols),)](
        x.x,
        y.x,
        products,
        products.stride(0),
        x.norm,
        y.norm,
        x.scale,
        y.scale,
        grad,
        0 if grad is None else grad.stride(0),
        0 if grad is None else grad.stride(1),
        out,
        slopes.parts[-1],
        out.stride(0),
        slopes.row_sums,
        slopes.col_sums,
        slopes.flags,
        x.x.shape[1],
        top,
        bottom,
        left,
        right,
        SLOPES=grad is not None,
        SPLIT=len(slopes.parts) > 1,
        ROW_SUMS=slopes.row_sums is not None,
        GROUP=8,
        **pairs.constants(tile),
    )


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    """The operator ``fastpair::pairwise_distance``."""
    pairs = Pairs(*sides(Side, x, y, metric, False, False), metric)
    out = torch.empty((len(pairs.x), len(pairs.y)), dtype=x.dtype, device=x.device)
    for rectangle in pairs.rectangles(pairs.x, pairs.y):
        top, _, left, _ = rectangle
        launch(pairs, rectangle, out[top:, left:])
    return out


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, metric: str, grad_x: bool, grad_y: bool
) -> tuple[Tensor, Tensor]:
    """The operator ``fastpair::pairwise_distance_backward``."""
    first, second = sides(Side, x, y, metric, grad_x, grad_y)
    pairs = Pairs(first, second, metric)
    if (grad_x or grad_y) and grad.numel():
        for rectangle in pairs.rectangles(first, second):
            slopes = pairs.new_slopes(rectangle)
            launch(pairs, rectangle, slopes.parts[0], grad, slopes)
            pairs.add_gradients(rectangle, slopes)
    return first.finished(), second.finished() if second is not first else first.new(0)
