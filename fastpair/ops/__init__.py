"""The operators, one file each: argument checks, choice of a backend, registration with torch.library, autograd."""

from fastpair.ops import kernels
from fastpair.ops.center import center
from fastpair.ops.linear_cross_entropy import linear_cross_entropy
from fastpair.ops.mined import mined_pair_loss
from fastpair.ops.pair_loss import pair_loss
from fastpair.ops.pairwise_distance import pairwise_distance
from fastpair.ops.pce import pce
from fastpair.ops.proxy_anchor import proxy_anchor
from fastpair.ops.spce import spce
from fastpair.ops.two_views import info_nce, siglip

kernels.register()

__all__ = [
    "center",
    "info_nce",
    "linear_cross_entropy",
    "mined_pair_loss",
    "pair_loss",
    "pairwise_distance",
    "pce",
    "proxy_anchor",
    "siglip",
    "spce",
]
