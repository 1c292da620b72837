"""All pairs of two sets of rows, visited in rectangles of the score matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from fastpair.backends.products import Factor, product
from fastpair.backends.triton import close
from fastpair.backends.triton.launch import ALIGNED, COMPILED, ROOM, Tile, ceil_div, tile_for, whole
from fastpair.backends.triton.rows import Rows, centered
from fastpair.backends.triton.tiles import DOT, EUCLIDEAN, SQUARED_EUCLIDEAN, SideArguments, SlopeArguments

# Scores and slopes are visited, and held, in rectangles of this size: 48 MiB for half precision, of which much stays in
# the second-level cache, and wide enough for products at full speed. Twice as high where slopes alone are held.
# Multiples of every tile's rows and columns: only the last tiles of all reach beyond what there is.
HEIGHT, WIDTH = 2048, 4096

METRICS = {
    "dot": (DOT.value, False),
    "cosine": (DOT.value, True),
    "sqeuclidean": (SQUARED_EUCLIDEAN.value, False),
    "unit_sqeuclidean": (SQUARED_EUCLIDEAN.value, True),
    "euclidean": (EUCLIDEAN.value, False),
    "unit_euclidean": (EUCLIDEAN.value, True),
}


@dataclass(eq=False)
class Side:
    """Rows of one side, their labels, and the sums of products with slopes that their gradient is made of."""

    rows: Rows
    labels: Tensor | None = None
    gradient: Tensor | None = None
    slope_sums: Tensor | None = None
    factor: Factor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.rows.x.device)

    def arguments(self, **of_anchors: Tensor | None) -> SideArguments:
        return SideArguments(self.rows.x, self.labels, self.rows.norm, self.rows.scale, **of_anchors)

    def want_gradient(self) -> None:
        self.gradient = torch.zeros(self.rows.x.shape, dtype=torch.float32, device=self.rows.x.device)
        # The squared norms of unit vectors do not change.
        if self.rows.distances and not self.rows.unit:
            self.slope_sums = torch.zeros(len(self), dtype=torch.float32, device=self.rows.x.device)

    def finished(self) -> Tensor:
        """The gradient with respect to the tensor that the rows came from, empty where it is not wanted."""
        return self.new(0) if self.gradient is None else self.rows.finish(self.gradient, self.slope_sums)


@dataclass(eq=False)
class Anchors(Side):
    """With the statistics (slots, 6, .) of each anchor's pairs, and what the gradient sweep needs of them."""

    partial: Tensor | None = None
    given: Tensor | None = None
    weights: Tensor | None = None
    extremes: Tensor | None = None
    totals: Tensor | None = None
    losses: Tensor | None = None
    share: Tensor | None = None

    @property
    def room(self) -> int:
        """How far their channels lie apart."""
        return whole(len(self), ROOM)


def sides(kind: type[Side], x: Tensor, y: Tensor | None, metric: str, grad_x: bool, grad_y: bool) -> tuple[Side, Side]:
    """Both sides of a call, which are one where y is not given."""
    code, unit = METRICS[metric]
    distances = code != DOT.value
    if distances and not unit and x.dtype == torch.float32 and len(x):
        x, y = centered(x, y)
    first = kind(Rows(x, unit, distances))
    second = first if y is None else kind(Rows(y, unit, distances))
    for side, wanted in ((first, grad_x), (second, grad_y)):
        if wanted:
            side.want_gradient()
    if grad_x or grad_y:
        fine = distances and not unit
        first.factor = Factor(first.rows.x, fine)
        second.factor = first.factor if second is first else Factor(second.rows.x, fine)
    return first, second


@dataclass(eq=False)
class Slopes:
    """Of a rectangle, in the parts that the rows' ``factor`` wants. For distances their sums by row and by
    column for each tile, unless rows are of unit length; and ``close``, the slopes of close pairs, which are zero in
    the parts, with the ``flags`` of the tiles of the size ``tile`` that have some."""

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
    """To the gradients of ``own`` from row ``first`` + ``begin`` on. ``slopes`` (., .), of the rows of both sides from
    ``first`` and ``other_first`` on: zero but for close pairs in the tiles that are flagged, undefined in others."""
    owners, others = slopes.shape
    d = own.rows.x.shape[1]
    columns = min(triton.next_power_of_2(d), close.MOST_COLUMNS)
    close.close_kernel[(ceil_div(owners - begin, close.OWNERS), ceil_div(d, columns))](
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
        OWNERS=close.OWNERS,
        COLUMNS=columns,
        FLAGS=close.FLAGS,
        **COMPILED,
    )


