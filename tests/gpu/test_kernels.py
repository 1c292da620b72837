"""Every loss on the GPU kernels: loss and all gradients against the float64 oracle, at the edges of the tiles."""

import importlib
import re
from functools import partial

import collapsed
import pytest
import torch
from covering import in_turn
from info_nce_cases import CASES as INFO_NCE
from info_nce_cases import differentiated, expected, views
from made_up import MADE_UP
from support import (
    DTYPES,
    LOSSES,
    METRICS,
    RELATED,
    WEIGHTED,
    assert_matches_oracle,
    batch,
    cast,
    embeddings,
    equally_hard,
    error,
    first_of_the_hardest,
    oracle,
    pair_loss,
    strided,
    value_and_gradients,
)
from torch.utils._python_dispatch import TorchDispatchMode
from undefined import BY_ROWS, CASES, FEW, SPREAD, faults

import fastpair
import fastpair.functional as FP
import fastpair.retrieval
from fastpair.backends import dense
from fastpair.backends import triton as triton_backend
from fastpair.backends.call import PairLossCall
from fastpair.backends.triton import launch, pairs, triplets
from fastpair.backends.triton.terms import MOST
from fastpair.formulas.pair_losses import FORMULAS

FURTHER_SHAPES = [
    ("contrastive-cosine", (1, 8, "few")),  # a lone sample
    ("supcon-cosine", (5, 1, "few")),  # one dimension: cosines are all 1 or -1
    ("supcon-euclidean-refs", (37, 9, "one")),  # no negatives
    ("contrastive-euclidean", (37, 9, "one")),
    ("ntxent-cosine", (37, 64, "distinct")),  # no positives
    ("info_nce", (1, 8, "few")),
    ("proxy_anchor", (1, 8, "few")),
    ("linear_cross_entropy", (1, 8, "few")),
    ("snca-cosine", (2, 3, "distinct")),
    ("supcon-euclidean-refs", (129, 6, "few")),  # a column block and one more
    ("circle-cosine", (129, 6, "few")),
]
of_triton = pytest.mark.parametrize("backend", ["triton"], indirect=True)


def inputs_of(loss, n, d, pattern, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * n + d + seed)
    inputs = cast(loss.inputs(n, d, pattern, generator), dtype)
    return {k: None if t is None else t.to(device) for k, t in inputs.items()}


def incoming_of(loss, inputs, reduction):
    incoming = torch.randn(loss.shape(inputs, reduction), generator=torch.Generator().manual_seed(7))
    return incoming.to(inputs[loss.rows].device)


@pytest.mark.parametrize(
    ("name", "reduction", "arranged"),
    in_turn(LOSSES, ("mean", "none", "totals", "sum", "none"), (None, strided, strided)),
    ids=lambda v: v if isinstance(v, str) else "strided" if v else "plain",
)
def test_loss_and_gradients(name, reduction, arranged, backend, device):
    """The tensors as they are, or strided."""
    loss, arranged = LOSSES[name], arranged or (lambda t: t)
    inputs, reduction = inputs_of(loss, 33, 17, "pairs", device), reduction if reduction in loss.reductions else "mean"
    inputs = {name: arranged(t) if t.ndim else t for name, t in inputs.items()}
    # Positive: a parameter's gradient would cancel to nothing.
    incoming = incoming_of(loss, inputs, reduction).abs()
    incoming = arranged(incoming) if incoming.ndim else incoming
    assert_matches_oracle(loss, inputs, reduction, incoming, backend=backend)


@pytest.mark.parametrize(
    ("name", "shape"), FURTHER_SHAPES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v))
)
def test_further_shapes(name, shape, backend, device):
    loss, inputs = LOSSES[name], inputs_of(LOSSES[name], *shape, device)
    # The gradient of a single pair of views is zero but for rounding.
    results = ("value",) if name == "info_nce" else None
    reduction = ("mean", "none")[len(name) % 2]
    assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), results, backend=backend)


def of_one_side(names):
    """Without the same against references, which have tests elsewhere: an interpreted kernel takes its time."""
    return [name for name in names if "-refs" not in name]


KINDS = of_one_side(name for name in RELATED if "-hard" in name or "triplet" not in name)
KINDS += ["supcon_loss-cosine-pairs-ids-refs"]  # a matrix that is not square


