"""Losses as users write them, each with the same formula typed in PyTorch: of the tests of ``CustomPairLoss``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastpair.formulas import (
    constant,
    exp,
    log,
    maximum,
    minimum,
    negatives_lse,
    nonzero,
    relu,
    sigmoid,
    softplus,
    sqrt,
    square,
    step,
    tanh,
    where,
)
from fastpair.losses import CustomPairLoss


def multi_similarity(**settings):
    return CustomPairLoss(
        positive=lambda s, p: -p.alpha * (s - p.base),
        negative=lambda s, p: p.beta * (s - p.base),
        anchor=lambda P, N, p: softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta,
        **{"alpha": 2.0, "beta": 50.0, "base": 0.5, **settings},
    )


def circle(**settings):
    return CustomPairLoss(
        positive=lambda s, p: -p.gamma * constant(relu(1 + p.m - s)) * (s - 1 + p.m),
        negative=lambda s, p: p.gamma * constant(relu(s + p.m)) * (s - p.m),
        anchor=lambda P, N, p: softplus(P.lse + N.lse),
        needs=("positives", "negatives"),
        **{"gamma": 80.0, "m": 0.4, **settings},
    )


def contrastive(**settings):
    return CustomPairLoss(
        positive=lambda s, p: relu(p.pos_margin - s),
        negative=lambda s, p: relu(s - p.neg_margin),
        anchor=lambda P, N, p: (P.sum, N.sum),
        count=lambda P, N, p: (P.nonzero, N.nonzero),
        **{"pos_margin": 1.0, "neg_margin": 0.2, **settings},
    )


# Every function of fastpair.formulas, and the same in PyTorch. The last ones have infinite slopes or no value beside
# what is selected.
FUNCTIONS: dict[str, tuple[Callable, Callable]] = {
    "exp": (lambda s: exp(-s), lambda s: torch.exp(-s)),
    "log": (lambda s: log(s + 1.5), lambda s: torch.log(s + 1.5)),
    "sqrt": (lambda s: sqrt(s + 1.5), lambda s: torch.sqrt(s + 1.5)),
    "abs": (lambda s: abs(s), lambda s: s.abs()),
    "tanh": (lambda s: tanh(2 * s), lambda s: torch.tanh(2 * s)),
    "sigmoid": (lambda s: sigmoid(3 * s), lambda s: torch.sigmoid(3 * s)),
    "softplus": (lambda s: softplus(3 * s), lambda s: F.softplus(3 * s)),
    "relu": (lambda s: relu(s - 0.1), lambda s: torch.relu(s - 0.1)),
    "square": (square, torch.square),
    "minimum": (lambda s: minimum(s, 0.3 * s), lambda s: torch.minimum(s, 0.3 * s)),
    "maximum": (lambda s: maximum(s, 0.3 * s), lambda s: torch.maximum(s, 0.3 * s)),
    "where": (lambda s: where(s > 0.1, s, -2 * s), lambda s: torch.where(s > 0.1, s, -2 * s)),
    "at_most": (lambda s: where(s <= 0.1, s, -2 * s), lambda s: torch.where(s <= 0.1, s, -2 * s)),
    "step": (lambda s: step(s) * s, lambda s: (s > 0) * s),
    "nonzero": (lambda s: where(nonzero(relu(s)), s, 3 * s), lambda s: torch.where(s > 0, s, 3 * s)),
    "constant": (lambda s: constant(s) * s, lambda s: s.detach() * s),
    "power": (lambda s: s**3, lambda s: s**3),
    "power_of_five": (lambda s: (s + 2) ** -5, lambda s: (s + 2) ** -5),
    "broken_power": (lambda s: (s + 1.5) ** 2.5, lambda s: (s + 1.5) ** 2.5),
    "exponent": (lambda s: 2**s, lambda s: 2**s),
    "quotient": (lambda s: s / (2 + s), lambda s: s / (2 + s)),
    "log_of_some": (
        lambda s: where(s > 0.1, log(s), s - 3),
        lambda s: torch.where(s > 0.1, s.clamp(min=0.1).log(), s - 3),
    ),
    "sqrt_of_others": (
        lambda s: where(s > 0, s, where(s > -0.3, sqrt(-s), -s)),
        lambda s: torch.where(s > 0, s, torch.where(s > -0.3, s.clamp(max=-1e-300).neg().sqrt(), -s)),
    ),
    "sqrt_of_zero": (
        lambda s: maximum(sqrt(relu(s)), 0.4),
        lambda s: s.clamp(min=0.16).sqrt(),
    ),
    "sqrt_below": (
        lambda s: minimum(1, relu(sqrt(relu(s)) - 0.4)),
        lambda s: (s.clamp(min=0.16).sqrt() - 0.4).clamp(max=1),
    ),
}


def infinite_elsewhere():
    """Infinite, or with infinite slopes, of anchors with themselves and where an anchor lacks pairs."""
    return CustomPairLoss(
        positive=lambda s, p: sqrt(1 - s) + 1 / (1 - s),
        negative=lambda s, p: log(1 - s),
        anchor=lambda P, N, p: where(P.pairs > 1, log(P.sum), 0) + softplus(N.lse),
    )


# ---- formulas of every kind


def total(u: Tensor, pairs: Tensor) -> Tensor:
    return torch.where(pairs, u, 0).sum(1)


def mean(u: Tensor, pairs: Tensor) -> Tensor:
    return total(u, pairs) / pairs.sum(1).clamp(min=1)


def lse(u: Tensor, pairs: Tensor) -> Tensor:
    return torch.where(pairs, u, -torch.inf).logsumexp(1)


def largest(u: Tensor, pairs: Tensor) -> Tensor:
    return torch.where(pairs, u, -torch.inf).max(1).values


def of_all(losses: Tensor) -> tuple[Tensor, Tensor]:
    return losses, torch.ones_like(losses)


class Custom(NamedTuple):
    """``make(**settings)``: the loss, with parameters a = 0.7 and b = 1.3; ``dense(s, positive, negative, a, b)``: the
    losses of the anchors and how much each counts, once for each part."""

    make: Callable[..., CustomPairLoss]
    dense: Callable[..., tuple[tuple[Tensor, Tensor], ...]]


def custom(positive, negative, anchor, dense, **settings) -> Custom:
    return Custom(partial(CustomPairLoss, positive, negative, anchor, **{"a": 0.7, "b": 1.3, **settings}), dense)


def of_those(counted: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(counted, losses, 0), counted.to(losses.dtype)


def dense_lse(s, positive, negative, a, b):
    counted = positive.any(1) & negative.any(1)
    of_both = [torch.where(counted, lse(u, pairs), 0) for u, pairs in ((-a * s, positive), (b * s, negative))]
    return (of_those(counted, F.softplus(sum(of_both))),)


def dense_lse_and_mean(s, positive, negative, a, b):
    counted = positive.any(1)
    own = torch.where(counted, lse(b * s, positive), 0)
    return (of_those(counted, own - mean(b * s, positive) + total(a * s * s, negative)),)


def dense_max(s, positive, negative, a, b):
    counted = positive.any(1) & negative.any(1)
    gap = torch.where(counted, largest(-s, positive), 0) + torch.where(counted, largest(s, negative), 0)
    return (of_those(counted, torch.relu(gap + a) * b),)


def dense_nonzero(s, positive, negative, a, b):
    u, v = torch.relu(a - s), torch.relu(s)
    some = [1 + (pairs & (x > 0)).sum(1) for x, pairs in ((u, positive), (v, negative))]
    return (of_all(total(u, positive) / some[0] + b * total(v, negative) / some[1]),)


def dense_parts(s, positive, negative, a, b):
    own = F.softplus(lse(-b * s, positive))
    return of_all(own), (total(torch.exp(a * s), negative), negative.any(1).to(s.dtype))


def dense_everything(s, positive, negative, a, b):
    u = torch.where(s > a - 0.6, torch.tanh(b * s) + (4.5 + s).sqrt(), torch.minimum(s.abs(), torch.exp(-s)))
    v = torch.maximum(F.softplus(b * s), (4.5 + s).log() / 3) + torch.relu(s).detach() * s**3 + (s + 5) ** a
    counted = positive.any(1) & negative.any(1)
    others = torch.where(counted, lse(v, negative), 0)
    return (of_those(counted, mean(u * torch.sigmoid(s), positive) + others),)


def dense_anchor(s, positive, negative, a, b):
    pairs = positive.any(1)
    inside = total(torch.exp(-a * s), positive)
    others = total(torch.exp(b * s), negative)
    return (of_all(torch.where(pairs, torch.where(pairs, inside, 1).log(), 1) + others.sqrt()),)


CUSTOM = {
    "sum": custom(
        lambda s, p: p.a * exp(-s),
        lambda s, p: sqrt(2.5 + s) * tanh(p.b * s),
        lambda P, N, p: P.sum + N.sum,
        lambda s, positive, negative, a, b: (
            of_all(total(a * torch.exp(-s), positive) + total((2.5 + s).sqrt() * torch.tanh(b * s), negative)),
        ),
    ),
    "mean": custom(
        lambda s, p: abs(s - p.a),
        lambda s, p: sigmoid(p.b * s) ** 3,
        lambda P, N, p: P.mean + N.mean,
        lambda s, positive, negative, a, b: (
            of_those(
                positive.any(1) & negative.any(1),
                mean((s - a).abs(), positive) + mean(torch.sigmoid(b * s) ** 3, negative),
            ),
        ),
    ),
    "lse": custom(
        lambda s, p: -p.a * s,
        lambda s, p: p.b * s,
        lambda P, N, p: softplus(P.lse + N.lse),
        dense_lse,
        needs=("positives", "negatives"),
    ),
    "lse_and_mean": custom(
        lambda s, p: p.b * s,
        lambda s, p: p.a * square(s),
        lambda P, N, p: P.lse - P.mean + N.sum,
        dense_lse_and_mean,
    ),
    "max": custom(lambda s, p: -s, lambda s, p: s, lambda P, N, p: relu(P.max + N.max + p.a) * p.b, dense_max),
    "nonzero": custom(
        lambda s, p: relu(p.a - s),
        lambda s, p: relu(s),
        lambda P, N, p: P.sum / (1 + P.nonzero) + p.b * N.sum / (1 + N.nonzero),
        dense_nonzero,
    ),
    "parts": custom(
        lambda s, p: -p.b * s,
        lambda s, p: exp(p.a * s),
        lambda P, N, p: (softplus(P.lse), N.sum),
        dense_parts,
        count=lambda P, N, p: (1, N.pairs > 0),
    ),
    "everything": custom(
        lambda s, p: where(s > p.a - 0.6, tanh(p.b * s) + sqrt(4.5 + s), minimum(abs(s), exp(-s))) * sigmoid(s),
        lambda s, p: maximum(softplus(p.b * s), log(4.5 + s) / 3) + constant(relu(s)) * s**3 + (s + 5) ** p.a,
        lambda P, N, p: P.mean + N.lse,
        dense_everything,
        needs=("positives", "negatives"),
    ),
    "anchor": custom(
        lambda s, p: exp(-p.a * s),
        lambda s, p: exp(p.b * s),
        lambda P, N, p: where(P.pairs > 0, log(P.sum), 1) + sqrt(N.sum),
        dense_anchor,
    ),
}


def added_up(functions: list[tuple[Callable, Callable]]) -> Custom:
    """A loss with several functions, each with a weight of its own: what is compiled takes seconds for each loss."""

    def total_of(which: int, s):
        return sum((1 + i / 4) * function[which](s) for i, function in enumerate(functions))

    return custom(
        lambda s, p: total_of(0, s),
        lambda s, p: total_of(0, -s),
        lambda P, N, p: P.mean + N.mean,
        lambda s, positive, negative, a, b: (
            of_those(
                positive.any(1) & negative.any(1), mean(total_of(1, s), positive) + mean(total_of(1, -s), negative)
            ),
        ),
    )


_names = list(FUNCTIONS)
CUSTOM_FUNCTIONS = {
    "-".join(some): added_up([FUNCTIONS[name] for name in some])
    for some in (_names[i : i + 5] for i in range(0, len(_names), 5))
}


def pairs_of(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The masks of positives and of negatives, without the anchors themselves where there are no references."""
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)
    others = ~torch.eye(len(labels), dtype=torch.bool) if ref_labels is None else torch.ones_like(same)
    return same & others, ~same


