"""A tile of the score matrix, as every kernel over pairs sees it: its closenesses, and which of them are pairs.

The closeness s of a pair is a similarity or the negative of a distance, so that no kernel need tell them apart."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton import launch
from fastpair.backends.triton.elementary import relu

# The interpreter would multiply bfloat16 numbers as if their bits were integers.
WIDEN = tl.constexpr(triton.knobs.runtime.interpret)
ALIGNED = tl.constexpr(launch.ALIGNED)
# Pairs are close if their squared distance is below this share of their squared norms.
CLOSE = tl.constexpr(1 / 64)


class SideArguments(NamedTuple):
    """The arguments of a kernel for one side: its rows of length d, and vectors over the rows, with room for whole
    tiles. ``sets``, in place of ``labels``: ``words`` vectors of bits, of ``room`` numbers each. ``weights``: vectors
    of ``room`` numbers each. ``multipliers``: factors of the slopes of positives and of negatives, for the mean.
    ``anchor_scalars``, ``ref_scalars``: what a formula reads of the rows as anchors and as references, likewise."""

    x: Tensor
    d: int
    labels: Tensor | None
    norm: Tensor | None
    scale: Tensor | None
    room: int
    sets: Tensor | None = None
    words: int | None = None
    ids: Tensor | None = None
    anchor_scalars: Tensor | None = None
    ref_scalars: Tensor | None = None
    negatives_lse: Tensor | None = None
    weights: Tensor | None = None
    multipliers: Tensor | None = None


class Links(NamedTuple):
    """What single pairs (i, j) are: see ``PairLossCall``, whose ``pairs`` come in rows of length ``ld``."""

    self_index: Tensor | None = None
    pairs: Tensor | None = None
    ld: int | None = None


class Products(NamedTuple):
    """The dot products of a rectangle, in rows of length ``ld``, a multiple of ALIGNED; None where the kernel makes
    them."""

    at: Tensor | None
    ld: int


class SlopeArguments(NamedTuple):
    """Where a kernel stores the slopes of a rectangle, see ``store_slopes``; all None if they are not wanted."""

    slopes: Tensor | None = None
    residuals: Tensor | None = None
    row_sums: Tensor | None = None
    col_sums: Tensor | None = None
    flags: Tensor | None = None


class Stretch(NamedTuple):
    """The rows or columns of a tile, from ``first`` on, in a rectangle from ``begin`` to ``end``: their indices, which
    may reach beyond the end, norms and scales."""

    first: tl.tensor
    begin: tl.tensor
    end: tl.tensor
    index: tl.tensor
    norm: tl.tensor
    scale: tl.tensor


@triton.jit
def aligned(index):
    """``index``, which is a multiple of ALIGNED. The compiler is told so here, not by specialising the arguments, which
    would compile a kernel of its own for each kind of number."""
    return index // ALIGNED * ALIGNED


@triton.jit
def entries(at, index):
    """at[index], zero where there is no such vector."""
    if at is None:
        return tl.zeros(index.shape, tl.float32)
    else:
        return tl.load(at + index)


@triton.jit
def places(at, index, AXIS: tl.constexpr):
    """Where at[index] is, along the other axis of a tile; None where there is no such vector."""
    if at is None:
        return None
    else:
        return tl.expand_dims(at + index, AXIS)


@triton.jit
def stretch(side, first, begin, end, BLOCK: tl.constexpr):
    index = first + tl.arange(0, BLOCK)
    return Stretch(first, begin, end, index, entries(side.norm, index), entries(side.scale, index))


@triton.jit
def is_close(squared, norms):
    """Whether squared distances are those of close pairs, NaN included."""
    return ~(squared > norms * CLOSE)


@triton.jit
def any_of(mask):
    return tl.max(tl.max(mask.to(tl.int32), 1), 0) > 0


@triton.jit
def offsets(rows, cols, ld):
    """The offsets of the pairs in the scratch for their rectangle."""
    return (rows.index - rows.begin).to(tl.int64)[:, None] * ld + (cols.index - cols.begin)[None, :]


@triton.jit
def squared_differences(x, y, rows, cols):
    """|x_i x_scale_i - y_j y_scale_j|^2 of the tile, from the differences: exact where they are small."""
    x_at = x.x + tl.where(rows.index < rows.end, rows.index, 0).to(tl.int64) * x.d
    y_at = y.x + tl.where(cols.index < cols.end, cols.index, 0).to(tl.int64) * x.d
    out = tl.zeros((rows.index.shape[0], cols.index.shape[0]), tl.float32)
    for k in range(x.d):
        a = tl.load(x_at + k).to(tl.float32) * rows.scale
        b = tl.load(y_at + k).to(tl.float32) * cols.scale
        difference = a[:, None] - b[None, :]
        out = tl.fma(difference, difference, out)
    return out


@triton.jit
def make_products(x, y, rows, cols, DEPTH: tl.constexpr):
    """Dot products, by the matrix units. Beyond the end of a rectangle they are those of its first row or column."""
    k = tl.arange(0, DEPTH)
    x_at = x.x + tl.where(rows.index < rows.end, rows.index, rows.begin).to(tl.int64)[:, None] * x.d + k[None, :]
    y_at = y.x + tl.where(cols.index < cols.end, cols.index, cols.begin).to(tl.int64)[None, :] * x.d + k[:, None]
    out = tl.zeros((rows.index.shape[0], cols.index.shape[0]), tl.float32)
    for start in range(0, x.d, DEPTH):
        a = tl.load(x_at + start, mask=(k < x.d - start)[None, :], other=0.0)
        b = tl.load(y_at + start, mask=(k < x.d - start)[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        out = tl.dot(a, b, out)
    return out


@triton.jit
def tile_products(products, x, y, rows, cols, DEPTH: tl.constexpr):
    """The dot products of a tile. ``DEPTH``: how many columns of the embeddings are multiplied at a time; 0 where the
    products exist already."""
    if DEPTH > 0:
        return make_products(x, y, rows, cols, DEPTH)
    else:
        return tl.load(products.at + offsets(rows, cols, products.ld))


@triton.jit
def turned(x, METRIC: tl.constexpr):
    """Turns scores into closenesses and closenesses into scores, and derivatives by the one into those by the other."""
    if METRIC.kind == "dot":
        return x
    else:
        return -x


@triton.jit
def closeness(products, x, y, rows, cols, pair, METRIC: tl.constexpr):
    """Closenesses, from the dot products, and which pairs are close: those whose squared distance is small against the
    norms, so that the difference of products has lost digits, or NaN as a difference of infinities. The distances of
    close pairs are computed again."""
    out = products
    close = tl.zeros(pair.shape, tl.int1)
    if METRIC.unit:
        # The product of the scales first: it is the same for a pair and its mirror image.
        out = out * (rows.scale[:, None] * cols.scale[None, :])
    if METRIC.kind != "dot":
        norms = rows.norm[:, None] + cols.norm[None, :]
        out = relu(norms - 2 * out)
        close = pair & is_close(out, norms)
        if any_of(close):
            out = tl.where(close, squared_differences(x, y, rows, cols), out)
    if METRIC.kind == "euclidean":
        out = tl.sqrt(out)
    return turned(out, METRIC), close


@triton.jit
def slope_by_product(s, METRIC: tl.constexpr):
    """The derivative of closenesses by the dot products, without that by the norms; zero for a distance of zero."""
    if METRIC.kind == "sqeuclidean":
        return tl.full(s.shape, 2.0, tl.float32)
    if METRIC.kind == "euclidean":
        return tl.where(s == 0, 0.0, -1 / s)
    return tl.full(s.shape, 1.0, tl.float32)


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
def store_slopes(slope, s, pair, mixed, close, rows, cols, products, out, METRIC: tl.constexpr):
    """Stores a tile of slopes by the closenesses ``s`` as slopes by the dot products, in ``out.slopes``; zero where
    there is no ``pair``, which only a ``mixed`` tile has. Slopes of close pairs overwrite the tile's ``products``, in
    the same layout, if there are any, as ``out.flags`` records. ``out.residuals``: what rounding takes from the slopes.
    ``out.row_sums``, ``out.col_sums``: their sums by row and by column of each tile, (blocks, .). Returns the rounded
    slopes that were stored, and the residuals."""
    at = offsets(rows, cols, products.ld)
    width = cols.end - cols.begin
    row_block = (rows.first - rows.begin) // rows.index.shape[0]
    col_block = (cols.first - cols.begin) // cols.index.shape[0]
    slope *= slope_by_product(s, METRIC)
    if METRIC.kind != "dot":
        # A distance of zero has gradient zero, also where the term, as a square root, has an infinite slope.
        slope = tl.where(s == 0, 0.0, slope)
        some = any_of(close)
        tl.store(out.flags + row_block * tl.cdiv(width, cols.index.shape[0]) + col_block, some.to(tl.int8))
        if some:
            tl.store(products.at + at, tl.where(close, slope, 0.0))
        pair &= ~close
    if METRIC.unit:
        slope *= rows.scale[:, None] * cols.scale[None, :]
    if mixed:
        slope = tl.where(pair, slope, 0.0)
    rounded = slope.to(out.slopes.dtype.element_ty)
    tl.store(out.slopes + at, rounded)
    # Sums are taken of the rounded slopes, since the products use those.
    kept = rounded.to(tl.float32)
    rest = rounded
    if out.residuals is not None:
        rest = (slope - kept).to(rounded.dtype)
        tl.store(out.residuals + at, rest)
        kept += rest.to(tl.float32)
    if out.row_sums is not None:
        row_sums = out.row_sums + col_block.to(tl.int64) * (rows.end - rows.begin) - rows.begin
        col_sums = out.col_sums + row_block.to(tl.int64) * width - cols.begin
        tl.store(row_sums + rows.index, tl.sum(kept, 1), mask=rows.index < rows.end)
        tl.store(col_sums + cols.index, tl.sum(kept, 0), mask=cols.index < cols.end)
    return rounded, rest
