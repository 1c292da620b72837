"""``fastpair::pairwise_distance`` and its gradient on the GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.launch import ceil_div
from fastpair.backends.triton.pairs import Pairs, Side, sides
from fastpair.backends.triton.tiles import (
    SlopeArguments,
    aligned,
    lengths,
    load_products,
    row_tile,
    scores,
    store_slopes,
)


@triton.jit(do_not_specialize=["ld", "top", "bottom", "left", "right"])
def distance_kernel(
    x,
    y,
    products,
    ld,
    out,
    out_ld,
    grad,
    grad_strides,
    d,
    top,
    bottom,
    left,
    right,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out`` (., out_ld): the scores of the rectangle [top, bottom) x [left, right). Or, where there is a ``grad``,
    with ``out`` as ``store_slopes`` wants it: the incoming gradients times their derivatives by the dot products."""
    ld, top, left = aligned(ld), aligned(top), aligned(left)
    row_block, col_block = row_tile(tl.program_id(0), bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    rows = top + row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = left + col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < bottom)[:, None] & (cols < right)[None, :]
    row_lengths, col_lengths = lengths(x, rows), lengths(y, cols)
    s, close = scores(
        load_products(products, ld, rows, cols, top, left),
        x,
        y,
        rows,
        cols,
        row_lengths,
        col_lengths,
        inside,
        bottom,
        right,
        d,
        METRIC,
        UNIT,
    )
    if grad is None:
        at = (rows - top).to(tl.int64)[:, None] * out_ld + (cols - left)[None, :]
        tl.store(out + at, s.to(out.dtype.element_ty), mask=inside)
    else:
        at = (rows - top).to(tl.int64)[:, None] * ld + (cols - left)[None, :]
        incoming = grad + rows.to(tl.int64)[:, None] * grad_strides[0] + cols.to(tl.int64)[None, :] * grad_strides[1]
        slope = tl.load(incoming, mask=inside, other=0.0).to(tl.float32)
        store_slopes(
            slope,
            s,
            inside,
            True,
            close,
            row_lengths,
            col_lengths,
            products,
            out,
            at,
            rows,
            cols,
            row_block,
            col_block,
            top,
            bottom,
            left,
            right,
            METRIC,
            UNIT,
            BLOCK_N,
        )


def launch(pairs: Pairs, rectangle, out: Tensor | SlopeArguments, out_ld: int, grad: Tensor | None = None) -> None:
    top, bottom, left, right = rectangle
    x, y, tile = pairs.x, pairs.y, pairs.tile
    products = pairs.dot_products(x, y, *rectangle)
    distance_kernel[(ceil_div(bottom - top, tile.rows) * ceil_div(right - left, tile.cols),)](
        x.arguments(),
        y.arguments(),
        products,
        pairs.ld,
        out,
        out_ld,
        grad,
        None if grad is None else grad.stride(),
        x.rows.x.shape[1],
        top,
        bottom,
        left,
        right,
        GROUP=8,
        **pairs.constants(tile),
    )


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    """The operator ``fastpair::pairwise_distance``."""
    pairs = Pairs(*sides(Side, x, y, metric, False, False), metric)
    out = torch.empty((len(pairs.x), len(pairs.y)), dtype=x.dtype, device=x.device)
    for rectangle in pairs.rectangles(pairs.x, pairs.y):
        top, _, left, _ = rectangle
        launch(pairs, rectangle, out[top:, left:], out.stride(0))
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
            launch(pairs, rectangle, slopes.arguments(), 0, grad)
            pairs.add_gradients(rectangle, slopes)
    return first.finished(), second.finished() if second is not first else first.new(0)
