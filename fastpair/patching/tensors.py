"""What tensors fastpair's kernels take, for the cases in which a client's own method is called."""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair import backends
from fastpair.ops.checks import FLOATING
from fastpair.patching.core import Case

UNFIT = "the embeddings are other than matrices, with rows, of one floating dtype on one device"
NO_KERNELS = "fastpair has no kernels here for their device or dtype"
TRANSFORMED = "a transform of torch.func is active"
TRACED = "torch.compile traces it, which cannot look at the labels"


def unfit(*embeddings: Tensor) -> bool:
    """Whether tensors are anything but matrices of one dtype, device and number of columns, with rows."""
    of_first = None
    for t in embeddings:
        if not isinstance(t, Tensor) or t.layout is not torch.strided or t.ndim != 2 or t.is_meta:
            return True
        rows, columns = t.shape
        if rows == 0 or t.dtype not in FLOATING:
            return True
        of_this = t.dtype, t.device, columns
        if of_this != (of_first or of_this):
            return True
        of_first = of_this
    return False


def without_kernels(x: Tensor) -> bool:
    fused = backends.FUSED.get(x.device.type, [])
    return not fused or (x.dtype == torch.float64 and "cpu" not in fused)


def transformed(*_: object, **__: object) -> bool:
    return torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def tensor_cases(embeddings) -> tuple[Case, ...]:
    """The cases of every method; ``embeddings`` says which of its arguments are the embeddings."""
    return (
        Case(UNFIT, lambda loss, *args, **kwargs: unfit(*embeddings(*args, **kwargs))),
        Case(NO_KERNELS, lambda loss, *args, **kwargs: without_kernels(embeddings(*args, **kwargs)[0])),
        Case(TRANSFORMED, transformed),
    )


def traced(*_: object, **__: object) -> bool:
    return torch.compiler.is_compiling()


def is_number(x: object) -> bool:
    """Whether x stands for one number: a plain one, or a tensor of one element that broadcasts like it."""
    return isinstance(x, (int, float)) or (isinstance(x, Tensor) and x.numel() == 1 and x.ndim <= 1)


def ranks() -> int:
    """The processes of ``torch.distributed``, 1 without it."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
