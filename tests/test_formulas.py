"""The definitions of the pair losses: their derivatives, what is read off them, and that they need nothing else."""

import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import MADE_UP

import fastpair
from fastpair.formulas import to_cpp
from fastpair.formulas.__main__ import printed
from fastpair.formulas.expressions import (
    Expr,
    constant,
    derivative,
    divide,
    interval,
    nonzero,
    relu,
    share,
    sigmoid,
    softplus,
    square,
    step,
    text,
    variable,
    variables,
)
from fastpair.formulas.formula import LOG_SUM_EXP, MAX, SUM, N, P, PairFormula, negatives_lse, s
from fastpair.formulas.pair_losses import DEFINITIONS, FORMULAS

FUNCTIONS = {
    "relu": lambda x: max(x, 0.0),
    "step": lambda x: float(x > 0),
    "nonzero": lambda x: float(x != 0),
    "square": lambda x: x * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
}
a, b, c = map(variable, "abc")
COMPILER = os.environ.get("CXX", "c++")
EXPRESSIONS = {
    "sums": a + b - 3 - (a - b),
    "products": -a * (b - 2) * a,
    "quotients": divide(a, b) / (1 + square(b)),
    "relu": relu(a - b) * 2 + square(relu(b - a)),
    "softplus": softplus(a * b) - sigmoid(b - a) / 3,
    "steps": step(a) * a + nonzero(b) * b,
}
every_formula = pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())


def value(of: Expr, values: dict[str, float]) -> float:
    names = {name: f"v[{name!r}]" for name in variables(of)}
    return eval(text(of, names), {**FUNCTIONS, "v": values})


def draw(of: list[Expr], random_numbers: random.Random) -> dict[str, float]:
    return {name: random_numbers.uniform(0.1, 2) for x in of for name in variables(x)}


def slope(of: Expr, by: str, values: dict[str, float], width: float = 1e-6) -> float:
    above, below = ({**values, by: values[by] + side} for side in (width, -width))
    return (value(of, above) - value(of, below)) / (2 * width)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_derivatives(name):
    of, numbers = EXPRESSIONS[name], random.Random(1)
    for _ in range(50):
        values = draw([of], numbers)
        for by in (a, b):
            assert value(derivative(of, by), values) == pytest.approx(slope(of, by.args[0], values), abs=1e-6)


def test_constants_have_no_derivative():
    of = constant(relu(1 - a)) * (a - 2)
    assert value(derivative(of, a), {"a": 0.25}) == 0.75


# Not those that have constants in them.
@pytest.mark.parametrize(
    "formula", [formula for name, formula in FORMULAS.items() if name not in ("circle", "row_logsumexp")]
)
def test_slopes_of_terms(formula):
    numbers = random.Random(2)
    for term in (formula.positive, formula.negative):
        for by in (s, negatives_lse):
            if by not in (variable(name) for name in variables(term)):
                continue
            for _ in range(20):
                values = draw([term], numbers)
                got = value(derivative(term, by), values)
                assert got == pytest.approx(slope(term, by.args[0], values), abs=1e-6)


@every_formula
def test_sharing_changes_nothing(formula):
    outputs = [*formula.parts, *formula.counts, *formula.slope(P), *formula.slope(N)]
    values = draw(outputs, random.Random(3))
    shared, rest = share(outputs, "x")
    known = dict(values)
    for name, of in shared:
        known[name] = value(of, known)
    assert [value(of, known) for of in rest] == [value(of, values) for of in outputs]
    uses = [x for of in [*rest, *(of for _, of in shared)] for x in variables(of)]
    assert all(uses.count(name) > 1 for name, _ in shared)


