"""Runs the Triton backend on CPU tensors as far as its launches: kernels are compiled for a GPU that need not be here,
from the arguments that they would get, and are not run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastpair.backends.triton import launch, pairs


class Launch(NamedTuple):
    name: str
    kernel: CompiledKernel


class Specialization(NamedTuple):
    """What one kernel would be compiled from."""

    name: str
    key: str


class Chip:
    """A driver of one. What was compiled for a device of the same number is not compiled again."""

    def __init__(self, chip: int, number: int):
        self.chip, self.number = chip, number

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.chip, 32)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def dry_run(chip: int, only: tuple[str, ...] = ()) -> Iterator[list[Launch]]:
    """The launches of the calls in the block, or of the kernels of these names."""
    launches = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        if not only or self.__name__ in only:
            launches.append(Launch(self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    with _in_place_of_running(compile_only, Chip(chip, number=chip)):
        yield launches
    assert set(only) <= {launch.name for launch in launches}


class _PassedTheFrontEnd(Exception):
    pass


@contextlib.contextmanager
def front_end(chip: int) -> Iterator[list[str]]:
    """The kernels that the calls in the block launch, compiled as far as the front end goes: in a tenth of the time it
    finds all errors of types, as of variables that change theirs in a loop, which the interpreter does not see."""
    passed = []
    run = JITFunction.run

    def stop(*_):
        raise _PassedTheFrontEnd

    def check_only(self, *arguments, grid, warmup, **options):
        with contextlib.suppress(_PassedTheFrontEnd):
            run(self, *arguments, grid=grid, warmup=True, **options)
        passed.append(self.__name__)

    with _in_place_of_running(check_only, Chip(chip, number=chip)), mock.patch.object(CUDABackend, "make_ttgir", stop):
        yield passed


@contextlib.contextmanager
def not_even_compiled(chip: int) -> Iterator[set[Specialization]]:
    """What the calls in the block would have compiled."""
    specializations = set()
    run = JITFunction.run

    def found(key, fn, **_):
        specializations.add(Specialization(fn.jit_function.__name__, key))
        return True  # stands for what was found elsewhere: it is not compiled, and asked for again at the next launch

    def look_up(self, *arguments, grid, warmup, **options):
        run(self, *arguments, grid=grid, warmup=True, **options)

    device = Chip(chip, number=-chip)  # for which nothing was compiled
    with _in_place_of_running(look_up, device), mock.patch.object(knobs.runtime, "jit_cache_hook", found):
        yield specializations


@contextlib.contextmanager
def _in_place_of_running(what: Callable, on: Chip) -> Iterator[None]:
    def zeros(self, *shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype)  # some are indices

    device = launch.Device(divmod(on.chip, 10), 132)
    with (
        knobs.compilation.scope(),
        mock.patch.object(driver, "_active", on),
        mock.patch.object(JITFunction, "run", what),
        mock.patch.object(launch, "device_of", lambda x: device),
        mock.patch.object(pairs.Side, "new", zeros),
    ):
        knobs.compilation.disable_line_info = True  # makes no other code, in less time
        yield
