"""Prints formulas as device functions, for the kernels of :mod:`fastpair.backends.triton`."""

from __future__ import annotations

from .expressions import derivative, share, substitute, text
from .formula import SUM, N, P, PairFormula, negatives_lse, s

# Places in what a kernel knows of an anchor's pairs of one kind.
PAIRS, VALUE, LOG_SUM, ASIDE, BY_NEGATIVES_LSE = range(5)


def arguments(formula: PairFormula) -> str:
    """A kernel has at least one parameter."""
    return ", ".join(formula.parameters) or "unused"


def terms(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function that returns u, du/ds, v, dv/ds and the derivative of u by ``negatives_lse``."""
    name = f"{formula.name}_terms"
    outputs = [
        formula.positive,
        derivative(formula.positive, s),
        formula.negative,
        derivative(formula.negative, s),
        derivative(formula.positive, negatives_lse),
    ]
    shared, outputs = share(outputs, "x")
    lines = [
        f"def {name}(s, negatives_lse, {arguments(formula)}):",
        *(f"    {name} = {text(of)}" for name, of in shared),
        f"    return {', '.join(text(of) for of in outputs)}",
    ]
    return name, "\n".join(lines) + "\n"


def anchor(formula: PairFormula) -> tuple[str, str]:
    """Name and source of a function that returns (loss, count, loss of the negatives, their count, slope of the
    positives' terms, slope of the negatives'), a slope being (factor, constant), of what both kinds came to. The loss
    and the count of the negatives are apart where they have a mean of their own, and zero elsewhere."""
    name = f"{formula.name}_anchor"
    (loss, *neg_loss), (count, *neg_count) = formula.parts, formula.counts
    outputs = [loss, count, *(neg_loss or [s * 0]), *(neg_count or [s * 0]), *formula.slope(P), *formula.slope(N)]
    means = {f"{kind.name}.mean": kind.sum / kind.pairs for kind in (P, N)}
    shared, outputs = share([substitute(of, means) for of in outputs], "x")
    names, read = {}, []
    for kind in (P, N):
        for symbol, place in (
            (kind.pairs, PAIRS),
            (kind.sum, VALUE if formula.pool(kind) == SUM else ASIDE),
            (kind.nonzero, ASIDE),
            (kind.max, VALUE),
            (kind.lse.highest, VALUE),
            (kind.lse.rest, LOG_SUM),
            (kind.by_negatives_lse, BY_NEGATIVES_LSE),
        ):
            variable = symbol.args[0]
            names[variable] = variable.replace(".", "_")
            # Of anchors that do not count, numbers that give no NaN.
            if formula.needs:
                read.append((variable, f"tl.where(counted, {kind.name}[{place}], {int(place == PAIRS)}.0)"))
            else:
                read.append((variable, f"{kind.name}[{place}]"))
    written = [text(of, names) for of in [*(of for _, of in shared), *outputs]]
    used = " ".join(written)
    counted = " & ".join(f"({kind.name}[{PAIRS}] > 0)" for kind in formula.needs)
    values = [f"{of}.0" if of.isdigit() else of for of in written[len(shared) :]]
    values = [f"tl.where(counted, {of}, 0.0)" if counted and of != "0.0" else of for of in values]
    lines = [
        f"def {name}(pos, neg, {arguments(formula)}):",
        *([f"    counted = {counted}"] if counted else []),
        *(f"    {names[variable]} = {of}" for variable, of in read if names[variable] in used),
        *(f"    {name} = {of}" for (name, _), of in zip(shared, written)),
        f"    return {', '.join(values[:4])}, ({values[4]}, {values[5]}), ({values[6]}, {values[7]})",
    ]
    return name, "\n".join(lines) + "\n"
