"""The triplet losses over all triplets, the semi-hard ones and those of FaceNet: against the formula, triplet by
triplet."""

import math
from functools import partial

import dense
import pytest
import torch
import torch.nn.functional as F
from covering import covering
from support import (
    REDUCTIONS,
    cast,
    class_labels,
    embeddings,
    equally_hard,
    error,
    first_of_the_hardest,
    growth_of_memory,
    needs_cpu_kernels,
    value_and_gradients,
)

import fastpair.functional as FP
from fastpair.metrics import SIMILARITIES
from fastpair.numerics import unit_rows

pytestmark = needs_cpu_kernels

METRICS = ("cosine", "dot", "unit_euclidean", "unit_sqeuclidean", "euclidean", "sqeuclidean")
SMOOTH, CHOSEN = {"hinge": False, "smooth": True}, ("all", "semihard", "facenet")
kinds = covering(chosen=CHOSEN, smooth=SMOOTH)


def labels_of(pattern, n, generator):
    """ "halves": two classes; "sevenths": seven; else as for the other losses."""
    classes = {"halves": 2, "sevenths": 7}.get(pattern)
    if classes is None:
        return class_labels(pattern, n, generator)
    return torch.arange(n)[torch.randperm(n, generator=generator)] % classes


def random_batch(n, d, pattern, m=None, seed=0):
    generator = torch.Generator().manual_seed(1000 * n + d + seed)
    inputs = {"embeddings": embeddings(n, d, generator), "labels": labels_of(pattern, n, generator)}
    if m is not None:
        inputs |= {"ref_emb": embeddings(m, d, generator), "ref_labels": labels_of(pattern, m, generator)}
    return inputs


def trained(inputs):
    return tuple(name for name in ("embeddings", "ref_emb") if name in inputs)


def settings_of(smooth, chosen, distance, margin=0.2):
    return {"smooth_loss": smooth, "triplets_per_anchor": chosen, "distance": distance, "margin": margin}


class Dense:
    """Values and gradients in float64, one anchor's triplets at a time, so that a batch of 700 fits."""

    def __init__(
        self,
        embeddings,
        labels,
        ref_emb=None,
        ref_labels=None,
        exclude_self=None,
        *,
        smooth_loss,
        triplets_per_anchor,
        distance,
        margin,
    ):
        self.sides = (
            {"embeddings": embeddings, "ref_emb": ref_emb} if ref_emb is not None else {"embeddings": embeddings}
        )
        self.sides = {name: t.detach().double().requires_grad_() for name, t in self.sides.items()}
        x, y = self.sides["embeddings"], self.sides.get("ref_emb", self.sides["embeddings"])
        own = torch.arange(len(x)) if ref_emb is None else exclude_self
        if distance == "cosine" or distance.startswith("unit_"):
            x, y = unit_rows(x), unit_rows(y)
        metric = {"cosine": "dot"}.get(distance, distance.removeprefix("unit_"))
        self.d = dense.scores(x, y, metric) * (-1 if distance in SIMILARITIES else 1)
        self.slopes, losses, self.count = torch.zeros_like(self.d), [], 0
        for i, row in enumerate(self.d.detach()):
            same = labels[i] == (labels if ref_labels is None else ref_labels)
            pair = torch.ones_like(same) if own is None else own[i] != torch.arange(len(y))
            positive, negative = same & pair, ~same & pair
            gap = row[positive][:, None] - row[negative][None, :]
            x = gap + margin
            terms, slopes = (F.softplus(x, threshold=100), x.sigmoid()) if smooth_loss else (x.relu(), (x > 0).double())
            if triplets_per_anchor == "semihard":
                chosen = (gap < 0) & (x > 0)
                terms, slopes = terms * chosen, slopes * chosen
            if triplets_per_anchor == "facenet":
                chosen = self.nearest_farther(row[positive], row[negative])
                terms, slopes = terms * chosen, slopes * chosen
            losses.append(terms.sum())
            self.count += int((chosen if triplets_per_anchor == "facenet" else terms != 0).sum())
            self.slopes[i, positive] = slopes.sum(1)
            self.slopes[i, negative] = -slopes.sum(0)
        self.losses = torch.stack(losses)

    @staticmethod
    def nearest_farther(d_p, d_n):
        """Of each positive the nearest negative that is farther, or else the farthest: a mask (P, N)."""
        if not len(d_n):
            return torch.zeros(len(d_p), 0, dtype=torch.bool)
        farther = d_n > d_p[:, None]
        nearest = torch.where(farther.any(1), torch.where(farther, d_n, torch.inf).argmin(1), d_n.argmax())
        return F.one_hot(nearest, len(d_n)).bool()

    def __call__(self, reduction, incoming):
        count = max(self.count, 1) if reduction == "mean" else 1
        weights = torch.ones_like(self.losses) * (incoming[0] if reduction == "totals" else incoming).double() / count
        gradients = torch.autograd.grad(
            (self.d * weights[:, None] * self.slopes).sum(), list(self.sides.values()), retain_graph=True
        )
        value = self.losses if reduction == "none" else self.losses.sum() / count
        if reduction == "totals":
            value = torch.stack([value, torch.tensor(float(self.count)), *torch.zeros(2)])
        return {"value": value, **dict(zip(self.sides, gradients))}


