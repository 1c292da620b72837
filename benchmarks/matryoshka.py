"""Time and memory of losses of the first columns of embeddings, on the CPU: all prefixes in one sweep, as a loop over
prefixes, and the loss of all columns alone.

    python -m benchmarks.matryoshka [--json FILE] [--threads N] [--quick]

How times and memory are taken: see :mod:`benchmarks.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.compare import (
    agree,
    command_line,
    embeddings,
    environment,
    extra_peak,
    memory_apart,
    print_row,
    product,
    record,
    step,
    timed,
)
from fastpair.losses import InfoNCELoss, MatryoshkaLoss, MultiSimilarityLoss, SupConLoss

D = 768
DIMS = (64, 128, 256, 512, D)
LOSSES = {"supcon": SupConLoss(), "info_nce": InfoNCELoss(), "multi_similarity": MultiSimilarityLoss()}


def inputs(name: str, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """What requires a gradient, and the rest."""
    x, labels = embeddings(n, D)
    if name == "info_nce":
        return [x.requires_grad_(), (x.detach() + torch.randn(n, D)).requires_grad_()], []
    return [x.requires_grad_()], [labels]


def variants(name: str) -> dict[str, Callable]:
    loss = LOSSES[name]
    matryoshka = MatryoshkaLoss(loss, DIMS)
    return {"one loss": loss, "one sweep": matryoshka, "a loop": partial(matryoshka.summed, loss)}


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    for n in (128,) if quick else (128, 1024, 4096):
        for name in LOSSES:
            parameters, rest = inputs(name, n)
            of = variants(name)
            runs = {variant: step(loss, parameters, *rest) for variant, loss in of.items()}
            agree({variant: (runs[variant], parameters) for variant in ("one sweep", "a loop")}, 1e-4)
            by_product = {"product": partial(product, parameters[0].detach(), parameters[-1].detach())}
            times = timed(name, {"n": n, "d": D}, {**by_product, **runs}, seconds)
            yield times | {"extra_mebibytes": {k: memory_apart("matryoshka", name, k, n) for k in of}}


def peak_memory(name: str, variant: str, n: int) -> float:
    """MiB above the resident set before the call, without the gradients. To be run in a fresh process."""
    loss = variants(name)[variant]
    small, small_rest = inputs(name, 64)
    step(loss, small, *small_rest)()
    parameters, rest = inputs(name, n)
    return extra_peak(step(loss, parameters, *rest)) - sum(p.numel() for p in parameters) * 4 / 2**20


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        name, variant, n = options.memory_of
        print(peak_memory(name, variant, int(n)))
        return
    seconds = 0.2 if options.quick else options.seconds
    record({"environment": environment()}, rows(seconds, options.quick), print_row, options.json)


if __name__ == "__main__":
    main()
