"""Pair losses that users write."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial

from torch import Tensor, nn

from fastpair.backends import added
from fastpair.formulas.formula import N, P, PairFormula
from fastpair.formulas.tracing import PREFIX, as_written, traced
from fastpair.losses import options
from fastpair.losses.base import PairLoss
from fastpair.losses.from_pml import distance_name
from fastpair.losses.pair import over_pairs
from fastpair.ops import checks

__all__ = ["CustomPairLoss"]

KINDS = {"positives": P, "negatives": N}
NEEDED = options.one_of(*KINDS)
RULES = {"distance": options.distance, "reduction": options.pair_reduction}


def check_settings(distance: str, reduction: str, parameters: dict[str, float | Tensor]) -> None:
    options.check(RULES, distance=distance, reduction=reduction)
    for name, value in parameters.items():
        if isinstance(value, Tensor):
            checks.single(name, value)
        else:
            options.finite(name, value)


def values_of(formula: PairFormula, parameters: dict[str, float | Tensor]) -> list[float | Tensor]:
    given = [parameters[name.removeprefix(PREFIX)] for name in formula.parameters]
    for name, value in zip(formula.parameters, given):
        if isinstance(value, Tensor) and name not in formula.learned:
            raise TypeError(
                f"{name.removeprefix(PREFIX)} must be a number, as it was when the loss was made, got a tensor: one "
                "that is given then may learn"
            )
    return given


def custom_pair_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    formula: PairFormula,
    distance: str | nn.Module,
    reduction: str,
    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    ref_bias: Tensor | None = None,
    ignore_above: float | None = None,
    anchor_scalars: Mapping[str, Tensor] | None = None,
    ref_scalars: Mapping[str, Tensor] | None = None,
    backend: str | None = None,
    **parameters: float | Tensor,
) -> Tensor:
    distance = distance_name(distance)
    check_settings(distance, reduction, parameters)
    checks.matrix("embeddings", embeddings)
    return over_pairs(
        formula.name,
        embeddings=embeddings,
        labels=labels,
        ref_emb=ref_emb,
        ref_labels=ref_labels,
        indices_tuple=indices_tuple,
        of_pairs=(exclude_self, pairs, ids, ref_ids),
        params=values_of(formula, parameters),
        distance=distance,
        reduction=reduction,
        weights=weights,
        backend=backend,
        ref_bias=ref_bias,
        ignore_above=ignore_above,
        anchor_scalars=anchor_scalars,
        ref_scalars=ref_scalars,
    )


# Names that parameters cannot have.
TAKEN = {"formula", "ref", *inspect.signature(custom_pair_loss).parameters, *dir(PairLoss), *vars(nn.Module())}


class CustomPairLoss(PairLoss):
    """A pair loss of your own, computed with its gradient as the losses of this package are.

        l_i = anchor(P, N),   P and N the statistics of u(s) over the positives and of v(s) over the negatives of i

    It is called as any :class:`PairLoss` is, ``loss(embeddings, labels, indices_tuple=None, ref_emb=None,
    ref_labels=None, exclude_self=None)``, with embeddings (n, d) and references (m, d) of float32, float64, bfloat16 or
    float16, labels (n,) and (m,), and returns what ``reduction`` says, in float64 for float64, else in float32.

    The functions are called once, with symbols: they are made of operators, comparisons and the functions of
    :mod:`fastpair.formulas`. ``s`` is the closeness of a pair, a similarity or -d for a distance d; ``p`` has the
    parameters as attributes, and in ``p.anchor`` and ``p.ref`` numbers of a pair's two samples, which are then given
    with every call, ``loss(..., anchor_scalars={name: (n,)}, ref_scalars={name: (m,)})``: floating tensors, constants
    of the gradient; references are the embeddings where there are no others. ``anchor`` reads those of the anchor
    alone. ``P`` and ``N`` have ``lse``, ``sum``, ``mean``, ``max``, ``nonzero`` (how many terms are
    not zero) and ``pairs`` (how many pairs). The first call on CPU tensors compiles the loops for this machine, once
    for all processes: see :mod:`fastpair.backends.added`. :func:`fastpair.formulas.explain` shows the code.

    Args:
        positive, negative: functions (s, p) of a pair's closeness: the terms u and v.
        anchor: a function (P, N, p): the loss of an anchor, or its two parts, the positives' first, each with a mean of
            its own.
        count: how much an anchor counts in the mean: a function (P, N, p), of two parts a pair of counts, or a number.
        needs: "positives", "negatives": anchors without such pairs have loss 0 and do not count. Default: those of
            which ``anchor`` reads the mean or the maximum.
        distance: the score of a pair, a metric of :func:`fastpair.functional.pairwise_distance`.
        reduction: "mean" (of each part: the sum over the anchors by the sum of their counts, 0 where that is 0), "sum",
            "none" or "totals", as for the other pair losses.
        embedding_regularizer, embedding_reg_weight: see :class:`fastpair.losses.base.RegularizedLoss`.
        **parameters: numbers, finite in float32 too; attributes of the loss, which may be set. Or floating tensors of
            one element, such as ``torch.nn.Parameter``, which get a gradient: du/dp, dv/dp and the derivative of
            ``anchor`` with P and N constant, summed in the sweep that makes the other gradients.

    Raises:
        TypeError: a function cannot be traced, as with a branch on a value or a function of another library, or a
            parameter is no number.
        ValueError: a formula that kernels cannot compute, or another argument that is not as above.

    Warns:
        RuntimeWarning: once, if the CPU kernels cannot be compiled. The loss is then dense PyTorch, by blocks of rows.
    """

    def __init__(
        self,
        positive: Callable,
        negative: Callable,
        anchor: Callable,
        *,
        count: Callable | float = 1,
        needs: Collection[str] | None = None,
        distance: str | nn.Module = "cosine",
        reduction: str = "mean",
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        **parameters: float | Tensor,
    ):
        distance = distance_name(distance)
        check_settings(distance, reduction, parameters)
        for name in parameters:
            if name in TAKEN:
                raise ValueError(f"a parameter cannot have the name {name!r}, which something else of the loss has")
        for kind in needs or ():
            NEEDED("needs", kind)
        learned = [name for name, value in parameters.items() if isinstance(value, Tensor)]
        kinds = [KINDS[kind] for kind in needs or ()]
        formula = traced(positive, negative, anchor, parameters, count, kinds, learned)
        added.add(formula)
        super().__init__(
            partial(custom_pair_loss, formula=formula),
            embedding_regularizer=embedding_regularizer,
            embedding_reg_weight=embedding_reg_weight,
            **parameters,
            distance=distance,
            reduction=reduction,
        )

    of_rows = ("anchor_scalars", "ref_scalars")

    @property
    def formula(self) -> PairFormula:
        return self._function.keywords["formula"]

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        added.add(self.formula)

    def extra_repr(self) -> str:
        written = ", ".join(f"{name}={formula}" for name, formula in as_written(self.formula).items())
        return f"{written}, {super().extra_repr()}"
