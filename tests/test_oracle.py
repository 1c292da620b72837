"""Every loss, every dtype, shapes that hit the edges of the tiles: loss and all gradients against float64."""

from functools import partial

import pytest
import torch
from covering import covering
from support import (
    DTYPES,
    LOSSES,
    REDUCTIONS,
    assert_matches_oracle,
    batch,
    batch_and_references,
    cast,
    error,
    every_loss,
    has_reduction,
    needs_cpu_kernels,
    oracle,
    pair_loss,
    strided,
    value_and_gradients,
)

import fastpair.functional as FP

pytestmark = needs_cpu_kernels

SHAPES = [
    (63, 17, "pairs"),
    (65, 33, "few"),  # a block of 64 and one more
    (127, 9, "one"),
    (129, 64, "distinct"),  # every class of its own: no positives
    (130, 20, "pairs"),
    (300, 5, "few"),  # several blocks, several of them full of positives
]
LITTLE = [
    (1, 8, "few"),  # a lone sample: no pairs in the batch
    (2, 3, "one"),
    (2, 3, "distinct"),
    (5, 1, "few"),  # one dimension: cosines are all 1 or -1
]


LAYOUTS = {
    "plain": lambda t: t,
    "transposed": lambda t: t.T.contiguous().T if t.ndim == 2 else strided(t),
    "strided": strided,
    "rows-apart": lambda t: torch.stack([t, t + 1], dim=1)[:, 0],
    "offset": lambda t: torch.cat([t[:1] + 1, t])[1:],
}
INCOMING = {"whole": lambda t: t, "strided": strided, "expanded": lambda t: t[:1].expand(len(t))}
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def makes_sense(known):
    loss, (*_, pattern), integers = known["loss"], known.get("shape", ["few"]), known.get("integers")
    incoming = known.get("incoming", INCOMING["whole"])
    fits = not (integers == torch.int8 and pattern not in ("few", "one")) and not (
        integers == torch.uint8 and "ignore_index" in loss.fused.keywords
    )
    return fits and has_reduction(known) and (incoming is INCOMING["whole"] or known["reduction"] == "none")


every_reduction = {name: name for name in (*REDUCTIONS, "totals")}


@covering(
    makes_sense,
    loss=LOSSES,
    shape=SHAPES,
    dtype=DTYPES,
    reduction=every_reduction,
    layout=LAYOUTS,
    integers=INTEGERS,
    incoming=INCOMING,
)
def test_loss_and_gradients(loss, shape, dtype, reduction, layout, integers, incoming):
    """Whatever the shape, the dtypes, and how the inputs lie in memory."""
    n, d, pattern = shape
    generator = torch.Generator().manual_seed(1000 * n + d)
    inputs = cast(loss.inputs(n, d, pattern, generator), dtype)
    narrow = {name: t if t.is_floating_point() else t.to(integers) for name, t in inputs.items()}
    arranged = {name: layout(t) if t.ndim else t for name, t in narrow.items()}
    assert all((arranged[name] == inputs[name]).all() for name in inputs)
    coming = torch.randn(loss.shape(inputs, reduction), generator=generator, dtype=torch.float64).to(dtype)
    assert_matches_oracle(loss, arranged, reduction, incoming(coming))


@covering(makes_sense, loss=LOSSES, shape=LITTLE, dtype=DTYPES, reduction=every_reduction)
def test_a_few_samples(loss, shape, dtype, reduction):
    n, d, pattern = shape
    generator = torch.Generator().manual_seed(1000 * n + d)
    inputs = cast(loss.inputs(n, d, pattern, generator), dtype)
    coming = torch.randn(loss.shape(inputs, reduction), generator=generator, dtype=torch.float64).to(dtype)
    assert_matches_oracle(loss, inputs, reduction, coming)


@every_loss
def test_duplicates(loss):
    """Rows that occur twice, in the same and in different classes: distances of exactly zero."""
    generator = torch.Generator().manual_seed(3)
    inputs = loss.inputs(80, 6, "few", generator)
    inputs["embeddings"][40:] = inputs["embeddings"][:40]
    # Of equally hard pairs any one may have the gradient.
    results = ("value",) if "hard" in loss.fused.keywords.values() else None
    for dtype, reduction in ((torch.float64, "sum"), (torch.float32, "mean")):
        assert_matches_oracle(loss, cast(inputs, dtype), reduction, results=results)


