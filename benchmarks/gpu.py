"""Time and memory of fastpair's losses on a GPU against dense PyTorch, torch.compile and, where they are installed,
pytorch-metric-learning, Liger and cut-cross-entropy.

    python -m benchmarks.gpu --output FOLDER [--part PART ...] [--budget S] [--seconds S]

Loss and gradient, medians over rounds in which every variant runs once; inputs rotate through copies that together are
larger than the second-level cache. Device time is by events with the queue filled, so that a host that is slower than
the device is not in it; wall time and, for small batches, the time in a CUDA graph stand beside it. A unit is the time
of one product by cuBLAS, X @ X.T or X @ W.T, in the dtype of the work. Variants are held against fastpair before they
are timed; how far they are from it is in the results. Memory: the peak of the allocator over what was allocated before.
A variant that fails or runs out of memory is listed with its error.

Rows go to FOLDER/gpu-NAME-OF-THE-DEVICE.json as they are measured; what that file has of the same commit and versions
is not measured again. After ``--budget`` seconds no further work is begun: run it once more to go on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastpair.functional as FP
from benchmarks.compare import (
    DIM,
    PAIR_LOSSES,
    classifier,
    dense_cross_entropy,
    embeddings,
    product,
    record,
    step,
    work,
)

# The work that the goals of the package are set for, and one loss of each other kind.
LOSSES = ("supcon", "contrastive", "multi_similarity", "ntxent", "hard_triplet")
BACKENDS = ("cuda", "triton")
# Dense code is not tried where one of its n x n matrices would be more.
DENSE_BYTES = 8 << 30
# Scores of dense code are rounded to bfloat16 before they are multiplied by 50: that far it is from the truth.
COARSE = 0.5
# Together the copies of the inputs are more than this, several times a second-level cache.
ROTATED_BYTES = 256 << 20
# Seconds that the device sleeps while the host puts a call into its queue: for the first launch, and at most.
SHORTEST_SLEEP, LONGEST_SLEEP = 0.0005, 0.05


def environment() -> dict:
    def version(name: str) -> str | None:
        return __import__(name).__version__ if importlib.util.find_spec(name) else None

    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "commit": os.environ.get("FASTPAIR_COMMIT") or commit.stdout.strip() or "unknown",
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "python": platform.python_version(),
        "float32 products": torch.get_float32_matmul_precision(),
    }


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def cycles_per_second() -> float:
    """Of ``torch.cuda._sleep``."""
    begin, finish = events()
    torch.cuda._sleep(1_000_000)
    begin.record()
    torch.cuda._sleep(10_000_000)
    finish.record()
    torch.cuda.synchronize()
    return 1e10 / begin.elapsed_time(finish)


def host_seconds(call: Callable) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def device_milliseconds(variants: dict[str, list[Callable]], seconds: float) -> dict[str, float]:
    """Medians over rounds; each variant comes as a list of calls on different copies of the inputs. The device sleeps
    while the host puts a call into its queue, so that it is the device's time alone, if the call waits for nothing."""
    for calls in variants.values():
        for call in calls:
            call()
    speed = cycles_per_second()
    queueing = {
        name: int(speed * min(SHORTEST_SLEEP + 2 * host_seconds(calls[0]), LONGEST_SLEEP))
        for name, calls in variants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    end, done = time.perf_counter() + seconds, 0
    while done < 5 or (time.perf_counter() < end and done < 1000):
        for name, calls in variants.items():
            begin, finish = events()
            torch.cuda._sleep(queueing[name])
            begin.record()
            calls[done % len(calls)]()
            finish.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(finish))
        done += 1
    return {name: statistics.median(values) for name, values in times.items()}


def wall_milliseconds(call: Callable, seconds: float = 0.2) -> float:
    """Of one call among many: what the host needs where the device is faster."""
    call()
    torch.cuda.synchronize()
    begin, calls = time.perf_counter(), 0
    while calls < 3 or (time.perf_counter() - begin < seconds and calls < 200):
        call()
        calls += 1
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
        begin, finish = events()
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


