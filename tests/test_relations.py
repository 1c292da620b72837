"""What says which pairs there are, beside single labels: sets of labels, a matrix of pairs, ids."""

from functools import partial

import dense
import pytest
import torch
import torch.nn.functional as F
from covering import covering
from support import (
    BACKENDS,
    REDUCTIONS,
    RELATED,
    WEIGHTED,
    assert_matches_oracle,
    cast,
    error,
    needs_cpu_kernels,
    value_and_gradients,
)

import fastpair.functional as FP
from fastpair import losses


@needs_cpu_kernels
@covering(
    loss=RELATED,
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    reduction=["mean", "none", "totals"],
)
def test_kernels(loss, dtype, reduction):
    inputs = cast(loss.inputs(70, 8, "few", torch.Generator().manual_seed(0)), dtype)
    incoming = torch.randn(loss.shape(inputs, reduction), generator=torch.Generator().manual_seed(7))
    assert_matches_oracle(loss, inputs, reduction, incoming)


@covering(loss=RELATED, reduction=(*REDUCTIONS, "totals"), n=[1, 30])
def test_dense_evaluation(loss, reduction, n):
    inputs = loss.inputs(n, 6, "few", torch.Generator().manual_seed(n))
    incoming = torch.randn(loss.shape(inputs, reduction), dtype=torch.float64)
    got, want = (
        value_and_gradients(run, inputs, loss.trained, incoming)
        for run in (
            partial(loss.fused, reduction=reduction, backend="reference"),
            partial(loss.dense, reduction=reduction),
        )
    )
    for name in want:
        assert error(got[name], want[name]) < 1e-10, name


@covering(loss=WEIGHTED, reduction=["mean", "none", "totals"])
def test_weights(loss, reduction):
    """The kernels and the dense evaluation: a mean is one of weights, not of anchors."""
    inputs = loss.inputs(20, 5, "few", torch.Generator().manual_seed(0))
    incoming = torch.randn(loss.shape(inputs, reduction), dtype=torch.float64)
    want = value_and_gradients(partial(loss.dense, reduction=reduction), inputs, loss.trained, incoming)
    for backend in BACKENDS:
        run = partial(loss.fused, reduction=reduction, backend=backend)
        got = value_and_gradients(run, inputs, loss.trained, incoming)
        for key in want:
            assert error(got[key], want[key]) < 1e-9, (key, backend)


@needs_cpu_kernels
@pytest.mark.parametrize("name", [name for name in RELATED if "-hard" in name or "triplet" not in name])
def test_several_tiles(name):
    loss = RELATED[name]
    assert_matches_oracle(loss, loss.inputs(290, 5, "few", torch.Generator().manual_seed(1)))


@covering(loss=RELATED, reduction=["mean", "none"], backend=BACKENDS)
def test_empty_batch(loss, reduction, backend):
    inputs = loss.inputs(0, 4, "few", torch.Generator())
    got = value_and_gradients(partial(loss.fused, reduction=reduction, backend=backend), inputs, loss.trained)
    assert all((t == 0).all() for t in got.values())


def test_no_label_in_a_set():
    x, nothing = torch.randn(5, 3, requires_grad=True), torch.zeros(5, 0, dtype=torch.bool)
    assert FP.supcon_loss(x, nothing) == 0
    assert FP.multi_similarity_loss(x, nothing) == FP.multi_similarity_loss(x, torch.arange(5))


@needs_cpu_kernels
@pytest.mark.parametrize(
    ("name", "by"),
    [("supcon_loss-cosine", "ids"), ("contrastive_loss-euclidean", "sets"), ("ntxent_loss-sqeuclidean", "ids")],
)
def test_more_scores_than_are_kept(name, by, small_squares):
    loss = RELATED[f"{name}-{by}"]
    inputs = cast(loss.inputs(600, 4, "pairs", torch.Generator().manual_seed(0)), torch.float64)
    if by == "ids":
        inputs["ids"] = inputs["ids"] // 3  # six samples an id, spread over all tiles
    assert_matches_oracle(loss, inputs)


