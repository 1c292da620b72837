"""Time and memory of fastpair's losses on a GPU against dense PyTorch, torch.compile and, where they are installed,
pytorch-metric-learning, Liger and cut-cross-entropy.

    python -m benchmarks.gpu --output FOLDER [--seconds S] [--only PART ...]

Device time of loss and gradient by events, medians over rounds in which every variant runs once; inputs rotate through
copies that together are larger than the second-level cache. A unit is the time of one product by cuBLAS, X @ X.T or
X @ W.T, in the dtype of the work. Variants are held against fastpair before they are timed; how far they are from it is
in the results. Memory: the peak of the allocator over what was allocated before. A variant that fails or runs out of
memory is listed with its error. The result is FOLDER/gpu-NAME-OF-THE-DEVICE.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastpair.functional as FP
from benchmarks.compare import DIM, PAIR_LOSSES, classifier, dense_cross_entropy, embeddings, product, record, step

# The work that the goals of the package are set for, and one loss of each other kind.
LOSSES = ("contrastive", "supcon", "multi_similarity", "ntxent", "hard_triplet")
# Dense code is not tried where one of its n x n matrices would be more.
DENSE_BYTES = 8 << 30
# Scores of dense code are rounded to bfloat16 before they are multiplied by 50: that far it is from the truth.
COARSE = 0.5
# Together the copies of the inputs are more than this, several times a second-level cache.
ROTATED_BYTES = 256 << 20


def environment() -> dict:
    def version(name: str) -> str | None:
        return __import__(name).__version__ if importlib.util.find_spec(name) else None

    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() or os.environ.get("FASTPAIR_COMMIT", "unknown"),
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "python": platform.python_version(),
        "float32 products": torch.get_float32_matmul_precision(),
    }


def device_milliseconds(variants: dict[str, list[Callable]], seconds: float) -> dict[str, float]:
    """Medians over rounds; each variant comes as a list of calls on different copies of the inputs."""
    for calls in variants.values():
        for call in calls:
            call()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in variants}
    end, done = time.perf_counter() + seconds, 0
    while done < 7 or time.perf_counter() < end:
        events = {}
        for name, calls in variants.items():
            begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            calls[done % len(calls)]()
            finish.record()
            events[name] = (begin, finish)
        torch.cuda.synchronize()
        for name, (begin, finish) in events.items():
            times[name].append(begin.elapsed_time(finish))
        done += 1
    return {name: statistics.median(values) for name, values in times.items()}


def wall_milliseconds(call: Callable, calls: int = 200) -> float:
    """Of one call among many: what the host needs where the device is faster."""
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls * 1e3


def graph_milliseconds(call: Callable, calls: int = 20) -> float:
    """Of one call among many in a CUDA graph: what the device needs where the host does not hold it up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(20):
        begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        finish.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(finish) / calls)
    return statistics.median(times)


