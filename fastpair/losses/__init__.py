"""The losses as modules, printed from definitions or beside their functions; :mod:`fastpair.functional` collects the
functions. Pair losses are called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``."""

from fastpair.losses import generated_modules
from fastpair.losses.base import PairLoss as PairLoss
from fastpair.losses.bounds import PCELoss, SPCELoss
from fastpair.losses.classes import ClassLoss as ClassLoss
from fastpair.losses.classes import LinearCrossEntropyLoss
from fastpair.losses.custom import CustomPairLoss
from fastpair.losses.generated_modules import *  # noqa: F403
from fastpair.losses.info_nce import InfoNCELoss
from fastpair.losses.matryoshka import MatryoshkaLoss
from fastpair.losses.memory import CrossBatchMemory
from fastpair.losses.siglip import SigLIPLoss

__all__ = [
    "CrossBatchMemory",
    "CustomPairLoss",
    "InfoNCELoss",
    "LinearCrossEntropyLoss",
    "MatryoshkaLoss",
    "PCELoss",
    "SPCELoss",
    "SigLIPLoss",
]
__all__ += generated_modules.__all__
