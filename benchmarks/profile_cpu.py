"""Where the CPU kernels spend their time: samples of perf, by what the code is for.

    python -m benchmarks.profile_cpu [--threads N] [--seconds S]

Percent of the samples of all threads while loss and gradient of a work run in a loop. Needs Linux's perf. The floor of
a pair loss is the matrix products alone.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fastpair.functional as FP
from benchmarks.compare import DIM, PAIR_LOSSES, classifier, embeddings, step

# The first pattern that matches "library symbol" says what it is for. The products of bfloat16 are code made at run
# time, which has no name.
PURPOSES = {
    "products": r"gemm_kernel|brgemm|jit|JIT|//anon",
    "packing": r"gemm|mkl_blas|reorder",
    "statistics": r"add_up|add_exponentials|find_maxima|row_softmax|collect|anchor",
    "slopes": r"write_slopes|row_probabilities",
    "rows": r"Samples|copy_row|dot<|bfloat16",
    "waiting": r"libgomp|Spin",
    "page faults": r"\[kernel",
    "Python": r"libpython|libc10|libtorch|ld-linux",
}


def pair_work(name: str, n: int, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    x, labels = embeddings(n)
    return step(PAIR_LOSSES[name].fast, [x.to(dtype).requires_grad_()], labels)


def cross_entropy_work(n: int, classes: int) -> Callable[[], object]:
    x, weight, labels = classifier(n, classes)
    return step(FP.linear_cross_entropy, [x.requires_grad_(), weight.requires_grad_()], labels)


def shares(run: Callable[[], object], seconds: float) -> dict[str, float]:
    run()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "2000", "-p", str(os.getpid()), "-o", str(data)]
        with subprocess.Popen(record, stderr=subprocess.DEVNULL) as perf:
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds:  # whole runs only: their sweeps differ
                run()
            perf.send_signal(signal.SIGINT)
        command = ["perf", "report", "-i", str(data), "--stdio", "--sort", "dso,symbol", "-t", ";"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = dict.fromkeys([*PURPOSES, "other"], 0.0)
    for line in done.stdout.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        overhead, library, symbol = line.split(";", 2)
        place = f"{library.strip()} {symbol.strip()}"
        purpose = next((name for name, pattern in PURPOSES.items() if re.search(pattern, place)), "other")
        found[purpose] += float(overhead.strip().rstrip("%"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each work (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    works = {
        **{f"SupCon, n = {n}": lambda n=n: pair_work("supcon", n) for n in (64, 128, 512, 1024, 4096, 32768)},
        **{f"contrastive, n = {n}": lambda n=n: pair_work("contrastive", n) for n in (64, 1024, 4096)},
        "contrastive bfloat16, n = 2048": lambda: pair_work("contrastive", 2048, torch.bfloat16),
        "linear cross-entropy, n = 128, K = 11318": lambda: cross_entropy_work(128, 11318),
        "linear cross-entropy, n = 128, K = 100000": lambda: cross_entropy_work(128, 100_000),
    }
    heads = [*PURPOSES, "other"]
    print(f"d = {DIM}, {options.threads} threads\n")
    print("| % of the samples | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    for name, make in works.items():
        found = shares(make(), options.seconds)
        print(f"| {name} | " + " | ".join(f"{found[head]:.0f}" for head in heads) + " |", flush=True)


if __name__ == "__main__":
    main()
