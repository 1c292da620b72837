"""The same bits from run to run, and every SIMD level, with and without BLAS."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support import cast, error, every_loss, needs_cpu_kernels, value_and_gradients

import fastpair.functional as FP

pytestmark = needs_cpu_kernels


def results(loss, reduction="mean", n=301):
    inputs = cast(loss.inputs(n, 19, "pairs", torch.Generator().manual_seed(0)), torch.float32)
    incoming = torch.linspace(-1, 1, len(inputs[loss.rows])) if reduction == "none" else None
    return value_and_gradients(partial(loss.fused, reduction=reduction), inputs, loss.trained, incoming)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits_from_run_to_run(loss, reduction):
    first = results(loss, reduction)
    for _ in range(2):
        again = results(loss, reduction)
        assert all(torch.equal(again[name], first[name]) for name in first)


@every_loss
def test_number_of_threads(loss, threads):
    threads(1)
    one = results(loss)
    for count in (2, 3):
        threads(count)
        many = results(loss)
        assert max(error(many[name], one[name].double()) for name in one) <= 3e-6  # sums in another order


def test_classes_among_threads(threads):
    """Each has blocks of classes, and a part of the gradient of the embeddings."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(9, 7, generator=generator), torch.randn(5001, 7, generator=generator)
    inputs = {"embeddings": x, "weight": weight, "labels": torch.arange(9) * 500}
    wide, trained = cast(inputs, torch.float64), ("embeddings", "weight")
    want = value_and_gradients(partial(FP.linear_cross_entropy, backend="reference"), wide, trained)
    for count in (2, 3):
        threads(count)
        got = value_and_gradients(FP.linear_cross_entropy, inputs, trained)
        assert max(error(got[name], want[name]) for name in want) <= 3e-6


def test_threads_treat_subnormal_numbers_alike(threads):
    """A thread keeps its own way, of before it was asked for another: which thread takes a part must not matter."""
    threads(2)
    weight = torch.randn(64, 64) * 1e-40
    x, labels = torch.randn(600, 64).requires_grad_(), torch.arange(600) % 64
    FP.linear_cross_entropy(x, weight, labels)  # both threads are there
    torch.set_flush_denormal(True)
    try:
        first, *others = (torch.autograd.grad(FP.linear_cross_entropy(x, weight, labels), x)[0] for _ in range(60))
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(other, first) for other in others)


# Compares with the oracle in a fresh process: the level is chosen when the library is loaded.
CHECK = """
import torch
from allpairspy import AllPairs
from support import LOSSES, METRICS, assert_matches_oracle, cast
from fastpair import _C
import fastpair.functional as FP

print(_C.build_info()["simd_level"], _C.build_info()["has_blas"])
sizes = [(37, torch.float64), (130, torch.float32), (140, torch.bfloat16)]
for loss, (n, dtype), reduction in AllPairs([list(LOSSES.values()), sizes, ["mean", "none"]]):
    inputs = loss.inputs(n, 21, "pairs", torch.Generator().manual_seed(n))
    assert_matches_oracle(loss, cast(inputs, dtype), reduction)
x, y = torch.randn(140, 5), torch.randn(33, 5)
for metric in METRICS:
    got = FP.pairwise_distance(x, y, metric)
    want = FP.pairwise_distance(x.double(), y.double(), metric, backend="reference")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
logits = torch.linspace(-4, 4, 4001)[:, None].requires_grad_()
weight, labels = torch.tensor([[1.0], [0.0]]), torch.zeros(4001, dtype=torch.long)
loss = FP.linear_cross_entropy(logits, weight, labels, reduction="none")
# The exponential itself, to a few roundings: in the matrix of losses its error would hide behind their tolerance.
(grad,) = torch.autograd.grad(loss.sum(), logits)
exact = logits.detach().double()
torch.testing.assert_close(loss.double(), torch.nn.functional.softplus(-exact[:, 0]), rtol=0, atol=7e-7)
torch.testing.assert_close(grad.double(), -torch.sigmoid(-exact), rtol=0, atol=7e-7)
"""


# The other tests are of the highest level, with BLAS.
@pytest.mark.parametrize(("simd", "blas"), [("baseline", "0"), ("avx2", "1"), ("avx512", "0")])
def test_simd_levels_and_products(simd, blas, forks):
    from fastpair import _C

    best = _C.build_info()["simd_level"]
    levels = ["baseline", "avx2", "avx512"]
    if levels.index(simd) > levels.index(best):
        pytest.skip(f"this machine has {best}")
    level, has_blas = forks.run(CHECK, folder=Path(__file__).parent, FASTPAIR_SIMD=simd, FASTPAIR_BLAS=blas).split()
    assert level == simd
    assert has_blas == str(blas == "1" and _C.build_info()["has_blas"])
