"""The pairwise cross-entropy: O(nKd) algebra around ``fastpair::linear_cross_entropy``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastpair.backends import reference
from fastpair.config import choose_backend
from fastpair.ops import checks
from fastpair.ops.linear_cross_entropy import SMALL, linear_cross_entropy
from fastpair.ops.pair_loss import is_large
from fastpair.ops.spce import class_sums

# Elements of the (n, d) products, the larger part, of the classes whose eigenvalues are taken in one call.
CURVATURE_BUDGET = 1 << 22


def pce(
    embeddings: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    lam: float | None,
    reduction: str,
    backend: str | None,
) -> Tensor:
    checks.embeddings_and_labels(embeddings, labels)
    checks.probabilities(probabilities, embeddings)
    checks.one_of("reduction", reduction, checks.REDUCTIONS)
    checks.positive_or_none("lam", lam)
    kernel = choose_backend(
        embeddings.device.type, backend, embeddings.dtype, large=is_large(embeddings, probabilities.T, SMALL)
    )
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(reference.accumulate_dtype(embeddings.dtype))
        p = probabilities.detach().to(z.dtype)
        if lam is None:
            lam = smallest_curvature(z.detach(), p) if len(z) else 1.0
        if kernel == "reference":
            return reference.pce(z, labels, p, lam, reduction)
        rows = max(len(z), 1)
        group, sums = class_sums(z, labels)
        per_anchor = pce_rows(z, group, sums / rows, p.T @ z / rows, lam, kernel)
        return reference.reduced(per_anchor, per_anchor.sum() / rows, reduction)


def pce_rows(z: Tensor, group: Tensor, means: Tensor, centers: Tensor, lam: float, backend: str | None) -> Tensor:
    """Losses (n,) of the rows of z, which are in class group[i], given the sums of every class's rows and of all rows
    times their probabilities of every class, both over the size of the batch."""
    weight = centers / lam
    # The log-sum-exp of a row is its cross-entropy for any one class plus the logit of that class.
    first = torch.zeros_like(group)
    log_sum_exp = linear_cross_entropy(z, weight, first, None, 0.0, None, "none", backend) + z @ weight[0]
    positives = (z * means[group]).sum(1)
    return log_sum_exp - (positives + centers.square().sum()) / (2 * lam)


def smallest_curvature(z: Tensor, p: Tensor) -> float:
    """Smallest eigenvalue over all k of A_k = (1/n) sum_i (p_ik - p_ik^2) z_i z_i^T; ValueError unless positive."""
    n, d = z.shape
    if n <= d:
        raise ValueError(
            f"lam must be given where the batch is not larger than the embedding: with n = {n} <= d = {d} its default, "
            "the smallest eigenvalue of A_k, is 0"
        )
    spread = (p - p.square()) / n
    if not (torch.isfinite(z).all() and torch.isfinite(spread).all()):
        return math.nan
    lowest, highest = math.inf, 0.0
    for columns in spread.split(max(CURVATURE_BUDGET // (d * n), 1), dim=1):
        eigenvalues = torch.linalg.eigvalsh(torch.einsum("ik,ia,ib->kab", columns, z, z))
        lowest, highest = min(lowest, eigenvalues.min().item()), max(highest, eigenvalues.max().item())
    if lowest <= d * torch.finfo(z.dtype).eps * highest:
        raise ValueError(
            "lam must be given where its default is not positive: the smallest eigenvalue of A_k is "
            f"{lowest:.3g} (largest {highest:.3g})"
        )
    return lowest
