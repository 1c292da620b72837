"""Time and memory of fastpair's losses against PyTorch and pytorch-metric-learning, on the CPU.

    python -m benchmarks.compare [--json FILE] [--threads N] [--quick] [--only PART ...]

Time: loss and gradient, medians over rounds in which every variant runs for some milliseconds, so that a slow spell of
the machine hits all alike. A unit is the time of the matrix product of the work (X @ X.T or X @ W.T, all in float32) in
the same rounds. Variants that compute the same are compared with each other, loss and gradient, before they are timed.
Memory: the peak of the resident set over that before the call, in a process of its own, without the gradients.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastpair
import fastpair.functional as FP
from fastpair.backends import cpu_extension
from fastpair.backends.dense import evaluated, reduced_pairs
from fastpair.formulas.pair_losses import DEFINITIONS, FORMULAS

ROOT = Path(__file__).parents[1]
DIM = 512
PER_CLASS = 4
ROUND_SECONDS, LONG_ROUND = 0.01, 10.0
LARGEST_PRODUCT = 1 << 30


def cosines(x: Tensor) -> Tensor:
    z = F.normalize(x)
    return z @ z.T


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def dense(name: str, **settings) -> Callable:
    """The formula of a loss on cosines, evaluated on whole matrices in the dtype of the embeddings."""
    of = DEFINITIONS[name]
    formula = evaluated(FORMULAS[of.formulas[0]])
    params = of.params({x.name: x.default for x in of.settings} | settings, similarity=True)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return reduced_pairs(*formula(cosines(x), *masks(labels), *params), reduction="mean")

    return loss


def dense_hard_triplet(x: Tensor, labels: Tensor) -> Tensor:
    s, (positive, negative) = cosines(x), masks(labels)
    d = (2 - 2 * s).clamp(min=1e-12).sqrt()
    farthest = d.masked_fill(~positive, -torch.inf).amax(1)
    nearest = d.masked_fill(~negative, torch.inf).amin(1)
    losses = F.relu(farthest - nearest + 0.05)
    return losses.sum() / (losses > 0).sum().clamp(min=1)


def their_hard_triplet() -> Callable:
    from pytorch_metric_learning import losses, miners

    mine, loss = miners.BatchHardMiner(), losses.TripletMarginLoss()
    return lambda x, labels: loss(x, labels, mine(x, labels))


def theirs(name: str, **settings) -> Callable[[], Callable]:
    """Makes a loss of pytorch-metric-learning, on cosines."""

    def make() -> Callable:
        from pytorch_metric_learning import distances, losses

        return getattr(losses, name)(distance=distances.CosineSimilarity(), **settings)

    return make


@dataclass(frozen=True)
class PairLoss:
    """A loss and its rivals, None where there is none; pytorch-metric-learning's is timed up to n = ``their_most``, all
    up to ``most``."""

    fast: Callable
    dense: Callable
    theirs: Callable[[], Callable] | None = None
    their_most: int = 2048
    most: int = 8192


def defined(name: str, theirs: Callable[[], Callable] | None = None, their_most: int = 2048, **settings) -> PairLoss:
    """A loss that is defined by a formula, on cosines."""
    fast = partial(getattr(FP, f"{name}_loss"), distance="cosine", **settings)
    return PairLoss(fast, dense(name, **settings), theirs, their_most)


WITH_RIVALS = {
    "contrastive": defined(
        "contrastive", theirs("ContrastiveLoss", pos_margin=1, neg_margin=0), pos_margin=1.0, neg_margin=0.0
    ),
    "snca": defined("snca", theirs("NCALoss", softmax_scale=10)),
    "supcon": defined("supcon", theirs("SupConLoss")),
    # Theirs makes a matrix of all positive by all negative pairs: at n = 512 that is 1.6 GB, several times.
    "ntxent": defined("ntxent", theirs("NTXentLoss"), their_most=128),
    "multi_similarity": defined("multi_similarity", theirs("MultiSimilarityLoss")),
    "circle": defined("circle", theirs("CircleLoss")),
    # Among more samples the dense formula, whose distances have lost digits, finds others the hardest.
    "hard_triplet": PairLoss(
        partial(FP.triplet_margin_loss, triplets_per_anchor="hard"), dense_hard_triplet, their_hard_triplet, most=4096
    ),
}
PAIR_LOSSES = {name: defined(name) for name in DEFINITIONS} | WITH_RIVALS
CONTRASTIVE = PAIR_LOSSES["contrastive"]


def dense_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), labels)


def embeddings(n: int, d: int = DIM) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) // PER_CLASS
    return torch.randn(n, d, generator=generator), labels[torch.randperm(n, generator=generator)]


def classifier(n: int, classes: int, d: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = F.normalize(torch.randn(n, d, generator=generator))
    weight = torch.randn(classes, d, generator=generator)
    return x, weight, torch.randint(0, classes, (n,), generator=generator)


def product(x: Tensor, y: Tensor) -> None:
    """The unit: X @ Y.T, in row blocks where the whole would not fit the memory of most machines."""
    for rows in x.split(max(LARGEST_PRODUCT // len(y), 1)):
        rows @ y.T


def step(loss: Callable, parameters: list[Tensor], *rest: Tensor) -> Callable[[], Tensor]:
    """Loss and gradients of the parameters, from None every time."""

    def run() -> Tensor:
        for p in parameters:
            p.grad = None
        value = loss(*parameters, *rest)
        value.backward()
        return value.detach()

    return run


def agree(variants: dict[str, tuple[Callable, list[Tensor]]], tolerance: float) -> None:
    """Loss and gradients of every variant are those of fastpair: a wrong variant is not timed."""
    expected = None
    for name, (run, parameters) in variants.items():
        result = [run().double(), *(p.grad.double() for p in parameters)]
        if expected is None:
            expected = result
        for got, want in zip(result, expected, strict=True):
            error = ((got - want).norm() / want.norm()).item()
            if not error <= tolerance:
                raise SystemExit(f"{name} differs from fastpair by {error:.2g}: not timed")


def medians(runs: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Median seconds of each, over interleaved rounds that take about ``seconds`` together, at least five; two where a
    round takes more than ``LONG_ROUND``.

    In a round each runs for some milliseconds, short works therefore several times in a row, as in a loop.
    """
    calls, round_seconds = {}, 0.0
    for name, run in runs.items():
        run()
        before = time.perf_counter()
        run()
        once = time.perf_counter() - before
        calls[name] = max(1, min(100, round(ROUND_SECONDS / once)))
        round_seconds += calls[name] * once
    least = 2 if round_seconds > LONG_ROUND else 5
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < least or time.perf_counter() - start < seconds:
        for name, run in runs.items():
            before = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - before) / calls[name])
    return {name: statistics.median(t) for name, t in times.items()}


