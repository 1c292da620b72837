"""Losses over listed pairs and triplets, and against the embeddings of past batches."""

import copy
import io
from functools import partial

import pytest
import torch
from covering import covering
from support import METRICS, error, needs_cpu_kernels, value_and_gradients

import fastpair
import fastpair.functional as FP
from fastpair import losses as ours
from fastpair.formulas import softplus
from fastpair.formulas.pair_losses import PAIR_LOSSES as PAIR_DEFINITIONS
from fastpair.losses.mined import listed_scores

theirs = pytest.importorskip("pytorch_metric_learning.losses")
miners = pytest.importorskip("pytorch_metric_learning.miners")

MINERS = {
    "multi-similarity": miners.MultiSimilarityMiner(),
    "batch-hard": miners.BatchHardMiner(),
    "triplets": miners.TripletMarginMiner(),
    "semihard": miners.TripletMarginMiner(type_of_triplets="semihard"),
    "easy-hard": miners.BatchEasyHardMiner(),
}
LOSSES = {
    "contrastive": (ours.ContrastiveLoss(), theirs.ContrastiveLoss()),
    "supcon": (ours.SupConLoss(), theirs.SupConLoss()),
    "ntxent": (ours.NTXentLoss(), theirs.NTXentLoss()),
    "multi-similarity": (ours.MultiSimilarityLoss(), theirs.MultiSimilarityLoss()),
    "circle": (ours.CircleLoss(), theirs.CircleLoss()),
    "triplet": (ours.TripletMarginLoss(), theirs.TripletMarginLoss()),
    "triplet-smooth-swap": (
        ours.TripletMarginLoss(0.2, swap=True, smooth_loss=True),
        theirs.TripletMarginLoss(0.2, swap=True, smooth_loss=True),
    ),
}


N = 28  # theirs take seconds for more


def random_batch(seed, references):
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "embeddings": torch.randn(N, 16, generator=generator, dtype=torch.float64),
        "labels": torch.randint(8, (N,), generator=generator),
    }
    if references:
        inputs["ref_emb"] = torch.randn(50, 16, generator=generator, dtype=torch.float64)
        inputs["ref_labels"] = torch.randint(8, (50,), generator=generator)
    return inputs


@covering(
    # Theirs reads the pair (positive, negative) from the rows of the anchors.
    lambda known: not ("swap" in known["name"] and known.get("references", False)),
    name=LOSSES.keys(),
    miner=MINERS.keys(),
    references=[False, True],
    seed=range(2),
)
def test_agreement_on_mined_lists(name, miner, references, seed):
    our_loss, their_loss = LOSSES[name]
    inputs = random_batch(seed, references)
    mined = MINERS[miner](*inputs.values())
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)
    got = value_and_gradients(partial(our_loss, indices_tuple=mined), inputs, trained)
    want = value_and_gradients(partial(their_loss, indices_tuple=mined), inputs, trained)
    for result in want:
        assert error(got[result], want[result]) <= 1e-9, result


# Those that users write: see test_custom.py.
PAIR_LOSSES = [
    name for name in ours.__all__ if issubclass(getattr(ours, name), ours.PairLoss) and name != "CustomPairLoss"
]


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("references", [False, True])
def test_all_pairs_listed_is_the_plain_loss(name, references):
    loss, inputs = getattr(ours, name)(), random_batch(3, references)
    same = inputs["labels"][:, None] == inputs.get("ref_labels", inputs["labels"])[None, :]
    pair = torch.ones_like(same) if references else ~torch.eye(N, dtype=torch.bool)
    pairs = (*(same & pair).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)
    for reduction in ("mean", "sum", "none"):
        loss.reduction = reduction
        want = value_and_gradients(loss, inputs, trained)
        got = value_and_gradients(
            lambda labels, ref_labels=None, **batch: loss(**batch, indices_tuple=pairs), inputs, trained
        )
        for result in want:
            assert error(got[result], want[result]) <= 1e-9, result


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_empty_lists(name):
    x = torch.randn(6, 3, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.long)
    for lists in ((nothing,) * 3, (nothing,) * 4):
        for reduction in ("mean", "none"):
            loss = getattr(ours, name)(reduction=reduction)
            value = loss(x, None, lists)
            assert torch.equal(value, torch.zeros(6 if reduction == "none" else ()))
            (gradient,) = torch.autograd.grad(value.sum(), x)
            assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_totals(name):
    """The parts of the mean, and their gradients."""
    inputs = random_batch(0, False)
    mined = MINERS["batch-hard"](*inputs.values())

    def run(reduction, **batch):
        return getattr(ours, name)(reduction=reduction)(**batch, indices_tuple=mined)

    def mean(embeddings, labels):
        total, count, neg_total, neg_count = run("totals", embeddings=embeddings, labels=labels)
        return total / count.clamp(min=1) + neg_total / neg_count.clamp(min=1)

    got = value_and_gradients(mean, inputs, ("embeddings",))
    want = value_and_gradients(lambda **batch: run("mean", **batch), inputs, ("embeddings",))
    assert max(error(got[result], want[result]) for result in want) <= 1e-12
    totals = run("totals", **inputs)
    assert error(totals[0] + totals[2], run("sum", **inputs)) <= 1e-12


