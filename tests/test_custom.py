"""Losses that users write: values and gradients against formulas typed in PyTorch, errors, and the compiler's cache."""

import copy
import math
import os
import pickle
import stat
import textwrap
import warnings

import numpy as np
import pytest
import torch
from covering import covering, in_turn
from custom_losses import (
    CUSTOM,
    CUSTOM_FUNCTIONS,
    circle,
    contrastive,
    expected,
    infinite_elsewhere,
    multi_similarity,
    pairs_of,
)
from forks import Program

import fastpair
from fastpair import functional
from fastpair.backends import added, cpu_extension, dense
from fastpair.formulas import exp, explain, log, minimum, negatives_lse, relu, softplus, sqrt, to_cpp, where
from fastpair.formulas.pair_losses import FORMULAS
from fastpair.losses import CrossBatchMemory, CustomPairLoss

# What is tested is the kernels, not what computes a loss without them.
pytestmark = pytest.mark.filterwarnings("error:fastpair computes the loss")
needs_compiler = pytest.mark.skipif(cpu_extension is None, reason="fastpair is built without its CPU kernels")


@pytest.fixture
def vectors(monkeypatch):
    """Loops are compiled for vectors, as for users, with the rest of -O3 left out."""
    monkeypatch.setenv("CXXFLAGS", os.environ["CXXFLAGS"].replace("-O0", "-O1"))


# As users write them, and as the package has them.
SAME = {
    "multi_similarity": (multi_similarity, functional.multi_similarity_loss),
    "circle": (circle, functional.circle_loss),
    "contrastive": (
        contrastive,
        lambda *args, **of: functional.contrastive_loss(*args, pos_margin=1.0, neg_margin=0.2, distance="cosine", **of),
    ),
}


