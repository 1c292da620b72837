"""Losses that users write: values and gradients against formulas typed here in PyTorch, errors, and the compiler's cache."""

import copy
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

import fastpair
from fastpair import functional
from fastpair.backends import added, cpu_extension
from fastpair.formulas import (
    constant,
    exp,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    softplus,
    sqrt,
    square,
    step,
    tanh,
    where,
)
from fastpair.losses import CrossBatchMemory, CustomPairLoss

needs_compiler = pytest.mark.skipif(cpu_extension is None, reason="fastpair is built without its CPU kernels")


def multi_similarity(**settings):
    return CustomPairLoss(
        positive=lambda s, p: -p.alpha * (s - p.base),
        negative=lambda s, p: p.beta * (s - p.base),
        anchor=lambda P, N, p: softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta,
        **{"alpha": 2.0, "beta": 50.0, "base": 0.5, **settings},
    )


def circle(**settings):
    return CustomPairLoss(
        positive=lambda s, p: -p.gamma * constant(relu(1 + p.m - s)) * (s - 1 + p.m),
        negative=lambda s, p: p.gamma * constant(relu(s + p.m)) * (s - p.m),
        anchor=lambda P, N, p: softplus(P.lse + N.lse),
        needs=("positives", "negatives"),
        **{"gamma": 80.0, "m": 0.4, **settings},
    )


def contrastive(**settings):
    return CustomPairLoss(
        positive=lambda s, p: relu(p.pos_margin - s),
        negative=lambda s, p: relu(s - p.neg_margin),
        anchor=lambda P, N, p: (P.sum, N.sum),
        count=lambda P, N, p: (P.nonzero, N.nonzero),
        **{"pos_margin": 1.0, "neg_margin": 0.2, **settings},
    )


# As users write them, and as the package has them.
SAME = {
    "multi_similarity": (multi_similarity, functional.multi_similarity_loss),
    "circle": (circle, functional.circle_loss),
    "contrastive": (
        contrastive,
        lambda *args, **of: functional.contrastive_loss(*args, pos_margin=1.0, neg_margin=0.2, distance="cosine", **of),
    ),
}

# Every function of fastpair.formulas, and the same in PyTorch.
FUNCTIONS = {
    "exp": (lambda s: exp(-s), lambda s: torch.exp(-s)),
    "log": (lambda s: log(s + 1.5), lambda s: torch.log(s + 1.5)),
    "sqrt": (lambda s: sqrt(s + 1.5), lambda s: torch.sqrt(s + 1.5)),
    "abs": (lambda s: abs(s), lambda s: s.abs()),
    "tanh": (lambda s: tanh(2 * s), lambda s: torch.tanh(2 * s)),
    "sigmoid": (lambda s: sigmoid(3 * s), lambda s: torch.sigmoid(3 * s)),
    "softplus": (lambda s: softplus(3 * s), lambda s: torch.nn.functional.softplus(3 * s)),
    "relu": (lambda s: relu(s - 0.1), lambda s: torch.relu(s - 0.1)),
    "square": (square, torch.square),
    "minimum": (lambda s: minimum(s, 0.3 * s), lambda s: torch.minimum(s, 0.3 * s)),
    "maximum": (lambda s: maximum(s, 0.3 * s), lambda s: torch.maximum(s, 0.3 * s)),
    "where": (lambda s: where(s > 0.1, s, -2 * s), lambda s: torch.where(s > 0.1, s, -2 * s)),
    "at_most": (lambda s: where(s <= 0.1, s, -2 * s), lambda s: torch.where(s <= 0.1, s, -2 * s)),
    "step": (lambda s: step(s) * s, lambda s: (s > 0) * s),
    "constant": (lambda s: constant(s) * s, lambda s: s.detach() * s),
    "power": (lambda s: s**3, lambda s: s**3),
    "power_of_five": (lambda s: (s + 2) ** -5, lambda s: (s + 2) ** -5),
    "broken_power": (lambda s: (s + 1.5) ** 2.5, lambda s: (s + 1.5) ** 2.5),
    "exponent": (lambda s: 2**s, lambda s: 2**s),
    "quotient": (lambda s: s / (2 + s), lambda s: s / (2 + s)),
}


