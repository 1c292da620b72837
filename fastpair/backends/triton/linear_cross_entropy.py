"""``fastpair::linear_cross_entropy`` on the GPU.

Rows are taken in blocks: cuBLAS makes their logits, one kernel turns these into losses and slopes, and two products
make the gradients: 3 units of 2nKd flops. Tiles of logits that are computed where needed, twice, and never written
would take 4. By arithmetic both cost about the same: at d = 512 a logit takes 3 * 1024 flops, 3.9 ps at 790 TFLOP/s,
and in half precision 12 bytes as a logit and 6 as a slope, 4.2 ps at 4.3 TB/s; sparing the 12 bytes, 2.8 ps, costs one
more unit, 1.3 ps at the speed of cuBLAS and 2 ps or more in a kernel with an epilogue. The blocks are simpler, serve
every dtype, and get better with d.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.call import CrossEntropyCall
from fastpair.backends.products import Factor, product
from fastpair.backends.triton.launch import ALIGNED, COMPILED, whole
from fastpair.backends.triton.rows import Rows
from fastpair.backends.triton.tiles import aligned

# Logits held at a time, in float32: more of them save nothing, and fewer rows slow down the products.
LOGITS, MIN_ROWS = 1 << 24, 512

LINEAR, COSFACE, ARCFACE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
KINDS = {"linear": LINEAR.value, "cosface": COSFACE.value, "arcface": ARCFACE.value}


class RowArguments(NamedTuple):
    """Vectors over the rows; the kernel writes ``losses``. ``scale`` is None where rows are not scaled to length 1."""

    labels: Tensor
    weights: Tensor
    losses: Tensor
    scale: Tensor | None


class ClassArguments(NamedTuple):
    bias: Tensor | None
    scale: Tensor | None


@triton.jit
def class_logits(at, k, count, classes, row_scale, scale):
    """The logits of one row for the classes k, without a margin; minus infinity beyond the last class."""
    inside = k < count
    out = tl.load(at + k, mask=inside, other=0.0)
    if classes.scale is not None:
        out = scale * out * row_scale * tl.load(classes.scale + k, mask=inside, other=0.0)
    if classes.bias is not None:
        out += tl.load(classes.bias + k, mask=inside, other=0.0)
    return tl.where(inside, out, -float("inf"))


@triton.jit
def own_logit(logit, scale, margin, cos_margin, sin_margin, KIND: tl.constexpr):
    """The logit of the own class, with the margin as ``TargetLogit`` in csrc/margins.h applies it, and its derivative
    by the logit without the margin."""
    slope = logit * 0 + 1
    out = logit
    if KIND == COSFACE:
        out = logit - scale * margin
    if KIND == ARCFACE:
        # In float64, as 1 - c^2 loses the digits of small angles.
        c = logit.to(tl.float64) / scale
        square = 1 - c * c
        root = 1 / tl.sqrt(tl.maximum(square, 1e-6))
        sine_slope = tl.where(square < 0, 0.0, tl.where(square < 1e-6, 2.0, 1.0)) * -c * root
        moved = scale * (c * cos_margin - tl.where(square < 0, 0.0, square) * root * sin_margin)
        beyond = c < -cos_margin
        out = tl.where(beyond, logit - scale * margin * sin_margin, moved).to(tl.float32)
        slope = tl.where(beyond, 1.0, cos_margin - sine_slope * sin_margin).to(tl.float32)
    return out, slope


@triton.jit(do_not_specialize=["ld", "top", "ignore_index"])
def softmax_kernel(
    rows,
    classes,
    logits,
    ld,
    slopes,
    residuals,
    top,
    count,
    ignore_index,
    settings,
    smoothing,
    KIND: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of the block that begins with row ``top``: its loss and, where ``slopes`` are wanted, its weight times
    the derivatives by its products with the ``count`` classes, which may overwrite the logits."""
    ld = aligned(ld)
    row = top + tl.program_id(0)
    offset = tl.program_id(0).to(tl.int64) * ld
    at = logits + offset
    scale = settings[0]
    label = tl.load(rows.labels + row)
    counted = label != ignore_index
    known = (label >= 0) & (label < count)
    own = tl.where(counted & known, label, 0).to(tl.int32)
    row_scale = tl.load(rows.scale + row) if rows.scale is not None else 1.0
    bare = class_logits(at, own, count, classes, row_scale, scale)
    target, target_slope = own_logit(bare, *settings, KIND)

    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    exponentials = tl.zeros((BLOCK,), tl.float32)
    # Logits are summed relative to one of them, so that a common offset does not cost digits.
    base = tl.where(tl.abs(target) == float("inf"), 0.0, target)
    above = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        logit = class_logits(at, k, count, classes, row_scale, scale)
        logit = tl.where(k == own, target, logit)
        higher = tl.maximum(highest, logit)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        exponentials = exponentials * tl.exp(highest - shift) + tl.exp(logit - shift)
        highest = higher
        if SMOOTH:
            above += tl.where(k < count, logit - base, 0.0)
    peak = tl.max(highest, 0)
    shift = tl.where(highest == -float("inf"), -float("inf"), highest - peak)
    sum_exp = tl.sum(exponentials * tl.exp(shift), 0)
    # A NaN logit shows in the exponentials, not in the maximum.
    loss = (peak - base) - (1 - smoothing) * (target - base) + tl.log(sum_exp)
    if SMOOTH:
        loss -= smoothing / count * tl.sum(above, 0)
    loss = tl.where(counted, tl.where(known, loss, float("nan")), 0.0)
    tl.store(rows.losses + row, loss)
    if slopes is not None:
        weight = tl.where(counted, tl.where(known, tl.load(rows.weights + row), float("nan")), 0.0)
        for start in range(0, count, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < count
            logit = class_logits(at, k, count, classes, row_scale, scale)
            logit = tl.where(k == own, target, logit)
            slope = tl.exp(logit - peak) / sum_exp - smoothing / count
            slope = tl.where(k == own, (slope - (1 - smoothing)) * target_slope, slope)
            slope = tl.where(counted, slope * weight, 0.0)
            if classes.scale is not None:
                slope *= scale * row_scale * tl.load(classes.scale + k, mask=inside, other=0.0)
            rounded = slope.to(slopes.dtype.element_ty)
            tl.store(slopes + offset + k, rounded, mask=inside)
            if residuals is not None:
                rest = slope - rounded.to(tl.float32)
                tl.store(residuals + offset + k, rest.to(rounded.dtype), mask=inside)


def linear_cross_entropy(call: CrossEntropyCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``fastpair::linear_cross_entropy``.

    A label out of range makes the loss NaN: raising an error would mean waiting for the device."""
    n, d = call.embeddings.shape
    classes = len(call.weight)
    unit = call.logits != "linear"
    x, w = Rows(call.embeddings, unit, False), Rows(call.weight, unit, False)
    labels = call.labels.long().contiguous()
    bias = None if call.bias is None else call.bias.float().contiguous()

    def new(*shape: int, dtype: torch.dtype = torch.float32, fill: float | None = None) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=call.embeddings.device)
        return out if fill is None else out.fill_(fill)

    losses = new(n)
    dx = new(n, d, fill=0) if call.grad_embeddings else new(0)
    dw = new(classes, d, fill=0) if call.grad_weight else new(0)
    db = new(classes, fill=0) if call.grad_bias else new(0)
    gradients = call.grad_embeddings or call.grad_weight or call.grad_bias
    weights = new(n, fill=1) if call.row_grad is None else call.row_grad.float().contiguous()
    if call.reduction == "mean":
        weights = weights / (labels != call.ignore_index).sum().clamp(min=1)

    rows = max(min(n, max(LOGITS // classes // ALIGNED * ALIGNED, MIN_ROWS)), 1)
    room = new(rows, whole(classes, ALIGNED))
    if gradients:
        x_factor, w_factor = Factor(x.x), Factor(w.x)
        in_place = x_factor.dtype == torch.float32
        slopes = [
            room if in_place else torch.empty_like(room, dtype=x_factor.dtype) for _ in range(x_factor.slope_parts)
        ]
    row_arguments = RowArguments(labels, weights, losses, x.scale)
    settings = (call.scale, call.margin, math.cos(call.margin), math.sin(call.margin))
    for top in range(0, n, rows):
        count = min(rows, n - top)
        product(x.x[top : top + count], w.x.T, room[:count, :classes])
        softmax_kernel[(count,)](
            row_arguments,
            ClassArguments(bias, w.scale),
            room,
            room.stride(0),
            slopes[0] if gradients else None,
            slopes[1] if gradients and len(slopes) > 1 else None,
            top,
            classes,
            call.ignore_index,
            settings,
            call.label_smoothing,
            KIND=KINDS[call.logits],
            SMOOTH=call.label_smoothing > 0,
            BLOCK=min(max(triton.next_power_of_2(classes), 16), 2048),
            **COMPILED,
        )
        if not gradients:
            continue
        parts = [part[:count, :classes] for part in slopes]
        if call.grad_embeddings:
            w_factor.add_products(dx[top : top + count], parts, 0, classes)
        if call.grad_weight:
            x_factor.add_products(dw, parts, top, top + count, transposed=True)
        if call.grad_bias:
            for part in parts:
                db += part.sum(0, dtype=torch.float32)
    if call.grad_embeddings:
        x.finish(dx, None)
    if call.grad_weight:
        w.finish(dw, None)
    return losses if call.reduction == "none" else (losses * weights).sum(), dx, dw, db
