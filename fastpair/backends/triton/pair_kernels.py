"""The kernels behind every pair loss: one sweep for the anchors' statistics, and one for the slopes of all pairs.

``statistics_kernel`` -> ``anchor_kernel`` -> ``reduce_kernel`` -> ``slopes_kernel``; a sum over pairs, whose slopes
need no statistics, takes only the last two. The loss comes in as two device functions, see ``terms``.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastpair.backends.triton.terms import LOG_SUM_EXP, SUM
from fastpair.backends.triton.tiles import (
    aligned,
    closeness,
    entries,
    places,
    row_tile,
    store_slopes,
    stretch,
    tile_products,
)

# Which pairs compare an anchor with itself, as constants of the kernels: none, (i, i), or (i, self_index[i]).
NO_SELF, SAME_INDEX, LISTED_SELF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

# An anchor's statistics over some of the columns. For positives: the sum, maximum or shift of the log-sum-exp; the
# number of non-zero terms, column of the maximum or sum of exponentials; the sum of slopes by `negatives_lse`, or of
# terms that are pooled otherwise; the number of pairs. For negatives: the first two.
CHANNELS = tl.constexpr(6)
# Factor, shift and constant of the slopes, for positives and for negatives.
WEIGHTS = tl.constexpr(6)
# Loss and count, then those of the negatives, summed over a block of anchors or a tile.
TOTALS = tl.constexpr(4)


class Statistic(NamedTuple):
    """Statistics of an anchor's pairs of one kind, in float64. A log-sum-exp is ``value`` + ``log_sum``: the maximum
    and the logarithm of the sum relative to it, which would be lost in one number beside large closenesses. ``aside``:
    for a sum the number of terms that are not zero, else the sum of the terms."""

    pairs: tl.tensor
    value: tl.tensor
    log_sum: tl.tensor
    aside: tl.tensor
    by_negatives_lse: tl.tensor


class AnchorResults(NamedTuple):
    """The results of one side's anchors: losses (n,), weights (6, .), for maxima their terms and columns (4, n), and
    totals (blocks, 4). ``derivatives`` (blocks, 2 K): of the sums of both parts of the losses by the K parameters that
    learn, the terms being constant."""

    losses: Tensor
    weights: Tensor
    extremes: Tensor | None
    totals: Tensor
    derivatives: Tensor | None


@triton.jit
def related(x, y, rows, cols, links, SELF: tl.constexpr):
    """Which elements of a tile are pairs at all, and which of those that are would be positive."""
    inside = rows.index < rows.end
    pair = inside[:, None] & (cols.index < cols.end)[None, :]
    if links.pairs is not None:
        at = links.pairs + rows.index.to(tl.int64)[:, None] * links.ld + cols.index[None, :]
        kind = tl.load(at, mask=pair, other=0)
        pair &= kind != 0
        same = kind > 0
    elif x.sets is not None:
        same = tl.zeros(pair.shape, tl.int1)
        for word in range(x.words):
            own, others = tl.load(x.sets + word * x.room + rows.index), tl.load(y.sets + word * y.room + cols.index)
            same |= (own[:, None] & others[None, :]) != 0
    else:
        same = tl.load(x.labels + rows.index)[:, None] == tl.load(y.labels + cols.index)[None, :]
    if x.ids is not None:
        pair &= tl.load(x.ids + rows.index)[:, None] != tl.load(y.ids + cols.index)[None, :]
    if SELF == SAME_INDEX:
        pair &= rows.index[:, None] != cols.index[None, :]
    if SELF == LISTED_SELF:
        own_col = tl.load(links.self_index + rows.index, mask=inside, other=-1)
        pair &= own_col[:, None] != cols.index[None, :]
    return pair, same


@triton.jit
def has_others(x, rows, cols, links, SELF: tl.constexpr):
    """Whether a tile may have elements that are no pairs."""
    rows_end, cols_end = rows.first + rows.index.shape[0], cols.first + cols.index.shape[0]
    out = (rows_end > rows.end) | (cols_end > cols.end)
    if SELF == SAME_INDEX:
        out |= (rows.first < cols_end) & (cols.first < rows_end)
    if SELF == LISTED_SELF or x.ids is not None or links.pairs is not None:
        out |= True
    return out


@triton.jit
def terms_of(OF_PAIR: tl.constexpr, s, side, anchors, other, others, parameters, AXIS: tl.constexpr):
    """A printed function of a tile's closenesses: ``anchors`` of one ``side`` along the axis that is not ``AXIS``, with
    ``others`` of the ``other`` side."""
    negatives_lse = tl.expand_dims(entries(side.negatives_lse, anchors.index), AXIS)
    anchor_at = places(side.anchor_scalars, anchors.index, AXIS)
    ref_at = places(other.ref_scalars, others.index, 1 - AXIS)
    return OF_PAIR(s, negatives_lse, anchor_at, side.room, ref_at, other.room, *parameters)


@triton.jit
def of_none(POOL: tl.constexpr):
    """The first channel of a kind without terms."""
    return 0.0 if POOL == SUM else -float("inf")


@triton.jit
def collect(first, second, terms, cols, POOL: tl.constexpr):
    """Adds a tile's terms of one kind, ``of_none`` for pairs that are not of this kind, to the two channels that each
    place of the tile has."""
    if POOL == SUM:
        first += terms
        second += (terms != 0).to(tl.float32)
    elif POOL == LOG_SUM_EXP:
        # One exponential: the larger of the two shifts becomes the new one. Without terms there is nothing to shift.
        nearer = tl.exp(tl.where(terms == first, 0.0, -tl.abs(terms - first)))
        added = tl.where(terms == -float("inf"), 0.0, tl.where(terms > first, 1.0, nearer))
        second = tl.fma(second, tl.where(terms > first, nearer, 1.0), added)
        first = tl.maximum(first, terms)
    else:
        # NaN counts as the largest, so that it shows.
        better = (terms > first) | (terms != terms)
        second = tl.where(better, cols.to(tl.float32, bitcast=True)[None, :], second)
        first = tl.where(better, terms, first)
    return first, second


@triton.jit
def relative_to(shift, highest):
    """exp(shift - highest); 1 if the shift is the highest itself, even if infinite."""
    return tl.exp(tl.where(shift == highest, 0.0, shift - highest))


@triton.jit
def over_places(first, second, POOL: tl.constexpr):
    """The two channels of each row, over all its places."""
    if POOL == SUM:
        row_first = tl.sum(first, 1)
        row_second = tl.sum(second, 1)
    elif POOL == LOG_SUM_EXP:
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
def bounded_terms(u, v, same, POOLS: tl.constexpr):
    """The terms of all pairs and, where a kind is a log-sum-exp, their exponentials: none overflows or underflows, so
    that the shift is zero."""
    terms = tl.where(same, u, v)
    part = terms
    if POOLS.positives == LOG_SUM_EXP and POOLS.negatives == LOG_SUM_EXP:
        part = tl.exp(terms)
    elif POOLS.positives == LOG_SUM_EXP:
        part = tl.exp(u)
    elif POOLS.negatives == LOG_SUM_EXP:
        part = tl.exp(v)
    return terms, part


@triton.jit
def add_rows(first, second, terms, part, POOL: tl.constexpr):
    """Adds a tile's terms of one kind, zero for pairs that are not of this kind, to the two channels of its rows.
    ``part``: their exponentials."""
    if POOL == SUM:
        first += tl.sum(terms, 1)
        second += tl.sum(tl.where(terms != 0, 1.0, 0.0), 1)
    else:
        second += tl.sum(part, 1)
        # The shift is zero.
        first = tl.where(second == 0, -float("inf"), 0.0)
    return first, second


@triton.jit
def merged(first, second, other_first, other_second, POOL: tl.constexpr):
    """The first and second channel of one kind, merged from two sets of columns."""
    if POOL == SUM:
        return first + other_first, second + other_second
    elif POOL == LOG_SUM_EXP:
        # Without pairs both are minus infinity; a NaN shows in the sum.
        highest = tl.maximum(first, other_first)
        return highest, second * relative_to(first, highest) + other_second * relative_to(other_first, highest)
    else:
        equal_before = (other_first == first) & (other_second < second)
        better = (other_first > first) | equal_before | (other_first != other_first)
        return tl.where(better, other_first, first), tl.where(better, other_second, second)


@triton.jit
def take_in(at, room, first, second, again, POOL: tl.constexpr):
    """Stores two channels at ``at``; if ``again``, merged with those stored there before."""
    first, second = first.to(tl.float64), second.to(tl.float64)
    if again != 0:
        first, second = merged(tl.load(at), tl.load(at + room), first, second, POOL)
    tl.store(at, first)
    tl.store(at + room, second)


@triton.jit(do_not_specialize=["again", "top", "bottom", "left", "right", "span"])
def statistics_kernel(
    x,
    y,
    links,
    products,
    partial,
    again,
    top,
    bottom,
    left,
    right,
    span,
    parameters,
    TERMS: tl.constexpr,
    POOLS: tl.constexpr,
    ADD_POSITIVES: tl.constexpr,
    ADD_NEGATIVES: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial[s, :, i] for the anchors [top, bottom) and the s-th ``span`` of the columns [left, right); if ``again``,
    merged with what is there from other columns."""
    top, left = aligned(top), aligned(left)
    split = tl.program_id(1)
    rows = stretch(x, top + tl.program_id(0) * BLOCK_M, top, bottom, BLOCK_M)

    # Statistics are kept for each place of the tile, and summed over its columns once, at the end; or for whole rows,
    # where the registers hold the products that are made.
    PLACES: tl.constexpr = DEPTH == 0
    POSITIVES: tl.constexpr = POOLS.positives
    NEGATIVES: tl.constexpr = POOLS.negatives
    zero = tl.zeros((BLOCK_M, BLOCK_N) if PLACES else (BLOCK_M,), tl.float32)
    pos_first, pos_second, pos_third, pos_pairs = zero + of_none(POSITIVES), zero, zero, zero
    neg_first, neg_second = zero + of_none(NEGATIVES), zero

    begin = left + split * aligned(span)
    for start in range(begin, tl.minimum(begin + span, right), BLOCK_N):
        cols = stretch(y, start, left, right, BLOCK_N)
        pair, same = related(x, y, rows, cols, links, SELF)
        made = tile_products(products, x, y, rows, cols, DEPTH)
        s, _close = closeness(made, x, y, rows, cols, pair, METRIC)
        u, _du, v, _dv, by_negatives_lse = terms_of(TERMS, s, x, rows, y, cols, parameters, 1)
        if PLACES:
            positive = pair & same
            if ADD_POSITIVES:
                pos_pairs += positive.to(tl.float32)
                if x.negatives_lse is not None:
                    pos_third += tl.where(positive, by_negatives_lse, 0.0)
                elif POOLS.positives_sum:
                    pos_third += tl.where(positive, u, 0.0)
                u = tl.where(positive, u, of_none(POSITIVES))
                pos_first, pos_second = collect(pos_first, pos_second, u, cols.index, POSITIVES)
            if ADD_NEGATIVES:
                v = tl.where(pair & ~positive, v, of_none(NEGATIVES))
                neg_first, neg_second = collect(neg_first, neg_second, v, cols.index, NEGATIVES)
        else:
            terms, part = bounded_terms(u, v, same, POOLS)
            thirds = terms
            if x.negatives_lse is not None:
                thirds = by_negatives_lse
            # The comparisons are always true: they make pairs be counted in the registers of the closenesses, where
            # rows are summed in a few steps.
            count = tl.where((s <= float("inf")) | (s != s), 1.0, 0.0)
            if has_others(x, rows, cols, links, SELF):
                terms, part = tl.where(pair, terms, 0.0), tl.where(pair, part, 0.0)
                thirds = tl.where(pair, thirds, 0.0)
                pairs = tl.sum(tl.where(same & pair, count, 0.0), 1)
            else:
                pairs = tl.sum(tl.where(same, count, 0.0), 1)
            if ADD_POSITIVES:
                pos_pairs += pairs
                if x.negatives_lse is not None or POOLS.positives_sum:
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
    out = partial + split.to(tl.int64) * CHANNELS * x.room + rows.index
    if ADD_POSITIVES:
        take_in(out, x.room, pos_first, pos_second, again, POSITIVES)
        take_in(out + 2 * x.room, x.room, pos_third, pos_pairs, again, SUM)
    if ADD_NEGATIVES:
        take_in(out + 4 * x.room, x.room, neg_first, neg_second, again, NEGATIVES)


