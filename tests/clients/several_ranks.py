"""What the processes of test_patch_ranks.py run: every loss over two ranks, patched against not patched.

python several_ranks.py RANK FOLDER
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from patched import assert_same
from torch import Tensor

import fastpair

WORLD, N, D = 2, 6, 5


def views(seed: int, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def checks(rank: int) -> Iterator[tuple[str, Callable[[], None]]]:
    for client in (open_clip_losses, lightly_losses, sentence_losses):
        try:
            yield from client(rank)
        except ModuleNotFoundError as error:
            yield f"{client.__name__}: {error}", lambda: None


def open_clip_losses(rank: int) -> Iterator[tuple[str, Callable[[], None]]]:
    from open_clip.loss import ClipLoss, SigLipLoss

    x, y = views(rank)
    t, b = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (4.0, -2.0))
    for gradients in (False, True):
        for local in (False, True):
            loss = ClipLoss(local, gradients, rank=rank, world_size=WORLD)
            yield (
                f"ClipLoss, local_loss={local}, gather_with_grad={gradients}",
                lambda loss=loss: assert_same("open_clip", "ClipLoss.forward", lambda: loss(x, y, t), [x, y, t]),
            )
    for way in ("bidir", "shift", "reduce", "gather"):
        loss = SigLipLoss(rank=rank, world_size=WORLD, dist_impl=way)
        yield f"SigLipLoss, {way}", lambda loss=loss: siglip(loss, x, y, t, b)


def siglip(loss, x: Tensor, y: Tensor, t: Tensor, b: Tensor) -> None:
    """Its own texts are fastpair's, those of the other rank are not."""
    want = torch.autograd.grad(loss(x, y, t, b), (x, y, t, b))
    with fastpair.patch("open_clip") as report:
        before = dict(report.calls.get("SigLipLoss._loss", {}))
        got = torch.autograd.grad(loss(x, y, t, b), (x, y, t, b))
        calls = report.calls["SigLipLoss._loss"]
    torch.testing.assert_close(got, want)
    assert calls[None] == before.get(None, 0) + 1
    assert calls["the texts are those of another rank"] > before.get("the texts are those of another rank", 0)


def lightly_losses(rank: int) -> Iterator[tuple[str, Callable[[], None]]]:
    from lightly.loss import DCLLoss, DCLWLoss, NTXentLoss

    x, y = views(10 + rank)
    for cls in (NTXentLoss, DCLLoss, DCLWLoss):
        loss, title = cls(gather_distributed=True), f"{'DCLLoss' if cls is DCLWLoss else cls.__name__}.forward"
        yield cls.__name__, lambda loss=loss, title=title: assert_same("lightly", title, lambda: loss(x, y), [x, y])
    yield "NTXentLoss with a memory bank", lambda: bank(*views(20 + rank, torch.float32))


def bank(x: Tensor, y: Tensor) -> None:
    """Every rank's rows go into it."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(5)
    loss = NTXentLoss(0.3, (32, D), gather_distributed=True)
    patched = copy.deepcopy(loss)
    want = torch.autograd.grad(loss(x, y), (x, y))
    with fastpair.patch("lightly", patched) as report:
        got = torch.autograd.grad(patched(x, y), (x, y))
    assert report.calls["NTXentLoss.forward"][None] >= 1
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(patched.memory_bank.bank, loss.memory_bank.bank)
    assert int(patched.memory_bank.bank_ptr) == WORLD * N


def sentence_losses(rank: int) -> Iterator[tuple[str, Callable[[], None]]]:
    from sentence_transformers.sentence_transformer import losses

    columns = views(30 + rank) + views(40 + rank)
    symmetric = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    for settings in ({}, {"gather_across_devices": True}, {"gather_across_devices": True, **symmetric}):
        for count in (2, 4):
            name = f"MultipleNegativesRankingLoss, {settings}, {count} columns"
            yield name, lambda of=columns[:count], settings=settings: ranking(losses, of, settings)


def ranking(losses, columns: list[Tensor], settings: dict) -> None:
    model = torch.nn.Sequential(torch.nn.Identity())
    loss = losses.MultipleNegativesRankingLoss(model, **settings)
    title = "MultipleNegativesRankingLoss.compute_loss_from_embeddings"
    assert_same("sentence_transformers", title, lambda: loss.compute_loss_from_embeddings(columns, None), columns)
    cached = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=N, **settings)
    title = "CachedMultipleNegativesRankingLoss.calculate_loss"
    assert_same("sentence_transformers", title, lambda: cached.calculate_loss([[x] for x in columns]), columns)


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    for name, check in checks(rank):
        check()
        print("passed:", name, flush=True)
    dist.barrier()
    # Not the interpreter's way out, on which a thread of gloo that still runs is an abort.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
