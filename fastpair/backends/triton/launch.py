"""Launch parameters of the kernels over tiles, by dtype, dimension and compute capability.

``launch.json`` holds what ``benchmarks/tune_triton.py`` measured; what it does not know takes the defaults below.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """``fused``: the kernels compute dot products themselves, else cuBLAS does and they read them."""

    fused: bool
    rows: int
    cols: int
    depth: int
    warps: int
    stages: int

    def constants(self) -> dict:
        return {"FUSED": self.fused, "BLOCK_M": self.rows, "BLOCK_N": self.cols, "BLOCK_K": self.depth}

    def launch(self) -> dict:
        return {"num_warps": self.warps, "num_stages": self.stages}

    def whole(self, length: int) -> int:
        """``length`` rounded up to whole columns of tiles."""
        return -(-length // self.cols) * self.cols


# Where cuBLAS makes the products.
READ = Tile(fused=False, rows=32, cols=128, depth=16, warps=4, stages=1)

# Dimensions that were tuned for; others take the parameters of the next larger, or of the largest.
DIMENSIONS = (64, 128, 256, 512, 1024)


@functools.cache
def tuned() -> dict[str, dict]:
    path = Path(__file__).with_name("launch.json")
    return json.loads(path.read_text())["tiles"] if path.exists() else {}


@functools.cache
def tile(dtype: torch.dtype, d: int, capability: tuple[int, int]) -> Tile:
    bucket = next((size for size in DIMENSIONS if d <= size), DIMENSIONS[-1])
    known = tuned().get(f"sm_{capability[0]}{capability[1]}/{str(dtype).removeprefix('torch.')}/{bucket}")
    return Tile(**known) if known else READ


@functools.cache
def device_facts(index: int) -> tuple[tuple[int, int], int]:
    """Compute capability and number of multiprocessors."""
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count


def tile_for(x: Tensor) -> Tile:
    if x.device.type != "cuda":  # Triton's interpreter: its products of half precision multiply bit patterns
        return READ
    return tile(x.dtype, x.shape[1], device_facts(x.device.index)[0])


def processors(device: torch.device) -> int:
    return device_facts(device.index)[1] if device.type == "cuda" else 2