def expected(of: Custom, s: Tensor, positive: Tensor, negative: Tensor, reduction: str, a=0.7, b=1.3) -> Tensor:
    """The value from the closenesses. Of the dense formula the terms of pairs that are none get no gradient: their
    slopes may be infinite."""
    s = torch.where(positive | negative, s, s.detach().clamp(max=0.5))
    parts = of.dense(s, positive, negative, a, b)
    if reduction == "none":
        return sum(losses for losses, _ in parts)
    if reduction == "sum":
        return sum(losses.sum() for losses, _ in parts)
    totals = [(losses.sum(), counts.sum()) for losses, counts in parts]
    if reduction == "totals":
        totals = [t for part in totals for t in part]
        return torch.stack([*totals, *[torch.zeros_like(totals[0])] * (4 - len(totals))])
    return sum(losses / counts.clamp(min=1) for losses, counts in totals)


# ---- formulas whose parameters learn, and that read numbers of anchors and of references


def learning(positive, negative, anchor, dense, **settings) -> Custom:
    """The parameters a and b learn. ``dense`` takes the numbers w of the anchors and q of the references as well."""

    def make(a=0.7, b=1.3, **others):
        a, b = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (a, b))
        return CustomPairLoss(positive, negative, anchor, a=a, b=b, **settings, **others)

    return Custom(make, dense)


