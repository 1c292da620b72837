"""fastpair.patch("pytorch_metric_learning"): its losses patched against not patched, with its distances, reducers,
regularizers and wrappers."""

import pickle

import pytest
import torch
from patched import assert_same, counted
from test_against_pml import DISTANCES as OWN_DISTANCES

import fastpair

theirs = pytest.importorskip("pytorch_metric_learning.losses")
distances = pytest.importorskip("pytorch_metric_learning.distances")
miners = pytest.importorskip("pytorch_metric_learning.miners")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")
regularizers = pytest.importorskip("pytorch_metric_learning.regularizers")

NAME = "pytorch_metric_learning"
DISTANCES = {**OWN_DISTANCES, "normalised dot": distances.DotProductSimilarity}
# The settings under test, and the reducers with which fastpair computes them beside the default one.
ELEMENTS = ("MeanReducer", "SumReducer", "AvgNonZeroReducer", "weighted", "threshold")
LOSSES = {
    "ContrastiveLoss": ({"pos_margin": 0.2, "neg_margin": 0.9}, ("AvgNonZeroReducer", "SumReducer")),
    "SupConLoss": ({"temperature": 0.3}, ELEMENTS),
    "NTXentLoss": ({"temperature": 0.4}, ("MeanReducer", "SumReducer")),
    "NCALoss": ({"softmax_scale": 2.0}, ("MeanReducer", "SumReducer")),
    "MultiSimilarityLoss": ({"alpha": 1.5, "beta": 9.0, "base": 0.3}, ELEMENTS),
    "CircleLoss": ({"m": 0.3, "gamma": 8.0}, ELEMENTS),
    "GeneralizedLiftedStructureLoss": ({"neg_margin": 0.8, "pos_margin": 0.1}, ELEMENTS),
    "TripletMarginLoss": ({"margin": 0.2}, ("AvgNonZeroReducer", "SumReducer")),
}
REDUCERS = {
    "MeanReducer": reducers.MeanReducer,
    "SumReducer": reducers.SumReducer,
    "AvgNonZeroReducer": reducers.AvgNonZeroReducer,
    "weighted": lambda: reducers.ClassWeightedReducer(torch.rand(6, generator=torch.Generator().manual_seed(5))),
    "threshold": lambda: reducers.ThresholdReducer(low=0.1, high=5.0),
    "PerAnchorReducer": reducers.PerAnchorReducer,
    "DoNothingReducer": reducers.DoNothingReducer,
}


def title(loss):
    return f"{loss}.compute_loss"


def batch(n=32, d=6, dtype=torch.float64, classes=6):
    # Every class at least twice.
    labels = torch.cat([torch.arange(classes), torch.arange(classes), torch.randint(classes, (n - 2 * classes,))])
    return torch.randn(n, d, dtype=dtype).div(d**0.5).requires_grad_(), labels


# The definition of circle loss has cosines.
WITH_DISTANCES = [(name, of) for name in LOSSES for of in DISTANCES if name != "CircleLoss" or of == "cosine"]


@pytest.mark.parametrize(("name", "distance"), WITH_DISTANCES)
def test_distances_and_references(name, distance):
    settings, _ = LOSSES[name]
    if name == "NTXentLoss" and distance == "sqeuclidean":
        settings = {"temperature": 2.0}
    loss = getattr(theirs, name)(distance=DISTANCES[distance](), **settings)
    (x, labels), (y, ref_labels) = batch(), batch(40)
    assert_same(NAME, title(name), lambda: loss(x, labels), [x])
    assert_same(NAME, title(name), lambda: loss(x, labels, ref_emb=y, ref_labels=ref_labels), [x, y])


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_in_float32(name):
    (x, labels), (y, ref_labels) = batch(dtype=torch.float32), batch(40, dtype=torch.float32)
    loss = getattr(theirs, name)(**LOSSES[name][0])
    assert_same(NAME, title(name), lambda: loss(x, labels), [x])
    assert_same(NAME, title(name), lambda: loss(x, labels, ref_emb=y, ref_labels=ref_labels), [x, y])


@pytest.mark.parametrize("name", LOSSES)
def test_which_pairs_are_a_sample_with_itself(name):
    """There the labels say it, where they are the very tensor, or for NCA the embeddings."""
    settings, _ = LOSSES[name]
    (x, labels), (y, _) = batch(), batch()
    loss = getattr(theirs, name)(**settings)
    assert_same(NAME, title(name), lambda: loss(x, labels, ref_emb=x, ref_labels=labels), [x])
    assert_same(NAME, title(name), lambda: loss(x, labels, ref_emb=x, ref_labels=labels.clone()), [x])
    assert_same(NAME, title(name), lambda: loss(x, labels, ref_emb=y, ref_labels=labels), [x, y])


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_reducers(name, reducer):
    settings, known = LOSSES[name]
    loss = getattr(theirs, name)(reducer=REDUCERS[reducer](), **settings)
    x, labels = batch()

    def run():
        found = loss(x, labels)
        if not isinstance(found, dict):
            return found
        return sum(part["losses"].square().sum() for part in found.values())

    if reducer == "PerAnchorReducer" and name == "TripletMarginLoss":
        with fastpair.patch(NAME), pytest.raises(NotImplementedError):
            loss(x, labels)
        return
    # These two take whatever there is for each anchor.
    known = (*known, "PerAnchorReducer", "DoNothingReducer") if "threshold" in known else known
    assert_same(NAME, title(name), run, [x], None if reducer in known else "reducer")


