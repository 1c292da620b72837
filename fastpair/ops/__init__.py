"""The operators, one file each: argument checks, choice of a backend, registration with torch.library, autograd."""

from fastpair.ops.linear_cross_entropy import linear_cross_entropy
from fastpair.ops.pair_loss import pair_loss
from fastpair.ops.pairwise_distance import pairwise_distance
from fastpair.ops.pce import pce
from fastpair.ops.spce import spce

__all__ = ["linear_cross_entropy", "pair_loss", "pairwise_distance", "pce", "spce"]
