"""Prints formulas as device functions, for the kernels of :mod:`fastpair.backends.triton`."""

from __future__ import annotations

from collections.abc import Iterable

from .expressions import Expr, derivative, share, text
from .formula import PairFormula, negatives_lse, s

CALLS = {op: f"tl.{name}({{}})" for op, name in (("exp", "exp"), ("log", "log"), ("sqrt", "sqrt"), ("absolute", "abs"))}


def of_pair(formula: PairFormula) -> list[Expr]:
    """u, du/ds, v, dv/ds and the derivative of u by ``negatives_lse``."""
    return [
        formula.positive,
        derivative(formula.positive, s),
        formula.negative,
        derivative(formula.negative, s),
        derivative(formula.positive, negatives_lse),
    ]


def terms(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function of the closeness, the anchor's ``negatives_lse`` and the parameters that returns
    ``of_pair``."""
    shared, outputs = share(of_pair(formula), "x")
    lines = [f"{name} = {text(of, calls=CALLS)}" for name, of in shared]
    return printed(formula, "terms", "s, negatives_lse", lines, map(value, outputs))


def anchor(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function that returns ``PairFormula.outputs``, given the statistics of both kinds, each a
    ``Statistic`` of :mod:`fastpair.backends.triton.pair_kernels`."""
    shared, outputs = share(list(formula.outputs().values()), "x")
    fields = formula.fields(beside="aside", nonzero="aside")
    names = {symbol: symbol.replace(".", "_") for symbol in fields}
    made = [f"{name} = {text(of, names, CALLS)}" for name, of in shared]
    values = [value(of, names) for of in outputs]
    if formula.needs:
        # For anchors that do not count, values that give no NaN.
        fields = {x: f"tl.where(counted, {of}, {float(x.endswith('.pairs'))})" for x, of in fields.items()}
        values = [of if of == "0.0" else f"tl.where(counted, {of}, 0.0)" for of in values]
    used = " ".join([*made, *values])
    read = [f"{names[symbol]} = {of}" for symbol, of in fields.items() if names[symbol] in used]
    counted = " & ".join(f"({kind.name}.pairs > 0)" for kind in formula.needs)
    lines = [*([f"counted = {counted}"] if counted else []), *read, *made]
    return printed(formula, "anchor", "pos, neg", lines, values)


def printed(
    formula: PairFormula, what: str, arguments: str, lines: Iterable[str], values: Iterable[str]
) -> tuple[str, str]:
    name = f"{formula.name}_{what}"
    head = f"def {name}({arguments}, {', '.join(formula.parameters) or 'unused'}):"  # a kernel passes at least one
    body = [*lines, "return (", *(f"    {of}," for of in values), ")"]
    return name, "\n    ".join([head, *body]) + "\n"


def value(of: Expr, names: dict[str, str] | None = None) -> str:
    """A bare number gets a decimal point: the compiler would take it for an integer."""
    return text(of, names, CALLS) if of.number is None else repr(float(of.number))
