"""Every operator as dense, differentiable PyTorch, written to be read as the mathematics.

It runs on any device and dtype, builds the whole score matrix, and is used where no kernel runs. float16 and bfloat16
are computed in float32.

The formula of a pair loss is one function of the closenesses ``s`` (n, m), similarities or the negatives of distances,
of the masks of positive and negative pairs, and of the parameters; those of :mod:`fastpair.formulas` are printed. It
returns, for each part of the loss's own mean, the losses of the anchors and how much they count in it, both (n,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastpair.backends.call import CrossEntropyCall, PairLossCall
from fastpair.formulas import to_torch
from fastpair.formulas.formula import PairFormula
from fastpair.formulas.pair_losses import FORMULAS, TRIPLETS
from fastpair.formulas.source import function
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype, average, log_sum_exp, reduced, softplus, unit_rows

__all__ = ["linear_cross_entropy", "log_sum_exp", "pair_loss", "pairwise_distance", "softplus"]


def scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Dot products, cosines, squared or plain Euclidean distances between the rows of x (n, d) and y (m, d), or between
    the unit vectors along them.

    A zero row stays zero, with gradient 0, where rows are scaled; a distance of zero has gradient zero.
    """
    kind, unit = METRICS[metric]
    if unit:
        x, y = unit_rows(x), unit_rows(y)
    if kind == "dot":
        return x @ y.T
    # Differences, not the expansion |x|^2 + |y|^2 - 2xy: exact zeros stay zeros, and so do their gradients.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() if kind == "sqeuclidean" else distance


