"""What the pair losses share: which pairs are pairs, more scores than are kept, numbers at the edge of their range."""

import copy
import inspect
import pickle
from functools import partial

import dense
import pytest
import torch
from covering import covering
from support import (
    LOSSES,
    REDUCTIONS,
    assert_matches_oracle,
    batch,
    batch_and_references,
    cast,
    embeddings,
    error,
    loss,
    needs_cpu_kernels,
    oracle,
    pair_loss,
    two_views,
    value_and_gradients,
)

import fastpair
import fastpair.functional as FP
from fastpair import losses

pytestmark = needs_cpu_kernels

AGAINST = {name: loss for name, loss in LOSSES.items() if loss.inputs is batch_and_references}
against = pytest.mark.parametrize("loss", AGAINST.values(), ids=AGAINST.keys())
each_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


def assert_close(got, want, tolerance=1e-9):
    for name in want:
        assert error(got[name], want[name]) <= tolerance, name


# ---- which pairs are pairs


@against
@each_backend
def test_pairs_of_an_anchor_with_itself(loss, backend):
    generator = torch.Generator().manual_seed(0)
    inputs = loss.inputs(40, 5, "few", generator)
    inputs |= {"embeddings": inputs["embeddings"][:30], "labels": inputs["labels"][:30]}
    m = len(inputs["ref_emb"])
    own = torch.randint(-1, m, (30,), generator=generator)
    own[:4] = -1
    for exclude_self in (False, True, own, own.int()):
        if exclude_self is True and m < 30:
            continue
        for reduction in REDUCTIONS:
            settings = {"exclude_self": exclude_self, "reduction": reduction}
            got = value_and_gradients(partial(loss.fused, **settings, backend=backend), inputs, loss.trained)
            want = value_and_gradients(partial(loss.dense, **settings), inputs, loss.trained)
            assert_close(got, want)


@against
def test_an_anchor_that_is_its_own_only_negative(loss):
    """The reference that an anchor is may have another label: it is no negative for that."""
    generator = torch.Generator().manual_seed(11)
    inputs = loss.inputs(6, 5, "one", generator)
    inputs["ref_labels"][2] += 1
    given = {"exclude_self": torch.tensor([2, 2, -1, 2, 0, -1])}
    got = value_and_gradients(partial(loss.fused, **given, backend="cpu"), inputs, loss.trained)
    assert_close(got, value_and_gradients(partial(loss.dense, **given), inputs, loss.trained))


@against
@each_backend
def test_the_embeddings_as_references(loss, backend):
    """The tensor itself leaves self-pairs out, whatever the labels are; a copy does not."""
    generator = torch.Generator().manual_seed(1)
    x, labels = batch(20, 5, "few", generator).values()
    run = partial(loss.fused, backend=backend)
    alone = value_and_gradients(run, {"embeddings": x, "labels": labels}, ("embeddings",))
    leaf = x.clone().requires_grad_()
    for ref_labels in (labels, labels.clone()):
        value = run(leaf, labels, ref_emb=leaf, ref_labels=ref_labels)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert_close({"value": value.detach(), "embeddings": gradient}, alone)
    others = labels.flip(0)
    want = loss.dense(x, labels, x.clone(), others, exclude_self=True)
    assert_close({"v": run(x, labels, ref_emb=x, ref_labels=others)}, {"v": want})
    copied = run(x, labels, ref_emb=x.clone(), ref_labels=labels)
    assert_close({"v": copied}, {"v": loss.dense(x, labels, x.clone(), labels)})
    included = run(x, labels, exclude_self=False)
    assert_close({"v": included}, {"v": copied})
    assert_close({"v": run(x, labels, x.clone(), labels, exclude_self=True)}, {"v": alone["value"]})


def test_wrong_exclude_self():
    x, labels, y = torch.randn(4, 3), torch.arange(4) % 2, torch.randn(3, 3)
    calls = {
        "exclude_self=True says": {"ref_emb": y, "ref_labels": labels[:3], "exclude_self": True},
        "exclude_self must be True, False or None": {"exclude_self": torch.arange(4)},
        "exclude_self must hold rows": {"ref_emb": y, "ref_labels": labels[:3], "exclude_self": torch.arange(4)},
        "exclude_self must have shape": {"ref_emb": y, "ref_labels": labels[:3], "exclude_self": torch.arange(3)},
    }
    for message, arguments in calls.items():
        with pytest.raises(ValueError, match=message):
            FP.supcon_loss(x, labels, **arguments)


