"""The rank of each query's best item of its own class among all items: two passes over the scores, no sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.pair_kernels import NO_SELF, SAME_INDEX, related
from fastpair.backends.triton.pairs import Pairs, sides
from fastpair.backends.triton.tiles import Links, aligned, closeness, stretch, tile_products
from fastpair.metrics import METRICS


@triton.jit(do_not_specialize=["top", "bottom", "left", "right"])
def best_kernel(
    x,
    y,
    products,
    best,
    best_item,
    rank,
    top,
    bottom,
    left,
    right,
    COUNT: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Updates the closeness and index of the best item of the query's class with the items [left, right) or, with
    ``COUNT``, the number of items that come before it. Equals come in the order of the items, NaN comes last."""
    top, left = aligned(top), aligned(left)
    rows = stretch(x, top + tl.program_id(0) * BLOCK_M, top, bottom, BLOCK_M)
    inside = rows.index < bottom
    own = tl.load(best + rows.index, mask=inside, other=0.0)
    own_item = tl.load(best_item + rows.index, mask=inside, other=0)
    before = tl.load(rank + rows.index, mask=inside, other=0)
    for start in range(left, right, BLOCK_N):
        cols = stretch(y, start, left, right, BLOCK_N)
        pair, same = related(x, y, rows, cols, Links(None, None, None), SELF)
        positive = pair & same
        s, _close = closeness(tile_products(products, x, y, rows, cols, 0), x, y, rows, cols, pair, METRIC)
        s = tl.where(s != s, -float("inf"), s)
        if COUNT:
            equal_before = (s == own[:, None]) & (cols.index[None, :] < own_item[:, None])
            before += tl.sum((pair & ((s > own[:, None]) | equal_before)).to(tl.int32), 1)
        else:
            s = tl.where(positive, s, -float("inf"))
            highest = tl.max(s, 1)
            at = positive & (s == highest[:, None])
            first = tl.min(tl.where(at, cols.index[None, :], 2**31 - 1), 1)
            better = (first < 2**31 - 1) & ((highest > own) | (own_item < 0))
            own_item = tl.where(better, first, own_item)
            own = tl.where(better, highest, own)
    if COUNT:
        tl.store(rank + rows.index, before, mask=inside)
    else:
        tl.store(best + rows.index, own, mask=inside)
        tl.store(best_item + rows.index, own_item, mask=inside)


def best_rank(
    query: Tensor, query_labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None, metric: str
) -> Tensor:
    """How many items come before the first one of the query's class (n,), int32; -1 where there is none. Without a
    gallery the items are the other queries."""
    x, y = sides(query, gallery, METRICS[metric], labels=(query_labels, gallery_labels))
    pairs = Pairs(x, y, METRICS[metric])
    best = x.new(len(x)).fill_(-torch.inf)
    best_item = torch.full_like(best, -1, dtype=torch.int32)
    rank = torch.zeros_like(best_item)
    for count in (False, True):
        for rectangle in pairs.rectangles(x, y):
            best_kernel[rectangle.tiles(pairs.tile)[:1]](
                x.arguments(),
                y.arguments(),
                pairs.dot_products(x, y, rectangle),
                best,
                best_item,
                rank,
                *rectangle,
                COUNT=count,
                SELF=(SAME_INDEX if y is x else NO_SELF).value,
                **pairs.constants(pairs.tile),
            )
    return torch.where(best_item < 0, -1, rank)
