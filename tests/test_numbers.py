"""Losses whose parameters learn, and that read numbers of anchors and of references; the bias of references and the
threshold of negatives, which are built on them."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from custom_losses import LEARNING, expected, multi_similarity, pairs_of, scalars_of
from support import error

import fastpair
import fastpair.functional as FP
from fastpair import losses
from fastpair.backends import dense
from fastpair.formulas import softplus
from fastpair.losses import CustomPairLoss
from fastpair.ops import pair_loss, relation

pytestmark = pytest.mark.filterwarnings("error:fastpair computes the loss")
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def side(n, seed=0, d=6, dtype=torch.float64):
    """Embeddings, labels and a number a row."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(9, (n,), generator=generator), torch.rand(n, generator=generator)


def derivatives(value, inputs):
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), inputs, materialize_grads=True)]


def assert_is(of, anchors, references=None, **settings):
    """Value and gradients, those by the parameters included, are those of the dense formula in float64."""
    (x, labels, w), (y, ref_labels, q) = anchors, references or anchors
    if not references:
        q = w.flip(0)
    loss = of.make(**settings)
    inputs = [t.detach().requires_grad_() for t in ((x, y) if references else (x,))]
    more = {"ref_emb": inputs[1], "ref_labels": ref_labels} if references else {}
    got = derivatives(loss(inputs[0], labels, **more, **scalars_of(loss.formula, w, q)), [*inputs, loss.a, loss.b])
    wide = [t.detach().double().requires_grad_() for t in (*inputs, loss.a, loss.b)]
    s = dense.closeness(wide[0], wide[-3], settings.get("distance", "cosine"))
    with_numbers = of._replace(dense=partial(of.dense, w=w.double(), q=q.double()))
    masks = pairs_of(labels, ref_labels if references else None)
    value = expected(with_numbers, s, *masks, settings.get("reduction", "mean"), a=wide[-2], b=wide[-1])
    want = derivatives(value, wide)
    for one, other in zip(got, want):
        assert error(one, other) <= (1e-5 if x.dtype == torch.float32 else 1e-9)


# A formula is compiled for each dtype and distance: some are for a second one.
SECOND = {"scaled": [(torch.float32, "cosine")], "negatives": [(torch.float32, "unit_euclidean")]}


@BACKENDS
@pytest.mark.parametrize("name", LEARNING)
def test_values_and_gradients(name, backend):
    for dtype, distance in [(torch.float64, "cosine"), *SECOND.get(name, ())]:
        anchors, references = side(60, dtype=dtype), side(41, 1, dtype=dtype)
        anchors[1][0] = 100  # has no positive
        with fastpair.use_backend(backend):
            for reduction in ("mean", "sum", "none", "totals"):
                assert_is(LEARNING[name], anchors, reduction=reduction, distance=distance)
                assert_is(LEARNING[name], anchors, references, reduction=reduction, distance=distance)


@pytest.mark.parametrize("name", LEARNING)
def test_several_tiles(name):
    assert_is(LEARNING[name], side(290))
    assert_is(LEARNING[name], side(290), side(300, 1))


@pytest.mark.parametrize("name", ["scaled", "negatives"])
def test_more_scores_than_are_kept(name, small_squares):
    assert_is(LEARNING[name], side(600, d=4))


@pytest.mark.parametrize("name", LEARNING)
def test_parameters_alone(name):
    """Their gradient needs none of the embeddings."""
    x, labels, w = side(50)
    loss = LEARNING[name].make()
    numbers = scalars_of(loss.formula, w, w)
    (_, *want), (_, *got) = (
        derivatives(loss(rows, labels, **numbers), [loss.a, loss.b]) for rows in (x.clone().requires_grad_(), x)
    )
    torch.testing.assert_close(got, want)


@BACKENDS
@pytest.mark.parametrize("name", LEARNING)
def test_relations(name, backend):
    """Sets of labels and ids, where both kinds are told apart byte by byte."""
    x, labels, w = side(60)
    sets, ids = F.one_hot(labels).bool(), torch.arange(60) // 2
    loss = LEARNING[name].make()
    numbers = scalars_of(loss.formula, w, w.flip(0))
    pairs = 2 * (labels[:, None] == labels[None, :]).int() - 1
    pairs[ids[:, None] == ids[None, :]] = 0
    x.requires_grad_()
    with fastpair.use_backend("reference"):
        want = derivatives(loss(x, pairs=pairs, **numbers), [x, loss.a, loss.b])
    with fastpair.use_backend(backend):
        got = derivatives(loss(x, sets, ids=ids, **numbers), [x, loss.a, loss.b])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", LEARNING)
