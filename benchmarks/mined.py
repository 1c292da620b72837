"""Time and memory of pair losses over the lists that miners make, on the CPU.

    python -m benchmarks.mined [--json FILE] [--threads N] [--quick]

``fastpair`` is the kernel, ``plain PyTorch`` is backend="reference", which takes the rows of every pair or the matrix
of all scores. The miners are those of pytorch-metric-learning, and not in the times. How times are taken: see
:mod:`benchmarks.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor

import fastpair.functional as FP
from benchmarks.compare import (
    checked_steps,
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

MINERS = {
    "hardest": miners.BatchHardMiner(),
    "multi-similarity": miners.MultiSimilarityMiner(),
    "triplets": miners.TripletMarginMiner(margin=10),  # more than distances of unit vectors: all of them
}
LOSSES = {
    "supcon": (FP.supcon_loss, losses.SupConLoss()),
    "multi_similarity": (FP.multi_similarity_loss, losses.MultiSimilarityLoss()),
    "contrastive": (FP.contrastive_loss, losses.ContrastiveLoss()),
    "triplet_margin": (FP.triplet_margin_loss, losses.TripletMarginLoss()),
}


@cache
def mined(miner: str, n: int, d: int) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return MINERS[miner](*embeddings(n, d))


def variants(loss: str, miner: str, n: int, d: int) -> dict[str, Callable]:
    ours, theirs = LOSSES[loss]
    lists, (_, labels) = mined(miner, n, d), embeddings(n, d)
    return {
        "fastpair": partial(ours, labels=None, indices_tuple=lists),
        "plain PyTorch": partial(ours, labels=None, indices_tuple=lists, backend="reference"),
        "pytorch-metric-learning": partial(theirs, labels=labels, indices_tuple=lists),
    }


def peak_memory(loss: str, miner: str, variant: str, n: int, d: int) -> float:
    """MiB above the resident set before the call, without the gradient. To be run in a fresh process."""
    x = embeddings(n, d)[0].requires_grad_()
    run = step(variants(loss, miner, n, d)[variant], [x])
    step(variants(loss, "hardest", 64, d)[variant], [embeddings(64, d)[0].requires_grad_()])()  # libraries and threads
    return extra_peak(run) - x.grad.nbytes / 2**20


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    sizes = [(n, d) for n in ((32,) if quick else (128, 1024)) for d in ((16,) if quick else (128, 512))]
    for miner in MINERS:
        for n, d in sizes:
            if miner == "triplets" and n > 128:
                continue
            x = embeddings(n, d)[0]
            positives, *_, negatives = mined(miner, n, d)[1:]
            for loss in LOSSES:
                # All triplets of a million pairs are too many for lists.
                if loss == "triplet_margin" and miner == "multi-similarity" and n > 128:
                    continue
                compared = variants(loss, miner, n, d)
                runs = {"product": partial(product, x, x), **checked_steps(compared, [x])}
                size = {"n": n, "d": d, "listed": len(positives) + len(negatives)}
                row = timed(f"{loss} {miner}", size, runs, seconds)
                if (n, d) == sizes[-1] or (miner == "triplets" and d == sizes[-1][1]):
                    row["extra_mebibytes"] = {of: memory_apart("mined", loss, miner, of, n, d) for of in compared}
                yield row


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        *of, n, d = options.memory_of
        print(peak_memory(*of, int(n), int(d)))
        return
    seconds = 0.2 if options.quick else options.seconds
    record({"environment": environment()}, rows(seconds, options.quick), print_row, options.json)


if __name__ == "__main__":
    main()