def dense_scaled(s, positive, negative, a, b, w, q):
    own, others = lse(-a * s * w[:, None], positive), lse(b * s + q, negative)
    return (of_all(F.softplus(own) / a + F.softplus(others) / b),)


def dense_sums(s, positive, negative, a, b, w, q):
    own, others = mean(w[:, None] * torch.relu(a - s), positive), total((s - b) ** 2 * q, negative)
    return (of_those(positive.any(1), own + others * w),)


def dense_own_means(s, positive, negative, a, b, w, q):
    own, others = F.softplus(lse(-b * s, positive)) * w, total(torch.exp(a * s), negative)
    return (own, w), (others, (w > 0.5).to(s.dtype))


def dense_negatives(s, positive, negative, a, b, w, q):
    others = lse(s / a + w[:, None] * q, negative)[:, None]
    return (of_those(positive.any(1), mean(F.softplus(others - b * s - q), positive)),)


def dense_margin(s, positive, negative, a, b, w, q):
    counted = positive.any(1) & negative.any(1)
    gap = torch.where(counted, largest(-s, positive), 0) + torch.where(counted, largest(s, negative), 0)
    return (of_those(counted, torch.relu(gap + a * w) * b),)


def dense_neighbours(s, positive, negative, a, b, w, q):
    counted = positive.any(1)
    own = torch.where(counted, lse(s / a, positive), 0)
    return (of_those(counted, lse(s / a, positive | negative).where(counted, 0) - own),)


