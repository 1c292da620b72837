"""``fastpair::pair_loss`` on the GPU.

cuBLAS makes the dot products of a rectangle of pairs, kernels read them, and cuBLAS multiplies the slopes that they
write by the embeddings. In half precision the matrix units are faster than products can be written and read back:
there the kernels make the products themselves, for similarities whose terms need no shift (``Loss.bounded``), so that
each pair is visited once and nothing about it need be kept.

Cost in units of 2nmd flops, the references being the anchors: 1 for the statistics + 0.5 for the slopes (0 where one
rectangle holds all pairs, whose products are kept) + 1 for the gradient; for sums 0.5 + 1, and 0.5 more where the mean
is over non-zero terms, whose number the slopes wait for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastpair.backends.call import LabelledPairLossCall, PairLossCall
from fastpair.backends.triton import pair_kernels as kernels
from fastpair.backends.triton.launch import COMPILED, Tile, ceil_div, making_tiles_for, multiprocessors, whole
from fastpair.backends.triton.pairs import Pairs, Rectangle, Side, sides
from fastpair.backends.triton.terms import SUM, Loss, loss_of
from fastpair.backends.triton.tiles import Links, SlopeArguments
from fastpair.backends.triton.triplets import triplet_loss
from fastpair.formulas.formula import s
from fastpair.formulas.pair_losses import ADDED, FORMULAS, TRIPLETS
from fastpair.metrics import METRICS, Metric

# Anchors per program of the O(n) kernels.
ANCHOR_BLOCK = 128


# The vectors over one side's anchors that the slopes need: the last fields of ``SideArguments``, by name.
OfAnchors = dict[str, Tensor | None]


def can_make(x: Tensor, metric: Metric) -> bool:
    """Whether the kernels can make the products: in half precision, whose matrix units are faster than products can be
    written and read, with rows laid out as these units need them."""
    return metric.kind == "dot" and x.dtype != torch.float32 and x.shape[1] % 16 == 0


class PairSweep(Pairs):
    """Passes over all pairs for the statistics and the slopes of one loss."""

    def __init__(self, x: Side, y: Side, call: PairLossCall, loss: Loss, metric: Metric):
        params, self_index, pairs = call.params, call.self_index, call.pairs
        rows, longest = x.rows.x, max(len(x), len(y))
        making = can_make(rows, metric) and loss.bounded(params, metric, longest)
        statistics_tile, tile = making_tiles_for(rows, loss.simple, loss.operations) if making else (None, None)
        super().__init__(x, y, metric, tile)
        self.statistics_tile = statistics_tile or self.tile
        self.loss = loss
        learned = () if call.learned is None else call.learned.float().unbind()  # kernels read these where they are
        self.parameters = tuple(learned or params) or (0.0,)
        self.derivatives = loss.derivatives if call.grad_learned else None
        self.learned = len(loss.formula.learned)
        self_index = None if self_index is None else self_index.int().contiguous()
        self.links = Links(self_index, pairs, None if pairs is None else pairs.stride(0))
        self.given_weights = None if call.weights is None else call.weights.contiguous()
        self.non_pairs = dict(zip((y, x), reversed(non_pairs(call))))
        self.self_kind = kernels.SAME_INDEX.value if y is x else kernels.NO_SELF.value
        if self_index is not None:
            self.self_kind = kernels.LISTED_SELF.value

    def constants(self, tile: Tile) -> dict:
        return {
            "TERMS": self.loss.terms,
            "POOLS": self.loss.pools,
            "SELF": self.self_kind,
            "DEPTH": tile.depth,
            **super().constants(tile),
        }

    # ---- statistics

    def collect(
        self,
        rows: Side,
        cols: Side,
        negatives_lse: Tensor | None = None,
        before: Tensor | None = None,
        positives: bool = True,
        negatives: bool = True,
    ) -> Tensor:
        """The statistics (slots, 6, .) of the anchors of one side over all samples of the other, written to ``before``,
        if given, next to those of the other kind."""
        tile = self.statistics_tile
        rectangles = [Rectangle(0, len(rows), 0, len(cols))] if self.makes else list(self.rectangles(rows, cols))
        # Enough programs to fill the device twice, each with a whole number of tiles.
        high, across = rectangles[0].tiles(tile)
        wide = rectangles[0].right
        splits = max(1, min(ceil_div(2 * multiprocessors(rows.rows.x), high), across))
        span = whole(ceil_div(wide, splits), tile.cols)
        partial = before
        if partial is None:
            partial = rows.new(ceil_div(wide, span), kernels.CHANNELS.value, rows.room, dtype=torch.float64)
        for rectangle in rectangles:
            kernels.statistics_kernel[(rectangle.tiles(tile)[0], ceil_div(rectangle.shape[1], span))](
                rows.arguments(negatives_lse=negatives_lse),
                cols.arguments(),
                self.links,
                self.dot_products(rows, cols, rectangle),
                partial,
                int(rectangle.left > 0),
                *rectangle,
                span,
                self.parameters,
                ADD_POSITIVES=positives,
                ADD_NEGATIVES=negatives,
                **self.constants(tile),
            )
        return partial

    def statistics(
        self, rows: Side, cols: Side, row_grad: Tensor | None
    ) -> tuple[kernels.AnchorResults, Tensor | None]:
        """The results of one side's anchors, and their log-sum-exps over negatives where terms read them."""
        n, m = len(rows), len(cols)
        blocks = ceil_div(n, ANCHOR_BLOCK)
        negatives_lse = None
        if n == 0 or m == 0:
            partial = self.of_none(rows)
        elif self.loss.reads_negatives_lse:
            partial = self.collect(rows, cols, positives=False)
            negatives_lse = rows.new(rows.room)
            kernels.negatives_lse_kernel[(blocks,)](
                partial, len(partial), rows.room, negatives_lse, BLOCK=ANCHOR_BLOCK, **COMPILED
            )
            self.collect(rows, cols, negatives_lse, partial, negatives=False)
        else:
            partial = self.collect(rows, cols)
        results = kernels.AnchorResults(
            rows.new(n),
            rows.new(kernels.WEIGHTS.value, rows.room),
            rows.new(4, n, dtype=torch.float64) if self.loss.maxima else None,
            rows.new(blocks, kernels.TOTALS.value, dtype=torch.float64),
            rows.new(blocks, 2 * self.learned, dtype=torch.float64) if self.derivatives else None,
        )
        kernels.anchor_kernel[(blocks,)](
            partial,
            len(partial),
            rows.room,
            self.links.self_index,
            self.non_pairs[rows],
            self.given_weights,
            row_grad,
            rows.anchor_scalars,
            results,
            n,
            m,
            self.parameters,
            ANCHOR=self.loss.anchor,
            DERIVATIVES=self.loss.anchor_derivatives if self.derivatives else None,
            LEARNED=self.learned,
            POOLS=self.loss.pools,
            SELF=self.self_kind,
            BLOCK=ANCHOR_BLOCK,
            **COMPILED,
        )
        return results, negatives_lse

    def of_none(self, rows: Side) -> Tensor:
        """The statistics of anchors without references."""
        partial = rows.new(1, kernels.CHANNELS.value, rows.room, dtype=torch.float64).zero_()
        for channel, pool in ((0, self.loss.pools.positives), (4, self.loss.pools.negatives)):
            if pool != SUM.value:
                partial[:, channel] = -torch.inf
        return partial

    # ---- slopes

    def slopes(
        self,
        x_anchors: OfAnchors,
        y_anchors: OfAnchors | None,
        *,
        gradient: bool,
        totals: bool = False,
        derivatives: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One pass over all pairs. ``y_anchors``: where the columns are anchors as well. ``gradient``: adds to the
        gradients of the sides that want one. Returns, where wanted, the ``totals`` (programs, 4), the sums of all
        terms, and the sums of their ``derivatives`` by the parameters that learn (programs, K)."""
        x, y, tile = self.x, self.y, self.tile
        both = y_anchors is not None
        upper = y is x and both
        rectangles = list(self.rectangles(x, y, upper))
        programs = [rows * cols for rows, cols in (rectangle.tiles(tile) for rectangle in rectangles)]

        def sums(wanted: bool, channels: int) -> Tensor | None:
            return x.new(max(programs), channels, dtype=torch.float64).zero_() if wanted else None

        terms, by_learned = sums(totals, kernels.TOTALS.value), sums(derivatives, self.learned)
        for rectangle, count in zip(rectangles, programs):
            products = self.dot_products(x, y, rectangle)
            slopes = self.new_slopes(rectangle) if gradient else None
            kernels.slopes_kernel[(count,)](
                x.arguments(**x_anchors),
                y.arguments(**(y_anchors or {})),
                self.links,
                products,
                SlopeArguments() if slopes is None else slopes.arguments(),
                terms,
                by_learned,
                *rectangle,
                self.parameters,
                DERIVATIVES=self.loss.derivatives if derivatives else None,
                LEARNED=self.learned,
                BOTH=both,
                UPPER=upper,
                GROUP=8,
                **self.constants(tile),
            )
            if gradient:
                self.add_gradients(rectangle, slopes, upper)
        return terms, by_learned

    def extremes(self, results: kernels.AnchorResults, multipliers: Tensor) -> None:
        """Adds the gradient of maxima: one positive and one negative per anchor."""
        x, y, formula = self.x, self.y, self.loss.formula
        for kind, of in enumerate((formula.positive, formula.negative)):
            term, place = results.extremes[2 * kind].float(), results.extremes[2 * kind + 1].long()
            # Terms are closenesses or their negatives.
            sign = 1 if of == s else -1
            slope = results.weights[3 * kind + 2, : len(x)] * multipliers[kind] * sign
            if self.metric.kind == "sqeuclidean":
                slope = slope * 2
            elif self.metric.kind == "euclidean":
                slope = torch.where(term == 0, 0, -slope / (sign * term))
            # An anchor without such a pair has a maximum of minus infinity.
            slope = torch.where(term == -torch.inf, 0, slope)[:, None]
            own, other = x.rows.compared(), y.rows.compared(place)
            if self.metric.kind != "dot":
                own, other = own - other, other - own
            # A slope of zero must not turn an infinite row into NaN.
            if x.gradient is not None:
                x.gradient.add_(x.rows.scaled(torch.where(slope == 0, 0, slope * other)))
            if y.gradient is not None:
                pulled = y.rows.scaled(torch.where(slope == 0, 0, slope * own), place)
                # Deterministic on every device, which index_add_ is not.
                y.gradient.index_put_((place,), pulled, accumulate=True)

    def reduce_totals(
        self, totals: Tensor, value: Tensor, part: float, mean: bool, anchors: int | None = None
    ) -> Tensor:
        """Adds a side's sum or mean to ``value``, and returns the multipliers of its slopes. ``anchors``: if given, the
        totals are sums of terms, and a mean over anchors divides by this number."""
        multipliers = self.x.new(2)
        kernels.reduce_kernel[(1,)](
            totals,
            len(totals),
            value,
            multipliers,
            part,
            1 / max(anchors or 1, 1),
            MEAN=mean,
            SEPARATE=self.loss.separate_means,
            TERM_TOTALS=anchors is not None,
            BLOCK=1024,
            **COMPILED,
        )
        return multipliers


def pair_loss(call: PairLossCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ``fastpair::pair_loss``."""
    if call.loss in TRIPLETS:
        return *triplet_loss(call), call.embeddings.new_empty(0, dtype=torch.float32)
    formula = FORMULAS.get(call.loss) or ADDED[call.loss]
    metric, loss = METRICS[call.distance], loss_of(formula if call.learned is None else formula.learning())
    of_pairs = (call.labels, call.ref_labels), (call.ids, call.ref_ids)
    of_pairs += ((call.anchor_scalars, call.ref_scalars),)
    x, y = sides(call.embeddings, call.ref_emb, metric, call.grad_embeddings, call.grad_ref, *of_pairs)
    sweep = PairSweep(x, y, call, loss, metric)
    some = len(x) > 0 and len(y) > 0
    # The totals of one sweep hold no losses of single anchors, nor weighted ones, no number of counted anchors and no
    # second side, and take a pair's term for that of its mirror image.
    plain = call.reduction in ("mean", "sum") and call.weights is None and not call.two_sided
    one_sweep = some and loss.is_sum and plain and not loss.formula.reads_scalars
    gradients = some and (call.grad_embeddings or call.grad_ref)
    if one_sweep:
        value, learned = over_pairs(sweep, call, gradients)
    else:
        value, learned = over_anchors(sweep, call, gradients, some)
    if learned is None:
        learned = x.new(0)
    else:  # those that do not learn come last
        learned = torch.nn.functional.pad(learned.float(), (0, len(call.learned) - len(learned)))
    return value, x.finished(), y.finished() if y is not x else x.new(0), learned


def labelled_pair_loss(call: LabelledPairLossCall) -> tuple[Tensor, Tensor, Tensor]:
    return pair_loss(call.whole())[:-1]


def non_pairs(call: PairLossCall) -> tuple[Tensor | None, Tensor | None]:
    """With how many of the other side's samples each anchor, or each reference, makes no pair. None where that is only
    the sample itself."""
    if call.pairs is not None:
        return (call.pairs == 0).sum(1), None
    if call.ids is None:
        return None, None
    own, other = call.ids, call.ids if call.ref_ids is None else call.ref_ids

    def equal(ids: Tensor, others: Tensor) -> Tensor:
        others = others.sort().values
        return torch.searchsorted(others, ids, right=True) - torch.searchsorted(others, ids)

    of_anchors = equal(own, other)
    if call.self_index is not None and len(other):
        index = call.self_index.long()
        of_anchors += (index >= 0) & (other[index.clamp(min=0)] != own)
    return of_anchors, equal(other, own)


def over_pairs(sweep: PairSweep, call: PairLossCall, gradients: bool) -> tuple[Tensor, Tensor | None]:
    """The sum over all pairs, or their mean, and the gradient by the parameters that learn. Adds those by the rows."""
    x, loss, mean = sweep.x, sweep.loss, call.reduction == "mean"
    value = x.new().zero_()
    # The slopes of a mean over terms wait for the number of terms.
    known, learns = not (mean and loss.separate_means), sweep.derivatives is not None
    anchors = {"multipliers": x.new(2).fill_(1 / len(x) if mean else 1.0)}
    both = anchors if sweep.y is x else None
    wanted = {"gradient": gradients and known, "derivatives": learns and known}
    totals, learned = sweep.slopes(anchors, both, totals=True, **wanted)
    anchors = {"multipliers": sweep.reduce_totals(totals, value, 1.0, mean, len(x))}
    if (gradients or learns) and not known:
        _, learned = sweep.slopes(anchors, both and anchors, gradient=gradients, derivatives=learns)
    return value, learned.sum(0) if learns else None


def over_anchors(sweep: PairSweep, call: PairLossCall, gradients: bool, some: bool) -> tuple[Tensor, Tensor | None]:
    """The losses of all anchors, or their reduction, and the gradient by the parameters that learn. Adds the other
    gradients. ``some``: whether there are pairs."""
    x, y, loss = sweep.x, sweep.y, sweep.loss
    value = x.new().zero_()
    row_grad = None if call.row_grad is None else call.row_grad.float().contiguous()
    totals = call.reduction == "totals"
    sides_of_anchors = [(x, y), (y, x)] if call.two_sided else [(x, y)]
    part = 1 / len(sides_of_anchors)
    results, anchors = [], []
    for rows, cols in sides_of_anchors:
        of_side, negatives_lse = sweep.statistics(rows, cols, None if totals else row_grad)
        multipliers = sweep.reduce_totals(of_side.totals, value, part, call.reduction == "mean")
        if totals and row_grad is not None:
            multipliers = (row_grad[::2] if loss.separate_means else row_grad[:1].expand(2)).contiguous()
        results.append(of_side)
        anchors.append({"negatives_lse": negatives_lse, "weights": of_side.weights, "multipliers": multipliers})
    learns, learned = sweep.derivatives is not None, None
    if learns:
        of_parts = zip(results, anchors)
        learned = sum((of.derivatives.sum(0).view(2, -1).T @ to["multipliers"].double()) for of, to in of_parts)
    if gradients and loss.maxima:
        sweep.extremes(results[0], anchors[0]["multipliers"])
    elif some and (gradients or learns):
        both = anchors[-1] if y is x or call.two_sided else None
        _, through_terms = sweep.slopes(anchors[0], both, gradient=gradients, derivatives=learns)
        if learns:
            learned = learned + through_terms.sum(0)
    if totals:
        return results[0].totals.sum(0).float(), learned
    value = value if call.reduction != "none" else sum(of_side.losses for of_side in results) * part
    return value, learned