@every_loss
def test_half_precision_blocks(loss):
    """Enough rows for the machines that multiply bfloat16 natively to do so."""
    generator = torch.Generator().manual_seed(4)
    inputs = cast(loss.inputs(520, 48, "pairs", generator), torch.bfloat16)
    assert_matches_oracle(loss, inputs)


def lattice(inputs):
    """Embeddings with small integer entries: scores of float32 and float64 fall on the same side of each margin."""
    for name in ("embeddings", "ref_emb"):
        if name in inputs:
            inputs[name] = (inputs[name] * 4).round()
    return inputs


# Margins that no distance or product of lattice points comes near.
LARGE = {
    **pair_loss("contrastive_loss", distance="euclidean", pos_margin=2.55**0.5, neg_margin=13.55**0.5),
    **pair_loss("contrastive_loss", distance="sqeuclidean", power=2, pos_margin=2.5, neg_margin=20.5),
    **pair_loss("contrastive_loss", distance="dot", pos_margin=3.5, neg_margin=1.5),
}
# More scores than `small_squares` keeps between two sweeps, as a square, a tall and wide matrices; the last is too wide
# for panels.
LARGE_SHAPES = {
    "contrastive-euclidean": (547, None),
    "contrastive-sqeuclidean-p2": (547, None),
    "contrastive-dot": (547, None),
    "contrastive-euclidean-refs": (1283, 190),
    "contrastive-sqeuclidean-p2-refs": (130, 2901),
    "contrastive-dot-refs": (130, 3301),
}


def large_inputs(n, m, d, pattern, generator):
    inputs = batch(n, d, pattern, generator)
    if m is not None:
        references = batch(m, d, pattern, generator)
        inputs |= {"ref_emb": references["embeddings"], "ref_labels": references["labels"]}
    return cast(lattice(inputs), torch.float32)


@pytest.mark.parametrize("name", LARGE)
def test_more_scores_than_are_kept(name, small_squares):
    loss = LARGE[name]
    inputs = large_inputs(*LARGE_SHAPES[name], 4, "few", torch.Generator().manual_seed(5))
    assert_matches_oracle(loss, inputs)


@pytest.mark.parametrize("reduction", ["sum", "none", "totals"])
def test_more_scores_than_are_kept_of_other_reductions(reduction, small_squares):
    loss = LARGE["contrastive-euclidean"]
    generator = torch.Generator().manual_seed(6)
    inputs = large_inputs(547, None, 3, "pairs", generator)
    incoming = torch.randn(loss.shape(inputs, reduction), generator=generator)
    assert_matches_oracle(loss, inputs, reduction, incoming)


def test_more_scores_than_are_kept_with_one_side_frozen(small_squares):
    loss = LARGE["contrastive-euclidean-refs"]
    inputs = large_inputs(603, 531, 3, "few", torch.Generator().manual_seed(7))
    want = oracle(loss, inputs)
    for trained in loss.trained:
        got = value_and_gradients(partial(loss.fused, backend="cpu"), inputs, (trained,))
        assert max(error(got[name], want[name]) for name in got) <= 1e-5


@pytest.mark.parametrize(("n", "m"), [(100_000, 16), (16, 100_000)])
def test_long_and_narrow(n, m):
    loss = LARGE["contrastive-sqeuclidean-p2-refs"]
    assert_matches_oracle(loss, large_inputs(n, m, 3, "few", torch.Generator().manual_seed(8)))


@pytest.mark.parametrize(("n", "d"), [(100, 6), (1, 64)])
def test_sums_over_many_references(n, d):
    """Of narrow products, which some BLAS add up from the first number to the last."""
    loss, generator = LOSSES["supcon-cosine-refs"], torch.Generator().manual_seed(9)
    inputs, references = (batch(rows, d, "few", generator) for rows in (n, 90_000))
    inputs |= {"ref_emb": references["embeddings"], "ref_labels": references["labels"]}
    inputs = cast(inputs, torch.float32)
    got = value_and_gradients(partial(loss.fused, backend="cpu"), inputs, loss.trained)
    want = oracle(loss, inputs)
    assert max(error(got[name], want[name]) for name in want) <= 2e-5


# Losses whose labels are names of classes, not numbers of their vectors.
ANY_LABELS = [name for name, loss in LOSSES.items() if loss.inputs in (batch, batch_and_references)]