def batch(n=48, d=12, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=dtype)
    return x.requires_grad_(), torch.randint(0, max(n // 4, 1), (n,), generator=generator)


def with_gradient(loss, x, *arguments, **settings):
    value = loss(x, *arguments, **settings)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    return value, *torch.autograd.grad((value * weights).sum(), x)


@covering(
    name=SAME.keys(),
    reduction=["mean", "sum", "none", "totals"],
    dtype=[torch.float32, torch.float64],
    backend=["cpu", "reference"],
)
def test_a_loss_of_the_package_written_again(name, reduction, dtype, backend, vectors):
    custom, built_in = SAME[name]
    x, labels = batch(dtype=dtype)
    with fastpair.use_backend(backend):
        value, gradient = with_gradient(custom(reduction=reduction), x, labels)
        expected, of_expected = with_gradient(built_in, x, labels, reduction=reduction)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, of_expected)


BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def assert_is(of, loss, x, y, labels, ref_labels=None, distance="cosine", reduction="mean", **settings):
    """Value and gradients are those of the dense formula in float64."""
    arguments = (x, labels) if ref_labels is None else (x, labels, None, y, ref_labels)
    inputs = [x] if ref_labels is None else [x, y]
    value = loss(*arguments)
    weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).reshape(value.shape)
    got = torch.autograd.grad((value * weights).sum(), inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    s = dense.closeness(wide[0], wide[-1], distance)
    want = expected(of, s, *pairs_of(labels, ref_labels), reduction, **settings)
    of_wide = torch.autograd.grad((want * weights).sum(), wide)
    near = {"rtol": 2e-5, "atol": 2e-6} if x.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(value.double(), want, **near)
    for one, other in zip(got, of_wide):
        torch.testing.assert_close(one.double(), other, **near)


@BACKENDS
@pytest.mark.parametrize(("name", "dtype"), in_turn(CUSTOM_FUNCTIONS, [torch.float64, torch.float32]))
def test_functions(name, dtype, backend, vectors):
    of = CUSTOM_FUNCTIONS[name]
    x, labels = batch(dtype=dtype)
    labels[:2], labels[2] = 100, 101  # some have no positive
    with fastpair.use_backend(backend):
        assert_is(of, of.make(), x, x, labels)


@covering(name=CUSTOM.keys(), reduction=["mean", "sum", "none", "totals"], backend=["cpu", "reference"])
def test_formulas_of_every_kind(name, reduction, backend, vectors):
    of = CUSTOM[name]
    x, labels = batch()
    y, ref_labels = batch(70, seed=1)
    labels[0] = 100
    with fastpair.use_backend(backend):
        loss = of.make(reduction=reduction)
        assert_is(of, loss, x, x, labels, reduction=reduction)
        assert_is(of, loss, x, y, labels, ref_labels, reduction=reduction)
        # For another distance, which is compiled anew: one.
        loss.distance, loss.a = "unit_euclidean" if name == "everything" else "cosine", 0.5
        assert_is(of, loss, x, y, labels, ref_labels, loss.distance, reduction, a=0.5)


@BACKENDS
def test_what_is_infinite_elsewhere(backend, monkeypatch):
    """No NaN comes from there."""
    loss = infinite_elsewhere()
    x, labels = batch(40)
    labels[:5] = torch.arange(100, 105)
    unit = torch.nn.functional.normalize(x)
    positives, negatives = pairs_of(labels)
    s = torch.where(positives | negatives, unit @ unit.T, 0.5)
    several = positives.sum(1) > 1
    inside = torch.where(several, torch.where(positives, (1 - s).sqrt() + 1 / (1 - s), 0).sum(1), 1).log()
    others = torch.where(negatives, (1 - s).log(), -torch.inf).logsumexp(1)
    want = (inside + torch.nn.functional.softplus(others)).mean()
    (of_want,) = torch.autograd.grad(want, x)
    for block in (1 << 22, 7 * len(x)):
        monkeypatch.setattr(dense, "BLOCK_SCORES", block)
        with fastpair.use_backend(backend):
            value, gradient = with_gradient(loss, x, labels)
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(gradient, of_want)


@BACKENDS
@pytest.mark.parametrize("distance", ["euclidean", "unit_euclidean", "sqeuclidean"])
def test_distances_of_zero(distance, backend):
    """Have gradient zero, also where the slope of the term is infinite."""
    loss = CustomPairLoss(lambda s, p: sqrt(-s), lambda s, p: s, lambda P, N, p: P.mean + N.lse, distance=distance)
    x, labels = batch(16)
    with torch.no_grad():
        x[1], labels[1] = x[0], labels[0]
    s = dense.closeness(x, x, distance)
    positives, negatives = pairs_of(labels)
    apart = positives & (s != 0)
    total = torch.where(apart, torch.where(apart, -s, 1).sqrt(), 0).sum(1)
    counted = positives.any(1)
    lse = torch.where(negatives, s, -torch.inf).logsumexp(1)
    want = torch.where(counted, total / positives.sum(1).clamp(min=1) + lse, 0).sum() / counted.sum()
    with fastpair.use_backend(backend):
        value, gradient = with_gradient(loss, x, labels)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(gradient, *torch.autograd.grad(want, x))


@BACKENDS
def test_terms_that_read_the_negatives(backend):
    loss = CustomPairLoss(
        lambda s, p: softplus(negatives_lse - log(1.5 - s) - s / p.tau) + exp(negatives_lse - s),
        lambda s, p: where(s < 0.5, s / p.tau, sqrt(relu(s))),
        lambda P, N, p: P.mean,
        tau=0.5,
    )
    x, labels = batch()
    unit = torch.nn.functional.normalize(x)
    positives, negatives = pairs_of(labels)
    s = torch.where(positives | negatives, unit @ unit.T, 0.4)
    v = torch.where(s < 0.5, s / 0.5, s.clamp(min=0.1).sqrt())
    lse = torch.where(negatives, v, -torch.inf).logsumexp(1, keepdim=True)
    u = torch.nn.functional.softplus(lse - (1.5 - s).log() - s / 0.5) + (lse - s).exp()
    want = torch.where(positives, u, 0).sum(1) / positives.sum(1).clamp(min=1)
    want = want.sum() / positives.any(1).sum()
    with fastpair.use_backend(backend):
        value, gradient = with_gradient(loss, x, labels)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(gradient, *torch.autograd.grad(want, x))


def test_references_lists_and_memory():
    x, labels = batch()
    y, ref_labels = batch(70, seed=1)
    loss, built_in = multi_similarity(), fastpair.losses.MultiSimilarityLoss()
    pairs = tuple(torch.tensor(rows) for rows in ((0, 1, 2), (3, 4, 5), (6, 7, 0), (9, 8, 7)))
    for arguments in ({"ref_emb": y, "ref_labels": ref_labels}, {"indices_tuple": pairs}):
        torch.testing.assert_close(loss(x, labels, **arguments), built_in(x, labels, **arguments))
    memories = [CrossBatchMemory(one, embedding_size=12, memory_size=64).double() for one in (loss, built_in)]
    for _ in range(2):
        one, other = (memory(x, labels) for memory in memories)
        torch.testing.assert_close(one, other)


def test_blocks_of_rows(monkeypatch):
    x, labels = batch()
    loss = multi_similarity()
    with fastpair.use_backend("reference"):
        whole, of_whole = with_gradient(loss, x, labels)
        monkeypatch.setattr("fastpair.backends.dense.BLOCK_SCORES", 7 * len(x))
        value, gradient = with_gradient(loss, x, labels)
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(gradient, of_whole)


@pytest.mark.parametrize("name", CUSTOM)
def test_lists(name):
    """Of all pairs, and of some, where an anchor may have none."""
    of = CUSTOM[name]
    x, labels = batch(20)
    positives, negatives = pairs_of(labels)
    for some in (slice(None), slice(5, 70)):
        rows = [t[some] for mask in (positives, negatives) for t in mask.nonzero(as_tuple=True)]
        masks = [torch.zeros_like(positives).index_put((i, j), torch.tensor(True)) for i, j in (rows[:2], rows[2:])]
        for reduction in ("mean", "none"):
            value, gradient = with_gradient(of.make(reduction=reduction), x, None, tuple(rows))
            want = expected(of, dense.closeness(x, x, "cosine"), *masks, reduction)
            weights = torch.arange(1.0, want.numel() + 1, dtype=want.dtype).reshape(want.shape)
            torch.testing.assert_close(value, want)
            torch.testing.assert_close(gradient, *torch.autograd.grad((want * weights).sum(), x))


@BACKENDS
@pytest.mark.parametrize("name", CUSTOM)
def test_gradcheck(name, backend):
    x, labels = batch(9, 3)
    y, ref_labels = batch(7, 3, seed=1)
    loss = CUSTOM[name].make(reduction="none")
    with fastpair.use_backend(backend):
        assert torch.autograd.gradcheck(lambda x, y: loss(x, labels, None, y, ref_labels), (x, y))


def test_no_pairs():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for name, of in CUSTOM.items():
        if name == "anchor":  # its loss without pairs is 1
            continue
        for labels in (torch.zeros(5, dtype=int), torch.arange(5)):
            value, gradient = with_gradient(of.make(), x, labels)
            assert value.isfinite() and gradient.isfinite().all()


def test_autocast():
    x, labels = batch(dtype=torch.float32)
    for loss in (multi_similarity(), CUSTOM["everything"].make()):
        value, gradient = with_gradient(loss, x, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = loss(x, labels)
        assert torch.equal(mixed, value) and torch.equal(*torch.autograd.grad(mixed, x), gradient)
        half = x.detach().bfloat16().requires_grad_()
        value, gradient = with_gradient(loss, half, labels)
        assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16


def test_a_second_derivative_is_an_error():
    x, labels = batch()
    (gradient,) = torch.autograd.grad(multi_similarity()(x, labels), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.sum().backward()


def test_copies_and_repr(forks, tmp_path):
    x, labels = batch()
    loss = multi_similarity(distance="dot")
    shown = repr(loss)
    assert "negative=p.beta * (s - p.base), anchor=softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta" in shown
    assert "beta=50.0" in shown and "distance='dot'" in shown
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(other(x, labels), loss(x, labels)) and repr(other) == shown
    code = (
        "import sys, pickle, torch; loss, x, labels = pickle.load(open(sys.argv[1], 'rb')); "
        "print(loss(x, labels).item() == float(sys.argv[2]))"
    )
    path = tmp_path / "loss.pickle"
    path.write_bytes(pickle.dumps((loss, x.detach(), labels)))
    assert forks.run(code, path, repr(loss(x, labels).item())) == "True\n"
    loss.beta = 10.0
    assert torch.equal(loss(x, labels), multi_similarity(distance="dot", beta=10.0)(x, labels))


def test_compiled():
    x, labels = batch()
    loss = multi_similarity()
    value, gradient = with_gradient(loss, x, labels)
    one, other = with_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, labels)
    torch.testing.assert_close((one, other), (value, gradient))


def test_compiled_for_any_batch():
    torch._dynamo.reset()
    loss = circle(gamma=5.0)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (12, 17, 30):
            x, labels = batch(n, 5)
            torch.testing.assert_close(with_gradient(compiled, x, labels), with_gradient(loss, x, labels))


def test_numbers_of_any_size():
    x, labels = batch()
    loss = CustomPairLoss(
        lambda s, p: 10**20 * s, lambda s, p: s / 2.0**70, lambda P, N, p: where(P.sum > 1e12, 3, minimum(N.sum, 2)) / 8
    )
    with fastpair.use_backend("reference"):
        want = with_gradient(loss, x, labels)
    torch.testing.assert_close(with_gradient(loss, x, labels), want)


def test_an_empty_batch():
    x, labels = batch(0)
    value, gradient = with_gradient(multi_similarity(), x, labels)
    assert value.item() == 0 and gradient.shape == x.shape


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (lambda s, p: s if s > 0 else -s, "positive cannot be traced: a formula cannot branch on a value, as if, and"),
        (lambda s, p: where((s > 0) and (s < 1), s, 0), "of conditions a \\* b, maximum"),
        (lambda s, p: where(not s, s, 0), "of conditions a \\* b, maximum"),
        (lambda s, p: max(s, 0), "and minimum and maximum"),
        (lambda s, p: torch.exp(s), "torch.exp cannot be in a formula: write the functions of fastpair.formulas"),
        (lambda s, p: torch.ones(2) * s, "got Tensor|torch.mul cannot be in a formula"),
        (lambda s, p: math.exp(s), "write exp, log and so on of fastpair.formulas, not of math"),
        (lambda s, p: np.exp(s), "numpy.exp cannot be in a formula: write the operators and functions"),
        (lambda s, p: s.exp(), "a symbol has no attribute 'exp': write functions of fastpair.formulas"),
        (lambda s, p: p.gamma * s, "the loss has no parameter 'gamma'; it was given alpha"),
        (lambda s, p: "x", "got str"),
        (lambda s, p: None, "got NoneType"),
        (lambda s, p: (s, s), "got tuple"),
        (lambda s, p: torch.ones(2), "positive cannot be traced: .* got Tensor"),
        (
            lambda s, p: where(s == 0, s, 0),
            "a formula has no == and !=: write where\\(nonzero",
        ),
        (lambda s, p: s if 2 * s != 0 else -s, "a formula has no == and !="),
        (lambda s: s, "positive must be a function of \\(s, p\\): too many positional arguments"),
        (torch.exp, "positive must be a function of \\(s, p\\)"),
        (3.0, "positive must be a function of \\(s, p\\), got float"),
    ],
)
def test_what_cannot_be_traced(positive, message):
    with pytest.raises(TypeError, match=message):
        CustomPairLoss(positive, lambda s, p: s, lambda P, N, p: P.sum + N.sum, alpha=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"anchor": lambda P, N, p: P.median},
            "anchor cannot be traced: P and N have lse, sum, mean",
        ),
        ({"anchor": lambda P, N: P.sum}, "anchor must be a function of \\(P, N, p\\)"),
        ({"anchor": lambda P, N, p: P}, "anchor cannot be traced: .* got Kind"),
        ({"anchor": lambda P, N, p: where(P.lse == N.lse, 0, 1)}, "a formula has no == and !="),
        ({"count": lambda P, N: 1}, "count must be a function of \\(P, N, p\\)"),
        ({"count": "pairs"}, "count must be a function of \\(P, N, p\\), got str"),
        ({"negative": None}, "negative must be a function of \\(s, p\\), got NoneType"),
    ],
)
def test_what_cannot_be_traced_elsewhere(arguments, message):
    with pytest.raises(TypeError, match=message):
        CustomPairLoss(
            **{"positive": lambda s, p: s, "negative": lambda s, p: s, "anchor": lambda P, N, p: P.sum, **arguments}
        )