@pytest.mark.parametrize(("name", "reduction"), in_turn(KINDS, ("mean", "none", "totals")))
def test_relations(name, reduction, backend, device):
    loss = RELATED[name]
    inputs = inputs_of(loss, 37, 5, "few", device)
    assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), backend=backend)


OF_WEIGHTS = of_one_side(name for name in WEIGHTED if name in LOSSES or ("-ids" in name and "-hard" in name))


@pytest.mark.parametrize(("name", "reduction"), in_turn(OF_WEIGHTS, ("mean", "totals", "none")))
def test_weights(name, reduction, backend, device):
    loss = WEIGHTED[name]
    inputs = inputs_of(loss, 37, 5, "few", device)
    assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), backend=backend)


@pytest.mark.parametrize("name", ["documents", "joint-more", "in-batch", "ids-joint", "debias"])
def test_info_nce(name, backend, device):
    rows, settings = INFO_NCE[name]
    x, y, temperature, settings = views(rows, **settings)
    settings = {key: of.to(device) if isinstance(of, torch.Tensor) else of for key, of in settings.items()}
    symmetric = {} if "directions" in settings else {"symmetric": False}

    def run(x, y, temperature):
        given = {"reduction": "none", "backend": backend, **symmetric, **settings}
        return FP.info_nce_loss(x, y, temperature=temperature, **given)

    got = differentiated(run, *(t.float().to(device) for t in (x, y, temperature)))
    settings = {key: of.cpu() if isinstance(of, torch.Tensor) else of for key, of in settings.items()}
    want = differentiated(lambda x, y, t: expected(x, y, temperature=t, **settings), x, y, temperature)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def small_rectangles(monkeypatch):
    monkeypatch.setattr(pairs, "HEIGHT", 128)
    monkeypatch.setattr(pairs, "WIDTH", 128)


RECTANGLES = [
    "contrastive-euclidean",
    "contrastive-euclidean-refs",
    "supcon-cosine",
    "ntxent-sqeuclidean-refs",
    "triplet_margin-unit_euclidean-hard",
    "info_nce",
    "siglip",
]


@of_triton
@pytest.mark.parametrize(("name", "reduction"), in_turn(RECTANGLES, ("mean", "none")))
def test_several_rectangles(name, reduction, backend, device, small_rectangles):
    loss = LOSSES[name]
    inputs = inputs_of(loss, 140, 5, "few", device)
    assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), backend=backend)


@of_triton
@pytest.mark.parametrize("name", RECTANGLES)
def test_several_tiles_of_a_program(name, backend, device, monkeypatch):
    """Those of the interpreter are large enough that few batches have more than one."""
    monkeypatch.setattr(launch, "INTERPRETED", launch.Tile(rows=16, cols=16, warps=4))
    loss = LOSSES[name]
    inputs = inputs_of(loss, 50, 5, "few", device)
    assert_matches_oracle(loss, inputs, backend=backend)


@of_triton
def test_close_pairs_in_the_smallest_tiles(backend, device, monkeypatch):
    """A program that adds close pairs takes its rows from one tile: the next may be undefined."""
    with pytest.raises(ValueError, match="rows be multiples of 8"):
        launch.Tile(rows=4, cols=512, warps=8)
    monkeypatch.setattr(launch, "INTERPRETED", launch.Tile(rows=8, cols=128, warps=4))
    loss = LOSSES["supcon-euclidean"]
    inputs = inputs_of(loss, 90, 5, "few", device)
    inputs["embeddings"][10] = inputs["embeddings"][3] + 1e-4
    assert_matches_oracle(loss, inputs, backend=backend)


