"""The operators of ``torch.ops.fastpair``, and the functions that run them on each backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from fastpair.backends import backend_module
from fastpair.backends.call import (
    CrossEntropyCall,
    LabelledPairLossCall,
    ListedPairLossCall,
    PairLossCall,
    PrefixPairLossCall,
    SPCECall,
)
from fastpair.numerics import accumulate_dtype

# The operators that compute a loss with its gradients, and their arguments.
LOSSES: dict[str, type[NamedTuple]] = {
    "pair_loss": PairLossCall,
    "labelled_pair_loss": LabelledPairLossCall,
    "listed_pair_loss": ListedPairLossCall,
    "prefix_pair_loss": PrefixPairLossCall,
    "linear_cross_entropy": CrossEntropyCall,
    "spce": SPCECall,
}
# Triton's operators. The cuda backend has its own, named cuda_pair_loss and so on: on CUDA tensors, those without the
# prefix are Triton's.
ON_GPU = ("pair_loss", "labelled_pair_loss", "linear_cross_entropy", "pairwise_distance", "pairwise_distance_backward")

_SCHEMA_TYPES = {"Tensor | None": "Tensor?", "list[float]": "float[]", "list[int]": "int[]"}


# How many tensors of a call can have a gradient; they come first.
DIFFERENTIABLE = {name: sum(field.startswith("grad_") for field in call._fields) for name, call in LOSSES.items()}


def schema(name: str) -> str:
    call = LOSSES[name]
    kinds = [kind.__forward_arg__ for kind in call.__annotations__.values()]
    types = (_SCHEMA_TYPES.get(kind, kind) for kind in kinds)
    arguments = ", ".join(f"{kind} {name}" for kind, name in zip(types, call._fields))
    return f"({arguments}) -> ({', '.join(['Tensor'] * (1 + DIFFERENTIABLE[name]))})"


def fake_loss(name: str) -> Callable[..., tuple]:
    """A function whose outputs have the right shapes and dtypes but no data."""

    def fake(*arguments) -> tuple:
        x, call = arguments[0], LOSSES[name](*arguments)
        shape = {"none": x.shape[:1], "totals": (4,)}.get(call.reduction, ())
        wanted = [getattr(call, field) for field in call._fields if field.startswith("grad_")]
        return x.new_empty(shape, dtype=accumulate_dtype(x.dtype)), *fake_gradients(arguments, wanted)

    return fake


def fake_gradients(tensors: Sequence, wanted: Sequence[bool]) -> tuple:
    x = tensors[0]
    dtype = accumulate_dtype(x.dtype)
    return tuple(x.new_empty(t.shape if want else (0,), dtype=dtype) for t, want in zip(tensors, wanted))


def operator(name: str, backend: str) -> Callable:
    """The function that computes a call from its arguments: the registered operator, which torch.compile traces, or in
    eager mode the function of the backend, which spares Python code the way through the dispatcher and back."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.fastpair, f"cuda_{name}" if backend == "cuda" else name).default
    return _EAGER.get((name, backend)) or _EAGER.setdefault((name, backend), _function(name, backend))


_EAGER: dict[tuple[str, str], Callable] = {}


def _function(name: str, backend: str) -> Callable:
    """A backend's implementation of an operator, as a function of the operator's arguments."""
    function = getattr(backend_module(backend), name)
    call = LOSSES.get(name)
    is_operator = isinstance(function, torch._ops.OpOverload)
    taking = function if call is None or is_operator else lambda *arguments: function(call(*arguments))
    if backend != "triton":
        return taking

    def launched(*arguments):
        with on_device(arguments[0]):
            return taking(*arguments)

    return launched


def on_device(x: Tensor):
    """Makes the device of x the current one, on which Triton launches."""
    elsewhere = x.device.type == "cuda" and x.device.index != torch.cuda.current_device()
    return torch.cuda.device(x.device) if elsewhere else nullcontext()


def _on_cuda(name: str, backend: str) -> None:
    full_name = f"fastpair::cuda_{name}" if backend == "cuda" else f"fastpair::{name}"
    torch.library.impl(full_name, "CUDA", lambda *arguments: _function(name, backend)(*arguments))


def _define(name: str, signature: str, fake: Callable) -> None:
    for full_name in (name, f"cuda_{name}") if name in ON_GPU else (name,):
        torch.library.define(f"fastpair::{full_name}", signature, tags=torch.Tag.pt2_compliant_tag)
        torch.library.register_fake(f"fastpair::{full_name}", fake)


for _name in LOSSES:
    _define(_name, schema(_name), fake_loss(_name))
_define(
    "pairwise_distance",
    "(Tensor x, Tensor? y, str metric) -> Tensor",
    lambda x, y, metric: x.new_empty((x.shape[0], (x if y is None else y).shape[0])),
)
_define(
    "pairwise_distance_backward",
    "(Tensor grad, Tensor x, Tensor? y, str metric, bool grad_x, bool grad_y) -> (Tensor, Tensor)",
    lambda grad, x, y, metric, grad_x, grad_y: fake_gradients((x, y), (grad_x, grad_y)),
)
# The operators that fastpair.backends.cuda is built from.
torch.library.define("fastpair::cuda_inverse_norms", "(Tensor x, Tensor y) -> (Tensor, Tensor)")
torch.library.define("fastpair::cuda_project_gradient", "(Tensor(a!) gradient, Tensor x, Tensor inverse_norms) -> ()")
torch.library.define(
    "fastpair::cuda_softmax",
    "(Tensor products, Tensor? bias, Tensor? row_norms, Tensor? class_norms, Tensor labels, Tensor? row_grad,"
    " str logits, float scale, float margin, float label_smoothing, int ignore_index, str reduction,"
    " Tensor(a!)? slopes, Tensor(b!)? rest) -> Tensor",
)
for _name in ON_GPU:
    _on_cuda(_name, "triton")
# The other operators of the cuda backend are C++ entirely.
_on_cuda("linear_cross_entropy", "cuda")
