"""pytorch-metric-learning where its definitions agree: loss and gradients over random sizes, labels and parameters."""

import dense
import pytest
import torch
from covering import covering
from support import error, needs_cpu_kernels, value_and_gradients

from fastpair import losses as ours

distances = pytest.importorskip("pytorch_metric_learning.distances")
theirs = pytest.importorskip("pytorch_metric_learning.losses")
miners = pytest.importorskip("pytorch_metric_learning.miners")
pytestmark = needs_cpu_kernels

DISTANCES = {
    "euclidean": lambda: distances.LpDistance(normalize_embeddings=False),
    "sqeuclidean": lambda: distances.LpDistance(normalize_embeddings=False, power=2),
    "unit_euclidean": distances.LpDistance,
    "unit_sqeuclidean": lambda: distances.LpDistance(power=2),
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
}


def random_batch(seed, references, classes=None):
    generator = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(8, limit, (), generator=generator)) for limit in (120, 120, 40))
    classes = classes or int(torch.randint(2, 9, (), generator=generator))
    # Every class twice at least, on both sides: means over anchors are over all of them.
    labels = torch.cat(
        [torch.arange(classes), torch.arange(classes), torch.randint(classes, (n,), generator=generator)]
    )
    inputs = {"embeddings": torch.randn(len(labels), d, generator=generator, dtype=torch.float64), "labels": labels}
    if references:
        ref_labels = torch.cat([torch.arange(classes), torch.randint(classes, (m,), generator=generator)])
        inputs["ref_emb"] = torch.randn(len(ref_labels), d, generator=generator, dtype=torch.float64)
        inputs["ref_labels"] = ref_labels
    return inputs, torch.rand(3, generator=generator).tolist()


def assert_agree(our_loss, their_loss, inputs, trained):
    for dtype in (torch.float64, torch.float32):
        typed = {k: t.to(dtype) if t.is_floating_point() else t for k, t in inputs.items()}
        got = value_and_gradients(our_loss, typed, trained)
        # Theirs in float64 only: their float32 loses more digits than are compared here.
        want = value_and_gradients(
            their_loss, {k: t.double() if k in trained else t for k, t in typed.items()}, trained
        )
        for name in want:
            assert error(got[name], want[name]) <= 1e-5, (name, dtype)


@covering(distance=DISTANCES.keys(), seed=range(6), references=[False, True])
def test_contrastive_loss(distance, seed, references):
    inputs, (low, high, _) = random_batch(seed, references)
    for name in ("embeddings", "ref_emb"):
        if name in inputs:
            inputs[name] /= inputs[name].shape[1] ** 0.5
    low, high = min(low, high), max(low, high)
    margins = {"pos_margin": low, "neg_margin": 1 + high}
    if distance in ("cosine", "dot"):
        margins = {"pos_margin": high, "neg_margin": low - 0.5}
    # Rounding must not take a score to the other side of a margin.
    scores = dense.scores(inputs["embeddings"], inputs.get("ref_emb", inputs["embeddings"]), distance)
    for name in margins:
        while ((scores - margins[name]).abs() < 1e-6).any():
            margins[name] += 3e-6
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)
    their_loss = theirs.ContrastiveLoss(distance=DISTANCES[distance](), **margins)
    assert_agree(ours.ContrastiveLoss(distance=distance, **margins), their_loss, inputs, trained)


# Settings from three random numbers, with the distances that both take.
PAIR_LOSSES = {
    "NCALoss": (lambda a, b, c: {"softmax_scale": 1 + 5 * a}, ("unit_sqeuclidean", "cosine")),
    "SupConLoss": (lambda a, b, c: {"temperature": 0.05 + a}, ("cosine", "unit_euclidean", "dot")),
    "NTXentLoss": (lambda a, b, c: {"temperature": 0.1 + a}, ("cosine", "unit_sqeuclidean")),
    "MultiSimilarityLoss": (
        lambda a, b, c: {"alpha": 1 + 3 * a, "beta": 5 + 20 * b, "base": c},
        ("cosine", "unit_euclidean"),
    ),
    "CircleLoss": (lambda a, b, c: {"m": 0.5 * a, "gamma": 2 + 10 * b}, ("cosine",)),
    "GeneralizedLiftedStructureLoss": (
        lambda a, b, c: {"neg_margin": a, "pos_margin": b},
        ("unit_euclidean", "cosine"),
    ),
    "TripletMarginLoss": (
        lambda a, b, c: {"margin": a, "smooth_loss": b > 0.5},
        ("unit_euclidean", "cosine", "sqeuclidean"),
    ),
}


