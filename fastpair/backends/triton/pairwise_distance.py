"""``fastpair::pairwise_distance`` and its gradient on the GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.pairs import Pairs, Rectangle, sides
from fastpair.backends.triton.tiles import (
    SlopeArguments,
    aligned,
    closeness,
    row_tile,
    store_slopes,
    stretch,
    tile_products,
    turned,
)
from fastpair.metrics import METRICS


@triton.jit(do_not_specialize=["out_ld", "top", "bottom", "left", "right"])
def distance_kernel(
    x,
    y,
    products,
    out,
    out_ld,
    grad,
    grad_strides,
    top,
    bottom,
    left,
    right,
    METRIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out`` (., out_ld): the scores of the rectangle [top, bottom) x [left, right). Or, given ``grad``, with ``out``
    as ``store_slopes`` takes it: the incoming gradients times the derivatives of the scores by the dot products."""
    top, left = aligned(top), aligned(left)
    row_block, col_block = row_tile(tl.program_id(0), bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    rows = stretch(x, top + row_block * BLOCK_M, top, bottom, BLOCK_M)
    cols = stretch(y, left + col_block * BLOCK_N, left, right, BLOCK_N)
    inside = (rows.index < bottom)[:, None] & (cols.index < right)[None, :]
    made = tile_products(products, x, y, rows, cols, 0)
    s, close = closeness(made, x, y, rows, cols, inside, METRIC)
    if grad is None:
        at = (rows.index - top).to(tl.int64)[:, None] * out_ld + (cols.index - left)[None, :]
        tl.store(out + at, turned(s, METRIC).to(out.dtype.element_ty), mask=inside)
    else:
        down, across = rows.index.to(tl.int64) * grad_strides[0], cols.index.to(tl.int64) * grad_strides[1]
        incoming = tl.load(grad + (down[:, None] + across[None, :]), mask=inside, other=0.0).to(tl.float32)
        store_slopes(turned(incoming, METRIC), s, inside, True, close, rows, cols, products, out, METRIC)


def launch(
    pairs: Pairs, rectangle: Rectangle, out: Tensor | SlopeArguments, out_ld: int, grad: Tensor | None = None
) -> None:
    rows, cols = rectangle.tiles(pairs.tile)
    distance_kernel[(rows * cols,)](
        pairs.x.arguments(),
        pairs.y.arguments(),
        pairs.dot_products(pairs.x, pairs.y, rectangle),
        out,
        out_ld,
        grad,
        None if grad is None else grad.stride(),
        *rectangle,
        GROUP=8,
        **pairs.constants(pairs.tile),
    )


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    """The operator ``fastpair::pairwise_distance``."""
    pairs = Pairs(*sides(x, y, METRICS[metric]), METRICS[metric])
    out = torch.empty((len(pairs.x), len(pairs.y)), dtype=x.dtype, device=x.device)
    for rectangle in pairs.rectangles(pairs.x, pairs.y):
        launch(pairs, rectangle, out[rectangle.top :, rectangle.left :], out.stride(0))
    return out


def pairwise_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, metric: str, grad_x: bool, grad_y: bool
) -> tuple[Tensor, Tensor]:
    """The operator ``fastpair::pairwise_distance_backward``."""
    first, second = sides(x, y, METRICS[metric], grad_x, grad_y)
    pairs = Pairs(first, second, METRICS[metric])
    if (grad_x or grad_y) and grad.numel():
        for rectangle in pairs.rectangles(first, second):
            slopes = pairs.new_slopes(rectangle)
            launch(pairs, rectangle, slopes.arguments(), 0, grad)
            pairs.add_gradients(rectangle, slopes)
    return first.finished(), second.finished() if second is not first else first.new(0)
