"""Time of pair losses by what says which pairs there are and by what is known of a sample, on the CPU.

    python -m benchmarks.relations [--json FILE] [--threads N] [--quick]

All are to be compared with single labels, in the order of a row. How times are taken: see :mod:`benchmarks.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import fastpair.functional as FP
from benchmarks.compare import (
    command_line,
    embeddings,
    environment,
    print_row,
    product,
    record,
    step,
    timed,
)
from fastpair.formulas import softplus
from fastpair.losses import CustomPairLoss

LOSSES = {name: getattr(FP, f"{name}_loss") for name in ("supcon", "multi_similarity", "contrastive")}


def relations(n: int) -> dict[str, dict]:
    """What a batch of n may know beside its labels: few and many equal ids, and 80 labels in sparse and denser sets."""
    generator = torch.Generator().manual_seed(n)
    _, labels = embeddings(n)
    few, many = (torch.randint(n * of // 2, (n,), generator=generator) for of in (4, 1))
    sparse, denser = (torch.rand(n, 80, generator=generator) < share for share in (0.03, 0.1))
    return {
        "labels": {"labels": labels},
        "few equal ids": {"labels": labels, "ids": few},
        "many equal ids": {"labels": labels, "ids": many},
        "sparse sets of 80 labels": {"labels": sparse},
        "denser sets of 80 labels": {"labels": denser},
        "weights": {"labels": labels, "weights": torch.rand(n, generator=generator)},
    }


def scaled(scale: float | nn.Parameter) -> CustomPairLoss:
    """SupCon, as users write it."""
    return CustomPairLoss(
        lambda s, p: p.scale * s,
        lambda s, p: p.scale * s,
        lambda P, N, p: P.lse + softplus(N.lse - P.lse) - P.mean,
        scale=scale,
    )


def with_scale(loss: CustomPairLoss, x: Tensor, scale: Tensor, labels: Tensor) -> Tensor:
    """``scale`` is that of the loss, an argument so that its gradient is wanted."""
    return loss(x, labels)


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    n = 256 if quick else 4096
    for d in (64,) if quick else (128, 512):
        x = embeddings(n, d)[0]
        by_product = {"product": partial(product, x, x)}
        x = x.clone().requires_grad_()
        for name, loss in LOSSES.items():
            runs = {of: step(partial(loss, **given), [x]) for of, given in relations(n).items()}
            yield timed(name, {"n": n, "d": d}, {**by_product, **runs}, seconds)
        labels, bias = embeddings(n)[1], torch.rand(n)
        scale = nn.Parameter(torch.tensor(10.0))
        runs = {
            "a number": step(scaled(10.0), [x], labels),
            "a scale that learns": step(partial(with_scale, scaled(scale)), [x, scale], labels),
            "ref_bias": step(partial(FP.supcon_loss, ref_bias=bias), [x], labels),
            "ignore_above": step(partial(FP.supcon_loss, ignore_above=0.1), [x], labels),
        }
        yield timed("supcon as a formula", {"n": n, "d": d}, {**by_product, **runs}, seconds)


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    seconds = 0.2 if options.quick else options.seconds
    record({"environment": environment()}, rows(seconds, options.quick), print_row, options.json)


if __name__ == "__main__":
    main()
