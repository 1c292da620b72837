"""The losses as modules, one file per family with the functions beside them; :mod:`fastpair.functional` collects the
functions. Pair losses are called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``."""

from fastpair.losses import generated_modules
from fastpair.losses.base import PairLoss as PairLoss
from fastpair.losses.bounds import PCELoss, SPCELoss
from fastpair.losses.classes import (
    ArcFaceLoss,
    CenterLoss,
    CosFaceLoss,
    LinearCrossEntropyLoss,
    NormalizedSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
)
from fastpair.losses.classes import (
    ClassLoss as ClassLoss,
)
from fastpair.losses.custom import CustomPairLoss
from fastpair.losses.generated_modules import *  # noqa: F403
from fastpair.losses.memory import CrossBatchMemory
from fastpair.losses.triplet import TripletMarginLoss
from fastpair.losses.two_views import InfoNCELoss, SigLIPLoss

__all__ = [
    "ArcFaceLoss",
    "CenterLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "CustomPairLoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "NormalizedSoftmaxLoss",
    "PCELoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SPCELoss",
    "SigLIPLoss",
    "TripletMarginLoss",
]
__all__ += generated_modules.__all__
