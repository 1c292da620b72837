"""Retrieval metrics against a brute-force ranking."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from dense import scores
from hypothesis import given, settings
from support import METRICS, class_labels

from fastpair import retrieval


def ranking(query, gallery, metric):
    """Row i: gallery indices from the closest to the farthest, ties by index; leave-one-out without a gallery."""
    closeness = scores(query, query if gallery is None else gallery, metric).numpy()
    if metric not in ("cosine", "dot"):
        closeness = -closeness
    rows = []
    for i, row in enumerate(closeness):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))
        rows.append([j for j in order if gallery is not None or j != i])
    return rows


def brute_force(query, query_labels, gallery, gallery_labels, metric, depths):
    items = (query_labels if gallery is None else gallery_labels).tolist()
    hits, precisions = {k: [] for k in depths}, []
    for i, row in enumerate(ranking(query, gallery, metric)):
        match = [items[j] == query_labels[i].item() for j in row]
        relevant = sum(match)
        if relevant == 0:
            continue
        for k in depths:
            hits[k].append(any(match[:k]))
        precisions.append(sum(sum(match[: r + 1]) / (r + 1) for r in range(relevant) if match[r]) / relevant)
    return {k: float(np.mean(v)) for k, v in hits.items()}, float(np.mean(precisions))


def lattice(n, d, generator):
    """Small integers: scores are exact, and many of them are equal."""
    return torch.randint(-2, 3, (n, d), generator=generator).double()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 40),
    m=st.one_of(st.none(), st.integers(1, 50)),
    d=st.integers(1, 4),
    block=st.integers(1, 200),
    seed=st.integers(0, 10**6),
)
def test_brute_force_with_ties(n, m, d, block, seed):
    metric = "dot"  # distances are taken from a moved origin, where the lattice is no longer exact
    generator = torch.Generator().manual_seed(seed)
    query, query_labels = lattice(n, d, generator), torch.randint(4, (n,), generator=generator)
    gallery = gallery_labels = None
    if m is not None:
        gallery, gallery_labels = lattice(m, d, generator), torch.randint(1, 5, (m,), generator=generator)
    items = query_labels if m is None else gallery_labels
    shared = [(items == label).sum() > (m is None) for label in query_labels]
    if not any(shared):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "TILE_ELEMENTS", block)
        depths = (1, 2, 5, 1000)
        recall = retrieval.recall_at_k(query, query_labels, gallery, gallery_labels, k=depths, metric=metric)
        precision = retrieval.map_at_r(query, query_labels, gallery, gallery_labels, metric=metric)
        both = retrieval.recall_and_map(query, query_labels, gallery, gallery_labels, k=depths, metric=metric)
        k = min(3, n - 1 if m is None else m)
        values, indices = retrieval.nearest_neighbors(query, gallery, k, metric=metric)
    want_recall, want_precision = brute_force(query, query_labels, gallery, gallery_labels, metric, depths)
    assert recall == pytest.approx(want_recall, abs=1e-6)
    assert precision == pytest.approx(want_precision, abs=1e-6)
    assert both[0] == pytest.approx(want_recall, abs=1e-6)
    assert both[1] == pytest.approx(want_precision, abs=1e-6)
    assert indices.tolist() == [row[:k] for row in ranking(query, gallery, metric)]
    want = scores(query, query if m is None else gallery, metric).gather(1, indices)
    torch.testing.assert_close(values, want)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pattern", ["few", "pairs"])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_brute_force(metric, dtype, pattern, leave_one_out, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    query, query_labels = torch.randn(60, 8, generator=generator).double(), class_labels(pattern, 60, generator)
    gallery = gallery_labels = None
    if not leave_one_out:
        gallery, gallery_labels = torch.randn(77, 8, generator=generator).double(), class_labels(pattern, 77, generator)
    want = brute_force(query, query_labels, gallery, gallery_labels, metric, (1, 2, 4, 8))
    narrow = [None if t is None else t.to(dtype) for t in (query, gallery)]
    for block in (77, 78 * 7, 1 << 22):
        monkeypatch.setattr(retrieval, "TILE_ELEMENTS", block)
        arguments = (narrow[0], query_labels, narrow[1], gallery_labels)
        assert retrieval.recall_at_k(*arguments, metric=metric) == pytest.approx(want[0], abs=1e-6)
        assert retrieval.map_at_r(*arguments, metric=metric) == pytest.approx(want[1], abs=1e-6)


def test_duplicates_of_a_query_count():
    """Leaving one out is by index: an equal item elsewhere is a neighbour, at distance zero."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    values, indices = retrieval.nearest_neighbors(x, k=1, metric="euclidean")
    assert values[:4].tolist() == [[0.0]] * 4
    assert indices[:4].tolist() == [[1], [0], [3], [2]]
    assert retrieval.recall_at_k(x, torch.tensor([0, 0, 1, 1, 2]), k=1, metric="euclidean") == {1: 1.0}