@against
def test_anchors_without_pairs_do_not_count(loss):
    """Every class on one side only, or one class only, or all but one sample alone in theirs."""
    x = embeddings(12, 4, torch.Generator().manual_seed(2))
    for labels in (torch.zeros(12), torch.arange(12), torch.tensor([0, 0, *range(1, 11)])):
        inputs = {"embeddings": x, "labels": labels.long()}
        for reduction in REDUCTIONS:
            got = value_and_gradients(partial(loss.fused, reduction=reduction), inputs, ("embeddings",))
            assert_close(got, value_and_gradients(partial(loss.dense, reduction=reduction), inputs, ("embeddings",)))


# ---- more scores than are kept


LARGE = {
    **pair_loss("snca_loss", distance="cosine", temperature=0.2),
    **pair_loss("supcon_loss", distance="sqeuclidean", temperature=0.5),
    **pair_loss("ntxent_loss", distance="cosine", temperature=0.1),
    **pair_loss("multi_similarity_loss", distance="cosine", beta=20.0),
    **pair_loss("triplet_margin_loss", distance="unit_euclidean", triplets_per_anchor="hard"),
}


def assert_large_batch_is_right(name, n):
    generator = torch.Generator().manual_seed(n)
    inputs = batch(n, 6, "pairs", generator)
    if name.endswith("refs"):
        references = batch(n + n // 8, 6, "pairs", generator)
        inputs |= {"ref_emb": references["embeddings"], "ref_labels": references["labels"]}
    # Of nearly equal distances float32 may take another.
    results = ("value",) if "hard" in name else None
    assert_matches_oracle(LARGE[name], cast(inputs, torch.float32), results=results)


@covering(name=LARGE.keys(), n=[400, 600])
def test_more_scores_than_are_kept(name, n, small_squares):
    """Up to 256 anchors the tiles lie in a square, up to 512 in panels, beyond they are computed again."""
    assert_large_batch_is_right(name, n)


@pytest.mark.parametrize(("name", "n"), [("snca-cosine", 2200), ("supcon-sqeuclidean-refs", 4400)])
def test_squares_as_they_are(name, n):
    assert_large_batch_is_right(name, n)


def test_more_scores_than_are_kept_by_row(small_squares):
    loss = LARGE["ntxent-cosine"]
    generator = torch.Generator().manual_seed(3)
    inputs = cast(batch(600, 6, "pairs", generator), torch.float32)
    assert_matches_oracle(loss, inputs, "none", torch.randn(600, generator=generator))


def test_more_scores_than_are_kept_of_two_views(small_squares):
    clip = loss("info_nce_loss", two_views, ("embeddings", "ref_emb"), temperature=0.2)
    generator = torch.Generator().manual_seed(4)
    inputs = cast(two_views(600, 6, "", generator), torch.float32)
    assert_matches_oracle(clip, inputs)
    assert_matches_oracle(clip, inputs, "none", torch.randn(600, generator=generator))


# ---- numbers at the edge


@pytest.mark.parametrize("name", ["snca_loss", "supcon_loss", "ntxent_loss"])
def test_small_temperatures(name):
    """Exponents of thousands: nothing overflows, and nothing that counts underflows."""
    inputs = cast(batch(50, 8, "few", torch.Generator().manual_seed(5)), torch.float64)
    for temperature in (1e-2, 1e-4):
        assert_matches_oracle(
            pair_loss(name, distance="cosine", temperature=temperature)[f"{name[:-5]}-cosine"], inputs
        )
    large = inputs | {"embeddings": inputs["embeddings"] * 100}
    assert_matches_oracle(pair_loss(name, distance="dot", temperature=0.1)[f"{name[:-5]}-dot"], large)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("circle_loss", {"gamma": 80.0}),
        ("circle_loss", {"gamma": 256.0, "m": 0.25}),
        ("multi_similarity_loss", {"beta": 50.0}),
        ("ntxent_loss", {"temperature": 0.01}),
    ],
)
def test_steep_losses_in_float32(name, settings):
    """Exponents of hundreds: no worse than the dense formula in float32, up to a factor."""
    steep = pair_loss(name, distance="cosine", **settings)[f"{name[:-5]}-cosine"]
    inputs = cast(batch(200, 16, "few", torch.Generator().manual_seed(6)), torch.float32)
    want = oracle(steep, inputs)
    got = value_and_gradients(steep.fused, inputs, steep.trained)
    plain = value_and_gradients(steep.dense, inputs, steep.trained)
    for result in want:
        assert error(got[result], want[result]) <= max(2 * error(plain[result], want[result]), 1e-5)


