"""The losses as an everyday PyTorch user would write them, in the dtype of the inputs, typed from the docstrings.

They are the yardstick of half precision (how much error does plain PyTorch make in this dtype?) and, in float64, a
source that shares no line with ``fastpair.formulas``. Small batches only: everything is dense.
"""

import math

import torch
import torch.nn.functional as F


def scores(x, y, metric):
    if metric == "cosine":
        return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    if metric.startswith("unit_"):
        return scores(F.normalize(x, dim=1), F.normalize(y, dim=1), metric.removeprefix("unit_"))
    if metric == "dot":
        return x @ y.T
    if x.dtype == torch.float64:
        squared = (x[:, None, :] - y[None, :, :]).square().sum(2)
    else:
        squared = (x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * (x @ y.T)).clamp(min=0)
    if metric == "sqeuclidean":
        return squared
    return torch.where(squared == 0, 0, squared.where(squared != 0, 1).sqrt())


def pairwise_distance(x, y=None, metric="sqeuclidean"):
    return scores(x, x if y is None else y, metric)


def pairs(embeddings, labels, ref_emb, ref_labels, distance, exclude_self=None, pairs=None, ids=None, ref_ids=None):
    """Scores, similar pairs having the large ones, and the masks of positives and negatives."""
    own = ref_emb is None
    y, y_labels = (embeddings, labels) if own else (ref_emb, ref_labels)
    s = scores(embeddings, y, distance)
    if pairs is not None:
        same, pair = pairs == 1, pairs != 0
    elif labels.dtype == torch.bool:
        same = torch.einsum("il,jl->ij", labels.int(), y_labels.int()) > 0
        pair = torch.ones_like(same)
    else:
        same = labels[:, None] == y_labels[None, :]
        pair = torch.ones_like(same)
    if ids is not None:
        pair = pair & (ids[:, None] != (ids if own else ref_ids)[None, :])
    if own or exclude_self is True:
        pair[range(len(s)), range(len(s))] = False
    elif isinstance(exclude_self, torch.Tensor):
        for i, j in enumerate(exclude_self.tolist()):
            if j >= 0:
                pair[i, j] = False
    return (s if distance in ("cosine", "dot") else -s), same & pair, ~same & pair


def lse(values, mask):
    """Row by row over the mask; None for rows without any."""
    return [row[chosen].logsumexp(0) if chosen.any() else None for row, chosen in zip(values, mask)]


def over_anchors(losses, like, reduction, mean=None):
    """``losses``: one an anchor, None for those that do not count."""
    zero = like.sum() * 0
    per_anchor = torch.stack([zero if loss is None else loss for loss in losses]) if losses else like.sum(1)
    count = sum(loss is not None for loss in losses) if mean is None else mean
    return reduced(per_anchor, reduction, (per_anchor.sum(), count))


def reduced(per_anchor, reduction, *parts):
    """``parts`` of the mean: what is averaged and over how many; by default all over the anchors."""
    parts = parts or ((per_anchor.sum(), len(per_anchor)),)
    if reduction == "none":
        return per_anchor
    if reduction == "sum":
        return per_anchor.sum()
    if reduction == "totals":
        flat = [*parts[0], *(parts[1] if len(parts) > 1 else (0, 0))]
        return torch.stack([torch.as_tensor(t, dtype=per_anchor.dtype) for t in flat])
    return sum(total / (count if count > 0 else 1) for total, count in parts)


def contrastive_loss(
    embeddings,
    labels,
    ref_emb=None,
    ref_labels=None,
    *,
    pos_margin=0.0,
    neg_margin=1.0,
    distance="unit_euclidean",
    power=1,
    reduction="mean",
    **of_pairs,
):
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    if distance in ("cosine", "dot"):
        u, v = (pos_margin - s).clamp(min=0), (s - neg_margin).clamp(min=0)
    else:
        u, v = (-s - pos_margin).clamp(min=0), (neg_margin + s).clamp(min=0)
    u, v = torch.where(positive, u, 0).pow(power), torch.where(negative, v, 0).pow(power)
    parts = [(terms.sum(), int((terms != 0).sum())) for terms in (u, v)] if power == 1 else []
    return reduced((u + v).sum(1), reduction, *parts)


def snca_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, temperature=0.1, distance="cosine",
              reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    of_positives, of_all = lse(s / temperature, positive), lse(s / temperature, positive | negative)
    return over_anchors([None if a is None else b - a for a, b in zip(of_positives, of_all)], s, reduction)


def nca_loss(*batch, softmax_scale=1.0, distance="unit_sqeuclidean", **settings):
    return snca_loss(*batch, temperature=1 / softmax_scale, distance=distance, **settings)


