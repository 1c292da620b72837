"""Losses over listed pairs or triplets, as miners make them: the formulas applied to the listed scores.

Shapes depend on the lists, so ``torch.compile`` breaks the graph here. Differentiable once, or any number of times
with ``backend="reference"``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.backends import choose_backend, dense
from fastpair.backends.added import is_added
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype, softplus, unit_rows
from fastpair.ops import checks, pairwise_distance
from fastpair.ops.prefixes import NotInOneSweep, asked_for

# Losses in which a pair counts as often as it is listed. The others take the lists as sets.
COUNT_REPEATS = ("contrastive", "squared_contrastive", "ntxent")


def mined_pair_loss(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    ref_emb: Tensor | None,
    indices_tuple: tuple[Tensor, ...],
    *,
    distance: str,
    reduction: str,
    backend: str | None,
    swap: bool,
    repeats: bool,
    weights: Tensor | None = None,
    learned: Tensor | None = None,
    anchor_scalars: Tensor | None = None,
    ref_scalars: Tensor | None = None,
) -> Tensor:
    """Like ``pair_loss``, over pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative).
    ``repeats``: whether a pair counts as often as it is listed."""
    if asked_for() is not None:
        raise NotInOneSweep
    checks.matrix("embeddings", embeddings)
    if ref_emb is not None:
        checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    if backend is not None:
        choose_backend(embeddings.device.type, backend, embeddings.dtype)  # it computes only the scores
    references = embeddings if ref_emb is None else ref_emb
    checks.indices_tuple(indices_tuple, embeddings, references)
    lists = [indices.long() for indices in indices_tuple]

    def closeness(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        s = listed_scores(x, y, i, j, distance, backend)
        return s if METRICS[distance].similarity else -s

    with torch.autocast(embeddings.device.type, enabled=False):
        dtype = accumulate_dtype(embeddings.dtype)
        x, y = embeddings.to(dtype), references.to(dtype)
        if loss.endswith("triplet"):
            anchor, positive, negative = lists if len(lists) == 3 else _triplets(*lists)
            closest = closeness(x, y, anchor, negative)
            if swap:
                closest = torch.maximum(closest, closeness(y, y, positive, negative))
            excess = closest - closeness(x, y, anchor, positive) + params[0]
            terms = softplus(excess) if loss.startswith("smooth") else F.relu(excess)
            losses, counts = (x.new_zeros(len(x)).index_add(0, anchor, of) for of in (terms, (terms != 0).to(dtype)))
            return dense.reduced_pairs((losses, counts), reduction=reduction, weights=weights)

        anchor, positive, other, negative = lists if len(lists) == 4 else (*lists[:2], lists[0], lists[2])
        if not repeats:
            anchor, positive, other, negative = _distinct(anchor, positive, other, negative, len(y))
        rows, columns = torch.cat([anchor, other]), torch.cat([positive, negative])
        of_pairs = [closeness(x, y, rows, columns)]
        if ref_scalars is not None:
            of_pairs += ref_scalars.to(dtype)[:, columns]
        (s, *of_references), kind = _padded(rows, of_pairs, len(anchor), len(x))
        numbers = params
        if is_added(loss) or learned is not None:
            of_anchors = () if anchor_scalars is None else anchor_scalars.to(dtype)
            numbers = [*dense.parameters(params, learned, x), *of_anchors]
        parts = dense.PAIR_LOSSES[loss](s, kind == 1, kind == -1, *numbers, *of_references)
        return dense.reduced_pairs(*parts, reduction=reduction, weights=weights)


def listed_scores(x: Tensor, y: Tensor, i: Tensor, j: Tensor, distance: str, backend: str | None) -> Tensor:
    """The scores of the pairs (i, j) of rows of x (n, d) and y (m, d)."""
    if len(i) * x.shape[1] > len(x) * len(y):  # less memory, and mostly less time, than the rows of every pair
        matrix = pairwise_distance(x, None if y is x else y, distance, backend)
        return matrix.flatten().index_select(0, i * len(y) + j)
    kind, unit = METRICS[distance]
    if unit:
        x, y = unit_rows(x), unit_rows(y)
    # index_select sums its gradient in a fixed order: the same bits every time.
    x, y = x.index_select(0, i), y.index_select(0, j)
    if kind == "dot":
        return (x * y).sum(1)
    return (x - y).square().sum(1) if kind == "sqeuclidean" else torch.linalg.vector_norm(x - y, dim=1)


def _distinct(anchor: Tensor, positive: Tensor, other: Tensor, negative: Tensor, m: int) -> tuple[Tensor, ...]:
    """Each pair once; a pair listed as positive and as negative is an error."""
    positives, negatives = (anchor * m + positive).unique(), (other * m + negative).unique()
    both = positives[torch.isin(positives, negatives)]
    if len(both):
        pair = (int(both[0]) // m, int(both[0]) % m)
        raise ValueError(f"indices_tuple must not list a pair as positive and as negative, got {pair} as both")
    return positives // m, positives % m, negatives // m, negatives % m


def _padded(rows: Tensor, of_pairs: list[Tensor], positives: int, n: int) -> tuple[list[Tensor], Tensor]:
    """Numbers of the listed pairs, the first ``positives`` of them positive, in one row per anchor (n, L), and their
    kinds: 1 positive, -1 negative, 0 padding. L, the largest number of pairs of an anchor, is at most the number of
    references where no pair is listed twice."""
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows, minlength=n)
    length = int(counts.max()) if n else 0
    first = counts.cumsum(0) - counts
    slots = rows[order] * length + torch.arange(len(rows), device=rows.device) - first[rows[order]]
    sign = torch.where(order < positives, 1, -1)
    kind = torch.zeros(n * length, dtype=torch.int64, device=rows.device).scatter(0, slots, sign)
    filled = [of.new_zeros(n * length).scatter(0, slots, of[order]).view(n, length) for of in of_pairs]
    return filled, kind.view(n, length)


def _triplets(anchor: Tensor, positive: Tensor, other: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every positive pair with every negative pair of the same anchor."""
    other, order = other.sort(stable=True)
    first, last = torch.searchsorted(other, anchor), torch.searchsorted(other, anchor, right=True)
    counts = last - first
    pair = torch.repeat_interleave(torch.arange(len(anchor), device=anchor.device), counts)
    start = counts.cumsum(0) - counts
    place = torch.arange(len(pair), device=anchor.device) - start[pair] + first[pair]
    return anchor[pair], positive[pair], negative[order][place]
