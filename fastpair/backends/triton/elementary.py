"""Elementary device functions for the formulas of the losses. NaN stays NaN except in ``step`` and ``nonzero``."""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def step(x):
    """1 above 0, else 0; 1 for NaN."""
    return tl.where(x <= 0, 0.0, 1.0)


@triton.jit
def nonzero(x):
    """0 for 0, else 1."""
    return tl.where(x == 0, 0.0, 1.0)


@triton.jit
def square(x):
    return x * x


@triton.jit
def softplus(x):
    """log(1 + exp(x)). log(1 + y) for y in [0, 1] is 2 atanh(z), z = y / (2 + y), whose terms beyond z^15 are below
    1e-9 of the sum: a logarithm of 1 + y would lose small y."""
    y = tl.exp(tl.where(x < 0, x, -x))
    z = y / (2 + y)
    q = z * z
    p = q / 15 + 1 / 13
    for divisor in tl.static_range(11, 0, -2):
        p = tl.fma(p, q, tl.full(p.shape, 1 / divisor, p.dtype))
    return relu(x) + 2 * z * p


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Below 0.3 a series, as the quotient of exponentials would lose digits there."""
    q = x * x
    y = tl.exp(-2 * tl.abs(x))
    quotient = (1 - y) / (1 + y)
    p = 62 / 2835 - q * (1382 / 155925)
    p = 17 / 315 - q * p
    p = 2 / 15 - q * p
    p = 1 / 3 - q * p
    return tl.where(q < 0.1, x - x * q * p, tl.where(x < 0, -quotient, quotient))


@triton.jit
def minimum(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def maximum(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def excluded(above, x):
    return tl.where(above > 0, -float("inf"), x)


@triton.jit
def where(condition, a, b):
    return tl.where(condition == 0, b, a)