def measured(variants: dict[str, Callable], inputs: tuple[list[Tensor], list[Tensor]], unit: Callable, tolerance: float,
             seconds: float, graphs: bool = False) -> dict:  # fmt: skip
    """``inputs``: those with a gradient, and the others. ``graphs``: in a CUDA graph too, loss and backward and, of
    fastpair, the loss alone."""
    parameters, rest = inputs
    size = sum(t.numel() * t.element_size() for t in parameters)
    copies = max(1, min(8, ROTATED_BYTES // max(size, 1)))
    sets = [[p.clone().requires_grad_() for p in parameters] for _ in range(copies)]
    fields = ("milliseconds", "wall_milliseconds", "graph_milliseconds", "extra_mebibytes", "difference", "failed")
    row: dict = {field: {} for field in fields}
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
            row["wall_milliseconds"][name] = wall_milliseconds(steps[0])
            calls[name] = steps
        except torch.AcceleratorError:  # nothing that follows on this device would be true
            raise
        except Exception as error:  # every rival's way to fail
            row["failed"][name] = f"{type(error).__name__}: {str(error)[:200]}"
        for s in sets:
            for p in s:
                p.grad = None
    row["milliseconds"] = device_milliseconds(calls, seconds)
    for name in [name for name in calls if graphs and name in variants]:
        leaves = [p.clone().requires_grad_() for p in parameters]
        try:
            row["graph_milliseconds"][name] = graph_milliseconds(
                lambda loss=variants[name], leaves=leaves: torch.autograd.grad(loss(*leaves, *rest), leaves)
            )
            if name in BACKENDS:
                row["graph_milliseconds"][f"{name}, loss alone"] = graph_milliseconds(
                    lambda loss=variants[name], leaves=leaves: loss(*leaves, *rest)
                )
        except Exception as error:
            row["failed"][f"{name} in a graph"] = f"{type(error).__name__}: {str(error)[:200]}"
    return row


@dataclass(frozen=True)
class Work:
    """``measure`` (seconds for its rounds) makes what its row has besides the ``facts``."""

    facts: dict
    measure: Callable[[float], dict]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tolerance(dtype: torch.dtype) -> float:
    return COARSE if dtype == torch.bfloat16 else 1e-3


def rivals(dense: Callable, graphs: bool) -> dict[str, Callable]:
    torch._dynamo.reset()
    compiled = {"compile": torch.compile(dense)}
    return compiled | ({"compile reduce-overhead": reduce_overhead(dense)} if graphs else {})


def reduce_overhead(loss: Callable) -> Callable:
    compiled = torch.compile(loss, mode="reduce-overhead")

    def run(*arguments):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments)

    return run


def pair_work(name: str, dtype: torch.dtype, n: int, compiled: bool, small: bool = False) -> Work:
    """``small``: by both backends, and in CUDA graphs. ``compiled``: against torch.compile instead of other rivals."""

    def measure(seconds: float) -> dict:
        loss = PAIR_LOSSES[name]
        x, labels = embeddings(n)
        fast = {backend: partial(loss.fast, backend=backend) for backend in BACKENDS}
        variants = fast if small else {"fastpair": loss.fast}
        if n * n * 4 <= DENSE_BYTES:
            variants |= rivals(loss.dense, small) if compiled else {"eager": loss.dense}
        their_most = 2 * loss.their_most if loss.theirs and importlib.util.find_spec("pytorch_metric_learning") else 0
        if not compiled and n <= their_most:
            variants["pytorch-metric-learning"] = loss.theirs()
        inputs = [x.to("cuda", dtype)], [labels.cuda()]
        return measured(variants, inputs, product, tolerance(dtype), seconds, graphs=small)

    kind = ("small " if small else "") + ("compiled " if compiled else "")
    return Work(work(f"{kind}{name} {short(dtype)}", {"n": n, "d": DIM}), measure)


def small_works(sizes: tuple[int, ...], compiled: bool = False) -> Iterator[Work]:
    """Batches of everyday training, where the host is the limit, and beyond them to where Triton takes over."""
    for n in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            for name in LOSSES[:3]:
                yield pair_work(name, dtype, n, compiled, small=True)


def pair_works(sizes: tuple[int, ...], losses: tuple[str, ...], compiled: bool = False) -> Iterator[Work]:
    for n in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            for name in losses:
                yield pair_work(name, dtype, n, compiled)


def large_works() -> Iterator[Work]:
    for n in (131072, 262144):
        for name in LOSSES[:3]:
            yield pair_work(name, torch.bfloat16, n, compiled=False)


def other_cross_entropies() -> dict[str, Callable]:
    variants = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        variants["liger"] = lambda x, weight, labels: liger_fused_linear_cross_entropy(x, weight, labels)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        variants["cut-cross-entropy"] = linear_cross_entropy
    return variants


def cross_entropy_work(dtype: torch.dtype, n: int, classes: int, compiled: bool) -> Work:
    def measure(seconds: float) -> dict:
        x, weight, labels = classifier(n, classes)
        inputs = [x.to("cuda", dtype), weight.to("cuda", dtype)], [labels.cuda()]
        variants = {"fastpair": FP.linear_cross_entropy}
        if compiled:
            variants |= rivals(dense_cross_entropy, graphs=False)
        else:
            triton = partial(FP.linear_cross_entropy, backend="triton")
            variants |= {"triton": triton, "eager": dense_cross_entropy, **other_cross_entropies()}
        return measured(variants, inputs, product, tolerance(dtype), seconds)

    kind = "compiled " if compiled else ""
    return Work(work(f"{kind}linear cross-entropy {short(dtype)}", {"n": n, "K": classes, "d": DIM}), measure)


def cross_entropy_works(compiled: bool = False) -> Iterator[Work]:
    for n, classes in ((128, 11318), (4096, 11318), (128, 100), (4096, 100), (4096, 200_000), (1024, 1_000_000)):
        for dtype in (torch.bfloat16, torch.float32):
            yield cross_entropy_work(dtype, n, classes, compiled)


def kernels_work(name: str, backend: str, dtype: torch.dtype, n: int) -> Work:
    """What the device runs for one call: launches and milliseconds of each kernel."""

    def measure(seconds: float) -> dict:
        x, labels = embeddings(n)
        leaf, labels = x.to("cuda", dtype).requires_grad_(), labels.cuda()
        run = step(partial(PAIR_LOSSES[name].fast, backend=backend), [leaf], labels)
        calls = 5
        run()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                run()
            torch.cuda.synchronize()
        found = {
            event.key[:80]: {"launches": event.count / calls, "milliseconds": event.device_time_total / calls / 1e3}
            for event in profile.key_averages()
            if event.device_time_total
        }
        return {"kernels": dict(sorted(found.items(), key=lambda item: -item[1]["milliseconds"]))}

    return Work(work(f"kernels {name} {backend} {short(dtype)}", {"n": n, "d": DIM}), measure)


def kernel_works() -> Iterator[Work]:
    for n in (16384, 4096):
        for dtype in (torch.bfloat16, torch.float32):
            for name in LOSSES[:2]:
                yield kernels_work(name, "triton", dtype, n)
    for n in (128, 512):
        yield kernels_work("supcon", "cuda", torch.float32, n)


# In the order of what is to be known first.
PARTS = {
    "small": partial(small_works, (128, 512)),
    "pairs": partial(pair_works, (4096, 16384), LOSSES),
    "pairs_compiled": partial(pair_works, (16384, 4096), LOSSES[:3], compiled=True),
    "small_compiled": partial(small_works, (128, 512), compiled=True),
    "kernels": kernel_works,
    "cross_entropy": cross_entropy_works,
    "cross_entropy_compiled": partial(cross_entropy_works, compiled=True),
    "large": large_works,
    "more": lambda: [*small_works((32, 256, 1024, 2048)), *pair_works((1024, 2048), LOSSES)],
}


def print_row(row: dict) -> None:
    print(row["work"])
    for name, of_kernel in row.get("kernels", {}).items():
        print(f"    {of_kernel['milliseconds']:10.4f} ms {of_kernel['launches']:6.1f} launches  {name}")
    for name, milliseconds in row.get("milliseconds", {}).items():
        rest = ""
        if name in row["wall_milliseconds"]:
            wall, memory = row["wall_milliseconds"][name], row["extra_mebibytes"][name]
            rest = f"   wall {wall:9.3f} ms {memory:10.1f} MiB extra"
        print(f"    {name:26s}{milliseconds:10.3f} ms {milliseconds / row['milliseconds']['product']:8.2f} units{rest}")
    for name, milliseconds in row.get("graph_milliseconds", {}).items():
        print(f"    in a graph, {name:26s}{milliseconds:10.4f} ms")
    for name, problem in row.get("failed", {}).items():
        print(f"    {name:26s}{problem}")
    sys.stdout.flush()


def measured_before(file: Path, facts: dict) -> list[dict]:
    """Rows of a run of the same commit and versions, that was stopped."""
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return found["results"] if found["environment"] == facts["environment"] else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no work is begun")
    parser.add_argument("--seconds", type=float, default=0.3, help="for the rounds of each work (default: 0.3)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    begin = time.perf_counter()
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    file = options.output / f"gpu-{name}.json"
    facts = {"environment": environment()}
    before = measured_before(file, facts)
    done = {row["work"] for row in before}

    def rows() -> Iterator[dict]:
        yield from before
        for each in (each for part in options.part for each in PARTS[part]() if each.facts["work"] not in done):
            if time.perf_counter() - begin > options.budget:
                print(f"{options.budget:.0f} s are over before {each.facts['work']}")
                return
            started = time.perf_counter()
            row = each.measure(options.seconds)
            yield {**each.facts, "seconds": time.perf_counter() - started, **row}

    record(facts, rows(), print_row, file)
    print(f"results in {file}")


if __name__ == "__main__":
    main()
