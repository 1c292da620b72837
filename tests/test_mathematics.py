"""Statements of the papers, literal formulas, and invariances."""

import math
from functools import partial

import dense
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from covering import covering
from hypothesis import given, settings
from support import (
    BACKENDS,
    LOSSES,
    REDUCTIONS,
    TOLERANCE,
    batch,
    batch_and_references,
    embeddings,
    error,
    has_reduction,
    soft_assignments,
    value_and_gradients,
)

import fastpair.functional as FP

each_backend = pytest.mark.parametrize("backend", BACKENDS)
exactly = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
PAIR_LOSSES = [name for name in LOSSES if "ref_emb" in LOSSES[name].trained]


@pytest.fixture
def data():
    return soft_assignments(40, 6, "few", torch.Generator().manual_seed(0))


# ---- an independent source for every formula


@covering(
    has_reduction,
    loss=LOSSES,
    reduction=(*REDUCTIONS, "totals"),
    shape=[(9, 4, "few"), (33, 5, "pairs"), (12, 4, "distinct"), (1, 3, "one")],
)
def test_dense_formula(loss, reduction, shape):
    """The reference itself is right, and what kernels compute: it agrees with formulas typed a second time."""
    n, d, pattern = shape
    inputs = loss.inputs(n, d, pattern, torch.Generator().manual_seed(n))
    incoming = torch.randn(loss.shape(inputs, reduction), dtype=torch.float64)
    want = value_and_gradients(partial(loss.dense, reduction=reduction), inputs, loss.trained, incoming)
    for backend in BACKENDS:
        run = partial(loss.fused, reduction=reduction, backend=backend)
        got = value_and_gradients(run, inputs, loss.trained, incoming)
        assert max(error(got[name], want[name]) for name in want) <= TOLERANCE[torch.float64]


@each_backend
def test_literal_double_sums(data, backend):
    z, y, p = data["embeddings"][:9], data["labels"][:9], data["probabilities"][:9]
    n, lam = 9, 0.7
    z_, y_, p_ = z.tolist(), y.tolist(), p.tolist()

    def dot(a, b):
        return math.fsum(s * t for s, t in zip(a, b))

    pairs = math.fsum(dot(z_[i], z_[j]) for i in range(n) for j in range(n) if y_[i] == y_[j])

    def log_sum_exp(i, members, scale):
        return math.log(sum(math.exp(scale * sum(w * dot(z_[i], z_[j]) for j, w in enumerate(m))) for m in members))

    classes = [[float(label == k) for label in y_] for k in sorted(set(y_))]
    spce = -pairs / n**2 + sum(log_sum_exp(i, classes, 1 / n) for i in range(n)) / n
    exactly(FP.spce_loss(z, y, backend=backend).item(), spce)

    soft = [[row[k] for row in p_] for k in range(p.shape[1])]
    centers = [[sum(w * row[a] for w, row in zip(column, z_)) / n for a in range(z.shape[1])] for column in soft]
    pce = -pairs / (2 * lam * n**2) + sum(log_sum_exp(i, soft, 1 / (lam * n)) for i in range(n)) / n
    pce -= sum(dot(c, c) for c in centers) / (2 * lam)
    exactly(FP.pce_loss(z, y, p, lam=lam, backend=backend).item(), pce)


# ---- the bounds


@each_backend
def test_spce_is_a_cross_entropy(data, backend):
    z, y = data["embeddings"], data["labels"]
    theta = torch.stack([z[y == k].sum(0) / len(z) for k in range(3)])
    spce = FP.spce_loss(z, y, backend=backend)
    exactly(spce, FP.linear_cross_entropy(z, theta, y, backend=backend))
    exactly(spce, F.cross_entropy(z @ theta.T, y))