def row_scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The scores of the rows i of x and y, both (..., d)."""
    kind, unit = METRICS[metric]
    if unit:
        x, y = unit_rows(x), unit_rows(y)
    if kind == "dot":
        return (x * y).sum(-1)
    return (x - y).square().sum(-1) if kind == "sqeuclidean" else torch.linalg.vector_norm(x - y, dim=-1)


def closeness(x: Tensor, y: Tensor, metric: str, of: Callable[..., Tensor] = scores) -> Tensor:
    """The scores ``of`` x and y if they are similarities, their negatives if they are distances."""
    s = of(x, y, metric)
    return s if METRICS[metric].similarity else -s


# ---- pair losses: the building blocks of their formulas


relu, square, sigmoid, constant = F.relu, torch.square, torch.sigmoid, torch.detach


def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a <= b) | (a != a), a, b)


def maximum_of(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a > b) | (a != a), a, b)


def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition != 0, a, b)


def excluded(above: Tensor, x: Tensor) -> Tensor:
    return torch.where(above > 0, -torch.inf, x)


def selected(condition: Tensor, x: Tensor | float) -> Tensor | float:
    """x, with gradient 0 where the condition is 0, even where it would be infinite or NaN."""
    if not isinstance(x, Tensor) or not x.requires_grad:
        return x
    return torch.where(condition != 0, x, x.detach())


def step(x: Tensor) -> Tensor:
    return (~(x <= 0)).to(x.dtype)


def nonzero(x: Tensor) -> Tensor:
    return (x != 0).to(x.dtype)


def of_each(value: Tensor | float, s: Tensor) -> Tensor:
    """What is the same number for every anchor, once for each."""
    return s.new_ones(s.shape[:1]) * value


def total(u: Tensor, pairs: Tensor) -> Tensor:
    """The sum of each row over its ``pairs``."""
    return torch.where(pairs, u, 0).sum(1)


def mean(u: Tensor, pairs: Tensor) -> Tensor:
    return total(u, pairs) / pairs.sum(1).clamp(min=1)


def count_nonzero(u: Tensor, pairs: Tensor) -> Tensor:
    return (pairs & (u != 0)).sum(1)


def maximum(u: Tensor, pairs: Tensor) -> Tensor:
    """The maximum over the ``pairs`` of each row, which is the last dimension; minus infinity without any."""
    # One more column, so that there is a maximum even without references.
    return F.pad(torch.where(pairs, u, -torch.inf), (0, 1), value=-torch.inf).max(-1).values


def triplet_terms(gap: Tensor, chosen: Tensor, margin: float, smooth: bool) -> Tensor:
    """hinge(gap + margin), with gap = d_p - d_n, of the ``chosen`` triplets, and 0 elsewhere."""
    excess = torch.where(chosen, gap, 0) + margin  # masked here too, or NaN in others would spoil the gradient
    return torch.where(chosen, softplus(excess) if smooth else F.relu(excess), 0)


def triplet(s: Tensor, positive: Tensor, negative: Tensor, margin: float, smooth: bool, semihard: bool):
    """sum_{p in P, n in N} hinge(d_p - d_n + margin), averaged over the triplets where it is not zero; if ``semihard``,
    only over the triplets with d_p < d_n < d_p + margin. O(n m^2) memory, unlike the kernels."""
    gap = s[:, None, :] - s[:, :, None]
    chosen = positive[:, :, None] & negative[:, None, :]
    if semihard:
        chosen = chosen & ~(gap >= 0) & ~(gap + margin <= 0)  # keeps NaN
    terms = triplet_terms(gap, chosen, margin, smooth)
    return ((terms.sum((1, 2)), (terms != 0).sum((1, 2))),)


def facenet_triplet(s: Tensor, positive: Tensor, negative: Tensor, margin: float, smooth: bool):
    """sum_{p in P} hinge(d_p - d_n + margin), n being the nearest negative with d_n > d_p or, where there is none, the
    farthest negative, averaged over all these p. O(n m^2) memory, unlike the kernels."""
    others = s[:, None, :]
    farther = negative[:, None, :] & ~(others >= s[:, :, None])  # keeps NaN
    nearest, farthest = maximum(others, farther), -maximum(-s, negative)
    chosen = positive & negative.any(1, keepdim=True)
    terms = triplet_terms(torch.where(farther.any(2), nearest, farthest[:, None]) - s, chosen, margin, smooth)
    return ((terms.sum(1), chosen.sum(1)),)


def evaluated(formula: PairFormula) -> Callable[..., tuple]:
    """The function that computes a formula."""
    return function(*to_torch.loss(formula), globals())


def parameters(params: list[float], learned: Tensor | None, x: Tensor) -> Tensor:
    """Parameters of a formula that may apply any function to them."""
    return x.new_tensor(params) if learned is None else learned.to(x.dtype)


PAIR_LOSSES = {
    **{formula.name: evaluated(formula) for formula in FORMULAS.values()},
    **{
        name: partial(facenet_triplet, smooth=smooth)
        if chosen == "facenet"
        else partial(triplet, smooth=smooth, semihard=chosen == "semihard")
        for name, (smooth, chosen) in TRIPLETS.items()
    },
}


def kinds(call: PairLossCall, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """The masks of the positive and of the negative pairs of some anchors."""
    labels, ref_labels = call.labels[rows], call.labels if call.ref_labels is None else call.ref_labels
    if call.pairs is not None:
        positive, negative = call.pairs[rows] > 0, call.pairs[rows] < 0
    elif labels.ndim == 1:
        positive = labels[:, None] == ref_labels[None, :]
        negative = ~positive
    else:
        words = zip(labels.unbind(1), ref_labels.unbind(1))
        positive = sum((own[:, None] & other[None, :]) != 0 for own, other in words) > 0
        negative = ~positive
    columns = torch.arange(len(ref_labels), device=labels.device)
    own = columns if call.ref_emb is None else call.self_index
    pair = torch.ones_like(positive) if own is None else own[rows, None] != columns[None, :]
    if call.ids is not None:
        pair = pair & (call.ids[rows, None] != (call.ids if call.ref_ids is None else call.ref_ids)[None, :])
    return positive & pair, negative & pair


# Scores of the anchors that are evaluated at once where a loss has no kernels.
BLOCK_SCORES = 1 << 22


def in_blocks(call: PairLossCall) -> Tensor:
    """A pair loss by blocks of anchors, each computed again in backward: memory for a block of scores, not for all."""
    x = call.embeddings
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(accumulate_dtype(x.dtype))
        y = x if call.ref_emb is None else call.ref_emb.to(x.dtype)
        given = call.anchor_scalars, call.ref_scalars
        anchor_scalars, ref_scalars = (() if of is None else of.to(x.dtype) for of in given)

        def block(x: Tensor, y: Tensor, rows: slice):
            s, params = closeness(x[rows], y, call.distance), parameters(call.params, call.learned, x)
            scalars = *(of[rows] for of in anchor_scalars), *ref_scalars
            return PAIR_LOSSES[call.loss](s, *kinds(call, rows), *params, *scalars)

        length = max(BLOCK_SCORES // max(len(y), 1), 1)
        rows = [slice(first, first + length) for first in range(0, max(len(x), 1), length)]
        run = partial(checkpoint, block, use_reentrant=False) if len(rows) > 1 else block
        blocks = zip(*(run(x, y, some) for some in rows))
        parts = [tuple(torch.cat(of_anchors) for of_anchors in zip(*part)) for part in blocks]
        return reduced_pairs(*parts, reduction=call.reduction, weights=call.weights)


def pair_loss(call: PairLossCall) -> Tensor:
    x = call.embeddings
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(accumulate_dtype(x.dtype))
        y = x if call.ref_emb is None else call.ref_emb.to(x.dtype)
        positive, negative = kinds(call)
        s, formula = closeness(x, y, call.distance), PAIR_LOSSES[call.loss]
        params = call.params if call.learned is None else parameters([], call.learned, x)
        reduced_to = partial(reduced_pairs, reduction=call.reduction, weights=call.weights)
        value = reduced_to(*formula(s, positive, negative, *params))
        if call.two_sided:
            value = (value + reduced_to(*formula(s.T, positive.T, negative.T, *params))) / 2
    return value


def reduced_pairs(*parts: tuple[Tensor, Tensor], reduction: str, weights: Tensor | None = None) -> Tensor:
    """The value of a loss, given what its formula returned and the anchors' weights. "totals": the sums and counts of
    both parts of the mean, as a vector of four."""
    parts = tuple((losses, counts.detach()) for losses, counts in parts)
    if weights is not None:
        parts = tuple((weights * losses, weights * counts) for losses, counts in parts)
    per_anchor = sum(losses for losses, _ in parts)
    totals = [(losses.sum(), counts.sum()) for losses, counts in parts]
    if reduction == "totals":
        flat = torch.stack([t.to(per_anchor.dtype) for total in totals for t in total])
        return F.pad(flat, (0, 4 - len(flat)))
    return reduced(per_anchor, sum(average(*total) for total in totals), reduction)


def linear(z: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, scale: float, margin: float) -> Tensor:
    return F.linear(z, weight, bias)


def cosface(z: Tensor, weight: Tensor, labels: Tensor, bias: None, scale: float, margin: float) -> Tensor:
    """Logits scale (cos theta_k - margin [k = y])."""
    cosines = scores(z, weight, "cosine")
    return scale * torch.where(one_hot(labels, weight), cosines - margin, cosines)


def arcface(z: Tensor, weight: Tensor, labels: Tensor, bias: None, scale: float, margin: float) -> Tensor:
    """Logits scale cos(theta_k + margin [k = y]) as long as that falls with theta, scale (cos theta - m sin m) beyond.

    The slope of sin(theta) = sqrt(1 - cos(theta)^2) is infinite at 0: within a thousandth of 0 it is replaced by a
    straight line through 0."""
    cosines = scores(z, weight, "cosine")
    square = (1 - cosines.square()).clamp(min=0)
    sine = square * square.clamp(min=1e-6).rsqrt()
    moved = cosines * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(cosines < -math.cos(margin), cosines - margin * math.sin(margin), moved)
    return scale * torch.where(one_hot(labels, weight), moved, cosines)


def one_hot(labels: Tensor, weight: Tensor) -> Tensor:
    return labels[:, None] == torch.arange(len(weight), device=labels.device)[None, :]


LOGITS = {"linear": linear, "cosface": cosface, "arcface": arcface}


def linear_cross_entropy(call: CrossEntropyCall) -> Tensor:
    """Cross-entropy; 0 where every label is ignored."""
    z, labels = call.embeddings, call.labels.long()
    with torch.autocast(z.device.type, enabled=False):
        dtype = accumulate_dtype(z.dtype)
        weight, bias = call.weight.to(dtype), None if call.bias is None else call.bias.to(dtype)
        logits = LOGITS[call.logits](z.to(dtype), weight, labels, bias, call.scale, call.margin)
        # F.cross_entropy knows which rows to ignore; its mean is NaN where it ignores all.
        per_row = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=call.label_smoothing, ignore_index=call.ignore_index
        )
        mean = per_row.sum() / (labels != call.ignore_index).sum().clamp(min=1)
    return reduced(per_row, mean, call.reduction)


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(accumulate_dtype(x.dtype))
        return scores(wide, wide if y is None else y.to(wide.dtype), metric).to(x.dtype)