def batch(n=48, d=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.randint(0, max(n // 4, 1), (n,), generator=generator)


def with_gradient(loss, x, *arguments, **settings):
    value = loss(x, *arguments, **settings)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    return value, *torch.autograd.grad((value * weights).sum(), x)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "totals"])
@pytest.mark.parametrize("name", SAME)
def test_a_loss_of_the_package_written_again(name, reduction, dtype, backend):
    custom, built_in = SAME[name]
    x, labels = batch(dtype=dtype)
    with fastpair.use_backend(backend):
        value, gradient = with_gradient(custom(reduction=reduction), x, labels)
        expected, of_expected = with_gradient(built_in, x, labels, reduction=reduction)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, of_expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, backend):
    function, in_torch = FUNCTIONS[name]
    loss = CustomPairLoss(
        lambda s, p: function(s), lambda s, p: function(-s), lambda P, N, p: P.mean + function(N.sum / N.pairs)
    )
    for dtype in (torch.float64, torch.float32):
        x, labels = batch(dtype=dtype)
        labels[:2] = 100  # every anchor has negatives, some have no positive
        labels[2] = 101
        with fastpair.use_backend(backend):
            value, gradient = with_gradient(loss, x, labels)
        unit = torch.nn.functional.normalize(x)
        s, same = unit @ unit.T, labels[:, None] == labels
        positive, negative = same & ~torch.eye(len(x), dtype=torch.bool), ~same
        mean = torch.where(positive, in_torch(s), 0).sum(1) / positive.sum(1).clamp(min=1)
        others = torch.where(negative, in_torch(-s), 0).sum(1) / negative.sum(1)
        counted = positive.any(1)
        expected = (mean + in_torch(others))[counted].sum() / counted.sum()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, *torch.autograd.grad(expected, x))


def test_references_lists_and_memory():
    x, labels = batch()
    y, ref_labels = batch(70, seed=1)
    loss, built_in = multi_similarity(), fastpair.losses.MultiSimilarityLoss()
    pairs = tuple(torch.tensor(rows) for rows in ((0, 1, 2), (3, 4, 5), (6, 7, 0), (9, 8, 7)))
    for arguments in ({"ref_emb": y, "ref_labels": ref_labels}, {"indices_tuple": pairs}):
        torch.testing.assert_close(loss(x, labels, **arguments), built_in(x, labels, **arguments))
    memories = [CrossBatchMemory(one, embedding_size=12, memory_size=64).double() for one in (loss, built_in)]
    for _ in range(2):
        one, other = (memory(x, labels) for memory in memories)
        torch.testing.assert_close(one, other)


def test_blocks_of_rows(monkeypatch):
    x, labels = batch()
    loss = multi_similarity()
    with fastpair.use_backend("reference"):
        whole, of_whole = with_gradient(loss, x, labels)
        monkeypatch.setattr("fastpair.backends.dense.BLOCK_SCORES", 7 * len(x))
        value, gradient = with_gradient(loss, x, labels)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(gradient, of_whole)


def test_copies_and_repr():
    x, labels = batch()
    loss = multi_similarity(distance="dot")
    shown = repr(loss)
    assert "negative=p.beta * (s - p.base), anchor=softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta" in shown
    assert "beta=50.0" in shown and "distance='dot'" in shown
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(other(x, labels), loss(x, labels)) and repr(other) == shown
    loss.beta = 10.0
    assert torch.equal(loss(x, labels), multi_similarity(distance="dot", beta=10.0)(x, labels))


def test_compiled():
    x, labels = batch()
    loss = multi_similarity()
    value, gradient = with_gradient(loss, x, labels)
    one, other = with_gradient(torch.compile(loss, fullgraph=True), x, labels)
    torch.testing.assert_close((one, other), (value, gradient))


