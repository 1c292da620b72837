"""The losses over triplets that are not sums over pairs, from row panels of the score matrix: over all of them, the
semi-hard ones, or those that FaceNet selects.

Every triplet is visited twice: 2 n P m terms for P positives per anchor, with the m references sorted by label. Further
cost in units of 2nmd flops: 1 for the scores + 2 for the gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.call import PairLossCall
from fastpair.backends.triton.elementary import relu, sigmoid, softplus, step
from fastpair.backends.triton.launch import ALIGNED, COMPILED, ceil_div, whole
from fastpair.backends.triton.pairs import Pairs, Rectangle, Slopes, sides
from fastpair.backends.triton.pairwise_distance import launch
from fastpair.backends.triton.tiles import Products, SlopeArguments, is_close, slope_by_product, turned
from fastpair.formulas.pair_losses import TRIPLETS
from fastpair.metrics import METRICS

BLOCK_N = 256  # references that a program takes at a time, as negatives


class AnchorArguments(NamedTuple):
    """Vectors over the anchors. An anchor's positives are the columns [begins, ends) except ``selves``. ``weights``: of
    its gradient. The kernel writes ``losses``, and how many terms are not zero to ``counts``."""

    begins: Tensor
    ends: Tensor
    selves: Tensor
    weights: Tensor
    losses: Tensor
    counts: Tensor


class Anchor(NamedTuple):
    """The anchor of a program: its norm and scale, and where its row begins in scratch and in the flags."""

    norm: tl.tensor
    scale: tl.tensor
    offset: tl.tensor
    flags: tl.tensor


@triton.jit
def triplet_terms(gap, chosen, margin, SMOOTH: tl.constexpr, CHOSEN: tl.constexpr):
    """The terms of triplets and their slopes by ``gap`` = s_n - s_p."""
    if CHOSEN == "semihard":
        # d_p < d_n < d_p + margin, written so that NaN is kept.
        chosen = chosen & ~(gap >= 0) & ~(gap + margin <= 0)
    excess = gap + margin
    if SMOOTH:
        term, slope = softplus(excess), sigmoid(excess)
    else:
        term, slope = relu(excess), step(excess)
    return tl.where(chosen, term, 0.0), tl.where(chosen, slope, 0.0)


@triton.jit
def load_negatives(at, start, columns, METRIC: tl.constexpr, BLOCK_N: tl.constexpr):
    """The columns from ``start`` on, whether they lie outside the anchor's class, which of them are negatives, and
    their closenesses. ``columns``: where the anchor's class begins and ends, its own column, and how many there are."""
    begin, end, own, m = columns
    n = start + tl.arange(0, BLOCK_N)
    elsewhere = (n < m) & ((n < begin) | (n >= end))
    negative = elsewhere & (n != own)
    return n, elsewhere, negative, turned(tl.load(at + n, mask=negative, other=0.0), METRIC)


@triton.jit
def farthest_negative(at, columns, METRIC: tl.constexpr, BLOCK_N: tl.constexpr):
    """The closeness and the column of the farthest negative, the first of several; of one that is NaN, if any is. The
    column is m without negatives."""
    m = columns[3]
    lowest = tl.full((BLOCK_N,), float("inf"), tl.float32)
    lowest_at = tl.zeros((BLOCK_N,), tl.int32) + m
    undefined = lowest_at
    for start in range(0, m, BLOCK_N):
        n, _elsewhere, negative, s = load_negatives(at, start, columns, METRIC, BLOCK_N)
        undefined = tl.where(negative & (s != s), n, undefined)
        lower = negative & ((s < lowest) | ((lowest_at == m) & (s == s)))
        lowest, lowest_at = tl.where(lower, s, lowest), tl.where(lower, n, lowest_at)
    farthest, some_undefined = tl.min(lowest, 0), tl.min(undefined, 0)
    farthest_at = tl.min(tl.where(lowest == farthest, lowest_at, m), 0)
    return (
        tl.where(some_undefined < m, float("nan"), farthest),
        tl.where(some_undefined < m, some_undefined, farthest_at),
    )


@triton.jit
def facenet_negatives(
    at, s_p, farthest, farthest_at, columns, METRIC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr
):
    """For each positive the closeness and the column of the nearest negative that is farther, the first of several, or
    else of the farthest."""
    m = columns[3]
    highest = tl.full((BLOCK_P, BLOCK_N), float("-inf"), tl.float32)
    highest_at = tl.zeros((BLOCK_P, BLOCK_N), tl.int32) + m
    for start in range(0, m, BLOCK_N):
        n, _elsewhere, negative, s_n = load_negatives(at, start, columns, METRIC, BLOCK_N)
        farther = negative[None, :] & (s_n[None, :] < s_p[:, None])
        higher = farther & ((s_n[None, :] > highest) | (highest_at == m))
        highest, highest_at = tl.where(higher, s_n[None, :], highest), tl.where(higher, n[None, :], highest_at)
    nearest = tl.max(highest, 1)
    nearest_at = tl.min(tl.where(highest == nearest[:, None], highest_at, m), 1)
    others, others_at = tl.zeros_like(nearest) + farthest, tl.zeros_like(nearest_at) + farthest_at
    found = (nearest_at < m) & (others == others)
    return tl.where(found, nearest, others), tl.where(found, nearest_at, others_at)