@triton.jit
def over_slots(partial, slots, room, rows, POOL: tl.constexpr):
    """Two channels of some anchors, merged over all slots."""
    first = tl.full(rows.shape, of_none(POOL), tl.float64)
    second = tl.zeros(rows.shape, tl.float64)
    # There are many slots where anchors are few, with no other work to hide the latency of loads.
    for slot in tl.range(slots, loop_unroll_factor=8):
        at = partial + slot * CHANNELS * room + rows
        first, second = merged(first, second, tl.load(at), tl.load(at + room), POOL)
    return first, second


@triton.jit
def statistic(pairs, first, second, third, POOL: tl.constexpr, LEAVES_OUT: tl.constexpr):
    """The statistic that the channels of one kind, merged over all slots, make."""
    log_sum = tl.zeros_like(first)
    if POOL == LOG_SUM_EXP:
        if LEAVES_OUT:
            pairs = tl.where(second == 0, 0.0, pairs)
        # Zero for an empty sum, whose maximum is minus infinity.
        log_sum = tl.log(tl.where(second == 0, 1.0, second))
    return Statistic(pairs, first, log_sum, second if POOL == SUM else third, third)


@triton.jit(do_not_specialize=["slots"])
def negatives_lse_kernel(partial, slots, room, negatives_lse, BLOCK: tl.constexpr):
    """negatives_lse[i]: the log-sum-exp over the negatives of anchor i."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, second = over_slots(partial + 4 * room, slots, room, rows, LOG_SUM_EXP)
    negatives = statistic(first, first, second, second, LOG_SUM_EXP, False)
    tl.store(negatives_lse + rows, (negatives.value + negatives.log_sum).to(tl.float32))


@triton.jit
def store_weights(out, room, factor, constant, kind, weight):
    """Factor, shift and constant: the derivative by a term u is factor exp(u - shift) + constant."""
    tl.store(out, (factor * weight * tl.exp(-kind.log_sum)).to(tl.float32))
    # Without pairs, the shift makes every exponential 0.
    shift = tl.where(kind.pairs == 0, float("inf"), kind.value)
    tl.store(out + room, shift.to(tl.float32))
    tl.store(out + 2 * room, (constant * weight).to(tl.float32))


@triton.jit(do_not_specialize=["slots", "n", "m"])
def anchor_kernel(
    partial,
    slots,
    room,
    self_index,
    non_pairs,
    given_weights,
    row_grad,
    anchor_scalars,
    out,
    n,
    m,
    parameters,
    ANCHOR: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    LEARNED: tl.constexpr,
    POOLS: tl.constexpr,
    SELF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Computes ``out``, an AnchorResults, from the statistics of the anchors. ``non_pairs``: with how many of the m
    references an anchor makes no pair, unless that is only itself. ``given_weights``: factors of losses and counts."""
    POSITIVES: tl.constexpr = POOLS.positives
    NEGATIVES: tl.constexpr = POOLS.negatives
    pid = tl.program_id(0)
    rows = pid * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    pos_first, pos_second = over_slots(partial, slots, room, rows, POSITIVES)
    pos_third, pos_pairs = over_slots(partial + 2 * room, slots, room, rows, SUM)
    neg_first, neg_second = over_slots(partial + 4 * room, slots, room, rows, NEGATIVES)
    others = tl.zeros(rows.shape, tl.float64)
    if non_pairs is not None:
        others += tl.load(non_pairs + rows, mask=inside, other=0).to(tl.float64)
    elif SELF == SAME_INDEX:
        others += 1
    elif SELF == LISTED_SELF:
        others += (tl.load(self_index + rows, mask=inside, other=-1) >= 0).to(tl.float64)
    pos = statistic(pos_pairs, pos_first, pos_second, pos_third, POSITIVES, POOLS.leaves_out)
    neg = statistic(m - pos_pairs - others, neg_first, neg_second, neg_second, NEGATIVES, POOLS.leaves_out)

    at = anchor_scalars + rows if anchor_scalars is not None else None
    loss, count, neg_loss, neg_count, pull, pull_constant, push, push_constant = ANCHOR(pos, neg, at, room, *parameters)
    weight = tl.full(rows.shape, 1.0, tl.float64)
    if given_weights is not None:
        weight = tl.load(given_weights + rows, mask=inside, other=0.0).to(tl.float64)
        loss, count, neg_loss, neg_count = loss * weight, count * weight, neg_loss * weight, neg_count * weight
    tl.store(out.losses + rows, (loss + neg_loss).to(tl.float32), mask=inside)
    if row_grad is not None:
        weight *= tl.load(row_grad + rows, mask=inside, other=0.0).to(tl.float64)
    if DERIVATIVES is not None:
        derivatives = DERIVATIVES(pos, neg, at, room, *parameters)
        for k in tl.static_range(2 * LEARNED):
            of_block = tl.where(inside, derivatives[k] * weight, 0.0)
            tl.store(out.derivatives + pid * 2 * LEARNED + k, tl.sum(of_block, 0))
    store_weights(out.weights + rows, room, pull, pull_constant, pos, weight)
    store_weights(out.weights + 3 * room + rows, room, push, push_constant, neg, weight)
    if out.extremes is not None:
        tl.store(out.extremes + rows, pos_first, mask=inside)
        tl.store(out.extremes + n + rows, pos_second, mask=inside)
        tl.store(out.extremes + 2 * n + rows, neg_first, mask=inside)
        tl.store(out.extremes + 3 * n + rows, neg_second, mask=inside)
    totals = out.totals + pid * TOTALS
    tl.store(totals, tl.sum(tl.where(inside, loss, 0.0), 0))
    tl.store(totals + 1, tl.sum(tl.where(inside, count, 0.0), 0))
    tl.store(totals + 2, tl.sum(tl.where(inside, neg_loss, 0.0), 0))
    tl.store(totals + 3, tl.sum(tl.where(inside, neg_count, 0.0), 0))