def assert_matches(inputs, tolerance=1e-10, *, reductions=("mean",), results=None, copies=1, **settings):
    """``results``: what of the value and the gradients is compared; default: all. ``copies``: how often the batch
    repeats its rows, whose gradients count together."""
    truth = Dense(**inputs, **settings)
    for reduction in reductions:
        shape = {"none": (len(inputs["labels"]),), "totals": (4,)}.get(reduction, ())
        incoming = torch.randn(shape, dtype=torch.float64)
        run = partial(FP.triplet_margin_loss, backend="cpu", reduction=reduction, **settings)
        got = value_and_gradients(run, inputs, trained(inputs), incoming.to(inputs["embeddings"].dtype))
        want = truth(reduction, incoming.to(inputs["embeddings"].dtype))
        for name in results or want:
            one, other = got[name], want[name]
            if name == "embeddings":
                one, other = (gradient.unflatten(0, (copies, -1)).sum(0) for gradient in (one, other))
            found = error(one, other)
            assert found <= tolerance, f"{reduction} {name}: error {found:.2g}, allowed {tolerance:.2g}"


SHAPES = [
    (1, None, "few"),
    (2, None, "one"),
    (40, None, "one"),  # no negatives
    (40, None, "distinct"),  # no positives
    (63, 65, "few"),
    (131, None, "pairs"),
    (130, None, "halves"),  # positives and negatives enough to be sorted
    (30, 150, "halves"),
    (150, 20, "few"),
]


@covering(shape=SHAPES, distance=METRICS, chosen=CHOSEN, smooth=SMOOTH, reduction=(*REDUCTIONS, "totals"))
def test_every_reduction(shape, distance, chosen, smooth, reduction):
    n, m, pattern = shape
    inputs = random_batch(n, 6, pattern, m)
    assert_matches(inputs, reductions=(reduction,), **settings_of(smooth, chosen, distance))


@covering(
    batch=[
        (300, None, "pairs", "cosine"),
        (380, None, "sevenths", "unit_euclidean"),
        (150, 270, "halves", "euclidean"),
    ],
    chosen=CHOSEN,
    smooth=SMOOTH,
)
def test_larger_batches(batch, chosen, smooth):
    n, m, pattern, distance = batch
    inputs = random_batch(n, 9, pattern, m)
    assert_matches(inputs, **settings_of(smooth, chosen, distance, 0.1))


@covering(distance=METRICS, margin=[0.0, -0.2, 5.0], chosen=CHOSEN, smooth=SMOOTH, pattern=["few", "halves"])
def test_margins(distance, margin, chosen, smooth, pattern):
    inputs = random_batch(110, 4, pattern)
    assert_matches(inputs, **settings_of(smooth, chosen, distance, margin))


@covering(distance=METRICS, chosen=CHOSEN, smooth=SMOOTH, sides=[(24, None), (20, 30)], reduction=REDUCTIONS)
def test_float32(distance, chosen, smooth, sides, reduction):
    """Few enough triplets that none lies on a kink."""
    n, m = sides
    inputs = random_batch(n, 12, "pairs", m)
    settings = settings_of(smooth, chosen, distance, 0.2)
    assert_matches(cast(inputs, torch.float32), 1e-5, reductions=(reduction,), **settings)


