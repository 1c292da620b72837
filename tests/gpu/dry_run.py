"""Runs the Triton backend on CPU tensors as far as its launches: kernels are compiled for a GPU that need not be here,
from the arguments that they would get, and are not run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastpair.backends.triton import launch, pairs


class Launch(NamedTuple):
    name: str
    kernel: CompiledKernel


class Chip:
    """A driver of one. Its number stands for the device: what was compiled for it is not compiled again."""

    def __init__(self, chip: int):
        self.chip = chip

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)

    def get_current_device(self) -> int:
        return self.chip

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def dry_run(chip: int) -> Iterator[list[Launch]]:
    """The launches of the calls in the block."""
    launches = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        launches.append(Launch(self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    def zeros(self, *shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype)  # some are indices

    device = launch.Device(divmod(chip, 10), 132)
    with (
        mock.patch.object(driver, "_active", Chip(chip)),
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(launch, "device_of", lambda x: device),
        mock.patch.object(pairs.Side, "new", zeros),
    ):
        yield launches
