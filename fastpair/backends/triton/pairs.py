"""All pairs of two sets of rows, visited in rectangles of the score matrix."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastpair.backends.products import Factor, product
from fastpair.backends.triton import close
from fastpair.backends.triton.launch import ALIGNED, COMPILED, OWNERS, ROOM, Tile, ceil_div, roomy, tile_for, whole
from fastpair.backends.triton.rows import Rows, centered
from fastpair.backends.triton.tiles import Products, SideArguments, SlopeArguments
from fastpair.metrics import Metric

# Scores and slopes are visited, and held, in rectangles of this size: 48 MiB for half precision, much of which stays in
# the second-level cache, and wide enough for products at full speed. Twice as high where only slopes are held.
# Multiples of every tile's rows and columns: only the last tiles of the matrix reach beyond its end.
HEIGHT, WIDTH = 2048, 4096


@dataclass(frozen=True, eq=False)
class Side:
    """The rows of one side, their labels or sets of labels, ids, the numbers that a formula reads of them, see
    ``SideArguments``, and, where a gradient is wanted, the sums it is made of. ``factor`` multiplies slopes by the
    rows, if either side wants a gradient."""

    rows: Rows
    labels: Tensor | None
    sets: Tensor | None
    ids: Tensor | None
    gradient: Tensor | None
    slope_sums: Tensor | None
    factor: Factor | None
    anchor_scalars: Tensor | None = None
    ref_scalars: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.rows.x.device)

    @property
    def room(self) -> int:
        """The distance between consecutive vectors over the rows."""
        return whole(len(self), ROOM)

    def arguments(self, **of_anchors: Tensor | None) -> SideArguments:
        rows, words = self.rows, None if self.sets is None else len(self.sets)
        own = (rows.x, rows.x.shape[1], self.labels, rows.norm, rows.scale, self.room, self.sets, words, self.ids)
        return SideArguments(*own, self.anchor_scalars, self.ref_scalars, **of_anchors)

    def finished(self) -> Tensor:
        """The gradient with respect to the tensor that the rows came from, empty where it is not wanted."""
        return self.new(0) if self.gradient is None else self.rows.finish(self.gradient, self.slope_sums)


def sides(
    x: Tensor,
    y: Tensor | None,
    metric: Metric,
    grad_x: bool = False,
    grad_y: bool = False,
    labels: tuple[Tensor | None, Tensor | None] = (None, None),
    ids: tuple[Tensor | None, Tensor | None] = (None, None),
    scalars: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Side, Side]:
    """Both sides of a call, which are the same object if y is not given. ``labels``, ``ids``, ``scalars``: see
    ``PairLossCall``."""
    distances = metric.kind != "dot"
    # The squared norms of unit vectors are constant.
    with_norms = distances and not metric.unit
    if with_norms and x.dtype == torch.float32 and len(x):
        x, y = centered(x, y)

    def side(x: Tensor, labels: Tensor | None, ids: Tensor | None, wanted: bool, *scalars: Tensor | None) -> Side:
        rows = Rows(x, metric.unit, distances)
        single = labels is not None and labels.ndim == 1
        return Side(
            rows,
            roomy(labels.long().contiguous()) if single else None,
            None if single or labels is None else roomy(labels.T.contiguous()),
            None if ids is None else roomy(ids.long().contiguous()),
            x.new_zeros(x.shape, dtype=torch.float32) if wanted else None,
            x.new_zeros(len(x), dtype=torch.float32) if wanted and with_norms else None,
            Factor(rows.x, with_norms) if grad_x or grad_y else None,
            *(None if of is None else roomy(of.float().contiguous()) for of in scalars),
        )

    of_anchors, of_references = scalars
    first = side(x, labels[0], ids[0], grad_x, of_anchors, of_references if y is None else None)
    return first, first if y is None else side(y, labels[1], ids[1], grad_y, None, of_references)


class Slopes(NamedTuple):
    """The slopes of a rectangle, in the parts that the rows' ``factor`` takes. For distances also their sums by row and
    by column of each tile, unless rows are of unit length; and ``close``, the slopes of close pairs, which are zero in
    the parts, with ``flags`` for the tiles, of size ``tile``, that have some."""

    parts: list[Tensor]
    row_sums: Tensor | None
    col_sums: Tensor | None
    close: Tensor | None
    flags: Tensor | None
    tile: tuple[int, int]

    def arguments(self) -> SlopeArguments:
        residuals = self.parts[1] if len(self.parts) > 1 else None
        return SlopeArguments(self.parts[0], residuals, self.row_sums, self.col_sums, self.flags)


def add_close_pairs(
    own: Side, first: int, begin: int, other: Side, other_first: int, slopes: Tensor, flags: Tensor, tile: tuple
) -> None:
    """Adds close pairs to the gradients of ``own`` from row ``first`` + ``begin`` on. ``slopes`` (., .), for the rows
    of both sides from ``first`` and ``other_first`` on: zero but for close pairs in flagged tiles, else undefined."""
    owners, others = slopes.shape
    d = own.rows.x.shape[1]
    columns = min(triton.next_power_of_2(d), close.MOST_COLUMNS)
    close.close_kernel[(ceil_div(owners - begin, OWNERS), ceil_div(d, columns))](
        own.gradient[first:],
        own.rows.x[first:],
        own.rows.scale[first:],
        other.rows.x[other_first:],
        other.rows.scale[other_first:],
        slopes,
        *slopes.stride(),
        flags,
        *flags.stride(),
        begin,
        owners,
        others,
        d,
        OWN_TILE=tile[0],
        OTHER_TILE=tile[1],
        OWNERS=OWNERS,
        COLUMNS=columns,
        FLAGS=close.FLAGS,
        **COMPILED,
    )


class Rectangle(NamedTuple):
    """A part of the score matrix: the rows [top, bottom) and the columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def tiles(self, tile: Tile) -> tuple[int, int]:
        """How many rows and columns of tiles cover it."""
        return ceil_div(self.bottom - self.top, tile.rows), ceil_div(self.right - self.left, tile.cols)