def test_lists(name):
    (x, labels, w), (y, ref_labels, q) = side(20), side(15, 1)
    masks = pairs_of(labels, ref_labels)
    lists = tuple(t for mask in masks for t in mask.nonzero(as_tuple=True))
    loss = LEARNING[name].make()
    numbers = scalars_of(loss.formula, w, q)
    inputs = [x.requires_grad_(), y.requires_grad_(), loss.a, loss.b]
    listed = derivatives(loss(x, None, lists, y, **numbers), inputs)
    torch.testing.assert_close(listed, derivatives(loss(x, labels, None, y, ref_labels, **numbers), inputs))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", LEARNING)
def test_gradcheck(name, backend):
    (x, labels, w), (y, ref_labels, q) = side(9, d=3), side(7, 1, d=3)
    loss = LEARNING[name].make(reduction="none")
    numbers = scalars_of(loss.formula, w, q)

    def run(x, y, a, b):
        return torch.func.functional_call(loss, {"a": a, "b": b}, (x, labels, None, y, ref_labels), numbers)

    with fastpair.use_backend(backend):
        a, b = (p.detach().clone().requires_grad_() for p in (loss.a, loss.b))
        assert torch.autograd.gradcheck(run, (x.requires_grad_(), y.requires_grad_(), a, b))


def test_an_optimiser_finds_the_temperature():
    """Of the loss whose derivative by it vanishes there."""
    x, labels, _ = side(64)
    loss = CustomPairLoss(
        lambda s, p: s / p.tau,
        lambda s, p: s / p.tau,
        lambda P, N, p: softplus(N.lse - P.lse) + 0.5 * p.tau,
        needs=["positives"],
        tau=torch.nn.Parameter(torch.tensor(0.5)),
    )
    assert [name for name, _ in loss.named_parameters()] == ["tau"] and "tau=0.5" in repr(loss)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        loss(x, labels).backward()
        optimiser.step()
    with torch.no_grad():
        around = [loss(x, labels).item() for loss.tau.data in [loss.tau * of for of in (0.9, 1, 1.1)]]
    assert around[1] < min(around[0], around[2])


def test_half_precision_and_other_dtypes_of_the_parameters():
    x, labels, w = side(40, dtype=torch.float32)
    of = LEARNING["scaled"]
    want = of.make()
    numbers = scalars_of(want.formula, w, w)
    want(x, labels, **numbers).backward()
    for dtype in (torch.float32, torch.bfloat16):
        loss = of.make().to(dtype)
        value = loss(x.bfloat16(), labels, **{k: {n: t.half() for n, t in of.items()} for k, of in numbers.items()})
        value.backward()
        assert value.dtype == torch.float32 and loss.a.grad.dtype == dtype
        torch.testing.assert_close(loss.a.grad.double(), want.a.grad, rtol=0.02, atol=0)


def test_compiled():
    x, labels, w = side(30, dtype=torch.float32)
    loss = LEARNING["scaled"].make()
    numbers = scalars_of(loss.formula, w, w)
    inputs = [x.requires_grad_(), loss.a, loss.b]
    want = derivatives(loss(x, labels, **numbers), inputs)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(derivatives(compiled(x, labels, **numbers), inputs), want)


@pytest.mark.parametrize("arguments", [("ignore_above",), ("ref_bias", "ignore_above")], ids="-".join)
def test_compiled_before_a_call(arguments):
    """What tracing adds to the known formulas is known to the graph, beside a loss that was known before."""
    x, labels, w = side(30, dtype=torch.float32)
    given = {name: {"ref_bias": w, "ignore_above": 0.1}[name] for name in arguments}
    custom = CustomPairLoss(lambda s, p: s, lambda s, p: s + len(arguments), lambda P, N, p: softplus(N.lse - P.mean))

    def both(x):
        return FP.snca_loss(x, labels) + custom(x, labels) + custom(x, labels, **given)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    torch.testing.assert_close(derivatives(compiled(x), [x]), derivatives(both(x), [x]))


