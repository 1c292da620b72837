"""A tile of the score matrix, as every kernel over pairs sees it: its scores, and which of them are pairs."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton import launch
from fastpair.backends.triton.terms import relu

# Metrics, as constants of the kernels: all are functions of the dot product and the squared norms.
DOT, SQUARED_EUCLIDEAN, EUCLIDEAN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# The interpreter would multiply bfloat16 as the integers of its bits.
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)
ALIGNED = tl.constexpr(launch.ALIGNED)
# Squared distances below this part of the squared norms are small.
SMALL = tl.constexpr(1 / 64)


class SideArguments(NamedTuple):
    """What a kernel gets of one side: its rows, and what it needs to know of each, the latter with room for whole
    tiles."""

    x: Tensor
    labels: Tensor | None
    norm: Tensor | None
    scale: Tensor | None
    given: Tensor | None = None
    weights: Tensor | None = None
    share: Tensor | None = None


class SlopeArguments(NamedTuple):
    """Where a kernel puts the slopes of a rectangle, see ``store_slopes``; nowhere where none are wanted."""

    slopes: Tensor | None = None
    residuals: Tensor | None = None
    row_sums: Tensor | None = None
    col_sums: Tensor | None = None
    flags: Tensor | None = None


@triton.jit
def aligned(index):
    """``index``, a multiple of ALIGNED. The compiler is told so here and not by the arguments, which make a kernel of
    their own of each kind of number that they have."""
    return index // ALIGNED * ALIGNED


@triton.jit
def entries(at, index):
    """at[index], zero where there is no such vector."""
    if at is None:
        return tl.zeros(index.shape, tl.float32)
    else:
        return tl.load(at + index)


@triton.jit
def lengths(side, index):
    """Norms and scales of some rows."""
    return entries(side.norm, index), entries(side.scale, index)


@triton.jit
def is_close(squared, norms):
    """Of a squared distance. NaN is too."""
    return ~(squared > norms * SMALL)


@triton.jit
def any_of(mask):
    return tl.max(tl.max(mask.to(tl.int32), 1), 0) > 0


@triton.jit
def squared_differences(x, y, rows, cols, x_scale, y_scale, bottom, right, d):
    """|x_i x_scale_i - y_j y_scale_j|^2 of the tile, from the differences: exact where they are small."""
    x_at = x + tl.where(rows < bottom, rows, 0).to(tl.int64) * d
    y_at = y + tl.where(cols < right, cols, 0).to(tl.int64) * d
    out = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for k in range(d):
        a = tl.load(x_at + k).to(tl.float32) * x_scale
        b = tl.load(y_at + k).to(tl.float32) * y_scale
        difference = a[:, None] - b[None, :]
        out = tl.fma(difference, difference, out)
    return out


@triton.jit
def load_products(products, ld, rows, cols, top, left):
    """Dot products of the rows and columns, of the rectangle that begins at row ``top`` and column ``left``."""
    return tl.load(products + (rows - top).to(tl.int64)[:, None] * ld + (cols - left)[None, :])


@triton.jit
def make_products(x, y, rows, cols, top, left, bottom, right, d, DEPTH: tl.constexpr):
    """Dot products of the rows and columns, by the matrix units. Beyond the end they are those of other rows."""
    k = tl.arange(0, DEPTH)
    x_at = x + tl.where(rows < bottom, rows, top).to(tl.int64)[:, None] * d + k[None, :]
    y_at = y + tl.where(cols < right, cols, left).to(tl.int64)[None, :] * d + k[:, None]
    out = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, d, DEPTH):
        a = tl.load(x_at + start, mask=(k < d - start)[None, :], other=0.0)
        b = tl.load(y_at + start, mask=(k < d - start)[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        out = tl.dot(a, b, out)
    return out


@triton.jit
def tile_products(products, ld, x, y, rows, cols, top, left, bottom, right, d, DEPTH: tl.constexpr):
    """``DEPTH``: how much of the rows is multiplied at a time; 0 where the products were made before."""
    if DEPTH > 0:
        return make_products(x, y, rows, cols, top, left, bottom, right, d, DEPTH)
    else:
        return load_products(products, ld, rows, cols, top, left)


@triton.jit
def scores(
    products,
    x,
    y,
    rows,
    cols,
    row_lengths,
    col_lengths,
    pair,
    bottom,
    right,
    d,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Of the dot products, and which pairs are close. ``UNIT``: of the unit vectors along the rows, by their scales.
    Close is a squared distance that is small against the norms, which has lost digits as a difference of products, or
    that is undefined as one of infinities: the tile's are computed again."""
    x_norm, x_scale = row_lengths
    y_norm, y_scale = col_lengths
    out = products
    close = tl.zeros(pair.shape, tl.int1)
    if UNIT:
        # The scales' product first, which is the same for a pair and its mirror image.
        out = out * (x_scale[:, None] * y_scale[None, :])
    if METRIC != DOT:
        norms = x_norm[:, None] + y_norm[None, :]
        out = relu(norms - 2 * out)
        close = pair & is_close(out, norms)
        if any_of(close):
            out = tl.where(close, squared_differences(x.x, y.x, rows, cols, x_scale, y_scale, bottom, right, d), out)
    if METRIC == EUCLIDEAN:
        out = tl.sqrt(out)
    return out, close