@each_backend
def test_spce_is_one_gradient_step_from_zero(data, backend):
    """Where the classes are equally large, -grad CE(Z, 0) is theta less one vector that all classes share."""
    z, y = data["embeddings"], torch.arange(40) % 4
    zero = torch.zeros(4, 6, dtype=z.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(FP.linear_cross_entropy(z, zero, y, backend=backend), zero)
    exactly(FP.spce_loss(z, y, backend=backend), FP.linear_cross_entropy(z, -gradient, y, backend=backend))


def test_tightness_of_the_pairwise_bound(data):
    z, y = data["embeddings"], data["labels"]
    n, generator = len(z), torch.Generator().manual_seed(1)
    for lam in (0.1, 1.0, 5.0):
        right = -(z @ z.T)[y[:, None] == y[None, :]].sum() / (2 * lam * n**2)

        def left(theta, lam=lam):
            return -(theta[y] * z).sum() / n + lam / 2 * theta.square().sum()

        best = torch.stack([z[y == k].sum(0) / (lam * n) for k in range(3)])
        exactly(left(best), right)
        for scale in (1e-3, 1e-1, 1.0):
            assert left(best + scale * torch.randn(3, 6, generator=generator, dtype=z.dtype)) > right
        # The pairwise term of pce_loss is that bound.
        p = torch.full((n, 1), 1.0, dtype=z.dtype)
        center = z.mean(0)
        rest = (z @ center).mean() / lam - center.square().sum() / (2 * lam)
        exactly(FP.pce_loss(z, y, p, lam=lam), right + rest)


@each_backend
def test_terms_of_pce(data, backend):
    """Second and third term: f2(theta) = (1/n) sum log sum exp - lam/2 |theta|^2 at theta = c / lam."""
    z, y, p = data.values()
    n, lam = len(z), 0.4
    theta = p.T @ z / n / lam
    f2 = (z @ theta.T).logsumexp(1).mean() - lam / 2 * theta.square().sum()
    first = -(z @ z.T)[y[:, None] == y[None, :]].sum() / (2 * lam * n**2)
    exactly(FP.pce_loss(z, y, p, lam=lam, backend=backend), first + f2)


@each_backend
def test_default_lam_is_the_smallest_eigenvalue(data, backend):
    z, y, p = data.values()
    smallest = min(
        torch.linalg.eigvalsh((p[:, k] - p[:, k] ** 2) * z.T @ z / len(z)).min().item() for k in range(p.shape[1])
    )
    assert smallest > 0
    exactly(FP.pce_loss(z, y, p, backend=backend), FP.pce_loss(z, y, p, lam=smallest, backend=backend))
    with pytest.raises(ValueError, match="lam must"):
        FP.pce_loss(z[:6], y[:6], p[:6], backend=backend)
    # One more sample than dimensions is enough.
    assert FP.pce_loss(z[:7], y[:7], p[:7], backend=backend).isfinite()


def test_constants_of_the_gradient(data):
    z, y, p = data.values()
    p.requires_grad_()
    z.requires_grad_()
    for lam in (None, 0.5):
        gradients = torch.autograd.grad(FP.pce_loss(z, y, p, lam=lam), (z, p), allow_unused=True)
        assert gradients[0] is not None
        assert gradients[1] is None


@each_backend
def test_contrastive_tightness_is_the_center_loss(backend):
    """Equal classes of size m: the squared distances of all positive pairs are 2m times those to the class means."""
    z, y = embeddings(24, 5, torch.Generator().manual_seed(2)), torch.arange(24) % 6
    means = torch.stack([z[y == k].mean(0) for k in range(6)])
    settings = {"power": 2, "neg_margin": 0.0, "distance": "euclidean"}
    pairs = FP.contrastive_loss(z, y, **settings, reduction="sum", backend=backend)
    exactly(pairs, 2 * 4 * (z - means[y]).square().sum())


def test_cross_entropy_is_torch(data):
    z, y = data["embeddings"].float(), data["labels"]
    weight, bias = torch.randn(9, 6), torch.randn(9)
    for smoothing in (0.0, 0.3, 1.0):
        for ignored in (-100, 1):
            for reduction in REDUCTIONS:
                kw = {"label_smoothing": smoothing, "ignore_index": ignored, "reduction": reduction}
                want = F.cross_entropy(F.linear(z, weight, bias), y, **kw)
                torch.testing.assert_close(FP.linear_cross_entropy(z, weight, y, bias, **kw), want)


# ---- invariances

PAIR_AND_BATCH = [name for name in LOSSES if LOSSES[name].inputs in (batch, batch_and_references)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(PAIR_AND_BATCH),
    n=st.integers(1, 70),
    d=st.integers(1, 9),
    pattern=st.sampled_from(["one", "few", "pairs", "distinct"]),
    seed=st.integers(0, 10**6),
)
def test_rotations_permutations_and_names(name, n, d, pattern, seed):
    loss, generator = LOSSES[name], torch.Generator().manual_seed(seed)
    inputs = loss.inputs(n, d, pattern, generator)
    plain = value_and_gradients(loss.fused, inputs, loss.trained)

    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    turned = {k: t @ rotation if k in loss.trained else t for k, t in inputs.items()}
    rotated = value_and_gradients(loss.fused, turned, loss.trained)

    order = torch.randperm(n, generator=generator)
    moved = inputs | {"embeddings": inputs["embeddings"][order], "labels": inputs["labels"][order]}
    permuted = value_and_gradients(loss.fused, moved, loss.trained)
    per_row = partial(loss.fused, reduction="none")
    assert error(per_row(**moved), per_row(**inputs)[order]) <= 1e-9

    names = torch.randperm(10 * n + 50, generator=generator) - 5 * n
    renamed = {k: names[t] if "labels" in k else t for k, t in inputs.items()}
    relabelled = value_and_gradients(loss.fused, renamed, loss.trained)

    for other in (rotated, permuted, relabelled):
        assert error(other["value"], plain["value"]) <= 1e-9
    for key in loss.trained:
        assert error(rotated[key], plain[key] @ rotation) <= 1e-9
        assert error(relabelled[key], plain[key]) <= 1e-9
        moved_back = plain[key][order] if key == "embeddings" else plain[key]
        assert error(permuted[key], moved_back) <= 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([name for name in PAIR_LOSSES if name.startswith("contrastive")]),
    n=st.integers(1, 40),
    cut=st.floats(0, 1),
    reduction=st.sampled_from(["sum", "none"]),
    seed=st.integers(0, 10**6),
)
def test_references_in_two_parts(name, n, cut, reduction, seed):
    loss = LOSSES[name]
    inputs = loss.inputs(n, 4, "few", torch.Generator().manual_seed(seed))
    run = partial(loss.fused, reduction=reduction)
    whole = value_and_gradients(run, inputs, loss.trained)
    at = round(cut * len(inputs["ref_emb"]))
    parts = []
    for part in (slice(None, at), slice(at, None)):
        half = inputs | {"ref_emb": inputs["ref_emb"][part], "ref_labels": inputs["ref_labels"][part]}
        parts.append(value_and_gradients(run, half, loss.trained))
    assert error(parts[0]["value"] + parts[1]["value"], whole["value"]) <= 1e-9
    assert error(parts[0]["embeddings"] + parts[1]["embeddings"], whole["embeddings"]) <= 1e-9
    assert error(torch.cat([parts[0]["ref_emb"], parts[1]["ref_emb"]]), whole["ref_emb"]) <= 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 30),
    classes=st.integers(1, 300),
    d=st.integers(1, 8),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_renumbered_classes(n, classes, d, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    z, y = embeddings(n, d, generator), torch.randint(classes, (n,), generator=generator)
    run, trained = partial(FP.linear_cross_entropy, label_smoothing=smoothing), ("embeddings", "weight", "bias")
    inputs = {"embeddings": z, "weight": weight, "labels": y, "bias": bias}
    plain = value_and_gradients(run, inputs, trained)
    order = torch.randperm(classes, generator=generator)
    inverse = order.argsort()
    # The same constant on every logit of a row leaves its softmax alone.
    moved = {"embeddings": z, "weight": weight[order], "labels": inverse[y], "bias": bias[order] + 3}
    other = value_and_gradients(run, moved, trained)
    assert error(other["value"], plain["value"]) <= 1e-9
    assert error(other["embeddings"], plain["embeddings"]) <= 1e-9
    assert error(other["weight"], plain["weight"][order]) <= 1e-9
    assert error(other["bias"], plain["bias"][order]) <= 1e-9


def test_reductions_agree(data):
    z, y, p = data.values()
    weight = torch.randn(3, 6, dtype=z.dtype)
    runs = {
        "contrastive p2": partial(FP.contrastive_loss, z, y, power=2),
        "cross-entropy": partial(FP.linear_cross_entropy, z, weight, y),
        "spce": partial(FP.spce_loss, z, y),
        "pce": partial(FP.pce_loss, z, y, p, lam=0.3),
    }
    for run in runs.values():
        per_row = run(reduction="none")
        assert per_row.shape == (40,)
        exactly(run(reduction="sum"), per_row.sum())
        exactly(run(reduction="mean"), per_row.mean())
    per_row = FP.contrastive_loss(z, y, reduction="none")
    exactly(FP.contrastive_loss(z, y, reduction="sum"), per_row.sum())
    exactly(FP.contrastive_loss(z, y, reduction="none"), dense.contrastive_loss(z, y, reduction="none"))
