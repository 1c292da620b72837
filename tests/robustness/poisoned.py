"""No output is left unwritten: pytest runs this file with poisoned_allocations.cpp preloaded."""

import ctypes
from functools import partial

import pytest
import torch
from covering import covering
from support import LOSSES, METRICS, cast, value_and_gradients

import fastpair.functional as FP


def test_poison_reaches_tensors_and_scratch():
    assert torch.empty(100).isnan().all()
    before = ctypes.CDLL(None).poisoned_allocations()
    FP.supcon_loss(torch.randn(10, 3), torch.arange(10) // 2)
    assert ctypes.CDLL(None).poisoned_allocations() > before


@covering(loss=LOSSES, n=[0, 1, 2, 65], pattern=["one", "few"], reduction=["mean", "none"])
def test_every_output_is_written(loss, n, pattern, reduction):
    inputs = cast(loss.inputs(max(n, 2), 5, pattern, torch.Generator().manual_seed(n)), torch.float32)
    cut = {"embeddings", "labels", "probabilities"} | ({"ref_emb"} if "labels" not in inputs else set())
    inputs = {k: t[:n] if k in cut else t for k, t in inputs.items()}
    run = partial(loss.fused, reduction=reduction, backend="cpu")
    assert all(t.isfinite().all() for t in value_and_gradients(run, inputs, loss.trained).values())


@pytest.mark.parametrize("metric", METRICS)
def test_every_output_of_pairwise_distance_is_written(metric):
    for n, m in ((1, 1), (129, 3), (3, 0)):
        inputs = {"x": torch.randn(n, 4), "y": torch.randn(m, 4)}
        run = partial(FP.pairwise_distance, metric=metric)
        assert all(t.isfinite().all() for t in value_and_gradients(run, inputs, ("x", "y")).values())
