"""All pairs of two sets of rows, visited in rectangles of the score matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastpair.backends.products import Factor, product
from fastpair.backends.triton.launch import Tile, tile_for
from fastpair.backends.triton.rows import Rows, centered
from fastpair.backends.triton.tiles import DOT, EUCLIDEAN, SQUARED_EUCLIDEAN

# Scores and slopes are visited, and held, in rectangles of this size: 48 MiB for half precision, of which much stays in
# the second-level cache, and wide enough for products at full speed.
HEIGHT, WIDTH = 2048, 4096

METRICS = {
    "dot": (DOT.value, False),
    "cosine": (DOT.value, True),
    "sqeuclidean": (SQUARED_EUCLIDEAN.value, False),
    "unit_sqeuclidean": (SQUARED_EUCLIDEAN.value, True),
    "euclidean": (EUCLIDEAN.value, False),
    "unit_euclidean": (EUCLIDEAN.value, True),
}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


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
    """With the statistics (slots, 6, n) of each anchor's pairs, and what the gradient sweep needs of them."""

    partial: Tensor | None = None
    given: Tensor | None = None
    weights: Tensor | None = None
    extremes: Tensor | None = None
    totals: Tensor | None = None
    losses: Tensor | None = None
    share: Tensor | None = None


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
        first.factor = Factor(first.rows.x)
        second.factor = first.factor if second is first else Factor(second.rows.x)
    return first, second


class Pairs:
    """Of the rows of x and y, which may be one side."""

    def __init__(self, x: Side, y: Side, metric: str):
        self.x, self.y = x, y
        self.metric, self.unit = METRICS[metric]
        self.tile: Tile = tile_for(x.rows.x)
        self.products: Tensor | None = None
        self.computed: tuple | None = None

    def constants(self) -> dict:
        return {"METRIC": self.metric, "UNIT": self.unit, **self.tile.constants()}

    def rectangles(self, rows: Side, cols: Side, upper: bool = False) -> Iterator[tuple[int, int, int, int]]:
        """(top, bottom, left, right) of rectangles that cover all pairs, or those on and above the diagonal."""
        for top in range(0, len(rows), HEIGHT):
            for left in range(top if upper else 0, len(cols), WIDTH):
                yield top, min(top + HEIGHT, len(rows)), left, min(left + WIDTH, len(cols))

    def scratch(self, dtype: torch.dtype) -> Tensor:
        """Room for a rectangle, of either side's rows, in whole tiles."""
        longest = max(len(self.x), len(self.y))
        return self.x.new(min(HEIGHT, longest), min(WIDTH, self.tile.whole(longest)), dtype=dtype)

    def dot_products(self, rows: Side, cols: Side, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Of a rectangle, kept until others are asked for."""
        if self.computed != (rows, top, bottom, left, right):
            if self.products is None:
                self.products = self.scratch(torch.float32)
            product(rows.rows.x[top:bottom], cols.rows.x[left:right].T, self.products[: bottom - top, : right - left])
            self.computed = (rows, top, bottom, left, right)
        return self.products

    @property
    def in_place(self) -> bool:
        """Slopes take the place of the products that they come from."""
        return self.x.factor.dtype == torch.float32

    def slope_scratch(self) -> list[Tensor]:
        """Room for the slopes of a rectangle, in as many parts as the rows that they are multiplied by."""
        if self.in_place and self.products is None:
            self.products = self.scratch(torch.float32)
        return [self.products if self.in_place else self.scratch(self.x.factor.dtype) for _ in self.x.factor.parts]

    def add_gradients(
        self,
        rectangle: tuple[int, int, int, int],
        slopes: list[Tensor],
        row_sums: Tensor | None,
        col_sums: Tensor | None,
        upper: bool = False,
    ) -> None:
        """To both sides, from the slopes of a rectangle and, for distances, their sums by row and by column for each
        tile. ``upper``: what lies right of the square on the diagonal stands for its mirror image too."""
        x, y = self.x, self.y
        top, bottom, left, right = rectangle
        if self.in_place:
            self.computed = None
        slopes = [part[: bottom - top, : right - left] for part in slopes]
        if x.gradient is not None:
            y.factor.add_products(x.gradient[top:bottom], slopes, left, right)
            if x.slope_sums is not None:
                x.slope_sums[top:bottom] += row_sums.sum(0)
        begin = max(left, bottom) if upper else left
        if y.gradient is not None and begin < right:
            mirrored = [part[:, begin - left :] for part in slopes]
            x.factor.add_products(y.gradient[begin:right], mirrored, top, bottom, transposed=True)
            if y.slope_sums is not None:
                y.slope_sums[begin:right] += col_sums[:, begin - left :].sum(0)