@pytest.mark.parametrize("name", LOSSES)
def test_regularizers(name):
    settings, _ = LOSSES[name]
    loss = getattr(theirs, name)(
        embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3, **settings
    )
    x, labels = batch()
    assert_same(NAME, title(name), lambda: loss(x, labels), [x])


@pytest.mark.parametrize("smooth", [False, True])
def test_smooth_triplets(smooth):
    x, labels = batch()
    loss = theirs.TripletMarginLoss(smooth_loss=smooth)
    assert_same(NAME, title("TripletMarginLoss"), lambda: loss(x, labels), [x])


def test_wrappers():
    (x, labels), (y, _) = batch(), batch()
    for symmetric in (True, False):
        loss = theirs.SelfSupervisedLoss(theirs.NTXentLoss(), symmetric)
        assert_same(NAME, title("NTXentLoss"), lambda loss=loss: loss(x, y), [x, y])
    both = theirs.MultipleLosses([theirs.SupConLoss(), theirs.ContrastiveLoss()], weights=[1.0, 0.5])
    assert_same(NAME, title("SupConLoss"), lambda: both(x, labels), [x])
    memory = theirs.CrossBatchMemory(theirs.SupConLoss(), 6, 64)

    def remembered():
        memory.reset_queue()
        return memory(x, labels) + memory(y, labels)

    assert_same(NAME, title("SupConLoss"), remembered, [x, y], "memory")
    report = fastpair.patch(NAME, both)
    assert set(report.replaced) == {title("SupConLoss"), title("ContrastiveLoss")}


def test_losses_that_are_derived_from_others():
    assert set(fastpair.patch(NAME, theirs.ProxyNCALoss(5, 6)).replaced) == {title("ProxyNCALoss")}
    subcentres = theirs.SubCenterArcFaceLoss(num_classes=8, embedding_size=6)
    assert "several vectors" in fastpair.patch(NAME, subcentres).kept["SubCenterArcFaceLoss"]
    fastpair.unpatch()
    x, labels = batch(dtype=torch.float32)
    reason = "get_cosine is overridden"
    assert_same(NAME, title("ArcFaceLoss"), lambda: subcentres(x, labels), [x, subcentres.W], reason)


def test_pairs_of_a_miner():
    x, labels = batch()
    pairs = miners.MultiSimilarityMiner()(x, labels)
    loss = theirs.MultiSimilarityLoss()
    assert_same(NAME, title("MultiSimilarityLoss"), lambda: loss(x, labels, pairs), [x], "miner")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: theirs.SupConLoss(distance=distances.SNRDistance()), "distance"),
        (lambda: theirs.SupConLoss(distance=distances.LpDistance(p=1)), "distance"),
        (lambda: theirs.SupConLoss(distance=distances.LpDistance(power=3)), "distance"),
        (lambda: theirs.SupConLoss(temperature=-0.5), "temperature"),
        (lambda: theirs.ContrastiveLoss(neg_margin=-0.5), "margin"),
        (lambda: theirs.ContrastiveLoss(reducer=reducers.MeanReducer()), "reducer"),
        (lambda: theirs.SignalToNoiseRatioContrastiveLoss(), "variances"),
        (lambda: theirs.TripletMarginLoss(swap=True), "swap"),
        (lambda: theirs.TripletMarginLoss(triplets_per_anchor=3), "triplets_per_anchor"),
        (lambda: theirs.SupConLoss(collect_stats=True), "statistics"),
        (lambda: theirs.SupConLoss(distance=distances.CosineSimilarity(collect_stats=True)), "statistics"),
        (lambda: theirs.NPairsLoss(), "one pair a label"),
        (lambda: theirs.NormalizedSoftmaxLoss(5, 6, distance=distances.DotProductSimilarity(power=2)), "distance"),
        (lambda: theirs.ProxyAnchorLoss(5, 6, reducer=reducers.MeanReducer()), "reducer"),
    ],
)
def test_settings_that_stay(make, reason):
    report = fastpair.patch(NAME, make())
    assert len(report.kept) == 1
    assert reason in next(iter(report.kept.values()))
    assert not report.replaced
    assert reason in str(report)


