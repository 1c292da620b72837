"""The oracle: every operator as dense, differentiable PyTorch, written to be read as the mathematics.

It runs on any device and dtype, builds the whole score matrix, and is what the compiled kernels are tested against
(in float64) and what runs where no kernel does. float16 and bfloat16 are computed in float32.

The formula of a pair loss is one function of the closenesses ``s`` (n, m), similarities or the negatives of distances,
of the masks of positive and negative pairs, and of the parameters; those of :mod:`fastpair.formulas` are printed. It
returns ``(per_anchor, *parts)``: the losses of the anchors (n,), whose sum is the "sum" reduction, and for each part
of the loss's own mean what is averaged and over how many: (sum, count).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.formulas import to_torch
from fastpair.formulas.pair_losses import FORMULAS
from fastpair.formulas.source import function

SIMILARITIES = ("cosine", "dot")


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that results and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Dot products, cosines, squared or plain Euclidean distances between the rows of x (n, d) and y (m, d), or between
    the unit vectors along them.

    A zero row stays zero, with gradient 0, where rows are scaled; a distance of zero has gradient zero.
    """
    if metric == "cosine" or metric.startswith("unit_"):
        x, y = unit_rows(x), unit_rows(y)
    if metric in SIMILARITIES:
        return x @ y.T
    # Differences, not the expansion |x|^2 + |y|^2 - 2xy: exact zeros stay zeros, and so do their gradients.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() if metric.endswith("sqeuclidean") else distance


