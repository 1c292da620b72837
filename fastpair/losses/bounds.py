"""The pairwise bounds on cross-entropy, SPCE and PCE: O(nKd) algebra around ``fastpair::linear_cross_entropy``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastpair import ops
from fastpair.backends import choose_backend
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.numerics import accumulate_dtype, reduced
from fastpair.ops import checks
from fastpair.ops.autograd import fused_loss
from fastpair.ops.linear_cross_entropy import MOST_LOGITS
from fastpair.ops.pair_loss import is_large

__all__ = ["PCELoss", "SPCELoss", "pce_loss", "spce_loss"]

# Elements of the (n, d) products, the largest arrays, of the classes whose eigenvalues are taken in one call.
CURVATURE_BUDGET = 1 << 22

SPCE = {"reduction": options.reduction}
PCE = {"lam": options.positive_or_none, "reduction": options.reduction}


def spce_loss(embeddings: Tensor, labels: Tensor, *, reduction: str = "mean", backend: str | None = None) -> Tensor:
    r"""Simplified pairwise cross-entropy: cross-entropy whose class weights are made from the batch, O(n K d).

        l_i = -(1/n) sum_{j: y_j = y_i} z_i.z_j + log sum_k exp( (1/n) sum_{j: y_j = k} z_i.z_j )

    where k runs over the classes in the batch and self-pairs count. It equals the cross-entropy with class weights
    theta_k = (1/n) sum_{y_i = k} z_i.

    Args:
        embeddings: z (n, d).
        labels: integers (n,), any values.
        reduction: "mean" (the paper's loss), "sum" or "none".

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), SPCE.
    """
    options.check(SPCE, reduction=reduction)
    labels = checks.embeddings_and_labels(embeddings, labels)
    chosen = choose_backend(
        embeddings.device.type, backend, embeddings.dtype, large=is_large(embeddings, embeddings, MOST_LOGITS)
    )
    if chosen == "cpu":  # its kernel computes the class means itself
        return fused_loss("spce", chosen, (embeddings, labels), (reduction,))
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(accumulate_dtype(embeddings.dtype))
        if len(z) == 0:
            return z.sum(1) if reduction == "none" else z.sum()
        group, sums = class_sums(z, labels)
        # Only the device knows the number of classes: there are as many weights as samples, and the bias rules out
        # those without a class.
        bias = torch.full_like(sums[:, 0], -torch.inf).index_fill(0, group, 0)
        return spce_rows(z, group, sums / len(z), bias, reduction, chosen)


def spce_rows(
    z: Tensor, group: Tensor, means: Tensor, bias: Tensor | None, reduction: str, backend: str | None
) -> Tensor:
    """The cross-entropy of the rows of z, row i being in class group[i], with the class means as weights. These are not
    rounded to half precision: losses would be off by the rounding error times the length of a sample."""
    return ops.linear_cross_entropy(z, means, group, bias, reduction=reduction, backend=backend)


class SPCELoss(FunctionLoss):
    """Simplified pairwise cross-entropy: see :func:`fastpair.functional.spce_loss`."""

    def __init__(self, reduction: str = "mean"):
        options.check(SPCE, reduction=reduction)
        super().__init__(spce_loss, reduction=reduction)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self._function(embeddings, labels, **self.settings())


def pce_loss(
    embeddings: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    *,
    lam: float | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Pairwise cross-entropy: a bound on cross-entropy over pairs, O(n K d).

        PCE = -(1/(2 lam n^2)) sum_i sum_{j: y_j = y_i} z_i.z_j
              + (1/n) sum_i log sum_k exp( (1/(lam n)) sum_j p_jk z_i.z_j ) - (1/(2 lam)) sum_k |c_k|^2

    with the soft class means c_k = (1/n) sum_i p_ik z_i; self-pairs count.

    Args:
        embeddings: z (n, d).
        labels: integers (n,), any values.
        probabilities: p (n, K), a classifier's softmax; constant for the gradient.
        lam: lambda > 0, constant for the gradient. Default: the smallest eigenvalue over all k of
            A_k = (1/n) sum_i (p_ik - p_ik^2) z_i z_i^T. It costs O(K d^2 (n + d)) and waits for the device.
            Where it is not positive, as always with n <= d, the bound is empty: ValueError.
        reduction: "mean" (the paper's loss), "sum" (n times the mean) or "none": (n,), the last term in equal parts.

    Source: Boudiaf et al., ECCV 2020 (arXiv 2003.08983), PCE.
    """
    options.check(PCE, lam=lam, reduction=reduction)
    labels = checks.embeddings_and_labels(embeddings, labels)
    checks.probabilities(probabilities, embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.to(accumulate_dtype(embeddings.dtype))
        p = probabilities.detach().to(z.dtype)
        if lam is None:
            lam = smallest_curvature(z.detach(), p) if len(z) else 1.0
        rows = max(len(z), 1)
        group, sums = class_sums(z, labels)
        per_anchor = pce_rows(z, group, sums / rows, p.T @ z / rows, lam, backend)
        return reduced(per_anchor, per_anchor.sum() / rows, reduction)


class PCELoss(FunctionLoss):
    """Pairwise cross-entropy: see :func:`fastpair.functional.pce_loss`.

    Called ``loss(embeddings, labels, probabilities)``.
    """

    def __init__(self, lam: float | None = None, reduction: str = "mean"):
        options.check(PCE, lam=lam, reduction=reduction)
        super().__init__(pce_loss, lam=lam, reduction=reduction)

    def forward(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        return self._function(embeddings, labels, probabilities, **self.settings())


def class_sums(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The class index of each row (n,), classes being ordered by label, and the sum of each class's rows (n, d), zero
    beyond the last class. Shapes are static and the host does not wait, unlike with ``torch.unique``."""
    ordered, order = labels.sort()
    group = torch.zeros_like(labels, dtype=torch.int64)
    group[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    group = torch.empty_like(group).scatter(0, order, group)
    return group, grouped_sums(z, group, z.shape[0])


def grouped_sums(z: Tensor, group: Tensor, groups: int) -> Tensor:
    """The sum of each group's rows (groups, d), row i of z (n, d) being in group[i]."""
    sums = z.new_zeros(groups, z.shape[1])
    if z.is_cuda:  # index_add would add in any order there
        return sums.index_put((group,), z, accumulate=True)
    return sums.index_add(0, group, z)


def pce_rows(z: Tensor, group: Tensor, means: Tensor, centers: Tensor, lam: float, backend: str | None) -> Tensor:
    """Losses (n,) of the rows of z, row i being in class group[i]. ``means``: the sums of each class's rows;
    ``centers``: for each class, the sum of all rows times its probabilities; both divided by the batch size."""
    weight = centers / lam
    # The log-sum-exp of a row is its cross-entropy for any one class plus the logit of that class.
    first = torch.zeros_like(group)
    log_sum_exp = ops.linear_cross_entropy(z, weight, first, reduction="none", backend=backend) + z @ weight[0]
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