@triton.jit
def divisor(count):
    """What a sum is divided by for a mean over ``count``."""
    return tl.where(count > 0, count, 1.0)


@triton.jit(do_not_specialize=["count"])
def reduce_kernel(
    totals,
    count,
    value,
    multipliers,
    part,
    per_anchor,
    MEAN: tl.constexpr,
    SEPARATE: tl.constexpr,
    TERM_TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """value += part times the sum or the mean; multipliers[:2] = part over the divisors of positives and of negatives.

    ``TERM_TOTALS``: the counts are those of terms, and a mean over anchors multiplies by ``per_anchor``."""
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
    positive = tl.full((), 1.0, tl.float64)
    negative = positive
    if MEAN:
        if TERM_TOTALS and not SEPARATE:
            positive *= per_anchor
        else:
            positive = 1 / divisor(tl.sum(pairs, 0))
        negative = positive
        if SEPARATE:
            negative = 1 / divisor(tl.sum(neg_pairs, 0))
    result = part * (tl.sum(loss, 0) * positive + tl.sum(neg_loss, 0) * negative)
    tl.store(value, (tl.load(value).to(tl.float64) + result).to(tl.float32))
    tl.store(multipliers, (part * positive).to(tl.float32))
    tl.store(multipliers + 1, (part * negative).to(tl.float32))


@triton.jit
def anchor_slopes(
    s, side, anchors, other, others, positive, parameters, AXIS: tl.constexpr, TERMS: tl.constexpr, POOLS: tl.constexpr
):
    """The derivatives of the losses of one side's anchors by the closenesses of a tile, and by its terms as positives
    and as negatives."""
    u, du, v, dv, _by_negatives_lse = terms_of(TERMS, s, side, anchors, other, others, parameters, AXIS)
    pull = tl.load(side.multipliers)
    push = tl.load(side.multipliers + 1)
    if side.weights is not None:
        at = side.weights + anchors.index
        pull *= slope_by_term(u, at, side.room, AXIS, POOLS.positives, POOLS.positives_sum)
        push *= slope_by_term(v, at + 3 * side.room, side.room, AXIS, POOLS.negatives, False)
    return tl.where(positive, du * pull, dv * push), pull, push


@triton.jit
def add_derivatives(
    out, s, side, anchors, other, others, pair, positive, pull, push, parameters, AXIS: tl.constexpr,
    DERIVATIVES: tl.constexpr, LEARNED: tl.constexpr,
):  # fmt: skip
    """Adds to ``out`` (K,) the derivatives of the losses of one side's anchors by the parameters that learn, through
    the terms of a tile."""
    by = terms_of(DERIVATIVES, s, side, anchors, other, others, parameters, AXIS)
    for k in tl.static_range(LEARNED):
        of_pairs = tl.where(pair, tl.where(positive, by[k] * pull, by[LEARNED + k] * push), 0.0)
        tl.store(out + k, tl.load(out + k) + tl.sum(tl.sum(of_pairs, 1), 0).to(tl.float64))


@triton.jit
def slope_by_term(terms, at, room, AXIS: tl.constexpr, POOL: tl.constexpr, ADDED_UP: tl.constexpr):
    """The derivatives of the anchors' losses by the terms of one kind. ``ADDED_UP``: terms are summed besides."""
    out = 0.0
    if POOL == LOG_SUM_EXP:
        factor = tl.expand_dims(tl.load(at), AXIS)
        shift = tl.expand_dims(tl.load(at + room), AXIS)
        out = factor * tl.exp(terms - shift)
    if POOL != LOG_SUM_EXP or ADDED_UP:
        out += tl.expand_dims(tl.load(at + 2 * room), AXIS)
    return out


@triton.jit
def unshifted_weights(side, anchors, AXIS: tl.constexpr):
    """Factor and constant of one side's positives, and of its negatives, where the shift is zero."""
    at, room = side.weights + anchors.index, side.room
    pull, push = tl.load(side.multipliers), tl.load(side.multipliers + 1)
    return (
        tl.expand_dims(tl.load(at) * pull, AXIS),
        tl.expand_dims(tl.load(at + 2 * room) * pull, AXIS),
        tl.expand_dims(tl.load(at + 3 * room) * push, AXIS),
        tl.expand_dims(tl.load(at + 5 * room) * push, AXIS),
    )


@triton.jit
def add_totals(totals, terms, positive, visits):
    """Adds to ``totals``, ``visits`` times, the sums and numbers of non-zero terms of positives and negatives."""
    pull, push = tl.where(positive, terms, 0.0), tl.where(positive, 0.0, terms)
    for kind in tl.static_range(2):
        of_kind = push if kind else pull
        at = totals + 2 * kind
        tl.store(at, tl.load(at) + visits * tl.sum(tl.sum(of_kind, 1), 0).to(tl.float64))
        count = tl.sum(tl.sum(tl.where(of_kind != 0, 1.0, 0.0), 1), 0).to(tl.float64)
        tl.store(at + 1, tl.load(at + 1) + visits * count)


@triton.jit(do_not_specialize=["top", "bottom", "left", "right"])
def slopes_kernel(
    x,
    y,
    links,
    products,
    out,
    totals,
    derivatives,
    top,
    bottom,
    left,
    right,
    parameters,
    TERMS: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    LEARNED: tl.constexpr,
    POOLS: tl.constexpr,
    BOTH: tl.constexpr,
    UPPER: tl.constexpr,
    SELF: tl.constexpr,
    METRIC: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out.slopes`` of the rectangle [top, bottom) x [left, right), where they are wanted: the derivatives of the loss
    by the dot products of its pairs, with the anchors' weights of the rows and, where ``BOTH`` sides are anchors, of
    the columns.

    ``totals`` (programs, 4): the tiles' terms are added to it. ``derivatives`` (programs, K): those by the parameters
    that learn are, through the terms. ``UPPER``: the part to the right of the square on the
    diagonal stands for its mirror image too."""
    top, left = aligned(top), aligned(left)
    pid = tl.program_id(0)
    row_block, col_block = row_tile(pid, bottom - top, right - left, BLOCK_M, BLOCK_N, GROUP)
    first_row, first_col = top + row_block * BLOCK_M, left + col_block * BLOCK_N
    MIRRORED: tl.constexpr = DEPTH > 0 and UPPER
    # A tile below the diagonal is stored by its mirror image above.
    if MIRRORED:  # noqa: SIM102 - a constant of the kernel
        if first_col < first_row:
            return
    # Tiles hold both halves of a square on the diagonal, beyond it one that stands for the other.
    mirrored_from = first_col
    if UPPER:
        mirrored_from = first_row + BLOCK_M if MIRRORED else bottom
    rows, cols = stretch(x, first_row, top, bottom, BLOCK_M), stretch(y, first_col, left, right, BLOCK_N)
    pair, positive = related(x, y, rows, cols, links, SELF)
    if DEPTH == 0:
        positive &= pair
    made = tile_products(products, x, y, rows, cols, DEPTH)
    s, close = closeness(made, x, y, rows, cols, pair, METRIC)
    u, du, v, dv, _by_negatives_lse = terms_of(TERMS, s, x, rows, y, cols, parameters, 1)
    terms, part = bounded_terms(u, v, positive, POOLS)
    mixed = True
    if DEPTH > 0:
        mixed = has_others(x, rows, cols, links, SELF)
    if totals is not None:
        if mixed:
            terms = tl.where(pair, terms, 0.0)
        visits = 1.0
        if UPPER and first_col >= mirrored_from:
            visits = 2.0
        add_totals(totals + pid * TOTALS, terms, positive, visits)
    if out.slopes is not None or derivatives is not None:
        if DEPTH > 0 and x.weights is not None and x.negatives_lse is None:
            pull_factor, pull_constant, push_factor, push_constant = unshifted_weights(x, rows, 1)
            if BOTH:
                a, b, e, f = unshifted_weights(y, cols, 0)
                pull_factor, pull_constant, push_factor, push_constant = (
                    pull_factor + a,
                    pull_constant + b,
                    push_factor + e,
                    push_constant + f,
                )
            weight = tl.where(positive, pull_factor, push_factor) * part
            if POOLS.constants:
                weight += tl.where(positive, pull_constant, push_constant)
            slope = tl.where(positive, du, dv) * weight
        else:
            slope, pull, push = anchor_slopes(s, x, rows, y, cols, positive, parameters, 1, TERMS, POOLS)
            at = derivatives + pid * LEARNED if derivatives is not None else None
            if derivatives is not None:
                add_derivatives(
                    at, s, x, rows, y, cols, pair, positive, pull, push, parameters, 1, DERIVATIVES, LEARNED
                )
            if BOTH:
                of_cols, pull, push = anchor_slopes(s, y, cols, x, rows, positive, parameters, 0, TERMS, POOLS)
                slope += of_cols
                if derivatives is not None and first_col >= mirrored_from:
                    add_derivatives(
                        at, s, y, cols, x, rows, pair, positive, pull, push, parameters, 0, DERIVATIVES, LEARNED
                    )
    if out.slopes is not None:
        rounded, rest = store_slopes(slope, s, pair, mixed, close, rows, cols, products, out, METRIC)
        if MIRRORED:  # noqa: SIM102
            if (first_row < first_col) & (first_col < bottom):
                # Where tiles are not square these overlap, with equal numbers: the matrix units give the same for x y
                # and y x.
                twin = (cols.index - top).to(tl.int64)[:, None] * products.ld + (rows.index - left)[None, :]
                tl.store(out.slopes + twin, tl.trans(rounded))
                if out.residuals is not None:
                    tl.store(out.residuals + twin, tl.trans(rest))
