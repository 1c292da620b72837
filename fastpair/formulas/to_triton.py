"""Prints formulas as device functions, for the kernels of :mod:`fastpair.backends.triton`."""

from __future__ import annotations

from collections.abc import Iterable

from .expressions import Expr, as_expr, derivative, share, substitute, text
from .formula import MEANS, PairFormula, negatives_lse, s

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
    """Name and source of a function of the closeness, the anchor's ``negatives_lse``, where the numbers of the anchor
    and of the reference are, and the parameters, that returns ``of_pair``."""
    return of_pairs(formula, "terms", of_pair(formula))


def derivatives(formula: PairFormula) -> tuple[str, str]:
    """A function like ``terms`` that returns the derivatives of u, and then of v, by the parameters that learn."""
    outputs = [of for term in (formula.positive, formula.negative) for of in formula.derivatives(term)]
    return of_pairs(formula, "derivatives", outputs)


def of_pairs(formula: PairFormula, what: str, of_pair: list[Expr]) -> tuple[str, str]:
    shared, outputs = share(of_pair, "x")
    names = {f"{of}.{x}": f"{of}_{x}" for of in ("anchor", "ref") for x in formula.scalars(of)}
    lines = [
        *(f"{x} = tl.load({x})" for x in formula.parameters if formula.learned),
        *loaded(formula, ("anchor", "ref") if formula.reads_scalars else ()),
        *(f"{name} = {text(of, names, CALLS)}" for name, of in shared),
    ]
    arguments = "s, negatives_lse, at_of_anchor, room_of_anchor, at_of_ref, room_of_ref"
    return printed(formula, what, arguments, lines, (value(of, names) for of in outputs))


def loaded(formula: PairFormula, sides: Iterable[str], convert: str = "") -> list[str]:
    """The numbers of rows, ``room`` apart in memory."""
    return [
        f"{of}_{x} = tl.load(at_of_{of} + {k} * room_of_{of}){convert}"
        for of in sides
        for k, x in enumerate(formula.scalars(of))
    ]


def anchor(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function that returns ``PairFormula.outputs``, given the statistics of both kinds, each a
    ``Statistic`` of :mod:`fastpair.backends.triton.pair_kernels`, and where the numbers of the anchor are."""
    return of_anchors(formula, "anchor", list(formula.outputs().values()))


def anchor_derivatives(formula: PairFormula) -> tuple[str, str]:
    """A function like ``anchor`` that returns the derivatives of both parts of the loss, or of one and zeros, by the
    parameters that learn, the terms being constant."""
    parts = (*formula.parts, as_expr(0))[:2]
    outputs = [substitute(of, MEANS) for part in parts for of in formula.derivatives(part)]
    return of_anchors(formula, "anchor_derivatives", outputs)


def of_anchors(formula: PairFormula, what: str, outputs: list[Expr]) -> tuple[str, str]:
    shared, outputs = share(outputs, "x")
    fields = formula.fields(beside="aside", nonzero="aside")
    names = {symbol: symbol.replace(".", "_") for symbol in fields}
    of_rows = {f"anchor.{x}": f"anchor_{x}" for x in formula.scalars("anchor")}
    made = [f"{name} = {text(of, names | of_rows, CALLS)}" for name, of in shared]
    values = [value(of, names | of_rows) for of in outputs]
    if formula.needs:
        # For anchors that do not count, values that give no NaN.
        fields = {x: f"tl.where(counted, {of}, {float(x.endswith('.pairs'))})" for x, of in fields.items()}
        values = [of if of == "0.0" else f"tl.where(counted, {of}, 0.0)" for of in values]
    used = " ".join([*made, *values])
    read = [f"{names[symbol]} = {of}" for symbol, of in fields.items() if names[symbol] in used]
    counted = " & ".join(f"({kind.name}.pairs > 0)" for kind in formula.needs)
    loads = [f"{x} = tl.load({x}).to(tl.float64)" for x in formula.parameters if formula.learned]
    loads += loaded(formula, ("anchor",), ".to(tl.float64)")
    lines = [*loads, *([f"counted = {counted}"] if counted else []), *read, *made]
    return printed(formula, what, "pos, neg, at_of_anchor, room_of_anchor", lines, values)


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