def closeness(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The scores if they are similarities, the negatives of distances."""
    s = scores(x, y, metric)
    return s if metric in SIMILARITIES else -s


def unit_rows(x: Tensor) -> Tensor:
    squared_norm = x.square().sum(1, keepdim=True)
    return torch.where(squared_norm > 0, x * torch.where(squared_norm > 0, squared_norm, 1).rsqrt(), x * 0)


# ---- pair losses: what their formulas are made of


relu, square = F.relu, torch.square


def step(x: Tensor) -> Tensor:
    return ~(x <= 0)


def nonzero(x: Tensor) -> Tensor:
    return x != 0


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def total(u: Tensor, pairs: Tensor) -> Tensor:
    """Of each row over its ``pairs``."""
    return torch.where(pairs, u, 0).sum(1)


def mean(u: Tensor, pairs: Tensor) -> Tensor:
    return total(u, pairs) / pairs.sum(1).clamp(min=1)


def count_nonzero(u: Tensor, pairs: Tensor) -> Tensor:
    return (pairs & (u != 0)).sum(1)


def maximum(u: Tensor, pairs: Tensor) -> Tensor:
    """Minus infinity of a row without any."""
    # A column more, so that there is a maximum without references too.
    return F.pad(torch.where(pairs, u, -torch.inf), (0, 1), value=-torch.inf).max(1).values


def log_sum_exp(u: Tensor, pairs: Tensor) -> Tensor:
    """Of each row over its ``pairs``; minus infinity, with gradient zero, where it has none."""
    some = pairs.any(1, keepdim=True)
    total = torch.where(pairs, u, -torch.inf).masked_fill(~some, 0).logsumexp(1)
    return total.masked_fill(~some[:, 0], -torch.inf)


def anchor_count(losses: Tensor) -> Tensor:
    return torch.full((), len(losses), device=losses.device)


def nonzero_terms(terms: Tensor) -> tuple[Tensor, Tensor]:
    return terms.sum(), (terms != 0).sum()


def triplet(s: Tensor, positive: Tensor, negative: Tensor, margin: float, smooth: bool, semihard: bool):
    """sum_{p in P, n in N} hinge(d_p - d_n + margin), of the semi-hard triplets alone those with d_p < d_n < d_p +
    margin, averaged over the triplets where it is not zero. O(n m^2) memory, unlike the kernels."""
    gap = s[:, None, :] - s[:, :, None]
    chosen = positive[:, :, None] & negative[:, None, :]
    if semihard:
        chosen = chosen & ~(gap >= 0) & ~(gap + margin <= 0)  # NaN is not left out
    terms = torch.where(chosen, softplus(gap + margin) if smooth else F.relu(gap + margin), 0)
    return terms.sum((1, 2)), nonzero_terms(terms)


PAIR_LOSSES = {
    **{formula.name: function(*to_torch.loss(formula), globals()) for formula in FORMULAS.values()},
    "triplet": partial(triplet, smooth=False, semihard=False),
    "smooth_triplet": partial(triplet, smooth=True, semihard=False),
    "semihard_triplet": partial(triplet, smooth=False, semihard=True),
    "smooth_semihard_triplet": partial(triplet, smooth=True, semihard=True),
}


def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    self_index: Tensor | None,
    loss: str,
    params: list[float],
    distance: str,
    two_sided: bool,
    reduction: str,
) -> Tensor:
    """A loss of ``PAIR_LOSSES`` over all pairs of anchors and references, less the pairs (i, self_index[i]); without
    references, over the batch's own pairs less the self-pairs. ``two_sided``: the references are anchors as well, and
    the result is the mean of both sides'."""
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.to(accumulate_dtype(embeddings.dtype))
        y = x if ref_emb is None else ref_emb.to(x.dtype)
        positive = labels[:, None] == (labels if ref_labels is None else ref_labels)[None, :]
        columns = torch.arange(len(y), device=x.device)
        own = columns[: len(x)] if ref_emb is None else self_index
        pair = torch.ones_like(positive) if own is None else own[:, None] != columns[None, :]
        positive, negative = positive & pair, ~positive & pair
        s, formula = closeness(x, y, distance), PAIR_LOSSES[loss]
        value = reduced_pairs(*formula(s, positive, negative, *params), reduction=reduction)
        if two_sided:
            other = reduced_pairs(*formula(s.T, positive.T, negative.T, *params), reduction=reduction)
            value = (value + other) / 2
    return value


def reduced_pairs(per_anchor: Tensor, *parts: tuple[Tensor, Tensor], reduction: str) -> Tensor:
    """Of what a formula returned. "totals": the sums and counts of both parts of the mean, as a vector of four."""
    if reduction == "totals":
        totals = torch.stack([t.to(per_anchor.dtype) for part in parts for t in part])
        return F.pad(totals, (0, 4 - len(totals)))
    return reduced(per_anchor, sum(total / count.clamp(min=1) for total, count in parts), reduction)


def reduced(per_anchor: Tensor, mean: Tensor, reduction: str) -> Tensor:
    return {"none": per_anchor, "sum": per_anchor.sum(), "mean": mean}[reduction]


def linear(z: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, scale: float, margin: float) -> Tensor:
    return F.linear(z, weight, bias)


def cosface(z: Tensor, weight: Tensor, labels: Tensor, bias: None, scale: float, margin: float) -> Tensor:
    """scale (cos theta_k - margin [k = y])."""
    cosines = scores(z, weight, "cosine")
    return scale * torch.where(one_hot(labels, weight), cosines - margin, cosines)


def arcface(z: Tensor, weight: Tensor, labels: Tensor, bias: None, scale: float, margin: float) -> Tensor:
    """scale cos(theta_k + margin [k = y]) as long as that falls with theta, scale (cos theta - m sin m) beyond.

    The slope of sin(theta) = sqrt(1 - cos(theta)^2) is infinite at 0: within a thousandth of it a straight line through
    0 takes its place."""
    cosines = scores(z, weight, "cosine")
    square = (1 - cosines.square()).clamp(min=0)
    sine = square * square.clamp(min=1e-6).rsqrt()
    moved = cosines * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(cosines < -math.cos(margin), cosines - margin * math.sin(margin), moved)
    return scale * torch.where(one_hot(labels, weight), moved, cosines)


def one_hot(labels: Tensor, weight: Tensor) -> Tensor:
    return labels[:, None] == torch.arange(len(weight), device=labels.device)[None, :]


LOGITS = {"linear": linear, "cosface": cosface, "arcface": arcface}


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    logits: str,
    scale: float,
    margin: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Cross-entropy of logits made of embeddings and class weights; 0 where every label is ignored."""
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype, labels = accumulate_dtype(embeddings.dtype), labels.long()
        bias = None if bias is None else bias.to(dtype)
        counted = labels != ignore_index
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = counted & ((labels < 0) | (labels >= len(weight)))
            if wrong.any():
                raise RuntimeError(
                    f"labels must lie in [0, {len(weight)}) or be ignore_index = {ignore_index}, "
                    f"got {labels[wrong][0].item()}"
                )
        values = LOGITS[logits](embeddings.to(dtype), weight.to(dtype), labels, bias, scale, margin)
        # F.cross_entropy knows which rows to ignore; its mean is NaN where it ignores all.
        per_row = F.cross_entropy(
            values, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
        )
        mean = per_row.sum() / counted.sum().clamp(min=1)
    return reduced(per_row, mean, reduction)


def spce(embeddings: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Simplified pairwise cross-entropy: cross-entropy whose class weights are (1/n) sum_{y_j=k} z_j (eq. of SPCE)."""
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(accumulate_dtype(embeddings.dtype))
        n = max(len(z), 1)
        # Column j stands for the class of sample j; only the first sample of each class keeps its column.
        same = labels[:, None] == labels[None, :]
        first = ~(same.triu(1).any(0))
        class_scores = z @ ((same.to(z.dtype) @ z) / n).T
        per_anchor = class_scores.masked_fill(~first, -torch.inf).logsumexp(1) - class_scores.diagonal()
    return reduced(per_anchor, per_anchor.sum() / n, reduction)


def pairwise_distance(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        x_ = x.to(accumulate_dtype(x.dtype))
        return scores(x_, x_ if y is None else y.to(x_.dtype), metric).to(x.dtype)


def pce(embeddings: Tensor, labels: Tensor, probabilities: Tensor, lam: Tensor | float, reduction: str) -> Tensor:
    """Pairwise cross-entropy (eq. of PCE); probabilities and lam are constants of the gradient.

    -(1/2 lam n^2) sum_i sum_{j: y_j=y_i} z_i.z_j + (1/n) sum_i log sum_k exp((1/lam n) sum_j p_jk z_i.z_j)
    - (1/2 lam) sum_k |c_k|^2, the last term, which is no anchor's own, in equal shares.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(accumulate_dtype(embeddings.dtype))
        p = probabilities.detach().to(z.dtype)
        n = max(len(z), 1)
        same = (labels[:, None] == labels[None, :]).to(z.dtype)
        gram = z @ z.T
        centers = p.T @ z / n
        per_anchor = (
            -(gram * same).sum(1) / (2 * lam * n)
            + (gram @ p / (lam * n)).logsumexp(1)
            - centers.square().sum() / (2 * lam)
        )
    return reduced(per_anchor, per_anchor.sum() / n, reduction)
