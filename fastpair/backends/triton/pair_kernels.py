"""The kernels behind every pair loss: a sweep for the anchors' statistics, and one for the slopes of all pairs.

``statistics_kernel`` -> ``anchor_kernel`` -> ``reduce_kernel`` -> ``slopes_kernel``; a sum over pairs, whose slopes
need no statistics, takes the last two alone. The loss comes in as two device functions, see ``terms``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastpair.backends.triton.terms import LOG_SUM_EXP, MAX, SUM
from fastpair.backends.triton.tiles import DOT, row_tile, scores, store_slopes, tile_products

# Which pairs an anchor is one half of with itself, as constants of the kernels: none, (i, i), or (i, self_index[i]).
NO_SELF, SAME_INDEX, LISTED_SELF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# What an anchor's pairs come to in one span of columns: of positives the sum, maximum or shift of the log-sum-exp; the
# number of non-zero terms, column of the maximum or sum of exponentials; the sum of slopes by `given`, or of terms of a
# log-sum-exp; how many there are. Of negatives the first two.
CHANNELS = tl.constexpr(6)
# Factor, shift and constant of the slopes of positives and negatives.
WEIGHTS = tl.constexpr(6)
# Loss, count, loss of the negatives and their count, of a block of anchors or of a tile.
TOTALS = tl.constexpr(4)


@triton.jit
def load_vector(at, index, end, FROM: tl.constexpr):
    """at[index], zero beyond the end and where there is no such vector."""
    return tl.load(at + index, mask=index < end, other=0.0) if FROM else tl.zeros(index.shape, tl.float32)


@triton.jit
def same_classes(rows, cols, bottom, right, row_labels, col_labels):
    own = tl.load(row_labels + rows, mask=rows < bottom, other=0)
    others = tl.load(col_labels + cols, mask=cols < right, other=0)
    return own[:, None] == others[None, :]


@triton.jit
def all_pairs(rows, cols, bottom, right, self_index, SELF: tl.constexpr):
    """Which of a tile are pairs at all."""
    pair = (rows < bottom)[:, None] & (cols < right)[None, :]
    if SELF == SAME_INDEX:
        pair &= rows[:, None] != cols[None, :]
    if SELF == LISTED_SELF:
        own = tl.load(self_index + rows, mask=rows < bottom, other=-1)
        pair &= own[:, None] != cols[None, :]
    return pair


@triton.jit
def has_others(row, col, bottom, right, SELF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether the tile from ``row`` and ``col`` on may have what is no pair."""
    out = (row + BLOCK_M > bottom) | (col + BLOCK_N > right)
    if SELF == SAME_INDEX:
        out |= (row < col + BLOCK_N) & (col < row + BLOCK_M)
    if SELF == LISTED_SELF:
        out |= True
    return out


@triton.jit
def of_none(REDUCTION: tl.constexpr):
    """What no terms come to."""
    return 0.0 if REDUCTION == SUM else -float("inf")


@triton.jit
def collect(first, second, terms, cols, REDUCTION: tl.constexpr):
    """Takes a tile's terms of one kind, ``of_none`` for the pairs that are not of it, into what came to each of its
    places before."""
    if REDUCTION == SUM:
        first += terms
        second += (terms != 0).to(tl.float32)
    elif REDUCTION == LOG_SUM_EXP:
        # One exponential: of the two shifts the larger becomes the new one. Of none there is nothing to shift.
        nearer = tl.exp(tl.where(terms == first, 0.0, -tl.abs(terms - first)))
        added = tl.where(terms == -float("inf"), 0.0, tl.where(terms > first, 1.0, nearer))
        second = tl.fma(second, tl.where(terms > first, nearer, 1.0), added)
        first = tl.maximum(first, terms)
    else:
        # NaN passes for the largest, so that it shows.
        better = (terms > first) | (terms != terms)
        second = tl.where(better, cols.to(tl.float32, bitcast=True)[None, :], second)
        first = tl.where(better, terms, first)
    return first, second


