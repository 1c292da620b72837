"""The scores that pairs are compared by."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A function of the dot product and the squared norms. ``kind``: "dot", "sqeuclidean" or "euclidean"; ``unit``: of
    the unit vectors along the rows."""

    kind: str
    unit: bool


METRICS = {
    "dot": Metric("dot", False),
    "cosine": Metric("dot", True),
    "sqeuclidean": Metric("sqeuclidean", False),
    "unit_sqeuclidean": Metric("sqeuclidean", True),
    "euclidean": Metric("euclidean", False),
    "unit_euclidean": Metric("euclidean", True),
}


def metric_named(name: str) -> Metric:
    return METRICS[name]
