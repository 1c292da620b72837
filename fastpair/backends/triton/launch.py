"""Launch parameters of the kernels over tiles, by dtype, dimension and compute capability.

``launch.json`` holds what ``benchmarks/tune_triton.py`` measured; other cases take the defaults below.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

# Options for every kernel: without fusion, since a product fused with the subtraction of its shift is not the number
# whose maximum is the shift.
COMPILED = {"enable_fp_fusion": False}

# Vectors that are read in whole tiles, and their channels, have lengths that are multiples of this.
ROOM = 512
# Rectangles begin at multiples of this, and so do rows of scratch: see ``tiles.aligned``.
ALIGNED = 16
# Rows of a side for which a program adds close pairs: rows of one tile, which has such pairs or is undefined.
OWNERS = 8


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def whole(length: int, block: int) -> int:
    """``length`` rounded up to whole blocks."""
    return ceil_div(length, block) * block


def roomy(x: Tensor) -> Tensor:
    """``x`` (..., n), or a copy of it with room at the end of each row, so that whole tiles can be read."""
    n = x.shape[-1]
    return torch.nn.functional.pad(x, (0, whole(n, ROOM) - n)) if n % ROOM else x


@dataclass(frozen=True)
class Tile:
    """Rows and columns of the scores that one program takes at a time, and its warps. ``depth``: how many columns of
    the embeddings it multiplies at a time, with the next ``stages`` in flight; 0 where the products exist already."""

    rows: int
    cols: int
    warps: int
    depth: int = 0
    stages: int = 3

    def __post_init__(self):
        # So that reads stay within the room of vectors, and columns begin where the compiler is told that they do.
        if ROOM % self.rows or ROOM % self.cols or self.rows % OWNERS or self.cols % ALIGNED:
            multiples = f"rows be multiples of {OWNERS} and cols of {ALIGNED}"
            raise ValueError(f"rows and cols of a tile must divide {ROOM}, {multiples}: {self}")

    def constants(self) -> dict:
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.cols,
            "num_warps": self.warps,
            "num_stages": self.stages,
            **COMPILED,
        }


# Eight scores per thread, in rows of 512 bytes: three blocks or more fit on a multiprocessor.
DEFAULT = Tile(rows=8, cols=128, warps=4)
# Tiles where the kernels make the products, for statistics and for slopes: the fastest of those measured on an H200 at
# n = 16384 and d = 512. The small one, which would save a tenth at n = 2048 for two more compilations, is for slopes
# that need more registers. Rows are a multiple of the columns. On chips that were not measured: a tile with which no
# kernel is short of registers, also for terms of more operations than those of the package's losses have.
MAKING_STATISTICS = Tile(rows=128, cols=128, warps=8, depth=64)
MAKING_SLOPES = Tile(rows=128, cols=64, warps=4, depth=64)
MAKING_SMALL = Tile(rows=64, cols=64, warps=4, depth=64, stages=4)
MAKING_ANYWHERE = Tile(rows=64, cols=64, warps=8, depth=64)
# For Triton's interpreter, where a program costs the same whatever its size.
INTERPRETED = Tile(rows=128, cols=128, warps=4)

# The tiles that tuning tries.
CANDIDATES = [
    Tile(rows, cols, warps)
    for rows, cols, warps in (
        (8, 128, 4),
        (16, 128, 4),
        (16, 128, 8),
        (32, 128, 8),
        (8, 256, 8),
        (16, 256, 8),
        (32, 64, 8),
    )
]

# Dimensions that were tuned; others take the parameters of the next larger one, or of the largest.
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
    """The properties of the GPU of x; None in the interpreter."""
    return _properties(x.device.index) if x.device.type == "cuda" else None


def tile_for(x: Tensor) -> Tile:
    device = device_of(x)
    return tile(x.dtype, x.shape[1], device.capability) if device else INTERPRETED


# The most operations of a loss with which these tiles were measured.
MOST_OPERATIONS = 15


def making_tiles_for(x: Tensor, simple: bool, operations: int) -> tuple[Tile, Tile]:
    """The tiles for the statistics and for the slopes. ``simple``, ``operations``: see ``terms.Loss``."""
    device = device_of(x)
    if (device and device.capability != (9, 0)) or operations > MOST_OPERATIONS:
        return MAKING_ANYWHERE, MAKING_ANYWHERE
    return MAKING_STATISTICS, MAKING_SLOPES if simple else MAKING_SMALL


def multiprocessors(x: Tensor) -> int:
    device = device_of(x)
    return device.multiprocessors if device else 2