@each_backend
def test_nan_is_not_the_easiest_pair(backend):
    """A comparison would leave NaN out of a maximum."""
    x, labels = embeddings(40, 5, torch.Generator().manual_seed(7)).float(), torch.arange(40) % 4
    x[17, 2] = torch.nan
    run = partial(FP.triplet_margin_loss, triplets_per_anchor="hard", backend=backend)
    for distance in ("unit_euclidean", "sqeuclidean", "cosine"):
        assert run(x, labels, distance=distance, reduction="none").isnan().all()
        assert run(x, labels, distance=distance).isnan()


# ---- two views


def test_info_nce_is_the_loss_of_clip():
    x, y = embeddings(12, 5, torch.Generator().manual_seed(8)), embeddings(12, 5, torch.Generator().manual_seed(9))
    logits, target = dense.scores(x, y, "cosine") / 0.3, torch.arange(12)
    clip = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(FP.info_nce_loss(x, y, temperature=0.3), clip)


@each_backend
def test_learned_temperature_and_bias(backend):
    inputs = cast(two_views(15, 6, "", torch.Generator().manual_seed(10)), torch.float64)
    for distance in ("cosine", "dot"):
        temperature = torch.tensor([0.4], dtype=torch.float64)
        run = partial(FP.info_nce_loss, distance=distance, backend=backend)
        got = value_and_gradients(run, inputs | {"temperature": temperature}, ("embeddings", "ref_emb", "temperature"))
        plain = partial(dense.info_nce_loss, distance=distance)
        want = value_and_gradients(
            plain, inputs | {"temperature": temperature}, ("embeddings", "ref_emb", "temperature")
        )
        assert_close(got, want)