@triton.jit(do_not_specialize=["flags_ld", "top", "m"])
def triplet_kernel(
    x,
    y,
    anchors,
    scores,
    out,
    close,
    taken,
    flags_ld,
    top,
    m,
    margin,
    SMOOTH: tl.constexpr,
    CHOSEN: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One anchor of the panel of scores that begins with anchor ``top``: its loss, how many of its terms count
    in the mean, and, where ``out`` is wanted, its weight times the derivatives by its products. ``taken``: scratch for
    the negative of each positive, where it has one alone."""
    panel_row = tl.program_id(0)
    row = top + panel_row
    begin, end, own = tl.load(anchors.begins + row), tl.load(anchors.ends + row), tl.load(anchors.selves + row)
    columns = (begin, end, own, m)
    weight = tl.load(anchors.weights + row)
    anchor = Anchor(
        tl.load(x.norm + row) if METRIC.kind != "dot" else 0.0,
        tl.load(x.scale + row) if METRIC.unit else 1.0,
        panel_row.to(tl.int64) * scores.ld,
        panel_row * flags_ld,
    )
    at = scores.at + anchor.offset
    loss = tl.zeros((BLOCK_P,), tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    if CHOSEN == "facenet":
        farthest, farthest_at = farthest_negative(at, columns, METRIC, BLOCK_N)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        positive = (p < end) & (p != own)
        s_p = turned(tl.load(at + p, mask=positive, other=0.0), METRIC)
        if CHOSEN == "facenet":
            s_n, column = facenet_negatives(at, s_p, farthest, farthest_at, columns, METRIC, BLOCK_P, BLOCK_N)
            chosen = positive & (column < m)
            term, p_slope = triplet_terms(s_n - s_p, chosen, margin, SMOOTH, CHOSEN)
            loss += term
            count += chosen.to(tl.float32)
            if out.slopes is not None:
                tl.store(taken + anchor.offset + p, column, mask=p < end)
        else:
            p_slope = tl.zeros((BLOCK_P,), tl.float32)
            for start in range(0, m, BLOCK_N):
                _n, _elsewhere, negative, s_n = load_negatives(at, start, columns, METRIC, BLOCK_N)
                chosen, gap = positive[:, None] & negative[None, :], s_n[None, :] - s_p[:, None]
                term, slope = triplet_terms(gap, chosen, margin, SMOOTH, CHOSEN)
                loss += tl.sum(term, 1)
                count += tl.sum((term != 0).to(tl.float32), 1)
                p_slope += tl.sum(slope, 1)
        if out.slopes is not None:
            store_row(out, close, anchor, y, p, p < end, positive, -weight * p_slope, s_p, METRIC, BLOCK_N)
    tl.store(anchors.losses + row, tl.sum(loss, 0))
    tl.store(anchors.counts + row, tl.sum(count.to(tl.float64), 0))
    if out.slopes is not None:
        if CHOSEN == "facenet":
            tl.debug_barrier()  # the threads read of each other what is in ``taken``
        for start in range(0, m, BLOCK_N):
            n, elsewhere, negative, s_n = load_negatives(at, start, columns, METRIC, BLOCK_N)
            n_slope = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(begin, end, BLOCK_P):
                p = first + tl.arange(0, BLOCK_P)
                positive = (p < end) & (p != own)
                s_p = turned(tl.load(at + p, mask=positive, other=0.0), METRIC)
                chosen, gap = positive[:, None] & negative[None, :], s_n[None, :] - s_p[:, None]
                if CHOSEN == "facenet":
                    column = tl.load(taken + anchor.offset + p, mask=positive, other=-1)
                    chosen &= column[:, None] == n[None, :]
                _term, slope = triplet_terms(gap, chosen, margin, SMOOTH, CHOSEN)
                n_slope += tl.sum(slope, 0)
            store_row(out, close, anchor, y, n, elsewhere, negative, weight * n_slope, s_n, METRIC, BLOCK_N)


@triton.jit
def store_row(out, close, anchor, y, cols, inside, pair, slope, s, METRIC: tl.constexpr, FLAGGED: tl.constexpr):
    """Stores slopes by the closenesses ``s`` as slopes by the dot products, but those of close pairs in ``close``;
    ``out.flags``, one for every FLAGGED columns, say where there are some."""
    at = anchor.offset + cols
    slope *= slope_by_product(s, METRIC)
    if METRIC.kind != "dot":
        squared = s * s if METRIC.kind == "euclidean" else -s
        near = pair & is_close(squared, anchor.norm + tl.load(y.norm + cols, mask=inside, other=0.0))
        tl.store(close + at, tl.where(near, slope, 0.0), mask=inside)
        tl.store(out.flags + anchor.flags + cols // FLAGGED, 1, mask=near)
        pair &= ~near
    if METRIC.unit:
        slope *= anchor.scale * tl.load(y.scale + cols, mask=inside, other=0.0)
    slope = tl.where(pair, slope, 0.0)
    rounded = slope.to(out.slopes.dtype.element_ty)
    tl.store(out.slopes + at, rounded, mask=inside)
    if out.residuals is not None:
        tl.store(out.residuals + at, (slope - rounded.to(tl.float32)).to(rounded.dtype), mask=inside)


def triplet_loss(call: PairLossCall) -> tuple[Tensor, Tensor, Tensor]:
    """``fastpair::pair_loss`` for the losses of this file."""
    embeddings, labels, row_grad = call.embeddings, call.labels, call.row_grad
    own_batch = call.ref_emb is None
    references, ref_labels = (embeddings, labels) if own_batch else (call.ref_emb, call.ref_labels)
    n, m = len(embeddings), len(references)
    ordered, order = ref_labels.long().sort(stable=True)
    begins, ends = (torch.searchsorted(ordered, labels.long(), right=right).int() for right in (False, True))
    selves = torch.full((n,), -1, dtype=torch.int32, device=labels.device)
    if own_batch or call.self_index is not None:
        position = torch.empty_like(order).scatter_(0, order, torch.arange(m, device=order.device))
        index = torch.arange(n, device=order.device) if own_batch else call.self_index.long()
        if m:
            selves = torch.where(index >= 0, position[index.clamp(min=0)], -1).int()

    metric = METRICS[call.distance]
    want_columns = call.grad_embeddings if own_batch else call.grad_ref
    x, y = sides(embeddings, references[order], metric, call.grad_embeddings, want_columns)
    pairs = Pairs(x, y, metric)
    gradients = (call.grad_embeddings or want_columns) and n > 0 and m > 0
    losses = torch.zeros(n, dtype=torch.float32, device=labels.device)
    counts = torch.zeros(n, dtype=torch.float64, device=labels.device)
    if row_grad is not None and call.reduction == "totals":
        row_grad = row_grad[:1].expand(n)
    given = torch.ones_like(losses) if call.weights is None else call.weights.float()
    weights = (given if row_grad is None else given * row_grad.float()).contiguous()
    smooth, chosen = TRIPLETS[call.loss]
    anchors = AnchorArguments(begins, ends, selves, weights, losses, counts)
    most = pairs.height * pairs.width // max(m, 1)
    rows = max(min(whole(n, ALIGNED), most // ALIGNED * ALIGNED), ALIGNED)
    scores = x.new(rows, whole(m, ALIGNED))
    out, close, flags, taken = SlopeArguments(), None, None, None
    if gradients:
        if chosen == "facenet":
            taken = torch.empty_like(scores, dtype=torch.int32)
        parts = [torch.empty_like(scores, dtype=x.factor.dtype) for _ in range(x.factor.slope_parts)]
        if metric.kind != "dot":
            close = torch.empty_like(scores)
            flags = x.new(rows, ceil_div(m, BLOCK_N), dtype=torch.int8)
        out = SlopeArguments(parts[0], parts[1] if len(parts) > 1 else None, flags=flags)
    for top in range(0, n if m else 0, rows):
        bottom = min(top + rows, n)
        for rectangle in pairs.rectangles(x, y, begin=top, end=bottom):
            launch(pairs, rectangle, scores[rectangle.top - top :, rectangle.left :], scores.stride(0))
        if flags is not None:
            flags.zero_()
        triplet_kernel[(bottom - top,)](
            x.arguments(),
            y.arguments(),
            anchors,
            Products(scores, scores.stride(0)),
            out,
            close,
            taken,
            0 if flags is None else flags.stride(0),
            top,
            m,
            float(call.params[0]),
            SMOOTH=smooth,
            CHOSEN=chosen,
            METRIC=metric,
            BLOCK_P=4,
            BLOCK_N=BLOCK_N,
            **COMPILED,
        )
        if gradients:
            cut = [part[: bottom - top, :m] for part in parts]
            row_sums = col_sums = None
            if metric.kind != "dot" and not metric.unit:
                row_sums, col_sums = (sum(part.sum(dim, dtype=torch.float32)[None] for part in cut) for dim in (1, 0))
            slopes = Slopes(cut, row_sums, col_sums, close, flags, (1, BLOCK_N))
            pairs.add_gradients(Rectangle(top, bottom, 0, m), slopes)

    losses, counts = losses * given, counts * given
    total, count = losses.double().sum(), counts.sum()
    multiplier = 1 / torch.where(count > 0, count, 1) if call.reduction == "mean" else torch.ones_like(count)
    if call.reduction == "totals":
        value = F.pad(torch.stack([total, count]), (0, 2)).float()
    else:
        value = losses if call.reduction == "none" else (total * multiplier).float()
    dx, dy = (side.finished() * multiplier.float() for side in (x, y))
    if want_columns:
        dy = torch.empty_like(dy).index_copy_(0, order, dy)
    if not own_batch:
        return value, dx, dy
    return value, dx + dy if call.grad_embeddings else dx, x.new(0)
