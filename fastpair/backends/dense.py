"""Every operator as dense, differentiable PyTorch, written to be read as the mathematics.

It runs on any device and dtype, builds the whole score matrix, and is used where no kernel runs. float16 and bfloat16
are computed in float32.

The formula of a pair loss is one function of the closenesses ``s`` (n, m), similarities or the negatives of distances,
of the masks of positive and negative pairs, and of the parameters; those of :mod:`fastpair.formulas` are printed. It
returns ``(per_anchor, *parts)``: the losses of the anchors (n,), whose sum is the "sum" reduction, and for each part of
the loss's own mean the sum and the count that the mean is made of: (sum, count).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.backends.call import CrossEntropyCall, PairLossCall
from fastpair.formulas import to_torch
from fastpair.formulas.formula import PairFormula
from fastpair.formulas.pair_losses import FORMULAS, TRIPLETS
from fastpair.formulas.source import function
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype, log_sum_exp, reduced, softplus, unit_rows

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


def closeness(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The scores if they are similarities, their negatives if they are distances."""
    s = scores(x, y, metric)
    return s if METRICS[metric].similarity else -s


# ---- pair losses: the building blocks of their formulas


relu, square = F.relu, torch.square


def step(x: Tensor) -> Tensor:
    return (~(x <= 0)).to(x.dtype)


def nonzero(x: Tensor) -> Tensor:
    return (x != 0).to(x.dtype)


def total(u: Tensor, pairs: Tensor) -> Tensor:
    """The sum of each row over its ``pairs``."""
    return torch.where(pairs, u, 0).sum(1)


def mean(u: Tensor, pairs: Tensor) -> Tensor:
    return total(u, pairs) / pairs.sum(1).clamp(min=1)


def count_nonzero(u: Tensor, pairs: Tensor) -> Tensor:
    return (pairs & (u != 0)).sum(1)


def maximum(u: Tensor, pairs: Tensor) -> Tensor:
    """The maximum of each row over its ``pairs``, minus infinity without any."""
    # One more column, so that there is a maximum even without references.
    return F.pad(torch.where(pairs, u, -torch.inf), (0, 1), value=-torch.inf).max(1).values


def anchor_count(losses: Tensor) -> Tensor:
    return torch.full((), len(losses), device=losses.device)


def nonzero_terms(terms: Tensor) -> tuple[Tensor, Tensor]:
    return terms.sum(), (terms != 0).sum()


def triplet(s: Tensor, positive: Tensor, negative: Tensor, margin: float, smooth: bool, semihard: bool):
    """sum_{p in P, n in N} hinge(d_p - d_n + margin), averaged over the triplets where it is not zero; if ``semihard``,
    only over the triplets with d_p < d_n < d_p + margin. O(n m^2) memory, unlike the kernels."""
    gap = s[:, None, :] - s[:, :, None]
    chosen = positive[:, :, None] & negative[:, None, :]
    if semihard:
        chosen = chosen & ~(gap >= 0) & ~(gap + margin <= 0)  # keeps NaN
    excess = torch.where(chosen, gap, 0) + margin  # masked here too, or NaN in others would spoil the gradient
    terms = torch.where(chosen, softplus(excess) if smooth else F.relu(excess), 0)
    return terms.sum((1, 2)), nonzero_terms(terms)


def evaluated(formula: PairFormula) -> Callable[..., tuple]:
    """The function that computes a formula."""
    return function(*to_torch.loss(formula), globals())


PAIR_LOSSES = {
    **{formula.name: evaluated(formula) for formula in FORMULAS.values()},
    **{name: partial(triplet, smooth=smooth, semihard=semihard) for name, (smooth, semihard) in TRIPLETS.items()},
}


def pair_loss(call: PairLossCall) -> Tensor:
    x = call.embeddings
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(accumulate_dtype(x.dtype))
        y = x if call.ref_emb is None else call.ref_emb.to(x.dtype)
        positive = call.labels[:, None] == (call.labels if call.ref_labels is None else call.ref_labels)[None, :]
        columns = torch.arange(len(y), device=x.device)
        own = columns[: len(x)] if call.ref_emb is None else call.self_index
        pair = torch.ones_like(positive) if own is None else own[:, None] != columns[None, :]
        positive, negative = positive & pair, ~positive & pair
        s, formula = closeness(x, y, call.distance), PAIR_LOSSES[call.loss]
        value = reduced_pairs(*formula(s, positive, negative, *call.params), reduction=call.reduction)
        if call.two_sided:
            other = reduced_pairs(*formula(s.T, positive.T, negative.T, *call.params), reduction=call.reduction)
            value = (value + other) / 2
    return value


def reduced_pairs(per_anchor: Tensor, *parts: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    """The value of a loss, given what its formula returned. "totals": the sums and counts of both parts of the mean, as
    a vector of four."""
    if reduction == "totals":
        totals = torch.stack([t.to(per_anchor.dtype) for part in parts for t in part])
        return F.pad(totals, (0, 4 - len(totals)))
    return reduced(per_anchor, sum(total / count.clamp(min=1) for total, count in parts), reduction)


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