def test_an_empty_batch():
    x, labels = batch(0)
    value, gradient = with_gradient(multi_similarity(), x, labels)
    assert value.item() == 0 and gradient.shape == x.shape


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (lambda s, p: s if s > 0 else -s, "positive cannot be traced: a formula cannot branch on a value: write where"),
        (lambda s, p: torch.exp(s), "torch.exp cannot be in a formula: write the functions of fastpair.formulas"),
        (lambda s, p: __import__("math").exp(s), "write exp, log and so on of fastpair.formulas, not of math"),
        (lambda s, p: p.gamma * s, "the loss has no parameter 'gamma'; it was given alpha"),
        (lambda s, p: "x", "got 'x', which is str"),
        (lambda s, p: torch.ones(2), "which is Tensor"),
        (lambda s, p: s * (s == 0), "got False, which is bool"),
        (lambda s: s, "positive cannot be traced: .* takes 1 positional argument but 2 were given"),
        (3.0, "positive must be a function, got float"),
    ],
)
def test_what_cannot_be_traced(positive, message):
    with pytest.raises(TypeError, match=message):
        CustomPairLoss(positive, lambda s, p: s, lambda P, N, p: P.sum + N.sum, alpha=1.0)


def test_what_kernels_cannot_compute():
    with pytest.raises(ValueError, match="negatives have a sum or a log-sum-exp, not both"):
        CustomPairLoss(lambda s, p: s, lambda s, p: s, lambda P, N, p: P.sum + N.lse + N.sum)
    with pytest.raises(ValueError, match="alpha must be finite"):
        multi_similarity(alpha=float("nan"))
    with pytest.raises(ValueError, match="needs must be one of 'positives', 'negatives', got 'P'"):
        CustomPairLoss(lambda s, p: s, lambda s, p: s, lambda P, N, p: P.sum + N.sum, needs=["P"])


# ---- the compiler and its cache

CALL = textwrap.dedent(
    """
    import sys, time, torch, fastpair
    loss = fastpair.losses.CustomPairLoss(
        lambda s, p: -s, lambda s, p: p.scale * s, lambda P, N, p: P.sum + N.lse, needs=["negatives"], scale=3.0
    )
    x, labels = torch.ones(4, 2), torch.arange(4) // 2
    fastpair.functional.supcon_loss(x, labels)
    start = time.perf_counter()
    value = loss(x, labels)
    print(value.item(), time.perf_counter() - start)
    """
)


def call(cache: Path, **environment) -> subprocess.Popen:
    environment = {**os.environ, "FASTPAIR_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", CALL], env=environment, **pipes)


def finished(process: subprocess.Popen) -> tuple[float, float, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return *map(float, output.split()), errors


@needs_compiler
def test_processes_share_what_one_has_compiled(tmp_path):
    cache = tmp_path / "cache"
    together = [finished(process) for process in [call(cache), call(cache)]]
    (library,) = cache.iterdir()
    assert library.suffix == ".so" and stat.S_IMODE(cache.stat().st_mode) == 0o700
    made = library.stat().st_mtime_ns
    value, seconds, errors = finished(call(cache))
    assert library.stat().st_mtime_ns == made and not errors
    assert {value} == {one for one, *_ in together}
    assert seconds < 0.5  # compiling takes more


@needs_compiler
def test_without_a_compiler_the_loss_is_dense_and_says_so(tmp_path):
    value, _, errors = finished(call(tmp_path / "one"))
    for compiler in ("no-such-compiler", "false"):
        dense, _, warned = finished(call(tmp_path / "none", CXX=compiler))
        assert abs(dense - value) < 1e-5
        assert warned.count("RuntimeWarning") == 1 and f"cannot be compiled with {compiler}" in warned
    assert not errors


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    finished(call(cache))
    assert not list(cache.iterdir())


@needs_compiler
def test_another_formula_is_another_library():
    one, other = (CustomPairLoss(lambda s, p: k * s, lambda s, p: s, lambda P, N, p: P.sum + N.sum) for k in (1, 2))
    assert one.formula.name != other.formula.name
    assert added.library(one.formula) != added.library(other.formula)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, labels = batch()
        torch.testing.assert_close(one(-x, labels), one(x, labels))