@triton.jit
def slope_by_product(scores, METRIC: tl.constexpr):
    """The derivative of the scores by the dot products, less what the norms bring; zero for a distance of zero."""
    if METRIC == SQUARED_EUCLIDEAN:
        return tl.full(scores.shape, -2.0, tl.float32)
    if METRIC == EUCLIDEAN:
        return tl.where(scores == 0, 0.0, -1 / scores)
    return tl.full(scores.shape, 1.0, tl.float32)


@triton.jit
def row_tile(pid, rows_end, cols_end, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column block of program ``pid``: groups of GROUP row blocks, so that programs that run together share
    their columns in the second-level cache."""
    row_blocks, col_blocks = tl.cdiv(rows_end, BLOCK_M), tl.cdiv(cols_end, BLOCK_N)
    group = pid // (GROUP * col_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    inside = pid % (GROUP * col_blocks)
    return group * GROUP + inside % height, inside // height


@triton.jit
def store_slopes(
    slope,
    s,
    pair,
    mixed,
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
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Stores a tile of slopes by the scores ``s`` as slopes by the dot products, ``out.slopes`` at ``at``; zero for
    what is no ``pair``, if there is such: ``mixed``. Those of close pairs take the place of the tile's ``products``,
    which lie alike, where ``out.flags`` says that there are some. ``out.residuals``: what rounding the slopes takes
    away. ``out.row_sums``, ``out.col_sums``: their sums by row and by column of each tile, (blocks, .). Returns what
    was stored, rounded, and the residuals."""
    slope *= slope_by_product(s, METRIC)
    if METRIC != DOT:
        some = any_of(close)
        tl.store(out.flags + row_block * tl.cdiv(right - left, BLOCK_N) + col_block, some.to(tl.int8))
        if some:
            tl.store(products + at, tl.where(close, slope, 0.0))
        pair &= ~close
    if UNIT:
        slope *= row_lengths[1][:, None] * col_lengths[1][None, :]
    if mixed:
        slope = tl.where(pair, slope, 0.0)
    rounded = slope.to(out.slopes.dtype.element_ty)
    tl.store(out.slopes + at, rounded)
    # Sums are of the rounded slopes, which is what the products are made of.
    kept = rounded.to(tl.float32)
    rest = rounded
    if out.residuals is not None:
        rest = (slope - kept).to(rounded.dtype)
        tl.store(out.residuals + at, rest)
        kept += rest.to(tl.float32)
    if out.row_sums is not None:
        down, across = bottom - top, right - left
        tl.store(out.row_sums + col_block.to(tl.int64) * down + rows - top, tl.sum(kept, 1), mask=rows < bottom)
        tl.store(out.col_sums + row_block.to(tl.int64) * across + cols - left, tl.sum(kept, 0), mask=cols < right)
    return rounded, rest
