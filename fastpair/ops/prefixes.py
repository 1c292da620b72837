"""Losses of the first columns of the embeddings, several numbers of columns in one sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch

from fastpair.formulas.formula import MAX, N, P
from fastpair.formulas.pair_losses import ADDED, FORMULAS
from fastpair.metrics import METRICS


class Prefixes(NamedTuple):
    lengths: list[int]  # rising
    weights: list[float]


class NotInOneSweep(Exception):
    """No kernel computes the losses of several prefixes together."""


_asked_for: ContextVar[Prefixes | None] = ContextVar("fastpair_prefixes", default=None)


@contextlib.contextmanager
def sum_over_prefixes(lengths: Sequence[int], weights: Sequence[float]) -> Iterator[None]:
    """The one pair loss that is computed in the ``with`` block is the sum over the prefixes, times their weights, or
    ``NotInOneSweep`` is raised before anything is computed."""
    rising = sorted(zip(lengths, map(float, weights)))
    token = _asked_for.set(Prefixes([length for length, _ in rising], [weight for _, weight in rising]))
    try:
        yield
    finally:
        _asked_for.reset(token)


def asked_for() -> Prefixes | None:
    return None if torch.compiler.is_compiling() else _asked_for.get()


def refuse_prefixes() -> None:
    """For what is no single pair loss."""
    if asked_for() is not None:
        raise NotInOneSweep


def check_one_sweep(loss: str, distance: str, reduction: str, backend: str) -> None:
    """Raises ``NotInOneSweep`` unless the kernels of ``backend`` take prefixes for such a loss."""
    formula = FORMULAS.get(loss) or ADDED.get(loss)
    if not (
        backend == "cpu"
        and METRICS[distance].similarity
        and reduction != "totals"
        and formula is not None
        and MAX not in (formula.pool(P), formula.pool(N))
    ):
        raise NotInOneSweep
