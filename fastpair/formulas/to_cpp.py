"""Prints formulas as the structs that the C++ and CUDA kernels are compiled with."""

from __future__ import annotations

from collections.abc import Iterable

from .expressions import Expr, derivative, share, text, variables
from .formula import SUM, N, P, PairFormula, negatives_lse, s

# The names of csrc/elementary.h for operations that the C++ library has as well.
CALLS = {"exp": "exponential({})", "log": "logarithm({})", "sqrt": "square_root({})"}
# Of an anchor, whose numbers may be integers, which do not tell the type of a call.
OF_ANCHOR = {
    **CALLS,
    "minimum": "minimum<double>({}, {})",
    "maximum": "maximum<double>({}, {})",
    "where": "where<double>({}, {}, {})",
}

HEADER = """\
// The pair losses, one struct each. Made by `python -m fastpair.formulas` from the definitions in
// fastpair/formulas/pair_losses.py: not to be edited.
// clang-format off
#pragma once

#include "elementary.h"
#include "pair_losses/statistics.h"

namespace fastpair {
"""

LIST = """\
// ENTRY(name, struct) for every loss, separated by commas.
#define FASTPAIR_PAIR_LOSSES(ENTRY, T) \\
"""


def header(formulas: Iterable[PairFormula]) -> str:
    formulas = list(formulas)
    entries = ", \\\n".join(f'  ENTRY("{formula.name}", {struct_name(formula)}<T>)' for formula in formulas)
    return "\n".join([HEADER, *map(struct, formulas), f"{LIST}{entries}\n", "}  // namespace fastpair\n"])


def struct_name(formula: PairFormula) -> str:
    return "".join(word.capitalize() for word in formula.name.split("_"))


def struct(formula: PairFormula) -> str:
    name, parameters = struct_name(formula), formula.parameters
    flags = {
        "IS_SUM": formula.is_sum,
        "READS_NEGATIVES_LSE": formula.reads_negatives_lse,
        "NEEDS_SUM": formula.needs_sum,
        "SEPARATE_MEANS": formula.separate_means,
    }
    of_pairs = sorted({x for term in (formula.positive, formula.negative) for x in variables(term)} - {"s"})
    fields = [name for name in parameters if name in of_pairs]
    made = ", ".join(f"{x}(T(params[{parameters.index(x)}]))" for x in fields)
    lines = [
        "template <typename T>",
        f"struct {name} : PairTerms {{",
        f"  static constexpr int PARAMS = {len(parameters)};",
        f"  static constexpr Pool POSITIVES = Pool::{formula.pool(P)}, NEGATIVES = Pool::{formula.pool(N)};",
        *(f"  static constexpr bool {flag} = true;" for flag, on in flags.items() if on),
        *([f"  T {', '.join(fields)};"] if fields else []),
        f"  FASTPAIR_INLINE explicit {name}(const double*{' params' if fields else ''})"
        + (f" : {made} {{}}" if fields else " {}"),
    ]
    for kind, term in (("positive", formula.positive), ("negative", formula.negative)):
        # A term that is exponentiated must not be fused with the subtraction of its shift.
        rounded = formula.pool(P if kind == "positive" else N) != SUM or formula.reads_negatives_lse
        lines.append(pair_function(kind, term, rounded))
        lines.append(pair_function(f"{kind}_slope", derivative(term, s), rounded))
    if formula.reads_negatives_lse:
        lines.append(pair_function("slope_by_negatives_lse", derivative(formula.positive, negatives_lse), True))
    return "\n".join([*lines, *anchor_function(formula), "};\n"])


def pair_function(name: str, of: Expr, rounded: bool) -> str:
    calls = {**CALLS, "number": "T({})", **({"multiply": "product({}, {})"} if rounded else {})}
    used = variables(of)
    arguments = ", ".join(f"T {x}" if x in used else "T" for x in ("s", "negatives_lse"))
    return f"  FASTPAIR_INLINE T {name}({arguments}) const {{ return {text(of, calls=calls)}; }}"


def anchor_function(formula: PairFormula) -> list[str]:
    """The function of an anchor, which sets only the outputs that are not zero."""
    outputs = {name: of for name, of in formula.outputs().items() if of.number != 0}
    shared, values = share(list(outputs.values()), "x")
    names = formula.fields(beside="sum")
    written = [text(of, names, OF_ANCHOR) for of in [*(of for _, of in shared), *values]]
    reads = {x.split(".")[0] for of in [*(of for _, of in shared), *values] for x in variables(of)}
    missing = " || ".join(f"{kind.name}.pairs == 0" for kind in formula.needs)
    reads |= {kind.name for kind in formula.needs}
    used = [name for name in formula.parameters if name in reads]
    arguments = [
        "const double*" + (" params" if used else ""),
        *(f"const Statistic&{' ' + kind.name if kind.name in reads else ''}" for kind in (P, N)),
    ]
    return [
        f"  FASTPAIR_INLINE static Anchor anchor({', '.join(arguments)}) {{",
        *([f"    if ({missing}) return {{}};"] if missing else []),
        *(f"    const double {name} = params[{formula.parameters.index(name)}];" for name in used),
        *(f"    const double {name} = {of};" for (name, _), of in zip(shared, written)),
        "    Anchor a;",
        *(f"    a.{name} = {of};" for name, of in zip(outputs, written[len(shared) :])),
        "    return a;",
        "  }",
    ]
