"""The gradients of close pairs: slope times difference, pair by pair. Matrix products, which handle all pairs at once,
form slope times one embedding minus slope times the other, whose rounding errors would drown so small a difference.

Close pairs are few unless a batch has collapsed: tiles without one are skipped, and so are columns in the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

MOST_COLUMNS, FLAGS = 128, 64  # per program: columns of its rows, and flags read at once


@triton.jit
def first_of(mask, numbers):
    """The first of the ``numbers`` for which ``mask`` is true, and the mask without it."""
    first = tl.min(tl.where(mask, numbers, 2**31 - 1), 0)
    return first, mask & (numbers != first)


@triton.jit(do_not_specialize=["own_flag", "other_flag", "begin", "owners", "others"])
def close_kernel(
    gradient,
    own,
    own_scale,
    other,
    other_scale,
    close,
    own_stride,
    other_stride,
    flags,
    own_flag,
    other_flag,
    begin,
    owners,
    others,
    d,
    OWN_TILE: tl.constexpr,
    OTHER_TILE: tl.constexpr,
    OWNERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """gradient_i += scale_i sum_j close_ij (scale_j other_j - scale_i own_i), for i in [``begin``, ``owners``)."""
    i = begin + tl.program_id(0) * OWNERS + tl.arange(0, OWNERS)
    mine = i < owners
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = mine[:, None] & (k < d)[None, :]
    scale = tl.load(own_scale + i, mask=mine, other=0.0)
    at = i.to(tl.int64)[:, None] * d + k[None, :]
    row = tl.load(own + at, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
    row_flags = flags + (i // OWN_TILE) * own_flag
    row_slopes = close + i.to(tl.int64) * own_stride
    total = tl.zeros((OWNERS, COLUMNS), tl.float32)
    tiles = tl.cdiv(others, OTHER_TILE)
    for first in range(0, tiles, FLAGS):
        tile = first + tl.arange(0, FLAGS)
        flagged = mine[:, None] & (tile < tiles)[None, :]
        flag = tl.load(row_flags[:, None] + (tile * other_flag)[None, :], mask=flagged, other=0)
        some = tl.max(flag.to(tl.int32), 0) > 0
        for _tile in range(tl.sum(some.to(tl.int32), 0)):
            this, some = first_of(some, tile)
            j = this * OTHER_TILE + tl.arange(0, OTHER_TILE)
            pairs = mine[:, None] & (j < others)[None, :]
            slope = tl.load(row_slopes[:, None] + (j.to(tl.int64) * other_stride)[None, :], mask=pairs, other=0.0)
            pulling = tl.max((slope != 0).to(tl.int32), 0) > 0
            for _pair in range(tl.sum(pulling.to(tl.int32), 0)):
                one, pulling = first_of(pulling, j)
                of_one = tl.load(row_slopes + one.to(tl.int64) * other_stride, mask=mine, other=0.0)[:, None]
                value = tl.load(other + one.to(tl.int64) * d + k, mask=k < d, other=0.0).to(tl.float32)
                difference = (value * tl.load(other_scale + one))[None, :] - row
                # A slope of zero must not turn an infinite difference into NaN.
                total += tl.where(of_one != 0, of_one * difference, 0.0)
    before = tl.load(gradient + at, mask=inside, other=0.0)
    tl.store(gradient + at, before + scale[:, None] * total, mask=inside)