@covering(
    batch=[(200, None, "halves"), (260, None, "few"), (90, 130, "few"), (64, None, "pairs")],
    margin=[1.0, 2.0, 0.0],
    chosen=CHOSEN,
    smooth=SMOOTH,
    distance=["dot", "sqeuclidean"],
    dtype=[torch.float32, torch.float64],
)
def test_ties(batch, margin, chosen, smooth, distance, dtype):
    """Embeddings with small integers, each twice: distances that are equal, and those that the margin just separates,
    are so exactly. A triplet on the edge has hinge loss zero, and it is not semi-hard; of FaceNet's negatives any of
    equally far ones may be chosen."""
    n, m, pattern = batch
    results = ("value",) if chosen == "facenet" else None
    inputs = random_batch(n, 3, pattern, m)
    for name in trained(inputs):
        inputs[name] = (2 * inputs[name]).round()
        inputs[name][len(inputs[name]) // 2 :] = inputs[name][: (len(inputs[name]) + 1) // 2]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    settings = settings_of(smooth, chosen, distance, margin)
    assert_matches(cast(inputs, dtype), tolerance, results=results, **settings)


HARD = {"triplets_per_anchor": "hard", "distance": "sqeuclidean", "margin": 0.3, "reduction": "sum"}


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_of_equally_hard_pairs(count, threads):
    """In the order of the labels, however the matrix is cut into tiles."""
    threads(count)
    inputs = equally_hard(200)
    got = value_and_gradients(partial(FP.triplet_margin_loss, **HARD), inputs, ("embeddings",))
    want = value_and_gradients(partial(first_of_the_hardest, margin=0.3), inputs, ("embeddings",))
    assert all(error(got[name], want[name]) <= 1e-12 for name in want)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("n", "pattern"), [(30, "pairs"), (140, "halves")])
def test_one_of_equally_far_negatives(n, pattern, backend, smooth):
    """Every negative twice: the gradient of the two together is that of the one alone."""
    inputs = random_batch(n, 4, pattern, n)
    labels, ref_labels = inputs.pop("labels"), inputs.pop("ref_labels")
    pairs = torch.where(labels[:, None] == ref_labels[None, :], 1, -1)
    run = partial(FP.triplet_margin_loss, labels=None, backend=backend, **settings_of(smooth, "facenet", "euclidean"))
    once = value_and_gradients(partial(run, pairs=pairs), inputs, trained(inputs))
    pairs = torch.cat([pairs, pairs.clamp(max=0)], dim=1)  # the copies of positives are no pairs
    inputs["ref_emb"] = inputs["ref_emb"].repeat(2, 1)
    twice = value_and_gradients(partial(run, pairs=pairs), inputs, trained(inputs))
    twice["ref_emb"] = twice["ref_emb"][:n] + twice["ref_emb"][n:]
    assert max(error(twice[name], once[name]) for name in once) <= 1e-12


