"""Time of other libraries' losses, their own and as ``fastpair.patch`` computes them, on the CPU.

    python -m benchmarks.clients [--json FILE] [--threads N] [--quick]

One row a loss and size: two objects of it, of which one is patched, loss and gradients of all that is learned, and
theirs over fastpair's. Both must agree before they are timed. Beside them are the matrix products alone that neither
can do without: the scores and the gradient of each side that has one. Losses of libraries that are not installed are
left out; requirements/clients.txt has their releases. How times are taken: see :mod:`benchmarks.compare`.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import fastpair
from benchmarks.compare import agree, command_line, environment, record, step, timed

FAST, THEIRS, PRODUCTS = "fastpair", "theirs", "products"


def views(n: int, d: int) -> list[Tensor]:
    """Of unit length, as models give them, the second not far from the first."""
    generator = torch.Generator().manual_seed(n + d)
    x, noise = (torch.randn(n, d, generator=generator) for _ in range(2))
    return [nn.functional.normalize(t).requires_grad_() for t in (x, x + 3 * noise)]


@torch.no_grad()
def products(x: Tensor, y: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    scores = x @ y.T
    return scores @ y, scores.T @ x


def open_clip_losses(quick: bool) -> Iterator[tuple]:
    from open_clip.loss import ClipLoss, SigLipLoss

    scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))
    for n, d in ((64, 512), (256, 512), (1024, 512), (64, 128), (256, 128)):
        yield "SigLipLoss", SigLipLoss(), lambda loss: loss, {"n": n, "d": d}, [*views(n, d), scale, bias], products
    for n, d in ((64, 128), (64, 512)):
        yield "ClipLoss", ClipLoss(), lambda loss: loss, {"n": n, "d": d}, [*views(n, d), scale], products


def lightly_losses(quick: bool) -> Iterator[tuple]:
    from lightly.loss import NTXentLoss

    n, d, bank = 256, 512, 1024 if quick else 65536
    loss = NTXentLoss(temperature=0.1, memory_bank_size=(bank, d))
    references = torch.randn(bank, d)  # which have no gradient
    yield (
        "NTXentLoss",
        loss,
        lambda loss: loss,
        {"n": n, "d": d, "bank": bank},
        views(n, d),
        torch.no_grad()(lambda x, y: (x @ references.T) @ references),
    )


def sentence_losses(quick: bool) -> Iterator[tuple]:
    from sentence_transformers.sentence_transformer.losses import (
        BatchSemiHardTripletLoss,
        MultipleNegativesRankingLoss,
    )

    n, d = 256 if quick else 2048, 768
    loss = MultipleNegativesRankingLoss(nn.Sequential(nn.Identity()))
    yield (
        "MultipleNegativesRankingLoss",
        loss,
        lambda loss: lambda *columns: loss.compute_loss_from_embeddings(list(columns), None),
        {"n": n, "d": d},
        views(n, d),
        products,
    )
    # In larger batches rounding in float32 says which of two negatives is the nearer one, and gradients differ.
    for n, d in ((64, 128), (128, 128), (256, 128), (64, 512), (128, 512), (256, 512))[: 1 if quick else 6]:
        yield (
            "BatchSemiHardTripletLoss",
            BatchSemiHardTripletLoss(nn.Sequential(nn.Identity()), margin=0.2),
            lambda loss: lambda x: loss.compute_loss_from_embeddings([x], torch.arange(len(x)) // 4),
            {"n": n, "d": d},
            views(n, d)[:1],
            torch.no_grad()(lambda x: (x @ x.T) @ x),
        )


# The package of each client, and its losses: their names, an object, what calls it, sizes, arguments that learn, and
# the least products for these.
CLIENTS: dict[str, tuple[str, Callable[[bool], Iterator[tuple]]]] = {
    "open_clip": ("open_clip_torch", open_clip_losses),
    "lightly": ("lightly", lightly_losses),
    "sentence_transformers": ("sentence-transformers", sentence_losses),
}


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    for client, (_, losses) in installed().items():
        for name, loss, call, sizes, arguments, least in losses(quick):
            patched = copy.deepcopy(loss)
            report = fastpair.patch(client, patched)
            if not report.replaced:
                raise SystemExit(f"{name} is not patched: {report}")
            variants = {}
            for variant, of in ((FAST, patched), (THEIRS, loss)):
                own = [x.detach().clone().requires_grad_() for x in arguments]
                variants[variant] = (step(call(of), own), own)
            agree(variants, 1e-4)
            runs = {variant: run for variant, (run, _) in variants.items()}
            yield timed(name, sizes, runs | {PRODUCTS: partial(least, *arguments)}, seconds)


def installed() -> dict[str, tuple[str, Callable]]:
    return {client: of for client, of in CLIENTS.items() if importlib.util.find_spec(client) is not None}


def print_row(row: dict) -> None:
    times = row["milliseconds"]
    print(
        f"{row['work']:66s}{times[THEIRS]:10.2f} ms theirs {times[FAST]:10.2f} ms fastpair"
        f"{times[THEIRS] / times[FAST]:8.2f} : 1 {times[PRODUCTS]:10.2f} ms products",
        flush=True,
    )


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    seconds = 0.2 if options.quick else options.seconds
    releases = {package: importlib.metadata.version(package) for package, _ in installed().values()}
    record({"environment": {**environment(), **releases}}, rows(seconds, options.quick), print_row, options.json)


if __name__ == "__main__":
    main()
