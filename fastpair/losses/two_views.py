"""The losses of two views of the same samples: pair losses between the views, whose rows i belong together."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastpair import ops
from fastpair.losses import options
from fastpair.losses.base import FunctionLoss
from fastpair.losses.from_pml import distance_name
from fastpair.numerics import accumulate_dtype, unit_rows
from fastpair.ops import checks

__all__ = ["InfoNCELoss", "SigLIPLoss", "info_nce_loss", "siglip_loss"]

INFO_NCE = {"temperature": options.positive, "distance": options.distance, "reduction": options.reduction}
SIGLIP = {"scale": options.positive, "bias": options.finite, "reduction": options.reduction}


def info_nce_loss(
    embeddings: Tensor,
    ref_emb: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
    distance: str | nn.Module = "cosine",
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
        temperature: positive. A tensor of one element, which may require a gradient, needs "cosine" or "dot".
        symmetric: whether the rows of both views are anchors.
        distance: as for the pair losses.
        reduction: "mean", "sum", "none": (n,), or, where not ``symmetric``, "totals" as for the pair losses.

    Source: van den Oord et al., 2018 (arXiv 1807.03748), eq. 4; Radford et al., ICML 2021 (arXiv 2103.00020).
    """
    distance = distance_name(distance)
    reductions = options.reduction if symmetric else options.pair_reduction
    options.check({**INFO_NCE, "reduction": reductions}, distance=distance, reduction=reduction)
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    n, m = embeddings.shape[0], ref_emb.shape[0]
    if m < n or (symmetric and m > n):
        raise ValueError(f"ref_emb must have {n} rows{'' if symmetric else ' or more'} like embeddings, got {m}")
    if isinstance(temperature, Tensor):
        checks.single("temperature", temperature)
        options.similarity("distance", distance)
        # The division passes a gradient on to the temperature.
        dtype = accumulate_dtype(embeddings.dtype)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings, ref_emb = embeddings.to(dtype), ref_emb.to(dtype)
            if distance == "cosine":
                embeddings, ref_emb, distance = unit_rows(embeddings), unit_rows(ref_emb), "dot"
            embeddings, temperature = embeddings / temperature.to(dtype), 1.0
    options.positive("temperature", temperature)
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
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        learn_temperature: bool = False,
    ):
        distance = distance_name(distance)
        rules = {**INFO_NCE, "distance": options.similarity if learn_temperature else options.distance}
        options.check(rules, temperature=temperature, distance=distance, reduction=reduction)
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
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Sigmoid loss of two views: every pair by itself, no softmax.

        l_i = log(1 + exp(-(scale s_ii + bias))) + sum_{j != i} log(1 + exp(scale s_ij + bias)),   s the cosine

    Args:
        embeddings: (n, d), one view.
        ref_emb: (m, d), m >= n, the other view; rows beyond n are negatives of every anchor.
        scale, bias: numbers or tensors of one element, which may require a gradient.
        reduction: "mean", "sum", "none": (n,), or "totals" as for the pair losses.

    Source: Zhai et al., ICCV 2023 (arXiv 2303.15343), eq. 1 and algorithm 1.
    """
    options.pair_reduction("reduction", reduction)
    checks.matrix("embeddings", embeddings)
    checks.like("ref_emb", ref_emb, "embeddings", embeddings)
    if ref_emb.shape[0] < embeddings.shape[0]:
        raise ValueError(f"ref_emb must have {len(embeddings)} rows or more like embeddings, got {len(ref_emb)}")
    dtype = accumulate_dtype(embeddings.dtype)
    with torch.autocast(embeddings.device.type, enabled=False):
        x, y = unit_rows(embeddings.to(dtype)), unit_rows(ref_emb.to(dtype))
        scale, bias = (_number_or_single(name, value, x) for name, value in (("scale", scale), ("bias", bias)))
        # The scale lengthens the rows of one view, the bias is one more feature: the kernel needs neither.
        x = torch.cat([x * scale, torch.ones_like(x[:, :1])], dim=1)
        y = torch.cat([y, bias.expand(y.shape[0], 1)], dim=1)
    return _views_loss("sigmoid", [], x, y, distance="dot", reduction=reduction, backend=backend)


class SigLIPLoss(FunctionLoss):
    """Sigmoid loss of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.siglip_loss`.

    ``log_scale`` and ``bias`` are parameters, initialised as in the paper by default.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0, reduction: str = "mean"):
        options.check(SIGLIP, scale=scale, bias=bias, reduction=reduction)
        super().__init__(siglip_loss, reduction=reduction)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return self._function(embeddings, ref_emb, self.log_scale.exp(), self.bias, **self.settings())


def _number_or_single(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        checks.single(name, value)
        return value.reshape(()).to(like)
    options.finite(name, value)
    # Created on the device: a copy to it would have to wait for it.
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def _views_loss(loss: str, params: list[float], x: Tensor, y: Tensor, **settings) -> Tensor:
    labels = torch.arange(y.shape[0], device=x.device)
    return ops.pair_loss(loss, params, x, labels[: x.shape[0]], y, labels, (False,), **settings)