@needs_cpu_kernels
def test_ids_of_the_references():
    """The anchors' own rows have the same ids: both leave them out, once."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (20, 9))
    labels, ids = (torch.randint(4, (29,), generator=generator) for _ in range(2))
    for exclude_self in (True, torch.arange(20), False):
        run = partial(FP.supcon_loss, x, labels[:20], torch.cat([x, y]), labels, ids=ids[:20], ref_ids=ids)
        torch.testing.assert_close(
            run(exclude_self=exclude_self, backend="cpu"),
            dense.supcon_loss(x, labels[:20], torch.cat([x, y]), labels, ids=ids[:20], ref_ids=ids),
        )


def test_sets_of_one_label_are_labels():
    x = torch.randn(50, 6, dtype=torch.float64)
    labels = torch.randint(9, (50,))
    sets = F.one_hot(labels).bool()
    for name in ("supcon_loss", "triplet_margin_loss", "contrastive_loss"):
        torch.testing.assert_close(getattr(FP, name)(x, sets), getattr(FP, name)(x, labels))


def test_the_matrix_of_the_labels_is_labels():
    x = torch.randn(50, 6, dtype=torch.float64)
    labels = torch.randint(9, (50,))
    pairs = 2 * (labels[:, None] == labels[None, :]).int() - 1
    torch.testing.assert_close(FP.ntxent_loss(x, None, pairs=pairs), FP.ntxent_loss(x, labels))


def test_a_transposed_matrix_of_pairs():
    x, pairs = (
        torch.randn(9, 4),
        torch.randint(-1, 2, (9, 9), generator=torch.Generator().manual_seed(0)).to(torch.int8),
    )
    ids = torch.arange(9) // 2
    for more in ({}, {"ids": ids}):
        assert torch.equal(
            FP.snca_loss(x, None, pairs=pairs.T, **more), FP.snca_loss(x, None, pairs=pairs.T.contiguous(), **more)
        )


def test_memory_and_a_list_of_samples_without_labels():
    """The own copy of a sample without labels shares none with it, but is no negative of its."""
    memory = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), 6, 32, label_sets=5)
    x = torch.randn(8, 6)
    sets = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    sets[0] = False
    nothing = torch.empty(0, dtype=torch.int64)
    want = dense.multi_similarity_loss(x, sets)
    torch.testing.assert_close(memory(x, sets, (nothing,) * 4), want)


def test_weights_of_listed_pairs():
    x, labels = torch.randn(20, 6, dtype=torch.float64), torch.randint(4, (20,))
    same, weights = labels[:, None] == labels[None, :], torch.rand(20, dtype=torch.float64)
    lists = (*(same & ~torch.eye(20, dtype=torch.bool)).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
    for name in ("supcon_loss", "contrastive_loss"):
        listed = getattr(FP, name)(x, labels, indices_tuple=lists, weights=weights)
        torch.testing.assert_close(listed, getattr(FP, name)(x, labels, weights=weights))


def test_compiled():
    """With whatever says which pairs there are: one graph."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator)
    labels, ids = (torch.randint(6, (30,), generator=generator) for _ in range(2))
    sets, pairs = F.one_hot(labels, 40).bool(), torch.randint(-1, 2, (30, 30), generator=generator)
    weights = torch.rand(30, generator=generator)
    for arguments in (
        {"labels": labels, "ids": ids, "weights": weights},
        {"labels": sets, "ids": ids},
        {"labels": None, "pairs": pairs, "ids": ids},
    ):
        eager = partial(FP.supcon_loss, **arguments)
        torch.compiler.reset()
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        got, want = (value_and_gradients(run, {"embeddings": x}, ("embeddings",)) for run in (compiled, eager))
        for name in want:
            torch.testing.assert_close(got[name], want[name])


