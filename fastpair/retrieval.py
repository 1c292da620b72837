"""Retrieval metrics: exact, over tiles of the scores, without the (n, m) matrix.

Neighbours are ordered by score, equal scores by gallery index. Without a gallery every query is compared with all
the others ("leave one out"). Queries that have no item of their class in the gallery do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
from torch import Tensor

from fastpair.backends import backend_module, choose_backend
from fastpair.functional import pairwise_distance
from fastpair.losses import options
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype
from fastpair.ops import checks
from fastpair.ops.registration import on_device

__all__ = ["map_at_r", "nearest_neighbors", "recall_and_map", "recall_at_k"]

# Scores held at a time, and queries that they are of; the rest of a tile's memory is a small multiple of it. Every tile
# brings its items into the form that products need, which costs as much as the products with some hundred queries.
TILE_ELEMENTS, TILE_QUERIES = 1 << 22, 1 << 10
NO_CLASS_SHARED = "query_labels must share a class with the gallery, got no query with an item of its own class"


@torch.no_grad()
def nearest_neighbors(
    query: Tensor, gallery: Tensor | None = None, k: int = 1, *, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """The k gallery items closest to each query.

    Args:
        query: (n, d).
        gallery: (m, d). Default: the queries themselves, a query never being its own neighbour.
        k: how many; at most m, or n - 1 without a gallery.
        metric: as in :func:`fastpair.functional.pairwise_distance`.

    Returns:
        Scores (n, k) in float32 (float64 for float64), best first, and gallery indices (n, k), int64. Pairs whose
        score is NaN come last.

    Raises:
        ValueError: if k is not between 1 and the number of items to choose from, or shapes do not fit.
        TypeError: if dtypes do not fit.
    """
    blocks = [(scores, indices) for _, scores, indices in _searched(query, gallery, k, metric)]
    if not blocks:
        return query.new_empty((0, k), dtype=accumulate_dtype(query.dtype)), query.new_empty((0, k), dtype=torch.int64)
    scores, indices = map(torch.cat, zip(*blocks))
    return scores, indices


def _searched(query: Tensor, gallery: Tensor | None, k: int, metric: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where a block of queries begins, and what :func:`nearest_neighbors` returns for it."""
    checks.matrix("query", query)
    if gallery is not None:
        checks.like("gallery", gallery, "query", query)
    options.distance("metric", metric)
    options.integer("k", k)
    items = query if gallery is None else gallery
    available = max(len(items) - int(gallery is None), 0)
    if not (1 <= k <= available or (k >= 1 and len(query) == 0)):
        raise ValueError(f"k must be between 1 and {available}, the items to choose from, got {k}")
    # Rounding the scores to half precision would create ties.
    dtype = accumulate_dtype(query.dtype)
    # No narrower than what is kept of each row from tile to tile.
    columns = min(max(TILE_ELEMENTS // TILE_QUERIES, k), max(len(items), 1))
    for start, rows in _blocks(query.to(dtype), max(TILE_ELEMENTS // columns, 1)):
        yield start, *_closest(rows, items, k, metric, columns, None if gallery is not None else start)


def _blocks(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]


def _closest(query: Tensor, items: Tensor, k: int, metric: str, columns: int, own: int | None) -> tuple[Tensor, Tensor]:
    """:func:`nearest_neighbors` of some rows, over tiles of ``columns`` items.

    ``own``: the index of the first query among the items, each of which is not to find itself; None: they are no items.
    """
    sign = 1 if METRICS[metric].similarity else -1
    # The best so far, in the order of the items: of equal ones the first go before the later.
    best = query.new_empty((len(query), 0))
    indices = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
    for start, tile in _blocks(items, columns):
        closeness = pairwise_distance(query, tile.to(query.dtype), metric).mul_(sign)
        closeness.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if own is not None and -len(query) < own - start < len(tile):
            closeness.diagonal(own - start).fill_(-torch.inf)
        kept = best.shape[1]
        best = torch.cat([best, closeness], 1)
        chosen = _largest(best, min(k, best.shape[1]))
        best = best.gather(1, chosen)
        known = torch.nn.functional.pad(indices, (0, 1)).gather(1, chosen.clamp(max=kept))
        indices = torch.where(chosen < kept, known, chosen + (start - kept))
    best, order = best.sort(dim=1, descending=True, stable=True)
    return best * sign, indices.gather(1, order)


def _largest(values: Tensor, k: int) -> Tensor:
    """Where the k largest values of each row are, in order; of equal ones the first, whichever topk would take."""
    least = values.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    chosen = values >= least
    places = chosen.nonzero()
    if len(places) > len(values) * k:
        torn = chosen.sum(1) > k
        rows, limit = values[torn], least[torn]
        equal = rows == limit
        spare = k - (rows > limit).sum(1, keepdim=True)
        chosen[torn] &= ~equal | (equal.cumsum(1) <= spare)
        places = chosen.nonzero()
    return places[:, 1].view(-1, k)


def _check(query: Tensor, query_labels: Tensor, gallery: Tensor | None, gallery_labels: Tensor | None) -> None:
    checks.matrix("query", query)
    checks.class_labels("query_labels", query_labels, "query", query)
    if (gallery is None) != (gallery_labels is None):
        missing, given = ("gallery", "gallery_labels") if gallery is None else ("gallery_labels", "gallery")
        raise ValueError(f"{missing} must be given with {given}, got None")
    if gallery is not None:
        checks.like("gallery", gallery, "query", query)
        checks.class_labels("gallery_labels", gallery_labels, "gallery", gallery)


def _matches(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    metric: str,
    depth: int = 0,
    whole_class: bool = False,
) -> tuple[Tensor, Tensor]:
    """For the queries that count: whether neighbour r is of the query's class (n', depth); how many items are (n',).

    ``depth``: how many neighbours, if there are as many; ``whole_class``: at least as many as the largest class has."""
    _check(query, query_labels, gallery, gallery_labels)
    item_labels = query_labels if gallery is None else gallery_labels
    classes, counts = item_labels.unique(return_counts=True)
    relevant = torch.zeros_like(query_labels, dtype=torch.int64)
    if len(classes):
        slot = torch.searchsorted(classes, query_labels.to(classes.dtype)).clamp(max=len(classes) - 1)
        relevant = torch.where(classes[slot] == query_labels, counts[slot], 0) - int(gallery is None)
    counted = relevant > 0
    if not counted.any():
        raise ValueError(NO_CLASS_SHARED)
    available = len(item_labels) - int(gallery is None)
    depth = min(max(depth, int(relevant.max()) if whole_class else 0), available)
    # Of the neighbours one byte each is kept.
    match = torch.cat(
        [
            item_labels[indices] == query_labels[start : start + len(indices), None]
            for start, _, indices in _searched(query, gallery, depth, metric)
        ]
    )
    return match[counted], relevant[counted]


@torch.no_grad()
def recall_at_k(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    metric: str = "cosine",
) -> dict[int, float]:
    """Recall@k: the fraction of queries with at least one item of their class among the k nearest.

    Args:
        query, query_labels: (n, d) and integers (n,).
        gallery, gallery_labels: (m, d) and integers (m,). Default: the other queries.
        k: one or several depths >= 1; a depth beyond the gallery means all of it.
        metric: as in :func:`fastpair.functional.pairwise_distance`.

    Returns:
        ``{k: recall}``, recalls from 0 to 1.

    Raises:
        ValueError, TypeError: for arguments that do not fit, or where no query has an item of its class.

    Source: Jegou et al., TPAMI 2011; as used for metric learning by Oh Song et al., CVPR 2016.
    """
    depths = _depths(k)
    _check(query, query_labels, gallery, gallery_labels)
    options.distance("metric", metric)
    if len(query) and choose_backend(query.device.type, dtype=query.dtype, large=True) == "triton":
        with on_device(query):
            rank = backend_module("triton").best_rank(query, query_labels, gallery, gallery_labels, metric)
        rank = rank[rank >= 0]
        if len(rank) == 0:
            raise ValueError(NO_CLASS_SHARED)
        return {depth: (rank < depth).double().mean().item() for depth in depths}
    match, _ = _matches(query, query_labels, gallery, gallery_labels, metric, max(depths))
    return _recalls(match, depths)


def _depths(k: int | Sequence[int]) -> list[int]:
    depths = [k] if isinstance(k, Integral) else list(k) if isinstance(k, Sequence) else []
    if not depths or not all(isinstance(depth, Integral) and depth >= 1 for depth in depths):
        raise ValueError(f"k must be one or several integers >= 1, got {k!r}")
    return depths


def _recalls(match: Tensor, depths: list[int]) -> dict[int, float]:
    return {depth: match[:, :depth].any(1).double().mean().item() for depth in depths}


@torch.no_grad()
def map_at_r(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    metric: str = "cosine",
) -> float:
    """MAP@R: the mean over queries of (1/R) sum_{r <= R} precision@r [neighbour r is of the query's class].

    It lies between 0 and 1. R is the number of items of the query's class in the gallery. Arguments and errors are
    those of :func:`recall_at_k`.

    Source: Musgrave et al., "A metric learning reality check", ECCV 2020 (arXiv 2003.08505), eq. 6.
    """
    return _mean_precision(*_matches(query, query_labels, gallery, gallery_labels, metric, whole_class=True))


@torch.no_grad()
def recall_and_map(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    k: int | Sequence[int] = (1, 2, 4, 8),
    metric: str = "cosine",
) -> tuple[dict[int, float], float]:
    """What :func:`recall_at_k` and :func:`map_at_r` return, from scores that are computed once for both."""
    depths = _depths(k)
    matches = _matches(query, query_labels, gallery, gallery_labels, metric, max(depths), whole_class=True)
    return _recalls(matches[0], depths), _mean_precision(*matches)


def _mean_precision(match: Tensor, relevant: Tensor) -> float:
    """MAP@R, given which neighbours are of the query's class, at least R of them, and R."""
    rank = torch.arange(1, match.shape[1] + 1, device=match.device)
    precisions = []
    for start, hits in _blocks(match, max(TILE_ELEMENTS // len(rank), 1)):
        within = relevant[start : start + len(hits), None]
        hits = hits & (rank <= within)
        precisions.append((hits.cumsum(1) / rank * hits).sum(1) / within[:, 0])
    return torch.cat(precisions).double().mean().item()
