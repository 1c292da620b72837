"""The triplet losses over all or the semi-hard triplets, which are no sum over pairs: row panels of the score matrix.

Every triplet is visited, twice: 2 n P m terms for P positives an anchor, of m references sorted by label. Cost besides
in units of 2nmd flops: 1 for the scores + 2 for the gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton import pairs as pairs_module
from fastpair.backends.triton.launch import ALIGNED, COMPILED, ceil_div, whole
from fastpair.backends.triton.pairs import METRICS, Pairs, Side, Slopes, sides
from fastpair.backends.triton.pairwise_distance import launch
from fastpair.backends.triton.terms import relu, sigmoid, softplus
from fastpair.backends.triton.tiles import DOT, EUCLIDEAN, SlopeArguments, aligned, is_close, slope_by_product

# (smooth, semi-hard)
LOSSES = {
    "triplet": (False, False),
    "smooth_triplet": (True, False),
    "semihard_triplet": (False, True),
    "smooth_semihard_triplet": (True, True),
}

BLOCK_N = 256  # references that a program takes at a time, as negatives


class AnchorArguments(NamedTuple):
    """Of each anchor: its positives are the columns [begins, ends) but for ``selves``. Its loss, and how many of its
    terms are not zero, times ``weights``."""

    begins: Tensor
    ends: Tensor
    selves: Tensor
    weights: Tensor
    losses: Tensor
    counts: Tensor


@triton.jit
def triplet_terms(closeness_p, closeness_n, chosen, margin, SMOOTH: tl.constexpr, SEMIHARD: tl.constexpr):
    """Terms and slopes by d_p - d_n of triplets, distances being the negative of closenesses."""
    gap = closeness_n - closeness_p
    if SEMIHARD:
        # d_p < d_n < d_p + margin; NaN is not left out.
        chosen = chosen & ~(gap >= 0) & ~(gap + margin <= 0)
    excess = gap + margin
    if SMOOTH:
        term, slope = softplus(excess), sigmoid(excess)
    else:
        term, slope = relu(excess), tl.where(excess <= 0, 0.0, 1.0)
    return tl.where(chosen, term, 0.0), tl.where(chosen, slope, 0.0)


@triton.jit(do_not_specialize=["ld", "flags_ld", "top", "m"])
def triplet_kernel(
    x,
    y,
    anchors,
    scores,
    ld,
    out,
    close,
    flags_ld,
    top,
    m,
    sign,
    margin,
    SMOOTH: tl.constexpr,
    SEMIHARD: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One anchor of the panel of scores that begins with anchor ``top``: its loss, how many of its terms are not zero,
    and, where ``out`` is wanted, its weight times the derivatives by its products."""
    ld = aligned(ld)
    panel_row = tl.program_id(0)
    row = top + panel_row
    begin, end, own = tl.load(anchors.begins + row), tl.load(anchors.ends + row), tl.load(anchors.selves + row)
    weight = tl.load(anchors.weights + row)
    row_scale = tl.load(x.scale + row) if UNIT else 1.0
    row_norm = tl.load(x.norm + row) if METRIC != DOT else 0.0
    at = scores + panel_row.to(tl.int64) * ld
    loss = tl.zeros((BLOCK_P,), tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    for first in range(begin, end, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        positive = (p < end) & (p != own)
        p_score = tl.load(at + p, mask=positive, other=0.0)
        p_slope = tl.zeros((BLOCK_P,), tl.float32)
        for start in range(0, m, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            negative = (n < m) & ((n < begin) | (n >= end)) & (n != own)
            n_score = tl.load(at + n, mask=negative, other=0.0)
            chosen = positive[:, None] & negative[None, :]
            term, slope = triplet_terms(
                sign * p_score[:, None], sign * n_score[None, :], chosen, margin, SMOOTH, SEMIHARD
            )
            loss += tl.sum(term, 1)
            count += tl.sum((term != 0).to(tl.float32), 1)
            p_slope += tl.sum(slope, 1)
        if out.slopes is not None:
            store_row(
                out,
                close,
                ld,
                flags_ld,
                panel_row,
                p,
                p < end,
                -sign * weight * p_slope,
                p_score,
                positive,
                row_norm,
                row_scale,
                y,
                METRIC,
                UNIT,
                BLOCK_N,
            )
    tl.store(anchors.losses + row, tl.sum(loss, 0))
    tl.store(anchors.counts + row, tl.sum(count.to(tl.float64), 0))
    if out.slopes is not None:
        for start in range(0, m, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            elsewhere = (n < m) & ((n < begin) | (n >= end))
            negative = elsewhere & (n != own)
            n_score = tl.load(at + n, mask=negative, other=0.0)
            n_slope = tl.zeros((BLOCK_N,), tl.float32)
            for first in range(begin, end, BLOCK_P):
                p = first + tl.arange(0, BLOCK_P)
                positive = (p < end) & (p != own)
                p_score = tl.load(at + p, mask=positive, other=0.0)
                chosen = positive[:, None] & negative[None, :]
                term, slope = triplet_terms(
                    sign * p_score[:, None], sign * n_score[None, :], chosen, margin, SMOOTH, SEMIHARD
                )
                n_slope += tl.sum(slope, 0)
            store_row(
                out,
                close,
                ld,
                flags_ld,
                panel_row,
                n,
                elsewhere,
                sign * weight * n_slope,
                n_score,
                negative,
                row_norm,
                row_scale,
                y,
                METRIC,
                UNIT,
                BLOCK_N,
            )


@triton.jit
def store_row(
    out,
    close,
    ld,
    flags_ld,
    row,
    cols,
    inside,
    slope,
    scores,
    pair,
    row_norm,
    row_scale,
    y,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    FLAGGED: tl.constexpr,
):
    """Stores slopes by the scores as slopes by the dot products, or those of close pairs in ``close``, of which there
    are some where ``out.flags`` of FLAGGED columns each say so."""
    at = row.to(tl.int64) * ld + cols
    slope *= slope_by_product(scores, METRIC)
    if METRIC != DOT:
        squared = scores * scores if METRIC == EUCLIDEAN else scores
        near = pair & is_close(squared, row_norm + tl.load(y.norm + cols, mask=inside, other=0.0))
        tl.store(close + at, tl.where(near, slope, 0.0), mask=inside)
        tl.store(out.flags + row * flags_ld + cols // FLAGGED, 1, mask=near)
        pair &= ~near
    if UNIT:
        slope *= row_scale * tl.load(y.scale + cols, mask=inside, other=0.0)
    slope = tl.where(pair, slope, 0.0)
    rounded = slope.to(out.slopes.dtype.element_ty)
    tl.store(out.slopes + at, rounded, mask=inside)
    if out.residuals is not None:
        tl.store(out.residuals + at, (slope - rounded.to(tl.float32)).to(rounded.dtype), mask=inside)


def triplet_loss(
    embeddings: Tensor,
    ref_emb: Tensor | None,
    labels: Tensor,
    ref_labels: Tensor | None,
    self_index: Tensor | None,
    row_grad: Tensor | None,
    loss: str,
    params: list[float],
    distance: str,
    reduction: str,
    grad_embeddings: bool,
    grad_ref: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``fastpair::pair_loss`` for the losses of this file."""
    n, m = len(embeddings), len(embeddings if ref_emb is None else ref_emb)
    own_batch = ref_emb is None
    ref_labels = (labels if own_batch else ref_labels).long()
    ordered, order = ref_labels.sort(stable=True)
    begins, ends = (torch.searchsorted(ordered, labels.long(), right=right).int() for right in (False, True))
    selves = torch.full((n,), -1, dtype=torch.int32, device=labels.device)
    if own_batch or self_index is not None:
        position = torch.empty_like(order).scatter_(0, order, torch.arange(m, device=order.device))
        index = torch.arange(n, device=order.device) if own_batch else self_index.long()
        if m:
            selves = torch.where(index >= 0, position[index.clamp(min=0)], -1).int()

    references = (embeddings if own_batch else ref_emb)[order]
    want_columns = grad_embeddings if own_batch else grad_ref
    x, y = sides(Side, embeddings, references, distance, grad_embeddings, want_columns)
    pairs = Pairs(x, y, distance)
    gradients = (grad_embeddings or want_columns) and n > 0 and m > 0
    losses = torch.zeros(n, dtype=torch.float32, device=labels.device)
    counts = torch.zeros(n, dtype=torch.float64, device=labels.device)
    if row_grad is not None and reduction == "totals":
        row_grad = row_grad[:1].expand(n)
    weights = torch.ones_like(losses) if row_grad is None else row_grad.float().contiguous()
    smooth, semihard = LOSSES[loss]
    distances = x.rows.distances
    anchors = AnchorArguments(begins, ends, selves, weights, losses, counts)
    most = pairs_module.HEIGHT * pairs_module.WIDTH // max(m, 1)
    rows = max(min(whole(n, ALIGNED), most // ALIGNED * ALIGNED), ALIGNED)
    scores = x.new(rows, whole(m, ALIGNED))
    parts, close, flags = None, None, None
    if gradients:
        parts = [torch.empty_like(scores, dtype=x.factor.dtype) for _ in range(x.factor.slope_parts)]
    if gradients and distances:
        close = torch.empty_like(scores)
        flags = x.new(rows, ceil_div(m, BLOCK_N), dtype=torch.int8)
    for top in range(0, n if m else 0, rows):
        bottom = min(top + rows, n)
        for left in range(0, m, pairs_module.WIDTH):
            right = min(left + pairs_module.WIDTH, m)
            for upper in range(top, bottom, pairs_module.HEIGHT):
                lower = min(upper + pairs_module.HEIGHT, bottom)
                launch(pairs, (upper, lower, left, right), scores[upper - top :, left:], scores.stride(0))
        if flags is not None:
            flags.zero_()
        slopes = None
        if gradients:
            cut = [part[: bottom - top, :m] for part in parts]
            slopes = Slopes(cut, None, None, close, flags, (1, BLOCK_N))
        triplet_kernel[(bottom - top,)](
            x.arguments(),
            y.arguments(),
            anchors,
            scores,
            scores.stride(0),
            SlopeArguments() if slopes is None else slopes.arguments(),
            close,
            0 if flags is None else flags.stride(0),
            top,
            m,
            1.0 if distance in ("cosine", "dot") else -1.0,
            float(params[0]),
            SMOOTH=smooth,
            SEMIHARD=semihard,
            METRIC=METRICS[distance][0],
            UNIT=METRICS[distance][1],
            BLOCK_P=4,
            BLOCK_N=BLOCK_N,
            **COMPILED,
        )
        if slopes is not None:
            if distances and not x.rows.unit:
                slopes.row_sums, slopes.col_sums = (
                    sum(part.sum(dim, dtype=torch.float32)[None] for part in slopes.parts) for dim in (1, 0)
                )
            pairs.add_gradients((top, bottom, 0, m), slopes)

    total, count = losses.double().sum(), counts.sum()
    share = 1 / count.clamp(min=1) if reduction == "mean" else torch.ones_like(count)
    if reduction == "totals":
        value = F.pad(torch.stack([total, count]), (0, 2)).float()
    else:
        value = losses if reduction == "none" else (total * share).float()
    dx, dy = (side.finished() * share.float() for side in (x, y))
    if want_columns:
        dy = torch.empty_like(dy).index_copy_(0, order, dy)
    if not own_batch:
        return value, dx, dy
    return value, dx + dy if grad_embeddings else dx, x.new(0)
