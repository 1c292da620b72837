"""What the objects of pytorch-metric-learning that users pass as settings are here. They are known by their class and
attributes: the library itself is not needed."""

from __future__ import annotations

from fastpair.metrics import METRICS

# Class, power and normalize_embeddings of a distance whose p is 2.
DISTANCES = {
    ("LpDistance", 1, False): "euclidean",
    ("LpDistance", 2, False): "sqeuclidean",
    ("LpDistance", 1, True): "unit_euclidean",
    ("LpDistance", 2, True): "unit_sqeuclidean",
    ("DotProductSimilarity", 1, False): "dot",
    ("DotProductSimilarity", 1, True): "cosine",
    ("CosineSimilarity", 1, True): "cosine",
}

MEAN, NONZERO, DIVISOR = "MeanReducer", "AvgNonZeroReducer", "DivisorReducer"
# The reducer whose value is that of "mean" here: of each loss its default there.
MEANS = {
    "contrastive": NONZERO,
    "nca": MEAN,
    "supcon": NONZERO,
    "ntxent": MEAN,
    "multi_similarity": MEAN,
    "circle": NONZERO,
    "generalized_lifted_structure": MEAN,
    "triplet_margin": NONZERO,
    "normalized_softmax": MEAN,
    "cosface": MEAN,
    "arcface": MEAN,
    "proxy_nca": MEAN,
    "proxy_anchor": DIVISOR,
}


def metric_of(distance: object) -> str | None:
    """The name of the metric that a distance object is, if it is one."""
    p, power, normalized = _attributes(distance)
    return DISTANCES.get((type(distance).__name__, power, normalized)) if p == 2 else None


def _attributes(distance: object) -> tuple:
    return tuple(getattr(distance, name, None) for name in ("p", "power", "normalize_embeddings"))


def distance_name(value: object) -> object:
    """The name of the metric that a distance object is; ValueError if it is none. Other values as they are."""
    if isinstance(value, str) or not hasattr(value, "normalize_embeddings"):
        return value
    name = metric_of(value)
    if name is None:
        p, power, normalized = _attributes(value)
        raise ValueError(
            f"distance must be one of {', '.join(map(repr, METRICS))}, or an object of pytorch-metric-learning that is "
            f"the same, got {type(value).__name__}(p={p}, power={power}, normalize_embeddings={normalized})"
        )
    return name


def reduction_name(loss: str, settings: dict, reducer: object) -> str:
    """The reduction of the loss with these settings whose value is that of a reducer; ValueError if there is none."""
    kind = type(reducer).__name__
    if kind == "SumReducer":
        return "sum"
    # Squared terms there are none there, nor their mean over anchors.
    mean = MEANS.get(loss) if settings.get("power") != 2 else None
    if kind == "ThresholdReducer" and (reducer.low, reducer.high) == (0, None):
        kind = NONZERO
    if kind == mean:
        return "mean"
    others = f" or {mean} (reduction='mean')" if mean else ""
    raise ValueError(
        f"reducer must be SumReducer (reduction='sum'){others} for this loss, whose other reductions are 'none', one "
        f"loss a row, and 'mean' as its documentation says, got {kind}"
    )
