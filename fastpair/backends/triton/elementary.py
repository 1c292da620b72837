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
