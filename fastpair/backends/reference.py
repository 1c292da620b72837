"""The oracle: every operator as dense, differentiable PyTorch, written to be read as the mathematics.

It runs on any device and dtype, builds the whole score matrix, and is what the compiled kernels are tested against
(in float64) and what runs where no kernel does. float16 and bfloat16 are computed in float32.

The formula of a pair loss is one function of the scores ``s`` (n, m) and of the masks of positive and negative pairs.
It returns ``(per_anchor, mean)``: the losses of the anchors (n,), whose sum is the "sum" reduction, and the loss's own
mean.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that results and sums are kept in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Dot products, cosines, squared or plain Euclidean distances between the rows of x (n, d) and y (m, d).

    A zero row has cosine 0 with everything and gradient 0; a distance of zero has gradient zero.
    """
    if metric == "cosine":
        x, y = unit_rows(x), unit_rows(y)
    if metric in ("cosine", "dot"):
        return x @ y.T
    # Differences, not the expansion |x|^2 + |y|^2 - 2xy: exact zeros stay zeros, and so do their gradients.
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square() if metric == "sqeuclidean" else distance


def unit_rows(x: Tensor) -> Tensor:
    squared_norm = x.square().sum(1, keepdim=True)
    return torch.where(squared_norm > 0, x * torch.where(squared_norm > 0, squared_norm, 1).rsqrt(), x * 0)


def contrastive(s: Tensor, positive: Tensor, negative: Tensor, similarity: bool, params: list[float], power: int):
    """[d - pos_margin]_+^p on positives, [neg_margin - d]_+^p on negatives; signs flipped for a similarity.

    p = 1: each part is averaged over its non-zero terms. p = 2: (1/n) times the sum (Boudiaf et al. 2020, Table 1).
    """
    pos_margin, neg_margin = params
    sign = -1 if similarity else 1
    u = torch.where(positive, F.relu(sign * (s - pos_margin)) ** power, 0)
    v = torch.where(negative, F.relu(sign * (neg_margin - s)) ** power, 0)
    if power == 1:
        mean = sum(term.sum() / (term != 0).sum().clamp(min=1) for term in (u, v))
    else:
        mean = (u.sum() + v.sum()) / max(len(s), 1)
    return (u + v).sum(1), mean


PAIR_LOSSES = {
    "contrastive": partial(contrastive, power=1),
    "squared_contrastive": partial(contrastive, power=2),
}


def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    loss: str,
    params: list[float],
    distance: str,
    reduction: str,
) -> Tensor:
    """A loss of ``PAIR_LOSSES`` over all pairs of anchors and references; without references, over the batch's own
    pairs less the self-pairs."""
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.to(accumulate_dtype(embeddings.dtype))
        y = x if ref_emb is None else ref_emb.to(x.dtype)
        positive = labels[:, None] == (labels if ref_labels is None else ref_labels)[None, :]
        negative = ~positive
        if ref_emb is None:
            positive = positive & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        s = scores(x, y, distance)
        per_anchor, mean = PAIR_LOSSES[loss](s, positive, negative, distance in ("cosine", "dot"), params)
    return reduced(per_anchor, mean, reduction)


def reduced(per_anchor: Tensor, mean: Tensor, reduction: str) -> Tensor:
    return {"none": per_anchor, "sum": per_anchor.sum(), "mean": mean}[reduction]


def linear_cross_entropy(
    embeddings: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Cross-entropy of the logits embeddings @ weight.T + bias; 0 where every label is ignored."""
    with torch.autocast(embeddings.device.type, enabled=False):
        dtype, labels = accumulate_dtype(embeddings.dtype), labels.long()
        logits = F.linear(embeddings.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        counted = labels != ignore_index
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = counted & ((labels < 0) | (labels >= len(weight)))
            if wrong.any():
                raise RuntimeError(
                    f"labels must lie in [0, {len(weight)}) or be ignore_index = {ignore_index}, "
                    f"got {labels[wrong][0].item()}"
                )
        # F.cross_entropy knows which rows to ignore; its mean is NaN where it ignores all.
        per_row = F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=label_smoothing, ignore_index=ignore_index
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
