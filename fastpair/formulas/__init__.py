"""The formulas of the pair losses, and the printers of code and tables. Imports only the standard library.

What the functions of a :class:`fastpair.losses.CustomPairLoss` are made of: operators, comparisons and ``exp``,
``log``, ``sqrt``, ``abs``, ``tanh``, ``sigmoid``, ``softplus``, ``relu``, ``square``, ``minimum``, ``maximum``,
``where``, ``step``, ``nonzero``, ``constant``. :func:`explain` shows what becomes of them.
"""

from .explaining import explain
from .expressions import (
    constant,
    exp,
    log,
    maximum,
    minimum,
    nonzero,
    relu,
    sigmoid,
    softplus,
    sqrt,
    square,
    step,
    tanh,
    where,
)
from .formula import PairFormula, negatives_lse

__all__ = [
    "PairFormula",
    "constant",
    "exp",
    "explain",
    "log",
    "maximum",
    "minimum",
    "negatives_lse",
    "nonzero",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "square",
    "step",
    "tanh",
    "where",
]
