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
    negative, name = formula.negative, formula.name
    for wanted, argument in ((ref_bias, REF_BIAS), (ignore_above, LIMIT)):
        if not wanted:
            continue
        if formula.pool(N) != LOG_SUM_EXP:
            raise ValueError(f"{argument} must be None for this loss, whose negatives are not summed as exponentials")
        if argument in (*formula.scalars("anchor"), *formula.scalars("ref")):
            raise ValueError(f"{argument} must be None for this loss, whose formula reads numbers of this name")
        name += f"_{argument}"
        negative = negative + variable(f"ref.{argument}") if argument == REF_BIAS else negative
    if ignore_above:
        if formula.reads(N.pairs):
            raise ValueError(f"{LIMIT} must be None for this loss, whose formula counts negatives")
        negative = excluded(s - variable(f"anchor.{LIMIT}"), negative)
    return replace(formula, name=name, negative=negative)
