"""The scores of pairs: the only place in Python that interprets the name of a ``distance`` or ``metric``."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """``kind``: "dot", "sqeuclidean" or "euclidean". ``unit``: whether rows are scaled to unit length first."""

    kind: str
    unit: bool

    @property
    def similarity(self) -> bool:
        """Whether close pairs have large scores."""
        return self.kind == "dot"


METRICS = {
    "sqeuclidean": Metric("sqeuclidean", False),
    "euclidean": Metric("euclidean", False),
    "unit_sqeuclidean": Metric("sqeuclidean", True),
    "unit_euclidean": Metric("euclidean", True),
    "cosine": Metric("dot", True),
    "dot": Metric("dot", False),
}
SIMILARITIES = tuple(name for name, metric in METRICS.items() if metric.similarity)