def timed(name: str, sizes: dict[str, int], runs: dict[str, Callable], seconds: float) -> dict:
    return {**work(name, sizes), "milliseconds": {name: 1e3 * t for name, t in medians(runs, seconds).items()}}


def work(name: str, sizes: dict[str, int]) -> dict:
    return {"work": " ".join([name, *(f"{k}={v}" for k, v in sizes.items())]), "name": name, "sizes": sizes}


def checked_steps(losses: dict[str, Callable], parameters: list[Tensor], *rest: Tensor) -> dict[str, Callable]:
    """A step of each loss on its own copy of the parameters, once all are known to agree."""
    variants = {}
    for name, loss in losses.items():
        copies = [p.clone().requires_grad_() for p in parameters]
        variants[name] = (step(loss, copies, *rest), copies)
    agree(variants, 1e-4)
    return {name: run for name, (run, _) in variants.items()}


def compiled(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def pair_losses_at(name: str, n: int, d: int, dense: bool = True) -> tuple[dict[str, Callable], Tensor, Tensor]:
    """The variants that are timed at a size, and the batch. ``dense``: those that hold whole matrices too."""
    loss = PAIR_LOSSES[name]
    losses = {"fastpair": loss.fast}
    if dense:
        losses |= {"eager": loss.dense, "compile": compiled(loss.dense)}
        if loss.theirs and n <= loss.their_most:
            losses["pytorch-metric-learning"] = loss.theirs()
    return losses, *embeddings(n, d)


def time_pair_loss(name: str, seconds: float, quick: bool) -> Iterator[dict]:
    for n in (128, 256) if quick else (128, 512, 1024, 2048, 4096, 8192):
        if n > PAIR_LOSSES[name].most:
            continue
        losses, x, labels = pair_losses_at(name, n, DIM)
        runs = {"product": partial(product, x, x), **checked_steps(losses, [x], labels)}
        yield timed(name, {"n": n, "d": DIM}, runs, seconds)


def time_growth(seconds: float, quick: bool) -> Iterator[dict]:
    """How the cost of SupCon grows with the batch and the dimension, and that of cross-entropy with the classes."""
    for classes in (100, 1000) if quick else (100, 1000, 10_000, 100_000, 1_000_000):
        yield cross_entropy_row(128, classes, 128, seconds)
    # The largest batches come last: with one product they take minutes.
    for n, d in (
        *((1024, d) for d in (() if quick else (32, 64, 128, 256, 1024, 2048))),
        *((n, DIM) for n in ((64, 128) if quick else (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536))),
    ):
        losses, x, labels = pair_losses_at("supcon", n, d, dense=n <= 8192)
        runs = {"product": partial(product, x, x), **checked_steps(losses, [x], labels)}
        yield timed("supcon", {"n": n, "d": d}, runs, seconds)


def time_small(seconds: float, quick: bool) -> Iterator[dict]:
    """Batches as metric learning has them, where what surrounds the products weighs as much as they do."""
    sizes = [(64, 128), (128, DIM)] if quick else [(64, 128), (256, DIM), (512, DIM), (1024, DIM), (2048, DIM)]
    works = [(name, n, d) for n, d in sizes for name in ("supcon", "contrastive")]
    if not quick:
        works += [(name, 128, DIM) for name in WITH_RIVALS]
    for name, n, d in works:
        losses, x, labels = pair_losses_at(name, n, d)
        runs = {"product": partial(product, x, x), **checked_steps(losses, [x], labels)}
        yield timed(name, {"n": n, "d": d}, runs, seconds)
    for n, classes, d in ((128, 100, 128), (128, 1000, 128), *(() if quick else ((1024, 11318, DIM),))):
        yield cross_entropy_row(n, classes, d, seconds)


def cross_entropy_row(n: int, classes: int, d: int, seconds: float) -> dict:
    x, weight, labels = classifier(n, classes, d)
    losses = {
        "fastpair": FP.linear_cross_entropy,
        "eager": dense_cross_entropy,
        "compile": compiled(dense_cross_entropy),
    }
    if hasattr(F, "linear_cross_entropy"):
        losses["F.linear_cross_entropy"] = F.linear_cross_entropy
    runs = {"product": partial(product, x, weight), **checked_steps(losses, [x, weight], labels)}
    return timed("linear_cross_entropy", {"n": n, "K": classes, "d": d}, runs, seconds)


def time_cross_entropy(seconds: float, quick: bool) -> Iterator[dict]:
    sizes = ((64, 1000),) if quick else ((1024, 11318), (128, 11318), (128, 100000))
    for n, classes in sizes:
        yield cross_entropy_row(n, classes, DIM, seconds)


def time_spce(seconds: float, quick: bool) -> Iterator[dict]:
    x, labels = embeddings(256 if quick else 2048)
    runs = {"product": partial(product, x, x)}
    for name, loss in {"spce": FP.spce_loss, "contrastive": CONTRASTIVE.fast}.items():
        runs[name] = step(loss, [x.clone().requires_grad_()], labels)
    yield timed("spce", {"n": len(x), "d": DIM}, runs, seconds)


def time_bfloat16(seconds: float, quick: bool) -> Iterator[dict]:
    for n in (256,) if quick else (512, 1024, 2048, 4096):
        x, labels = embeddings(n)
        half = x.bfloat16()
        runs = {"product": partial(product, x, x), "product bfloat16": partial(product, half, half)}
        for name, loss, data in (
            ("fastpair float32", CONTRASTIVE.fast, x),
            ("fastpair bfloat16", CONTRASTIVE.fast, half),
            ("compile bfloat16", compiled(CONTRASTIVE.dense), half),
        ):
            runs[name] = step(loss, [data.clone().requires_grad_()], labels)
        yield timed("contrastive bfloat16", {"n": n, "d": DIM}, runs, seconds)


# Losses and their inputs by name and variant, for a process of its own.
MEMORY_WORK = {
    **{
        (name, variant): (getattr(loss, attribute), lambda n, d: (embeddings(n, d)[:1], embeddings(n, d)[1:]))
        for name, loss in PAIR_LOSSES.items()
        for variant, attribute in (("fastpair", "fast"), ("eager", "dense"))
    },
    **{
        ("linear_cross_entropy", variant): (loss, lambda n, k, d: (classifier(n, k, d)[:2], classifier(n, k, d)[2:]))
        for variant, loss in (("fastpair", FP.linear_cross_entropy), ("eager", dense_cross_entropy))
    },
}


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"no {field} in /proc/self/status: peak memory is measured on Linux only")