@covering(name=PAIR_LOSSES.keys(), seed=range(4), references=[False, True])
def test_pair_losses(name, seed, references):
    # Theirs builds a matrix of positive by negative pairs, or a list of all triplets.
    inputs, numbers = random_batch(seed, references, classes=6)
    if name in ("NTXentLoss", "TripletMarginLoss"):
        inputs = {k: t[:40] for k, t in inputs.items()}
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)
    make, takes = PAIR_LOSSES[name]
    settings = make(*numbers) if seed else {}
    if seed == 0:
        assert_agree(getattr(ours, name)(), getattr(theirs, name)(), inputs, trained)
        return
    for distance in takes:
        their_loss = getattr(theirs, name)(distance=DISTANCES[distance](), **settings)
        assert_agree(getattr(ours, name)(distance=distance, **settings), their_loss, inputs, trained)


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_mined_triplets_without_a_miner(references, seed):
    inputs, (margin, *_) = random_batch(seed, references)
    inputs = {k: t[:60] for k, t in inputs.items()}
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)

    def after(miner):
        def run(embeddings, labels, ref_emb=None, ref_labels=None):
            refs = (ref_emb, ref_labels) if references else ()
            triplets = miner(embeddings, labels, *refs)
            return theirs.TripletMarginLoss(margin)(embeddings, labels, triplets, *refs)

        return run

    hard = ours.TripletMarginLoss(margin, triplets_per_anchor="hard")
    assert_agree(hard, after(miners.BatchHardMiner()), inputs, trained)
    semihard = ours.TripletMarginLoss(margin, triplets_per_anchor="semihard")
    assert_agree(semihard, after(miners.TripletMarginMiner(margin, "semihard")), inputs, trained)


CLASS_LOSSES = {
    "NormalizedSoftmaxLoss": lambda a, b: {"temperature": 0.05 + a},
    "CosFaceLoss": lambda a, b: {"margin": a, "scale": 5 + 30 * b},
    "ArcFaceLoss": lambda a, b: {"margin": 5 + 40 * a, "scale": 5 + 30 * b},
    "ProxyNCALoss": lambda a, b: {"softmax_scale": 1 + 9 * a},
    "ProxyAnchorLoss": lambda a, b: {"margin": a, "alpha": 5 + 20 * b},
}


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_class_losses(name, seed):
    inputs, (a, b, _) = random_batch(seed, False)
    classes, d = int(inputs["labels"].max()) + 3, inputs["embeddings"].shape[1]
    settings = CLASS_LOSSES[name](a, b) if seed else {}
    their_loss, our_loss = getattr(theirs, name)(classes, d, **settings), getattr(ours, name)(classes, d, **settings)
    transposed = hasattr(their_loss, "W")
    inputs["vectors"] = getattr(our_loss, our_loss.vectors).detach().double()

    def run_ours(vectors, **batch):
        return our_loss._function(**batch, **{our_loss.vectors: vectors}, **our_loss.settings())

    def run_theirs(vectors, **batch):
        their_loss.double()
        parameter = "W" if transposed else "proxies"
        delattr(their_loss, parameter)
        setattr(their_loss, parameter, vectors.T if transposed else vectors)
        their_loss.cast_types = lambda dtype, device: None
        return their_loss(**batch)

    assert_agree(run_ours, run_theirs, inputs, ("embeddings", "vectors"))
