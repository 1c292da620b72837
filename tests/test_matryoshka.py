"""Losses of the first columns: against the dense formulas of columns cut by hand."""

import pickle
import sys
from functools import partial

import dense
import pytest
import torch
from covering import covering
from custom_losses import multi_similarity
from support import BACKENDS, cast, error, growth_of_memory, needs_cpu_kernels, value_and_gradients

import fastpair
import fastpair.functional as FP
from fastpair import losses
from fastpair.backends.call import PrefixPairLossCall
from fastpair.formulas.pair_losses import DEFINITIONS
from fastpair.losses.info_nce import DIRECTIONS
from fastpair.metrics import METRICS

# The function of the same name hides the module.
pair_loss_operator = sys.modules["fastpair.ops.pair_loss"]
DIMS, WEIGHTS = (3, 8, 16, 21), (0.5, 1.0, 0.0, 2.0)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def inputs_of(n: int, m: int | None = None, d: int = 24, classes: int = 7) -> dict:
    """Columns of different sizes, so that the norms of no two prefixes are alike."""
    generator = torch.Generator().manual_seed(n)
    size = torch.linspace(0.5, 2, d, dtype=torch.float64) / d**0.5
    inputs = {
        "embeddings": torch.randn(n, d, generator=generator, dtype=torch.float64) * size,
        "labels": torch.randint(classes, (n,), generator=generator),
    }
    if m is not None:
        inputs["ref_emb"] = torch.randn(m, d, generator=generator, dtype=torch.float64) * size
        inputs["ref_labels"] = torch.randint(classes, (m,), generator=generator)
    return inputs


def by_hand(formula, dims, weights=None, **settings):
    """The weighted sum of dense formulas."""

    def run(embeddings, ref_emb=None, **given):
        total = 0
        for dim, weight in zip(dims, weights or (1,) * len(dims)):
            more = {} if ref_emb is None else {"ref_emb": ref_emb[:, :dim]}
            total = total + weight * formula(embeddings[:, :dim], **more, **given, **settings)
        return total

    return run


def assert_same(run, want, inputs, trained=("embeddings",), incoming=None, tolerance=1e-10):
    got, want = (value_and_gradients(of, inputs, trained, incoming) for of in (run, want))
    for name in want:
        assert error(got[name], want[name]) <= tolerance, name


def of_similarities(known):
    return known["of"].name != "circle" or METRICS[known.get("distance", "cosine")].similarity


@covering(
    of_similarities,
    of=DEFINITIONS,
    distance=["cosine", "dot", "unit_euclidean", "sqeuclidean"],
    backend=BACKENDS,
    prefixes={"four": (DIMS, WEIGHTS), "two": ((16, 3), (0.5, 2.0)), "one": ((21,), None)},
    references=[False, True],
)
def test_pair_losses(of, distance, backend, prefixes, references):
    dims, weights = prefixes
    loss = losses.MatryoshkaLoss(getattr(losses, of.module)(distance=distance), dims, weights)
    want = by_hand(getattr(dense, f"{of.name}_loss"), dims, weights, distance=distance)
    inputs, trained = (inputs_of(40, 67), ("embeddings", "ref_emb")) if references else (inputs_of(70), ("embeddings",))
    with fastpair.use_backend(backend):
        assert_same(loss, want, inputs, trained)


