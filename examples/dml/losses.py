"""The losses that --loss can name, each with what it needs around it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastpair import losses as fp


class CenteredCrossEntropy(nn.Module):
    """Cross-entropy, and a weak pull to a centre of each class: alone, the pull would draw all samples to one point."""

    def __init__(self, num_classes: int, embedding_size: int, weight: float = 0.003):
        super().__init__()
        self.cross_entropy = fp.LinearCrossEntropyLoss(num_classes, embedding_size)
        self.center = fp.CenterLoss(num_classes, embedding_size)
        self.weight = weight

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.cross_entropy(embeddings, labels) + self.weight * self.center(embeddings, labels)


@dataclass(frozen=True)
class Recipe:
    """How to train with one loss.

    Attributes:
        build: makes the loss from the number of classes and the embedding size.
        per_class: how many images of a class come together in a batch; 1 is a plain shuffle.
        length: embeddings are scaled to this length for the loss; None leaves them as the network makes them.
        two_views: the loss compares the batch with another augmentation of it, and needs no labels.
    """

    build: Callable[[int, int], nn.Module]
    per_class: int
    length: float | None = None
    two_views: bool = False

    def prepare(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Bring embeddings of shape (n, embedding_size) to the length that the loss wants."""
        return embeddings if self.length is None else self.length * F.normalize(embeddings)


# One more line here makes one more choice of --loss. The settings were picked by a few runs on the unseen classes of
# glyphs with one seed: they show each loss at work there and are no fair comparison of the losses.
RECIPES: dict[str, Recipe] = {
    "ce": Recipe(lambda *sizes: fp.LinearCrossEntropyLoss(*sizes, label_smoothing=0.1), per_class=1),
    "contrastive": Recipe(
        lambda *_: fp.ContrastiveLoss(pos_margin=0.9, neg_margin=0.4, distance="cosine"), per_class=4
    ),
    "spce": Recipe(lambda *_: fp.SPCELoss(), per_class=4, length=12.0),
    "snca": Recipe(lambda *_: fp.SNCALoss(), per_class=4),
    "nca": Recipe(lambda *_: fp.NCALoss(softmax_scale=5.0), per_class=4),
    "supcon": Recipe(lambda *_: fp.SupConLoss(), per_class=4),
    "ntxent": Recipe(lambda *_: fp.NTXentLoss(temperature=0.1), per_class=4),
    "multi_similarity": Recipe(lambda *_: fp.MultiSimilarityLoss(beta=20.0), per_class=4),
    "circle": Recipe(lambda *_: fp.CircleLoss(gamma=20.0), per_class=4),
    "lifted_structure": Recipe(lambda *_: fp.GeneralizedLiftedStructureLoss(), per_class=4),
    "triplet": Recipe(lambda *_: fp.TripletMarginLoss(margin=0.2, triplets_per_anchor="hard"), per_class=4),
    "triplet_all": Recipe(lambda *_: fp.TripletMarginLoss(margin=0.2), per_class=4),
    "triplet_semihard": Recipe(
        lambda *_: fp.TripletMarginLoss(margin=0.2, triplets_per_anchor="semihard"), per_class=4
    ),
    "center": Recipe(lambda *sizes: CenteredCrossEntropy(*sizes), per_class=1),
    "normalized_softmax": Recipe(lambda *sizes: fp.NormalizedSoftmaxLoss(*sizes), per_class=1),
    "cosface": Recipe(lambda *sizes: fp.CosFaceLoss(*sizes, margin=0.2, scale=16.0), per_class=1),
    "arcface": Recipe(lambda *sizes: fp.ArcFaceLoss(*sizes, margin=15.0, scale=16.0), per_class=1),
    "proxy_nca": Recipe(lambda *sizes: fp.ProxyNCALoss(*sizes, softmax_scale=8.0), per_class=1),
    "proxy_anchor": Recipe(lambda *sizes: fp.ProxyAnchorLoss(*sizes), per_class=1),
    "info_nce": Recipe(lambda *_: fp.InfoNCELoss(temperature=0.1), per_class=1, two_views=True),
    "siglip": Recipe(lambda *_: fp.SigLIPLoss(), per_class=1, two_views=True),
}
