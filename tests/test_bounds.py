"""``fastpair.bounds``: every term against its formula, and what is true of them."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support import embeddings

import fastpair.functional as FP
from fastpair import bounds

SETTINGS = {"margin": 0.8, "sigma": 0.2, "alpha": 3.0, "beta": 20.0, "base": 0.4}


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    z = 3 * embeddings(50, 6, generator)
    y = torch.randint(4, (50,), generator=generator)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return z, y, weight, torch.randn(4, generator=generator, dtype=torch.float64)


def test_every_term(data):
    z, y, weight, bias = data
    n, u = len(z), z / z.norm(dim=1, keepdim=True)
    same = [[j for j in range(n) if j != i and y[j] == y[i]] for i in range(n)]
    other = [[j for j in range(n) if y[j] != y[i]] for i in range(n)]
    every = [[j for j in range(n) if j != i] for i in range(n)]
    s = (u @ u.T).tolist()
    d = [[math.dist(a, b) for b in u.tolist()] for a in u.tolist()]

    def mean(term, sets, loss=lambda total: total):
        return math.fsum(loss(math.fsum(term(i, j) for j in sets[i])) for i in range(n)) / n

    centers = torch.stack([z[y == k].mean(0) for k in range(4)])
    logits = z @ weight.T + bias
    counts = torch.bincount(y).tolist()
    want = {
        "contrastive/tightness": mean(lambda i, j: d[i][j] ** 2, same),
        "contrastive/contrast": mean(lambda i, j: max(0.8 - d[i][j], 0) ** 2, other),
        "snca/tightness": -mean(lambda i, j: math.exp(s[i][j] / 0.2), same, math.log),
        "snca/contrast": mean(lambda i, j: math.exp(s[i][j] / 0.2), every, math.log),
        "multi_similarity/tightness": mean(lambda i, j: math.exp(-3 * (s[i][j] - 0.4)), same, math.log1p) / 3,
        "multi_similarity/contrast": mean(lambda i, j: math.exp(20 * (s[i][j] - 0.4)), other, math.log1p) / 20,
        "center/tightness": (z - centers[y]).square().sum().item() / 2 / n,
        "spce/tightness": -(z @ z.T)[y[:, None] == y[None, :]].sum().item() / n**2,
        "ce/tightness": -logits[torch.arange(n), y].mean().item(),
        "ce/contrast": logits.logsumexp(1).mean().item(),
        "entropy": -math.fsum(c / n * math.log(c / n) for c in counts),
        "pce": FP.pce_loss(z, y, logits.softmax(1)).item(),
    }
    want["ce"] = want["ce/tightness"] + want["ce/contrast"]
    want["information"] = want["entropy"] - want["ce"]
    got = bounds.terms(z, y, weight=weight, bias=bias, **SETTINGS)
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-9), key
    assert got.keys() == want.keys() | {"spce", "spce/contrast"}


def test_parts_add_up_to_the_losses(data):
    z, y, weight, bias = data
    got = bounds.terms(z, y, weight=weight, bias=bias, **SETTINGS)
    losses = {
        "contrastive": FP.contrastive_loss(z, y, neg_margin=0.8, power=2),
        "snca": FP.snca_loss(z, y, temperature=0.2),
        "multi_similarity": FP.multi_similarity_loss(z, y, alpha=3.0, beta=20.0, base=0.4),
        "spce": FP.spce_loss(z, y),
        "ce": FP.linear_cross_entropy(z, weight, y, bias),
    }
    for name, loss in losses.items():
        assert got[f"{name}/tightness"] + got[f"{name}/contrast"] == pytest.approx(loss.item(), rel=1e-9)


def test_row_blocks(data, monkeypatch):
    z, y, *_ = data
    whole = bounds.terms(z, y)
    monkeypatch.setattr(bounds, "BLOCK_SCORES", 7 * len(z))
    assert bounds.terms(z, y) == pytest.approx(whole, rel=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(2, 40), classes=st.integers(1, 6), scale=st.floats(0.01, 5), seed=st.integers(0, 10**6))
def test_what_is_always_true(n, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    z, y = embeddings(n, 5, generator), torch.randint(classes, (n,), generator=generator)
    weight = scale * torch.randn(classes, 5, generator=generator, dtype=torch.float64)
    got = bounds.terms(z, y, weight=weight, lam=1.0)
    assert 0 <= got["entropy"] <= math.log(classes) + 1e-12
    assert got["information"] <= got["entropy"]
    # Jensen: a log of a sum is at least the log of the number plus the mean.
    u = z / z.norm(dim=1, keepdim=True)
    positive = (y[:, None] == y[None, :]) & ~torch.eye(n, dtype=torch.bool)
    counts = positive.sum(1)
    some = counts > 0
    means = ((u @ u.T) * positive).sum(1)[some] / counts[some] / 0.1
    jensen = -(counts[some].log() + means).sum() / max(int(some.sum()), 1)
    assert got["snca/tightness"] <= jensen.item() + 1e-9
    assert bounds.info_nce_information(z, z + 0.1) <= math.log(n) + 1e-12


def test_contrastive_tightness_is_that_of_the_centers():
    """Classes of m samples: the distances of all positive pairs are 4m times those to the means, halved."""
    z = torch.nn.functional.normalize(embeddings(24, 5, torch.Generator().manual_seed(1)))
    got = bounds.terms(z, torch.arange(24) % 6)
    assert got["contrastive/tightness"] == pytest.approx(4 * 4 * got["center/tightness"], rel=1e-9)


def test_pce_needs_a_lambda(data):
    z, y, weight, _ = data
    assert "pce" in bounds.terms(z, y, weight=weight)
    assert "pce" not in bounds.terms(z[:6], y[:6], weight=weight)
    assert "pce" in bounds.terms(z[:6], y[:6], weight=weight, lam=0.5)
    assert not {"ce", "pce", "information"} & bounds.terms(z, y).keys()


def test_batches_without_pairs(data):
    z, _, weight, bias = data
    for labels in (torch.zeros(5), torch.arange(5) % 4, torch.zeros(0)):
        rows = z[: len(labels)]
        got = bounds.terms(rows, labels.long(), weight=weight, bias=bias, lam=1.0)
        assert all(math.isfinite(value) for value in got.values())


def test_half_precision(data):
    z, y, weight, bias = data
    got = bounds.terms(z.bfloat16(), y, weight=weight.bfloat16(), bias=bias.bfloat16(), lam=1.0)
    want = bounds.terms(
        z.bfloat16().double(), y, weight=weight.bfloat16().double(), bias=bias.bfloat16().double(), lam=1.0
    )
    assert got == pytest.approx(want, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": torch.ones(3)}, ValueError, "embeddings must"),
        ({"labels": torch.ones(2)}, TypeError, "labels must"),
        ({"sigma": 0.0}, ValueError, "sigma must"),
        ({"base": math.inf}, ValueError, "base must"),
        ({"bias": torch.ones(3)}, ValueError, "weight must be given with bias"),
        ({"weight": torch.ones(3, 3)}, ValueError, "weight must have 4 columns"),
        ({"weight": torch.ones(3, 4), "lam": -1.0}, ValueError, "lam must"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        bounds.terms(**({"embeddings": torch.ones(2, 4), "labels": torch.zeros(2, dtype=torch.long)} | arguments))
