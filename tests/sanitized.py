"""What the compiler's sanitizers watch: every sweep where tiles, squares and panels end. Run by ``make sanitize-cpu``,
which builds the extension for them; results are compared by the other tests, and here where that takes no time."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support import LOSSES, assert_matches_oracle, cast, every_loss, value_and_gradients

import fastpair.functional as FP
from fastpair import _C

assert "build" in Path(_C.__file__).parts, f"{_C.__file__} is not built for a sanitizer"
# The edges of a tile; of a square, and of the panels of triplets; of the scores that are kept between two sweeps.
SMALL, LARGE = (1, 31, 255, 256, 257), (2047, 2048, 2049, 4095, 4096, 4097)
# One of each kind: sums, means over terms, log-sum-exp, terms with what is given, maxima, classes.
LARGE_LOSSES = (
    "contrastive-euclidean-p2",
    "contrastive-euclidean-refs",
    "supcon-cosine",
    "ntxent-sqeuclidean-refs",
    "triplet_margin-unit_euclidean-hard",
    "info_nce",
    "arcface",
    "linear_cross_entropy-smooth-ignore",
)


@every_loss
@pytest.mark.parametrize("n", SMALL)
def test_small(loss, n):
    inputs = loss.inputs(n, 9, "few", torch.Generator().manual_seed(n))
    assert_matches_oracle(loss, cast(inputs, torch.float32))
    half = cast(inputs, torch.bfloat16)
    value_and_gradients(partial(loss.fused, reduction="none"), half, loss.trained)


@pytest.mark.parametrize("name", LARGE_LOSSES)
@pytest.mark.parametrize("n", LARGE)
def test_large(name, n):
    loss = LOSSES[name]
    inputs = cast(loss.inputs(n, 9, "pairs", torch.Generator().manual_seed(n)), torch.float32)
    found = value_and_gradients(loss.fused, inputs, loss.trained)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("choice", ("all", "semihard", "facenet"))
@pytest.mark.parametrize("n", (*SMALL, *LARGE))
def test_triplets(choice, n):
    x, y = torch.randn(n, 9, requires_grad=True), torch.randn(n + 2, 9, requires_grad=True)
    labels = torch.randint(max(n // 60, 1), (n + 2,))
    for smooth in (False, True) if n < 300 else (False,):
        settings = {"triplets_per_anchor": choice, "smooth_loss": smooth}
        FP.triplet_margin_loss(x, labels[:n], y, labels, **settings).backward()
        FP.triplet_margin_loss(x, labels[:n], **settings).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("share", (0.01, 0.5))
@pytest.mark.parametrize("n", SMALL)
def test_lists(share, n):
    """Gathered rows, and rows of scores; equal rows, which are close; rows that are listed with themselves."""
    x, y = torch.randn(n, 9, requires_grad=True), torch.randn(n + 2, 9).index_fill(0, torch.arange(n // 2), 1)
    chosen = torch.rand(n, n) < share
    i, j = chosen.nonzero(as_tuple=True)
    positive = torch.rand(len(i)) < 0.1
    pairs, triplets = (i[positive], j[positive], i[~positive], j[~positive]), (i, j, j.flip(0))
    for distance in ("euclidean", "cosine"):
        for given in ({}, {"ref_emb": y.detach().requires_grad_()}):
            FP.supcon_loss(x, None, indices_tuple=pairs, distance=distance, **given).backward()
            FP.contrastive_loss(x, None, indices_tuple=triplets, distance=distance, **given).backward()
            for lists in (pairs, triplets):
                for swap in (False, True):
                    settings = {"distance": distance, "swap": swap, "smooth_loss": swap}
                    FP.triplet_margin_loss(x, None, indices_tuple=lists, **settings, **given).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("metric", ("euclidean", "cosine"))
@pytest.mark.parametrize("n", (*SMALL, 2049))
def test_distances(metric, n):
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (torch.randn(m, 9, dtype=dtype, requires_grad=True) for m in (n, n + 1))
        FP.pairwise_distance(x, y, metric).sum().backward()
        assert x.grad.isfinite().all()