X, LABELS = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
SETS, IDS, PAIRS = torch.ones(4, 2, dtype=torch.bool), torch.arange(4), torch.zeros(4, 4, dtype=torch.int8)
WRONG = [
    ({"labels": SETS[:3]}, "labels, as sets of labels, must have shape \\(4, L\\)"),
    ({"labels": SETS[:, 0]}, "labels must have an integer dtype"),
    ({"labels": SETS.int()}, "labels must have shape \\(4,\\)"),
    ({"labels": SETS, "ref_emb": X, "ref_labels": SETS[:, :1]}, "ref_labels must be like labels, sets of 2 labels"),
    ({"labels": LABELS, "ref_emb": X, "ref_labels": SETS}, "ref_labels must be like labels, one integer a row"),
    ({"labels": LABELS, "ids": IDS[:3]}, "ids must have shape \\(4,\\)"),
    ({"labels": LABELS, "ids": IDS.float()}, "ids must have an integer dtype"),
    ({"labels": LABELS, "ref_ids": IDS}, "ids must be given with ref_ids"),
    ({"labels": LABELS, "ids": IDS, "ref_ids": IDS}, "ref_emb must be given with ref_ids"),
    ({"labels": LABELS, "ids": IDS, "ref_emb": X + 1, "ref_labels": LABELS}, "ref_ids must be given with ids"),
    ({"labels": LABELS, "pairs": PAIRS}, "labels must be None where pairs"),
    ({"pairs": PAIRS[:3]}, "pairs must have shape \\(4, 4\\)"),
    ({"pairs": PAIRS.bool()}, "pairs must have a signed integer dtype"),
    (
        {"pairs": PAIRS + 2},
        "pairs must hold 1 \\(positive\\), -1 \\(negative\\) and 0 \\(none\\), got values from 2 to 2",
    ),
    ({"labels": LABELS, "indices_tuple": (IDS, IDS, IDS), "ids": IDS}, "ids must be None where indices_tuple"),
    ({"labels": LABELS, "weights": IDS}, "weights must be float32"),
    ({"labels": LABELS, "weights": X[:3, 0].abs()}, "weights must have shape \\(4,\\)"),
    ({"labels": LABELS, "weights": -torch.ones(4)}, "weights must not be negative or NaN, got a minimum of -1"),
    ({"labels": LABELS, "weights": torch.ones(4, requires_grad=True)}, "weights must not require a gradient"),
    ({"indices_tuple": (IDS, IDS, IDS), "pairs": PAIRS}, "pairs must be None where indices_tuple"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        losses.SupConLoss()(X, **arguments)


@pytest.mark.parametrize("label_sets", [None, 5])
def test_cross_batch_memory(label_sets):
    """The loss against the past batches that it keeps, with their ids and sets."""
    memory = losses.CrossBatchMemory(losses.SupConLoss(), 6, 32, label_sets=label_sets, keep_ids=True)
    batches = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, 6, generator=generator)
        labels = torch.randint(3, (8,), generator=generator)
        if label_sets:
            labels = torch.rand(8, label_sets, generator=generator) < 0.3
        batches.append((x, labels, torch.randint(12, (8,), generator=generator)))
        got = memory(x, labels, ids=batches[-1][2])
        kept, kept_labels, kept_ids = (torch.cat(of) for of in zip(*batches))
        own = torch.arange(8) + len(kept) - 8
        want = dense.supcon_loss(x, labels, kept, kept_labels, exclude_self=own, ids=batches[-1][2], ref_ids=kept_ids)
        torch.testing.assert_close(got, want)
    memory.reset_queue()
    x, labels, ids = batches[0]
    mask = torch.arange(8) % 2 == 0
    want = dense.supcon_loss(x[~mask], labels[~mask], x[mask], labels[mask], ids=ids[~mask], ref_ids=ids[mask])
    torch.testing.assert_close(memory(x, labels, enqueue_mask=mask, ids=ids), want)
    assert set(memory.state_dict()) >= {"embedding_memory", "label_memory", "id_memory"}
    for arguments, message in (
        ({"labels": batches[0][1]}, "ids must be given if and only if keep_ids"),
        ({"labels": SETS[:, :1].repeat(2, 1), "ids": batches[0][2]}, "labels must be"),
    ):
        with pytest.raises(ValueError, match=message):
            memory(batches[0][0], **arguments)


@needs_cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_that_are_zero(dtype):
    """All positives' terms are: a maximum of zeros, which loops over bytes and floats once lost."""
    x, labels = torch.randn(257, 2, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(257) % 50
    run = partial(FP.circle_loss, x, labels, m=-0.96, gamma=1.0, ids=torch.arange(257) // 2, reduction="none")
    torch.testing.assert_close(run(backend="cpu"), run(backend="reference"), rtol=1e-5, atol=1e-5)