def peak_mebibytes(call: Callable) -> float:
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measured(work: str, variants: dict[str, Callable], inputs: tuple[list[Tensor], list[Tensor]], unit: Callable,
             tolerance: float, seconds: float) -> dict:  # fmt: skip
    """``inputs``: those with a gradient, and the others."""
    parameters, rest = inputs
    size = sum(t.numel() * t.element_size() for t in parameters)
    copies = max(1, min(8, ROTATED_BYTES // max(size, 1)))
    sets = [[p.clone().requires_grad_() for p in parameters] for _ in range(copies)]
    row: dict = {
        "work": work,
        "milliseconds": {},
        "wall_milliseconds": {},
        "extra_mebibytes": {},
        "failed": {},
        "difference": {},
    }
    calls = {"product": [lambda s=s: unit(s[0].detach(), s[-1].detach()) for s in sets]}
    truth = None
    for name, loss in variants.items():
        try:
            steps = [step(loss, s, *rest) for s in sets]
            steps[0]()  # compiles
            value, gradient = steps[0](), sets[0][0].grad
            if truth is None:
                truth = value, gradient.clone()
            off = ((gradient - truth[1]).norm() / truth[1].norm()).item(), ((value - truth[0]) / truth[0]).abs().item()
            row["difference"][name] = {"gradient": off[0], "loss": off[1]}
            if not max(off) <= tolerance:
                row["failed"][name] = f"disagrees: gradient {off[0]:.2g}, loss {off[1]:.2g}"
                continue
            row["extra_mebibytes"][name] = peak_mebibytes(steps[0])
            row["wall_milliseconds"][name] = wall_milliseconds(steps[0], calls=50)
            calls[name] = steps
        except Exception as error:  # every rival's way to fail
            row["failed"][name] = f"{type(error).__name__}: {str(error)[:200]}"
        for s in sets:
            for p in s:
                p.grad = None
    row["milliseconds"] = device_milliseconds(calls, seconds)
    return row


def pair_works(seconds: float):
    for dtype, sizes in ((torch.bfloat16, (1024, 4096, 16384, 131072, 262144)), (torch.float32, (1024, 4096, 16384))):
        for name in LOSSES:
            for n in sizes:
                if n > 16384 and name not in LOSSES[:3]:
                    continue
                loss = PAIR_LOSSES[name]
                x, labels = embeddings(n)
                variants = {"fastpair": loss.fast}
                if n * n * 4 <= DENSE_BYTES:
                    torch._dynamo.reset()
                    variants |= {"eager": loss.dense, "compile": torch.compile(loss.dense)}
                if n <= loss.their_most * 2 and importlib.util.find_spec("pytorch_metric_learning"):
                    variants["pytorch-metric-learning"] = loss.theirs()
                inputs = [x.to("cuda", dtype)], [labels.cuda()]
                tolerance = COARSE if dtype == torch.bfloat16 else 1e-3
                yield measured(f"{name} {str(dtype)[6:]} n={n} d={DIM}", variants, inputs, product, tolerance, seconds)


def reduce_overhead(loss: Callable) -> Callable:
    compiled = torch.compile(loss, mode="reduce-overhead")

    def run(*arguments):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments)

    return run


def small_works(seconds: float):
    """Batches of everyday training, where the host is the limit, and beyond them to where Triton takes over. In
    ``graph_milliseconds`` are the operator alone and loss and backward by fastpair, in a CUDA graph."""
    for dtype in (torch.float32, torch.bfloat16):
        for name in LOSSES[:3]:
            for n in (32, 128, 256, 512, 1024, 2048):
                loss = PAIR_LOSSES[name]
                x, labels = embeddings(n)
                x, labels = x.to("cuda", dtype), labels.cuda()
                variants = {backend: partial(loss.fast, backend=backend) for backend in ("cuda", "triton")}
                if n <= 512:
                    torch._dynamo.reset()
                    variants |= {
                        "eager": loss.dense,
                        "compile": torch.compile(loss.dense),
                        "compile reduce-overhead": reduce_overhead(loss.dense),
                    }
                    if n <= loss.their_most and importlib.util.find_spec("pytorch_metric_learning"):
                        variants["pytorch-metric-learning"] = loss.theirs()
                tolerance = COARSE if dtype == torch.bfloat16 else 1e-3
                work = f"small {name} {str(dtype)[6:]} n={n} d={DIM}"
                row = measured(work, variants, ([x], [labels]), product, tolerance, seconds)
                leaf = x.clone().requires_grad_()
                row["graph_milliseconds"] = {}
                for what in ("operator", "loss and backward"):

                    def call(run=variants["cuda"], leaf=leaf, labels=labels, backward=what != "operator"):
                        value = run(leaf, labels)
                        if backward:
                            torch.autograd.grad(value, leaf)

                    try:
                        row["graph_milliseconds"][what] = graph_milliseconds(call)
                    except Exception as error:
                        row["failed"][f"{what} in a graph"] = f"{type(error).__name__}: {str(error)[:200]}"
                yield row


def cross_entropies() -> dict[str, Callable]:
    variants = {
        "fastpair": FP.linear_cross_entropy,
        "triton": partial(FP.linear_cross_entropy, backend="triton"),
        "eager": dense_cross_entropy,
        "compile": torch.compile(dense_cross_entropy),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        variants["liger"] = lambda x, weight, labels: liger_fused_linear_cross_entropy(x, weight, labels)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        variants["cut-cross-entropy"] = linear_cross_entropy
    return variants


def cross_entropy_works(seconds: float):
    for dtype in (torch.bfloat16, torch.float32):
        for n, classes in ((128, 100), (128, 11318), (4096, 100), (4096, 11318), (4096, 200_000), (1024, 1_000_000)):
            torch._dynamo.reset()
            x, weight, labels = classifier(n, classes)
            inputs = [x.to("cuda", dtype), weight.to("cuda", dtype)], [labels.cuda()]
            tolerance = COARSE if dtype == torch.bfloat16 else 1e-3
            work = f"linear cross-entropy {str(dtype)[6:]} n={n} K={classes} d={DIM}"
            yield measured(work, cross_entropies(), inputs, product, tolerance, seconds)


PARTS = {"small": small_works, "pairs": pair_works, "cross_entropy": cross_entropy_works}


def print_row(row: dict) -> None:
    print(row["work"])
    unit = row["milliseconds"]["product"]
    for name, milliseconds in row["milliseconds"].items():
        rest = ""
        if name in row["wall_milliseconds"]:
            wall, memory = row["wall_milliseconds"][name], row["extra_mebibytes"][name]
            rest = f"   wall {wall:9.3f} ms {memory:10.1f} MiB extra"
        print(f"    {name:26s}{milliseconds:10.3f} ms {milliseconds / unit:8.2f} units{rest}", flush=True)
    for name, milliseconds in row.get("graph_milliseconds", {}).items():
        print(f"    in a graph, {name:14s}{milliseconds:10.4f} ms", flush=True)
    for name, problem in row["failed"].items():
        print(f"    {name:26s}{problem}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=0.5, help="for the rounds of each work (default: 0.5)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tests-failed", type=int, default=0, help="exit status of the tests, for the record")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    file = options.output / f"gpu-{name}.json"
    rows = (row for part in options.only for row in PARTS[part](options.seconds))
    record({"environment": environment(), "tests_failed": options.tests_failed}, rows, print_row, file)
    print(f"results in {file}")


if __name__ == "__main__":
    main()
