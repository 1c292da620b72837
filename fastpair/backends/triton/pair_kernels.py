"""The kernels behind every pair loss: a sweep for the anchors' statistics, and one for the slopes of all pairs.

``statistics_kernel`` -> ``anchor_kernel`` -> ``reduce_kernel`` -> ``slopes_kernel``; a sum over pairs, whose slopes
need no statistics, takes the last two alone. The loss comes in as two device functions, see ``terms``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastpair.backends.triton import launch
from fastpair.backends.triton.terms import LOG_SUM_EXP, MAX, SUM
from fastpair.backends.triton.tiles import aligned, entries, lengths, row_tile, scores, store_slopes, tile_products

# Which pairs an anchor is one half of with itself, as constants of the kernels: none, (i, i), or (i, self_index[i]).
NO_SELF, SAME_INDEX, LISTED_SELF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# What an anchor's pairs come to in some of the columns: of positives the sum, maximum or shift of the log-sum-exp; the
# number of non-zero terms, column of the maximum or sum of exponentials; the sum of slopes by `given`, or of terms of a
# log-sum-exp; how many there are. Of negatives the first two.
CHANNELS = tl.constexpr(6)
ROOM = tl.constexpr(launch.ROOM)
# Factor, shift and constant of the slopes of positives and negatives.
WEIGHTS = tl.constexpr(6)
# Loss, count, loss of the negatives and their count, of a block of anchors or of a tile.
TOTALS = tl.constexpr(4)


@triton.jit
def room_for(n):
    """How far the channels of n anchors lie apart."""
    return tl.cdiv(n, ROOM) * ROOM


@triton.jit
def same_classes(x, y, rows, cols):
    return tl.load(x.labels + rows)[:, None] == tl.load(y.labels + cols)[None, :]


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
        row_second = tl.min(tl.where(best, second.to(tl.int32, bitcast=True), 2**31 - 1), 1)
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
def merged(first, second, other_first, other_second, REDUCTION: tl.constexpr):
    """First and second channel of one kind, of two sets of columns."""
    if REDUCTION == SUM:
        return first + other_first, second + other_second
    elif REDUCTION == LOG_SUM_EXP:
        # Of no pairs both are empty; a NaN is in the sum.
        highest = tl.maximum(first, other_first)
        return highest, second * relative_to(first, highest) + other_second * relative_to(other_first, highest)
    else:
        equal_before = (other_first == first) & (other_second < second)
        better = (other_first > first) | equal_before | (other_first != other_first)
        return tl.where(better, other_first, first), tl.where(better, other_second, second)


@triton.jit
def take_in(at, room, first, second, again, REDUCTION: tl.constexpr):
    """Puts two channels at ``at``, with what was there before where ``again``."""
    first, second = first.to(tl.float64), second.to(tl.float64)
    if again != 0:
        first, second = merged(tl.load(at), tl.load(at + room), first, second, REDUCTION)
    tl.store(at, first)
    tl.store(at + room, second)


@triton.jit(do_not_specialize=["ld", "again", "n", "top", "bottom", "left", "right", "span"])
def statistics_kernel(
    x,
    y,
    self_index,
    products,
    ld,
    partial,
    again,
    n,
    d,
    top,
    bottom,
    left,
    right,
    span,
    settings,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    ADD_POSITIVES: tl.constexpr,
    ADD_NEGATIVES: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial[s, :, i] of the anchors [top, bottom) and the s-th ``span`` of the columns [left, right), with what was
    there of other columns where ``again``."""
    ld, top, left = aligned(ld), aligned(top), aligned(left)
    split = tl.program_id(1)
    first_row = top + tl.program_id(0) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_lengths = lengths(x, rows)
    of_anchor = entries(x.given, rows)[:, None]

    # Of each place of the tile apart, sums over its columns being taken once, at the end; or of whole rows, where the
    # registers hold the products that are made.
    PLACES: tl.constexpr = DEPTH == 0
    zero = tl.zeros((BLOCK_M, BLOCK_N) if PLACES else (BLOCK_M,), tl.float32)
    pos_first, pos_second, pos_third, pos_pairs = zero + of_none(POSITIVES), zero, zero, zero
    neg_first, neg_second = zero + of_none(NEGATIVES), zero

    begin = left + split * aligned(span)
    for start in range(begin, tl.minimum(begin + span, right), BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        same = same_classes(x, y, rows, cols)
        pair = all_pairs(rows, cols, bottom, right, self_index, SELF)
        s, _close = scores(
            tile_products(products, ld, x.x, y.x, rows, cols, top, left, bottom, right, d, DEPTH),
            x,
            y,
            rows,
            cols,
            row_lengths,
            lengths(y, cols),
            pair,
            bottom,
            right,
            d,
            METRIC,
            UNIT,
        )
        u, du, v, dv = TERMS(s, of_anchor, *settings)
        if PLACES:
            positive = pair & same
            if ADD_POSITIVES:
                pos_pairs += positive.to(tl.float32)
                if x.given is not None:
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
            if x.given is not None:
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
                if x.given is not None or POSITIVES == LOG_SUM_EXP:
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
    room = room_for(n)
    out = partial + split.to(tl.int64) * CHANNELS * room + rows
    if ADD_POSITIVES:
        take_in(out, room, pos_first, pos_second, again, POSITIVES)
        take_in(out + 2 * room, room, pos_third, pos_pairs, again, SUM)
    if ADD_NEGATIVES:
        take_in(out + 4 * room, room, neg_first, neg_second, again, NEGATIVES)


@triton.jit
def over_slots(partial, slots, room, rows, REDUCTION: tl.constexpr):
    """Two channels of some anchors, over all slots."""
    first = tl.full(rows.shape, of_none(REDUCTION), tl.float64)
    second = tl.zeros(rows.shape, tl.float64)
    # Many slots are those of few anchors, with no other work to wait beside.
    for slot in tl.range(slots, loop_unroll_factor=8):
        at = partial + slot * CHANNELS * room + rows
        first, second = merged(first, second, tl.load(at), tl.load(at + room), REDUCTION)
    return first, second


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


@triton.jit(do_not_specialize=["slots", "n"])
def given_kernel(partial, slots, given, n, NEGATIVES: tl.constexpr, BLOCK: tl.constexpr):
    """given[i]: what the negatives of anchor i come to."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    room = room_for(n)
    first, second = over_slots(partial + 4 * room, slots, room, rows, NEGATIVES)
    value, log_sum, _aux, _by_given = statistic(first, second, second, NEGATIVES)
    tl.store(given + rows, (value + log_sum).to(tl.float32))


@triton.jit
def store_weights(out, room, slope, kind, weight):
    """Factor, shift and constant: the derivative by a term u is factor exp(u - shift) + constant."""
    tl.store(out, (slope[0] * weight * tl.exp(-kind[2])).to(tl.float32))
    # The shift of none makes every exponential 0.
    shift = tl.where(kind[0] == 0, float("inf"), kind[1])
    tl.store(out + room, shift.to(tl.float32))
    tl.store(out + 2 * room, (slope[1] * weight).to(tl.float32))


@triton.jit(do_not_specialize=["slots", "n", "m"])
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
    loss_params,
    ANCHOR: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    SELF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the statistics of the anchors: losses (n,), weights (6, .), of maxima the terms and columns (4, n), and
    totals (blocks, 4)."""
    pid = tl.program_id(0)
    rows = pid * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    room = room_for(n)
    pos_first, pos_second = over_slots(partial, slots, room, rows, POSITIVES)
    pos_third, pos_pairs = over_slots(partial + 2 * room, slots, room, rows, SUM)
    neg_first, neg_second = over_slots(partial + 4 * room, slots, room, rows, NEGATIVES)
    selves = tl.zeros(rows.shape, tl.float64)
    if SELF == SAME_INDEX:
        selves += 1
    if SELF == LISTED_SELF:
        selves += (tl.load(self_index + rows, mask=inside, other=-1) >= 0).to(tl.float64)
    pos_value, pos_log_sum, pos_aux, by_given = statistic(pos_first, pos_second, pos_third, POSITIVES)
    neg_value, neg_log_sum, neg_aux, _unused = statistic(neg_first, neg_second, neg_second, NEGATIVES)
    pos = (pos_pairs, pos_value, pos_log_sum, pos_aux, by_given)
    neg = (m - pos_pairs - selves, neg_value, neg_log_sum, neg_aux, neg_second)

    loss, count, neg_loss, neg_count, pull, push = ANCHOR(pos, neg, *loss_params)
    tl.store(losses + rows, (loss + neg_loss).to(tl.float32), mask=inside)
    weight = tl.full(rows.shape, 1.0, tl.float64)
    if row_grad is not None:
        weight = tl.load(row_grad + rows, mask=inside, other=0.0).to(tl.float64)
    store_weights(weights + rows, room, pull, pos, weight)
    store_weights(weights + 3 * room + rows, room, push, neg, weight)
    if POSITIVES == MAX:
        tl.store(extremes + rows, pos_first, mask=inside)
        tl.store(extremes + n + rows, pos_second, mask=inside)
        tl.store(extremes + 2 * n + rows, neg_first, mask=inside)
        tl.store(extremes + 3 * n + rows, neg_second, mask=inside)
    out = totals + pid * TOTALS
    tl.store(out, tl.sum(tl.where(inside, loss, 0.0), 0))
    tl.store(out + 1, tl.sum(tl.where(inside, count, 0.0), 0))
    tl.store(out + 2, tl.sum(tl.where(inside, neg_loss, 0.0), 0))
    tl.store(out + 3, tl.sum(tl.where(inside, neg_count, 0.0), 0))


@triton.jit(do_not_specialize=["count"])
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
    side,
    anchors,
    n,
    positive,
    settings,
    AXIS: tl.constexpr,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
):
    """The derivatives of the losses of one side's anchors by the scores of a tile."""
    of_anchor = tl.expand_dims(entries(side.given, anchors), AXIS)
    u, du, v, dv = TERMS(s, of_anchor, *settings)
    pull = tl.load(side.share)
    push = tl.load(side.share + 1)
    if side.weights is not None:
        at, room = side.weights + anchors, room_for(n)
        constant = tl.expand_dims(tl.load(at + 2 * room), AXIS)
        if POSITIVES == LOG_SUM_EXP:
            factor = tl.expand_dims(tl.load(at), AXIS)
            shift = tl.expand_dims(tl.load(at + room), AXIS)
            constant = factor * tl.exp(u - shift) + constant
        pull = pull * constant
        constant = tl.expand_dims(tl.load(at + 5 * room), AXIS)
        if NEGATIVES == LOG_SUM_EXP:
            factor = tl.expand_dims(tl.load(at + 3 * room), AXIS)
            shift = tl.expand_dims(tl.load(at + 4 * room), AXIS)
            constant = factor * tl.exp(v - shift) + constant
        push = push * constant
    return tl.where(positive, du * pull, dv * push)