@triton.jit
def relative_to(shift, highest):
    """exp(shift - highest), 1 for what is itself the highest, infinite or not."""
    return tl.exp(tl.where(shift == highest, 0.0, shift - highest))


@triton.jit
def over_places(first, second, REDUCTION: tl.constexpr):
    """What came to all places of a row."""
    if REDUCTION == SUM:
        row_first = tl.sum(first, 1)
        row_second = tl.sum(second, 1)
    elif REDUCTION == LOG_SUM_EXP:
        row_first = tl.max(first, 1)
        row_second = tl.sum(second * relative_to(first, row_first[:, None]), 1)
    else:
        undefined = first != first
        row_first = tl.max(tl.where(undefined, float("inf"), first), 1)
        best = undefined | (first == row_first[:, None])
        col = tl.min(tl.where(best, second.to(tl.int32, bitcast=True), 2**31 - 1), 1)
        row_second = col.to(tl.float32, bitcast=True)
        row_first = tl.where(tl.max(undefined.to(tl.int32), 1) > 0, float("nan"), row_first)
    return row_first, row_second


@triton.jit
def bounded_terms(u, v, same, POSITIVES: tl.constexpr, NEGATIVES: tl.constexpr):
    """The terms of all pairs and, where a kind is a log-sum-exp, their exponentials: none overflows or comes to
    nothing, so that the shift is zero."""
    terms = tl.where(same, u, v)
    part = terms
    if POSITIVES == LOG_SUM_EXP and NEGATIVES == LOG_SUM_EXP:
        part = tl.exp(terms)
    elif POSITIVES == LOG_SUM_EXP:
        part = tl.exp(u)
    elif NEGATIVES == LOG_SUM_EXP:
        part = tl.exp(v)
    return terms, part


@triton.jit
def add_rows(first, second, terms, part, REDUCTION: tl.constexpr):
    """Takes a tile's terms of one kind, zero for the pairs that are not of it, into what came to its rows before;
    ``part`` are their exponentials."""
    if REDUCTION == SUM:
        first += tl.sum(terms, 1)
        second += tl.sum(tl.where(terms != 0, 1.0, 0.0), 1)
    else:
        second += tl.sum(part, 1)
        # The shift is zero.
        first = tl.where(second == 0, -float("inf"), 0.0)
    return first, second