def test_a_query_may_be_in_the_gallery():
    x = torch.randn(9, 3)
    values, indices = retrieval.nearest_neighbors(x, x, metric="sqeuclidean")
    assert indices[:, 0].tolist() == list(range(9))
    assert torch.equal(values, torch.zeros(9, 1))


def test_queries_without_an_item_of_their_class_do_not_count():
    query, gallery = torch.eye(3), torch.eye(3)
    labels, gallery_labels = torch.tensor([0, 1, 9]), torch.tensor([0, 7, 1])
    assert retrieval.recall_at_k(query, labels, gallery, gallery_labels, k=(1, 3)) == {1: 0.5, 3: 1.0}


def test_labels_of_different_dtypes():
    query, gallery = torch.eye(3), torch.eye(3)
    labels = torch.tensor([300, 1, 2])
    gallery_labels = torch.tensor([44, 1, 2], dtype=torch.uint8)  # 300 modulo 256 is 44
    assert retrieval.recall_at_k(query, labels, gallery, gallery_labels, k=1) == {1: 1.0}
    assert retrieval.map_at_r(query, labels.int(), gallery, gallery_labels) == 1.0


def test_k_beyond_the_gallery_means_all_of_it():
    x, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert retrieval.recall_at_k(x, labels, k=(5, 6, 10**6)) == {5: 1.0, 6: 1.0, 10**6: 1.0}


def test_perfect_and_worst():
    labels = torch.arange(12) % 3
    x = torch.eye(3)[labels] + 0.01 * torch.randn(12, 3)
    assert retrieval.recall_at_k(x, labels) == {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    assert retrieval.map_at_r(x, labels) == 1.0
    # Every class has one item at each end of a line, others lie nearer.
    line = torch.tensor([[0.0], [1], [2], [10], [11], [12]])
    assert retrieval.map_at_r(line, torch.tensor([0, 1, 2, 0, 1, 2]), metric="euclidean") == 0.0


def test_metrics_leave_no_graph():
    x = torch.randn(6, 3, requires_grad=True)
    values, _ = retrieval.nearest_neighbors(x)
    assert not values.requires_grad
    assert retrieval.recall_at_k(x, torch.arange(6) % 2, k=2).keys() == {2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    labels = torch.arange(12) % 3
    x = (torch.eye(3)[labels] + 0.1 * torch.randn(12, 3)).to(dtype)
    assert retrieval.recall_at_k(x, labels, k=1) == {1: 1.0}


def test_half_precision_embeddings_rank_as_their_float32_values():
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, 32, generator=generator)
    labels = torch.arange(200) // 10
    common = 8 * torch.randn(32, generator=generator)  # cosines close to 1, which bfloat16 could not tell apart
    x = (common + centers[labels] + 0.3 * torch.randn(200, 32, generator=generator)).bfloat16()
    assert retrieval.map_at_r(x, labels) == retrieval.map_at_r(x.float(), labels)
