"""Formulas made from others: what ``ref_bias`` and ``ignore_above`` change."""

from __future__ import annotations

from dataclasses import replace

from .expressions import excluded, variable
from .formula import LOG_SUM_EXP, N, PairFormula, s

# The numbers of a row that the variants read.
REF_BIAS, LIMIT = "ref_bias", "ignore_above"


def variant(formula: PairFormula, ref_bias: bool, ignore_above: bool) -> PairFormula:
    """The formula with a number of its reference added to a negative's term, or without the negatives whose closeness
    is above a number of their anchor.

    Raises:
        ValueError: the negatives are not pooled to a log-sum-exp, or the formula counts them.
    """
    arguments = [name for name, wanted in ((REF_BIAS, ref_bias), (LIMIT, ignore_above)) if wanted]
    for argument in arguments:
        if formula.pool(N) != LOG_SUM_EXP:
            raise ValueError(f"{argument} must be None for this loss, whose negatives are not summed as exponentials")
        if argument in (*formula.scalars("anchor"), *formula.scalars("ref")):
            raise ValueError(f"{argument} must be None for this loss, whose formula reads numbers of this name")
    if ignore_above and formula.reads(N.pairs):
        raise ValueError(f"{LIMIT} must be None for this loss, whose formula counts negatives")
    negative = formula.negative
    if ref_bias:
        negative = negative + variable(f"ref.{REF_BIAS}")
    if ignore_above:
        negative = excluded(s - variable(f"anchor.{LIMIT}"), negative)
    return replace(formula, name="_".join([formula.name, *arguments]), negative=negative)
