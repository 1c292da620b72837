"""The losses as an everyday PyTorch user would write them, in the dtype of the inputs, typed from the docstrings.

They are the yardstick of half precision (how much error does plain PyTorch make in this dtype?) and, in float64, a
source that shares no line with ``fastpair.backends.reference``. Small batches only: everything is dense.
"""

import torch
import torch.nn.functional as F


def scores(x, y, metric):
    if metric == "cosine":
        return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    if metric == "dot":
        return x @ y.T
    if x.dtype == torch.float64:
        squared = (x[:, None, :] - y[None, :, :]).square().sum(2)
    else:
        squared = (x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * (x @ y.T)).clamp(min=0)
    if metric == "sqeuclidean":
        return squared
    return torch.where(squared > 0, squared.where(squared > 0, 1).sqrt(), 0)


def pairwise_distance(x, y=None, metric="sqeuclidean"):
    return scores(x, x if y is None else y, metric)


def contrastive_loss(
    embeddings,
    labels,
    ref_emb=None,
    ref_labels=None,
    *,
    pos_margin=0.0,
    neg_margin=1.0,
    distance="euclidean",
    power=1,
    reduction="mean",
):
    symmetric = ref_emb is None
    s = scores(embeddings, embeddings if symmetric else ref_emb, distance)
    same = labels[:, None] == (labels if symmetric else ref_labels)[None, :]
    pair = ~torch.eye(len(s), dtype=torch.bool) if symmetric else torch.ones_like(same)
    if distance in ("cosine", "dot"):
        u, v = (pos_margin - s).clamp(min=0), (s - neg_margin).clamp(min=0)
    else:
        u, v = (s - pos_margin).clamp(min=0), (neg_margin - s).clamp(min=0)
    u, v = (u * (same & pair)).pow(power), (v * (~same & pair)).pow(power)
    if reduction == "none":
        return (u + v).sum(1)
    if reduction == "sum":
        return (u + v).sum()
    if power == 2:
        return (u + v).sum() / max(len(s), 1)
    return u.sum() / max(int((u > 0).sum()), 1) + v.sum() / max(int((v > 0).sum()), 1)


def linear_cross_entropy(
    embeddings, weight, labels, bias=None, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"
):
    logits = F.linear(embeddings, weight, bias)
    if reduction == "mean" and not (labels != ignore_index).any():
        return logits.sum() * 0
    return F.cross_entropy(
        logits, labels.long(), label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )


def reduced(per_anchor, reduction):
    if reduction == "none":
        return per_anchor
    return per_anchor.sum() if reduction == "sum" else per_anchor.sum() / max(len(per_anchor), 1)


def spce_loss(embeddings, labels, *, reduction="mean"):
    n = max(len(labels), 1)
    gram = embeddings @ embeddings.T
    members = torch.stack([labels == k for k in labels.unique()], dim=1).to(gram.dtype)
    own = labels[:, None] == labels[None, :]
    per_anchor = -(gram * own).sum(1) / n + ((gram @ members) / n).exp().sum(1).log()
    return reduced(per_anchor, reduction)


def pce_loss(embeddings, labels, probabilities, *, lam, reduction="mean"):
    n = max(len(labels), 1)
    gram = embeddings @ embeddings.T
    own = labels[:, None] == labels[None, :]
    centers = (probabilities.T @ embeddings) / n
    per_anchor = (
        -(gram * own).sum(1) / (2 * lam * n)
        + (gram @ probabilities / (lam * n)).exp().sum(1).log()
        - centers.square().sum() / (2 * lam)
    )
    return reduced(per_anchor, reduction)