@needs_cpu_kernels
@covering(
    n=[1, 2, 33, 300, 520],
    name=["supcon", "multi_similarity", "ntxent", "contrastive"],
    dtype=TOLERANCE.keys(),
    references=[False, True],
)
def test_sizes(n, name, dtype, references):
    formula, settings = getattr(dense, f"{name}_loss"), {"distance": "cosine"}
    loss = losses.MatryoshkaLoss(getattr(losses, DEFINITIONS[name].module)(**settings), DIMS, WEIGHTS)
    classes = max(7, n // 10)
    inputs = inputs_of(n, 2 * n + 5, classes=classes) if references else inputs_of(n, classes=classes)
    trained = tuple(inputs.keys() & {"embeddings", "ref_emb"})
    want = value_and_gradients(by_hand(formula, DIMS, WEIGHTS, **settings), inputs, trained)
    got = value_and_gradients(loss, cast(inputs, dtype), trained)
    for key in want:
        assert error(got[key], want[key]) <= TOLERANCE[dtype], key


@needs_cpu_kernels
@pytest.mark.parametrize("name", ["supcon", "ntxent", "contrastive"])
@pytest.mark.parametrize("references", [False, True])
def test_more_products_than_are_kept(name, references, small_squares):
    inputs = inputs_of(240, 290, classes=100) if references else inputs_of(290, classes=100)
    trained = ("embeddings", "ref_emb") if references else ("embeddings",)
    single = getattr(losses, DEFINITIONS[name].module)(distance="cosine")
    loss = losses.MatryoshkaLoss(single, DIMS, WEIGHTS)
    assert_same(loss, partial(loss.summed, single), inputs, trained)


@needs_cpu_kernels
def test_memory_stays_small(forks):
    """Of eight prefixes no more scores are kept than of one."""
    setup = """
import torch
from fastpair import losses
loss = losses.MatryoshkaLoss(losses.SupConLoss(), range(4, 33, 4))
x, labels = torch.randn(4000, 32).requires_grad_(), torch.arange(4000) // 4
"""
    grown = growth_of_memory(forks, setup, "loss(x[:300], labels[:300]).backward()", "loss(x, labels).backward()")
    assert grown < 100  # MiB, 38 on one machine; the scores of all prefixes would be 270


@needs_cpu_kernels
def test_what_is_one_sweep(monkeypatch):
    """One call of an operator where its kernels take prefixes, and one for each prefix elsewhere."""
    names, fused_loss = [], pair_loss_operator.fused_loss
    monkeypatch.setattr(
        pair_loss_operator, "fused_loss", lambda name, *args: (names.append(name), fused_loss(name, *args))[1]
    )
    x, labels = inputs_of(20).values()

    def calls(loss, *args, **kwargs):
        names.clear()
        losses.MatryoshkaLoss(loss, DIMS)(x, *args, **kwargs)
        return list(names)

    one_sweep, labels_alone = ["prefix_pair_loss"], ["labelled_pair_loss"] * len(DIMS)
    assert calls(losses.SupConLoss(), labels) == one_sweep
    assert calls(losses.SupConLoss(reduction="none"), labels, ids=labels) == one_sweep
    assert calls(losses.SupConLoss(), labels, ref_bias=x[:, 0]) == one_sweep
    assert calls(losses.InfoNCELoss(), x) == one_sweep
    assert calls(losses.SigLIPLoss(), ref_emb=x) == one_sweep
    assert calls(multi_similarity(), labels) == one_sweep
    assert calls(losses.ContrastiveLoss(), labels) == labels_alone
    assert calls(losses.SupConLoss(reduction="totals"), labels) == labels_alone
    for kind in ("hard", "all"):
        loss = losses.TripletMarginLoss(triplets_per_anchor=kind, distance="cosine")
        assert calls(loss, labels) == labels_alone
    assert calls(losses.SupConLoss(), labels, (labels[:0],) * 4) == []
    assert calls(losses.SupConLoss(), labels) == one_sweep  # what was refused leaves nothing behind


@needs_cpu_kernels
def test_parameters_that_learn():
    """Through the terms of the pairs and the anchors' losses."""
    inputs = inputs_of(40) | {"scale": torch.tensor(3.0, dtype=torch.float64)}

    def run(embeddings, labels, scale, way):
        single = losses.CustomPairLoss(
            lambda s, p: p.scale * s * s,
            lambda s, p: p.scale * s,
            lambda P, N, p: P.lse / p.scale + N.lse,
            needs=["positives", "negatives"],
            scale=scale,
        )
        loss = losses.MatryoshkaLoss(single, DIMS, WEIGHTS)
        return loss(embeddings, labels) if way == "sweep" else loss.summed(single, embeddings, labels)

    trained = ("embeddings", "scale")
    assert_same(partial(run, way="sweep"), partial(run, way="loop"), inputs, trained)
    with fastpair.use_backend("reference"):
        want = value_and_gradients(partial(run, way="loop"), inputs, trained)
    got = value_and_gradients(partial(run, way="sweep"), inputs, trained)
    assert all(error(got[name], want[name]) <= 1e-10 for name in want)


@needs_cpu_kernels
def test_direct_calls_of_the_operator_check_prefixes():
    x, labels = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    names = PrefixPairLossCall._fields
    plain = dict.fromkeys(names) | {"embeddings": x, "labels": labels, "loss": "snca", "params": [1.0]}
    plain |= {"distance": "cosine", "two_sided": False, "reduction": "mean", "grad_embeddings": False}
    plain |= {"grad_ref": False, "grad_learned": False, "prefixes": [2, 4], "prefix_weights": [1.0, 1.0]}
    torch.ops.fastpair.prefix_pair_loss(*plain.values())
    for wrong in (
        {"prefixes": [2, 5]},
        {"prefixes": [4, 2]},
        {"prefixes": [0, 2]},
        {"prefix_weights": [1.0]},
        {"distance": "euclidean"},
        {"reduction": "totals"},
        {"loss": "triplet"},
        {"loss": "hard_triplet"},
    ):
        with pytest.raises(RuntimeError, match="must have"):
            torch.ops.fastpair.prefix_pair_loss(*(plain | wrong).values())


@covering(name=["supcon", "contrastive"], reduction=["sum", "none"], backend=BACKENDS)
def test_reductions(name, reduction, backend):
    settings = {"distance": "cosine", "reduction": reduction}
    loss = losses.MatryoshkaLoss(getattr(losses, DEFINITIONS[name].module)(**settings), DIMS, WEIGHTS)
    inputs = inputs_of(40)
    incoming = torch.randn((40,) if reduction == "none" else (), dtype=torch.float64)
    with fastpair.use_backend(backend):
        want = by_hand(getattr(dense, f"{name}_loss"), DIMS, WEIGHTS, **settings)
        assert_same(loss, want, inputs, incoming=incoming)


@pytest.mark.parametrize("name", ["supcon", "contrastive"])
def test_means_are_made_of_totals(name):
    module, inputs = getattr(losses, DEFINITIONS[name].module), inputs_of(40)
    totals = losses.MatryoshkaLoss(module(reduction="totals"), DIMS, WEIGHTS)

    def mean(**inputs):
        sums, counts = totals(**inputs).view(-1, 2).unbind(1)
        return (sums / counts.clamp(min=1)).sum()

    assert totals(**inputs).shape == (len(DIMS), 4)
    assert_same(mean, losses.MatryoshkaLoss(module(), DIMS, WEIGHTS), inputs)


@covering(distance=["cosine", "dot", "euclidean"], symmetric=[True, False], backend=BACKENDS)
def test_info_nce(distance, symmetric, backend):
    x, y = (torch.randn(50, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    loss = losses.InfoNCELoss(0.3, symmetric, distance, learn_temperature=True).double()

    def with_temperature(embeddings, ref_emb, log_temperature):
        more = {"symmetric": symmetric, "temperature": log_temperature.exp(), "distance": distance}
        return by_hand(dense.info_nce_loss, DIMS, WEIGHTS, **more)(embeddings, ref_emb)

    def run(embeddings, ref_emb, log_temperature):
        of = losses.MatryoshkaLoss(loss, DIMS, WEIGHTS)
        return torch.func.functional_call(of, {"loss.log_temperature": log_temperature}, (embeddings, ref_emb))

    inputs = {"embeddings": x, "ref_emb": y, "log_temperature": loss.log_temperature.detach()}
    with fastpair.use_backend(backend):
        assert_same(run, with_temperature, inputs, tuple(inputs))


@pytest.mark.parametrize(
    "further", [{}, {"ids": torch.arange(20) // 2}, {"decoupled": True}, {"directions": DIRECTIONS}]
)
def test_queries_and_documents(further):
    """Documents beyond the queries and each query's own, which InfoNCE compares in several sweeps: cut one by one."""
    x, y, own = (torch.randn(*shape, 24, dtype=torch.float64) for shape in ((20,), (20,), (20, 3)))
    settings = {name: further[name] for name in ("decoupled", "directions") if name in further}
    loss = losses.MatryoshkaLoss(losses.InfoNCELoss(0.3, **settings), DIMS, WEIGHTS)
    ids = {"ids": further["ids"]} if "ids" in further else {}

    def cut(embeddings, ref_emb, hard_negatives):
        def of(dim):
            rows = {"hard_negatives": hard_negatives[..., :dim]}
            return FP.info_nce_loss(embeddings[:, :dim], ref_emb[:, :dim], temperature=0.3, **rows, **further)

        return sum(weight * of(dim) for dim, weight in zip(DIMS, WEIGHTS))

    inputs = {"embeddings": x, "ref_emb": y, "hard_negatives": own}
    assert_same(lambda **rows: loss(**rows, **ids), cut, inputs, tuple(inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distance", ["cosine", "dot"])
def test_siglip(distance, backend):
    x, y = (torch.randn(n, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (40, 55))
    loss = losses.MatryoshkaLoss(losses.SigLIPLoss(distance=distance).double(), DIMS, WEIGHTS)
    inputs = {
        "embeddings": x,
        "ref_emb": y,
        "log_scale": torch.tensor(1.2).double(),
        "bias": torch.tensor(-2.0).double(),
    }

    def run(embeddings, ref_emb, log_scale, bias):
        parameters = {"loss.log_scale": log_scale, "loss.bias": bias}
        return torch.func.functional_call(loss, parameters, (embeddings,), {"ref_emb": ref_emb})

    def want(embeddings, ref_emb, log_scale, bias):
        formula = by_hand(dense.siglip_loss, DIMS, WEIGHTS, scale=log_scale.exp(), bias=bias, distance=distance)
        return formula(embeddings, ref_emb)

    with fastpair.use_backend(backend):
        assert_same(run, want, inputs, tuple(inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_of_your_own(backend):
    loss = losses.MatryoshkaLoss(multi_similarity(), DIMS, WEIGHTS)
    with fastpair.use_backend(backend):
        assert_same(loss, by_hand(dense.multi_similarity_loss, DIMS, WEIGHTS), inputs_of(70))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["hard", "all", "semihard"])
def test_triplets(kind, backend):
    loss = losses.MatryoshkaLoss(losses.TripletMarginLoss(triplets_per_anchor=kind), DIMS, WEIGHTS)
    with fastpair.use_backend(backend):
        assert_same(loss, by_hand(dense.triplet_margin_loss, DIMS, WEIGHTS, triplets_per_anchor=kind), inputs_of(20))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("by", ["ids", "sets", "pairs", "exclude_self"])
def test_relations(by, backend):
    inputs, generator = inputs_of(40), torch.Generator().manual_seed(5)
    if by == "ids":
        inputs["ids"] = torch.randint(20, (40,), generator=generator)
    elif by == "sets":
        inputs["labels"] = torch.rand(40, 20, generator=generator) < 0.1
    elif by == "pairs":
        inputs["labels"], inputs["pairs"] = None, torch.randint(-1, 2, (40, 40), generator=generator)
    else:
        inputs = inputs_of(40, 67) | {"exclude_self": torch.randint(-1, 67, (40,), generator=generator)}
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS, WEIGHTS)
    with fastpair.use_backend(backend):
        assert_same(loss, by_hand(dense.supcon_loss, DIMS, WEIGHTS), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("further", ["weights", "ignore_above", "ref_bias", "indices_tuple"])
def test_further_arguments(further, backend):
    """Against the loss itself, once for each prefix: the others' tests are about what it computes."""
    x, labels = inputs_of(40).values()
    given = {
        "weights": torch.rand(40, dtype=torch.float64),
        "ignore_above": 0.1,
        "ref_bias": torch.rand(40, dtype=torch.float64),
        "indices_tuple": tuple(torch.randint(40, (30,)) for _ in range(3)),
    }
    if further == "indices_tuple":
        anchor = torch.arange(30)
        given[further] = (anchor, (anchor + 1) % 40, (anchor + 7) % 40)
    single = partial(losses.SupConLoss(), labels=labels, **{further: given[further]})
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS, WEIGHTS)
    with fastpair.use_backend(backend):
        run = partial(loss, labels=labels, **{further: given[further]})
        assert_same(
            run, lambda embeddings: sum(w * single(embeddings[:, :d]) for d, w in zip(DIMS, WEIGHTS)), {"embeddings": x}
        )


def test_references_that_are_the_embeddings():
    """No anchor is a pair with itself, as without references."""
    x, labels = inputs_of(30).values()
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS, WEIGHTS)
    torch.testing.assert_close(loss(x, labels, None, x, labels), loss(x, labels))
    torch.testing.assert_close(loss(x, labels, ref_emb=x, ref_labels=labels), loss(x, labels))


def test_columns_beyond():
    """They have no gradient, and may hold anything."""
    x, labels = inputs_of(30).values()
    x[:, 21:] = torch.nan
    x.requires_grad_()
    losses.MatryoshkaLoss(losses.SupConLoss(), DIMS)(x, labels).backward()
    assert x.grad[:, :21].isfinite().all() and x.grad[:, :21].any() and not x.grad[:, 21:].any()


def test_zero_prefix():
    """Rows that begin with zeros have cosines 0 there, without a gradient, and a direction further on."""
    inputs = inputs_of(30)
    inputs["embeddings"][:5, :8] = 0
    of_dense = by_hand(dense.supcon_loss, DIMS)(**inputs)
    single = partial(losses.SupConLoss().forward, labels=inputs.pop("labels"))
    for backend in BACKENDS:
        with fastpair.use_backend(backend):
            loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS)
            run = partial(loss, labels=single.keywords["labels"])
            torch.testing.assert_close(run(inputs["embeddings"]), of_dense)
            assert_same(run, lambda embeddings: sum(single(embeddings[:, :dim]) for dim in DIMS), inputs)


def test_memory():
    """Batches against whole embeddings of the past."""
    memory = losses.CrossBatchMemory(losses.MatryoshkaLoss(losses.SupConLoss(), DIMS, WEIGHTS), 24, 40).double()
    (a, of_a), (b, of_b) = (inputs_of(n).values() for n in (20, 15))
    memory(a, of_a)
    rows = torch.cat([a, b]), torch.cat([of_a, of_b])
    want = by_hand(dense.supcon_loss, DIMS, WEIGHTS)
    torch.testing.assert_close(
        memory(b, of_b), want(b, labels=of_b, ref_emb=rows[0], ref_labels=rows[1], exclude_self=torch.arange(20, 35))
    )


def test_compiled():
    x, labels = (t[:30] for t in inputs_of(30).values())
    for inner in (losses.SupConLoss(), losses.ContrastiveLoss()):
        loss = losses.MatryoshkaLoss(inner, DIMS, WEIGHTS)
        assert_same(torch.compile(loss, fullgraph=True, backend="aot_eager"), loss, {"embeddings": x, "labels": labels})


def test_half_precision_and_autocast():
    x, labels = inputs_of(30).values()
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS)
    half = x.bfloat16().requires_grad_()
    value = loss(half, labels)
    value.backward()
    assert value.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value.double(), loss(half.detach().double(), labels), rtol=1e-5, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(x, labels), loss(x, labels))


def test_written_and_pickled():
    loss = losses.MatryoshkaLoss(losses.InfoNCELoss(learn_temperature=True), (4, 8))
    assert "dims=(4, 8), weights=(1.0, 1.0)" in repr(loss) and "InfoNCELoss(temperature=0.07" in repr(loss)
    assert list(loss.state_dict()) == ["loss.log_temperature"]
    again = pickle.loads(pickle.dumps(loss))
    x, y = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.equal(again(x, y), loss(x, y))


def test_one_process_of_a_global_batch():
    x, labels = inputs_of(30).values()
    loss = losses.MatryoshkaLoss(losses.SupConLoss(), DIMS)
    assert torch.equal(fastpair.distributed.GlobalBatchLoss(loss)(x, labels), loss(x, labels))


@pytest.mark.parametrize(
    "error, message, arguments",
    [
        (TypeError, "loss must be a PairLoss", (losses.CenterLoss(3, 4), (2,))),
        (TypeError, "loss must be a PairLoss", (losses.CrossBatchMemory(losses.SupConLoss(), 4), (2,))),
        (TypeError, "dims must be a sequence of numbers, got int", (losses.SupConLoss(), 4)),
        (TypeError, "dims must be a sequence of numbers, got str", (losses.SupConLoss(), "64")),
        (TypeError, "dims must be an integer, got float", (losses.SupConLoss(), (2, 4.0))),
        (ValueError, "dims must be at least 1, got 0", (losses.SupConLoss(), (0, 4))),
        (ValueError, "dims must have one number of columns or more", (losses.SupConLoss(), ())),
        (ValueError, r"dims must be different from each other, got \(4, 4\)", (losses.SupConLoss(), (4, 4))),
        (ValueError, "weights must be 2 numbers, one for each of dims, got 1", (losses.SupConLoss(), (2, 4), (1,))),
        (ValueError, "weights must not be negative, and finite", (losses.SupConLoss(), (2, 4), (1, -1))),
        (ValueError, "weights must not be negative, and finite", (losses.SupConLoss(), (2, 4), (1, float("inf")))),
        (TypeError, "weights must be a number, got str", (losses.SupConLoss(), (2, 4), (1, "a"))),
    ],
)
def test_settings(error, message, arguments):
    with pytest.raises(error, match=message):
        losses.MatryoshkaLoss(*arguments)


def test_inputs():
    loss, views = (losses.MatryoshkaLoss(of, (4, 8)) for of in (losses.SupConLoss(), losses.InfoNCELoss()))
    x, labels = torch.randn(5, 6), torch.arange(5)
    with pytest.raises(ValueError, match=r"embeddings must have max\(dims\) = 8 columns or more, got 6"):
        loss(x, labels)
    with pytest.raises(TypeError, match="embeddings must be a tensor, got list"):
        loss([1.0], labels)
    x = torch.randn(5, 9)
    for call in (partial(loss, x, labels, None, x[:, :8], labels), partial(views, x, x[:, :8])):
        with pytest.raises(ValueError, match="ref_emb must have 9 columns like embeddings, got 8"):
            call()
    with pytest.raises(TypeError):
        views(x)
