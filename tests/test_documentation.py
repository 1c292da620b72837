"""The examples of the documentation: they run, and the losses written in docs/losses.md are those of their papers."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F


def blocks(page):
    text = Path(__file__).parents[1].joinpath("docs", page).read_text(encoding="utf-8")
    return re.findall("```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def examples():
    """The names that the examples define, run one after the other as a reader would."""
    torch.manual_seed(0)
    names = {}
    for code in blocks("losses.md"):
        exec(code, names)
    return names


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(9, (40,), generator=generator)
    same = labels[:, None] == labels[None, :]
    return x, labels, same & ~torch.eye(40, dtype=torch.bool), ~same


def assert_equal(got, want, *leaves):
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves) for value in (got, want)))


def test_tuplet_margin(examples, batch):
    x, labels, positive, negative = batch
    cosines = F.normalize(x) @ F.normalize(x).T
    rows = []
    for i, row in enumerate(cosines):
        for own in row[positive[i]]:
            slack = torch.cos(torch.acos(own) - 0.1)
            rows.append(torch.log1p(torch.exp(64 * (row[negative[i]] - slack)).sum()))
    assert_equal(examples["tuplet_margin"](x, labels), torch.stack(rows).mean(), x)


def test_margin(examples, batch):
    x, labels, positive, negative = batch
    distances = (F.normalize(x)[:, None] - F.normalize(x)[None, :]).square().sum(2).clamp(min=1e-30).sqrt()
    terms = torch.cat([(0.2 + distances - 1.2)[positive], (0.2 + 1.2 - distances)[negative]]).clamp(min=0)
    assert_equal(examples["margin"](x, labels), terms.sum() / (terms > 0).sum(), x)


def test_soft_nearest_neighbour(examples, batch):
    x, labels, positive, negative = batch
    loss = examples["soft_nearest_neighbour"]
    assert math.isfinite(loss.scale.grad)
    weights = torch.exp(-(x[:, None] - x[None, :]).square().sum(2) * loss.scale.double())
    counted = positive.any(1)
    shares = (weights * positive).sum(1) / (weights * (positive | negative)).sum(1)
    want = -shares[counted].log().mean()
    assert_equal(loss(x, labels), want, x, loss.scale)


def test_numbers_of_rows(examples, batch):
    x, labels, positive, negative = batch
    trust, slack = (torch.rand(40, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    cosines = F.normalize(x) @ F.normalize(x).T
    own, others = trust[:, None] * trust[None, :] * torch.exp(-cosines), torch.exp(cosines - slack[:, None])
    means = [(u * pairs).sum(1) / pairs.sum(1).clamp(min=1) for u, pairs in ((own, positive), (others, negative))]
    counted = positive.any(1) & negative.any(1)
    want = sum(means)[counted].mean()
    scalars = {"anchor_scalars": {"trust": trust, "slack": slack}, "ref_scalars": {"trust": trust}}
    assert_equal(examples["trusted"](x, labels, **scalars), want, x)


def test_large_batches():
    """The examples of docs/large-batches.md: all that learns gets a gradient."""
    names = {}
    for code in blocks("large-batches.md"):
        exec(code, names)
    assert torch.isfinite(names["value"])
    for loss in (names["loss"], names["clip"], names["search"]):
        assert all(p.grad.any() and p.grad.isfinite().all() for p in loss.parameters())
