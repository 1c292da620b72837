"""What runs an operator of ``torch.ops.fastpair`` on each backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

TRITON = ("pair_loss", "linear_cross_entropy", "pairwise_distance", "pairwise_distance_backward")


def triton_kernel(name: str, *arguments):
    """Imports Triton at the first call only: a process without CUDA tensors has no use for it."""
    kernel = getattr(importlib.import_module("fastpair.backends.triton"), name)
    device = arguments[0].device
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return kernel(*arguments)
    with torch.cuda.device(device):  # Triton launches on the current one
        return kernel(*arguments)


def register() -> None:
    for name in TRITON:
        torch.library.impl(f"fastpair::{name}", "CUDA", functools.partial(triton_kernel, name))


def operator(name: str, backend: str) -> Callable:
    """The registered operator, which torch.compile traces; in eager mode the Triton kernels are called directly, which
    spares the dispatcher's way into Python and back."""
    if backend == "triton" and not torch.compiler.is_compiling():
        return functools.partial(triton_kernel, name)
    return getattr(torch.ops.fastpair, name).default
