"""A client's loss by its own methods and by fastpair's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from support import error
from torch import Tensor

import fastpair

TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5}


@contextmanager
def counted(client: str, title: str, reason: str | None, obj: torch.nn.Module | None = None) -> Iterator[None]:
    """Patches, and sees to it that a method was called, and by whom it was computed: fastpair (None), or the original,
    for a reason that has these words."""

    def calls(report) -> dict:
        return report.calls.get(title, {})

    with fastpair.patch(client, obj) as report:
        before = calls(report)
        yield
        new = {why for why, count in calls(report).items() if count > before.get(why, 0)}
    assert new, f"{title} was not called"
    for why in new:
        assert (why is None) == (reason is None), why
        assert reason is None or reason in why, why


def value_and_gradients(run: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    value = run()
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves))]


def assert_same(client: str, title: str, run: Callable[[], Tensor], leaves: list[Tensor], reason: str | None = None):
    """Value and gradients are those of the own methods, to rounding, or to the bit where these compute them."""
    want = value_and_gradients(run, leaves)
    with counted(client, title, reason):
        got = value_and_gradients(run, leaves)
    for i, (ours, theirs) in enumerate(zip(got, want)):
        assert ours.shape == theirs.shape
        if reason is None:
            assert error(ours, theirs) <= TOLERANCE[leaves[0].dtype], (i, error(ours, theirs))
        else:
            assert torch.equal(ours, theirs), i