def supcon_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, temperature=0.1, distance="cosine",
                reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    u = s / temperature
    of_all = lse(u, positive | negative)
    losses = [b - row[p].mean() if p.any() else None for row, p, b in zip(u, positive, of_all)]
    return over_anchors(losses, s, reduction)


def ntxent_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, temperature=0.07, distance="cosine",
                reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    u, losses = s / temperature, []
    for row, p, n in zip(u, positive, negative):
        pulled, pushed = row[p][:, None], row[n].expand(int(p.sum()), -1)
        losses.append((torch.cat([pulled, pushed], dim=1).logsumexp(1) - pulled[:, 0]).sum())
    return over_anchors(losses, s, reduction, int(positive.sum()))


def dcl_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, temperature=0.1, distance="cosine",
             reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    u = s / temperature
    losses = [b - row[p].mean() if p.any() and b is not None else None
              for row, p, b in zip(u, positive, lse(u, negative))]  # fmt: skip
    return over_anchors(losses, s, reduction)


def sincere_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, temperature=0.1, distance="cosine",
                 reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    u, losses = s / temperature, []
    for row, p, n in zip(u, positive, negative):
        above = [torch.cat([row[j][None], row[n]]).logsumexp(0) - row[j] for j in p.nonzero()[:, 0]]
        losses.append(torch.stack(above).mean() if above else None)
    return over_anchors(losses, s, reduction)


def multi_similarity_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, alpha=2.0, beta=50.0, base=0.5,
                          distance="cosine", reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    excess = s - base if distance in ("cosine", "dot") else s + base
    pull = torch.where(positive, -alpha * excess, -torch.inf).exp().sum(1)
    push = torch.where(negative, beta * excess, -torch.inf).exp().sum(1)
    losses = torch.log1p(pull) / alpha + torch.log1p(push) / beta
    return over_anchors(list(losses), s, reduction)


def circle_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, m=0.4, gamma=80.0, distance="cosine",
                reduction="mean", **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    pull = -gamma * (1 + m - s.detach()).clamp(min=0) * (s - (1 - m))
    push = gamma * (s.detach() + m).clamp(min=0) * (s - m)
    both = zip(lse(pull, positive), lse(push, negative))
    losses = [None if a is None or b is None else torch.logaddexp(a + b, torch.zeros_like(a)) for a, b in both]
    return over_anchors(losses, s, reduction)


def generalized_lifted_structure_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, neg_margin=1.0,
                                      pos_margin=0.0, distance="unit_euclidean", reduction="mean",
                                      **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    if distance in ("cosine", "dot"):
        both = zip(lse(pos_margin - s, positive), lse(s - neg_margin, negative))
    else:
        both = zip(lse(-s - pos_margin, positive), lse(neg_margin + s, negative))
    losses = [None if a is None or b is None else (a + b).clamp(min=0) for a, b in both]
    return over_anchors(losses, s, reduction)


def triplet_margin_loss(embeddings, labels, ref_emb=None, ref_labels=None, *, margin=0.05, smooth_loss=False,
                        triplets_per_anchor="all", distance="unit_euclidean", reduction="mean",
                        **of_pairs):  # fmt: skip
    s, positive, negative = pairs(embeddings, labels, ref_emb, ref_labels, distance, **of_pairs)
    losses, count = [], 0
    for d, p, n in zip(-s, positive, negative):
        d_p, d_n = d[p], d[n]
        if triplets_per_anchor == "hard" and p.any() and n.any():
            d_p, d_n = d_p.max()[None], d_n.min()[None]
        if triplets_per_anchor == "facenet":
            gap = d_p - facenet_negatives(d_p, d_n) if n.any() else d_p[:0]
        else:
            gap = (d_p[:, None] - d_n[None, :]).flatten()
        if triplets_per_anchor == "semihard":
            gap = gap[~(gap >= 0) & ~(gap + margin <= 0)]  # NaN among them
        terms = torch.logaddexp(gap + margin, torch.zeros_like(gap)) if smooth_loss else (gap + margin).clamp(min=0)
        losses.append(terms.sum())
        count += len(terms) if triplets_per_anchor == "facenet" else int((terms != 0).sum())
    return over_anchors(losses, s, reduction, count)


def facenet_negatives(d_p, d_n):
    """For each positive distance the smallest larger one among the negative distances, or else the largest of all."""
    chosen = []
    for positive in d_p.detach():
        farther = d_n[~(d_n <= positive)]  # NaN among them
        chosen.append((farther.min(0) if len(farther) else d_n.max(0)).values)
    return torch.stack(chosen) if chosen else d_p


