"""The matrix of scores, its gradients to both sides, and the module."""

import dense
import pytest
import torch
from covering import covering
from support import DTYPES, METRICS, TOLERANCE, embeddings, error, needs_cpu_kernels

import fastpair
import fastpair.functional as FP

pytestmark = needs_cpu_kernels
every_metric = pytest.mark.parametrize("metric", METRICS)


def distance_and_gradients(run, x, y, incoming):
    leaves = [t.detach().requires_grad_() for t in (x, y) if t is not None]
    out = run(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, incoming.to(out.dtype))


def assert_accurate(x, y, metric, incoming):
    def reference(*sides):
        return FP.pairwise_distance(*sides, metric=metric, backend="reference")

    def cpu(*sides):
        return FP.pairwise_distance(*sides, metric=metric, backend="cpu")

    def plain(*sides):
        return dense.pairwise_distance(*sides, metric=metric)

    got = distance_and_gradients(cpu, x, y, incoming)
    wide = [None if t is None else t.double() for t in (x, y, incoming)]
    want = distance_and_gradients(reference, *wide)
    yardstick = got if x.dtype in TOLERANCE else distance_and_gradients(plain, x, y, incoming)
    for g, w, p in zip(got, want, yardstick):
        assert g.dtype == x.dtype
        if x.dtype in TOLERANCE:
            tolerance = TOLERANCE[x.dtype]
        else:
            tolerance = torch.finfo(x.dtype).eps
            if p.isfinite().all():
                tolerance = max(tolerance, 2 * error(p, w, floor=0.1))
        # In one dimension the gradient of a cosine cancels to zero.
        assert error(g, w, floor=0.1) <= tolerance


@covering(
    shape=[(1, 1, 1), (2, 3, 5), (63, 65, 7), (129, 127, 33), (128, 1, 64), (1, 257, 9), (300, 290, 3)],
    metric=METRICS,
    dtype=DTYPES,
)
def test_two_sides(shape, metric, dtype):
    n, m, d = shape
    generator = torch.Generator().manual_seed(n)
    x, y = embeddings(n, d, generator).to(dtype), embeddings(m, d, generator).to(dtype)
    assert_accurate(x, y, metric, torch.randn(n, m, generator=generator).to(dtype))


@covering(metric=METRICS, shape=[(1, 4), (2, 1), (65, 12), (130, 31)], dtype=DTYPES)
def test_one_side(metric, shape, dtype):
    n, d = shape
    generator = torch.Generator().manual_seed(n)
    x = embeddings(n, d, generator).to(dtype)
    assert_accurate(x, None, metric, torch.randn(n, n, generator=generator).to(dtype))


@every_metric
def test_layouts_and_incoming_gradients(metric):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 40, generator=generator).T[::2]
    y = torch.randn(33, 26, generator=generator)[:, 1::2][:, :12]
    weights = torch.randn(33, 20, generator=generator)
    for incoming in (weights.T, torch.tensor(0.5).expand(20, 33), weights.T.flip(0)):
        assert_accurate(x, y, metric, incoming)
    expanded = FP.pairwise_distance(x, y[:1].expand(33, 12), metric)
    torch.testing.assert_close(expanded, FP.pairwise_distance(x, y[:1].repeat(33, 1), metric), rtol=1e-6, atol=1e-6)


@covering(metric=METRICS, sides=[(0, 3), (3, 0), (0, 0), (0, None)], backend=["cpu", "reference"])
def test_empty_sides(metric, sides, backend):
    n, m = sides
    leaves = [torch.ones(size, 4, requires_grad=True) for size in (n, m) if size is not None]
    out = FP.pairwise_distance(*leaves, metric=metric, backend=backend)
    assert out.shape == (n, n if m is None else m)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves)):
        assert torch.equal(grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_edges(backend):
    """Zero distances and zero rows: exact values, gradients of zero."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    distance = FP.pairwise_distance(x, metric="euclidean", backend=backend)
    assert distance.tolist() == [[0, 5, 0], [5, 0, 5], [0, 5, 0]]
    (grad,) = torch.autograd.grad(distance[0, 2] + distance[1, 1], x)
    assert torch.equal(grad, torch.zeros_like(x))
    cosine = FP.pairwise_distance(x, metric="cosine", backend=backend)
    torch.testing.assert_close(cosine, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1]]))
    (grad,) = torch.autograd.grad(cosine[1].sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


def test_squared_distances_are_never_negative():
    x = torch.randn(200, 64) * 1e-3 + 5
    assert (FP.pairwise_distance(x, metric="sqeuclidean") >= 0).all()


@every_metric
def test_literal_formula(metric):
    x, y = embeddings(9, 5, torch.Generator().manual_seed(2)), embeddings(4, 5, torch.Generator().manual_seed(3))
    for backend in ("cpu", "reference"):
        got = FP.pairwise_distance(x, y, metric, backend=backend)
        torch.testing.assert_close(got, dense.pairwise_distance(x, y, metric), rtol=1e-12, atol=1e-12)


def test_only_what_asks_gets_a_gradient():
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    for left, right in ((x, y.detach()), (x.detach(), y)):
        both = torch.autograd.grad(FP.pairwise_distance(x, y).sum(), [x, y])
        FP.pairwise_distance(left, right).sum().backward()
        for leaf, want in zip((x, y), both):
            assert leaf.grad is None or torch.equal(leaf.grad, want)
        assert (x.grad is None) == (not left.requires_grad)
        assert (y.grad is None) == (not right.requires_grad)
        x.grad = y.grad = None


@every_metric
def test_module(metric):
    module = fastpair.distance.PairwiseDistance(metric)
    x, y = torch.randn(5, 3), torch.randn(4, 3)
    assert torch.equal(module(x, y), FP.pairwise_distance(x, y, metric))
    assert torch.equal(module(x), FP.pairwise_distance(x, metric=metric))
    assert metric in repr(module)


def test_dtypes_are_kept():
    for dtype in DTYPES.values():
        assert FP.pairwise_distance(torch.ones(2, 2, dtype=dtype)).dtype == dtype