def test_numbers_of_numpy_are_numbers():
    of = [
        lambda s, p: 2 * s,
        lambda s, p: np.float32(2) * s,
        lambda s, p: s * np.float64(2),
        lambda s, p: np.int64(2) * s,
    ]
    formulas = [CustomPairLoss(one, one, lambda P, N, p: P.sum + N.sum).formula for one in of]
    assert len({to_cpp.struct(formula).replace(to_cpp.struct_name(formula), "") for formula in formulas}) == 2  # 2s, s2


def test_explain():
    loss = multi_similarity()
    shown = explain(loss)
    for part in (
        f"The pair loss {loss.formula.name}",
        "negative:  p.beta * (s - p.base)",
        "anchor:    softplus(P.lse) / p.alpha + softplus(N.lse) / p.beta",
        "du/ds =    -p.alpha",
        "dL/dv =    sigmoid(N.lse) / p.beta * share",
        "FASTPAIR_INLINE T negative(T s, T) const { return product(p_beta, s - p_base); }",
        f"def {loss.formula.name}_terms(s, negatives_lse, at_of_anchor, room_of_anchor, at_of_ref, room_of_ref, p_",
        "neg_lse = log_sum_exp(v, negative)",
    ):
        assert part in shown, shown
    supcon = explain("supcon")
    assert "dL/du =    sigmoid(-(N.lse - P.lse)) * share + -1 / P.pairs" in supcon
    for same in (fastpair.losses.SupConLoss, fastpair.losses.SupConLoss(), functional.supcon_loss, FORMULAS["supcon"]):
        assert explain(same) == supcon
    assert explain(fastpair.losses.ContrastiveLoss(power=2)) == explain("squared_contrastive")
    assert "du/dN.lse = sigmoid(negatives_lse - p.scale * s)" in explain(functional.ntxent_loss)
    with pytest.raises(ValueError, match="loss must be the name of a formula, one of contrastive, .* got 'arcface'"):
        explain("arcface")
    for other in (functional.spce_loss, fastpair.losses.SPCELoss(), fastpair.losses.TripletMarginLoss, 3):
        with pytest.raises(TypeError, match="loss must be a pair loss with a formula, or the name of one, got"):
            explain(other)


