"""The operators of ``torch.ops.fastpair``, and what runs them on each backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

from fastpair.backends import cuda

TRITON = ("pair_loss", "linear_cross_entropy", "pairwise_distance", "pairwise_distance_backward")
# Operators of their own, named cuda_pair_loss and so on: on CUDA tensors the others are Triton's.
CUDA = TRITON

# What fastpair.backends.cuda is made of.
torch.library.define("fastpair::cuda_inverse_norms", "(Tensor x, Tensor y) -> (Tensor, Tensor)")
torch.library.define("fastpair::cuda_project_gradient", "(Tensor(a!) gradient, Tensor x, Tensor inverse_norms) -> ()")
torch.library.define(
    "fastpair::cuda_softmax",
    "(Tensor products, Tensor? bias, Tensor? row_norms, Tensor? class_norms, Tensor labels, Tensor? row_grad,"
    " str logits, float scale, float margin, float label_smoothing, int ignore_index, str reduction,"
    " Tensor(a!)? slopes, Tensor(b!)? rest) -> Tensor",
)


def define(name: str, schema: str, fake: Callable) -> None:
    """Defines an operator, and its twin of the cuda backend where there is one."""
    for full_name in (name, f"cuda_{name}") if name in CUDA else (name,):
        torch.library.define(f"fastpair::{full_name}", schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"fastpair::{full_name}", fake)


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
    torch.library.impl("fastpair::cuda_linear_cross_entropy", "CUDA", cuda.linear_cross_entropy)


def operator(name: str, backend: str) -> Callable:
    """The registered operator, which torch.compile traces; in eager mode what is written in Python is called directly,
    which spares the dispatcher's way into Python and back."""
    if torch.compiler.is_compiling():
        return registered(name, backend)
    return _EAGER.get((name, backend)) or _EAGER.setdefault((name, backend), registered(name, backend))


def registered(name: str, backend: str) -> Callable:
    return getattr(torch.ops.fastpair, f"cuda_{name}" if backend == "cuda" else name).default


_EAGER: dict[tuple[str, str], Callable] = {
    **{(name, "triton"): functools.partial(triton_kernel, name) for name in TRITON},
    ("linear_cross_entropy", "cuda"): cuda.linear_cross_entropy,
}
