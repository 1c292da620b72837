"""The one autograd function behind every loss whose operator computes value and gradients together.

Such an operator takes a call of ``backends.call``: the tensors, those that can have a gradient first; ``row_grad``; the
settings, the reduction last; for each tensor that can have a gradient, whether it is wanted; and further tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.ops.registration import DIFFERENTIABLE, operator

# Reductions whose result is a vector.
VECTORS = ("none", "totals")


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        """``call``: the operator, its settings, the gradients that are wanted, and how many tensors come before the
        settings, as one argument: each costs a call of an autograd function a third of a microsecond."""
        op, settings, wanted, leading = ctx.call = call
        ctx.save_for_backward(*tensors)
        # The weights of a vector's elements in the gradient are known only in backward: the operator runs again there.
        vector = settings[-1] in VECTORS
        wanted_now = (False,) * len(wanted) if vector else wanted
        value, *gradients = op(*tensors[:leading], None, *settings, *wanted_now, *tensors[leading:])
        ctx.gradients = None if vector else gradients
        return value

    @staticmethod
    def backward(ctx, grad):
        (op, settings, wanted, leading), tensors = ctx.call, ctx.saved_tensors
        vector = settings[-1] in VECTORS
        # The first backward gives the gradients away, scaled in place: a copy of a large classifier's gradients would
        # take most of the call's memory. A second backward through a retained graph computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            with torch.no_grad():
                row_grad = grad if vector else None
                _, *gradients = op(*tensors[:leading], row_grad, *settings, *wanted, *tensors[leading:])
        if not vector:
            gradients = [scaled_(g, grad) if want else g for g, want in zip(gradients, wanted)]
        inputs = tensors[: len(wanted)]
        others = (None,) * (len(tensors) - len(inputs))
        return None, *input_gradients(gradients, wanted, inputs, grad), *others


def scaled_(gradient: Tensor, factor: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return gradient * factor
    if factor.is_cpu and factor.item() == 1:  # elsewhere reading it would wait for the device
        return gradient
    if not torch.is_grad_enabled():
        return gradient.mul_(factor)
    with torch.no_grad():
        return gradient.mul_(factor)


class _NotTwice(torch.autograd.Function):
    """Passes a gradient on, and makes differentiating it again an error, not the zero gradient of a constant."""

    @staticmethod
    def forward(ctx, gradient, *causes):
        return gradient.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError(
            "fastpair's kernels can be differentiated once; for the gradient of a gradient use backend='reference'"
        )


def input_gradients(gradients, wanted, inputs, grad: Tensor) -> list[Tensor | None]:
    """The gradients that ``backward`` returns for ``inputs``, given those computed and the incoming one."""
    # Rounded to half precision only after scaling by the incoming gradient, so that a loss scale saves small ones.
    # Even a conversion to the same dtype costs microseconds.
    return [
        once(g if g.dtype == x.dtype else g.to(x.dtype), grad, *inputs) if want else None
        for g, want, x in zip(gradients, wanted, inputs)
    ]


def once(gradient: Tensor, *causes: Tensor) -> Tensor:
    """``gradient``, whose own derivative with respect to ``causes`` is an error."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        return _NotTwice.apply(gradient, *causes)
    return gradient


def refuse_transforms() -> None:
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "fastpair's kernels do not run inside the transforms of torch.func (grad, vmap, jacrev and so on): use "
            "torch.autograd, or backend='reference'"
        )


def fused_loss(name: str, backend: str, tensors: tuple, settings: tuple, further: tuple = ()) -> Tensor:
    """The value of an operator, with gradients for the tensors that can have one and require it."""
    refuse_transforms()
    op, grad_mode = operator(name, backend), torch.is_grad_enabled()
    inputs = tensors[: DIFFERENTIABLE[name]]
    wanted = tuple(grad_mode and t is not None and t.requires_grad for t in inputs)
    if torch.compiler.is_compiling():
        if not any(wanted):
            return op(*tensors, None, *settings, *wanted, *further)[0]
        every = distinct((*tensors, *further))
        tensors, further = every[: len(tensors)], every[len(tensors) :]
    # Even without gradients, so that forward-mode differentiation is refused and not silently zero.
    return _FusedLoss.apply((op, settings, wanted, len(tensors)), *tensors, *further)


def distinct(tensors: tuple) -> tuple:
    """The same tensors, a repeated one as a view: torch.compile takes none twice for an autograd function."""
    return tuple(
        t.view_as(t) if t is not None and any(t is earlier for earlier in tensors[:i]) else t
        for i, t in enumerate(tensors)
    )