@every_loss
def test_expanded_rows(loss):
    """All rows are one: strides of zero."""
    results = ("value",) if "hard" in loss.fused.keywords.values() else ("value", *loss.trained)
    generator = torch.Generator().manual_seed(10)
    inputs = cast(loss.inputs(40, 12, "pairs", generator), torch.float32)
    inputs["embeddings"] = inputs["embeddings"][:1].expand(40, 12)
    got = value_and_gradients(partial(loss.fused, backend="cpu"), inputs, loss.trained)
    want = oracle(loss, inputs)
    # Gradients of cosines between equal rows cancel to zero: an absolute tolerance.
    for name in results:
        torch.testing.assert_close(got[name].double(), want[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ANY_LABELS)
def test_labels_are_names(name):
    """Negative and huge labels, and references whose labels the anchors lack."""
    loss = LOSSES[name]
    generator = torch.Generator().manual_seed(13)
    inputs = cast(loss.inputs(50, 7, "few", generator), torch.float32)
    names = torch.tensor([-(2**62), -1, 2**62])
    renamed = {k: names[t] if k.endswith("labels") else t for k, t in inputs.items()}
    plain = value_and_gradients(partial(loss.fused, backend="cpu"), inputs, loss.trained)
    other = value_and_gradients(partial(loss.fused, backend="cpu"), renamed, loss.trained)
    for result in plain:
        torch.testing.assert_close(other[result], plain[result], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].inputs is batch_and_references])
def test_labels_of_one_side_alone(name):
    generator = torch.Generator().manual_seed(14)
    inputs = cast(batch_and_references(67, 7, "few", generator), torch.float32)
    inputs["ref_labels"] += 2
    assert_matches_oracle(LOSSES[name], inputs)
    assert_matches_oracle(LOSSES[name], inputs | {"ref_labels": inputs["ref_labels"] + 9})


# ---- nothing to compare


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@every_loss
def test_empty_batch(loss, backend):
    inputs = cast(loss.inputs(5, 4, "few", torch.Generator().manual_seed(15)), torch.float32)
    for key in ("embeddings", "labels", "probabilities", *(("ref_emb",) if "labels" not in inputs else ())):
        if key in inputs:
            inputs[key] = inputs[key][:0]
    for reduction in loss.reductions:
        result = value_and_gradients(partial(loss.fused, reduction=reduction, backend=backend), inputs, loss.trained)
        assert result["value"].shape == loss.shape(inputs, reduction)
        if loss.rows == "embeddings":  # proxies have a loss without samples
            for name, t in result.items():
                assert torch.equal(t, torch.zeros_like(t)), f"{reduction} {name}"


@covering(
    name=[name for name in LOSSES if LOSSES[name].inputs is batch_and_references],
    reduction=every_reduction,
    n=[0, 3],
    backend=["cpu", "reference"],
)
def test_no_references(name, reduction, n, backend):
    loss = LOSSES[name]
    inputs = cast(loss.inputs(3, 4, "few", torch.Generator().manual_seed(16)), torch.float32)
    inputs |= {"embeddings": inputs["embeddings"][:n], "labels": inputs["labels"][:n]}
    inputs |= {"ref_emb": inputs["ref_emb"][:0], "ref_labels": inputs["ref_labels"][:0]}
    result = value_and_gradients(partial(loss.fused, reduction=reduction, backend=backend), inputs, loss.trained)
    if reduction == "totals":  # whose counts may be those of anchors
        result["value"] = result["value"][::2]
    for name, t in result.items():
        assert torch.equal(t, torch.zeros_like(t)), name


@covering(distance=["euclidean", "sqeuclidean", "cosine", "dot"], power=[1, 2], backend=["cpu", "reference"])
def test_batches_without_a_term(distance, power, backend):
    """One sample, positives all closer and negatives all farther than the margin: zero, not NaN."""
    similarity = distance in ("cosine", "dot")
    margins = {"pos_margin": -99, "neg_margin": 99} if similarity else {"pos_margin": 99, "neg_margin": 0}
    run = partial(FP.contrastive_loss, distance=distance, power=power, **margins)
    x = torch.randn(6, 4)
    for chosen, labels in ((x[:1], [3]), (x, [1] * 6), (x, [0, 1, 2, 3, 4, 5]), (x, [0, 0, 1, 1, 2, 2])):
        for reduction in REDUCTIONS:
            inputs = {"embeddings": chosen, "labels": torch.tensor(labels)}
            call = partial(run, reduction=reduction, backend=backend)
            for name, t in value_and_gradients(call, inputs, ("embeddings",)).items():
                assert torch.equal(t, torch.zeros_like(t)), name
