"""Where each query's best item of its own class ranks among all items: two visits of the scores, no sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.pair_kernels import all_pairs, load_vector, same_classes
from fastpair.backends.triton.pairs import Pairs, Side, ceil_div, sides
from fastpair.backends.triton.tiles import DOT, load_products, scores


@triton.jit
def best_kernel(
    x,
    y,
    products,
    ld,
    x_labels,
    y_labels,
    self_index,
    x_norm,
    y_norm,
    x_scale,
    y_scale,
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
    rows = top + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < bottom
    x_norms = load_vector(x_norm, rows, bottom, METRIC != DOT)
    x_scales = load_vector(x_scale, rows, bottom, UNIT or METRIC != DOT)
    own = tl.load(best + rows, mask=inside, other=0.0)
    own_item = tl.load(best_item + rows, mask=inside, other=0)
    before = tl.load(rank + rows, mask=inside, other=0)
    for start in range(left, right, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        pair = all_pairs(rows, cols, bottom, right, self_index, SELF)
        positive = pair & same_classes(rows, cols, bottom, right, x_labels, y_labels)
        s, _close = scores(
            load_products(products, ld, top, left, rows, cols, bottom, right),
            x,
            y,
            rows,
            cols,
            x_norms,
            load_vector(y_norm, cols, right, METRIC != DOT),
            x_scales,
            load_vector(y_scale, cols, right, UNIT or METRIC != DOT),
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
    x.labels = query_labels.long().contiguous()
    y.labels = x.labels if gallery is None else gallery_labels.long().contiguous()
    pairs = Pairs(x, y, metric)
    best = x.new(len(x)).fill_(-torch.inf)
    best_item = torch.full_like(best, -1, dtype=torch.int32)
    rank = torch.zeros_like(best_item)
    for count in (False, True):
        for top, bottom, left, right in pairs.rectangles(x, y):
            products = pairs.dot_products(x, y, top, bottom, left, right)
            best_kernel[(ceil_div(bottom - top, pairs.tile.rows),)](
                x.rows.x,
                y.rows.x,
                products,
                products.stride(0),
                x.labels,
                y.labels,
                None,
                x.rows.norm,
                y.rows.norm,
                x.rows.scale,
                y.rows.scale,
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