def extra_peak(run: Callable[[], object]) -> float:
    """MiB by which the resident set goes above what it is before ``run``, at its peak."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmRSS")
    run()
    return (status_kib("VmHWM") - before) / 1024


def memory_apart(module: str, *of: object) -> float:
    """What ``python -m benchmarks.MODULE --memory-of OF...`` prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--threads", str(torch.get_num_threads())]
    command += ["--memory-of", *map(str, of)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def peak_memory(name: str, variant: str, *size: int) -> float:
    """MiB above the resident set before the call, without the gradients. To be run in a fresh process."""
    loss, inputs = MEMORY_WORK[name, variant]
    parameters, rest = inputs(*size)
    parameters = [p.requires_grad_() for p in parameters]
    # Libraries, thread pools and their buffers do not count: a small call first.
    small, small_rest = inputs(*(min(s, 64) for s in size))
    step(loss, [p.requires_grad_() for p in small], *small_rest)()
    extra = extra_peak(step(loss, parameters, *rest))
    return extra - sum(p.grad.nbytes for p in parameters) / 2**20


def measure_memory(seconds: float, quick: bool) -> Iterator[dict]:
    pair, linear = "supcon", "linear_cross_entropy"
    works = [(pair, {"n": 1024, "d": DIM}, True)]
    if not quick:
        works = [
            *((pair, {"n": n, "d": DIM}, n <= 8192) for n in (128, 256, 512, 1024, 2048, 4096, 8192, 16384)),
            *((name, {"n": 32768, "d": DIM}, False) for name in PAIR_LOSSES),
            *((linear, {"n": n, "K": k, "d": DIM}, n < 8192)
              for n, k in ((1024, 11318), (128, 11318), (128, 100000), (8192, 100000))),
        ]  # fmt: skip
    for name, sizes, dense in works:
        extra = {}
        for variant in ("fastpair", "eager") if dense else ("fastpair",):
            extra[variant] = memory_apart("compare", name, variant, *sizes.values())
        yield {**work(name, sizes), "extra_mebibytes": extra}


PARTS = {
    **{name: partial(time_pair_loss, name) for name in PAIR_LOSSES},
    "small": time_small,
    "growth": time_growth,
    "cross_entropy": time_cross_entropy,
    "spce": time_spce,
    "bfloat16": time_bfloat16,
    "memory": measure_memory,
}


def environment() -> dict:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    levels = [torch.backends.cpu.get_cpu_capability()]
    if cpu_extension is not None:
        levels.append(cpu_extension.build_info()["simd_level"].upper())
    return {
        "fastpair": fastpair.__version__,
        "commit": git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else ""),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "capability": ", fastpair ".join(dict.fromkeys(levels)),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def print_row(row: dict) -> None:
    print(row["work"])
    for name, extra in row.get("extra_mebibytes", {}).items():
        print(f"    {name:26s}{extra:10.1f} MiB extra", flush=True)
    times = row.get("milliseconds", {})
    for name, milliseconds in times.items():
        print(f"    {name:26s}{milliseconds:10.2f} ms {milliseconds / times['product']:8.2f} units", flush=True)


def record(facts: dict, rows: Iterable[dict], show: Callable[[dict], None], file: Path | None) -> None:
    """Shows each row as it is measured, and writes ``facts``, the environment among them, and all rows so far: what was
    measured outlives a stop."""
    results = {**facts, "results": []}
    print(json.dumps(results["environment"], indent=2))
    for row in rows:
        show(row)
        results["results"].append(row)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(results, indent=2) + "\n")


def command_line(description: str) -> argparse.ArgumentParser:
    """The options of a benchmark on the CPU."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each work's rounds (default: 8)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--memory-of", nargs="+", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        name, variant, *size = options.memory_of
        print(peak_memory(name, variant, *map(int, size)))
        return
    seconds = 0.2 if options.quick else options.seconds
    rows = (row for part in options.only for row in PARTS[part](seconds, options.quick))
    record({"environment": environment()}, rows, print_row, options.json)


if __name__ == "__main__":
    main()
