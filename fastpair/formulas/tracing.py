"""Formulas from functions that users write."""

from __future__ import annotations

import hashlib
import inspect
import keyword
from collections.abc import Callable, Collection
from dataclasses import replace
from numbers import Real

from .expressions import TRACING, Expr, as_expr, subexpressions, substitute, text, variable
from .formula import Kind, N, P, PairFormula, s

# Of the functions that are traced.
ARGUMENTS = {"positive": "sp", "negative": "sp", "anchor": "PNp", "count": "PNp"}
# Before the names of parameters, which could mean something else in the printed code.
PREFIX = "p_"


class RowNumbers:
    """The numbers of an anchor or of a reference as attributes, of any name."""

    def __init__(self, of: str):
        self.__dict__["_of"] = of

    def __getattr__(self, name: str) -> Expr:
        if name.startswith("_") or not name.isidentifier() or keyword.iskeyword(name):
            raise AttributeError(f"a number of a row cannot have the name {name!r}")
        return variable(f"{self._of}.{name}")


class Parameters:
    """What a function of a formula gets as its last argument: the parameters as attributes, and as ``anchor`` and
    ``ref`` the numbers of a pair's samples."""

    def __init__(self, names: Collection[str]):
        self.__dict__.update({name: variable(PREFIX + name) for name in names})
        self.__dict__.update({of: RowNumbers(of) for of in ("anchor", "ref")})

    def __getattr__(self, name: str):
        known = ", ".join(x for x in self.__dict__ if x not in ("anchor", "ref")) or "none"
        raise AttributeError(f"the loss has no parameter {name!r}; it was given {known}")


def traced(
    positive: Callable,
    negative: Callable,
    anchor: Callable,
    names: Collection[str],
    count: Callable | float = 1,
    needs: Collection[Kind] | None = None,
    learned: Collection[str] = (),
) -> PairFormula:
    """The formula that the functions compute, whose name is made of its contents. ``learned``: the names of parameters
    by which there is a gradient.

    Raises:
        TypeError: a function cannot be traced, or returns something else than an expression.
        ValueError: a formula that kernels cannot compute.
    """
    p = Parameters(names)
    terms = {"positive": called("positive", positive, s, p), "negative": called("negative", negative, s, p)}
    per_anchor = called("anchor", anchor, P, N, p)
    if isinstance(count, Real):
        counted = (count,) * len(per_anchor) if isinstance(per_anchor, tuple) else count
    else:
        counted = called("count", count, P, N, p)
    made = {**terms, "anchor": per_anchor, "count": counted, "needs": tuple(needs or ()) or needed(per_anchor)}
    made["learned"] = tuple(PREFIX + name for name in learned)
    return named_by_content(PairFormula("custom", **made))


def named_by_content(formula: PairFormula) -> PairFormula:
    # Parts of Expr are frozen dataclasses: their repr is all that they are.
    needs = [kind.name for kind in formula.needs]
    content = repr((formula.positive, formula.negative, formula.written, formula.counts, needs, formula.learned))
    return replace(formula, name=f"{formula.name}_{hashlib.sha256(content.encode()).hexdigest()[:16]}")


def called(name: str, function: Callable, *arguments) -> Expr | tuple[Expr, ...]:
    """What a user's function returns, with the name of the argument in errors."""
    wanted = f"({', '.join(ARGUMENTS[name])})"
    if not callable(function):
        raise TypeError(f"{name} must be a function of {wanted}, got {type(function).__name__}")
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError) as error:  # ValueError: of a function that is not written in Python
        raise TypeError(f"{name} must be a function of {wanted}: {error}") from None
    token = TRACING.set(True)
    try:
        made = function(*arguments)
        if name in ("positive", "negative"):
            return as_expr(made)
        return tuple(map(as_expr, made)) if isinstance(made, tuple) else as_expr(made)
    except (TypeError, ValueError, AttributeError) as error:
        kind = TypeError if isinstance(error, AttributeError) else type(error)
        raise kind(f"{name} cannot be traced: {error}") from error
    finally:
        TRACING.reset(token)


def needed(anchor: Expr | tuple[Expr, ...]) -> tuple[Kind, ...]:
    """The kinds without which the loss of an anchor has no value: those of which it reads the mean or the maximum."""
    parts = anchor if isinstance(anchor, tuple) else (anchor,)
    read = {x for part in parts for x in subexpressions(part)}
    return tuple(kind for kind in (P, N) if {kind.mean, kind.max} & read)


def writer(formula: PairFormula) -> Callable[[Expr], str]:
    """Writes expressions as the functions of the formula would."""
    names = {name: f"p.{name.removeprefix(PREFIX)}" for name in formula.parameters}
    names |= {f"{of}.{x}": f"p.{of}.{x}" for of in ("anchor", "ref") for x in formula.scalars(of)}
    whole = {}
    for letter, kind in (("P", P), ("N", N)):
        read = ("pairs", "sum", "mean", "nonzero", "max", "by_negatives_lse")
        names.update({f"{kind.name}.{what}": f"{letter}.{what}" for what in read})
        names[f"{kind.name}.highest"] = f"{letter}.lse"
        whole[kind.lse.rest] = as_expr(0)
    return lambda of: text(substitute(of, whole), names, {"absolute": "abs({})", "constant": "constant({})"})


def as_written(formula: PairFormula) -> dict[str, str]:
    """The terms and the anchor's loss, as the functions of the formula were, or would be, written."""
    write = writer(formula)
    parts = ", ".join(map(write, formula.parts))
    return {"positive": write(formula.positive), "negative": write(formula.negative), "anchor": parts}