def test_another_method_of_the_object():
    x, labels = batch()
    loss = theirs.SupConLoss()
    loss.loss_method = lambda mat, pairs: loss.mat_based_loss(mat / 2, pairs)
    assert_same(NAME, title("SupConLoss"), lambda: loss(x, labels), [x], "loss_method")
    loss = theirs.ArcFaceLoss(8, 6).double()
    loss.cross_entropy = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    assert_same(NAME, title("ArcFaceLoss"), lambda: loss(x, labels), [x, loss.W], "cross_entropy")


@pytest.mark.parametrize("change", ["_compute_loss", "mat_based_loss"])
def test_a_subclass_of_another_definition(change):
    class Doubled(theirs.SupConLoss):
        pass

    def twice(self, *arguments):
        found = getattr(theirs.SupConLoss, change)(self, *arguments)
        found["loss"]["losses"] = 2 * found["loss"]["losses"]
        return found

    setattr(Doubled, change, twice)
    x, labels = batch()
    loss = Doubled()
    assert_same(NAME, title("SupConLoss"), lambda: loss(x, labels), [x], f"{change} is overridden")


@pytest.mark.parametrize("name", LOSSES)
def test_batches_that_stay(name):
    settings, _ = LOSSES[name]
    loss = getattr(theirs, name)(**settings)
    x, _ = batch()
    label_lists = {"one label": [2] * 6, "distinct": list(range(6)), "one alone": [0, 0, 0, 1, 1, 2]}
    for labels in map(torch.tensor, label_lists.values()):
        # By whomever it is computed.
        want = loss(x[:6], labels)
        with fastpair.patch(NAME):
            torch.testing.assert_close(loss(x[:6], labels), want, equal_nan=True)
    one = torch.tensor([1])
    assert_same(NAME, title(name), lambda: loss(x[:1], one, ref_emb=x[1:2], ref_labels=one.clone()), [x], "three pairs")


# ---- losses on class vectors

CLASSES = {
    "NormalizedSoftmaxLoss": {"temperature": 0.2},
    "CosFaceLoss": {"margin": 0.3, "scale": 9.0},
    "ArcFaceLoss": {"margin": 20.0, "scale": 9.0},
    "ProxyNCALoss": {"softmax_scale": 3.0},
    "ProxyAnchorLoss": {"margin": 0.2, "alpha": 7.0},
}


@pytest.mark.parametrize("reducer", [None, "MeanReducer", "SumReducer", "AvgNonZeroReducer", "weighted"])
@pytest.mark.parametrize("regularized", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_class_losses(name, regularized, reducer):
    kwargs = dict(CLASSES[name])
    if regularized:
        kwargs |= {"weight_regularizer": regularizers.LpRegularizer(), "weight_reg_weight": 0.2}
    if reducer is not None:
        kwargs["reducer"] = REDUCERS[reducer]()
    loss = getattr(theirs, name)(8, 6, **kwargs).double()
    x, labels = batch()
    known = {"ProxyNCALoss": (None, "MeanReducer", "SumReducer"), "ProxyAnchorLoss": (None,)}
    reason = None if reducer in known.get(name, (reducer,)) else "reducer"
    if name == "ProxyAnchorLoss" and (regularized or reducer == "weighted"):
        # A divisor that the regularizer's part lacks; labels[indices] of proxies.
        with fastpair.patch(NAME):
            try:
                got = loss(x, labels)
            except (KeyError, IndexError):
                return
        torch.testing.assert_close(got, loss(x, labels))
        return
    assert_same(NAME, title(name), lambda: loss(x, labels), [x, *loss.parameters()], reason)


@pytest.mark.parametrize("name", CLASSES)
def test_calls_of_class_losses_that_stay(name):
    loss = getattr(theirs, name)(8, 6, **CLASSES[name]).double()
    x, labels = batch()
    pairs = miners.MultiSimilarityMiner()(x, labels)
    assert_same(NAME, title(name), lambda: loss(x, labels, pairs), [x, *loss.parameters()], "weights the samples")
    with counted(NAME, title(name), "references"), pytest.raises(ValueError, match="ref_emb is not supported"):
        loss(x, labels, ref_emb=x.clone(), ref_labels=labels)


def test_state_dicts_and_pickles():
    loss = theirs.ArcFaceLoss(8, 6)
    x, labels = batch(dtype=torch.float32)
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    with fastpair.patch(NAME, loss):
        want = loss(x, labels)
        assert list(loss.state_dict()) == list(before)
        text = pickle.dumps(loss)
    assert b"fastpair" not in text
    torch.testing.assert_close(pickle.loads(text)(x, labels), want)


def trained(loss, steps=10):
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(6, 12, generator=generator)
    values = []
    for _ in range(steps):
        labels = torch.arange(6).repeat(4)
        value = loss(network(centres[labels] + 0.5 * torch.randn(24, 12, generator=generator)), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("name", LOSSES)
def test_training(name):
    loss = getattr(theirs, name)(**LOSSES[name][0])
    want = trained(loss)
    with counted(NAME, title(name), None):
        assert trained(loss) == pytest.approx(want, rel=1e-3)
