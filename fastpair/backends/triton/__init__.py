"""The operators as Triton kernels, for CUDA tensors and, with TRITON_INTERPRET=1, for CPU tensors, which tests them
without a GPU."""

from fastpair.backends.triton.linear_cross_entropy import linear_cross_entropy
from fastpair.backends.triton.pair_loss import labelled_pair_loss, pair_loss
from fastpair.backends.triton.pairwise_distance import pairwise_distance, pairwise_distance_backward
from fastpair.backends.triton.retrieval import best_rank

__all__ = [
    "best_rank",
    "labelled_pair_loss",
    "linear_cross_entropy",
    "pair_loss",
    "pairwise_distance",
    "pairwise_distance_backward",
]
