"""Quantities that connect cross-entropy and the pairwise losses, measured on a batch, to log during training.

Source: Boudiaf et al., *A unifying mutual information view of metric learning: cross-entropy vs. pairwise losses*, ECCV
2020 (arXiv 2003.08983), Table 1 and sections 3 to 5. Logarithms are natural, information is in nats.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastpair import functional
from fastpair.backends.dense import evaluated
from fastpair.formulas.expressions import softplus
from fastpair.formulas.formula import N, P, both_lse
from fastpair.formulas.pair_losses import DEFINITIONS, FORMULAS, alpha, beta
from fastpair.losses import options
from fastpair.numerics import accumulate_dtype, average, unit_rows
from fastpair.ops import checks

__all__ = ["info_nce_information", "terms"]

# Scores held at a time.
BLOCK_SCORES = 1 << 22


@torch.no_grad()
def terms(
    embeddings: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    lam: float | None = None,
    margin: float = 1.0,
    sigma: float = 0.1,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
) -> dict[str, float]:
    r"""Tightness and contrastive part of each loss of Table 1, SPCE, PCE and CE side by side, and a bound on I(Z;Y).

    With unit vectors u_i = z_i / |z_i|, s_ij = u_i.u_j, d_ij = |u_i - u_j|, and means over the n samples (for SNCA over
    those that have positives):

    ================================ =========================================================================
    key                              value
    ================================ =========================================================================
    contrastive/tightness            mean_i sum_{j in P_i} d_ij^2
    contrastive/contrast             mean_i sum_{j in N_i} [margin - d_ij]_+^2
    snca/tightness                   -mean_i log sum_{j in P_i} exp(s_ij / sigma)
    snca/contrast                    mean_i log sum_{j != i} exp(s_ij / sigma)
    multi_similarity/tightness       mean_i (1/alpha) log(1 + sum_{j in P_i} exp(-alpha (s_ij - base)))
    multi_similarity/contrast        mean_i (1/beta) log(1 + sum_{j in N_i} exp(beta (s_ij - base)))
    center/tightness                 mean_i 1/2 |z_i - c_{y_i}|^2, c the class means of the batch
    spce                             :func:`fastpair.functional.spce_loss`
    spce/tightness                   -(1/n^2) sum_{i, j: y_i = y_j} z_i.z_j
    spce/contrast                    the rest of spce
    entropy                          H(Y) of the labels of the batch
    with ``weight``:
    ce                               :func:`fastpair.functional.linear_cross_entropy`
    ce/tightness                     -mean_i (w_{y_i}.z_i + b_{y_i})
    ce/contrast                      mean_i log sum_k exp(w_k.z_i + b_k)
    information                      H(Y) - ce, at most I(Z;Y)
    pce                              :func:`fastpair.functional.pce_loss` with the classifier's softmax
    ================================ =========================================================================

    One product ``X @ X.T``, visited in row blocks: no n x n matrix is held.

    Args:
        embeddings: z (n, d).
        labels: integers (n,), in [0, K) where ``weight`` is given.
        weight, bias: those of a classifier, (K, d) and (K,).
        lam: PCE's lambda. Default: that of ``pce_loss``, which costs O(K d^2 (n + d)); where that is not positive,
            as with n <= d, "pce" is left out.
        margin, sigma, alpha, beta, base: settings of the pair losses above.

    Raises:
        TypeError, ValueError: as for the losses.
    """
    labels = checks.embeddings_and_labels(embeddings, labels)
    for name, value in (("margin", margin), ("sigma", sigma), ("alpha", alpha), ("beta", beta)):
        options.positive(name, value)
    options.finite("base", base)
    if bias is not None and weight is None:
        raise ValueError("weight must be given with bias, got None")
    n = max(len(labels), 1)
    z = embeddings.to(accumulate_dtype(embeddings.dtype))
    classes, class_of, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = z.new_zeros(len(classes), z.shape[1]).index_add(0, class_of, z)

    settings = {
        "contrastive": {"pos_margin": 0.0, "neg_margin": margin},
        "snca": {"temperature": sigma},
        "multi_similarity": {"alpha": alpha, "beta": beta, "base": base},
    }
    params = {name: DEFINITIONS[name].params(of, similarity=name != "contrastive") for name, of in settings.items()}
    values = _pair_terms(unit_rows(z), labels, params)
    values["center/tightness"] = (z - sums[class_of] / counts[class_of, None]).square().sum() / (2 * n)
    values["spce"] = functional.spce_loss(z, labels)
    values["spce/tightness"] = -sums.square().sum() / n**2
    values["spce/contrast"] = values["spce"] - values["spce/tightness"]
    share = counts.to(z.dtype) / n
    values["entropy"] = torch.special.entr(share).sum()
    if weight is not None:
        weight = weight.to(z.dtype)
        bias = None if bias is None else bias.to(z.dtype)
        values["ce"] = functional.linear_cross_entropy(z, weight, labels, bias)
        own = (z * weight[labels.long()]).sum(1) + (0 if bias is None else bias[labels.long()])
        values["ce/tightness"] = -own.sum() / n
        values["ce/contrast"] = values["ce"] - values["ce/tightness"]
        values["information"] = values["entropy"] - values["ce"]
        probabilities = torch.nn.functional.linear(z, weight, bias).softmax(1)
        try:
            values["pce"] = functional.pce_loss(z, labels, probabilities, lam=lam)
        except ValueError:
            if lam is not None:
                raise
    return dict(zip(values, torch.stack(list(values.values())).tolist()))


# The contributions of an anchor's positives and of its negatives to the pair losses.
_PARTS = {
    name: evaluated(replace(FORMULAS[formula], anchor=part))
    for name, formula, part in (
        ("contrastive/tightness", "squared_contrastive", P.sum),
        ("contrastive/contrast", "squared_contrastive", N.sum),
        ("snca/tightness", "snca", -P.lse),
        ("snca/contrast", "snca", both_lse),
        ("multi_similarity/tightness", "multi_similarity", softplus(P.lse) / alpha),
        ("multi_similarity/contrast", "multi_similarity", softplus(N.lse) / beta),
    )
}


def _pair_terms(u: Tensor, labels: Tensor, params: dict[str, list[float]]) -> dict[str, Tensor]:
    """The means of ``_PARTS`` for unit vectors. ``params`` are of distances for contrastive, else of cosines."""
    n = len(u)
    sums, counts = ({name: u.new_zeros(()) for name in _PARTS} for _ in range(2))
    rows = max(BLOCK_SCORES // max(n, 1), 1)
    for start in range(0, n, rows):
        block = u[start : start + rows]
        cosines = block @ u.T
        same = labels[start : start + rows, None] == labels[None, :]
        positive = same.clone()
        positive[torch.arange(len(block)), torch.arange(start, start + len(block))] = False
        distances = (2 - 2 * cosines).clamp(min=0).sqrt()
        for name, part in _PARTS.items():
            loss = name.split("/")[0]
            closeness = -distances if loss == "contrastive" else cosines
            [(of_block, counted)] = part(closeness, positive, ~same, *params[loss])
            sums[name] += of_block.sum()
            counts[name] += counted.sum()
    return {name: average(total, counts[name]) for name, total in sums.items()}


@torch.no_grad()
def info_nce_information(embeddings: Tensor, ref_emb: Tensor, *, temperature: float = 0.07) -> float:
    """log n - InfoNCE: a lower bound on the mutual information of two views (n, d), at most log n.

    Source: van den Oord et al., 2018 (arXiv 1807.03748), eq. 5.
    """
    loss = functional.info_nce_loss(embeddings, ref_emb, temperature=temperature, symmetric=False)
    return math.log(max(len(ref_emb), 1)) - loss.item()