def info_nce_loss(embeddings, ref_emb, *, temperature=0.07, symmetric=True, distance="cosine", reduction="mean"):
    logits = scores(embeddings, ref_emb, distance) / temperature
    logits = logits if distance in ("cosine", "dot") else -logits
    target = torch.arange(len(logits))
    losses = F.cross_entropy(logits, target, reduction="none") if len(logits) else logits.sum(1)
    if symmetric and len(logits):
        losses = (losses + F.cross_entropy(logits.T, target, reduction="none")) / 2
    return reduced(losses, reduction)


def siglip_loss(embeddings, ref_emb, scale=10.0, bias=-10.0, *, distance="cosine", reduction="mean"):
    logits = scores(embeddings, ref_emb, distance) * scale + bias
    sign = 2 * torch.eye(*logits.shape, dtype=logits.dtype) - 1
    return reduced(torch.logaddexp(-sign * logits, torch.zeros_like(logits)).sum(1), reduction)


def linear_cross_entropy(
    embeddings, weight, labels, bias=None, *, label_smoothing=0.0, ignore_index=-100, reduction="mean"
):
    logits = F.linear(embeddings, weight, bias)
    if reduction == "mean" and not (labels != ignore_index).any():
        return logits.sum() * 0
    return F.cross_entropy(
        logits, labels.long(), label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction
    )


def class_loss(embeddings, weight, labels, of_target, scale, reduction):
    cosines = scores(embeddings, weight, "cosine")
    target = F.one_hot(labels.long(), len(weight)).bool()
    logits = scale * torch.where(target, of_target(cosines), cosines)
    if len(labels) == 0:
        return logits.sum(1) if reduction == "none" else logits.sum()
    return F.cross_entropy(logits, labels.long(), reduction=reduction)


def normalized_softmax_loss(embeddings, weight, labels, *, temperature=0.05, reduction="mean"):
    return class_loss(embeddings, weight, labels, lambda c: c, 1 / temperature, reduction)


def cosface_loss(embeddings, weight, labels, *, margin=0.35, scale=64.0, reduction="mean"):
    return class_loss(embeddings, weight, labels, lambda c: c - margin, scale, reduction)


def arcface_loss(embeddings, weight, labels, *, margin=28.6, scale=64.0, reduction="mean"):
    m = math.radians(margin)

    def of_target(cosine):
        sine = ((1 - cosine) * (1 + cosine)).clamp(min=1e-30).sqrt()
        beyond = torch.atan2(sine, cosine) > torch.pi - m
        return torch.where(beyond, cosine - m * math.sin(m), cosine * math.cos(m) - sine * math.sin(m))

    return class_loss(embeddings, weight, labels, of_target, scale, reduction)


def proxy_nca_loss(embeddings, proxies, labels, *, softmax_scale=1.0, reduction="mean"):
    logits = -softmax_scale * scores(embeddings, proxies, "unit_sqeuclidean")
    per_row = logits.logsumexp(1) - logits.gather(1, labels.long()[:, None])[:, 0]
    return reduced(per_row, reduction)


def center_loss(embeddings, labels, centers, *, reduction="mean"):
    return reduced(((embeddings - centers[labels.long()]) ** 2).sum(1) / 2, reduction)


def proxy_anchor_loss(embeddings, proxies, labels, *, margin=0.1, alpha=32.0, reduction="mean"):
    s = scores(embeddings, proxies, "cosine")
    own = F.one_hot(labels.long(), len(proxies)).bool()
    pull = torch.log1p(torch.where(own, -alpha * (s - margin), -torch.inf).exp().sum(0))
    push = torch.log1p(torch.where(own, -torch.inf, alpha * (s + margin)).exp().sum(0))
    return reduced(pull + push, reduction, (pull.sum(), len(labels.unique())), (push.sum(), len(proxies)))


def spce_loss(embeddings, labels, *, reduction="mean"):
    n = max(len(labels), 1)
    gram = embeddings @ embeddings.T
    of_classes = torch.stack([gram[:, labels == k].sum(1) for k in labels.unique()], dim=1)
    own = labels[:, None] == labels[None, :]
    per_anchor = -torch.where(own, gram, 0).sum(1) / n + (of_classes / n).exp().sum(1).log()
    return reduced(per_anchor, reduction)


def pce_loss(embeddings, labels, probabilities, *, lam, reduction="mean"):
    n = max(len(labels), 1)
    gram = embeddings @ embeddings.T
    own = labels[:, None] == labels[None, :]
    centers = (probabilities.T @ embeddings) / n
    per_anchor = (
        -torch.where(own, gram, 0).sum(1) / (2 * lam * n)
        + (gram @ probabilities / (lam * n)).exp().sum(1).log()
        - centers.square().sum() / (2 * lam)
    )
    return reduced(per_anchor, reduction)
