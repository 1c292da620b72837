"""Finds the tiles of the Triton kernels that read products, on this GPU: fastpair/backends/triton/launch.json.

    python -m benchmarks.tune_triton [--seconds S]

For each dtype and dimension: the candidates of ``launch.CANDIDATES`` on SupCon and the contrastive loss of Euclidean
distances at n = 8192, the best by the product of the two medians. Entries of other GPUs stay as they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import fastpair.functional as FP
from benchmarks.compare import PER_CLASS, step
from benchmarks.gpu import device_milliseconds, environment
from fastpair.backends.triton import launch, pairs

N = 8192
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def milliseconds(tile: launch.Tile, dtype: torch.dtype, d: int, seconds: float) -> float:
    pairs.tile_for = lambda x: tile
    x = torch.randn(N, d, device="cuda", dtype=dtype, requires_grad=True)
    labels = torch.arange(N, device="cuda") // PER_CLASS
    losses = {"supcon": partial(FP.supcon_loss, distance="euclidean"), "contrastive": FP.contrastive_loss}
    calls = {name: [step(partial(loss, backend="triton"), [x], labels)] for name, loss in losses.items()}
    times = device_milliseconds(calls, seconds)
    return times["supcon"] * times["contrastive"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each candidate (default: 0.2)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    file = Path(launch.__file__).with_name("launch.json")
    table = json.loads(file.read_text()) if file.exists() else {"environment": {}, "tiles": {}}
    major, minor = torch.cuda.get_device_capability()
    table["environment"][f"sm_{major}{minor}"] = environment()
    for name, dtype in DTYPES.items():
        for d in launch.DIMENSIONS:
            times = {tile: milliseconds(tile, dtype, d, options.seconds) for tile in launch.CANDIDATES}
            best = min(times, key=times.get)
            gain = (times[launch.DEFAULT] / times[best]) ** 0.5
            print(f"{name} d={d}: {best}, {gain:.2f} times as fast as the default", flush=True)
            table["tiles"][f"sm_{major}{minor}/{name}/{d}"] = asdict(best)
    file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