@BACKENDS
def test_numbers_alone(backend):
    """Of losses and counts that read no pair, or a parameter that learns in the count, which has no gradient."""
    x, labels, _ = side(20)
    x.requires_grad_()
    for anchor, count, want in (
        (lambda P, N, p: P.sum + N.sum, lambda P, N, p: p.a, None),
        (lambda P, N, p: P.sum + N.sum, lambda P, N, p: p.a * P.pairs, None),
        (lambda P, N, p: p.a, 1, 1.0),
    ):
        loss = CustomPairLoss(
            lambda s, p: s, lambda s, p: s, anchor, count=count, a=torch.nn.Parameter(torch.tensor(2.0))
        )
        with fastpair.use_backend(backend):
            value, gradient = derivatives(loss(x, labels), [loss.a])
        with fastpair.use_backend("reference"):
            torch.testing.assert_close(value, loss(x, labels).detach())
        assert gradient == (want or 0)


def test_one_maximum():
    with pytest.raises(ValueError, match="both kinds have a maximum, or none"):
        CustomPairLoss(lambda s, p: 0, lambda s, p: s, lambda P, N, p: N.max)


@BACKENDS
def test_references_left_out_by_an_infinite_bias(backend):
    x, labels, _ = side(30)
    x.requires_grad_()
    bias = torch.where(torch.arange(30) < 3, 0.0, -torch.inf)
    for name in ("dcl", "supcon", "sincere"):
        pairs = (labels[:, None] == labels[None, :]).int() * 2 - 1
        pairs = torch.where((pairs < 0) & (bias == -torch.inf), 0, pairs)
        loss = getattr(FP, f"{name}_loss")
        want = derivatives(loss(x, None, pairs=pairs), [x])
        torch.testing.assert_close(derivatives(loss(x, labels, ref_bias=bias, backend=backend), [x]), want)


def test_names_of_numbers():
    """Also those that the kernels have themselves."""
    names = ("at", "room", "ld")
    loss = CustomPairLoss(
        lambda s, p: s, lambda s, p: s + sum(getattr(p.ref, name) for name in names), lambda P, N, p: N.lse
    )
    assert loss(X, LABELS, ref_scalars=dict.fromkeys(names, W)).isfinite()
    for name in ("a-b", "class", "_x"):
        with pytest.raises(TypeError, match="a number of a row cannot have the name"):
            CustomPairLoss(lambda s, p: s, lambda s, p, name=name: getattr(p.ref, name), lambda P, N, p: N.lse)


def with_bias(name, x, labels, bias, scale):
    """A log-sum-exp with a bias a reference, typed."""
    positive, negative = pairs_of(labels)
    unit = F.normalize(x)
    s = unit @ unit.T
    if name == "multi_similarity":
        own = torch.where(positive, -2 * (s - 0.5), -torch.inf).logsumexp(1)
        others = torch.where(negative, 50 * (s - 0.5) + bias, -torch.inf).logsumexp(1)
        return (F.softplus(own) / 2 + F.softplus(others) / 50).mean()
    logits = torch.where(negative, scale * s + bias, torch.where(positive, scale * s, -torch.inf))
    means = torch.where(positive, scale * s, 0).sum(1) / positive.sum(1).clamp(min=1)
    counted = positive.any(1)
    return torch.where(counted, logits.logsumexp(1) - means, 0).sum() / counted.sum()


@BACKENDS
@pytest.mark.parametrize("name", ["supcon", "multi_similarity"])
def test_bias_of_references(name, backend):
    x, labels, w = side(50)
    bias = -w.log()
    x.requires_grad_()
    got = getattr(FP, f"{name}_loss")(x, labels, ref_bias=bias, backend=backend)
    want = with_bias(name, x, labels, bias.double(), 10)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