@triton.jit
def statistics_kernel(
    x,
    y,
    products,
    ld,
    x_labels,
    y_labels,
    self_index,
    x_norm,
    y_norm,
    x_scale,
    y_scale,
    given,
    partial,
    first_slot,
    n,
    d,
    top,
    bottom,
    left,
    right,
    span,
    sign,
    p0,
    p1,
    p2,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    GIVEN: tl.constexpr,
    ADD_POSITIVES: tl.constexpr,
    ADD_NEGATIVES: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial[first_slot + s, :, i] of the anchors [top, bottom) and the s-th ``span`` of the columns [left, right)."""
    split = tl.program_id(1)
    first_row = top + tl.program_id(0) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    x_norms = load_vector(x_norm, rows, bottom, METRIC != DOT)
    x_scales = load_vector(x_scale, rows, bottom, UNIT or METRIC != DOT)
    of_anchor = load_vector(given, rows, bottom, GIVEN and ADD_POSITIVES)[:, None]

    # Of each place of the tile apart, sums over its columns being taken once, at the end; or of whole rows, where the
    # registers hold the products that are made.
    PLACES: tl.constexpr = DEPTH == 0
    zero = tl.zeros((BLOCK_M, BLOCK_N) if PLACES else (BLOCK_M,), tl.float32)
    pos_first, pos_second, pos_third, pos_pairs = zero + of_none(POSITIVES), zero, zero, zero
    neg_first, neg_second = zero + of_none(NEGATIVES), zero

    begin = left + split * span
    for start in range(begin, tl.minimum(begin + span, right), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        same = same_classes(rows, cols, bottom, right, x_labels, y_labels)
        pair = all_pairs(rows, cols, bottom, right, self_index, SELF)
        s, _close = scores(
            tile_products(products, ld, x, y, rows, cols, top, left, bottom, right, d, DEPTH),
            x,
            y,
            rows,
            cols,
            x_norms,
            load_vector(y_norm, cols, right, METRIC != DOT),
            x_scales,
            load_vector(y_scale, cols, right, UNIT or METRIC != DOT),
            pair,
            bottom,
            right,
            d,
            METRIC,
            UNIT,
        )
        u, du, v, dv = TERMS(s, of_anchor, sign, p0, p1, p2)
        if PLACES:
            positive = pair & same
            if ADD_POSITIVES:
                pos_pairs += positive.to(tl.float32)
                if GIVEN:
                    # A term with `given` is a function of given - v.
                    pos_third += tl.where(positive, -du / dv, 0.0)
                elif POSITIVES == LOG_SUM_EXP:
                    pos_third += tl.where(positive, u, 0.0)
                u = tl.where(positive, u, of_none(POSITIVES))
                pos_first, pos_second = collect(pos_first, pos_second, u, cols, POSITIVES)
            if ADD_NEGATIVES:
                v = tl.where(pair & ~positive, v, of_none(NEGATIVES))
                neg_first, neg_second = collect(neg_first, neg_second, v, cols, NEGATIVES)
        else:
            terms, part = bounded_terms(u, v, same, POSITIVES, NEGATIVES)
            thirds = terms
            if GIVEN:
                thirds = -du / dv
            # The comparisons are true: they have pairs counted where the scores are, in whose registers rows are added
            # up in a few steps.
            count = tl.where((s <= float("inf")) | (s != s), 1.0, 0.0)
            if has_others(first_row, start, bottom, right, SELF, BLOCK_M, BLOCK_N):
                terms, part = tl.where(pair, terms, 0.0), tl.where(pair, part, 0.0)
                thirds = tl.where(pair, thirds, 0.0)
                pairs = tl.sum(tl.where(same & pair, count, 0.0), 1)
            else:
                pairs = tl.sum(tl.where(same, count, 0.0), 1)
            if ADD_POSITIVES:
                pos_pairs += pairs
                if GIVEN or POSITIVES == LOG_SUM_EXP:
                    pos_third += tl.sum(tl.where(same, thirds, 0.0), 1)
                pulls, parts = tl.where(same, terms, 0.0), tl.where(same, part, 0.0)
                pos_first, pos_second = add_rows(pos_first, pos_second, pulls, parts, POSITIVES)
            if ADD_NEGATIVES:
                pushes, parts = tl.where(same, 0.0, terms), tl.where(same, 0.0, part)
                neg_first, neg_second = add_rows(neg_first, neg_second, pushes, parts, NEGATIVES)

    if PLACES:
        pos_first, pos_second = over_places(pos_first, pos_second, POSITIVES)
        neg_first, neg_second = over_places(neg_first, neg_second, NEGATIVES)
        pos_third, pos_pairs = tl.sum(pos_third, 1), tl.sum(pos_pairs, 1)
    out = partial + (first_slot + split).to(tl.int64) * CHANNELS * n + rows
    inside = rows < bottom
    if ADD_POSITIVES:
        tl.store(out, pos_first, mask=inside)
        tl.store(out + n, pos_second, mask=inside)
        tl.store(out + 2 * n, pos_third, mask=inside)
        tl.store(out + 3 * n, pos_pairs, mask=inside)
    if ADD_NEGATIVES:
        tl.store(out + 4 * n, neg_first, mask=inside)
        tl.store(out + 5 * n, neg_second, mask=inside)


@triton.jit
def merged(partial, slots, n, rows, inside, REDUCTION: tl.constexpr):
    """First and second channel of one kind over all slots, in float64; of a maximum the column as it is stored."""
    first = tl.full(rows.shape, of_none(REDUCTION), tl.float64)
    second = tl.zeros(rows.shape, tl.float64)
    column = tl.zeros(rows.shape, tl.float32)
    at = partial + rows
    for _ in range(slots):
        a = tl.load(at, mask=inside, other=0.0).to(tl.float64)
        stored = tl.load(at + n, mask=inside, other=0.0)
        b = stored.to(tl.float64)
        if REDUCTION == SUM:
            first += a
            second += b
        elif REDUCTION == LOG_SUM_EXP:
            # Of no pairs both are empty; a NaN is in the sum.
            highest = tl.maximum(first, a)
            second = second * relative_to(first, highest) + b * relative_to(a, highest)
            first = highest
        else:
            better = (a > first) | (a != a)
            first = tl.where(better, a, first)
            column = tl.where(better, stored, column)
        at += n * CHANNELS
    return first, second, column


@triton.jit
def channel_sum(partial, slots, n, rows, inside):
    total = tl.zeros(rows.shape, tl.float64)
    at = partial + rows
    for _ in range(slots):
        total += tl.load(at, mask=inside, other=0.0).to(tl.float64)
        at += n * CHANNELS
    return total


@triton.jit
def statistic(first, second, third, REDUCTION: tl.constexpr):
    """Value, log_sum, aux and slope by ``given`` as ``terms`` wants them."""
    log_sum = tl.zeros_like(first)
    aux = second
    if REDUCTION == LOG_SUM_EXP:
        # The logarithm of no sum, whose maximum is minus infinity.
        log_sum = tl.log(tl.where(second == 0, 1.0, second))
        aux = third
    return first, log_sum, aux, third


@triton.jit
def given_kernel(partial, slots, given, n, NEGATIVES: tl.constexpr, BLOCK: tl.constexpr):
    """given[i]: what the negatives of anchor i come to."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    first, second, _column = merged(partial + 4 * n, slots, n, rows, inside, NEGATIVES)
    value, log_sum, _aux, _by_given = statistic(first, second, second, NEGATIVES)
    tl.store(given + rows, (value + log_sum).to(tl.float32), mask=inside)


@triton.jit
def store_weights(out, n, inside, slope, kind, weight):
    """Factor, shift and constant: the derivative by a term u is factor exp(u - shift) + constant."""
    tl.store(out, (slope[0] * weight * tl.exp(-kind[2])).to(tl.float32), mask=inside)
    # The shift of none makes every exponential 0.
    shift = tl.where(kind[0] == 0, float("inf"), kind[1])
    tl.store(out + n, shift.to(tl.float32), mask=inside)
    tl.store(out + 2 * n, (slope[1] * weight).to(tl.float32), mask=inside)


@triton.jit
def anchor_kernel(
    partial,
    slots,
    self_index,
    row_grad,
    losses,
    weights,
    extremes,
    totals,
    n,
    m,
    p0,
    p1,
    p2,
    ANCHOR: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    SELF: tl.constexpr,
    ROW_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the statistics of the anchors: losses (n,), weights (6, n), of maxima the terms and columns (4, n), and
    totals (blocks, 4)."""
    pid = tl.program_id(0)
    rows = pid * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    pos_first, pos_second, pos_column = merged(partial, slots, n, rows, inside, POSITIVES)
    neg_first, neg_second, neg_column = merged(partial + 4 * n, slots, n, rows, inside, NEGATIVES)
    pos_third = channel_sum(partial + 2 * n, slots, n, rows, inside)
    pos_pairs = channel_sum(partial + 3 * n, slots, n, rows, inside)
    selves = tl.zeros(rows.shape, tl.float64)
    if SELF == SAME_INDEX:
        selves += 1
    if SELF == LISTED_SELF:
        selves += (tl.load(self_index + rows, mask=inside, other=-1) >= 0).to(tl.float64)
    pos_value, pos_log_sum, pos_aux, by_given = statistic(pos_first, pos_second, pos_third, POSITIVES)
    neg_value, neg_log_sum, neg_aux, _unused = statistic(neg_first, neg_second, neg_second, NEGATIVES)
    pos = (pos_pairs, pos_value, pos_log_sum, pos_aux, by_given)
    neg = (m - pos_pairs - selves, neg_value, neg_log_sum, neg_aux, neg_second)

    loss, count, neg_loss, neg_count, pull, push = ANCHOR(pos, neg, p0, p1, p2)
    tl.store(losses + rows, (loss + neg_loss).to(tl.float32), mask=inside)
    weight = tl.full(rows.shape, 1.0, tl.float64)
    if ROW_GRAD:
        weight = tl.load(row_grad + rows, mask=inside, other=0.0).to(tl.float64)
    store_weights(weights + rows, n, inside, pull, pos, weight)
    store_weights(weights + 3 * n + rows, n, inside, push, neg, weight)
    if POSITIVES == MAX:
        tl.store(extremes + rows, pos_first.to(tl.float32), mask=inside)
        tl.store(extremes + n + rows, pos_column, mask=inside)
        tl.store(extremes + 2 * n + rows, neg_first.to(tl.float32), mask=inside)
        tl.store(extremes + 3 * n + rows, neg_column, mask=inside)
    out = totals + pid * TOTALS
    tl.store(out, tl.sum(tl.where(inside, loss, 0.0), 0))
    tl.store(out + 1, tl.sum(tl.where(inside, count, 0.0), 0))
    tl.store(out + 2, tl.sum(tl.where(inside, neg_loss, 0.0), 0))
    tl.store(out + 3, tl.sum(tl.where(inside, neg_count, 0.0), 0))


@triton.jit
def reduce_kernel(
    totals,
    count,
    value,
    share,
    part,
    per_anchor,
    MEAN: tl.constexpr,
    SEPARATE: tl.constexpr,
    TERM_TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """value += part times the sum or the mean; share[:2] = part over what positives and negatives are divided by.

    ``TERM_TOTALS``: the counts are those of terms, and ``per_anchor`` is what a mean over anchors multiplies by."""
    channel = tl.zeros((BLOCK,), tl.float64)
    loss, pairs, neg_loss, neg_pairs = channel, channel, channel, channel
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < count
        at = totals + index.to(tl.int64) * TOTALS
        loss += tl.load(at, mask=inside, other=0.0)
        pairs += tl.load(at + 1, mask=inside, other=0.0)
        neg_loss += tl.load(at + 2, mask=inside, other=0.0)
        neg_pairs += tl.load(at + 3, mask=inside, other=0.0)
    pos_scale = tl.full((), 1.0, tl.float64)
    neg_scale = pos_scale
    if MEAN:
        if TERM_TOTALS and not SEPARATE:
            pos_scale *= per_anchor
        else:
            pos_scale = 1 / tl.maximum(tl.sum(pairs, 0), 1.0)
        neg_scale = pos_scale
        if SEPARATE:
            neg_scale = 1 / tl.maximum(tl.sum(neg_pairs, 0), 1.0)
    result = part * (tl.sum(loss, 0) * pos_scale + tl.sum(neg_loss, 0) * neg_scale)
    tl.store(value, (tl.load(value).to(tl.float64) + result).to(tl.float32))
    tl.store(share, (part * pos_scale).to(tl.float32))
    tl.store(share + 1, (part * neg_scale).to(tl.float32))


@triton.jit
def anchor_slopes(
    s,
    anchors,
    end,
    weights,
    n,
    given,
    share,
    positive,
    sign,
    p0,
    p1,
    p2,
    AXIS: tl.constexpr,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    GIVEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """The derivatives of the losses of one side's anchors by the scores of a tile."""
    of_anchor = tl.expand_dims(load_vector(given, anchors, end, GIVEN), AXIS)
    u, du, v, dv = TERMS(s, of_anchor, sign, p0, p1, p2)
    pull = tl.load(share)
    push = tl.load(share + 1)
    if WEIGHTED:
        at, inside = weights + anchors, anchors < end
        constant = tl.expand_dims(tl.load(at + 2 * n, mask=inside, other=0.0), AXIS)
        if POSITIVES == LOG_SUM_EXP:
            factor = tl.expand_dims(tl.load(at, mask=inside, other=0.0), AXIS)
            shift = tl.expand_dims(tl.load(at + n, mask=inside, other=0.0), AXIS)
            constant = factor * tl.exp(u - shift) + constant
        pull = pull * constant
        constant = tl.expand_dims(tl.load(at + 5 * n, mask=inside, other=0.0), AXIS)
        if NEGATIVES == LOG_SUM_EXP:
            factor = tl.expand_dims(tl.load(at + 3 * n, mask=inside, other=0.0), AXIS)
            shift = tl.expand_dims(tl.load(at + 4 * n, mask=inside, other=0.0), AXIS)
            constant = factor * tl.exp(v - shift) + constant
        push = push * constant
    return tl.where(positive, du * pull, dv * push)


@triton.jit
def unshifted_weights(weights, anchors, end, n, share, AXIS: tl.constexpr):
    """Factor and constant of one side's positives, and of its negatives, where the shift is zero."""
    at, inside = weights + anchors, anchors < end
    pull, push = tl.load(share), tl.load(share + 1)
    return (
        tl.expand_dims(tl.load(at, mask=inside, other=0.0) * pull, AXIS),
        tl.expand_dims(tl.load(at + 2 * n, mask=inside, other=0.0) * pull, AXIS),
        tl.expand_dims(tl.load(at + 3 * n, mask=inside, other=0.0) * push, AXIS),
        tl.expand_dims(tl.load(at + 5 * n, mask=inside, other=0.0) * push, AXIS),
    )


@triton.jit
def slopes_kernel(
    x,
    y,
    products,
    ld,
    x_labels,
    y_labels,
    self_index,
    x_norm,
    y_norm,
    x_scale,
    y_scale,
    x_given,
    y_given,
    x_weights,
    y_weights,
    x_share,
    y_share,
    slopes,
    residuals,
    row_sums,
    col_sums,
    flags,
    totals,
    n,
    m,
    d,
    top,
    bottom,
    left,
    right,
    sign,
    p0,
    p1,
    p2,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    GIVEN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BOTH: tl.constexpr,
    UPPER: tl.constexpr,
    SLOPES: tl.constexpr,
    SPLIT: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    ADD_TOTALS: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``slopes`` (., ld) of the rectangle [top, bottom) x [left, right): the derivatives of the loss by the dot
    products of its pairs, with the anchors' weights of the rows and, where ``BOTH`` sides are anchors, of the columns.

    ``residuals``, sums and ``flags``: see ``store_slopes``. ``ADD_TOTALS``: totals (programs, 4) of
    the tile's terms. ``UPPER``: what lies right of the square on the diagonal stands for its mirror image too."""
    pid = tl.program_id(0)
    row_block, col_block = row_tile(pid, bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    first_row, first_col = top + row_block * BLOCK_M, left + col_block * BLOCK_N
    out = totals
    if ADD_TOTALS:
        out += pid.to(tl.int64) * TOTALS
    MIRRORED: tl.constexpr = DEPTH > 0 and UPPER
    # The tile above the diagonal whose mirror image it is stores it.
    if MIRRORED:  # noqa: SIM102 - a constant of the kernel
        if first_col < first_row:
            if ADD_TOTALS:
                tl.store(out + tl.arange(0, TOTALS), tl.zeros((TOTALS,), tl.float64))
            return
    rows, cols = first_row + tl.arange(0, BLOCK_M), first_col + tl.arange(0, BLOCK_N)
    positive = same_classes(rows, cols, bottom, right, x_labels, y_labels)
    pair = all_pairs(rows, cols, bottom, right, self_index, SELF)
    if DEPTH == 0:
        positive &= pair
    row_scales = load_vector(x_scale, rows, bottom, UNIT or METRIC != DOT)
    col_scales = load_vector(y_scale, cols, right, UNIT or METRIC != DOT)
    s, close = scores(
        tile_products(products, ld, x, y, rows, cols, top, left, bottom, right, d, DEPTH),
        x,
        y,
        rows,
        cols,
        load_vector(x_norm, rows, bottom, METRIC != DOT),
        load_vector(y_norm, cols, right, METRIC != DOT),
        row_scales,
        col_scales,
        pair,
        bottom,
        right,
        d,
        METRIC,
        UNIT,
    )
    of_anchor = load_vector(x_given, rows, bottom, GIVEN)[:, None]
    u, du, v, dv = TERMS(s, of_anchor, sign, p0, p1, p2)
    terms, part = bounded_terms(u, v, positive, POSITIVES, NEGATIVES)
    mixed = True
    if DEPTH > 0:
        mixed = has_others(first_row, first_col, bottom, right, SELF, BLOCK_M, BLOCK_N)
    if ADD_TOTALS:
        if mixed:
            terms = tl.where(pair, terms, 0.0)
        visits = 1.0
        if UPPER and first_col >= (first_row + BLOCK_M if MIRRORED else bottom):
            visits = 2.0
        pull, push = tl.where(positive, terms, 0.0), tl.where(positive, 0.0, terms)
        tl.store(out, visits * tl.sum(tl.sum(pull, 1), 0).to(tl.float64))
        tl.store(out + 1, visits * tl.sum(tl.sum(tl.where(pull != 0, 1.0, 0.0), 1), 0).to(tl.float64))
        tl.store(out + 2, visits * tl.sum(tl.sum(push, 1), 0).to(tl.float64))
        tl.store(out + 3, visits * tl.sum(tl.sum(tl.where(push != 0, 1.0, 0.0), 1), 0).to(tl.float64))
    if SLOPES:
        if DEPTH > 0 and WEIGHTED and not GIVEN:
            pull_factor, pull_constant, push_factor, push_constant = unshifted_weights(
                x_weights, rows, bottom, n, x_share, 1
            )
            if BOTH:
                a, b, e, f = unshifted_weights(y_weights, cols, right, m, y_share, 0)
                pull_factor, pull_constant, push_factor, push_constant = (
                    pull_factor + a,
                    pull_constant + b,
                    push_factor + e,
                    push_constant + f,
                )
            weight = tl.where(positive, pull_factor, push_factor) * part
            slope = tl.where(positive, du, dv) * (weight + tl.where(positive, pull_constant, push_constant))
        else:
            slope = anchor_slopes(
                s,
                rows,
                bottom,
                x_weights,
                n,
                x_given,
                x_share,
                positive,
                sign,
                p0,
                p1,
                p2,
                1,
                TERMS,
                POSITIVES,
                NEGATIVES,
                GIVEN,
                WEIGHTED,
            )
            if BOTH:
                slope += anchor_slopes(
                    s,
                    cols,
                    right,
                    y_weights,
                    m,
                    y_given,
                    y_share,
                    positive,
                    sign,
                    p0,
                    p1,
                    p2,
                    0,
                    TERMS,
                    POSITIVES,
                    NEGATIVES,
                    GIVEN,
                    WEIGHTED,
                )
        at = (rows - top).to(tl.int64)[:, None] * ld + (cols - left)[None, :]
        rounded, rest = store_slopes(
            slope,
            s,
            pair,
            mixed,
            close,
            row_scales,
            col_scales,
            products,
            slopes,
            residuals,
            row_sums,
            col_sums,
            flags,
            at,
            rows,
            cols,
            row_block,
            col_block,
            top,
            bottom,
            left,
            right,
            SPLIT,
            ROW_SUMS,
            METRIC,
            UNIT,
            BLOCK_N,
        )
        if MIRRORED:  # noqa: SIM102
            if (first_row < first_col) & (first_col < bottom):
                twin = (cols - top).to(tl.int64)[:, None] * ld + (rows - left)[None, :]
                inside = (cols < bottom)[:, None] & (rows < bottom)[None, :]
                tl.store(slopes + twin, tl.trans(rounded), mask=inside)
                if SPLIT:
                    tl.store(residuals + twin, tl.trans(rest), mask=inside)
