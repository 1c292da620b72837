"""Time and memory of fastpair's losses against PyTorch and pytorch-metric-learning, on the CPU.

    python benchmarks/compare.py [--json FILE] [--threads N] [--quick] [--only PART ...]

Time: loss and gradient, medians over rounds in which every variant runs for some milliseconds, so that a slow spell of
the machine hits all alike. A unit is the time of the matrix product of the work (X @ X.T or X @ W.T, all in float32) in
the same rounds. Variants that compute the same are compared with each other, loss and gradient, before they are timed.
Memory: the peak of the resident set over that before the call, in a process of its own, without the gradients.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastpair
import fastpair.functional as FP

DIM = 512
PER_CLASS = 4
ROUND_SECONDS = 0.01


def dense_contrastive(x: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(x)
    s = z @ z.T
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    u = torch.where(positive, F.relu(1 - s), 0)
    v = torch.where(same, 0, F.relu(s))
    return u.sum() / (u > 0).sum().clamp(min=1) + v.sum() / (v > 0).sum().clamp(min=1)


def fast_contrastive(x: Tensor, labels: Tensor) -> Tensor:
    return FP.contrastive_loss(x, labels, pos_margin=1.0, neg_margin=0.0, distance="cosine")


def dense_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), labels)


def embeddings(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) // PER_CLASS
    return torch.randn(n, DIM, generator=generator), labels[torch.randperm(n, generator=generator)]


def classifier(n: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = F.normalize(torch.randn(n, DIM, generator=generator))
    weight = torch.randn(classes, DIM, generator=generator)
    return x, weight, torch.randint(0, classes, (n,), generator=generator)


def product(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.T


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
    """Median seconds of each, over interleaved rounds that take about ``seconds`` together, at least five.

    In a round each runs for some milliseconds, short works therefore several times in a row, as in a loop.
    """
    calls = {}
    for name, run in runs.items():
        run()
        run()
        before = time.perf_counter()
        run()
        calls[name] = max(1, min(100, round(ROUND_SECONDS / (time.perf_counter() - before))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - start < seconds:
        for name, run in runs.items():
            before = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - before) / calls[name])
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def timed(work: str, runs: dict[str, Callable], seconds: float) -> dict:
    return {"work": work, "milliseconds": {name: 1e3 * t for name, t in medians(runs, seconds).items()}}


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


def contrastive_losses(n: int) -> dict[str, Callable]:
    losses = {"fastpair": fast_contrastive, "eager": dense_contrastive, "compile": compiled(dense_contrastive)}
    if n <= 2048:
        from pytorch_metric_learning import distances
        from pytorch_metric_learning.losses import ContrastiveLoss

        losses["pytorch-metric-learning"] = ContrastiveLoss(
            pos_margin=1, neg_margin=0, distance=distances.CosineSimilarity()
        )
    return losses


def time_contrastive(seconds: float, quick: bool) -> list[dict]:
    rows = []
    for n in (128, 256) if quick else (128, 512, 1024, 2048, 4096, 8192):
        x, labels = embeddings(n)
        steps = checked_steps(contrastive_losses(n), [x], labels)
        rows.append(timed(f"contrastive n={n}", {"product": partial(product, x, x), **steps}, seconds))
    return rows


def time_cross_entropy(seconds: float, quick: bool) -> list[dict]:
    rows = []
    for n, classes in ((64, 1000),) if quick else ((1024, 11318), (128, 11318), (128, 100000)):
        x, weight, labels = classifier(n, classes)
        losses = {
            "fastpair": FP.linear_cross_entropy,
            "eager": dense_cross_entropy,
            "compile": compiled(dense_cross_entropy),
        }
        if hasattr(F, "linear_cross_entropy"):
            losses["F.linear_cross_entropy"] = F.linear_cross_entropy
        runs = {"product": partial(product, x, weight), **checked_steps(losses, [x, weight], labels)}
        rows.append(timed(f"linear_cross_entropy n={n} K={classes}", runs, seconds))
    return rows


def time_spce(seconds: float, quick: bool) -> list[dict]:
    x, labels = embeddings(256 if quick else 2048)
    runs = {"product": partial(product, x, x)}
    for name, loss in {"spce": FP.spce_loss, "contrastive": fast_contrastive}.items():
        runs[name] = step(loss, [x.clone().requires_grad_()], labels)
    return [timed(f"spce n={len(x)}", runs, seconds)]


def time_bfloat16(seconds: float, quick: bool) -> list[dict]:
    rows = []
    for n in (256,) if quick else (512, 1024, 2048, 4096):
        x, labels = embeddings(n)
        half = x.bfloat16()
        runs = {"product": partial(product, x, x), "product bfloat16": partial(product, half, half)}
        for name, loss, data in (
            ("fastpair float32", fast_contrastive, x),
            ("fastpair bfloat16", fast_contrastive, half),
            ("compile bfloat16", compiled(dense_contrastive), half),
        ):
            runs[name] = step(loss, [data.clone().requires_grad_()], labels)
        rows.append(timed(f"contrastive bfloat16 n={n}", runs, seconds))
    return rows


MEMORY_WORK = {
    "contrastive": lambda n: (fast_contrastive, embeddings(n)[:1], embeddings(n)[1:]),
    "eager contrastive": lambda n: (dense_contrastive, embeddings(n)[:1], embeddings(n)[1:]),
    "linear_cross_entropy": lambda n, k: (FP.linear_cross_entropy, classifier(n, k)[:2], classifier(n, k)[2:]),
    "eager cross_entropy": lambda n, k: (dense_cross_entropy, classifier(n, k)[:2], classifier(n, k)[2:]),
}


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise SystemExit(f"no {field} in /proc/self/status: peak memory is measured on Linux only")


def peak_memory(work: str, *size: int) -> float:
    """MiB above the resident set before the call, without the gradients. To be run in a fresh process."""
    loss, parameters, rest = MEMORY_WORK[work](*size)
    parameters = [p.requires_grad_() for p in parameters]
    # Libraries, thread pools and their buffers do not count: a small call first.
    small_loss, small, small_rest = MEMORY_WORK[work](*(min(s, 64) for s in size))
    step(small_loss, [p.requires_grad_() for p in small], *small_rest)()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmRSS")
    step(loss, parameters, *rest)()
    gradients = sum(p.grad.nbytes for p in parameters)
    return (status_kib("VmHWM") - before) / 1024 - gradients / 2**20


def measure_memory(seconds: float, quick: bool) -> list[dict]:
    works = [("contrastive", 2048), ("eager contrastive", 2048)]
    if not quick:
        works = [
            *((name, n) for n in (1024, 4096, 8192) for name in ("contrastive", "eager contrastive")),
            ("contrastive", 32768),
            *(
                (name, *size)
                for size in ((1024, 11318), (128, 11318), (128, 100000), (8192, 100000))
                for name in ("linear_cross_entropy", "eager cross_entropy")
                if (name, *size) != ("eager cross_entropy", 8192, 100000)
            ),
        ]
    rows = []
    for work, *size in works:
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--memory-of", work]
        start = time.perf_counter()
        output = subprocess.run([*command, *map(str, size)], check=True, capture_output=True, text=True).stdout
        rows.append(
            {
                "work": f"{work} {' x '.join(map(str, size))}",
                "extra_mebibytes": float(output),
                "process_seconds": time.perf_counter() - start,
            }
        )
    return rows


PARTS = {
    "contrastive": time_contrastive,
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
    return {
        "fastpair": fastpair.__version__,
        "commit": git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else ""),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def print_row(row: dict) -> None:
    print(row["work"])
    times = row.get("milliseconds")
    if times is None:
        print(f"    {row['extra_mebibytes']:10.1f} MiB extra   ({row['process_seconds']:.1f} s with its start)")
        return
    for name, milliseconds in times.items():
        print(f"    {name:26s}{milliseconds:10.2f} ms {milliseconds / times['product']:8.2f} units", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each work's rounds (default: 8)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--memory-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_memory(options.memory_of[0], *map(int, options.memory_of[1:])))
        return
    results = {"environment": environment(), "results": []}
    print(json.dumps(results["environment"], indent=2))
    for part in options.only:
        for row in PARTS[part](0.2 if options.quick else options.seconds, options.quick):
            print_row(row)
            results["results"].append(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
