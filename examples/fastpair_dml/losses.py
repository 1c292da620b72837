"""The losses that --loss can name, each with what it needs around it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastpair import losses as fp
from fastpair.distributed import GlobalBatchLoss
from fastpair.formulas.pair_losses import DEFINITIONS

from .errors import UserError
from .settings import Settings


class CrossEntropy(nn.Module):
    """Cross-entropy of a linear classifier that starts at zero, as the paper trains it.

    The target is 1 - label_smoothing for the own class, and an equal share of the rest for each other class; fastpair
    and PyTorch give a share of it to the own class too.
    """

    def __init__(self, num_classes: int, embedding_size: int, settings: Settings, **given):
        super().__init__()
        smoothing = settings.label_smoothing * num_classes / max(num_classes - 1, 1)
        if smoothing > 1:
            raise UserError(
                f"--label-smoothing is {settings.label_smoothing}, but must be at most {1 - 1 / num_classes:.4g} with "
                f"{num_classes} classes: the own class would get less than the others"
            )
        classifier = fp.LinearCrossEntropyLoss(num_classes, embedding_size, label_smoothing=smoothing, **given)
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)
        self.dropout = nn.Dropout(settings.dropout)
        self.loss = GlobalBatchLoss(classifier)

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(self.dropout(embeddings), labels)


class CenteredCrossEntropy(CrossEntropy):
    """Cross-entropy, and a weak pull to a centre of each class: alone, the pull would draw all samples to one point."""

    def __init__(self, num_classes: int, embedding_size: int, settings: Settings, **given):
        super().__init__(num_classes, embedding_size, settings, **given)
        self.center = GlobalBatchLoss(fp.CenterLoss(num_classes, embedding_size))
        self.weight = settings.center_weight

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().forward(embeddings, labels) + self.weight * self.center(embeddings, labels)


@dataclass(frozen=True)
class LossChoice:
    """How to train with one loss.

    Attributes:
        make: makes the loss from the number of classes, the embedding size, the settings and arguments of the loss.
        pairs: the loss needs several images of a class in a batch.
        length: embeddings are scaled to this length for the loss; None leaves them as the network makes them.
        two_views: the loss compares the batch with another augmentation of it, and needs no labels.
        settings: those of ``Settings`` that no other loss uses.
    """

    make: Callable[..., nn.Module]
    pairs: bool = False
    length: float | None = None
    two_views: bool = False
    settings: tuple[str, ...] = ()

    def build(self, num_classes: int, embedding_size: int, settings: Settings, **given) -> nn.Module:
        """The loss; ``given`` go before the arguments that it has here.

        Raises:
            UserError: an argument is unknown to the loss, or not as it should be.
        """
        try:
            return self.make(num_classes, embedding_size, settings, **given)
        except (TypeError, ValueError) as error:
            if not given:
                raise
            arguments = ", ".join(f"{name}={value}" for name, value in given.items())
            raise UserError(f"--loss-settings {arguments} cannot be: {error}") from error

    def prepare(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Bring embeddings of shape (n, embedding_size) to the length that the loss wants."""
        return embeddings if self.length is None else self.length * F.normalize(embeddings)


def _pairs(loss: type[nn.Module], length: float | None = None, **settings) -> LossChoice:
    return LossChoice(
        lambda *_, **given: GlobalBatchLoss(loss(**{**settings, **given})),
        pairs=True,
        length=length,
        settings=("per_class",),
    )


def _classes(loss: type[nn.Module], **settings) -> LossChoice:
    return LossChoice(lambda classes, size, _, **given: GlobalBatchLoss(loss(classes, size, **{**settings, **given})))


def _views(loss: type[nn.Module], **settings) -> LossChoice:
    return LossChoice(lambda *_, **given: GlobalBatchLoss(loss(**{**settings, **given})), two_views=True)


# What differs from the losses' own settings. Picked by a few runs on the unseen classes of glyphs with one seed: these
# settings, and those below, show each loss at work there and make no fair comparison of the losses.
SETTINGS = {
    "contrastive": {"pos_margin": 0.9, "neg_margin": 0.4, "distance": "cosine"},
    # As Goldberger et al. have it, on embeddings of any length: on unit vectors it would be SNCA.
    "nca": {"distance": "sqeuclidean"},
    "ntxent": {"temperature": 0.1},
    "multi_similarity": {"beta": 20.0},
    "circle": {"gamma": 20.0},
}
OF_CROSS_ENTROPY = ("dropout", "label_smoothing")
# The losses that fastpair defines by a formula are here of themselves; for others a line makes one more --loss.
LOSSES: dict[str, LossChoice] = {
    "ce": LossChoice(CrossEntropy, settings=OF_CROSS_ENTROPY),
    "spce": _pairs(fp.SPCELoss, length=12.0),
    **{of.option: _pairs(getattr(fp, of.module), **SETTINGS.get(of.option, {})) for of in DEFINITIONS.values()},
    "triplet": _pairs(fp.TripletMarginLoss, margin=0.2, triplets_per_anchor="hard"),
    "triplet_all": _pairs(fp.TripletMarginLoss, margin=0.2),
    "triplet_semihard": _pairs(fp.TripletMarginLoss, margin=0.2, triplets_per_anchor="semihard"),
    "triplet_facenet": _pairs(fp.TripletMarginLoss, margin=0.2, triplets_per_anchor="facenet"),
    "center": LossChoice(CenteredCrossEntropy, settings=(*OF_CROSS_ENTROPY, "center_weight")),
    "normalized_softmax": _classes(fp.NormalizedSoftmaxLoss),
    "cosface": _classes(fp.CosFaceLoss, margin=0.2, scale=16.0),
    "arcface": _classes(fp.ArcFaceLoss, margin=15.0, scale=16.0),
    "proxy_nca": _classes(fp.ProxyNCALoss, softmax_scale=8.0),
    "proxy_anchor": _classes(fp.ProxyAnchorLoss),
    "info_nce": _views(fp.InfoNCELoss, temperature=0.1),
    "siglip": _views(fp.SigLIPLoss),
}