@pytest.mark.parametrize("name", [*RECTANGLES, "arcface", "linear_cross_entropy-smooth-ignore", "spce_loss"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(name, dtype, backend, device):
    """The way of the slopes to their products, one loss of each kind; test_gpu.py has all of them."""
    loss = LOSSES[name]
    inputs = inputs_of(loss, 33, 17, "few", device, DTYPES[dtype])
    assert_matches_oracle(loss, inputs, "mean", backend=backend)


MADE = {
    **{
        name: LOSSES[name]
        for name in (
            "contrastive-cosine",
            "contrastive-dot-refs",
            "supcon-cosine-refs",
            "snca-cosine",
            "ntxent-cosine",
            "multi_similarity-cosine",
            "info_nce",
            "info_nce-one-sided",
            "proxy_anchor",
        )
    },
    # Pairs that are none, beside the diagonal.
    "contrastive_loss-cosine-ids": RELATED["contrastive_loss-cosine-ids"],
    # As far as exponentials need no shift.
    **pair_loss("supcon_loss", distance="cosine", temperature=1 / MOST),
    # Whose exponents are small: with their defaults circle loss takes shifts.
    **pair_loss("circle_loss", distance="cosine", gamma=8),
    **pair_loss("generalized_lifted_structure_loss", distance="cosine"),
}


@of_triton
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "bfloat16") for name in MADE), ("snca-cosine", "float16"), ("info_nce", "float16")]
)
def test_products_made_by_the_kernels(name, dtype, backend, device, small_rectangles, monkeypatch):
    loss = MADE[name]
    # These rectangles are twice as high, and no wider than high.
    monkeypatch.setattr(pairs, "WIDTH", 256)
    n = 290 if name == "contrastive-cosine" else 140
    inputs = inputs_of(loss, n, 16, "few", device, DTYPES[dtype])
    reduction = "totals" if loss.totals and dtype == "bfloat16" else "mean"
    assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), backend=backend)


@of_triton
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_formulas(name, distance, backend, device, monkeypatch):
    formula = MADE_UP[name]
    monkeypatch.setitem(FORMULAS, name, formula)
    params = [0.7, 0.3, 1.1, 0.4, 0.2][: len(formula.parameters)]
    generator = torch.Generator().manual_seed(1)
    x, labels = embeddings(33, 6, generator), torch.randint(7, (33,), generator=generator)
    settings = (name, params, distance, False, "mean", True, False, False)
    call = PairLossCall(x.float().to(device), None, None, labels.to(device), None, None, None, *settings)
    got, gradient, *_ = triton_backend.pair_loss(call)
    x.requires_grad_()
    same, others = labels[:, None] == labels[None, :], ~torch.eye(33, dtype=bool)
    parts = dense.evaluated(formula)(dense.closeness(x, x, distance), same & others, ~same, *params)
    want = dense.reduced_pairs(*parts, reduction="mean")
    want.backward()
    assert error(got, want) <= 1e-5
    assert error(gradient, x.grad) <= 1e-5


TRIPLETS = [
    {"smooth_loss": smooth, "triplets_per_anchor": chosen, "distance": distance, "margin": 0.2}
    for smooth, chosen, distance in (
        (False, "all", "euclidean"),
        (False, "semihard", "cosine"),
        (True, "all", "cosine"),
        (True, "semihard", "unit_euclidean"),
        (False, "facenet", "euclidean"),
        (True, "facenet", "cosine"),
    )
]


@of_triton
@pytest.mark.parametrize(
    ("settings", "reduction", "references"),
    in_turn(TRIPLETS, ("mean", "none", "totals"), (False, True, True, False)),
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else str(v),
)
def test_triplets(settings, reduction, references, backend, device, monkeypatch):
    """Panels of fewer rows than there are, and columns beyond one block."""
    monkeypatch.setattr(pairs, "HEIGHT", 16)
    monkeypatch.setattr(pairs, "WIDTH", 128)
    n, m = 18, 129
    generator = torch.Generator().manual_seed(3)
    inputs = {"embeddings": embeddings(n, 6, generator), "labels": torch.randint(4, (n,), generator=generator)}
    if references:
        inputs |= {"ref_emb": embeddings(m, 6, generator), "ref_labels": torch.randint(30, (m,), generator=generator)}
    inputs = {k: t.to(device) for k, t in cast(inputs, torch.float32).items()}
    names = tuple(k for k in inputs if not k.endswith("labels"))
    incoming = torch.randn({"none": (n,), "totals": (4,)}.get(reduction, ()), generator=generator).to(device)
    run = partial(FP.triplet_margin_loss, **settings, reduction=reduction)
    got = value_and_gradients(partial(run, backend=backend), inputs, names, incoming)
    want = value_and_gradients(partial(run, backend="reference"), cast(inputs, torch.float64), names, incoming)
    assert max(error(got[k], want[k]) for k in want) <= 1e-5


