"""The one autograd function behind every loss whose operator computes value and gradients together.

Such an operator takes a call of ``backends.call``: the tensors, those that can have a gradient first; ``row_grad``; the
settings, the reduction last; for each tensor that can have a gradient, whether it is wanted; and further tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastpair.ops.parameters import stacked
from fastpair.ops.registration import DIFFERENTIABLE, operator

# Reductions whose result is a vector.
VECTORS = ("none", "totals")


# Where an operator takes the parameters of a loss: as a tensor, among the tensors; as numbers, among the settings.
LEARNED, PARAMS = 2, 1


class _Call(NamedTuple):
    """An operator and its arguments but for the tensors, as one argument: each costs a call of an autograd function a
    third of a microsecond.

    wanted: which gradients are.
    leading: how many tensors come before the settings.
    parameters: those of a loss of which some learn, None for each of the tensors, which come after all others. They are
        put together here, where that leaves no graph.
    as_numbers: whether the operator takes them as numbers, else as a tensor.
    """

    op: Callable
    settings: tuple
    wanted: tuple[bool, ...]
    leading: int
    parameters: tuple[float | None, ...] = ()
    as_numbers: bool = False

    def run(self, tensors: tuple, row_grad: Tensor | None, wanted: tuple[bool, ...]) -> tuple:
        settings = self.settings
        if self.parameters:
            tensors, learn = self.parted(tensors)
            values = iter(learn)
            params = [next(values) if value is None else value for value in self.parameters]
            if self.as_numbers:
                settings = (*settings[:PARAMS], list(map(float, params)), *settings[PARAMS + 1 :])
            else:
                tensors = (*tensors[:LEARNED], stacked(params, tensors[0]), *tensors[LEARNED + 1 :])
        return self.op(*tensors[: self.leading], row_grad, *settings, *wanted, *tensors[self.leading :])

    def parted(self, tensors: tuple) -> tuple[tuple, tuple]:
        """The operator's tensors, and the parameters that learn."""
        count = len(tensors) - self.parameters.count(None)
        return tensors[:count], tensors[count:]

    def split(self, by_parameters: Tensor, learn: tuple[Tensor, ...]) -> list[Tensor]:
        """The gradient by all parameters, as those by the ones that learn."""
        each = [gradient for gradient, value in zip(by_parameters.unbind(), self.parameters) if value is None]
        return [
            gradient if x.is_cpu and x.ndim == 0 else gradient.reshape(x.shape).to(x.device)
            for gradient, x in zip(each, learn)
        ]


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.call = call
        ctx.save_for_backward(*tensors)
        if call.settings[-1] not in VECTORS:
            value, *ctx.gradients = call.run(tensors, None, call.wanted)
            return value
        # The weights of a vector's elements in the gradient are known only in backward: the operator runs again there.
        ctx.gradients = None
        return call.run(tensors, None, (False,) * len(call.wanted))[0]

    @staticmethod
    def backward(ctx, grad):
        call, tensors = ctx.call, ctx.saved_tensors
        vector, wanted = call.settings[-1] in VECTORS, call.wanted
        # The first backward gives the gradients away, scaled in place: a copy of a large classifier's gradients would
        # take most of the call's memory. A second backward through a retained graph computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            with torch.no_grad():
                _, *gradients = call.run(tensors, grad if vector else None, wanted)
        if not vector:
            gradients = scaled_(gradients, wanted, grad)
        if not call.parameters:
            inputs = tensors[: len(wanted)]
            others = (None,) * (len(tensors) - len(inputs))
            return None, *input_gradients(gradients, wanted, inputs, grad, inputs), *others
        of_op, learn = call.parted(tensors)
        causes = (*of_op[: len(wanted)], *learn)
        by_learned = (None,) * len(learn)
        if learn:
            if wanted[LEARNED]:
                each = call.split(gradients[LEARNED], learn)
                by_learned = input_gradients(each, ctx.needs_input_grad[-len(learn) :], learn, grad, causes)
            wanted = wanted[:LEARNED]
        inputs = of_op[: len(wanted)]
        others = (None,) * (len(of_op) - len(inputs))
        return None, *input_gradients(gradients, wanted, inputs, grad, causes), *others, *by_learned


def scaled_(gradients: Sequence[Tensor], wanted: Sequence[bool], factor: Tensor) -> Sequence[Tensor]:
    """Those that are wanted times a factor, in place."""
    if torch.compiler.is_compiling():
        return [gradient * factor if want else gradient for gradient, want in zip(gradients, wanted)]
    if factor.is_cpu and factor.item() == 1:  # elsewhere reading it would wait for the device
        return gradients
    with torch.no_grad():
        return [gradient.mul_(factor) if want else gradient for gradient, want in zip(gradients, wanted)]


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


def input_gradients(gradients, wanted, inputs, grad: Tensor, causes: tuple) -> list[Tensor | None]:
    """The gradients that ``backward`` returns for ``inputs``, given those computed and the incoming one. ``causes``: of
    what else they are functions."""
    # Rounded to half precision only after scaling by the incoming gradient, so that a loss scale saves small ones.
    # Even a conversion to the same dtype costs microseconds.
    rounded = [
        (g if g.dtype == x.dtype else g.to(x.dtype)) if want else None for g, want, x in zip(gradients, wanted, inputs)
    ]
    if torch.is_grad_enabled():
        return [None if g is None else once(g, grad, *causes) for g in rounded]
    return rounded


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


def fused_loss(
    name: str,
    backend: str,
    tensors: tuple,
    settings: tuple,
    further: tuple = (),
    params: Sequence[float | Tensor] = (),
) -> Tensor:
    """The value of an operator, with gradients for the tensors that can have one and require it. ``params``: those of
    the loss if tensors are among them, which then are the operator's third tensor."""
    refuse_transforms()
    op, grad_mode = operator(name, backend), torch.is_grad_enabled()
    wanted = [grad_mode and t is not None and t.requires_grad for t in tensors[: DIFFERENTIABLE[name]]]
    if not (params or torch.compiler.is_compiling()):
        return _FusedLoss.apply(_Call(op, settings, tuple(wanted), len(tensors)), *tensors, *further)
    learn = tuple(value for value in params if isinstance(value, Tensor))
    if learn:
        wanted[LEARNED] = grad_mode and any(value.requires_grad for value in learn)
    parameters = tuple(None if isinstance(value, Tensor) else value for value in params)
    as_numbers = backend == "cpu" and not torch.compiler.is_compiling() and all(value.is_cpu for value in learn)
    call = _Call(op, settings, tuple(wanted), len(tensors), parameters, as_numbers)
    every = (*tensors, *further, *learn)
    if torch.compiler.is_compiling():
        if not any(wanted):
            return call.run(every, None, call.wanted)[0]
        every = distinct(every)
    # Even without gradients, so that forward-mode differentiation is refused and not silently zero.
    return _FusedLoss.apply(call, *every)


def distinct(tensors: tuple) -> tuple:
    """The same tensors, a repeated one as a view: torch.compile takes none twice for an autograd function."""
    return tuple(
        t.view_as(t) if t is not None and any(t is earlier for earlier in tensors[:i]) else t
        for i, t in enumerate(tensors)
    )