def test_what_kernels_cannot_compute():
    with pytest.raises(ValueError, match="negatives have a sum or a log-sum-exp, not both"):
        CustomPairLoss(lambda s, p: s, lambda s, p: s, lambda P, N, p: P.sum + N.lse + N.sum)
    with pytest.raises(ValueError, match="alpha must be finite"):
        multi_similarity(alpha=float("nan"))
    for name in ("backend", "formula", "training", "forward", "embeddings"):
        with pytest.raises(ValueError, match=f"a parameter cannot have the name '{name}'"):
            multi_similarity(**{name: 1.0})
    loss = multi_similarity()
    loss.alpha = math.inf
    with pytest.raises(ValueError, match="alpha must be finite"):
        loss(*batch())
    loss = multi_similarity()
    loss.reduction = "median"
    with pytest.raises(ValueError, match="reduction must be one of"):
        loss(*batch())
    with pytest.raises(ValueError, match="needs must be one of 'positives', 'negatives', got 'P'"):
        CustomPairLoss(lambda s, p: s, lambda s, p: s, lambda P, N, p: P.sum + N.sum, needs=["P"])


# ---- the compiler and its cache

CALL = textwrap.dedent(
    """
    import sys, time, torch, fastpair
    loss = fastpair.losses.CustomPairLoss(
        lambda s, p: -s, lambda s, p: p.scale * s, lambda P, N, p: P.sum + N.lse, needs=["negatives"], scale=3.0
    )
    x, labels = torch.ones(4, 2), torch.arange(4) // 2
    fastpair.functional.supcon_loss(x, labels)
    start = time.perf_counter()
    value = loss(x, labels)
    print(value.item(), time.perf_counter() - start)
    """
)


