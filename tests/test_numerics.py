"""Where floating point is short of digits or range."""

import math
from functools import partial

import pytest
import torch
from covering import covering
from support import (
    LOSSES,
    REDUCTIONS,
    assert_matches_oracle,
    batch,
    cast,
    error,
    every_loss,
    needs_cpu_kernels,
    oracle,
    pair_loss,
    value_and_gradients,
)

import fastpair.functional as FP

pytestmark = needs_cpu_kernels


@covering(loss=LOSSES, bad=[math.nan, math.inf, -math.inf], reduction=REDUCTIONS, n=[6, 200])
def test_bad_embeddings_show_in_the_loss(loss, bad, reduction, n):
    inputs = cast(loss.inputs(n, 5, "few", torch.Generator().manual_seed(0)), torch.float32)
    inputs["embeddings"][n // 2 + 1, 2] = bad
    result = value_and_gradients(partial(loss.fused, reduction=reduction), inputs, loss.trained)
    assert not result["value"].isfinite().all()
    assert not all(result[name].isfinite().all() for name in loss.trained)


@every_loss
def test_a_bad_row_spoils_no_row_without_a_share_in_it(loss):
    """With reduction="none" the other anchors' losses against references, or classes, stay finite."""
    clique = not {"ref_emb", "weight", "proxies", "centers"} & set(loss.trained)
    both_sides = loss.fused.func is FP.info_nce_loss and loss.fused.keywords.get("symmetric", True)
    if clique or both_sides or loss.rows != "embeddings":
        pytest.skip("the samples of a batch meet each other")
    inputs = cast(loss.inputs(70, 5, "few", torch.Generator().manual_seed(0)), torch.float32)
    clean = loss.fused(**inputs, reduction="none")
    inputs["embeddings"][50, 2] = math.nan
    if "euclidean" in str(loss.fused.keywords.get("distance")):
        # The origin of distances moves with the mean of the anchors: only the bad row's own loss is promised.
        assert loss.fused(**inputs, reduction="none")[50].isnan()
        return
    value = loss.fused(**inputs, reduction="none")
    assert value[50].isnan()
    others = torch.arange(70) != 50
    torch.testing.assert_close(value[others], clean[others])


@every_loss
def test_far_from_the_origin(loss):
    """float32 keeps 1e-7 of 1000 in the inputs; no more may be lost than that."""
    inputs = cast(loss.inputs(60, 16, "few", torch.Generator().manual_seed(1)), torch.float32)
    shifted = {k: t + 1000 if k in ("embeddings", "ref_emb") else t for k, t in inputs.items()}
    if loss.fused.keywords.get("distance") in ("euclidean", "sqeuclidean"):
        assert_matches_oracle(loss, shifted)
    else:
        result = value_and_gradients(loss.fused, shifted, loss.trained)
        assert result["value"].isfinite()
        assert error(result["value"], oracle(loss, shifted)["value"], floor=1.0) <= 0.1


CLOSE = {
    **pair_loss("contrastive_loss", distance="euclidean", pos_margin=0.0, neg_margin=1.5),
    **pair_loss("contrastive_loss", distance="sqeuclidean", pos_margin=0.0, neg_margin=1.5),
    **pair_loss("contrastive_loss", distance="euclidean", power=2, pos_margin=0.0, neg_margin=1.5),
}


@pytest.mark.parametrize("name", CLOSE)
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4, 1e-5])
def test_near_duplicates(name, gap):
    """Rows of norm 1 that differ by little. A difference of squares would leave an error of eps / gap**2; what is
    allowed is eps / gap, as much as one rounding of the rows themselves changes."""
    loss = CLOSE[name]
    generator = torch.Generator().manual_seed(2)
    inputs = loss.inputs(60, 16, "few", generator)
    inputs["embeddings"][1::2] = inputs["embeddings"][::2] + gap * torch.randn(30, 16, generator=generator)
    if "ref_emb" in inputs:
        m = min(60, len(inputs["ref_emb"]))
        inputs["ref_emb"][:m] = inputs["embeddings"][:m] + gap * torch.randn(m, 16, generator=generator)
    inputs = cast(inputs, torch.float32)
    got, want = value_and_gradients(loss.fused, inputs, loss.trained), oracle(loss, inputs)
    tolerance = 1e-5 + torch.finfo(torch.float32).eps / gap
    assert max(error(got[name], want[name]) for name in want) <= tolerance


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4, 1e-6])
def test_near_duplicates_one_by_one(gap):
    """Each single small distance and the gradients through it, not only those of the whole batch."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 24, generator=generator)
    inputs = {"x": x, "y": x + gap * torch.randn(40, 24, generator=generator)}
    wide = {name: t.double() for name, t in inputs.items()}
    tolerance = 1e-5 + torch.finfo(torch.float32).eps / gap
    for metric, power in (("euclidean", 1), ("sqeuclidean", 2)):
        got = value_and_gradients(lambda x, y, m=metric: FP.pairwise_distance(x, y, m).diagonal(), inputs, ("x", "y"))
        want = value_and_gradients(lambda x, y, p=power: (x - y).norm(dim=1) ** p, wide, ("x", "y"))
        for name in want:
            row_error = (got[name] - want[name]).reshape(40, -1).norm(dim=1) / want[name].reshape(40, -1).norm(dim=1)
            assert row_error.max() <= 2 * tolerance


def test_large_logits():
    generator = torch.Generator().manual_seed(4)
    inputs = cast(LOSSES["linear_cross_entropy"].inputs(70, 9, "few", generator), torch.float32)
    loss = LOSSES["linear_cross_entropy-smooth-ignore"]
    for scale in (1e2, 1e4, 1e6):
        scaled = inputs | {"weight": inputs["weight"] * scale, "bias": torch.zeros(len(inputs["weight"]))}
        assert_matches_oracle(loss, scaled)
        assert FP.linear_cross_entropy(**scaled).isfinite()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_classes_masked_by_the_bias(backend):
    """A bias of minus infinity removes a class: the loss and the gradients are those without it."""
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(20, 6, generator=generator), torch.randn(300, 6, generator=generator)
    labels, bias = torch.randint(10, (20,), generator=generator), torch.randn(300, generator=generator)
    masked = bias.clone()
    masked[10:] = -math.inf
    run = partial(FP.linear_cross_entropy, backend=backend)
    trained = ("embeddings", "weight", "bias")
    got = value_and_gradients(run, {"embeddings": x, "weight": weight, "labels": labels, "bias": masked}, trained)
    want = value_and_gradients(
        run, {"embeddings": x, "weight": weight[:10], "labels": labels, "bias": bias[:10]}, trained
    )
    torch.testing.assert_close(got["value"], want["value"])
    torch.testing.assert_close(got["embeddings"], want["embeddings"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(got[name][:10], want[name])
        assert torch.equal(got[name][10:], torch.zeros_like(got[name][10:]))


def test_a_masked_label_has_infinite_loss():
    bias = torch.tensor([0.0, -math.inf])
    value = FP.linear_cross_entropy(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([1]), bias)
    assert value == math.inf


@pytest.mark.parametrize(
    ("name", "n", "classes"),
    [
        ("linear_cross_entropy-smooth-ignore", 3, 50_000),
        ("linear_cross_entropy-smooth-ignore", 700, 30_000),
        ("linear_cross_entropy-smooth-ignore", 33, 500_000),
        ("arcface", 33, 500_000),
    ],
)
def test_many_classes(name, n, classes):
    """More logits than are held at a time, of so few rows at last that they are made twice; class blocks that end
    unevenly."""
    generator = torch.Generator().manual_seed(6)
    inputs = {
        "embeddings": torch.randn(n, 8, generator=generator),
        "weight": torch.randn(classes + 7, 8, generator=generator),
        "labels": torch.randint(classes + 7, (n,), generator=generator),
    }
    if name != "arcface":
        inputs["bias"] = torch.randn(classes + 7, generator=generator)
        inputs["labels"][::5] = -7
    assert_matches_oracle(LOSSES[name], inputs)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored(backend, reduction):
    inputs = {
        "embeddings": torch.randn(5, 3),
        "weight": torch.randn(4, 3),
        "labels": torch.full((5,), -100),
        "bias": torch.randn(4),
    }
    run = partial(FP.linear_cross_entropy, backend=backend, reduction=reduction)
    for t in value_and_gradients(run, inputs, ("embeddings", "weight", "bias")).values():
        assert torch.equal(t, torch.zeros_like(t))


def test_an_ignored_row_may_hold_anything():
    """Padding rows are often NaN: where ignored they must not reach the loss."""
    inputs = {"embeddings": torch.randn(5, 3), "weight": torch.randn(4, 3), "labels": torch.tensor([0, 1, -100, 2, 3])}
    clean = value_and_gradients(FP.linear_cross_entropy, inputs, ("embeddings", "weight"))
    inputs["embeddings"][2] = math.nan
    padded = value_and_gradients(FP.linear_cross_entropy, inputs, ("embeddings", "weight"))
    for name in clean:
        assert torch.equal(padded[name], clean[name])


def test_large_norms_in_spce():
    inputs = cast(batch(64, 8, "few", torch.Generator().manual_seed(7)), torch.float32)
    inputs["embeddings"] *= 100
    assert_matches_oracle(LOSSES["spce_loss"], inputs)


def test_tiny_and_huge_rows_have_cosines():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(8))
    want = FP.pairwise_distance(x, metric="cosine")
    for scale in (1e-15, 1e15):
        torch.testing.assert_close(FP.pairwise_distance(x * scale, metric="cosine"), want, rtol=1e-5, atol=1e-6)


def test_a_common_offset_of_large_logits_costs_nothing():
    weight = torch.tensor([[1e6], [1e6]], requires_grad=True)
    FP.linear_cross_entropy(torch.ones(1, 1), weight, torch.tensor([0])).backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[-0.5], [0.5]]))
    many = FP.linear_cross_entropy(
        torch.ones(1, 1), torch.full((1001, 1), 1234567.0), torch.tensor([0]), label_smoothing=0.5
    )
    torch.testing.assert_close(many, torch.tensor(math.log(1001)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_spoils_its_own_distances_alone(bad):
    x = torch.randn(5, 4)
    x[0, 0] = bad
    for metric in ("euclidean", "sqeuclidean", "cosine"):
        scores = FP.pairwise_distance(x, metric=metric)
        assert scores[1:, 1:].isfinite().all()
        assert not scores[0].isfinite().any()


def test_pce_of_nan_is_nan():
    z, labels = torch.randn(8, 2), torch.arange(8) // 2
    z[3, 1] = math.nan
    assert FP.pce_loss(z, labels, torch.full((8, 3), 1 / 3)).isnan()
