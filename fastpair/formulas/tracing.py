"""Formulas from functions that users write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from .expressions import Expr, as_expr, subexpressions, substitute, text, variable
from .formula import Kind, N, P, PairFormula, s

# Before the names of parameters, which could mean something else in the printed code.
PREFIX = "p_"


class Parameters:
    """What a function of a formula gets as its last argument: the parameters as attributes."""

    def __init__(self, names: Collection[str]):
        self.__dict__.update({name: variable(PREFIX + name) for name in names})

    def __getattr__(self, name: str):
        known = ", ".join(self.__dict__) or "none"
        raise AttributeError(f"the loss has no parameter {name!r}; it was given {known}")


def traced(
    positive: Callable,
    negative: Callable,
    anchor: Callable,
    names: Collection[str],
    count: Callable | float = 1,
    needs: Collection[Kind] | None = None,
) -> PairFormula:
    """The formula that the functions compute, whose name is made of its contents.

    Raises:
        TypeError: a function cannot be traced, or returns something else than an expression.
        ValueError: a formula that kernels cannot compute.
    """
    p = Parameters(names)
    terms = {"positive": called("positive", positive, s, p), "negative": called("negative", negative, s, p)}
    per_anchor = called("anchor", anchor, P, N, p)
    counted = called("count", count, P, N, p) if callable(count) else count
    made = {**terms, "anchor": per_anchor, "count": counted}
    formula = PairFormula("custom", **made, needs=tuple(needs or ()) or needed(per_anchor))
    # Parts of Expr are frozen dataclasses: their repr is all that they are.
    content = repr((formula.positive, formula.negative, formula.written, formula.counts, [k.name for k in formula.needs]))
    return PairFormula(f"custom_{hashlib.sha256(content.encode()).hexdigest()[:16]}", **made, needs=formula.needs)


def called(name: str, function: Callable, *arguments) -> Expr | tuple[Expr, ...]:
    """What a user's function returns, with the name of the argument in errors."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    try:
        made = function(*arguments)
        if name in ("positive", "negative"):
            return as_expr(made)
        return tuple(map(as_expr, made)) if isinstance(made, tuple) else as_expr(made)
    except (TypeError, ValueError, AttributeError) as error:
        kind = TypeError if isinstance(error, AttributeError) else type(error)
        raise kind(f"{name} cannot be traced: {error}") from error


def needed(anchor: Expr | tuple[Expr, ...]) -> tuple[Kind, ...]:
    """The kinds without which the loss of an anchor has no value: those of which it reads the mean or the maximum."""
    parts = anchor if isinstance(anchor, tuple) else (anchor,)
    read = {x for part in parts for x in subexpressions(part)}
    return tuple(kind for kind in (P, N) if {kind.mean, kind.max} & read)


def as_written(formula: PairFormula) -> dict[str, str]:
    """The terms and the anchor's loss of a traced formula, as its functions were written."""
    names = {name: f"p.{name.removeprefix(PREFIX)}" for name in formula.parameters}
    whole = {}
    for letter, kind in (("P", P), ("N", N)):
        names.update({f"{kind.name}.{what}": f"{letter}.{what}" for what in ("pairs", "sum", "mean", "nonzero", "max")})
        names[f"{kind.name}.highest"] = f"{letter}.lse"
        whole[kind.lse.rest] = as_expr(0)
    parts = ", ".join(text(substitute(part, whole), names) for part in formula.parts)
    return {"positive": text(formula.positive, names), "negative": text(formula.negative, names), "anchor": parts}
