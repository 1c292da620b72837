"""The losses of two views of the same samples: pair losses between the views, whose rows i belong together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.losses.pair import as_parameters
from fastpair.ops import checks

__all__ = ["InfoNCELoss", "SigLIPLoss", "info_nce_loss", "siglip_loss"]

INFO_NCE = {
    "temperature": options.learnable(options.positive),
    "distance": options.distance,
    "reduction": options.reduction,
}
SIGLIP = {
    "scale": options.learnable(options.positive),
    "bias": options.learnable(options.finite),
    "distance": options.similarity,
    "reduction": options.pair_reduction,
}


def info_nce_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    distance: str = "cosine",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE of two views: each row of one against all rows of the other.

        r_i = log sum_j exp(s_ij / temperature) - s_ii / temperature      (rows)
        c_j = log sum_i exp(s_ij / temperature) - s_jj / temperature      (columns)
        l_i = (r_i + c_i) / 2, the loss of CLIP, or r_i where not ``symmetric``

    with s = -d for a distance d. The mutual information of the views is at least log n - mean r_i.

    Args:
        embeddings: (n, d), one view.
        ref_emb: (n, d), the other view. Unless ``symmetric``, it may have more rows, negatives of every anchor.
        temperature: positive; a number or a tensor of one element, which may require a gradient.
        symmetric: whether the rows of both views are anchors.
        distance: as for the pair losses.
        reduction: "mean", "sum", "none": (n,), or, where not ``symmetric``, "totals" as for the pair losses.

    Source: van den Oord et al., 2018 (arXiv 1807.03748), eq. 4; Radford et al., ICML 2021 (arXiv 2103.00020).
    """
    reductions = options.reduction if symmetric else options.pair_reduction
    rules = {**INFO_NCE, "reduction": reductions}
    options.check(rules, temperature=temperature, distance=distance, reduction=reduction)
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    n, m = embeddings.shape[0], ref_emb.shape[0]
    if m < n or (symmetric and m > n):
        raise ValueError(f"ref_emb must have {n} rows{'' if symmetric else ' or more'} like embeddings, got {m}")
    settings = {"distance": distance, "reduction": reduction, "backend": backend, "two_sided": symmetric}
    return _views_loss("supcon", [1 / temperature], embeddings, ref_emb, **settings)


class InfoNCELoss(FunctionLoss):
    """InfoNCE of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.info_nce_loss`.

    ``learn_temperature=True`` makes the temperature a parameter: the loss holds ``log_temperature``.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        symmetric: bool = True,
        distance: str = "cosine",
        reduction: str = "mean",
        learn_temperature: bool = False,
    ):
        options.check(INFO_NCE, temperature=temperature, distance=distance, reduction=reduction)
        super().__init__(info_nce_loss, symmetric=symmetric, distance=distance, reduction=reduction)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        self.initial_temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self.initial_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return self._function(embeddings, ref_emb, temperature=self.temperature, **self.settings())

    def extra_repr(self) -> str:
        learned = ", learn_temperature=True" if self.log_temperature is not None else ""
        return f"temperature={self.initial_temperature}, {super().extra_repr()}{learned}"


def siglip_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    distance: str = "cosine",
    reduction: str = "mean",
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

    Source: Zhai et al., ICCV 2023 (arXiv 2303.15343), eq. 1 and algorithm 1.
    """
    options.check(SIGLIP, scale=scale, bias=bias, distance=distance, reduction=reduction)
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    if ref_emb.shape[0] < embeddings.shape[0]:
        raise ValueError(f"ref_emb must have {len(embeddings)} rows or more like embeddings, got {len(ref_emb)}")
    settings = {"distance": distance, "reduction": reduction, "backend": backend}
    return _views_loss("sigmoid", [scale, bias], embeddings, ref_emb, **settings)


class SigLIPLoss(FunctionLoss):
    """Sigmoid loss of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.siglip_loss`.

    ``log_scale`` and ``bias`` are parameters, initialised as in the paper by default.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0, distance: str = "cosine", reduction: str = "mean"):
        options.positive("scale", scale)
        options.finite("bias", bias)
        options.check(SIGLIP, distance=distance, reduction=reduction)
        super().__init__(siglip_loss, distance=distance, reduction=reduction)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return self._function(embeddings, ref_emb, self.log_scale.exp(), self.bias, **self.settings())


def _views_loss(loss: str, values: list[float | Tensor], x: Tensor, y: Tensor, **settings) -> Tensor:
    labels = torch.arange(y.shape[0], device=x.device)
    params, learned = as_parameters(values, x)
    return ops.pair_loss(loss, params, x, labels[: x.shape[0]], y, labels, (False,), learned=learned, **settings)