@every_formula
def test_largest_exponent_bounds_the_terms(formula):
    numbers = random.Random(4)
    params = [numbers.uniform(0.1, 3) for _ in formula.parameters]
    most = formula.largest_exponent(params, (-1.0, 1.0))
    known = dict(zip(formula.parameters, params))
    for kind, term in ((P, formula.positive), (N, formula.negative)):
        if formula.pool(kind) == LOG_SUM_EXP:
            for i in range(101):
                assert abs(value(term, {**known, "s": -1 + i / 50})) <= most + 1e-12


@pytest.mark.parametrize(
    "of, low, high",
    [(square(a), 0, 4), (1 / a, -math.inf, math.inf), (a - a, -3, 3), (relu(a), 0, 2), (nonzero(a), 0, 1)],
)
def test_intervals(of, low, high):
    assert interval(of, {"a": (-1.0, 2.0)}) == (low, high)


def test_sums_are_told_from_other_formulas():
    sums = {name for name, formula in {**FORMULAS, **MADE_UP}.items() if formula.is_sum}
    assert sums == {"contrastive", "squared_contrastive", "sigmoid", "steps", "terms"}


def printed_by_cpp(formulas: list[PairFormula], folder: Path, calls: list[str]) -> list[list[float]]:
    structs = "".join(map(to_cpp.struct, formulas))
    lines = "".join(f"    {call}\n" for call in calls)
    source = f"""
#include <cstdio>
#include "elementary.h"
#include "pair_losses/statistics.h"
namespace fastpair {{
{structs}
template <typename Terms>
void show(const double* params, double s, double lse, const Statistic& pos, const Statistic& neg) {{
  const Terms terms(params);
  const Anchor of = Terms::anchor(params, pos, neg);
  const double values[] = {{
      terms.positive(s, lse), terms.positive_slope(s, lse), terms.negative(s, lse), terms.negative_slope(s, lse),
      of.loss, of.count, of.neg_loss, of.neg_count, of.pos.factor, of.pos.constant, of.neg.factor, of.neg.constant}};
  for (const double value : values) std::printf("%.17g ", value);
  std::printf("\\n");
}}
}}
int main() {{
  using namespace fastpair;
{lines}}}
"""
    (folder / "main.cpp").write_text(source)
    csrc = Path(__file__).parents[1] / "csrc"
    command = [COMPILER, "-std=c++20", "-Wno-unknown-pragmas", "-I", csrc, "-o", folder / "main", folder / "main.cpp"]
    subprocess.run(list(map(str, command)), check=True)
    shown = subprocess.run([folder / "main"], check=True, capture_output=True, text=True).stdout
    return [list(map(float, line.split())) for line in shown.splitlines()]


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler {COMPILER!r}")
def test_structs_compute_the_formulas(tmp_path):
    numbers = random.Random(5)
    formulas, calls, expected = [*FORMULAS.values(), *MADE_UP.values()], [], []
    for formula in formulas:
        params = [numbers.uniform(0.1, 3) for _ in formula.parameters]
        known = dict(zip(formula.parameters, params)) | {"s": numbers.uniform(-1, 1), "negatives_lse": numbers.random()}
        statistics = []
        for kind in (P, N):
            pairs, value_, rest, nonzero_, by, total = (
                numbers.randint(1, 9),
                *(numbers.uniform(-2, 2) for _ in range(5)),
            )
            k, pool = kind.name, formula.pool(kind)
            known |= {f"{k}.pairs": pairs, f"{k}.nonzero": nonzero_, f"{k}.by_negatives_lse": by, f"{k}.max": value_}
            known |= {f"{k}.highest": value_, f"{k}.rest": rest, f"{k}.sum": value_ if pool == SUM else total}
            known[f"{k}.mean"] = known[f"{k}.sum"] / pairs
            statistics.append(f"{{{pairs}, {value_!r}, {rest!r}, {nonzero_!r}, {by!r}, {total!r}}}")
        name = f"{to_cpp.struct_name(formula)}<double>"
        listed = ", ".join(map(repr, params or [0.0]))
        numbers_of_pair = f"{known['s']!r}, {known['negatives_lse']!r}"
        calls.append(
            f"{{ const double p[] = {{{listed}}}; show<{name}>(p, {numbers_of_pair}, {', '.join(statistics)}); }}"
        )
        terms = [x for term in (formula.positive, formula.negative) for x in (term, derivative(term, s))]
        expected.append([value(x, known) for x in [*terms, *formula.outputs().values()]])
    for formula, got, want in zip(formulas, printed_by_cpp(formulas, tmp_path, calls), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-12, abs=1e-12), formula.name


