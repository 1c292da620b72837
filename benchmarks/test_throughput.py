"""Throughput of every loss, value and gradient, for pytest-benchmark.

    pytest benchmarks/ --benchmark-only [--quick] [-k "supcon and 1024"]

A group is a loss and a size; its variants are fastpair's backends, dense PyTorch, eager and compiled, and other
libraries where they are installed. Value and gradients of a variant are held against the float64 oracle before it is
timed. The samples per second are among the extra information of the JSON (--benchmark-json FILE).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastpair.functional as FP
from benchmarks.compare import DIM, PAIR_LOSSES, classifier, compiled, dense_cross_entropy, embeddings, step
from fastpair.backends import available_backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = [
    name for name in (("cuda", "triton") if DEVICE == "cuda" else ("cpu",)) if available_backends()[name] is None
]  # fmt: skip
RIVALS = ("eager", "compile", "pytorch-metric-learning")
SIZES = (128, 512, 2048)
CLASSES = ((128, 100), (128, 11318), (1024, 11318))


def synchronized(run: Callable) -> Callable:
    def run_to_the_end():
        run()
        torch.cuda.synchronize()

    return run_to_the_end if DEVICE == "cuda" else run


def check(loss: Callable, parameters: list[Tensor], rest: list[Tensor], oracle: Callable) -> None:
    """The values of a loss that is about to be timed are right."""
    step(loss, parameters, *rest)()
    doubles = [p.detach().double().requires_grad_() for p in parameters]
    step(partial(oracle, backend="reference"), doubles, *rest)()
    for got, want in zip(parameters, doubles):
        error = ((got.grad.double() - want.grad).norm() / want.grad.norm()).item()
        assert error <= 1e-4, f"the gradient is off by {error:.2g}: not timed"


def measure(benchmark, loss: Callable, inputs: tuple, trained: int, oracle: Callable) -> None:
    tensors = [t.to(DEVICE) for t in inputs]
    parameters, rest = [t.requires_grad_() for t in tensors[:trained]], tensors[trained:]
    check(loss, parameters, rest, oracle)
    benchmark(synchronized(step(loss, parameters, *rest)))
    if benchmark.stats:
        benchmark.extra_info["samples_per_second"] = len(parameters[0]) / benchmark.stats.stats.median


def batch_size(n: int, smallest: bool, request) -> int:
    """n, or fewer with --quick, where all but the smallest size are skipped."""
    if not request.config.getoption("--quick"):
        return n
    if not smallest:
        pytest.skip("quick: the smallest size alone")
    return 32


@pytest.mark.parametrize("variant", (*OURS, *RIVALS))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_pair_loss(benchmark, name, n, variant, request):
    loss = PAIR_LOSSES[name]
    if request.config.getoption("--quick") and variant == "compile":
        pytest.skip("quick: one compiled loss, below")
    n = batch_size(n, n == SIZES[0], request)
    if variant == "pytorch-metric-learning" and (loss.theirs is None or n > loss.their_most):
        pytest.skip(f"theirs is timed up to n = {loss.their_most}" if loss.theirs else "theirs has no such loss")
    variants = {
        **{backend: partial(loss.fast, backend=backend) for backend in OURS},
        "eager": loss.dense,
        "compile": compiled(loss.dense) if variant == "compile" else None,
        "pytorch-metric-learning": loss.theirs() if variant == "pytorch-metric-learning" else None,
    }
    benchmark.group = f"{name} n={n} d={DIM}"
    measure(benchmark, variants[variant], embeddings(n), 1, loss.fast)


def other_cross_entropies() -> dict[str, Callable]:
    found = {}
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = F.linear_cross_entropy
    if DEVICE == "cuda":  # Triton kernels both
        try:
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            found["liger"] = liger_fused_linear_cross_entropy
        except ImportError:
            pass
        try:
            from cut_cross_entropy import linear_cross_entropy

            found["cut-cross-entropy"] = linear_cross_entropy
        except ImportError:
            pass
    return found


OTHERS = other_cross_entropies()


@pytest.mark.parametrize("variant", (*OURS, "eager", "compile", *OTHERS))
@pytest.mark.parametrize(("n", "classes"), CLASSES)
def test_linear_cross_entropy(benchmark, n, classes, variant, request):
    n = batch_size(n, (n, classes) == CLASSES[0], request)
    variants = {
        **{backend: partial(FP.linear_cross_entropy, backend=backend) for backend in OURS},
        "eager": dense_cross_entropy,
        "compile": compiled(dense_cross_entropy) if variant == "compile" else None,
        **OTHERS,
    }
    benchmark.group = f"linear cross-entropy n={n} K={classes} d={DIM}"
    measure(benchmark, variants[variant], classifier(n, classes), 2, FP.linear_cross_entropy)


@pytest.mark.parametrize("variant", OURS)
@pytest.mark.parametrize("n", SIZES)
def test_spce(benchmark, n, variant, request):
    n = batch_size(n, n == SIZES[0], request)
    benchmark.group = f"spce n={n} d={DIM}"
    x, labels = embeddings(n)
    # Of unit rows: for long ones the class of a sample is certain, and the gradient is but rounding.
    measure(benchmark, partial(FP.spce_loss, backend=variant), (F.normalize(x), labels), 1, FP.spce_loss)
