"""Prints formulas as the structs that the C++ and CUDA kernels are compiled with."""

from __future__ import annotations

from collections.abc import Iterable

from .expressions import Expr, derivative, share, substitute, text, variables
from .formula import MEANS, SUM, N, P, PairFormula, negatives_lse, s

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
        "READS_SCALARS": formula.reads_scalars,
    }
    scalars = {of: formula.scalars(of) for of in ("anchor", "ref")}
    counts = {f"{of.upper()}_SCALARS": len(names) for of, names in scalars.items()} | {"LEARNED": len(formula.learned)}
    if formula.is_scaled and not formula.learned:
        counts |= {x.upper(): 1 + parameters.index(x) for x in ("scale", "bias") if x in parameters}
    of_rows = [f"{of}_{name}" for of, names in scalars.items() for name in names] if formula.reads_scalars else []
    of_pairs = sorted({x for term in (formula.positive, formula.negative) for x in variables(term)} - {"s"})
    fields = [name for name in parameters if name in of_pairs]
    made = ", ".join(f"{x}(T(params[{parameters.index(x)}]))" for x in fields)
    lines = [
        "template <typename T>",
        f"struct {name} : PairTerms {{",
        f"  static constexpr int PARAMS = {len(parameters)};",
        f"  static constexpr Pool POSITIVES = Pool::{formula.pool(P)}, NEGATIVES = Pool::{formula.pool(N)};",
        *(f"  static constexpr bool {flag} = true;" for flag, on in flags.items() if on),
        *(f"  static constexpr int {count} = {value};" for count, value in counts.items() if value),
        *([f"  T {', '.join([*fields, *of_rows])};"] if fields or of_rows else []),
        f"  FASTPAIR_INLINE explicit {name}(const double*{' params' if fields else ''})"
        + (f" : {made} {{}}" if fields else " {}"),
        *(at_function(name, scalars) if of_rows else []),
    ]
    for kind, term in (("positive", formula.positive), ("negative", formula.negative)):
        # A term that is exponentiated must not be fused with the subtraction of its shift.
        rounded = formula.pool(P if kind == "positive" else N) != SUM or formula.reads_negatives_lse
        lines.append(pair_function(kind, term, rounded))
        lines.append(pair_function(f"{kind}_slope", derivative(term, s), rounded))
        if formula.learned:
            lines.append(pair_function(f"{kind}_by", formula.derivatives(term), rounded))
    if formula.reads_negatives_lse:
        lines.append(pair_function("slope_by_negatives_lse", derivative(formula.positive, negatives_lse), True))
    return "\n".join([*lines, *anchor_functions(formula), "};\n"])


def at_function(struct: str, scalars: dict[str, list[str]]) -> list[str]:
    """The function that sets the numbers of a pair's samples, whose first ones are pointed to."""
    arguments = ", ".join(
        f"const T* {of}, int64_t {of}_ld" if names else "const T*, int64_t" for of, names in scalars.items()
    )
    return [
        f"  FASTPAIR_INLINE {struct} at({arguments}) const {{",
        f"    {struct} of = *this;",
        *(f"    of.{of}_{x} = {of}[{k} * {of}_ld];" for of, names in scalars.items() for k, x in enumerate(names)),
        "    return of;",
        "  }",
    ]


def pair_function(name: str, of: Expr | list[Expr], rounded: bool) -> str:
    """A function of a pair; of a list: a template, whose argument picks one."""
    calls = {**CALLS, "number": "T({})", **({"multiply": "product({}, {})"} if rounded else {})}
    every = of if isinstance(of, list) else [of]
    used = {x for one in every for x in variables(one)}
    names = {x: x.replace(".", "_") for x in used}
    written = [f"return {text(one, names, calls)};" for one in every]
    if isinstance(of, list):
        written = [f"if constexpr (K == {k}) {line}" for k, line in enumerate(written)]
    arguments = ", ".join(f"T {x}" if x in used else "T" for x in ("s", "negatives_lse"))
    head = "template <int K>\n  " if isinstance(of, list) else ""
    return f"  {head}FASTPAIR_INLINE T {name}({arguments}) const {{ {' '.join(written)} }}"


def anchor_functions(formula: PairFormula) -> list[str]:
    """The function of an anchor, and that of its derivatives by the parameters that learn."""
    lines = anchor_function(
        formula, "Anchor anchor", "", {f"a.{x}": of for x, of in formula.outputs().items()}, "Anchor a"
    )
    if formula.learned:
        derivatives = {
            f"{part}[{k}]": substitute(of, MEANS)
            for part, loss in zip(("part", "neg_part"), formula.parts)
            for k, of in enumerate(formula.derivatives(loss))
        }
        out = ", double* part, double* neg_part"
        lines += anchor_function(formula, "void anchor_derivatives", out, derivatives)
    return lines


def anchor_function(
    formula: PairFormula, name: str, further: str, outputs: dict[str, Expr], result: str = ""
) -> list[str]:
    """A function of an anchor's statistics, which sets the outputs that are not zero. ``further``: the rest of its
    arguments; ``result``: type and name of what it returns."""
    outputs = {name: of for name, of in outputs.items() if of.number != 0}
    shared, values = share(list(outputs.values()), "x")
    scalars = {f"anchor.{x}": f"scalars[{k}]" for k, x in enumerate(formula.scalars("anchor"))}
    every = [*(of for _, of in shared), *values]
    written = [text(of, {**formula.fields(beside="sum"), **scalars}, OF_ANCHOR) for of in every]
    reads = {x.split(".")[0] for of in every for x in variables(of)} | {kind.name for kind in formula.needs}
    missing = " || ".join(f"{kind.name}.pairs == 0" for kind in formula.needs)
    used = [name for name in formula.parameters if name in reads]
    arguments = [
        "const double*" + (" params" if used else ""),
        *(["const double*" + (" scalars" if "anchor" in reads else "")] if scalars else []),
        *(f"const Statistic&{' ' + kind.name if kind.name in reads else ''}" for kind in (P, N)),
    ]
    return [
        f"  FASTPAIR_INLINE static {name}({', '.join(arguments)}{further}) {{",
        *([f"    if ({missing}) return{' {}' if result else ''};"] if missing else []),
        *(f"    const double {name} = params[{formula.parameters.index(name)}];" for name in used),
        *(f"    const double {name} = {of};" for (name, _), of in zip(shared, written)),
        *([f"    {result};"] if result else []),
        *(f"    {name} = {of};" for name, of in zip(outputs, written[len(shared) :])),
        *([f"    return {result.split()[-1]};"] if result else []),
        "  }",
    ]
