"""InfoNCE with what it takes beside two views, and the same from dense logits, row by row."""

import math

import torch
import torch.nn.functional as F

from fastpair.losses.info_nce import DIRECTIONS

T = 0.3


def closeness(x, y, distance):
    if distance.startswith("unit_") or distance == "cosine":
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    if distance in ("cosine", "dot"):
        return x @ y.T
    squared = (x[:, None] - y[None]).square().sum(2)
    return (
        -squared if distance.endswith("sqeuclidean") else -torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
    )


def expected(
    x, y, *, temperature=T, distance="cosine", directions=DIRECTIONS[:1], partition_mode="per_direction",
    hardness_mode=None, hardness_strength=0.0, decoupled=False, ignore_above=None, label_smoothing=0.0, debias=0.0,
    positive_sigma=None, hard_negatives=None, ids=None, ref_ids=None, ref_bias=None,
):  # fmt: skip
    """The losses of the queries, one row of logits after the other."""
    n = len(x)
    ref_ids = ids if ref_ids is None and ids is not None else ref_ids
    qd, qq, dd = (closeness(*sides, distance) for sides in ((x, y), (x, x), (y, y)))
    losses = []
    for i in range(n):
        own, limit = qd[i, i], math.inf if ignore_above is None else float(qd[i, i].detach()) + ignore_above
        columns = {}
        for name in directions:
            scores, mine, theirs = {
                "query_to_doc": (qd[i], ids, ref_ids),
                "doc_to_query": (qd[:, i], ref_ids, ids),
                "query_to_query": (qq[i], ids, ids),
                "doc_to_doc": (dd[i], ref_ids, ref_ids),
            }[name]
            logits = []
            for j, s in enumerate(scores):
                same = j % n == i if name == "doc_to_doc" else j == i
                if same or float(s.detach()) > limit or (mine is not None and mine[i] == theirs[j]):
                    continue
                logit = s / temperature
                if name == "query_to_doc":
                    of_own = j % n == i
                    hardened = {None: False, "in_batch_negatives": not of_own, "hard_negatives": of_own}
                    if hardened.get(hardness_mode, True):
                        logit = logit + hardness_strength * s.detach()
                    if ref_bias is not None:
                        logit = logit + ref_bias[j]
                logits.append(logit)
            if name == "query_to_doc" and hard_negatives is not None:
                for row in hard_negatives[i]:
                    s = closeness(x[i : i + 1], row[None], distance)[0, 0]
                    if float(s.detach()) <= limit:
                        hardened = hardness_mode in ("hard_negatives", "all_negatives")
                        logits.append(s / temperature + hardness_strength * s.detach() * hardened)
            if debias and logits:
                terms = torch.stack(logits).exp()
                estimate = (terms.sum() - debias * len(logits) * (own / temperature).exp()) / (1 - debias)
                logits = [torch.maximum(estimate, len(logits) * (-1 / temperature).exp()).log()]
            if name in DIRECTIONS[:2] and not decoupled:
                logits.append(own / temperature)
            columns[name] = logits
        if partition_mode == "joint":
            columns = {"query_to_doc": [logit for of in columns.values() for logit in of]}
        parts = []
        for name, logits in columns.items():
            part = torch.stack(logits).logsumexp(0) - own / temperature
            if label_smoothing:
                scores = qd[i] if name == "query_to_doc" else qd[:, i]
                part = part + label_smoothing * (own - scores.mean()) / temperature
            parts.append(part)
        losses.append(sum(parts) / len(parts))
    losses = torch.stack(losses)
    if positive_sigma is not None:
        shares = (qd.diagonal().detach() / positive_sigma).exp()
        # The positive score comes with a weight in place of 1.
        losses = losses + (1 - (2 - n * shares / shares.sum())) * qd.diagonal() / temperature
    return losses


N, D = 7, 5
BIAS = torch.linspace(-1, 1, 3 * N, dtype=torch.float64)
REPEATED = {"ids": torch.tensor([0, 1, 2, 0, 4, 5, 1]), "ref_ids": torch.tensor([0, 1, 2, 0, 4, 5, 1] + [4, 9] * N)}
CASES = {
    "documents": (3 * N, {}),
    "both": (N, {"directions": DIRECTIONS[:2]}),
    "both-more": (2 * N, {"directions": DIRECTIONS[:2]}),
    "joint": (N, {"directions": DIRECTIONS, "partition_mode": "joint"}),
    "joint-more": (3 * N, {"directions": DIRECTIONS, "partition_mode": "joint"}),
    "joint-euclidean": (N, {"directions": DIRECTIONS, "partition_mode": "joint", "distance": "euclidean"}),
    "each": (2 * N, {"directions": DIRECTIONS}),
    "in-batch": (3 * N, {"hardness_mode": "in_batch_negatives", "hardness_strength": 3.0}),
    "hard": (3 * N, {"hardness_mode": "hard_negatives", "hardness_strength": 3.0}),
    "all": (3 * N, {"hardness_mode": "all_negatives", "hardness_strength": 3.0}),
    "all-joint": (N, {"hardness_mode": "all_negatives", "hardness_strength": 3.0, "directions": DIRECTIONS,
                      "partition_mode": "joint"}),
    "decoupled": (N, {"decoupled": True, "directions": DIRECTIONS[:2]}),
    "dclw": (N, {"decoupled": True, "directions": DIRECTIONS[:2], "positive_sigma": 0.5}),
    "ignore": (3 * N, {"ignore_above": -0.1}),
    "ignore-joint": (N, {"ignore_above": 0.05, "directions": DIRECTIONS, "partition_mode": "joint"}),
    "smooth": (3 * N, {"label_smoothing": 0.2}),
    "smooth-both": (N, {"label_smoothing": 0.2, "directions": DIRECTIONS[:2], "distance": "dot"}),
    "debias": (3 * N, {"debias": 0.1}),
    "debias-more": (2 * N, {"debias": 0.4, "directions": DIRECTIONS[:2]}),
    "ids": (3 * N, REPEATED),
    "ids-joint": (N, {"ids": REPEATED["ids"], "directions": DIRECTIONS, "partition_mode": "joint"}),
    "bias": (3 * N, {"ref_bias": BIAS}),
    "private": (2 * N, {"hard_negatives": True}),
    "private-hard": (2 * N, {"hard_negatives": True, "hardness_mode": "hard_negatives", "hardness_strength": 2.0}),
    "private-ignore": (N, {"hard_negatives": True, "ignore_above": 0.0, "distance": "sqeuclidean"}),
}  # fmt: skip


def views(m, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    x, y, more = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (m, D), (N, 3, D))
    )
    if "hard_negatives" in settings:
        settings["hard_negatives"] = more
    return x, y, torch.tensor(T, dtype=torch.float64), settings


def differentiated(run, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = run(*leaves)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), *torch.autograd.grad(value, leaves, weights)