@triton.jit
def unshifted_weights(side, anchors, n, AXIS: tl.constexpr):
    """Factor and constant of one side's positives, and of its negatives, where the shift is zero."""
    at, room = side.weights + anchors, room_for(n)
    pull, push = tl.load(side.share), tl.load(side.share + 1)
    return (
        tl.expand_dims(tl.load(at) * pull, AXIS),
        tl.expand_dims(tl.load(at + 2 * room) * pull, AXIS),
        tl.expand_dims(tl.load(at + 3 * room) * push, AXIS),
        tl.expand_dims(tl.load(at + 5 * room) * push, AXIS),
    )


@triton.jit
def add_totals(totals, terms, positive, visits):
    """The sums and the numbers of non-zero terms, of positives and of negatives, ``visits`` times, to ``totals``."""
    pull, push = tl.where(positive, terms, 0.0), tl.where(positive, 0.0, terms)
    for kind in tl.static_range(2):
        of_kind = push if kind else pull
        at = totals + 2 * kind
        tl.store(at, tl.load(at) + visits * tl.sum(tl.sum(of_kind, 1), 0).to(tl.float64))
        count = tl.sum(tl.sum(tl.where(of_kind != 0, 1.0, 0.0), 1), 0).to(tl.float64)
        tl.store(at + 1, tl.load(at + 1) + visits * count)