EXPONENTIALS = {
    "snca": {}, "nca": {}, "supcon": {}, "dcl": {}, "sincere": {}, "ntxent": {}, "multi_similarity": {}, "circle": {},
    "generalized_lifted_structure": {}, "supcon distance": {"distance": "euclidean"},
}  # fmt: skip


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.2])
@pytest.mark.parametrize(
    ("name", "backend"),
    # The terms change alike in all losses, and each is compiled: some.
    [*product(EXPONENTIALS, ["reference"]), *product(["supcon", "ntxent", "circle", "supcon distance"], ["cpu"])],
)
def test_negatives_above_the_closest_positive(name, margin, backend):
    """Are no pairs, as a matrix of pairs says it."""
    x, labels, _ = side(50)
    labels[:3] = torch.arange(100, 103)  # no positives, so no negative is above one
    loss = partial(getattr(FP, f"{name.split()[0]}_loss"), **EXPONENTIALS[name])
    distance = EXPONENTIALS[name].get("distance") or getattr(FP, loss.func.__name__).__kwdefaults__["distance"]
    s = dense.closeness(x, x, distance)
    positive, negative = pairs_of(labels)
    closest = torch.where(positive, s, -torch.inf).max(1).values
    closest = torch.where(positive.any(1), closest, torch.inf)
    kept = negative & (s <= closest[:, None] + margin)
    assert positive.any() and kept.sum() < negative.sum()
    x.requires_grad_()
    for reduction in ("mean", "none"):
        want = derivatives(loss(x, pairs=positive.int() - kept.int(), labels=None, reduction=reduction), [x])
        got = derivatives(loss(x, labels, ignore_above=margin, reduction=reduction, backend=backend), [x])
        torch.testing.assert_close(got, want)


@BACKENDS
def test_threshold_with_relations_references_and_weights(backend):
    (x, labels, w), (y, ref_labels, q) = side(40), side(60, 1)
    ids, ref_ids = torch.arange(40) % 25, torch.arange(60) % 25
    s = dense.closeness(x, y, "cosine")
    pair = ids[:, None] != ref_ids[None, :]
    positive, negative = (pair & mask for mask in pairs_of(labels, ref_labels))
    closest = torch.where(positive, s, -torch.inf).max(1).values
    kept = negative & (s <= torch.where(positive.any(1), closest, torch.inf)[:, None] + 0.1)
    x, y = x.requires_grad_(), y.requires_grad_()
    more = {"weights": w, "ref_bias": q}
    want = derivatives(FP.dcl_loss(x, None, y, pairs=positive.int() - kept.int(), **more), [x, y])
    related = {"ids": ids, "ref_ids": ref_ids, "ignore_above": 0.1, "backend": backend}
    torch.testing.assert_close(derivatives(FP.dcl_loss(x, labels, y, ref_labels, **related, **more), [x, y]), want)


@BACKENDS
def test_all_negatives_above(backend):
    """Leave no loss where negatives are needed, and a finite one elsewhere."""
    x, labels, _ = side(30)
    x.requires_grad_()
    for name in ("dcl", "circle", "supcon", "multi_similarity"):
        value, gradient = derivatives(getattr(FP, f"{name}_loss")(x, labels, ignore_above=-3.0, backend=backend), [x])
        assert value.isfinite() and gradient.isfinite().all()
        assert value == 0 if name in ("dcl", "circle") else value > 0


def test_what_is_not_finite_shows():
    x, labels, _ = side(30)
    x[3, 0] = torch.nan
    assert FP.supcon_loss(x, labels, ignore_above=0.0).isnan()
    assert FP.supcon_loss(x[4:], labels[4:], ref_bias=torch.full((26,), torch.nan)).isnan()


def test_bias_of_listed_pairs():
    x, labels, w = side(20)
    masks = pairs_of(labels)
    lists = tuple(t for mask in masks for t in mask.nonzero(as_tuple=True))
    listed = FP.supcon_loss(x, None, indices_tuple=lists, ref_bias=w)
    torch.testing.assert_close(listed, FP.supcon_loss(x, labels, ref_bias=w))
    twice = tuple(torch.cat([rows, rows[:1]]) for rows in lists)
    for loss in (FP.ntxent_loss, FP.supcon_loss):
        plain = loss(x, None, indices_tuple=twice)
        torch.testing.assert_close(loss(x, None, indices_tuple=twice, ref_bias=0 * w), plain)