class Pairs:
    """Of the rows of x and y, which may be one side. ``makes``: whether the kernels make the products,
    instead of reading them."""

    makes = False

    def __init__(self, x: Side, y: Side, metric: str):
        self.x, self.y = x, y
        self.metric, self.unit = METRICS[metric]
        self.tile: Tile = tile_for(x.rows.x)
        self.height, self.width = HEIGHT, WIDTH
        self.products: Tensor | None = None
        self.parts: list[Tensor] = []
        self.computed: tuple | None = None

    def can_make(self) -> bool:
        """Whether products are of half precision, whose matrix units are faster than they can be written and read, and
        rows lie as these want them."""
        x = self.x.rows.x
        return self.metric == DOT.value and x.dtype != torch.float32 and x.shape[1] % 16 == 0

    def constants(self, tile: Tile) -> dict:
        return {"METRIC": self.metric, "UNIT": self.unit, **tile.constants()}

    def rectangles(self, rows: Side, cols: Side, upper: bool = False) -> Iterator[tuple[int, int, int, int]]:
        """(top, bottom, left, right) of rectangles that cover all pairs, or those on and above the diagonal."""
        for top in range(0, len(rows), self.height):
            for left in range(top if upper else 0, len(cols), self.width):
                yield top, min(top + self.height, len(rows)), left, min(left + self.width, len(cols))

    @property
    def ld(self) -> int:
        """Of all scratch."""
        return whole(min(self.width, max(len(self.x), len(self.y))), self.tile.cols)

    def scratch(self, dtype: torch.dtype) -> Tensor:
        """Room for a rectangle, of either side's rows, in whole tiles."""
        height = min(self.height, max(len(self.x), len(self.y)))
        return self.x.new(whole(height, self.tile.rows), self.ld, dtype=dtype)

    def dot_products(self, rows: Side, cols: Side, top: int, bottom: int, left: int, right: int) -> Tensor | None:
        """Of a rectangle, kept until others are asked for; None where the kernels make them."""
        assert top % ALIGNED == left % ALIGNED == 0  # or the kernels would begin elsewhere
        if self.makes:
            return None
        if self.computed != (rows, top, bottom, left, right):
            if self.products is None:
                self.products = self.scratch(torch.float32)
            out = self.products[: bottom - top, : right - left]
            product(rows.rows.x[top:bottom], cols.rows.x[left:right].T, out)
            self.computed = (rows, top, bottom, left, right)
        return self.products

    def new_slopes(self, rectangle: tuple[int, int, int, int]) -> Slopes:
        """Room for the slopes of a rectangle. Its products are read once more before the slopes are written, those of
        dot products in their place if dtypes agree, those of close pairs always."""
        top, bottom, left, right = rectangle
        height, width = bottom - top, right - left
        distances = self.x.rows.distances
        dtype = self.x.factor.dtype
        if self.products is None and not self.makes:
            self.products = self.scratch(torch.float32)
        if not self.parts:
            in_place = dtype == torch.float32 and not distances
            self.parts = [self.products if in_place else self.scratch(dtype) for _ in range(self.x.factor.slope_parts)]
        rows, cols = ceil_div(height, self.tile.rows), ceil_div(width, self.tile.cols)
        sums = distances and not self.unit
        return Slopes(
            self.parts,
            self.x.new(cols, height) if sums else None,
            self.x.new(rows, width) if sums else None,
            self.products if distances else None,
            self.x.new(rows, cols, dtype=torch.int8) if distances else None,
            (self.tile.rows, self.tile.cols),
        )

    def add_gradients(self, rectangle: tuple[int, int, int, int], slopes: Slopes, upper: bool = False) -> None:
        """To both sides, from the slopes of a rectangle. ``upper``: what lies right of the square on the diagonal
        stands for its mirror image too."""
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
