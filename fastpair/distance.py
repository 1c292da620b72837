"""Pairwise distances and similarities as a module: the counterpart of :func:`fastpair.functional.pairwise_distance`."""

from __future__ import annotations

from torch import Tensor, nn

from fastpair import functional
from fastpair.losses import options

__all__ = ["PairwiseDistance"]


class PairwiseDistance(nn.Module):
    """Scores of all pairs of rows of x (n, d) and y (m, d): see :func:`fastpair.functional.pairwise_distance`."""

    def __init__(self, metric: str = "sqeuclidean"):
        super().__init__()
        options.distance("metric", metric)
        self.metric = metric

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return functional.pairwise_distance(x, y, self.metric)

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}"