@triton.jit(do_not_specialize=["ld", "n", "m", "top", "bottom", "left", "right"])
def slopes_kernel(
    x,
    y,
    self_index,
    products,
    ld,
    out,
    totals,
    n,
    m,
    d,
    top,
    bottom,
    left,
    right,
    settings,
    TERMS: tl.constexpr,
    POSITIVES: tl.constexpr,
    NEGATIVES: tl.constexpr,
    BOTH: tl.constexpr,
    UPPER: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    UNIT: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out.slopes`` (., ld) of the rectangle [top, bottom) x [left, right), where they are wanted: the derivatives of
    the loss by the dot products of its pairs, with the anchors' weights of the rows and, where ``BOTH`` sides are
    anchors, of the columns.

    ``totals`` (programs, 4): what the tiles' terms are added to. ``UPPER``: what lies right of the square on the
    diagonal stands for its mirror image too."""
    ld, top, left = aligned(ld), aligned(top), aligned(left)
    pid = tl.program_id(0)
    row_block, col_block = row_tile(pid, bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    first_row, first_col = top + row_block * BLOCK_M, left + col_block * BLOCK_N
    MIRRORED: tl.constexpr = DEPTH > 0 and UPPER
    # The tile above the diagonal whose mirror image it is stores it.
    if MIRRORED:  # noqa: SIM102 - a constant of the kernel
        if first_col < first_row:
            return
    rows, cols = first_row + tl.arange(0, BLOCK_M), first_col + tl.arange(0, BLOCK_N)
    positive = same_classes(x, y, rows, cols)
    pair = all_pairs(rows, cols, bottom, right, self_index, SELF)
    if DEPTH == 0:
        positive &= pair
    row_lengths, col_lengths = lengths(x, rows), lengths(y, cols)
    s, close = scores(
        tile_products(products, ld, x.x, y.x, rows, cols, top, left, bottom, right, d, DEPTH),
        x,
        y,
        rows,
        cols,
        row_lengths,
        col_lengths,
        pair,
        bottom,
        right,
        d,
        METRIC,
        UNIT,
    )
    of_anchor = entries(x.given, rows)[:, None]
    u, du, v, dv = TERMS(s, of_anchor, *settings)
    terms, part = bounded_terms(u, v, positive, POSITIVES, NEGATIVES)
    mixed = True
    if DEPTH > 0:
        mixed = has_others(first_row, first_col, bottom, right, SELF, BLOCK_M, BLOCK_N)
    if totals is not None:
        if mixed:
            terms = tl.where(pair, terms, 0.0)
        visits = 1.0
        if UPPER and first_col >= (first_row + BLOCK_M if MIRRORED else bottom):
            visits = 2.0
        add_totals(totals + pid * TOTALS, terms, positive, visits)
    if out.slopes is not None:
        if DEPTH > 0 and x.weights is not None and x.given is None:
            pull_factor, pull_constant, push_factor, push_constant = unshifted_weights(x, rows, n, 1)
            if BOTH:
                a, b, e, f = unshifted_weights(y, cols, m, 0)
                pull_factor, pull_constant, push_factor, push_constant = (
                    pull_factor + a,
                    pull_constant + b,
                    push_factor + e,
                    push_constant + f,
                )
            weight = tl.where(positive, pull_factor, push_factor) * part
            slope = tl.where(positive, du, dv) * (weight + tl.where(positive, pull_constant, push_constant))
        else:
            slope = anchor_slopes(s, x, rows, n, positive, settings, 1, TERMS, POSITIVES, NEGATIVES)
            if BOTH:
                slope += anchor_slopes(s, y, cols, m, positive, settings, 0, TERMS, POSITIVES, NEGATIVES)
        at = (rows - top).to(tl.int64)[:, None] * ld + (cols - left)[None, :]
        rounded, rest = store_slopes(
            slope,
            s,
            pair,
            mixed,
            close,
            row_lengths,
            col_lengths,
            products,
            out,
            at,
            rows,
            cols,
            row_block,
            col_block,
            top,
            bottom,
            left,
            right,
            METRIC,
            UNIT,
            BLOCK_N,
        )
        if MIRRORED:  # noqa: SIM102
            if (first_row < first_col) & (first_col < bottom):
                # Where tiles are not square these overlap, with equal numbers: the matrix units make the same of x y
                # and of y x.
                twin = (cols - top).to(tl.int64)[:, None] * ld + (rows - left)[None, :]
                tl.store(out.slopes + twin, tl.trans(rounded))
                if out.residuals is not None:
                    tl.store(out.residuals + twin, tl.trans(rest))
