"""Where each query's best item of its own class ranks among all items: two visits of the scores, no sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.launch import ceil_div, roomy
from fastpair.backends.triton.pair_kernels import all_pairs, same_classes
from fastpair.backends.triton.pairs import Pairs, Side, sides
from fastpair.backends.triton.tiles import aligned, lengths, load_products, scores


@triton.jit(do_not_specialize=["ld", "top", "bottom", "left", "right"])
def best_kernel(
    x,
    y,
    products,
    ld,
    best,
    best_item,
    rank,
    d,
    top,
    bottom,
    left,
    right,
    sign,
    COUNT: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Takes the items [left, right) into the closeness and number of the best item of the query's class or, with
    ``COUNT``, into the number of items that come before it. Equals come in the order of the items, NaN comes last."""
    ld, top, left = aligned(ld), aligned(top), aligned(left)
    rows = top + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < bottom
    row_lengths = lengths(x, rows)
    own = tl.load(best + rows, mask=inside, other=0.0)
    own_item = tl.load(best_item + rows, mask=inside, other=0)
    before = tl.load(rank + rows, mask=inside, other=0)
    for start in range(left, right, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        pair = all_pairs(rows, cols, bottom, right, None, SELF)
        positive = pair & same_classes(x, y, rows, cols)
        s, _close = scores(
            load_products(products, ld, rows, cols, top, left),
            x,
            y,
            rows,
            cols,
            row_lengths,
            lengths(y, cols),
            pair,
            bottom,
            right,
            d,
            METRIC,
            UNIT,
        )
        closeness = tl.where(s != s, -float("inf"), sign * s)
        if COUNT:
            equal_before = (closeness == own[:, None]) & (cols[None, :] < own_item[:, None])
            before += tl.sum((pair & ((closeness > own[:, None]) | equal_before)).to(tl.int32), 1)
        else:
            closeness = tl.where(positive, closeness, -float("inf"))
            highest = tl.max(closeness, 1)
            at = positive & (closeness == highest[:, None])
            first = tl.min(tl.where(at, cols[None, :], 2**31 - 1), 1)
            better = (first < 2**31 - 1) & ((highest > own) | (own_item < 0))
            own_item = tl.where(better, first, own_item)
            own = tl.where(better, highest, own)
    if COUNT:
        tl.store(rank + rows, before, mask=inside)
    else:
        tl.store(best + rows, own, mask=inside)
        tl.store(best_item + rows, own_item, mask=inside)


def best_rank(
    query: Tensor, query_labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None, metric: str
) -> Tensor:
    """How many items come before the first of the query's class (n,), int32; -1 where there is none. Without a gallery
    the items are the other queries."""
    x, y = sides(Side, query, gallery, metric, False, False)
    x.labels = roomy(query_labels.long().contiguous())
    y.labels = x.labels if gallery is None else roomy(gallery_labels.long().contiguous())
    pairs = Pairs(x, y, metric)
    best = x.new(len(x)).fill_(-torch.inf)
    best_item = torch.full_like(best, -1, dtype=torch.int32)
    rank = torch.zeros_like(best_item)
    for count in (False, True):
        for top, bottom, left, right in pairs.rectangles(x, y):
            products = pairs.dot_products(x, y, top, bottom, left, right)
            best_kernel[(ceil_div(bottom - top, pairs.tile.rows),)](
                x.arguments(),
                y.arguments(),
                products,
                pairs.ld,
                best,
                best_item,
                rank,
                x.rows.x.shape[1],
                top,
                bottom,
                left,
                right,
                1.0 if metric in ("cosine", "dot") else -1.0,
                COUNT=count,
                SELF=1 if y is x else 0,
                **pairs.constants(pairs.tile),
            )
    return torch.where(best_item < 0, -1, rank)
