"""Objects and checkpoints of pytorch-metric-learning, as its users bring them along."""

import pytest
import torch
from support import error, needs_cpu_kernels
from test_against_pml import DISTANCES

from fastpair import functional
from fastpair import losses as ours

distances = pytest.importorskip("pytorch_metric_learning.distances")
theirs = pytest.importorskip("pytorch_metric_learning.losses")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")
regularizers = pytest.importorskip("pytorch_metric_learning.regularizers")
miners = pytest.importorskip("pytorch_metric_learning.miners")
pytestmark = needs_cpu_kernels

PAIR_LOSSES = (
    "ContrastiveLoss",
    "NCALoss",
    "SupConLoss",
    "NTXentLoss",
    "MultiSimilarityLoss",
    "CircleLoss",
    "GeneralizedLiftedStructureLoss",
    "TripletMarginLoss",
)
CLASS_LOSSES = ("NormalizedSoftmaxLoss", "CosFaceLoss", "ArcFaceLoss", "ProxyNCALoss", "ProxyAnchorLoss")


def random_batch(seed, lone=False):
    """Every anchor has positives and negatives, or with ``lone`` some have no positives."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(12) % 3, torch.arange(3, 15)]) if lone else torch.arange(24) % 4
    return torch.randn(24, 3, generator=generator, dtype=torch.float64), labels


def agree(loss, other, x, labels, **further):
    results = []
    for of in (loss, other):
        leaf = x.clone().requires_grad_()
        value = of(leaf, labels, **further)
        results.append((value, *torch.autograd.grad(value, leaf)))
    return all(error(a, b) <= 1e-9 for a, b in zip(*results))


# ---- distances


@pytest.mark.parametrize("name", DISTANCES)
def test_distances(name):
    x, labels = random_batch(0)
    given = DISTANCES[name]()
    made = {
        ours.SupConLoss: functional.supcon_loss,
        ours.ContrastiveLoss: functional.contrastive_loss,
        ours.TripletMarginLoss: functional.triplet_margin_loss,
    }
    for module, function in made.items():
        loss = module(distance=given)
        assert loss.distance == name
        want = module(distance=name)(x, labels)
        assert torch.equal(loss(x, labels), want)
        assert torch.equal(function(x, labels, distance=given), want)
        loss.distance = given
        assert torch.equal(loss(x, labels), want)
    assert ours.InfoNCELoss(distance=given).distance == name
    want = functional.info_nce_loss(x, x.flip(0), distance=name)
    assert torch.equal(functional.info_nce_loss(x, x.flip(0), distance=given), want)
    custom = ours.CustomPairLoss(lambda s, p: -s, lambda s, p: s, lambda P, N, p: P.sum + N.sum, distance=given)
    assert custom.distance == name


def test_dot_products_are_normalised_as_their_attribute_says():
    assert ours.SupConLoss(distance=distances.DotProductSimilarity()).distance == "cosine"
    assert ours.CircleLoss(distance=distances.CosineSimilarity()).distance == "cosine"
    with pytest.raises(ValueError, match="distance must be one of 'cosine', 'dot', got 'unit_euclidean'"):
        ours.CircleLoss(distance=distances.LpDistance())


OTHER_DISTANCES = {
    "SNRDistance(p=2, power=1, normalize_embeddings=True)": lambda: distances.SNRDistance(),
    "LpDistance(p=1, power=1, normalize_embeddings=True)": lambda: distances.LpDistance(p=1),
    "LpDistance(p=2, power=3, normalize_embeddings=True)": lambda: distances.LpDistance(power=3),
    "CosineSimilarity(p=2, power=2, normalize_embeddings=True)": lambda: distances.CosineSimilarity(power=2),
    "BatchedDistance(p=2, power=1, normalize_embeddings=True)": lambda: distances.BatchedDistance(
        distances.CosineSimilarity()
    ),
}


@pytest.mark.parametrize("shown", OTHER_DISTANCES)
def test_distances_that_have_no_name(shown):
    given = OTHER_DISTANCES[shown]()
    x, labels = random_batch(0)
    calls = [
        lambda: ours.SupConLoss(distance=given),
        lambda: ours.InfoNCELoss(distance=given),
        lambda: functional.contrastive_loss(x, labels, distance=given),
    ]
    for call in calls:
        with pytest.raises(ValueError) as raised:
            call()
        assert str(raised.value).startswith("distance must be one of 'sqeuclidean', 'euclidean', 'unit_sqeuclidean', ")
        assert str(raised.value).endswith(f"got {shown}")


# ---- reducers


REDUCERS = {
    "MeanReducer": reducers.MeanReducer,
    "AvgNonZeroReducer": reducers.AvgNonZeroReducer,
    "ThresholdReducer": lambda: reducers.ThresholdReducer(low=0),
    "SumReducer": reducers.SumReducer,
    "DivisorReducer": reducers.DivisorReducer,
}


def both(name, reducer, **settings):
    if name in PAIR_LOSSES:
        return getattr(ours, name)(reducer=reducer(), **settings), getattr(theirs, name)(reducer=reducer(), **settings)
    loss, other = getattr(ours, name)(17, 3, reducer=reducer()), getattr(theirs, name)(17, 3, reducer=reducer())
    loss.double()
    loss.load_state_dict(other.state_dict())
    return loss, other


@pytest.mark.parametrize("name", [*PAIR_LOSSES, *CLASS_LOSSES])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducers(name, reducer):
    """Those that are taken give the value there."""
    default = type(getattr(theirs, name)(*(() if name in PAIR_LOSSES else (17, 3))).reducer).__name__
    if default == "MultipleReducers":
        default = {"ContrastiveLoss": "AvgNonZeroReducer", "ProxyAnchorLoss": "DivisorReducer"}[name]
    nonzero = ("AvgNonZeroReducer", "ThresholdReducer")
    if not (reducer in ("SumReducer", default) or (reducer in nonzero and default in nonzero)):
        with pytest.raises(ValueError, match=rf"reducer must be SumReducer .* or {default} .*'none', one loss a row"):
            both(name, REDUCERS[reducer])
        return
    loss, other = both(name, REDUCERS[reducer])
    assert loss.reduction == ("sum" if reducer == "SumReducer" else "mean")
    for lone in (False, True):
        # A difference that is documented: what becomes of an anchor without positives.
        if not (lone and name == "GeneralizedLiftedStructureLoss"):
            assert agree(loss, other, *random_batch(3, lone))


@pytest.mark.parametrize(
    "name", ["ContrastiveLoss", "SupConLoss", "CircleLoss", "TripletMarginLoss", "ProxyAnchorLoss"]
)
def test_means_over_everything_are_others(name):
    args = () if name in PAIR_LOSSES else (17, 3)
    loss, other = getattr(ours, name)(*args), getattr(theirs, name)(*args, reducer=reducers.MeanReducer())
    if args:
        loss.double().load_state_dict(other.state_dict())
    assert not agree(loss, other, *random_batch(3, lone=True))


def test_reducers_that_are_none_of_ours():
    given = [
        reducers.DoNothingReducer(),
        reducers.PerAnchorReducer(),
        reducers.ThresholdReducer(low=0.1),
        reducers.ThresholdReducer(low=0, high=1),
        reducers.MultipleReducers({}),
        reducers.ClassWeightedReducer(torch.ones(4)),
        "mean",
    ]
    for reducer in given:
        with pytest.raises(ValueError, match=rf"reducer must be SumReducer .* got {type(reducer).__name__}$"):
            ours.SupConLoss(reducer=reducer)
    with pytest.raises(ValueError, match=r"reducer must be SumReducer \(reduction='sum'\) for this loss"):
        ours.ContrastiveLoss(power=2, reducer=reducers.AvgNonZeroReducer())
    with pytest.raises(ValueError, match="reduction must be left out where reducer is given, got 'sum'"):
        ours.SupConLoss(reduction="sum", reducer=reducers.AvgNonZeroReducer())
    assert ours.SINCERELoss(reducer=reducers.SumReducer()).reduction == "sum"


# ---- regularizers


@pytest.mark.parametrize("name", ["SupConLoss", "ContrastiveLoss", "ProxyAnchorLoss", "ArcFaceLoss"])
@pytest.mark.parametrize(
    "regularizer",
    [regularizers.LpRegularizer(), regularizers.LpRegularizer(p=1, power=2), regularizers.ZeroMeanRegularizer()],
)
def test_regularizers_of_embeddings(name, regularizer):
    args = () if name in PAIR_LOSSES else (17, 3)
    settings = {"embedding_regularizer": regularizer, "embedding_reg_weight": 0.3}
    loss, other = getattr(ours, name)(*args, **settings), getattr(theirs, name)(*args, **settings)
    if args:
        loss.double().load_state_dict(other.state_dict())
    assert agree(loss, other, *random_batch(1))


@pytest.mark.parametrize("name", ["SupConLoss", "ContrastiveLoss"])
def test_regularizers_beside_a_sum(name):
    settings = {"embedding_regularizer": regularizers.LpRegularizer(), "reducer": reducers.SumReducer()}
    assert agree(getattr(ours, name)(**settings), getattr(theirs, name)(**settings), *random_batch(1))


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize(
    "regularizer",
    [
        regularizers.CenterInvariantRegularizer(),
        regularizers.RegularFaceRegularizer(),
        regularizers.SparseCentersRegularizer(6, 3),
        regularizers.LpRegularizer(),
    ],
)
def test_regularizers_of_class_vectors(name, regularizer):
    settings = {"weight_regularizer": regularizer, "weight_reg_weight": 0.3}
    loss, other = getattr(ours, name)(18, 3, **settings).double(), getattr(theirs, name)(18, 3, **settings)
    loss.load_state_dict(other.state_dict())
    x, labels = random_batch(1)
    assert agree(loss, other, x, labels)
    for of in (loss, other):
        of(x, labels).backward()
    transposed = hasattr(other, "W")
    gradient = other.W.grad.T if transposed else other.proxies.grad
    torch.testing.assert_close(getattr(loss, loss.vectors).grad, gradient)


# ---- class vectors


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("classes", [17, 3])
def test_states_of_class_losses(name, classes):
    x, labels = random_batch(2)
    labels = labels % classes
    other = getattr(theirs, name)(classes, 3).double()
    loss = getattr(ours, name)(classes, 3, dtype=torch.float64)
    state = {f"loss.{key}": value for key, value in other.state_dict().items()}
    holder = torch.nn.ModuleDict({"loss": loss})
    assert str(holder.load_state_dict(state)) == "<All keys matched successfully>"
    assert list(state) == ["loss.W"] or list(state) == ["loss.proxies"]  # what was given stays as it was
    assert agree(loss, other, x, labels)
    if hasattr(other, "W"):
        assert torch.equal(loss.W, other.W)
    with pytest.raises(RuntimeError, match="size mismatch"):
        getattr(ours, name)(classes + 1, 3).load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", [name for name in CLASS_LOSSES if name != "ProxyNCALoss"])
def test_logits(name):
    x, _ = random_batch(2)
    other = getattr(theirs, name)(17, 3).double()
    loss = getattr(ours, name)(17, 3, dtype=torch.float64)
    loss.load_state_dict(other.state_dict())
    torch.testing.assert_close(loss.get_logits(x), other.get_logits(x))


# ---- wrappers


def test_their_wrappers_take_our_losses():
    x, labels = random_batch(2)
    views = x, x.flip(0)
    for wrap in (theirs.SelfSupervisedLoss, lambda loss: theirs.MultipleLosses([loss, theirs.SupConLoss()])):
        args = views if wrap is theirs.SelfSupervisedLoss else (x, labels)
        torch.testing.assert_close(wrap(ours.NTXentLoss())(*args), wrap(theirs.NTXentLoss())(*args))
    assert agree(*(theirs.CrossBatchMemory(of.SupConLoss(), 3, 40) for of in (ours, theirs)), x, labels)


# ---- the memory


NAMES = ("embedding_memory", "label_memory", "queue_idx", "curr_batch_idx", "has_been_filled", "memory_size")


def steps(count, seed=0):
    return [random_batch(seed + k) for k in range(count)]


@pytest.mark.parametrize("name", [*PAIR_LOSSES, "TupletMarginLoss", "AngularLoss"])
@pytest.mark.parametrize("miner", [None, miners.MultiSimilarityMiner])
def test_memory_around_their_losses(name, miner):
    settings = {"embedding_size": 3, "memory_size": 40, "miner": miner and miner()}
    memory = ours.CrossBatchMemory(getattr(theirs, name)(), **settings).double()
    other = theirs.CrossBatchMemory(getattr(theirs, name)(), **settings)
    for x, labels in steps(4):
        assert agree(memory, other, x, labels)
        for attribute in (*NAMES, "embedding_size"):
            got, want = getattr(memory, attribute), getattr(other, attribute)
            assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want, attribute
    assert memory.loss and memory.miner is settings["miner"]


def test_memory_around_their_losses_with_a_mask():
    memory = ours.CrossBatchMemory(theirs.SupConLoss(), 3, 40).double()
    other = theirs.CrossBatchMemory(theirs.SupConLoss(), 3, 40)
    for x, labels in steps(3):
        assert agree(memory, other, x, labels, enqueue_mask=torch.arange(24) % 2 == 0)


def test_memory_around_their_losses_leaves_out_ids():
    x, labels = random_batch(0)
    ids = torch.arange(24) // 2
    memories = [ours.CrossBatchMemory(of.SupConLoss(), 3, 40, keep_ids=True).double() for of in (ours, theirs)]
    for x, labels in steps(3):
        one, other = (memory(x, labels, ids=ids) for memory in memories)
        torch.testing.assert_close(one, other)
    assert not torch.isclose(memories[0](x, labels, ids=torch.arange(24)), memories[1](x, labels, ids=ids))


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
def test_states_of_their_memory(batches):
    """48 rows of batches of 24: the memory is full after two."""
    other = theirs.CrossBatchMemory(theirs.SupConLoss(), 3, 48).double()
    memory = ours.CrossBatchMemory(ours.SupConLoss(), 3, 48).double()
    for x, labels in steps(batches):
        other(x, labels)
    assert str(memory.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert memory.filled == min(24 * batches, 48)
    assert memory.has_been_filled == other.has_been_filled
    # Where the oldest row of a full memory is, their state does not say.
    assert memory.queue_idx == (24 if batches == 1 else 0)
    if batches < 3:
        assert memory.queue_idx == other.queue_idx
        assert agree(memory, other, *random_batch(9))
