"""A pair loss as three small functions and two pools, and what the gradient needs of them.

An anchor's positives P have terms u(s), its negatives N terms v(s); each kind is pooled to a sum, a log-sum-exp or a
maximum, and the anchor's loss is a function of both results. s is the closeness of a pair: a similarity, or the
negative of a distance.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from .expressions import (
    Expr,
    LogSumExp,
    as_expr,
    derivative,
    interval,
    logaddexp,
    subexpressions,
    substitute,
    variable,
    variables,
)

SUM, LOG_SUM_EXP, MAX = "Sum", "LogSumExp", "Max"

s, scale, bias = map(variable, ("s", "scale", "bias"))
# In place of scale * s, or of scale * s + bias.
scaled = variable("scaled.s")
# All that a positive's term may read of its anchor's other pairs: log sum_N exp(v), as one number.
negatives_lse = variable("negatives_lse")


class Kind:
    """The statistics of an anchor's pairs of one kind, which the anchor's loss reads. What it reads decides how their
    terms are pooled: ``lse`` is the log-sum-exp, ``max`` the largest, ``sum`` and ``mean`` are as named, ``nonzero``
    is how many terms are not zero; ``pairs`` is how many pairs there are."""

    def __init__(self, name: str):
        self.name = name
        self.pairs, self.sum, self.mean, self.nonzero, self.max, highest, rest = (
            variable(f"{name}.{what}") for what in ("pairs", "sum", "mean", "nonzero", "max", "highest", "rest")
        )
        self.lse = LogSumExp(highest, rest)
        # The derivative of the sum of the terms by ``negatives_lse``.
        self.by_negatives_lse = variable(f"{name}.by_negatives_lse")

    def __getattr__(self, name: str):
        raise AttributeError(f"P and N have lse, sum, mean, max, nonzero and pairs, not {name!r}")

    def __reduce__(self) -> str:
        return {"pos": "P", "neg": "N"}[self.name]  # there is one of each, known by identity


P, N = Kind("pos"), Kind("neg")
# Names that the printed functions use themselves.
RESERVED = {"s", "a", "u", "v", "T", "params", "pos", "neg", "positive", "negative", "counted", "losses", "neg_losses"}
# The log-sum-exp over an anchor's positives and negatives together, and the expressions of its two parts.
both_lse = LogSumExp(variable("both.highest"), variable("both.rest"))
MEANS = {kind.mean: kind.sum / kind.pairs for kind in (P, N)}
OF_BOTH = dict(zip((both_lse.highest, both_lse.rest), logaddexp(P.lse, N.lse).parts))


@dataclass(frozen=True, eq=False)
class PairFormula:
    """The formula of a pair loss.

    Attributes:
        name: as the operator ``fastpair::pair_loss`` takes it.
        positive, negative: the terms u(s) and v(s).
        anchor: the loss, or its two parts, that of the positives first, each with a mean of its own.
        count: how much an anchor counts in the mean, or in the mean of each part.
        needs: anchors without pairs of these kinds have loss 0 and do not count.
        learned: names of the parameters by which there is a gradient.
    """

    name: str
    positive: Expr
    negative: Expr
    anchor: Expr | tuple[Expr, Expr]
    count: Expr | float | tuple[Expr | float, Expr | float] = 1
    needs: tuple[Kind, ...] = ()
    learned: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuses what a printer could not print, or a kernel would compute differently."""
        pools, terms = (self.pool(P), self.pool(N)), (self.positive, self.negative)
        maxima = [kind for kind, pool in zip((P, N), pools) if pool == MAX]
        elsewhere = {x for of in (self.negative, *self.parts, *self.counts) for x in subexpressions(of)}
        read = [{name.split(".")[0] for name in variables(of)} for of in self.parts]
        named = [name for name in self.parameters if not name.isidentifier() or keyword.iskeyword(name)]
        of_rows = {name for of in (*self.parts, *self.counts) for name in variables(of) if name.startswith("ref.")}
        named += [name for name in self.parameters if name in RESERVED or re.fullmatch("[tx][0-9]+", name)]
        for problem, found in (
            ("the loss has one part or two, each with a count", len(self.counts) != len(self.parts) or len(read) > 2),
            ("of two parts the first is of positives, the second of negatives",
             len(read) == 2 and ("neg" in read[0] or "pos" in read[1])),
            ("negatives_lse is for the terms of positives alone", negatives_lse in elsewhere),
            (f"a parameter cannot have the name {', '.join(named)}", named),
            (f"the loss of an anchor cannot read {', '.join(sorted(of_rows))}, numbers of its references", of_rows),
            ("means are of kinds that it needs", any(self.reads(k.mean) and k not in self.needs for k in (P, N))),
            ("both kinds have a maximum, or none, or that of the positives stands alone, the negatives' terms being 0",
             maxima == [N] or (maxima == [P] and self.negative.number != 0)),
            ("a maximum is that of s or -s; the rest belongs to the anchor's loss",
             any(k in maxima and u not in (s, -s) for k, u in zip((P, N), terms))),
            ("pairs of a kind have a maximum or something else, not both",
             any(self.reads(k.sum, k.mean, k.nonzero, k.lse.highest) for k in maxima)),
            ("negatives have a sum or a log-sum-exp, not both", pools[1] != SUM and self.reads(N.sum, N.mean)),
            ("the terms that are not zero are counted of sums alone",
             any(pool != SUM and self.reads(k.nonzero) for k, pool in zip((P, N), pools))),
            ("with negatives_lse, positives are summed and negatives need their lse",
             self.reads_negatives_lse and pools != (SUM, LOG_SUM_EXP)),
        ):  # fmt: skip
            if found:
                raise ValueError(f"{self.name}: {problem}")

    @cached_property
    def written(self) -> tuple[Expr, ...]:
        """The parts of the anchor's loss as they were given; one may read ``both_lse``."""
        return tuple(map(as_expr, self.anchor if isinstance(self.anchor, tuple) else (self.anchor,)))

    @cached_property
    def parts(self) -> tuple[Expr, ...]:
        """The parts of the anchor's loss in terms of the statistics of P and N."""
        return tuple(substitute(of, OF_BOTH) for of in self.written)

    @cached_property
    def counts(self) -> tuple[Expr, ...]:
        return tuple(map(as_expr, self.count if isinstance(self.count, tuple) else (self.count,)))

    @property
    def separate_means(self) -> bool:
        return len(self.parts) == 2

    @cached_property
    def is_sum(self) -> bool:
        """Whether the loss is the sum of all terms, averaged over all anchors or over the nonzero terms of a kind: what
        a pair adds to the gradient depends on no other pair."""
        plain = (self.parts, self.counts) == ((P.sum + N.sum,), (as_expr(1),))
        return not self.needs and (plain or (self.parts, self.counts) == ((P.sum, N.sum), (P.nonzero, N.nonzero)))

    @cached_property
    def is_scaled(self) -> bool:
        """Whether closenesses, scale and bias are read as ``scale * s`` alone, or as ``scale * s + bias``, but for what
        has no gradient. With g the derivatives of the loss by the closenesses, its derivative by the scale is then
        sum g s / scale, and that by the bias sum g / scale: neither needs another loop over the pairs."""
        constants = {x: as_expr(1) for of in self.expressions for x in subexpressions(of) if x.op == "constant"}
        for product in (scale * s + bias, scale * s):
            parts = (substitute(substitute(x, constants), {product: scaled}) for x in self.expressions)
            if "scale" in self.parameters and not {"s", "scale", "bias"} & {x for of in parts for x in variables(of)}:
                return True
        return False

    def learning(self) -> PairFormula:
        """The formula with a gradient by its scale and bias, unless others learn."""
        return self if self.learned else _learning(self)

    def reads(self, *symbols: Expr) -> bool:
        """Whether an anchor's loss or count reads any of the symbols."""
        return any(x in symbols for part in (*self.parts, *self.counts) for x in subexpressions(part))

    def pool(self, kind: Kind) -> str:
        if self.reads(kind.max):
            return MAX
        shared = kind is N and self.reads_negatives_lse
        return LOG_SUM_EXP if shared or self.reads(kind.lse.highest) else SUM

    @cached_property
    def reads_negatives_lse(self) -> bool:
        return negatives_lse in subexpressions(self.positive)

    @cached_property
    def needs_sum(self) -> bool:
        """Whether the terms of positives that are not pooled to a sum are summed as well."""
        return self.pool(P) != SUM and self.reads(P.sum, P.mean)

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the numbers that the formula takes, in the order of the operator's ``params``."""
        names = [name for of in self.expressions for name in variables(of)]
        return [x for x in dict.fromkeys((*self.learned, *names)) if "." not in x and x not in ("s", "negatives_lse")]

    @property
    def expressions(self) -> tuple[Expr, ...]:
        return (self.positive, self.negative, *self.parts, *self.counts)

    def scalars(self, of: str) -> list[str]:
        """Names, without the first part, of the numbers of an "anchor" or of a "ref" that the formula reads, in the
        order of the operator's ``anchor_scalars`` and ``ref_scalars``."""
        names = {name for x in self.expressions for name in variables(x)}
        return sorted(name.removeprefix(f"{of}.") for name in names if name.startswith(f"{of}."))

    @cached_property
    def reads_scalars(self) -> bool:
        """Whether terms of pairs read numbers of the anchor or of the reference."""
        return any(name.startswith(("anchor.", "ref.")) for u in self.expressions[:2] for name in variables(u))

    def fields(self, beside: str, nonzero: str = "nonzero") -> dict[str, str]:
        """The fields of a kernel's ``Statistic`` of each kind, keyed by the names that formulas use. ``beside``: the
        field for the sum of terms that are pooled otherwise; ``nonzero``: for the number of terms that are not zero."""
        names = {}
        for kind in (P, N):
            of_sum = "value" if self.pool(kind) == SUM else beside
            of_kind = {"pairs": "pairs", "sum": of_sum, "nonzero": nonzero, "max": "value"}
            of_kind |= {"highest": "value", "rest": "log_sum", "by_negatives_lse": "by_negatives_lse"}
            names |= {f"{kind.name}.{name}": f"{kind.name}.{field}" for name, field in of_kind.items()}
        return names

    def slope(self, kind: Kind) -> tuple[Expr, Expr]:
        """(factor, constant): the derivative of an anchor's loss by a term u of this kind is factor times the share of
        u in the log-sum-exp, plus constant."""
        loss = self.parts[0] + self.parts[1] if self.separate_means else self.parts[0]
        constant = derivative(loss, kind.sum) + derivative(loss, kind.mean) / kind.pairs
        if self.pool(kind) == MAX:
            return as_expr(0), derivative(loss, kind.max)
        if self.pool(kind) == SUM:
            return as_expr(0), constant
        factor = derivative(loss, kind.lse.highest)
        if kind is N and self.reads_negatives_lse:
            factor = factor + self.slope(P)[1] * P.by_negatives_lse
        return factor, constant

    def derivatives(self, of: Expr) -> list[Expr]:
        """The derivatives of a term, or of a part of the anchor's loss with terms and pools as constants, by the
        parameters that learn."""
        return [derivative(of, variable(name)) for name in self.learned]

    def outputs(self) -> dict[str, Expr]:
        """What kernels compute from an anchor's statistics, means being sums over numbers of pairs. The loss and count
        of the negatives are separate where they have a mean of their own, and zero elsewhere."""
        (loss, neg_loss), (count, neg_count) = ((*of, as_expr(0))[:2] for of in (self.parts, self.counts))
        made = {"loss": loss, "count": count, "neg_loss": neg_loss, "neg_count": neg_count}
        for kind in (P, N):
            made[f"{kind.name}.factor"], made[f"{kind.name}.constant"] = self.slope(kind)
        return {name: substitute(of, MEANS) for name, of in made.items()}

    def largest_exponent(self, params: Sequence[float], closeness: tuple[float, float]) -> float:
        """The largest magnitude of the terms that are exponentiated, for closenesses within the given limits."""
        ranges: Mapping = {name: (value, value) for name, value in zip(self.parameters, params)}
        pooled = [(P, self.positive), (N, self.negative)]
        limits = [interval(term, {**ranges, "s": closeness}) for kind, term in pooled if self.pool(kind) == LOG_SUM_EXP]
        return max((abs(limit) for of_term in limits for limit in of_term), default=0.0)


@cache
def _learning(formula: PairFormula) -> PairFormula:
    learned = tuple(x for x in ("scale", "bias") if x in formula.parameters)
    return replace(formula, name=f"learning_{formula.name}", learned=learned)