@of_triton
@pytest.mark.parametrize("name", triplets.TRIPLETS)
def test_triplets_of_nothing(name, backend, device):
    smooth, chosen = triplets.TRIPLETS[name]
    run = partial(FP.triplet_margin_loss, smooth_loss=smooth, triplets_per_anchor=chosen, backend=backend)
    for n in (0, 1, 2):
        inputs = {"embeddings": torch.randn(n, 3, device=device), "labels": torch.zeros(n, dtype=int, device=device)}
        assert all((t == 0).all() for t in value_and_gradients(run, inputs, ("embeddings",)).values())


@pytest.mark.parametrize("name", of_one_side(LOSSES)[::2])
def test_duplicates(name, backend, device):
    """Rows that occur twice, in the same and in different classes: distances of exactly zero."""
    loss = LOSSES[name]
    generator = torch.Generator().manual_seed(3)
    inputs = loss.inputs(40, 6, "few", generator)
    inputs["embeddings"][20:] = inputs["embeddings"][:20]
    results = ("value",) if "hard" in loss.fused.keywords.values() else None
    inputs = {k: t.to(device) for k, t in cast(inputs, torch.float32).items()}
    assert_matches_oracle(loss, inputs, "mean", results=results, backend=backend)


@pytest.mark.parametrize("distance", ["cosine", "unit_sqeuclidean", "unit_euclidean"])
def test_rows_of_zeros(distance, backend, device):
    """Have no direction, and no gradient; those of the rows that are compared with them are right."""
    inputs = batch(40, 6, "few", torch.Generator().manual_seed(5))
    inputs["embeddings"][::7] = 0
    run = partial(FP.snca_loss, distance=distance)
    moved = {name: t.to(device) for name, t in cast(inputs, torch.float32).items()}
    got = value_and_gradients(partial(run, backend=backend), moved, ("embeddings",))
    want = value_and_gradients(partial(run, backend="reference"), inputs, ("embeddings",))
    assert (want["embeddings"][::7] == 0).all()
    assert all(error(got[name], want[name]) <= 1e-5 for name in want)


def test_the_first_of_equally_hard_pairs(backend, device):
    inputs = cast(equally_hard(150), torch.float32)
    settings = {"triplets_per_anchor": "hard", "distance": "sqeuclidean", "margin": 0.3, "reduction": "sum"}
    run = partial(FP.triplet_margin_loss, **settings, backend=backend)
    got = value_and_gradients(run, {name: t.to(device) for name, t in inputs.items()}, ("embeddings",))
    want = value_and_gradients(partial(first_of_the_hardest, margin=0.3), inputs, ("embeddings",))
    assert all(error(got[name], want[name].double()) <= 1e-6 for name in want)


