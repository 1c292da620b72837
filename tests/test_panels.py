"""Anchors against so many references that their scores are kept for a panel of anchors at a time."""

from functools import partial

import dense
import pytest
import torch
from custom_losses import multi_similarity
from support import cast, error, needs_cpu_kernels, value_and_gradients

import fastpair
import fastpair.functional as FP
from fastpair import losses

pytestmark = [needs_cpu_kernels, pytest.mark.usefixtures("small_squares")]
N, M, D = 70, 2900, 6  # 64 anchors a panel, and 6
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


@pytest.fixture(scope="module")
def batch() -> dict:
    """Some of the references are close to anchors, and two are anchors."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(rows, D, generator=generator, dtype=torch.float64) for rows in (N, M))
    y[: N // 2] = x[: N // 2] + 1e-7 * y[: N // 2]
    y[N : N + 2] = x[:2]
    labels, ref_labels = (torch.randint(40, (rows,), generator=generator) for rows in (N, M))
    labels[5] = 41  # has no positives
    return {"embeddings": x, "labels": labels, "ref_emb": y, "ref_labels": ref_labels}


def assert_same(run, want, inputs, trained, incoming=None, tolerance=1e-10):
    """``want`` in float64."""
    got = value_and_gradients(run, inputs, trained, incoming)
    incoming = None if incoming is None else incoming.double()
    want = value_and_gradients(want, cast(inputs, torch.float64), trained, incoming)
    for name in want:
        assert error(got[name], want[name]) <= tolerance, name


@pytest.mark.parametrize("trained", [("embeddings",), ("embeddings", "ref_emb")], ids="+".join)
@pytest.mark.parametrize(
    "name, distance",
    [
        ("supcon", "cosine"),
        ("supcon", "sqeuclidean"),
        ("multi_similarity", "cosine"),
        ("snca", "euclidean"),
        ("contrastive", "cosine"),
        ("circle", "cosine"),
    ],
)
def test_losses(name, distance, trained, batch):
    run, want = (partial(getattr(of, f"{name}_loss"), distance=distance) for of in (FP, dense))
    assert_same(run, want, batch, trained)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "totals"])
def test_reductions_and_weights(reduction, dtype, batch):
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items()}
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=dtype)
    incoming = {"none": torch.linspace(0.5, 2, N), "totals": torch.tensor([1.0, 0, 0, 0])}.get(reduction)
    incoming = None if incoming is None else incoming.to(dtype)

    def run(backend):
        def of(embeddings, **others):
            settings = {"reduction": reduction, "weights": weights.to(embeddings.dtype), "backend": backend}
            return FP.supcon_loss(embeddings, **others, **settings)

        return of

    assert_same(run("cpu"), run("reference"), inputs, ("embeddings", "ref_emb"), incoming, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["ntxent", "sincere"])
def test_losses_that_read_the_negatives_first(name, batch):
    """Three passes over a panel. Their triples are too many for a formula of all."""
    run = getattr(FP, f"{name}_loss")
    assert_same(run, partial(run, backend="reference"), batch, ("embeddings", "ref_emb"))


def test_parameters_that_learn(batch):
    """By way of the rows' gradients, which are scaled after the last panel."""
    inputs = batch | {"temperature": torch.tensor(0.3, dtype=torch.float64)}
    trained = ("embeddings", "temperature")
    assert_same(FP.supcon_loss, lambda **given: FP.supcon_loss(**given, backend="reference"), inputs, trained)


def test_prefixes(batch):
    """Whose scores are not kept by panels, however many anchors there are."""
    inputs = {"embeddings": batch["ref_emb"], "labels": batch["ref_labels"], "ref_emb": batch["embeddings"]}
    inputs |= {"ref_labels": batch["labels"]}
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), (2, D))
    assert_same(loss, partial(loss.summed, loss.loss), inputs, ("embeddings", "ref_emb"))


def test_a_loss_of_your_own(batch):
    loss = multi_similarity()

    def run(backend):
        return fastpair.use_backend(backend)(lambda **given: loss(**given))

    assert_same(run("cpu"), run("reference"), batch, ("embeddings", "ref_emb"))