def test_repeated_pairs():
    x, i = torch.randn(6, 3), torch.tensor
    once = (i([0, 1]), i([1, 0]), i([0, 1]), i([3, 4]))
    twice = (i([0, 1, 0]), i([1, 0, 1]), i([0, 1, 0]), i([3, 4, 3]))
    for name in ("SupConLoss", "MultiSimilarityLoss", "CircleLoss", "SNCALoss", "NCALoss"):
        loss = getattr(ours, name)()
        torch.testing.assert_close(loss(x, None, twice), loss(x, None, once))
    sums = ours.NTXentLoss(reduction="none")
    assert sums(x, None, twice)[0] > sums(x, None, once)[0]
    with pytest.raises(ValueError, match="as positive and as negative, got \\(0, 1\\)"):
        ours.SupConLoss()(x, None, (i([0]), i([1]), i([0]), i([1])))


@pytest.mark.parametrize(
    "distance", ["euclidean", "sqeuclidean", "unit_euclidean", "unit_sqeuclidean", "cosine", "dot"]
)
def test_both_ways_to_the_scores(distance):
    """A short list takes the rows of its pairs, a long one the whole matrix."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(n, 5, generator=generator, dtype=torch.float64, requires_grad=True) for n in (12, 9))
    i, j = torch.randint(12, (90,), generator=generator), torch.randint(9, (90,), generator=generator)
    whole = listed_scores(x, y, i, j, distance, None)
    parts = torch.cat([listed_scores(x, y, a, b, distance, None) for a, b in zip(i.split(15), j.split(15))])
    torch.testing.assert_close(parts, whole)
    weights = torch.randn(90, generator=generator, dtype=torch.float64)
    for got, want in zip(torch.autograd.grad(parts @ weights, (x, y)), torch.autograd.grad(whole @ weights, (x, y))):
        torch.testing.assert_close(got, want)


def test_same_bits_and_half_precision():
    x, labels = torch.randn(60, 8), torch.arange(60) % 6
    mined = miners.TripletMarginMiner()(x, labels)
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for _ in range(3):
            leaf = x.to(dtype).requires_grad_()
            value = FP.supcon_loss(leaf, None, indices_tuple=mined)
            results.append((value.detach(), *torch.autograd.grad(value, leaf)))
        assert results[0][0].dtype == torch.float32 and results[0][1].dtype == dtype
        assert all(torch.equal(a, b) for again in results[1:] for a, b in zip(again, results[0]))


ROWS = torch.arange(3)
BAD = {
    "must be a tuple of 3": (ValueError, (ROWS, ROWS)),
    "must be a tuple of 3 tensors.*got int": (ValueError, 7),
    r"indices_tuple\[1\] must be a one-dimensional": (TypeError, (ROWS, ROWS.float(), ROWS)),
    r"indices_tuple\[2\] must be as long": (ValueError, (ROWS, ROWS % 2, ROWS[:2])),
    r"indices_tuple\[3\] must be as long": (ValueError, (ROWS, ROWS % 2, ROWS[:2], ROWS)),
    r"indices_tuple\[1\] must hold rows of ref_emb, 0 to 1": (ValueError, (ROWS, ROWS, ROWS)),
    r"indices_tuple\[0\] must hold rows of embeddings, 0 to 3": (ValueError, (ROWS + 3, ROWS % 2, ROWS % 2)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_lists(message):
    kind, lists = BAD[message]
    with pytest.raises(kind, match=message):
        ours.SupConLoss()(torch.ones(4, 2), None, lists, ref_emb=torch.ones(2, 2))


# ---- the kernel of the lists, held against plain PyTorch in float64


def lists_of(kind, n, m, own, generator):
    """Few pairs, which are gathered; many, which make rows of scores; triplets whose pairs are listed many times. An
    anchor has none, another almost all."""
    positive = torch.rand(n, m, generator=generator) < {"few": 0.01, "many": 0.3, "triplets": 0.1}[kind]
    negative = ~positive & (torch.rand(n, m, generator=generator) < {"few": 0.02, "many": 0.9, "triplets": 0.1}[kind])
    positive[0] = negative[0] = False
    negative[1] = ~positive[1]
    if own:
        positive.fill_diagonal_(False)
        negative.fill_diagonal_(False)
    if kind != "triplets":
        pairs = (positive.nonzero(), negative.nonzero())
        shuffled = (rows[torch.randperm(len(rows), generator=generator)] for rows in pairs)
        return tuple(column for rows in shuffled for column in rows.T)
    anchor, p, q = (positive[:, :, None] & negative[:, None, :]).nonzero().T
    again = torch.randint(len(anchor), (40,), generator=generator)
    return tuple(torch.cat([rows, rows[again]]) for rows in (anchor, p, q))


def sides(n, m, d, generator, dtype):
    """Rows some of which are equal to others, or close to them."""
    x, y = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, m or 1))
    near = min(len(y) // 4, n)
    y[:near] = x[:near] + 0.05 * y[:near] * (torch.arange(near) % 3)[:, None]
    return {"embeddings": x.to(dtype), **({"ref_emb": y.to(dtype)} if m else {})}


def of_both(loss, inputs, lists, backend, **given):
    def run(**batch):
        return loss(labels=None, indices_tuple=lists, backend=backend, **batch, **given)

    return value_and_gradients(run, inputs, tuple(inputs))


FUNCTIONS = {
    **{name: getattr(FP, f"{name}_loss") for name in PAIR_DEFINITIONS},
    "contrastive-p2": partial(FP.contrastive_loss, distance="euclidean", power=2),
    "supcon-sqeuclidean": partial(FP.supcon_loss, distance="sqeuclidean"),
    "triplet_margin-smooth": partial(FP.triplet_margin_loss, smooth_loss=True, distance="cosine"),
    "triplet_margin-swap": partial(FP.triplet_margin_loss, swap=True, distance="euclidean", margin=0.5),
    "triplet_margin-swap-smooth": partial(FP.triplet_margin_loss, swap=True, smooth_loss=True),
}
WITHIN = {torch.float64: 1e-10, torch.float32: 5e-5}


@needs_cpu_kernels
@covering(
    name=FUNCTIONS.keys(),
    kind=["few", "many", "triplets"],
    dtype=[torch.float64, torch.float32, torch.bfloat16],
    reduction=["mean", "sum", "none"],
    references=[0, 50],
    weighted=[False, True],
)
def test_kernel_is_the_plain_loss(name, kind, dtype, reduction, references, weighted):
    loss, generator = FUNCTIONS[name], torch.Generator().manual_seed(len(name))
    lists = lists_of(kind, 70, references or 70, not references, generator)
    weights = torch.rand(70, generator=generator, dtype=torch.float64).to(dtype)
    incoming = torch.randn(70, generator=generator, dtype=torch.float64) if reduction == "none" else None
    inputs = sides(70, references, 9, generator, dtype)

    def run(backend, dtype):
        side = {key: t.to(dtype) for key, t in inputs.items()}
        given = {"weights": weights.to(dtype)} if weighted else {}
        of = partial(loss, labels=None, indices_tuple=lists, reduction=reduction, backend=backend, **given)
        return value_and_gradients(of, side, tuple(side), incoming)

    got, plain, want = run("cpu", dtype), run("reference", dtype), run("reference", torch.float64)
    for result, truth in want.items():
        assert got[result].dtype == plain[result].dtype
        within = max(2 * error(plain[result], truth), torch.finfo(dtype).eps, WITHIN.get(dtype, 0))
        assert error(got[result], truth) <= within, result


def hardest_pairs():
    """A formula that users write, with maxima."""
    return ours.CustomPairLoss(
        positive=lambda s, p: -s,
        negative=lambda s, p: s,
        anchor=lambda P, N, p: softplus(P.max + N.max),
        needs=("positives", "negatives"),
        distance="euclidean",
    )


@needs_cpu_kernels
@pytest.mark.parametrize("kind", ["few", "many", "triplets"])
def test_kernel_of_maxima_and_learned_parameters(kind):
    """Maxima; numbers of rows; a scale and a bias that learn."""
    generator = torch.Generator().manual_seed(5)
    lists = lists_of(kind, 40, 30, False, generator)
    inputs = sides(40, 30, 6, generator, torch.float64)
    numbers = {
        "anchor_scalars": {"slack": torch.rand(40, generator=generator, dtype=torch.float64)},
        "ref_scalars": {"trust": torch.rand(30, generator=generator, dtype=torch.float64)},
    }
    trusted = ours.CustomPairLoss(
        positive=lambda s, p: -p.scale * p.ref.trust * s,
        negative=lambda s, p: p.scale * (s - p.anchor.slack),
        anchor=lambda P, N, p: softplus(P.lse + N.lse) / p.scale,
        needs=("positives", "negatives"),
        scale=torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64)),
    )
    bias = torch.rand(30, generator=generator, dtype=torch.float64)
    for loss, given in (
        (hardest_pairs(), {}),
        (trusted, numbers),
        (partial(FP.supcon_loss, distance="sqeuclidean"), {"ref_bias": bias}),
    ):
        leaves = {key: t.clone().requires_grad_() for key, t in inputs.items()}
        learned = list(loss.parameters()) if isinstance(loss, torch.nn.Module) else []
        results = []
        for backend in ("cpu", "reference"):
            with fastpair.use_backend(backend):
                value = loss(**leaves, labels=None, indices_tuple=lists, **given)
            results.append([value, *torch.autograd.grad(value, [*leaves.values(), *learned])])
        for got, want in zip(*results):
            torch.testing.assert_close(got, want)


@needs_cpu_kernels
def test_maxima_of_hundreds_of_listed_pairs():
    """Of one anchor, more than are visited together: the hardest negative is among the last, then among the first."""
    generator = torch.Generator().manual_seed(7)
    inputs, numbers = sides(12, 700, 4, generator, torch.float64), torch.arange(700)
    for closest in (690, 110):
        inputs["ref_emb"][closest] = inputs["embeddings"][3] + 0.01
        lists = (torch.full((100,), 3), numbers[:100], torch.full((600,), 3), numbers[100:])
        results = []
        for backend in ("cpu", "reference"):
            with fastpair.use_backend(backend):
                run = partial(hardest_pairs(), labels=None, indices_tuple=lists)
                results.append(value_and_gradients(run, inputs, tuple(inputs)))
        assert all(error(results[0][name], want) <= 1e-10 for name, want in results[1].items())


@needs_cpu_kernels
@covering(name=["supcon", "ntxent"], kind=["few", "many"], references=[0, 30])
def test_temperature_that_learns(name, kind, references):
    generator = torch.Generator().manual_seed(6)
    lists = lists_of(kind, 40, references or 40, not references, generator)
    inputs = sides(40, references, 6, generator, torch.float64) | {"temperature": torch.tensor(0.3).double()}
    results = [of_both(getattr(FP, f"{name}_loss"), inputs, lists, backend) for backend in ("cpu", "reference")]
    for result, want in results[1].items():
        assert error(results[0][result], want) <= 1e-10, result


@needs_cpu_kernels
@pytest.mark.parametrize("distance", METRICS)
def test_pairs_of_rows_with_themselves(distance):
    """They may be listed. A distance of zero has gradient zero."""
    x = torch.randn(6, 3, dtype=torch.float64)
    i = torch.arange(6)
    for lists in ((i, i, i, (i + 1) % 6), (i, (i + 1) % 6, i)):
        for loss in (FP.supcon_loss, FP.multi_similarity_loss, FP.triplet_margin_loss):
            got, want = (
                of_both(partial(loss, distance=distance), {"embeddings": x}, lists, backend)
                for backend in ("cpu", "reference")
            )
            for result in want:
                assert error(got[result], want[result]) <= 1e-10


@needs_cpu_kernels
def test_integers_of_any_kind_and_strides():
    x = torch.randn(20, 4)
    mined = miners.TripletMarginMiner()(x, torch.arange(20) % 4)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        lists = tuple(rows.to(dtype).repeat_interleave(2)[::2] for rows in mined)
        for loss in (FP.supcon_loss, FP.contrastive_loss, FP.triplet_margin_loss):
            assert torch.equal(loss(x, None, indices_tuple=lists), loss(x, None, indices_tuple=mined))


@needs_cpu_kernels
def test_same_bits_for_any_number_of_threads_of_the_same_kind():
    x, labels = torch.randn(300, 8), torch.arange(300) % 60
    mined = miners.BatchHardMiner()(x, labels)
    for loss in (FP.supcon_loss, FP.contrastive_loss, partial(FP.triplet_margin_loss, swap=True)):
        results = [of_both(loss, {"embeddings": x}, mined, "cpu") for _ in range(3)]
        assert all(torch.equal(again[key], results[0][key]) for again in results[1:] for key in again)


def test_transforms_and_second_derivatives_are_for_the_reference():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    lists = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([3, 4])
    (gradient,) = torch.autograd.grad(FP.supcon_loss(x, None, indices_tuple=lists), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()
    reference = partial(FP.supcon_loss, labels=None, indices_tuple=lists, backend="reference")
    assert torch.autograd.gradgradcheck(reference, x)


@pytest.mark.parametrize("count", [3, 4])
def test_compile_and_autocast(count):
    x = torch.randn(30, 4)
    lists = lists_of("triplets" if count == 3 else "few", 30, 30, True, torch.Generator().manual_seed(1))
    for loss in (FP.contrastive_loss, FP.supcon_loss, FP.triplet_margin_loss):
        want = of_both(loss, {"embeddings": x}, lists, None)
        compiled = torch.compile(loss, backend="aot_eager")
        got = of_both(compiled, {"embeddings": x}, lists, None)
        with torch.autocast("cpu", torch.bfloat16):
            cast = of_both(loss, {"embeddings": x}, lists, None)
        for result in want:
            torch.testing.assert_close(got[result], want[result])
            assert torch.equal(cast[result], want[result])
    torch._dynamo.reset()


@needs_cpu_kernels
def test_direct_calls_check_the_lists():
    """Rows out of range never reach the kernels, whoever calls."""
    x, rows = torch.randn(5, 4), torch.arange(5)
    settings = (None, "supcon", [10.0], "cosine", False, False, "mean", True, False, False, None, None, None)

    def call(*lists, y=None):
        return torch.ops.fastpair.listed_pair_loss(x, y, None, *lists, *settings)

    call(rows, rows, rows[:2], rows[1:3])
    for lists, message in (
        ((rows + 1, rows, rows, rows), "anchors must hold rows, 0 to 4, got 5"),
        ((rows, rows - 1, rows, rows), "positives must hold rows, 0 to 4, got -1"),
        ((rows, rows, rows[:2] + 4, rows[:2]), "negative_anchors must hold rows, 0 to 4, got 5"),
        ((rows, rows, None, rows + 2**40), "negatives must hold rows, 0 to 4"),
        ((rows, rows[:2], None, rows), "positives must have 5 elements"),
        ((rows, rows, None, rows[:2]), "negatives must have 5 elements"),
        ((rows, rows, rows[:3], rows[:2]), "negative_anchors must have 2 elements"),
        ((rows, rows, None, rows), "positive and as negative, got \\(0, 0\\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*lists)
    with pytest.raises(RuntimeError, match="negatives must hold rows, 0 to 2, got 4"):
        call(rows, rows % 3, None, rows[[4, 0, 0, 0, 0]], y=x[:3])


# ---- the embeddings of past batches


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 8, generator=generator), torch.randint(5, (16,), generator=generator)) for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["ContrastiveLoss", "SupConLoss", "MultiSimilarityLoss", "NTXentLoss"])
@pytest.mark.parametrize("miner", [None, miners.MultiSimilarityMiner(), miners.TripletMarginMiner()])
def test_memory_agrees(name, miner):
    our_memory = ours.CrossBatchMemory(getattr(ours, name)(), 8, 50, miner)
    their_memory = theirs.CrossBatchMemory(getattr(theirs, name)(), 8, 50, miner)
    for x, labels in batches(9):
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = our_memory(leaf, labels), their_memory(other, labels)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        gradients = (torch.autograd.grad(value, x)[0] for value, x in ((got, leaf), (want, other)))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_memory_is_a_ring():
    memory = ours.CrossBatchMemory(ours.ContrastiveLoss(reduction="none"), 8, 40)
    kept = []
    for x, labels in batches(6, seed=1):
        kept = (kept + list(zip(x, labels)))[-40:]
        value = memory(x, labels)
        refs = torch.stack([row for row, _ in kept]), torch.stack([label for _, label in kept])
        own = torch.arange(len(kept) - 16, len(kept))
        torch.testing.assert_close(value, FP.contrastive_loss(x, labels, *refs, reduction="none", exclude_self=own))


def test_memory_goes_on_from_its_state():
    miner = miners.TripletMarginMiner()
    for mine in (None, miner):
        memory = ours.CrossBatchMemory(ours.TripletMarginLoss(), 8, 40, mine)
        steps = batches(8, seed=2)
        for step in steps[:4]:
            memory(*step)
        file = io.BytesIO()
        torch.save(memory.state_dict(), file)
        file.seek(0)
        resumed = ours.CrossBatchMemory(ours.TripletMarginLoss(), 8, 40, mine)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        copied = copy.deepcopy(memory)
        for step in steps[4:]:
            want = memory(*step)
            assert torch.equal(resumed(*step), want) and torch.equal(copied(*step), want)
        memory.reset_queue()
        assert torch.equal(memory(*steps[0]), ours.CrossBatchMemory(ours.TripletMarginLoss(), 8, 40, mine)(*steps[0]))


def test_pairs_of_the_batch_besides_the_memory():
    """Row numbers of the batch, also where the ring has moved; triplets stay triplets."""
    (first, first_labels), (x, labels) = batches(2, seed=3)
    triplet = torch.tensor([0]), torch.tensor([5]), torch.tensor([9])

    def hard(*arguments):
        return torch.tensor([1]), torch.tensor([2]), torch.tensor([3])

    memory = ours.CrossBatchMemory(ours.TripletMarginLoss(reduction="sum"), 8, 40, hard)
    memory(first, first_labels)
    both = torch.cat([first, x])
    want = ours.TripletMarginLoss(reduction="sum")(
        x, None, (torch.tensor([1, 0]), torch.tensor([2, 21]), torch.tensor([3, 25])), ref_emb=both
    )
    torch.testing.assert_close(memory(x, labels, triplet), want)


def test_enqueue_mask():
    x, labels = batches(1, seed=4)[0]
    mask = torch.arange(16) % 3 == 0
    memory = ours.CrossBatchMemory(ours.SupConLoss(), 8, 40)
    want = FP.supcon_loss(x[~mask], labels[~mask], x[mask], labels[mask])
    torch.testing.assert_close(memory(x, labels, enqueue_mask=mask), want)
    assert (memory.queue_idx, memory.filled) == (6, 6)


def test_bad_batches():
    memory, labels = ours.CrossBatchMemory(ours.SupConLoss(), 8, 10), torch.arange(4)
    with pytest.raises(ValueError, match="embedding_size = 8"):
        memory(torch.ones(4, 7), labels)
    with pytest.raises(ValueError, match="memory_size = 10"):
        memory(torch.ones(11, 8), torch.arange(11))
    with pytest.raises(ValueError, match="enqueue_mask must be booleans"):
        memory(torch.ones(4, 8), labels, enqueue_mask=labels)
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        memory(torch.ones(4, 8), labels, (labels,) * 3, enqueue_mask=labels > 1)
    assert memory.filled == 0
