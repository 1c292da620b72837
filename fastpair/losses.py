"""The losses as modules: twins of :mod:`fastpair.functional`, whose functions give the formulas and the errors raised.

Pair losses are called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastpair import functional
from fastpair.ops import checks

__all__ = ["ContrastiveLoss", "LinearCrossEntropyLoss", "PCELoss", "SPCELoss"]


class ContrastiveLoss(nn.Module):
    """Contrastive loss over all pairs: see :func:`fastpair.functional.contrastive_loss` for formula and arguments.

    Unlike ``pytorch_metric_learning.losses.ContrastiveLoss``, whose default distance normalises the embeddings first,
    "euclidean" here is the distance of the embeddings as they are.
    """

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        distance: str = "euclidean",
        power: int = 1,
        reduction: str = "mean",
    ):
        super().__init__()
        checks.one_of("distance", distance, checks.METRICS)
        checks.one_of("reduction", reduction, checks.REDUCTIONS)
        checks.contrastive_settings(pos_margin, neg_margin, distance, power)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.distance = distance
        self.power = power
        self.reduction = reduction

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        if indices_tuple is not None:
            raise ValueError("indices_tuple must be None: the loss is over all pairs, mined pairs are not supported")
        return functional.contrastive_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            pos_margin=self.pos_margin,
            neg_margin=self.neg_margin,
            distance=self.distance,
            power=self.power,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"pos_margin={self.pos_margin}, neg_margin={self.neg_margin}, distance={self.distance!r}, "
            f"power={self.power}, reduction={self.reduction!r}"
        )


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
