"""Scalar expressions: built by operators, differentiated by a table of rules, written by the printers of this package.

Expressions stay as they are written: sums are not sorted and products not expanded, so that a numerically stable form
stays stable. Rewriting gives the same number where all are finite, or, for ``1 - sigmoid(x)``, a more accurate one.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Real

# Whether a user's function is being traced: expressions are then not compared by ==, which there means numbers.
TRACING: ContextVar[bool] = ContextVar("fastpair_tracing", default=False)


class _Operators:
    def __neg__(self):
        return negative(self)

    __add__, __radd__ = (lambda a, b: add(a, b)), (lambda a, b: add(b, a))
    __sub__, __rsub__ = (lambda a, b: subtract(a, b)), (lambda a, b: subtract(b, a))
    __mul__, __rmul__ = (lambda a, b: multiply(a, b)), (lambda a, b: multiply(b, a))
    __truediv__, __rtruediv__ = (lambda a, b: divide(a, b)), (lambda a, b: divide(b, a))
    __pow__, __rpow__ = (lambda a, b: power(a, b)), (lambda a, b: power(b, a))
    # Comparisons are 1 where they hold and 0 elsewhere, for ``where``.
    __gt__, __lt__ = (lambda a, b: step(a - b)), (lambda a, b: step(b - a))
    __ge__, __le__ = (lambda a, b: 1 - step(b - a)), (lambda a, b: 1 - step(a - b))

    def __pos__(self):
        return self

    def __abs__(self):
        return absolute(self)

    def __eq__(self, other):
        if TRACING.get():
            raise TypeError("a formula has no == and !=: write where(nonzero(a - b), unequal, equal)")
        return same(self, other)

    def __hash__(self):
        return hash(tuple(vars(self).values()))

    def __bool__(self):
        raise TypeError(
            "a formula cannot branch on a value, as if, and, or, not, min and max do: write where(condition, a, b), of "
            "conditions a * b, maximum(a, b) and 1 - a, and minimum and maximum"
        )

    def __getattr__(self, name: str):
        raise AttributeError(f"a symbol has no attribute {name!r}: write functions of fastpair.formulas, as in exp(x)")

    def __array_ufunc__(self, function, method, *operands, **settings):
        of_numbers = {"add": add, "subtract": subtract, "multiply": multiply, "true_divide": divide, "divide": divide}
        if function.__name__ in of_numbers and len(operands) == 2:  # a number of numpy's on the left
            return of_numbers[function.__name__](*operands)
        raise TypeError(
            f"numpy.{function.__name__} cannot be in a formula: write the operators and functions of fastpair.formulas"
        )

    def __float__(self):
        raise TypeError("a formula has no numbers yet: write exp, log and so on of fastpair.formulas, not of math")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", function)
        raise TypeError(f"torch.{name} cannot be in a formula: write the functions of fastpair.formulas")


@dataclass(frozen=True, eq=False)
class Expr(_Operators):
    """An operation on expressions. ``op``: a key of ``RULES``, or "variable" or "number", whose only argument is the
    name or the number."""

    op: str
    args: tuple

    @property
    def operands(self) -> tuple[Expr, ...]:
        return () if self.op in ("variable", "number") else self.args

    @property
    def number(self) -> float | None:
        return self.args[0] if self.op == "number" else None


@dataclass(frozen=True, eq=False)
class LogSumExp(_Operators):
    """highest + rest: the maximum of the terms, and the logarithm of the sum relative to it, which would be lost in a
    sum with a large maximum. Differences are taken part by part. The derivative by ``highest`` is that by the whole."""

    highest: Expr
    rest: Expr

    @property
    def parts(self) -> tuple[Expr, Expr]:
        return self.highest, self.rest

    def __sub__(self, other):
        if isinstance(other, LogSumExp):
            return (self.highest - other.highest) + (self.rest - other.rest)
        return (self.highest - other) + self.rest

    def __rsub__(self, other):
        return (other - self.highest) - self.rest


def same(a: object, b: object) -> bool:
    """Whether two expressions, or what they are made of, are the same as they are written."""
    if a is b:
        return True
    if isinstance(a, (_Operators, tuple)):
        a, b = (tuple(vars(x).values()) if isinstance(x, _Operators) else x for x in (a, b))
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return not isinstance(b, _Operators) and a == b


def as_expr(x: Expr | LogSumExp | float) -> Expr:
    if isinstance(x, LogSumExp):
        return x.highest + x.rest
    if isinstance(x, Expr):
        return x
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(
            "a formula is made of its arguments, numbers and the functions of fastpair.formulas, got "
            f"{type(x).__name__}"
        )
    if not math.isfinite(x):
        raise ValueError(f"the numbers of a formula must be finite, got {x}")
    return Expr("number", (x if isinstance(x, int) else float(x),))


def variable(name: str) -> Expr:
    return Expr("variable", (name,))


# ---- operations


def made(op: str, *operands: Expr) -> Expr:
    """The operation; of numbers its result, computed here because C++ would truncate a quotient of integers."""
    numbers = [x.number for x in operands]
    return Expr(op, operands) if None in numbers else as_expr(VALUES[op](*numbers))


def add(a, b) -> Expr:
    a, b = as_expr(a), as_expr(b)
    if a.number == 0:
        return b
    if b.number == 0:
        return a
    return subtract(a, b.args[0]) if b.op == "negative" else made("add", a, b)


def subtract(a, b) -> Expr:
    a, b = as_expr(a), as_expr(b)
    if a.number == 0:
        return negative(b)
    if b.number == 0:
        return a
    if a.number == 1 and b.op == "sigmoid":
        return sigmoid(-b.args[0])
    return add(a, b.args[0]) if b.op == "negative" else made("subtract", a, b)


def negative(a) -> Expr:
    a = as_expr(a)
    if a.op == "number":
        return as_expr(-a.number)
    return a.args[0] if a.op == "negative" else Expr("negative", (a,))


def multiply(a, b) -> Expr:
    a, b = as_expr(a), as_expr(b)
    if 0 in (a.number, b.number):
        return as_expr(0)
    for one, other in ((a, b), (b, a)):
        if one.number in (1, -1):
            return other if one.number == 1 else negative(other)
        if one.op == "relu" and other.op == "step" and same(one.args, other.args):
            return one
        if one.op == "relu" and other.op == "negative" and same(other.args[0], step(one.args[0])):
            return negative(one)
    return made("multiply", a, b)


def divide(a, b) -> Expr:
    a, b = as_expr(a), as_expr(b)
    if b.number == 0:
        raise ValueError("a formula divides by 0")
    return a if a.number == 0 or b.number == 1 else made("divide", a, b)


def operation(op: str) -> Callable[..., Expr]:
    return lambda x: made(op, as_expr(x))


square = operation("square")
relu = operation("relu")  # max(x, 0); slope 0 at 0
step = operation("step")  # 1 above 0, else 0; 1 for NaN
nonzero = operation("nonzero")  # 0 for 0, else 1
sigmoid = operation("sigmoid")  # 1 / (1 + exp(-x))
softplus = operation("softplus")  # log(1 + exp(x))
constant = operation("constant")  # x, treated as constant by the gradient
exp = operation("exp")
log = operation("log")
sqrt = operation("sqrt")
absolute = operation("absolute")
tanh = operation("tanh")


def minimum(a, b) -> Expr:
    return made("minimum", as_expr(a), as_expr(b))


def maximum(a, b) -> Expr:
    return made("maximum", as_expr(a), as_expr(b))


def where(condition, a, b) -> Expr:
    """a where the condition is not 0, else b. Conditions are comparisons, or what ``step`` makes."""
    condition, a, b = map(as_expr, (condition, a, b))
    if condition.number is not None:
        return a if condition.number else b
    return a if same(a, b) else Expr("where", (condition, a, b))


def selected(condition, x) -> Expr:
    """x, whose gradient is 0 where the condition is 0."""
    return Expr("selected", (condition, x))


def excluded(above, term) -> Expr:
    """The term of a pair, minus infinity where ``above`` is above 0. Only for terms that are pooled to a log-sum-exp,
    which multiplies the derivative there by 0."""
    return Expr("excluded", (as_expr(above), as_expr(term)))


def power(a, b) -> Expr:
    """a to the power of b: products where b is a whole number, else exp(b log a), which is NaN for negative a."""
    a, b = as_expr(a), as_expr(b)
    if b.number == 0.5:
        return sqrt(a)
    if b.number is None or b.number != int(b.number) or abs(b.number) > 64:
        return exp(b * log(a))
    exponent = int(abs(b.number))
    if exponent == 0:
        return as_expr(1)
    product, squared = None, a
    while exponent:
        if exponent & 1:
            product = squared if product is None else product * squared
        exponent >>= 1
        squared = square(squared) if exponent else squared
    return product if b.number > 0 else 1 / product


def logaddexp(a: LogSumExp, b: LogSumExp) -> LogSumExp:
    """log(exp(a) + exp(b))"""
    return LogSumExp(a.highest, a.rest + softplus(b - a))


def may_be_infinite(of: Expr) -> bool:
    """Whether there are finite variables for which a part of the expression is infinite or NaN."""
    return any(
        x.op in ("exp", "log", "sqrt") or (x.op == "divide" and x.args[1].number is None) for x in subexpressions(of)
    )


def chosen(condition: Expr, slope: Expr) -> Expr:
    """The slope where the condition, 1 or 0, is 1, else 0: also in place of an infinite one."""
    return where(condition, slope, 0) if may_be_infinite(slope) else condition * slope


# The derivative of each operation, given its operands and their derivatives.
RULES: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b, da, db: da + db,
    "subtract": lambda a, b, da, db: da - db,
    "negative": lambda a, da: -da,
    "multiply": lambda a, b, da, db: da * b + a * db,
    "divide": lambda a, b, da, db: da / b - a * db / square(b),
    "square": lambda x, dx: 2 * (x * dx),
    "relu": lambda x, dx: chosen(step(x), dx),
    "step": lambda x, dx: as_expr(0),
    "nonzero": lambda x, dx: as_expr(0),
    "sigmoid": lambda x, dx: sigmoid(x) * sigmoid(-x) * dx,
    "softplus": lambda x, dx: sigmoid(x) * dx,
    "constant": lambda x, dx: as_expr(0),
    "exp": lambda x, dx: exp(x) * dx,
    "log": lambda x, dx: dx / x,
    "sqrt": lambda x, dx: dx / (2 * sqrt(x)),
    "absolute": lambda x, dx: (step(x) - step(-x)) * dx,
    "tanh": lambda x, dx: (1 - square(tanh(x))) * dx,
    "minimum": lambda a, b, da, db: where(step(a - b), db, da),
    "maximum": lambda a, b, da, db: where(step(a - b), da, db),
    "where": lambda condition, a, b, dc, da, db: where(condition, da, db),
    "excluded": lambda above, x, da, dx: dx,
}


_MAKE: dict[str, Callable[..., Expr]] = {op: globals()[op] for op in (*RULES, "selected")}


def derivative(of: Expr, by: Expr) -> Expr:
    if of == by:
        return as_expr(1)
    if not of.operands:
        return as_expr(0)
    return RULES[of.op](*of.operands, *(derivative(x, by) for x in of.operands))


# ---- looking at expressions


def subexpressions(of: Expr) -> Iterator[Expr]:
    """All subexpressions, operands before the operations on them; one that occurs twice comes twice."""
    for x in of.operands:
        yield from subexpressions(x)
    yield of


def variables(of: Expr) -> list[str]:
    """The names of the variables, in the order in which they occur."""
    return list(dict.fromkeys(x.args[0] for x in subexpressions(of) if x.op == "variable"))


def substitute(of: Expr, others: Mapping[Expr, Expr]) -> Expr:
    """The expression with subexpressions that are keys of ``others`` replaced by the values."""
    if of in others:
        return others[of]
    return _MAKE[of.op](*(substitute(x, others) for x in of.operands)) if of.operands else of


def guarded(of: Expr, by: Expr | None = None) -> Expr:
    """The expression as automatic differentiation needs it, which multiplies the slope of what is not selected, and may
    be infinite, by 0: the variables there are ``selected``, which stops their gradient. ``by``: where the expression
    itself is selected."""
    if not of.operands:
        return selected(by, of) if by is not None and of.op == "variable" else of

    def both(condition: Expr) -> Expr:
        return condition if by is None else condition * by

    if of.op == "relu":
        return relu(guarded(of.args[0], both(step(of.args[0]))))
    if of.op in ("minimum", "maximum", "where"):
        *conditions, a, b = of.operands
        condition = nonzero(conditions[0]) if conditions else step(a - b)
        if of.op == "minimum":
            condition = 1 - condition
        return _MAKE[of.op](*conditions, guarded(a, both(condition)), guarded(b, both(1 - condition)))
    return _MAKE[of.op](*(guarded(x, by) for x in of.operands))


def share(expressions: list[Expr], prefix: str) -> tuple[list[tuple[str, Expr]], list[Expr]]:
    """Subexpressions that occur several times, named and in an order in which they can be computed, and the expressions
    in terms of those names."""
    shared: list[tuple[str, Expr]] = []
    while True:
        pool = [*expressions, *(x for _, x in shared)]
        counts: dict[Expr, int] = {}
        for x in (x for of in pool for x in subexpressions(of) if x.operands):
            counts[x] = counts.get(x, 0) + 1
        several = [x for x, count in counts.items() if count > 1]
        if not several:
            break
        largest = max(several, key=lambda x: sum(1 for _ in subexpressions(x)))
        name = f"{prefix}{len(shared) + 1}"
        by_name = {largest: variable(name)}
        expressions = [substitute(of, by_name) for of in expressions]
        shared = [(n, substitute(of, by_name)) for n, of in shared]
        shared.append((name, largest))
    return shared[::-1], expressions


Interval = tuple[float, float]

# The values of the operations, monotone in each operand except for square, absolute, nonzero, a condition and the
# divisor.
VALUES: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "negative": operator.neg,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "square": lambda x: x * x,
    "relu": lambda x: max(x, 0.0),
    "step": lambda x: float(not x <= 0),
    "nonzero": lambda x: float(x != 0),
    "sigmoid": lambda x: math.exp(min(x, 0.0)) / (1 + math.exp(-abs(x))),
    "softplus": lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))),
    "constant": lambda x: x,
    "exp": lambda x: math.exp(x) if x < 709 else math.inf,
    "log": lambda x: math.log(x) if x > 0 else -math.inf if x == 0 else math.nan,
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
    "absolute": abs,
    "tanh": math.tanh,
    "minimum": min,
    "maximum": max,
    "where": lambda condition, a, b: a if condition else b,
    "excluded": lambda above, x: -math.inf if above > 0 else x,
}


def interval(of: Expr, ranges: Mapping[str, Interval]) -> Interval:
    """Limits of the value, given limits of every variable."""
    if not of.operands:
        return ranges[of.args[0]] if of.op == "variable" else (of.number, of.number)
    limits = [interval(x, ranges) for x in of.operands]
    if of.op == "where":
        return min(low for low, _ in limits[1:]), max(high for _, high in limits[1:])
    within_zero = limits[-1][0] <= 0 <= limits[-1][1]
    if of.op == "divide" and within_zero:
        return -math.inf, math.inf
    corners = [VALUES[of.op](*corner) for corner in itertools.product(*limits)]
    if any(corner != corner for corner in corners):
        return -math.inf, math.inf
    return min(corners + [0.0] * (of.op in ("square", "absolute", "nonzero") and within_zero)), max(corners)


# ---- printing

_BINARY = {"add": ("+", 1), "subtract": ("-", 1), "multiply": ("*", 2), "divide": ("/", 2)}


def text(of: Expr, names: Mapping[str, str] | None = None, calls: Mapping[str, str] | None = None) -> str:
    """The expression as source that is the same in C++ and Python. ``names`` of variables; ``calls``: formats of
    numbers, and of operations that are not written with a sign or as a call of their own name."""
    return _text(of, names or {}, calls or {})[0]


def _text(of: Expr, names: Mapping[str, str], calls: Mapping[str, str]) -> tuple[str, int]:
    """The source, and how tightly its outermost operation binds."""
    if of.op == "number":
        whole = of.number == int(of.number) and abs(of.number) < 2**31  # C++ has no longer integers by default
        written = str(int(of.number)) if whole else repr(float(of.number))
        return calls.get("number", "{}").format(written), 3 if of.number < 0 else 4
    if of.op == "variable":
        return names.get(of.args[0], of.args[0]), 4
    operands = [_text(x, names, calls) for x in of.operands]
    if of.op == "constant" and of.op not in calls:
        return operands[0]
    if of.op in calls:
        return calls[of.op].format(*(x for x, _ in operands)), 4
    if of.op in _BINARY:
        sign, binds = _BINARY[of.op]
        left, right = _within(operands[0], binds), _within(operands[1], binds + 1)
        return f"{left} {sign} {right}", binds
    if of.op == "negative":
        return f"-{_within(operands[0], 4)}", 3
    return f"{of.op}({', '.join(x for x, _ in operands)})", 4


def _within(operand: tuple[str, int], binds: int) -> str:
    return operand[0] if operand[1] >= binds else f"({operand[0]})"
