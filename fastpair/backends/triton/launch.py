"""Launch parameters of the kernels over tiles, by dtype, dimension and compute capability.

``launch.json`` holds what ``benchmarks/tune_triton.py`` measured; what it does not know takes the defaults below.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

# How every kernel is compiled: a product that is fused with the subtraction of its shift is not the number whose
# maximum the shift is.
COMPILED = {"enable_fp_fusion": False}

# Numbers of a vector that is read by whole tiles, or of its channels, come in multiples of this.
ROOM = 512
# Rectangles begin at multiples of this, and rows of scratch have such lengths: see ``tiles.aligned``.
ALIGNED = 16


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def whole(length: int, block: int) -> int:
    """``length`` rounded up to whole blocks."""
    return ceil_div(length, block) * block


def roomy(x: Tensor) -> Tensor:
    """``x`` (n,), or a copy of it, with room behind it for what reads whole tiles."""
    return torch.nn.functional.pad(x, (0, whole(len(x), ROOM) - len(x))) if len(x) % ROOM else x


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the scores that one program takes at a time, and its warps. ``depth``: how much of the rows
    it multiplies at a time, with the next ``stages`` on their way; 0 where the products were made before."""

    rows: int
    cols: int
    warps: int
    depth: int = 0
    stages: int = 3

    def __post_init__(self):
        # What is read of vectors has room for it, and columns begin where the compiler is told that they do.
        if ROOM % self.rows or ROOM % self.cols or self.cols % ALIGNED:
            raise ValueError(f"rows and cols of a tile must divide {ROOM}, cols be multiples of {ALIGNED}: {self}")

    def constants(self) -> dict:
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.cols,
            "num_warps": self.warps,
            "num_stages": self.stages,
            **COMPILED,
        }


# Eight scores a thread, in rows of 512 bytes: three blocks or more fit a multiprocessor.
DEFAULT = Tile(rows=8, cols=128, warps=4)
# Where the kernels make the products, for statistics and for slopes: of what was measured on an H200 at n = 16384 and
# d = 512 the fastest; at n = 2048 the small one would take a tenth less, and two compilations more. It is for slopes
# that want more registers. Rows are a multiple of the columns. On chips that were not measured: what no kernel wants
# for registers with.
MAKING_STATISTICS = Tile(rows=128, cols=128, warps=8, depth=64)
MAKING_SLOPES = Tile(rows=128, cols=64, warps=4, depth=64)
MAKING_SMALL = Tile(rows=64, cols=64, warps=4, depth=64, stages=4)
MAKING_ANYWHERE = Tile(rows=64, cols=64, warps=8, depth=64)
# For Triton's interpreter, to which a program costs the same whatever its size.
INTERPRETED = Tile(rows=128, cols=128, warps=4)

# What the tuning tries.
CANDIDATES = [
    Tile(rows, cols, warps)
    for rows, cols, warps in (
        (8, 128, 4),
        (16, 128, 4),
        (16, 128, 8),
        (32, 128, 8),
        (8, 256, 8),
        (16, 256, 8),
        (4, 512, 8),
        (32, 64, 8),
    )
]

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
    return Tile(**known) if known else DEFAULT


class Device(NamedTuple):
    capability: tuple[int, int]
    multiprocessors: int


@functools.cache
def _properties(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def device_of(x: Tensor) -> Device | None:
    """None where the interpreter runs."""
    return _properties(x.device.index) if x.device.type == "cuda" else None


def tile_for(x: Tensor) -> Tile:
    device = device_of(x)
    return tile(x.dtype, x.shape[1], device.capability) if device else INTERPRETED


def making_tiles_for(x: Tensor, simple: bool) -> tuple[Tile, Tile]:
    """For the statistics and for the slopes; ``simple``: see ``terms.Loss``."""
    device = device_of(x)
    if device and device.capability != (9, 0):
        return MAKING_ANYWHERE, MAKING_ANYWHERE
    return MAKING_STATISTICS, MAKING_SLOPES if simple else MAKING_SMALL


def multiprocessors(x: Tensor) -> int:
    device = device_of(x)
    return device.multiprocessors if device else 2
