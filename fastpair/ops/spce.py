"""``fastpair::spce``: the simplified pairwise cross-entropy, with its gradient, in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.autograd import fake_fused_loss, fused_loss
from fastpair.ops.kernels import define
from fastpair.ops.linear_cross_entropy import SMALL, linear_cross_entropy
from fastpair.ops.pair_loss import is_large


def _fake(embeddings, labels, row_grad, reduction, *wanted):
    return fake_fused_loss((embeddings,), reduction, wanted)


define(
    "spce",
    "(Tensor embeddings, Tensor labels, Tensor? row_grad, str reduction, bool grad_embeddings) -> (Tensor, Tensor)",
    _fake,
)


def class_sums(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the classes (n,), in the order of their labels, and sums of their samples (n, d), zero beyond the last
    class. Static shapes and no host synchronisation, unlike ``torch.unique``."""
    ordered, order = labels.sort()
    group = torch.zeros_like(labels, dtype=torch.int64)
    group[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    group = torch.empty_like(group).scatter(0, order, group)
    return group, grouped_sums(z, group, z.shape[0])


def grouped_sums(z: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums (groups, d) of the rows of z (n, d), row i of which is in group[i]."""
    sums = z.new_zeros(groups, z.shape[1])
    if z.is_cuda:  # where index_add would add in any order
        return sums.index_put((group,), z, accumulate=True)
    return sums.index_add(0, group, z)


def spce(embeddings: Tensor, labels: Tensor, reduction: str, backend: str | None) -> Tensor:
    checks.embeddings_and_labels(embeddings, labels)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    backend = choose_backend(
        embeddings.device.type, backend, embeddings.dtype, large=is_large(embeddings, embeddings, SMALL)
    )
    if backend == "reference":
        return reference.spce(embeddings, labels, reduction)
    if backend in ("cuda", "triton"):
        # Cross-entropy with the class means for weights. How many classes there are only the device knows: there are as
        # many weights as samples, and those of no class are ruled out. Half precision cannot hold a mean: its rounding,
        # times the length of a sample, is what losses are wrong by.
        with torch.autocast(embeddings.device.type, enabled=False):
            z = embeddings.to(reference.accumulate_dtype(embeddings.dtype))
            group, sums = class_sums(z, labels)
            weight = sums / max(len(z), 1)
            bias = torch.full_like(weight[:, 0], -torch.inf).index_fill_(0, group, 0)
            if len(z) == 0:
                return z.sum(1) if reduction == "none" else z.sum()
            return linear_cross_entropy(z, weight, group, bias, 0.0, None, reduction, backend)
    return fused_loss(torch.ops.fastpair.spce.default, (embeddings, labels), (reduction,), differentiable=1)
