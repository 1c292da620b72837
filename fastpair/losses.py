"""The losses as modules: twins of :mod:`fastpair.functional`, whose functions give the formulas and the errors raised.

Pair losses are called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastpair import functional
from fastpair.ops import checks

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "GeneralizedLiftedStructureLoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "PCELoss",
    "ProxyAnchorLoss",
    "SNCALoss",
    "SPCELoss",
    "SigLIPLoss",
    "SupConLoss",
    "TripletMarginLoss",
]


class _FunctionLoss(nn.Module):
    """A loss without parameters: a function of :mod:`fastpair.functional` and its settings, which are attributes."""

    def __init__(self, function: Callable, **settings):
        super().__init__()
        self._function = function
        self._settings = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def settings(self) -> dict:
        return {name: getattr(self, name) for name in self._settings}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())


class PairLoss(_FunctionLoss):
    """What the pair losses have in common: ``loss(embeddings, labels, indices_tuple=None, ref_emb=None,
    ref_labels=None, exclude_self=None)``, arguments as described in :mod:`fastpair.functional`.

    Settings are checked when the loss is made.
    """

    def __init__(self, function: Callable, **settings):
        super().__init__(function, **settings)
        function(torch.empty(0, 1), torch.empty(0, dtype=torch.int64), **settings, backend="reference")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        exclude_self: bool | Tensor | None = None,
    ) -> Tensor:
        return self._function(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            indices_tuple=indices_tuple,
            exclude_self=exclude_self,
            **self.settings(),
        )


class ContrastiveLoss(PairLoss):
    """Contrastive loss over all pairs: see :func:`fastpair.functional.contrastive_loss` for formula and arguments."""

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str = "unit_euclidean",
        power: int = 1,
        reduction: str = "mean",
    ):
        super().__init__(
            functional.contrastive_loss,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            distance=distance,
            power=power,
            reduction=reduction,
        )


class SNCALoss(PairLoss):
    """Scalable neighbourhood component analysis: see :func:`fastpair.functional.snca_loss`."""

    def __init__(self, temperature: float = 0.1, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.snca_loss, temperature=temperature, distance=distance, reduction=reduction)


class NCALoss(PairLoss):
    """Neighbourhood components analysis: see :func:`fastpair.functional.nca_loss`."""

    def __init__(self, softmax_scale: float = 1.0, distance: str = "unit_sqeuclidean", reduction: str = "mean"):
        super().__init__(functional.nca_loss, softmax_scale=softmax_scale, distance=distance, reduction=reduction)


class SupConLoss(PairLoss):
    """Supervised contrastive loss: see :func:`fastpair.functional.supcon_loss`."""

    def __init__(self, temperature: float = 0.1, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.supcon_loss, temperature=temperature, distance=distance, reduction=reduction)


class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross-entropy: see :func:`fastpair.functional.ntxent_loss`."""

    def __init__(self, temperature: float = 0.07, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.ntxent_loss, temperature=temperature, distance=distance, reduction=reduction)


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss: see :func:`fastpair.functional.multi_similarity_loss`."""

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        distance: str = "cosine",
        reduction: str = "mean",
    ):
        super().__init__(
            functional.multi_similarity_loss, alpha=alpha, beta=beta, base=base, distance=distance, reduction=reduction
        )


class CircleLoss(PairLoss):
    """Circle loss with pairwise labels: see :func:`fastpair.functional.circle_loss`."""

    def __init__(self, m: float = 0.4, gamma: float = 80.0, distance: str = "cosine", reduction: str = "mean"):
        super().__init__(functional.circle_loss, m=m, gamma=gamma, distance=distance, reduction=reduction)


class GeneralizedLiftedStructureLoss(PairLoss):
    """Lifted structure loss: see :func:`fastpair.functional.generalized_lifted_structure_loss`."""

    def __init__(
        self,
        neg_margin: float = 1.0,
        pos_margin: float = 0.0,
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ):
        super().__init__(
            functional.generalized_lifted_structure_loss,
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            distance=distance,
            reduction=reduction,
        )


class TripletMarginLoss(PairLoss):
    """Triplet margin loss: see :func:`fastpair.functional.triplet_margin_loss`."""

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: str = "all",
        distance: str = "unit_euclidean",
        reduction: str = "mean",
    ):
        super().__init__(
            functional.triplet_margin_loss,
            margin=margin,
            swap=swap,
            smooth_loss=smooth_loss,
            triplets_per_anchor=triplets_per_anchor,
            distance=distance,
            reduction=reduction,
        )


class InfoNCELoss(_FunctionLoss):
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
        super().__init__(functional.info_nce_loss, symmetric=symmetric, distance=distance, reduction=reduction)
        checks.positive("temperature", temperature)
        checks.one_of("distance", distance, checks.SIMILARITIES if learn_temperature else checks.METRICS)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        self.initial_temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self.initial_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return self._function(embeddings, ref_emb, temperature=self.temperature, **self.settings())


class SigLIPLoss(nn.Module):
    """Sigmoid loss of two views, ``loss(embeddings, ref_emb)``: see :func:`fastpair.functional.siglip_loss`.

    ``log_scale`` and ``bias`` are parameters, initialised as in the paper by default.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0, reduction: str = "mean"):
        super().__init__()
        checks.positive("scale", scale)
        checks.finite("bias", bias)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.reduction = reduction

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        return functional.siglip_loss(embeddings, ref_emb, self.log_scale.exp(), self.bias, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class LinearCrossEntropyLoss(nn.Module):
    """Cross-entropy of a linear classifier that the loss holds: see :func:`fastpair.functional.linear_cross_entropy`.

    ``weight`` (num_classes, embedding_size) and ``bias`` (num_classes,) are parameters, initialised as ``nn.Linear``
    does: give ``loss.parameters()`` to the optimiser.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        bias: bool = True,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        checks.at_least("num_classes", num_classes, 1)
        checks.at_least("embedding_size", embedding_size, 1)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.fraction("label_smoothing", label_smoothing)
        checks.integer("ignore_index", ignore_index)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_classes, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.weight.shape[1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return functional.linear_cross_entropy(
            embeddings,
            self.weight,
            labels,
            self.bias,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.weight.shape[0]}, embedding_size={self.weight.shape[1]}, bias={self.bias is not None}, "
            f"label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"
        )


class ProxyAnchorLoss(nn.Module):
    """Proxy-anchor loss: see :func:`fastpair.functional.proxy_anchor_loss`.

    ``proxies`` (num_classes, embedding_size) is a parameter, initialised as in pytorch-metric-learning: give
    ``loss.parameters()`` to the optimiser.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        checks.at_least("num_classes", num_classes, 1)
        checks.at_least("embedding_size", embedding_size, 1)
        checks.finite("margin", margin)
        checks.positive("alpha", alpha)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.margin = margin
        self.alpha = alpha
        self.reduction = reduction
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        checks.no_pairs(indices_tuple, ref_emb, ref_labels)
        return functional.proxy_anchor_loss(
            embeddings, self.proxies, labels, margin=self.margin, alpha=self.alpha, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, alpha={self.alpha}, reduction={self.reduction!r}"


class SPCELoss(nn.Module):
    """Simplified pairwise cross-entropy: see :func:`fastpair.functional.spce_loss`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return functional.spce_loss(embeddings, labels, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class PCELoss(nn.Module):
    """Pairwise cross-entropy: see :func:`fastpair.functional.pce_loss`.

    Called ``loss(embeddings, labels, probabilities)``.
    """

    def __init__(self, lam: float | None = None, reduction: str = "mean"):
        super().__init__()
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.positive_or_none("lam", lam)
        self.lam = lam
        self.reduction = reduction

    def forward(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        return functional.pce_loss(embeddings, labels, probabilities, lam=self.lam, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, reduction={self.reduction!r}"
