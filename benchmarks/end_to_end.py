"""Training steps of examples/train_dml.py with fastpair's losses and with pytorch-metric-learning's, on the CPU.

    python -m benchmarks.end_to_end [--json FILE] [--threads N] [--seconds S] [--quick]

A step is augmentation, network, loss, gradients and optimizer on glyphs, 4 images a class; medians of interleaved
rounds. Both losses must agree on the embeddings of the batch before they are timed. The loss's share is the time of the
loss and its gradient by the embeddings, in the same rounds, over that of the step. Memory: the peak of the resident set
over that before the first step, in a process of its own, with all that the network needs.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator

import torch

from benchmarks.compare import (
    ROOT,
    agree,
    command_line,
    environment,
    extra_peak,
    medians,
    memory_apart,
    record,
    step,
    theirs,
    work,
)

sys.path.insert(0, str(ROOT / "examples"))
from fastpair_dml.data import DATASETS, RetrievalData
from fastpair_dml.processes import Processes
from fastpair_dml.settings import make_settings
from fastpair_dml.trainer import Trainer

EMBEDDING_SIZE, BATCHES = 64, (128, 512, 2048)
FAST, THEIRS = "fastpair", "pytorch-metric-learning"
# The losses of the example, and the same with the same settings of pytorch-metric-learning.
LOSSES = {
    "contrastive": theirs("ContrastiveLoss", pos_margin=0.9, neg_margin=0.4),
    "supcon": theirs("SupConLoss"),
    "multi_similarity": theirs("MultiSimilarityLoss", alpha=2, beta=20, base=0.5),
}


@functools.cache
def glyphs() -> RetrievalData:
    return DATASETS["glyphs"](None)


def trainer_of(loss: str, variant: str, n: int) -> Trainer:
    settings = make_settings("glyphs", {"batch_size": n, "embedding_size": EMBEDDING_SIZE})
    trainer = Trainer(loss, 0, settings, glyphs(), torch.device("cpu"), Processes())
    if variant == THEIRS:
        trainer.criterion = LOSSES[loss]()
    trainer.network.train()
    return trainer


def stepper(trainer: Trainer) -> Callable[[], None]:
    """Steps through one epoch after another."""
    batches = itertools.chain.from_iterable(trainer.batches() for _ in itertools.count())
    return lambda: trainer.train_step(*next(batches))


def time_steps(loss: str, n: int, seconds: float) -> dict:
    steps: dict[str, Callable] = {}
    losses: dict[str, tuple[Callable, list[torch.Tensor]]] = {}
    for variant in (FAST, THEIRS):
        trainer = trainer_of(loss, variant, n)
        views, labels = next(trainer.batches())
        embeddings = trainer.choice.prepare(trainer.network(views[0]))
        copies = [embeddings.detach().requires_grad_()]
        losses[variant] = (step(trainer.criterion, copies, labels), copies)
        steps[variant] = stepper(trainer)
    agree(losses, 1e-4)
    alone = {("loss", variant): run for variant, (run, _) in losses.items()}
    times = medians({**steps, **alone}, seconds)
    return {
        "steps_per_second": {variant: 1 / times[variant] for variant in steps},
        "loss_share": {variant: times["loss", variant] / times[variant] for variant in steps},
    }


def peak_memory(loss: str, variant: str, n: int) -> float:
    """MiB above the resident set before the first step. To be run in a fresh process."""
    stepper(trainer_of(loss, variant, 16))()
    run = stepper(trainer_of(loss, variant, n))
    return extra_peak(lambda: [run() for _ in range(3)])


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    for loss in list(LOSSES)[: 1 if quick else None]:
        for n in (32,) if quick else BATCHES:
            alone = (FAST,) if quick else (FAST, THEIRS)
            memory = {variant: memory_apart("end_to_end", loss, variant, n) for variant in alone}
            sizes = {"n": n, "d": EMBEDDING_SIZE}
            yield {
                **work(f"training step {loss}", sizes),
                **time_steps(loss, n, seconds),
                "step_mebibytes": memory,
            }


def print_row(row: dict) -> None:
    print(row["work"])
    for variant, memory in row["step_mebibytes"].items():
        share, per_second = 100 * row["loss_share"][variant], row["steps_per_second"][variant]
        print(f"    {variant:26s}{per_second:8.1f} steps/s, loss {share:4.1f} %, {memory:7.0f} MiB", flush=True)


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        loss, variant, n = options.memory_of
        print(peak_memory(loss, variant, int(n)))
        return
    measured = rows(0.2 if options.quick else options.seconds, options.quick)
    record({"environment": environment()}, measured, print_row, options.json)


if __name__ == "__main__":
    main()