@pytest.fixture
def call(forks):
    """``call(cache, **environment)`` calls a loss in a new process, which compiles it as it is for users."""
    return lambda cache, **environment: forks.start(CALL, FASTPAIR_CACHE=str(cache), CXXFLAGS="", **environment)


def finished(program: Program) -> tuple[float, float, str]:
    done = program.wait()
    assert done.returncode == 0, done.stderr
    return *map(float, done.stdout.split()), done.stderr


@needs_compiler
def test_processes_share_what_one_has_compiled(call, tmp_path):
    cache = tmp_path / "cache"
    together = [finished(program) for program in [call(cache) for _ in range(2)]]
    (library,) = cache.iterdir()
    assert library.suffix == ".so" and stat.S_IMODE(cache.stat().st_mode) == 0o700
    made = library.stat().st_mtime_ns
    value, seconds, errors = finished(call(cache))
    assert library.stat().st_mtime_ns == made and not errors
    assert {value} == {one for one, *_ in together}
    assert seconds < 0.5  # compiling takes more


@needs_compiler
def test_without_a_compiler_the_loss_is_dense_and_says_so(call, tmp_path):
    for compiler in ("no-such-compiler", "false"):
        value, _, warned = finished(call(tmp_path / "none", CXX=compiler))
        # All cosines are 1: the sums of -1 over the one positive, and log 2 and the scale of the two negatives.
        assert abs(value - (math.log(2) + 3 - 1)) < 1e-5
        assert warned.count("RuntimeWarning") == 1 and f"cannot be compiled with {compiler}" in warned


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_used(call, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    finished(call(cache))
    assert not list(cache.iterdir())


@needs_compiler
def test_other_formulas_and_flags_are_other_libraries(monkeypatch):
    one, other = (
        CustomPairLoss(lambda s, p, k=k: k * s, lambda s, p: s, lambda P, N, p: P.sum + N.sum) for k in (1, 2)
    )
    assert one.formula.name != other.formula.name
    kinds = ((one, "float"), (one, "double"), (other, "float"))
    made = {added.library(of.formula, scalar, "Dot") for of, scalar in kinds}
    with monkeypatch.context() as patch:
        patch.setenv("CXXFLAGS", "-O0 -Werror")
        made.add(added.library(one.formula, "float", "Dot"))
    assert len(made) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, labels = batch()
        torch.testing.assert_close(one(-x, labels), one(x, labels))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_listed_pairs_of_a_loss_without_parameters(backend):
    settings = {"distance": "dot", "reduction": "sum"}
    loss = CustomPairLoss(lambda s, p: -s, lambda s, p: s * s, lambda P, N, p: P.sum + N.sum, **settings)
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    i, j, k = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2, 3])
    with fastpair.use_backend(backend):
        value = loss(x, torch.arange(8) // 2, indices_tuple=(i, j, i, k))
    s = x @ x.T
    torch.testing.assert_close(value, (s[i, k].square() - s[i, j]).sum())