@pytest.mark.parametrize(("name", "reduction"), in_turn(LOSSES, ("none", "mean", "totals")))
def test_every_output_is_written(name, reduction, backend, device):
    """New tensors are filled with NaN."""
    loss, n = LOSSES[name], 2 * (list(LOSSES).index(name) % 2)
    reduction = reduction if reduction in loss.reductions else "mean"
    before = torch.are_deterministic_algorithms_enabled()
    inputs = inputs_of(loss, max(n, 2), 5, "few", device)
    cut = {"embeddings", "labels", "probabilities"} | ({"ref_emb"} if "labels" not in inputs else set())
    inputs = {k: t[:n] if k in cut else t for k, t in inputs.items()}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run = partial(loss.fused, reduction=reduction, backend=backend)
        assert all(t.isfinite().all() for t in value_and_gradients(run, inputs, loss.trained).values())
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", of_one_side(SPREAD))
def test_undefined(name, backend, device):
    if backend == "cuda" and re.search("triplet.*(all|semihard|facenet)", name):
        pytest.skip("Triton's, or the reference's")
    loss = SPREAD[name]
    reductions = [r for r in loss.reductions if r in BY_ROWS]
    at = list(SPREAD).index(name)
    cases = CASES
    if device == "cpu":  # slowly, in the emulator, or the interpreter with milliseconds a launch
        cases = FEW[at % 2 :][:1] if backend == "triton" else CASES[at % 3 :: 3]
    for case in cases:
        found = list(faults(loss, case, 12, backend, reductions[at // 2 % len(reductions)], device=device))
        assert not found, "\n".join(found)


@of_triton
@pytest.mark.parametrize("name", ["contrastive-dot", "supcon-cosine", "ntxent-cosine"])
def test_undefined_where_kernels_make_products(name, backend, device):
    for case in FEW:
        found = list(faults(LOSSES[name], case, 12, backend, dtype=torch.bfloat16, device=device, d=16))
        assert not found, "\n".join(found)


@pytest.mark.parametrize(("name", "distance"), in_turn(collapsed.CALLS, ["unit_euclidean", "sqeuclidean"]))
def test_collapsed(name, distance, backend, device, small_rectangles):
    n = 132 if name in ("pairwise_distance", "supcon") else 36
    found = list(collapsed.faults(distance, (n, 16, 1e-6), backend, device, [name]))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", [(1, 1), (67, None), (130, 33), (3, 0)])
def test_pairwise_distance(metric, sizes, backend, device, small_rectangles):
    n, m = sizes
    generator = torch.Generator().manual_seed(n)
    inputs = {"x": embeddings(n, 9, generator)}
    if m is not None:
        inputs["y"] = embeddings(m, 9, generator)
        inputs["y"][: min(n, m) // 3] = inputs["x"][: min(n, m) // 3]
    inputs = {k: t.to(device) for k, t in cast(inputs, torch.float32).items()}
    incoming = torch.randn((n if m is None else m, n), generator=generator).to(device).T
    run = partial(FP.pairwise_distance, metric=metric)
    got = value_and_gradients(partial(run, backend=backend), inputs, tuple(inputs), incoming)
    want = value_and_gradients(partial(run, backend="reference"), cast(inputs, torch.float64), tuple(inputs), incoming)
    # The derivative of a distance has no limit at zero.
    for name in want:
        assert error(got[name], want[name], floor=0.1) <= (2e-5 if name != "value" else 1e-5)


class TensorFloat32(TorchDispatchMode):
    """Rounds the factors of float32 products to 11 bits, as a GPU does where it is told to."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if "mm" in function.overloadpacket.__name__:
            arguments = [*arguments[:-2], *map(self.rounded, arguments[-2:])]
        return function(*arguments, **(options or {}))

    @staticmethod
    def rounded(x):
        return (x.view(torch.int32) + (1 << 12) >> 13 << 13).view(torch.float32) if x.dtype == torch.float32 else x


@of_triton
@pytest.mark.parametrize(("distance", "spread"), in_turn(METRICS, [1.0, 1e-2]))
def test_tensor_float_32(distance, spread, backend, device):
    """Distances, which are differences of products, are off by no more than those of dense PyTorch."""
    generator = torch.Generator().manual_seed(4)
    centers, labels = embeddings(8, 32, generator), torch.arange(48) % 8
    x = torch.nn.functional.normalize(centers[labels] + spread * embeddings(48, 32, generator))
    loss = pair_loss("supcon_loss", distance=distance, temperature=0.2)[f"supcon-{distance}"]
    inputs = {"embeddings": x.float().to(device), "labels": labels.to(device)}
    want = oracle(loss, inputs)
    with TensorFloat32():
        got = value_and_gradients(partial(loss.fused, backend=backend), inputs, loss.trained)
        dense = value_and_gradients(loss.dense, inputs, loss.trained)
    errors = {name: error(dense[name], want[name]) for name in want}
    assert max(errors.values()) > 1e-6  # of rounding
    assert all(error(got[name], want[name]) <= max(2 * errors[name], 1e-5) for name in want)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_more_distances_than_32_bits_count(backend, device):
    x = torch.zeros(46_342, 1, device=device)
    with pytest.raises(RuntimeError, match="46342 x 46342 distances are too many for the cuda backend"):
        FP.pairwise_distance(x, None, "dot", backend=backend)


def test_classes_in_several_blocks(backend, device):
    loss = LOSSES["linear_cross_entropy-smooth-ignore"]
    generator = torch.Generator().manual_seed(5)
    inputs = cast(loss.inputs(9, 7, "few", generator), torch.float32)
    inputs["weight"], inputs["bias"] = torch.randn(5001, 7, generator=generator), torch.randn(5001, generator=generator)
    inputs = {k: t.to(device) for k, t in inputs.items()}
    assert_matches_oracle(loss, inputs, backend=backend)


@of_triton
def test_rows_in_several_blocks(backend, device, monkeypatch):
    module = importlib.import_module("fastpair.backends.triton.linear_cross_entropy")
    monkeypatch.setattr(module, "LOGITS", 1)
    monkeypatch.setattr(module, "MIN_ROWS", 16)
    for name in ("linear_cross_entropy-smooth-ignore", "arcface"):
        loss = LOSSES[name]
        inputs = inputs_of(loss, 40, 6, "few", device)
        for reduction in ("mean", "none"):
            assert_matches_oracle(loss, inputs, reduction, incoming_of(loss, inputs, reduction), backend=backend)


def test_a_label_that_is_no_class_shows(backend, device, monkeypatch):
    # Labels on a device are not looked at before the kernel reads them.
    monkeypatch.setattr("fastpair.ops.checks.class_range", lambda *_: None)
    x, weight = torch.randn(4, 3, device=device), torch.randn(5, 3, device=device)
    losses = FP.linear_cross_entropy(
        x, weight, torch.tensor([0, 5, -1, 4], device=device), reduction="none", backend=backend
    )
    assert losses.isnan().tolist() == [False, True, True, False]


def test_same_bits_every_time(backend, gpu):
    """Here alone: threads of the emulator run in an order of choice, and the interpreter has one."""
    for name in ("supcon-euclidean-refs", "contrastive-euclidean", "triplet_margin-unit_euclidean-hard", "spce_loss"):
        loss = LOSSES[name]
        inputs = inputs_of(loss, 130, 9, "few", gpu)
        run = partial(loss.fused, backend=backend)
        first, second = (value_and_gradients(run, inputs, loss.trained) for _ in range(2))
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_twice_through_a_graph_and_never_twice_differentiated(backend, device):
    loss = LOSSES["supcon-cosine"]
    inputs = inputs_of(loss, 33, 5, "few", device)
    x = inputs["embeddings"].requires_grad_()
    value = loss.fused(**inputs, backend=backend)
    first, second = (
        torch.autograd.grad(value, x, torch.tensor(2.0, device=device), retain_graph=True)[0] for _ in "ab"
    )
    assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        gradient.sum().backward()


def test_float64_is_refused(backend, device):
    x, labels = torch.randn(4, 3, dtype=torch.float64, device=device), torch.tensor([0, 0, 1, 1], device=device)
    with pytest.raises(RuntimeError, match="float32, bfloat16 and float16"):
        FP.supcon_loss(x, labels, backend=backend)


@of_triton
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("gallery", [False, True])
def test_recall(metric, gallery, backend, device, small_rectangles):
    """Against whole sorted neighbourhoods; some items occur twice, in different classes, and one is NaN."""
    generator = torch.Generator().manual_seed(11)
    n, m = 140, 270
    query, labels = torch.randn(n, 3, generator=generator), torch.randint(40, (n,), generator=generator)
    query[70:100] = query[:30]
    query[5, 0] = torch.nan
    items, item_labels = None, None
    if gallery:
        items, item_labels = torch.randn(m, 3, generator=generator), torch.randint(60, (m,), generator=generator)
        items[200:] = items[:70]
    arguments = [t if t is None else t.to(device) for t in (query, labels, items, item_labels)]
    arguments[0].requires_grad_()  # as embeddings of a model may
    depths = [1, 2, 4, 30, 500]
    with fastpair.use_backend(backend):
        got = fastpair.retrieval.recall_at_k(*arguments, k=depths, metric=metric)
    with fastpair.use_backend("reference"):
        want = fastpair.retrieval.recall_at_k(*arguments, k=depths, metric=metric)
    assert got == want


@of_triton
def test_recall_without_a_shared_class(backend, device):
    x = torch.randn(4, 3, device=device)
    with fastpair.use_backend(backend), pytest.raises(ValueError, match="share a class"):
        fastpair.retrieval.recall_at_k(x, torch.arange(4, device=device))