def test_modules_take_both():
    x, labels, w = side(30)
    got = losses.SupConLoss()(x, labels, ref_bias=w, ignore_above=0.1)
    assert torch.equal(got, FP.supcon_loss(x, labels, ref_bias=w, ignore_above=0.1))
    loss = multi_similarity()
    torch.testing.assert_close(loss(x, labels, ref_bias=w), FP.multi_similarity_loss(x, labels, ref_bias=w))


X, LABELS, W = side(6)
WRONG = [
    ({"ref_bias": W[:3]}, ValueError, "ref_bias must have shape \\(6,\\), one a row of embeddings, got \\(3,\\)"),
    ({"ref_bias": LABELS}, TypeError, "ref_bias must be float32"),
    ({"ref_bias": 3.0}, TypeError, "ref_bias must be a tensor"),
    ({"ref_bias": W.clone().requires_grad_()}, ValueError, "ref_bias must not require a gradient"),
    ({"ignore_above": "much"}, TypeError, "ignore_above must be a number, got str"),
    ({"ignore_above": float("nan")}, ValueError, "ignore_above must be finite"),
    ({"ignore_above": 0.1, "indices_tuple": (LABELS * 0,) * 3}, ValueError, "ignore_above must be None where"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        FP.supcon_loss(X, LABELS, **arguments)


@pytest.mark.parametrize("name", ["contrastive", "triplet_margin"])
def test_losses_without_exponentials(name):
    loss = getattr(FP, f"{name}_loss")
    for arguments in ({"ref_bias": W}, {"ignore_above": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be None for"):
            loss(X, LABELS, **arguments)


def test_wrong_numbers_of_rows():
    loss = LEARNING["scaled"].make()
    both = {"anchor_scalars": {"w": W}, "ref_scalars": {"q": W}}
    for arguments, kind, message in (
        ({}, ValueError, "anchor_scalars must have the numbers that the formula reads, 'w', got none"),
        (both | {"ref_scalars": {"q": W, "r": W}}, ValueError, "ref_scalars must have .* 'q', got 'q', 'r'"),
        (both | {"anchor_scalars": {"w": W[1:]}}, ValueError, "w must have shape \\(6,\\)"),
        (both | {"anchor_scalars": W}, TypeError, "anchor_scalars must be a dictionary of tensors, got Tensor"),
        (both | {"anchor_scalars": {"w": 2.0}}, TypeError, "w must be a tensor, got float"),
    ):
        with pytest.raises(kind, match=message):
            loss(X, LABELS, **arguments)
    with pytest.raises(ValueError, match="anchor_scalars must have .* none, got 'w'"):
        multi_similarity()(X, LABELS, anchor_scalars={"w": W})
    with pytest.raises(TypeError, match="MultiSimilarityLoss has no argument 'margin'|has no argument 'a'"):
        multi_similarity()(X, LABELS, a=1.0)
    with pytest.raises(TypeError, match="SupConLoss has no argument 'anchor_scalars'"):
        losses.SupConLoss()(X, LABELS, anchor_scalars={"w": W})
    with pytest.raises(ValueError, match="the loss of an anchor cannot read ref.q"):
        CustomPairLoss(lambda s, p: s, lambda s, p: s, lambda P, N, p: P.sum + p.ref.q)


def test_wrong_parameters():
    with pytest.raises(ValueError, match="alpha must be a floating tensor of one element"):
        multi_similarity(alpha=torch.ones(2))
    loss = multi_similarity()
    loss.alpha = torch.tensor(2.0)
    with pytest.raises(TypeError, match="alpha must be a number, as it was when the loss was made, got a tensor"):
        loss(X, LABELS)
    with pytest.raises(ValueError, match="a parameter cannot have the name 'ref'"):
        multi_similarity(ref=1.0)


def test_the_closest_positive():
    """The formula that the threshold asks, with its gradient."""
    x, labels, _ = side(40)
    labels[0] = 100  # has no positive
    x.requires_grad_()
    results = []
    for backend in ("cpu", "reference"):
        value = pair_loss("best_positive", [], x, relation(x, labels, None, None), "cosine", "none", backend)
        results.append([value.detach(), *torch.autograd.grad(value[1:].sum(), x)])
    torch.testing.assert_close(*results)
    assert results[0][0][0] == -torch.inf
