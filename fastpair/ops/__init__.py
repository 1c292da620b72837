"""The operators registered with torch: checks of tensors, choice of a backend, autograd."""

from fastpair.ops.linear_cross_entropy import linear_cross_entropy
from fastpair.ops.listed_pair_loss import listed_pair_loss
from fastpair.ops.pair_loss import labelled_pair_loss, pair_loss
from fastpair.ops.pairwise_distance import pairwise_distance
from fastpair.ops.relation import Relation, relation

__all__ = [
    "Relation",
    "labelled_pair_loss",
    "linear_cross_entropy",
    "listed_pair_loss",
    "pair_loss",
    "pairwise_distance",
    "relation",
]
