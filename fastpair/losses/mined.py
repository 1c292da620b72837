"""Losses over listed pairs or triplets, as miners make them: the kernel of the CPU, and elsewhere plain PyTorch, which
applies the formulas to the listed scores.

Shapes of the latter depend on the lists, so ``torch.compile`` breaks the graph there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.backends import choose_backend, dense
from fastpair.backends.added import compiled, is_added
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype, softplus
from fastpair.ops import checks, listed_pair_loss, pairwise_distance
from fastpair.ops.parameters import learn, stacked
from fastpair.ops.prefixes import refuse_prefixes

# Losses in which a pair counts as often as it is listed. The others take the lists as sets.
COUNT_REPEATS = ("contrastive", "squared_contrastive", "ntxent")


def mined_pair_loss(
    loss: str,
    params: list[float | Tensor],
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
    anchor_scalars: Tensor | None = None,
    ref_scalars: Tensor | None = None,
) -> Tensor:
    """Like ``pair_loss``, over pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative).
    ``repeats``: whether a pair counts as often as it is listed."""
    refuse_prefixes()
    checks.matrix("embeddings", embeddings)
    if ref_emb is not None:
        embeddings, ref_emb = checks.both_sides(embeddings, ref_emb)
    references = embeddings if ref_emb is None else ref_emb
    checks.indices_tuple(indices_tuple, embeddings, references)
    numbers = {"anchor_scalars": anchor_scalars, "ref_scalars": ref_scalars}
    chosen = choose_backend(embeddings.device.type, backend, embeddings.dtype)
    if chosen != "cpu" or (is_added(loss) and not compiled(loss, embeddings.dtype, distance)):
        checks.listed_rows(indices_tuple, embeddings, references)
        settings = (distance, swap, repeats, reduction, backend)
        return _in_pytorch(loss, params, embeddings, references, indices_tuple, *settings, weights, **numbers)
    if loss.endswith("triplet"):
        loss = "smooth_triplet" if loss.startswith("smooth") else "triplet"  # whichever would be chosen of all
    try:
        ref_emb = None if ref_emb is embeddings else ref_emb
        settings = (distance, swap, repeats, reduction, chosen)
        return listed_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, *settings, weights, **numbers)
    except RuntimeError:  # of lists that the kernel refuses: here it is said in terms of the user's arguments
        checks.listed_rows(indices_tuple, embeddings, references)
        if not (repeats or loss.endswith("triplet")):
            _distinct(*_as_pairs([indices.long() for indices in indices_tuple]), len(references))
        raise


def _in_pytorch(
    loss: str,
    params: list[float | Tensor],
    embeddings: Tensor,
    references: Tensor,
    indices_tuple: tuple[Tensor, ...],
    distance: str,
    swap: bool,
    repeats: bool,
    reduction: str,
    backend: str | None,
    weights: Tensor | None,
    anchor_scalars: Tensor | None,
    ref_scalars: Tensor | None,
) -> Tensor:
    """``backend``: it computes only the scores."""
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

        anchor, positive, other, negative = _as_pairs(lists)
        if not repeats:
            anchor, positive, other, negative = _distinct(anchor, positive, other, negative, len(y))
        rows, columns = torch.cat([anchor, other]), torch.cat([positive, negative])
        of_pairs = [closeness(x, y, rows, columns)]
        if ref_scalars is not None:
            of_pairs += ref_scalars.to(dtype)[:, columns]
        (s, *of_references), kind = _padded(rows, of_pairs, len(anchor), len(x))
        numbers = params
        if is_added(loss) or learn(params):
            of_anchors = () if anchor_scalars is None else anchor_scalars.to(dtype)
            numbers = [*stacked(params, x).to(dtype), *of_anchors]
        parts = dense.PAIR_LOSSES[loss](s, kind == 1, kind == -1, *numbers, *of_references)
        return dense.reduced_pairs(*parts, reduction=reduction, weights=weights)


def listed_scores(x: Tensor, y: Tensor, i: Tensor, j: Tensor, distance: str, backend: str | None) -> Tensor:
    """The scores of the pairs (i, j) of rows of x (n, d) and y (m, d)."""
    if len(i) * x.shape[1] > len(x) * len(y):  # less memory, and mostly less time, than the rows of every pair
        matrix = pairwise_distance(x, None if y is x else y, distance, backend)
        return matrix.flatten().index_select(0, i * len(y) + j)
    # index_select sums its gradient in a fixed order: the same bits every time.
    return dense.row_scores(x.index_select(0, i), y.index_select(0, j), distance)


def _as_pairs(lists: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(lists) if len(lists) == 4 else (*lists[:2], lists[0], lists[2])


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
    sought = anchor.contiguous()  # a column of an array of pairs is not, of which PyTorch warns
    first, last = torch.searchsorted(other, sought), torch.searchsorted(other, sought, right=True)
    counts = last - first
    pair = torch.repeat_interleave(torch.arange(len(anchor), device=anchor.device), counts)
    start = counts.cumsum(0) - counts
    place = torch.arange(len(pair), device=anchor.device) - start[pair] + first[pair]
    return anchor[pair], positive[pair], negative[order][place]