def test_parameters_keep_their_dtype_under_autocast():
    x, y = torch.randn(9, 4), torch.randn(9, 4)
    labels = torch.arange(9) % 3
    views = (losses.InfoNCELoss(learn_temperature=True), losses.SigLIPLoss())
    classes = (
        losses.ArcFaceLoss(3, 4),
        losses.ProxyAnchorLoss(3, 4),
        losses.CenterLoss(3, 4),
        losses.ProxyNCALoss(3, 4),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [module(x.bfloat16(), y.bfloat16()) for module in views]
        values += [module(x.bfloat16(), labels) for module in classes]
    for module, value in zip((*views, *classes), values, strict=True):
        value.backward()
        for parameter in module.parameters():
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


# ---- modules


def made(cls):
    if cls is losses.MatryoshkaLoss:
        return cls(losses.SupConLoss(), (2, 4))
    sizes = (5, 4) if "num_classes" in inspect.signature(cls).parameters else ()
    return cls(*sizes) if cls is not losses.CrossBatchMemory else cls(losses.SupConLoss(), 4, 32)


# Losses that users write: see test_custom.py.
MODULES = {name: getattr(losses, name) for name in losses.__all__ if name not in ("PCELoss", "CustomPairLoss")}


@pytest.mark.parametrize("name", MODULES)
def test_modules_copy_and_pickle(name):
    module = made(MODULES[name])
    x = torch.randn(12, 4)
    other = torch.randn(12, 4) if name in ("InfoNCELoss", "SigLIPLoss") else torch.arange(12) % 5
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    value = module(x, other)
    for twin in twins:
        assert torch.equal(twin(x, other), value)
        assert repr(twin) == repr(module)


@pytest.mark.parametrize("name", [name for name, cls in MODULES.items() if issubclass(cls, losses.PairLoss)])
def test_settings_of_pair_losses(name):
    """A module is its function with the same defaults; a setting that is changed later counts."""
    module = MODULES[name]()
    x, labels = torch.randn(14, 4), torch.arange(14) % 3
    function = module._function
    assert torch.equal(module(x, labels), function(x, labels))
    y, ref_labels = torch.randn(9, 4), torch.arange(9) % 3
    want = function(x, labels, y, ref_labels, exclude_self=torch.arange(14) % 9)
    assert torch.equal(module(x, labels, None, y, ref_labels, torch.arange(14) % 9), want)
    module.reduction = "sum"
    assert torch.equal(module(x, labels), function(x, labels, reduction="sum"))
    with pytest.raises(ValueError, match="reduction must"):
        MODULES[name](reduction="average")


BAD_SETTINGS = {
    "temperature": (losses.SupConLoss, {"temperature": 0.0}),
    "softmax_scale": (losses.NCALoss, {"softmax_scale": -1}),
    "alpha": (losses.MultiSimilarityLoss, {"alpha": float("inf")}),
    "base": (losses.MultiSimilarityLoss, {"base": float("nan")}),
    "gamma": (losses.CircleLoss, {"gamma": 0}),
    "distance": (losses.CircleLoss, {"distance": "euclidean"}),
    "neg_margin": (losses.GeneralizedLiftedStructureLoss, {"neg_margin": float("nan")}),
    "triplets_per_anchor": (losses.TripletMarginLoss, {"triplets_per_anchor": "easy"}),
    "swap": (lambda: losses.TripletMarginLoss(swap=True)(torch.ones(4, 2), torch.arange(4)), {}),
    "scale": (partial(losses.CosFaceLoss, 3, 4), {"scale": 0}),
    "margin": (partial(losses.ArcFaceLoss, 3, 4), {"margin": 180}),
    "num_classes": (losses.ProxyNCALoss, {"num_classes": 0, "embedding_size": 4}),
    "embedding_size": (losses.CrossBatchMemory, {"loss": losses.SupConLoss(), "embedding_size": 0}),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings(name):
    make, settings = BAD_SETTINGS[name]
    with pytest.raises(ValueError, match=f"{name} must"):
        make(**settings)


@pytest.mark.parametrize("labels", [[3], [0, 1, 2], [5, 5, 5]], ids=["one", "distinct", "equal"])
@pytest.mark.parametrize("references", [None, 0, 4])
@pytest.mark.parametrize(
    "loss",
    [losses.TripletMarginLoss(triplets_per_anchor="hard"), losses.SupConLoss(), losses.ContrastiveLoss()],
    ids=lambda loss: type(loss).__name__,
)
def test_gradients_without_pairs_are_zeros(loss, references, labels):
    """Not what stood in the memory that they take."""
    n, d = len(labels), 512
    x, labels = torch.randn(n, d, requires_grad=True), torch.tensor(labels)
    sides = ()
    if references is not None:
        sides = (None, torch.randn(references, d, requires_grad=True), torch.full((references,), 9))
    trained = [x, *sides[1:2]]
    for _ in range(5):
        used = [torch.full(t.shape, torch.nan) for t in trained]
        del used
        got = torch.autograd.grad(loss(x, labels, *sides), trained)
        with fastpair.use_backend("reference"):
            want = torch.autograd.grad(loss(x, labels, *sides), trained)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["supcon", "contrastive", "triplet_margin"])
def test_embeddings_without_columns(name):
    x = torch.randn(5, 0, requires_grad=True)
    loss = getattr(FP, f"{name}_loss")(x, torch.tensor([0, 0, 1, 1, 1]), distance="dot")
    assert torch.autograd.grad(loss, x)[0].shape == (5, 0) and loss.isfinite()


def test_learned_parameters_are_differentiated_once_with_the_rows():
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for of, by in ((x, temperature), (temperature, x)):
        loss = FP.supcon_loss(x, torch.arange(12) // 3, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss, of, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(gradient.sum(), by)


def test_a_scale_of_zero():
    """Whose gradient is not zero, though those of the rows are."""
    x, y = torch.randn(2, 9, 5, dtype=torch.float64)
    inputs = {"embeddings": x, "ref_emb": y}
    inputs |= {name: torch.tensor(value, dtype=torch.float64) for name, value in (("scale", 0.0), ("bias", -1.0))}
    got, want = (
        value_and_gradients(partial(FP.siglip_loss, distance="dot", backend=backend), inputs, tuple(inputs))
        for backend in ("cpu", "reference")
    )
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)