def test_a_positive_as_far_as_a_negative():
    """It is not farther: the next one counts or, where there is none, this one, the farthest."""
    x, y = torch.zeros(1, 1), torch.tensor([[1.0], [-1.0], [3.0], [2.0]])
    run = partial(FP.triplet_margin_loss, x, torch.tensor([0]), distance="euclidean", triplets_per_anchor="facenet")
    for backend in ("cpu", "reference"):
        assert run(y, torch.tensor([0, 1, 1, 1]), margin=1.5, backend=backend) == 0.5
        assert run(y[:2], torch.tensor([0, 1]), margin=1.5, backend=backend) == 1.5


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_mean_over_the_triplets_of_facenet(backend):
    """Those whose loss is zero count, but not positives of anchors without negatives."""
    x, labels = torch.tensor([[0.0], [1.0], [5.0], [50.0]]), torch.tensor([0, 0, 1, 1])
    run = partial(FP.triplet_margin_loss, triplets_per_anchor="facenet", distance="euclidean", backend=backend)
    # The anchor at 5: positive at distance 45, the farthest negative at 5.
    assert run(x, labels, margin=1.0) == (45 - 5 + 1) / 4
    assert run(x, torch.zeros(4, dtype=torch.int64)) == 0
    assert run(x, None, pairs=torch.tensor([[0, 1, -1, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]), margin=5.0) == 1.0


@covering(distance=METRICS, chosen=CHOSEN, smooth=SMOOTH)
def test_duplicates(distance, chosen, smooth):
    """Distances of exactly zero."""
    inputs = random_batch(120, 5, "few")
    inputs["embeddings"][60:] = inputs["embeddings"][:60]
    if chosen == "all":
        inputs["embeddings"][7] = 0
    else:  # it is rounding that says which of two equal rows, or which row from a zero row, is the nearer one
        inputs["labels"][60:] = inputs["labels"][:60]
    assert_matches(inputs, copies=1 if chosen == "all" else 2, **settings_of(smooth, chosen, distance, 0.25))


@covering(
    batch=[(60, 90, "few"), (150, 170, "halves")],
    chosen=CHOSEN,
    smooth=SMOOTH,
    distance=["cosine", "euclidean"],
    reduction=REDUCTIONS,
)
def test_own_copies_among_the_references(batch, chosen, smooth, distance, reduction):
    """They count for nothing, wherever they lie and of whatever class they are there."""
    n, m, pattern = batch
    inputs = random_batch(n, 7, pattern, m)
    own = torch.randperm(m)[:n]
    inputs["ref_emb"][own] = inputs["embeddings"]
    inputs["ref_labels"][own[::2]] = inputs["labels"][::2]
    own[::5] = -1
    inputs["exclude_self"] = own
    assert_matches(inputs, reductions=(reduction,), **settings_of(smooth, chosen, distance, 0.2))


def test_the_batch_as_its_own_references():
    inputs = random_batch(90, 6, "few")
    again = inputs | {"ref_emb": inputs["embeddings"].clone(), "ref_labels": inputs["labels"]}
    settings = {"margin": 0.2, "distance": "euclidean"}
    whole = value_and_gradients(partial(FP.triplet_margin_loss, **settings), inputs, ("embeddings",))
    sides = value_and_gradients(
        partial(FP.triplet_margin_loss, exclude_self=True, **settings), again, ("embeddings", "ref_emb")
    )
    assert error(sides["value"], whole["value"]) <= 1e-12
    assert error(sides["embeddings"] + sides["ref_emb"], whole["embeddings"]) <= 1e-12
    for name in trained(again):
        alone = value_and_gradients(partial(FP.triplet_margin_loss, exclude_self=True, **settings), again, (name,))
        assert torch.equal(alone[name], sides[name])


@covering(
    distance=METRICS,
    bad=[math.nan, math.inf, -math.inf],
    batch=[(8, "one"), (40, "few"), (140, "halves")],
    chosen=CHOSEN,
    smooth=SMOOTH,
    reduction=REDUCTIONS,
)
def test_bad_embeddings_show_in_the_loss(distance, bad, batch, chosen, smooth, reduction):
    n, pattern = batch
    inputs = cast(random_batch(n, 5, pattern), torch.float32)
    if pattern == "one":
        inputs["labels"][: n // 2] = 1
    inputs["embeddings"][n // 2 + 1, 2] = bad
    run = partial(FP.triplet_margin_loss, smooth_loss=smooth, triplets_per_anchor=chosen, distance=distance)
    result = value_and_gradients(partial(run, reduction=reduction), inputs, ("embeddings",))
    assert not result["value"].isfinite().all()
    assert not result["embeddings"].isfinite().all()
    if math.isnan(bad):
        want = run(**inputs, reduction=reduction, backend="reference")
        assert torch.equal(result["value"].isnan(), want.isnan())


@kinds
def test_infinite_distances(smooth, chosen):
    """Rows so far out that float32 has no number for their squared distance: losses as the formula has them."""
    for pattern in ("few", "halves"):
        inputs = cast(random_batch(130, 5, pattern), torch.float32)
        inputs["embeddings"][11] = 1e19
        inputs["embeddings"][70] = -1e19
        run = partial(FP.triplet_margin_loss, reduction="none", **settings_of(smooth, chosen, "sqeuclidean"))
        got, want = (run(**inputs, backend=backend) for backend in ("cpu", "reference"))
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.isinf(), want.isinf())


@kinds
def test_the_others_stay_finite_beside_a_bad_anchor(smooth, chosen):
    inputs = cast(random_batch(70, 5, "few", 60), torch.float32)
    run = partial(FP.triplet_margin_loss, smooth_loss=smooth, triplets_per_anchor=chosen, reduction="none")
    clean = run(**inputs)
    inputs["embeddings"][50, 2] = math.nan
    value = run(**inputs)
    assert value[50].isnan()
    others = torch.arange(70) != 50
    torch.testing.assert_close(value[others], clean[others])


@covering(chosen=CHOSEN, smooth=SMOOTH, pattern=["pairs", "halves"], references=[False, True])
def test_same_bits_from_run_to_run(chosen, smooth, pattern, references, threads):
    run = partial(FP.triplet_margin_loss, smooth_loss=smooth, triplets_per_anchor=chosen)
    inputs = cast(random_batch(301, 19, pattern, 290 if references else None), torch.float32)
    first = value_and_gradients(run, inputs, trained(inputs))
    for _ in range(3):
        again = value_and_gradients(run, inputs, trained(inputs))
        assert all(torch.equal(again[name], first[name]) for name in first)
    # With few triplets no rounding takes one to the other side of a margin.
    inputs = cast(random_batch(24, 19, "pairs"), torch.float32)
    threads(1)
    one = value_and_gradients(run, inputs, trained(inputs))
    threads(3)
    three = value_and_gradients(run, inputs, trained(inputs))
    assert max(error(three[name], one[name].double()) for name in one) <= 1e-6


@pytest.mark.parametrize("smooth", [False, True])
def test_more_references_than_a_panel_has_room_for(smooth, small_squares):
    """Several panels: the whole batch against itself in one call, and in three with a third of the anchors each."""
    inputs = random_batch(330, 3, "pairs")
    run = partial(FP.triplet_margin_loss, smooth_loss=smooth, margin=0.2, distance="sqeuclidean", reduction="sum")
    got = value_and_gradients(run, inputs, ("embeddings",))
    value, gradient = 0, torch.zeros_like(inputs["embeddings"])
    for first in range(0, 330, 110):
        rows = torch.arange(first, first + 110)
        part = {"embeddings": inputs["embeddings"][rows], "labels": inputs["labels"][rows]}
        part |= {"ref_emb": inputs["embeddings"], "ref_labels": inputs["labels"]}
        got_part = value_and_gradients(partial(run, exclude_self=rows), part, ("embeddings", "ref_emb"))
        value += got_part["value"]
        gradient += got_part["ref_emb"]
        gradient[rows] += got_part["embeddings"]
    assert error(got["value"], value) <= 1e-10
    assert error(got["embeddings"], gradient) <= 1e-10


def test_memory_stays_small(forks):
    """1.4e8 distances, of which every anchor takes part in 4e4 triplets."""
    setup = """
import torch, fastpair.functional as FP
x, labels = torch.randn(12_000, 16).requires_grad_(), torch.arange(12_000) // 4
"""
    call = "FP.triplet_margin_loss({}).backward()"
    grown = growth_of_memory(forks, setup, call.format("x[:300], labels[:300]"), call.format("x, labels"))
    assert grown < 100  # MiB; the distances alone would be 550


# ---- other libraries


@covering(
    seed=range(4),
    distance=["unit_euclidean", "cosine"],
    references=[False, True],
    smooth=SMOOTH,
    chosen=["all", "semihard"],
)
def test_against_pytorch_metric_learning(seed, distance, references, smooth, chosen):
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    n, m = 60 + 10 * seed, 45
    inputs = random_batch(n, 8, "few" if seed % 2 else "pairs", m if references else None, seed)
    theirs = distances.LpDistance() if distance == "unit_euclidean" else distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(margin=0.2, smooth_loss=smooth, distance=theirs)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard", distance=theirs)

    def want(**inputs):
        found = miner(**{k: t.detach() for k, t in inputs.items()}) if chosen == "semihard" else None
        sides = {k: inputs[k] for k in ("ref_emb", "ref_labels") if k in inputs}
        return loss(inputs["embeddings"], inputs["labels"], found, **sides)

    ours = partial(
        FP.triplet_margin_loss, margin=0.2, smooth_loss=smooth, triplets_per_anchor=chosen, distance=distance
    )
    got = value_and_gradients(ours, inputs, trained(inputs))
    other = value_and_gradients(want, inputs, trained(inputs))
    assert max(error(got[name], other[name]) for name in other) <= 1e-9