class Pairs:
    """The pairs of the rows of two sides, which may be the same. ``tile``: the tile of kernels that read products or
    write slopes. ``makes``: whether the kernels make the products instead of reading them."""

    def __init__(self, x: Side, y: Side, metric: Metric, tile: Tile | None = None):
        self.x, self.y = x, y
        self.metric = metric
        self.tile = tile or tile_for(x.rows.x)
        self.makes = self.tile.depth > 0
        # Where the kernels make the products, only slopes are held.
        self.height, self.width = HEIGHT * (2 if self.makes else 1), WIDTH
        self.computed: tuple | None = None

    def constants(self, tile: Tile) -> dict:
        return {"METRIC": self.metric, **tile.constants()}

    def rectangles(
        self, rows: Side, cols: Side, upper: bool = False, begin: int = 0, end: int | None = None
    ) -> Iterator[Rectangle]:
        """Rectangles that cover all pairs of the rows from ``begin`` to ``end``, or those on and above the diagonal."""
        end = len(rows) if end is None else end
        for top in range(begin, end, self.height):
            for left in range(top if upper else 0, len(cols), self.width):
                yield Rectangle(top, min(top + self.height, end), left, min(left + self.width, len(cols)))

    @property
    def ld(self) -> int:
        """The length of a row of scratch."""
        return whole(min(self.width, max(len(self.x), len(self.y))), self.tile.cols)

    def scratch(self, dtype: torch.dtype) -> Tensor:
        """Room for a rectangle, with either side as its rows, in whole tiles."""
        height = min(self.height, max(len(self.x), len(self.y)))
        return self.x.new(whole(height, self.tile.rows), self.ld, dtype=dtype)

    @functools.cached_property
    def products(self) -> Tensor:
        return self.scratch(torch.float32)

    @functools.cached_property
    def parts(self) -> list[Tensor]:
        """Room for slopes. Products are last read before slopes are written, so slopes may overwrite them: those of dot
        products if dtypes agree, those of close pairs always."""
        factor = self.x.factor
        in_place = factor.dtype == torch.float32 and self.metric.kind == "dot"
        return [self.products if in_place else self.scratch(factor.dtype) for _ in range(factor.slope_parts)]

    def dot_products(self, rows: Side, cols: Side, rectangle: Rectangle) -> Products:
        """The dot products of a rectangle, kept until those of another are asked for."""
        top, bottom, left, right = rectangle
        assert top % ALIGNED == left % ALIGNED == self.ld % ALIGNED == 0  # or the kernels would round them
        if self.makes:
            return Products(None, self.ld)
        if self.computed != (rows, rectangle):
            product(rows.rows.x[top:bottom], cols.rows.x[left:right].T, self.products[: bottom - top, : right - left])
            self.computed = (rows, rectangle)
        return Products(self.products, self.ld)

    def new_slopes(self, rectangle: Rectangle) -> Slopes:
        """Room for the slopes of a rectangle."""
        distances = self.metric.kind != "dot"
        height, width = rectangle.shape
        rows, cols = rectangle.tiles(self.tile)
        sums = distances and not self.metric.unit
        return Slopes(
            self.parts,
            self.x.new(cols, height) if sums else None,
            self.x.new(rows, width) if sums else None,
            self.products if distances else None,
            self.x.new(rows, cols, dtype=torch.int8) if distances else None,
            (self.tile.rows, self.tile.cols),
        )

    def add_gradients(self, rectangle: Rectangle, slopes: Slopes, upper: bool = False) -> None:
        """Adds to the gradients of both sides, from the slopes of a rectangle. ``upper``: the part to the right of the
        square on the diagonal stands for its mirror image too."""
        x, y = self.x, self.y
        top, bottom, left, right = rectangle
        self.computed = None
        parts = [part[: bottom - top, : right - left] for part in slopes.parts]
        if x.gradient is not None:
            y.factor.add_products(x.gradient[top:bottom], parts, left, right)
            if x.slope_sums is not None:
                x.slope_sums[top:bottom] += slopes.row_sums.sum(0)
        begin = max(left, bottom) if upper else left
        mirrored = y.gradient is not None and begin < right
        if mirrored:
            parts = [part[:, begin - left :] for part in parts]
            x.factor.add_products(y.gradient[begin:right], parts, top, bottom, transposed=True)
            if y.slope_sums is not None:
                y.slope_sums[begin:right] += slopes.col_sums[:, begin - left :].sum(0)
        if slopes.close is not None:
            pairs = slopes.close[: bottom - top, : right - left]
            if x.gradient is not None:
                add_close_pairs(x, top, 0, y, left, pairs, slopes.flags, slopes.tile)
            if mirrored:
                add_close_pairs(y, left, begin - left, x, top, pairs.T, slopes.flags.T, slopes.tile[::-1])