def dense_closest(s, positive, negative, a, b, w, q):
    counted = positive.any(1)
    return (of_those(counted, a - b * torch.where(counted, largest(s, positive), 0)),)


def dense_guided(s, positive, negative, a, b, w, q):
    counted = positive.any(1)
    others = lse(torch.where(s > w[:, None], 0.1 * s, b * s), negative)
    return (of_those(counted, others - a * mean(s, positive)),)


LEARNING = {
    "scaled": learning(
        lambda s, p: -p.a * s * p.anchor.w,
        lambda s, p: p.b * s + p.ref.q,
        lambda P, N, p: softplus(P.lse) / p.a + softplus(N.lse) / p.b,
        dense_scaled,
    ),
    "sums": learning(
        lambda s, p: p.anchor.w * relu(p.a - s),
        lambda s, p: (s - p.b) ** 2 * p.ref.q,
        lambda P, N, p: P.mean + N.sum * p.anchor.w,
        dense_sums,
    ),
    "own_means": learning(
        lambda s, p: -p.b * s,
        lambda s, p: exp(p.a * s),
        lambda P, N, p: (softplus(P.lse) * p.anchor.w, N.sum),
        dense_own_means,
        count=lambda P, N, p: (p.anchor.w, p.anchor.w > 0.5),
    ),
    "negatives": learning(
        lambda s, p: softplus(negatives_lse - p.b * s - p.ref.q),
        lambda s, p: s / p.a + p.anchor.w * p.ref.q,
        lambda P, N, p: P.mean,
        dense_negatives,
    ),
    "margin": learning(
        lambda s, p: -s, lambda s, p: s, lambda P, N, p: relu(P.max + N.max + p.a * p.anchor.w) * p.b, dense_margin
    ),
    "neighbours": learning(
        lambda s, p: s / p.a,
        lambda s, p: s / p.a,
        lambda P, N, p: softplus(N.lse - P.lse),
        dense_neighbours,
        needs=["positives"],
    ),
    "closest": learning(lambda s, p: s, lambda s, p: 0, lambda P, N, p: p.a - p.b * P.max, dense_closest),
    "guided": learning(
        lambda s, p: s,
        lambda s, p: where(s > p.anchor.w, 0.1 * s, p.b * s),
        lambda P, N, p: N.lse - p.a * P.mean,
        dense_guided,
        needs=["positives"],
    ),
}


def scalars_of(formula, anchors: Tensor, references: Tensor) -> dict[str, dict[str, Tensor]]:
    """The numbers of rows that a formula of ``LEARNING`` reads, as its loss takes them."""
    given = {"anchor": {"w": anchors}, "ref": {"q": references}}
    return {f"{of}_scalars": {x: given[of][x] for x in formula.scalars(of)} for of in given}