def test_pools_are_read_off_the_anchor():
    pools = {name: (formula.pool(P), formula.pool(N)) for name, formula in FORMULAS.items()}
    assert pools["contrastive"] == (SUM, SUM) and pools["supcon"] == (LOG_SUM_EXP, LOG_SUM_EXP)
    assert pools["ntxent"] == (SUM, LOG_SUM_EXP) and pools["hard_triplet"] == (MAX, MAX)
    assert [name for name, formula in FORMULAS.items() if formula.needs_sum] == ["supcon"]
    assert [name for name, formula in FORMULAS.items() if formula.separate_means] == ["contrastive", "proxy_anchor"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"positive": 2 * s, "anchor": P.max + N.max}, "a maximum is that of s or -s"),
        ({"anchor": P.max}, "both kinds have a maximum, or none"),
        ({"anchor": P.max + N.max + P.sum}, "a maximum or something else"),
        ({"anchor": P.max + N.max + N.lse}, "a maximum or something else"),
        ({"anchor": N.lse + N.sum}, "a sum or a log-sum-exp"),
        ({"positive": softplus(negatives_lse - s), "anchor": P.lse + N.lse}, "positives are summed"),
        ({"negative": negatives_lse + s, "anchor": P.sum + N.lse}, "for the terms of positives alone"),
        ({"anchor": P.mean + N.lse}, "means are of kinds that it needs"),
        ({"anchor": P.nonzero + P.lse}, "counted of sums alone"),
        ({"anchor": (N.lse, N.lse), "count": (1, 1)}, "the first is of positives"),
        ({"anchor": (P.lse, P.lse), "count": (1, 1)}, "the second of negatives"),
        ({"anchor": (P.sum, N.sum)}, "one part or two"),
        ({"anchor": (P.sum, N.sum, N.sum), "count": (1, 1, 1)}, "one part or two"),
        ({"positive": variable("x1") * s, "anchor": P.sum + N.sum}, "cannot have the name x1"),
        ({"positive": variable("params") * s, "anchor": P.sum + N.sum}, "cannot have the name params"),
    ],
)
def test_formulas_that_no_kernel_has(arguments, message):
    with pytest.raises(ValueError, match=message):
        PairFormula(**{"name": "made_up", "positive": s, "negative": s, **arguments})


def test_parameters_are_those_of_the_settings():
    for definition in DEFINITIONS.values():
        for formula in (FORMULAS[name] for name in definition.formulas):
            assert sorted(formula.parameters) == sorted(setting.parameter for setting in definition.settings)


def test_formulas_need_the_standard_library_alone():
    package = Path(fastpair.__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); from formulas import pair_losses, to_torch; "
        "[to_torch.loss(f) for f in pair_losses.FORMULAS.values()]; "
        "print([name for name in ('torch', 'numpy', 'fastpair') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_printed_files_are_those_of_the_definitions():
    for path, content in printed().items():
        assert path.read_text(encoding="utf-8") == content, f"{path} is old: python -m fastpair.formulas"


def test_losses_can_be_compiled_before_they_are_called(forks):
    code = """
import torch
import fastpair.functional as FP
x, labels = torch.randn(16, 8, requires_grad=True), torch.arange(16) // 2
torch.compile(FP.circle_loss, fullgraph=True, backend="aot_eager")(x, labels, backend="reference").backward()
print("compiled")
"""
    assert forks.run(code) == "compiled\n"
