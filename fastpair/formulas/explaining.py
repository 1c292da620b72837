"""What becomes of a formula, to be read."""

from __future__ import annotations

from collections.abc import Callable

from . import to_cpp, to_torch, to_triton
from .expressions import derivative, variable
from .formula import LOG_SUM_EXP, MAX, SUM, N, P, PairFormula, negatives_lse, s
from .pair_losses import ADDED, DEFINITIONS, FORMULAS
from .tracing import as_written, writer

POOLS = {SUM: "sum", LOG_SUM_EXP: "log-sum-exp", MAX: "maximum"}


def explain(loss: object) -> str:
    """The formula of a pair loss, its slopes and the code that computes it, as a text to print.

    With u a positive's and v a negative's term, and L the anchor's loss: du/ds and dv/ds, and dL/du and dL/dv. A part
    "share" of these is that of the term in its log-sum-exp, exp(u - P.lse).

    Args:
        loss: a :class:`fastpair.losses.CustomPairLoss`; a pair loss of the package as a module, a class of modules or
            a function; or the name of a formula, such as "supcon".

    Raises:
        TypeError: something that has no such formula, as losses over triplets or on classes have none.
        ValueError: an unknown name.
    """
    formula = formula_of(loss)
    write = writer(formula)
    lines = {f"{name}:": of for name, of in as_written(formula).items()}
    lines["count:"] = ", ".join(map(write, formula.counts))
    if formula.needs:
        lines["needs:"] = " and ".join({P: "positives", N: "negatives"}[kind] for kind in formula.needs)
    for kind, term, what in ((P, formula.positive, "u"), (N, formula.negative, "v")):
        letter = {P: "P", N: "N"}[kind]
        lines[f"pool of {letter}:"] = POOLS[formula.pool(kind)]
        lines[f"d{what}/ds ="] = write(derivative(term, s))
        if kind is P and formula.reads_negatives_lse:
            lines["du/dN.lse ="] = write(derivative(term, negatives_lse))
        factor, constant = formula.slope(kind)
        lines[f"dL/d{what} ="] = write(factor * variable("share") + constant)
    width = max(map(len, lines)) + 1
    shown = [f"{name:<{width}}{of}" for name, of in lines.items()]
    return "\n".join(
        [
            f"The pair loss {formula.name}",
            *shown,
            "",
            "C++ and CUDA:",
            to_cpp.struct(formula),
            "Triton:",
            to_triton.terms(formula)[1],
            to_triton.anchor(formula)[1],
            "PyTorch, with s (n, m) and the masks of the pairs:",
            to_torch.loss(formula)[1],
        ]
    )


def formula_of(loss: object) -> PairFormula:
    formula = loss if isinstance(loss, PairFormula) else getattr(loss, "formula", None)
    if isinstance(formula, PairFormula):
        return formula
    if isinstance(loss, str):
        known = {**FORMULAS, **ADDED}
        if loss not in known:
            raise ValueError(f"loss must be the name of a formula, one of {', '.join(known)}, got {loss!r}")
        return known[loss]
    function: object | Callable = getattr(loss, "_function", loss)
    name = getattr(function, "__name__", "")
    for definition in DEFINITIONS.values():
        if name in (definition.module, f"{definition.name}_loss"):
            settings = loss.settings() if hasattr(loss, "settings") and not isinstance(loss, type) else {}
            return FORMULAS[definition.picked(settings) if settings else definition.formulas[0]]
    raise TypeError(f"loss must be a pair loss with a formula, or the name of one, got {name or type(loss).__name__}")
