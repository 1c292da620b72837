"""The formulas of the pair losses as device functions, which :mod:`fastpair.formulas.to_triton` prints.

``terms`` maps a closeness to the terms of a positive and of a negative, with their slopes; ``anchor`` makes the loss
from the statistics of an anchor's positives and negatives, in float64.

Terms are rounded before a shift is subtracted, as the kernels are compiled to fuse products with sums only by
``tl.fma`` (see ``launch.COMPILED``): the number in the exponent is the very one whose maximum was taken.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import triton
import triton.language as tl
from triton.runtime import JITFunction

from fastpair.backends.triton import elementary
from fastpair.formulas import formula as formulas
from fastpair.formulas import to_torch, to_triton
from fastpair.formulas.expressions import subexpressions
from fastpair.formulas.formula import N, P, PairFormula
from fastpair.formulas.source import function
from fastpair.metrics import Metric

# The logarithms of the smallest and of the largest float32 numbers lie beyond these limits.
MOST, MOST_OF_SUM = 76.0, 88.0
SUM, LOG_SUM_EXP, MAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
POOLS = {formulas.SUM: SUM.value, formulas.LOG_SUM_EXP: LOG_SUM_EXP.value, formulas.MAX: MAX.value}


class Pools(NamedTuple):
    """How the terms of either kind are pooled, as a constant of the kernels. ``positives_sum``: positives that are
    pooled otherwise are summed as well. ``constants``: some slope by a term has a part that is not a share of a
    log-sum-exp. ``leaves_out``: terms that are all minus infinity are as if there were none."""

    positives: int
    negatives: int
    positives_sum: bool
    constants: bool
    leaves_out: bool


class Loss(NamedTuple):
    """A formula as the kernels and their launches take it. ``operations``: how many different ones there are in the
    terms of a pair and their slopes."""

    formula: PairFormula
    operations: int
    terms: JITFunction
    anchor: JITFunction
    derivatives: JITFunction | None
    anchor_derivatives: JITFunction | None
    pools: Pools
    reads_negatives_lse: bool
    separate_means: bool
    is_sum: bool

    @property
    def maxima(self) -> bool:
        return MAX.value in self.pools[:2]

    @property
    def simple(self) -> bool:
        """Only log-sum-exps: the slopes that need the fewest registers."""
        return self.pools.positives == self.pools.negatives == LOG_SUM_EXP.value and not self.separate_means

    def bounded(self, params: list[float], metric: Metric, count: int) -> bool:
        """Whether no exponential of a term underflows and no sum of ``count`` of them overflows, so that they need no
        shift."""
        if self.formula.reads_scalars:
            return False
        if self.is_sum or self.formula.learned or self.maxima or metric != ("dot", True):
            return self.is_sum
        most = self.formula.largest_exponent(params, (-1.0, 1.0))
        return most <= MOST and most + math.log(max(count, 1)) <= MOST_OF_SUM


@functools.cache
def loss_of(formula: PairFormula) -> Loss:
    printers = [to_triton.terms, to_triton.anchor]
    printers += [to_triton.derivatives, to_triton.anchor_derivatives] if formula.learned else []
    made = [triton.jit(function(*printer(formula), vars(elementary))) for printer in printers]
    terms, anchor, derivatives, anchor_derivatives = (*made, None, None)[:4]
    positives, negatives = POOLS[formula.pool(P)], POOLS[formula.pool(N)]
    constants = formula.needs_sum or not positives == negatives == LOG_SUM_EXP.value
    pools = Pools(positives, negatives, formula.needs_sum, constants, to_torch.leaves_out(formula))
    different = {x for of in to_triton.of_pair(formula) for x in subexpressions(of) if x.operands}
    flags = formula.reads_negatives_lse, formula.separate_means, formula.is_sum
    return Loss(formula, len(different), terms, anchor, derivatives, anchor_derivatives, pools, *flags)
