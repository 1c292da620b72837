"""The sigmoid loss of two views of the same samples, whose rows i belong together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.losses.from_pml import distance_name
from fastpair.losses.rows import own_rows_related
from fastpair.ops import checks

__all__ = ["SigLIPLoss", "siglip_loss"]

RULES = {
    "scale": options.learnable(options.positive),
    "bias": options.learnable(options.finite),
    "distance": options.similarity,
    "reduction": options.pair_reduction,
}


def siglip_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    distance: str | nn.Module = "cosine",
    reduction: str = "mean",
    pairs: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Sigmoid loss of two views: every pair by itself, no softmax.

        l_i = log(1 + exp(-(scale s_ii + bias))) + sum_{j != i} log(1 + exp(scale s_ij + bias))

    Args:
        embeddings: (n, d), one view.
        ref_emb: (m, d), m >= n, the other view; rows beyond n are negatives of every anchor.
        scale, bias: numbers or tensors of one element, which may require a gradient. The scale is positive.
        distance: s, "cosine" or "dot".
        reduction: "mean", "sum", "none": (n,), or "totals" as for the pair losses.
        pairs: integers (n, m) for any m, 1 for a positive pair, -1 for a negative one, 0 for none: several positives
            an anchor, or pairs that are left out.

    Source: Zhai et al., ICCV 2023 (arXiv 2303.15343), eq. 1 and algorithm 1.
    """
    distance = distance_name(distance)
    options.check(RULES, scale=scale, bias=bias, distance=distance, reduction=reduction)
    embeddings, ref_emb = checks.both_sides(embeddings, ref_emb)
    if pairs is None:
        given = own_rows_related(embeddings, ref_emb)
    else:
        given = ops.relation(embeddings, None, ref_emb, None, False, pairs)
    return ops.pair_loss("sigmoid", [scale, bias], embeddings, given, distance, reduction, backend)


class SigLIPLoss(FunctionLoss):
    """Sigmoid loss of two views, ``loss(embeddings, ref_emb, scale=None, bias=None, *, pairs=None)``: see
    :func:`fastpair.functional.siglip_loss`.

    ``log_scale`` and ``bias`` are parameters, initialised as in the paper by default. A scale and a bias that belong to
    the model are given in the call.
    """

    def __init__(
        self, scale: float = 10.0, bias: float = -10.0, distance: str | nn.Module = "cosine", reduction: str = "mean"
    ):
        distance = distance_name(distance)
        options.positive("scale", scale)
        options.finite("bias", bias)
        options.check(RULES, distance=distance, reduction=reduction)
        super().__init__(siglip_loss, distance=distance, reduction=reduction)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        scale: float | Tensor | None = None,
        bias: float | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
    ) -> Tensor:
        scale = self.log_scale.exp() if scale is None else scale
        bias = self.bias if bias is None else bias
        return self._function(embeddings, ref_emb, scale, bias, pairs=pairs, **self.settings())
