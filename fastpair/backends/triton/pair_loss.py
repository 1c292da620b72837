"""``fastpair::pair_loss`` on the GPU.

cuBLAS makes the dot products of a rectangle of pairs, kernels read them, and cuBLAS multiplies the slopes that they
write by the embeddings. Half precision has matrix units that are faster than the products can be written and read:
there the kernels make them themselves, for similarities whose terms need no shift (``Loss.bounded``), so that a pair is
looked at once and what is known of it need not be kept.

Cost in units of 2nmd flops, the references being the anchors: 1 for the statistics + 0.5 for the slopes, nothing
where one rectangle holds all pairs whose products are kept, + 1 for the gradient; for sums 0.5 + 1, and 0.5 more where
the mean is over non-zero terms, whose number the slopes wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.call import PairLossCall
from fastpair.backends.triton import pair_kernels as kernels
from fastpair.backends.triton.launch import COMPILED, Tile, ceil_div, making_tiles_for, multiprocessors, roomy, whole
from fastpair.backends.triton.pairs import Anchors, Pairs, sides
from fastpair.backends.triton.terms import LOSSES, MAX, SUM, Loss
from fastpair.backends.triton.tiles import DOT, EUCLIDEAN, SQUARED_EUCLIDEAN, SlopeArguments
from fastpair.backends.triton.triplets import LOSSES as TRIPLET_LOSSES
from fastpair.backends.triton.triplets import triplet_loss

# Anchors that one program of the O(n) kernels takes.
ANCHOR_BLOCK = 128


class PairSweep(Pairs):
    """Visits of all pairs for the statistics and the slopes of one loss."""

    def __init__(self, x: Anchors, y: Anchors, self_index: Tensor | None, loss: Loss, params: list[float], metric: str):
        super().__init__(x, y, metric)
        self.statistics_tile = self.tile
        longest = max(len(x), len(y))
        self.makes = self.can_make() and loss.bounded(params, metric == "cosine", longest)
        if self.makes:
            self.statistics_tile, self.tile = making_tiles_for(x.rows.x, loss.simple)
            # Slopes alone are held.
            self.height *= 2
        self.self_index = self_index
        self.loss = loss
        self.params = (*params, *(0.0,) * (3 - len(params)))
        self.settings = (1.0 if self.metric == DOT.value else -1.0, *self.params)
        self.self_kind = kernels.SAME_INDEX.value if y is x else kernels.NO_SELF.value
        if self_index is not None:
            self.self_kind = kernels.LISTED_SELF.value

    def constants(self, tile: Tile) -> dict:
        return {
            "TERMS": self.loss.terms,
            "POSITIVES": self.loss.positives,
            "NEGATIVES": self.loss.negatives,
            "SELF": self.self_kind,
            "DEPTH": tile.depth,
            **super().constants(tile),
        }

    # ---- statistics

    def collect(self, rows: Anchors, cols: Anchors, positives: bool, negatives: bool) -> None:
        """``rows.partial``, of the anchors of one side against all samples of the other."""
        n, m = len(rows), len(cols)
        block_m, block_n = self.statistics_tile.rows, self.statistics_tile.cols
        rectangles = [(0, n, 0, m)] if self.makes else list(self.rectangles(rows, cols))
        # Enough programs to fill the device twice, each with a whole number of tiles.
        _, bottom, _, wide = rectangles[0]
        high = ceil_div(bottom, block_m)
        splits = max(1, min(ceil_div(2 * multiprocessors(rows.rows.x), high), ceil_div(wide, block_n)))
        span = whole(ceil_div(wide, splits), block_n)
        if rows.partial is None:
            rows.partial = rows.new(ceil_div(wide, span), kernels.CHANNELS.value, rows.room, dtype=torch.float64)
        for top, bottom, left, right in rectangles:
            products = self.dot_products(rows, cols, top, bottom, left, right)
            kernels.statistics_kernel[(ceil_div(bottom - top, block_m), ceil_div(right - left, span))](
                rows.arguments(given=rows.given),
                cols.arguments(),
                self.self_index,
                products,
                self.ld,
                rows.partial,
                int(left > 0),
                n,
                rows.rows.x.shape[1],
                top,
                bottom,
                left,
                right,
                span,
                self.settings,
                ADD_POSITIVES=positives,
                ADD_NEGATIVES=negatives,
                **self.constants(self.statistics_tile),
            )

    def statistics(self, rows: Anchors, cols: Anchors, row_grad: Tensor | None) -> None:
        """Losses, weights, extremes and totals of the anchors of one side."""
        n, m = len(rows), len(cols)
        blocks = ceil_div(n, ANCHOR_BLOCK)
        if n == 0 or m == 0:
            rows.partial = self._nothing(rows)
        elif self.loss.given:
            self.collect(rows, cols, False, True)
            rows.given = rows.new(rows.room)
            kernels.given_kernel[(blocks,)](
                rows.partial,
                len(rows.partial),
                rows.given,
                n,
                NEGATIVES=self.loss.negatives,
                BLOCK=ANCHOR_BLOCK,
                **COMPILED,
            )
            self.collect(rows, cols, True, False)
        else:
            self.collect(rows, cols, True, True)
        rows.losses = rows.new(n)
        rows.weights = rows.new(kernels.WEIGHTS.value, rows.room)
        rows.totals = rows.new(blocks, kernels.TOTALS.value, dtype=torch.float64)
        if self.loss.positives == MAX.value:
            rows.extremes = rows.new(4, n, dtype=torch.float64)
        kernels.anchor_kernel[(blocks,)](
            rows.partial,
            len(rows.partial),
            self.self_index,
            row_grad,
            rows.losses,
            rows.weights,
            rows.extremes,
            rows.totals,
            n,
            m,
            self.params,
            ANCHOR=self.loss.anchor,
            POSITIVES=self.loss.positives,
            NEGATIVES=self.loss.negatives,
            SELF=self.self_kind,
            BLOCK=ANCHOR_BLOCK,
            **COMPILED,
        )
        rows.partial = None

    def _nothing(self, rows: Anchors) -> Tensor:
        """The statistics of anchors without references."""
        partial = rows.new(1, kernels.CHANNELS.value, rows.room, dtype=torch.float64).zero_()
        for channel, reduction in ((0, self.loss.positives), (4, self.loss.negatives)):
            if reduction != SUM.value:
                partial[:, channel] = -torch.inf
        return partial

    # ---- slopes

    def slopes(self, *, both: bool, gradient: bool, totals: bool) -> None:
        """One visit of all pairs. ``gradient``: adds to the gradients of the sides that want one. ``both``: the columns
        are anchors as well. ``totals``: puts the sums of all terms into ``x.totals``."""
        x, y, tile = self.x, self.y, self.tile
        upper = y is x and both
        rectangles = list(self.rectangles(x, y, upper))
        programs = [ceil_div(b - t, tile.rows) * ceil_div(r - f, tile.cols) for t, b, f, r in rectangles]
        if totals:
            x.totals = x.new(max(programs), kernels.TOTALS.value, dtype=torch.float64).zero_()
        for (top, bottom, left, right), count in zip(rectangles, programs):
            products = self.dot_products(x, y, top, bottom, left, right)
            slopes = self.new_slopes((top, bottom, left, right)) if gradient else None
            out = SlopeArguments() if slopes is None else slopes.arguments()
            kernels.slopes_kernel[(count,)](
                x.arguments(given=x.given, weights=x.weights, share=x.share),
                y.arguments(given=y.given, weights=y.weights, share=y.share),
                self.self_index,
                products,
                self.ld,
                out,
                x.totals if totals else None,
                len(x),
                len(y),
                x.rows.x.shape[1],
                top,
                bottom,
                left,
                right,
                self.settings,
                BOTH=both,
                UPPER=upper,
                GROUP=8,
                **self.constants(tile),
            )
            if gradient:
                self.add_gradients((top, bottom, left, right), slopes, upper)

    def extremes(self) -> None:
        """The gradient of maxima: one positive and one negative an anchor."""
        x, y = self.x, self.y
        for kind in (0, 1):
            term, place = x.extremes[2 * kind].float(), x.extremes[2 * kind + 1].long()
            # Terms are scores or their negatives.
            sign = self.settings[0] if kind else -self.settings[0]
            slope = x.weights[3 * kind + 2, : len(x)] * x.share[kind] * sign
            if self.metric == SQUARED_EUCLIDEAN.value:
                slope = slope * -2
            elif self.metric == EUCLIDEAN.value:
                score = term * sign
                slope = torch.where(score == 0, 0, -slope / score)
            # Anchors without such a pair have the maximum of none.
            slope = torch.where(term == -torch.inf, 0, slope)[:, None]
            own, other = x.rows.compared(), y.rows.compared(place)
            if self.metric != DOT.value:
                own, other = own - other, other - own
            # Infinite rows are pulled at by no slope of zero.
            if x.gradient is not None:
                x.gradient += x.rows.scaled(torch.where(slope == 0, 0, slope * other))
            if y.gradient is not None:
                pulled = y.rows.scaled(torch.where(slope == 0, 0, slope * own), place)
                # Deterministic on every device, which index_add_ is not.
                y.gradient.index_put_((place,), pulled, accumulate=True)


def pair_loss(call: PairLossCall) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ``fastpair::pair_loss``."""
    (
        embeddings,
        ref_emb,
        labels,
        ref_labels,
        self_index,
        row_grad,
        loss,
        params,
        distance,
        two_sided,
        reduction,
        grad_embeddings,
        grad_ref,
    ) = call
    if loss in TRIPLET_LOSSES:
        arguments = (embeddings, ref_emb, labels, ref_labels, self_index, row_grad, loss, params, distance, reduction)
        return triplet_loss(*arguments, grad_embeddings, grad_ref)
    terms = LOSSES[loss]
    x, y = sides(Anchors, embeddings, ref_emb, distance, grad_embeddings, grad_ref)
    x.labels = roomy(labels.long().contiguous())
    if y is not x:
        y.labels = roomy(ref_labels.long().contiguous())
    if self_index is not None:
        self_index = self_index.int().contiguous()
    gradients = (grad_embeddings or grad_ref) and len(x) > 0 and len(y) > 0
    sweep = PairSweep(x, y, self_index, terms, params, distance)
    anchors = [(x, y), (y, x)] if two_sided else [(x, y)]
    part = 1 / len(anchors)
    mean, totals = reduction == "mean", reduction == "totals"
    value = torch.zeros((), dtype=torch.float32, device=embeddings.device)
    # The losses of single anchors, how many count, and what two sides come to are not among the totals of a sweep.
    if terms.sums and reduction in ("mean", "sum") and not two_sided and len(x) > 0 and len(y) > 0:
        known = not (mean and terms.separate_means)
        x.share = x.new(2).fill_(1 / max(len(x), 1) if mean else 1.0)
        y.share = x.share
        both = y is x
        sweep.slopes(both=both, gradient=gradients and known, totals=True)
        reduce_totals(x, value, 1.0, mean, terms, len(x))
        if gradients and not known:
            y.share = x.share  # which the totals have changed
            sweep.slopes(both=both, gradient=True, totals=False)
        return value, x.finished(), y.finished() if y is not x else x.new(0)

    row_grad = None if row_grad is None else row_grad.float().contiguous()
    for rows, cols in anchors:
        sweep.statistics(rows, cols, None if totals else row_grad)
        reduce_totals(rows, value, part, mean, terms, None)
    if totals:
        value = x.totals.sum(0).float()
        if row_grad is not None:
            x.share = (row_grad[::2] if terms.separate_means else row_grad[:1].expand(2)).contiguous()
    if gradients and terms.positives == MAX.value:
        sweep.extremes()
    elif gradients:
        sweep.slopes(both=y is x or two_sided, gradient=True, totals=False)
    if reduction == "none":
        value = x.losses if not two_sided else (x.losses + y.losses) * part
    return value, x.finished(), y.finished() if y is not x else x.new(0)


def reduce_totals(side: Anchors, value: Tensor, part: float, mean: bool, loss: Loss, anchors: int | None) -> None:
    """Adds to ``value`` the side's sum or mean, and makes its ``share``. ``anchors``: the totals are sums of terms, and
    this many anchors are what a mean over anchors divides by."""
    side.share = side.new(2)
    kernels.reduce_kernel[(1,)](
        side.totals,
        len(side.totals),
        value,
        side.share,
        part,
        1 / max(anchors or 1, 1),
        MEAN=mean,
        SEPARATE=loss.separate_means,
        TERM_TOTALS=anchors is not None,
        BLOCK=1024,
        **COMPILED,
    )
