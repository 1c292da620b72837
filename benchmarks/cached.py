"""Training steps of examples/train_dml.py with the whole batch in the network at once, and by chunks, on the CPU.

    python -m benchmarks.cached [--json FILE] [--threads N] [--seconds S] [--quick]

A step is augmentation, network, SupCon, gradients and optimizer on glyphs; medians of interleaved rounds. Batch norms
keep their statistics, so that all variants have one loss, which is looked at before they are timed. Memory: the peak of
the resident set over that before the first step, in a process of its own, with all that the network needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from benchmarks.compare import ROOT, command_line, environment, extra_peak, medians, memory_apart, record, work
from benchmarks.end_to_end import EMBEDDING_SIZE, stepper

sys.path.insert(0, str(ROOT / "examples"))
from fastpair_dml.data import DATASETS
from fastpair_dml.processes import Processes
from fastpair_dml.settings import make_settings
from fastpair_dml.trainer import Trainer

BATCHES, CHUNKS = (512, 2048), (512, 128, 32)
WHOLE = "whole batch"


def trainer_of(variant: str, n: int) -> Trainer:
    chunk = None if variant == WHOLE else int(variant.split()[-1])
    given = {"batch_size": n, "chunk": chunk, "embedding_size": EMBEDDING_SIZE, "freeze_batch_norm": True}
    settings = make_settings("glyphs", given)
    trainer = Trainer("supcon", 0, settings, DATASETS[settings.dataset](None), torch.device("cpu"), Processes())
    trainer.network.train()
    return trainer


def time_steps(variants: list[str], n: int, seconds: float) -> dict[str, float]:
    trainers = {variant: trainer_of(variant, n) for variant in variants}
    losses = [trainer.train_step(*next(trainer.batches())).item() for trainer in trainers.values()]
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise SystemExit(f"the losses of {', '.join(variants)} are {losses}: not timed")
    return medians({variant: stepper(trainer) for variant, trainer in trainers.items()}, seconds)


def peak_memory(variant: str, n: int) -> float:
    """MiB above the resident set before the first step. To be run in a fresh process."""
    stepper(trainer_of(variant, 16))()
    run = stepper(trainer_of(variant, n))
    return extra_peak(lambda: [run() for _ in range(3)])


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    for n in (64,) if quick else BATCHES:
        variants = [WHOLE, *(f"chunks of {chunk}" for chunk in CHUNKS if chunk < n)]
        memory = {variant: memory_apart("cached", variant, n) for variant in variants}
        times = time_steps(variants, n, seconds)
        yield {
            **work("training step supcon", {"n": n, "d": EMBEDDING_SIZE}),
            "milliseconds": {variant: 1e3 * t for variant, t in times.items()},
            "step_mebibytes": memory,
        }


def print_row(row: dict) -> None:
    print(row["work"])
    for variant, milliseconds in row["milliseconds"].items():
        print(f"    {variant:26s}{milliseconds:8.0f} ms {row['step_mebibytes'][variant]:8.0f} MiB", flush=True)


def main() -> None:
    options = command_line(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        variant, n = options.memory_of
        print(peak_memory(variant, int(n)))
        return
    measured = rows(0.2 if options.quick else options.seconds, options.quick)
    record({"environment": environment()}, measured, print_row, options.json)


if __name__ == "__main__":
    main()
