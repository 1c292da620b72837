"""Losses that users write on the Triton kernels: values and gradients against formulas typed in PyTorch, and what the
compiler makes of them."""

from itertools import islice

import pytest
import torch
from covering import covering, in_turn
from custom_losses import CUSTOM, CUSTOM_FUNCTIONS, LEARNING, expected, infinite_elsewhere, pairs_of, scalars_of
from support import DTYPES, error, operator_calls

import fastpair
from fastpair import functional
from fastpair.backends import dense
from fastpair.backends.triton import pairs
from fastpair.formulas import sqrt
from fastpair.losses import CustomPairLoss
from fastpair.ops import registration

of_triton = pytest.mark.parametrize("backend", ["triton"], indirect=True)
TOLERANCE = {torch.float32: 1e-5}


def inputs_of(n, m, d, dtype, device):
    generator = torch.Generator().manual_seed(n + m)
    x, y = (torch.randn(rows, d, generator=generator).to(dtype) for rows in (n, m))
    labels, ref_labels = (torch.randint(9, (rows,), generator=generator) for rows in (n, m))
    labels[0] = 100  # has no positive
    return [t.to(device) for t in (x, y, labels, ref_labels)]


def assert_is(of, x, y, labels, ref_labels, distance, reduction, references):
    """Value and gradients are those of the dense formula in float64: for half precision within twice the error that it
    makes in that precision."""
    inputs = [t.detach().requires_grad_() for t in ((x, y) if references else (x,))]
    settings = {"distance": distance, "reduction": reduction}
    arguments = (inputs[0], labels, None, inputs[1], ref_labels) if references else (inputs[0], labels)

    def with_gradients(value, inputs):
        weights = torch.arange(1.0, value.numel() + 1, device=value.device, dtype=value.dtype).reshape(value.shape)
        return [value.detach(), *torch.autograd.grad((value * weights).sum(), inputs)]

    def dense_in(dtype):
        rows = [t.detach().cpu().to(dtype).requires_grad_() for t in inputs]
        s = dense.closeness(rows[0], rows[-1], distance)
        masks = pairs_of(labels.cpu(), ref_labels.cpu() if references else None)
        return with_gradients(expected(of, s, *masks, reduction), rows)

    with fastpair.use_backend("triton"):
        got = with_gradients(of.make(**settings)(*arguments), inputs)
    want = dense_in(torch.float64)
    tolerated = [TOLERANCE.get(x.dtype)] * len(want)
    if x.dtype not in TOLERANCE:
        eps = torch.finfo(x.dtype).eps
        tolerated = [max(2 * error(a, b), eps) for a, b in zip(dense_in(x.dtype), want)]
    for one, other, most in zip(got, want, tolerated):
        assert error(one, other) <= most


@of_triton
@pytest.mark.parametrize("name", CUSTOM_FUNCTIONS)
def test_functions(name, backend, device):
    assert_is(CUSTOM_FUNCTIONS[name], *inputs_of(33, 33, 6, torch.float32, device), "cosine", "mean", False)


@of_triton
@covering(
    lambda known: (known["name"], known.get("distance")) != ("sum", "unit_sqeuclidean"),  # a negative number's root
    name=CUSTOM.keys(),
    distance=["cosine", "unit_euclidean", "unit_sqeuclidean"],
    reduction=["mean", "none", "totals"],
    references=[False, True],
)
def test_formulas_of_every_kind(name, distance, reduction, references, backend, device):
    assert_is(CUSTOM[name], *inputs_of(33, 45, 6, torch.float32, device), distance, reduction, references)


@of_triton
@pytest.mark.parametrize(("name", "dtype"), in_turn(CUSTOM, ["bfloat16", "float16"]))
def test_half_precision(name, dtype, backend, device):
    """The products read, and, where exponentials are bounded or none are taken, made by the kernels."""
    for d in (17, 16):
        assert_is(CUSTOM[name], *inputs_of(33, 33, d, DTYPES[dtype], device), "cosine", "mean", False)


@of_triton
def test_several_rectangles(backend, device, monkeypatch):
    monkeypatch.setattr(pairs, "HEIGHT", 128)
    monkeypatch.setattr(pairs, "WIDTH", 128)
    for name in ("lse_and_mean", "parts"):
        assert_is(CUSTOM[name], *inputs_of(140, 135, 5, torch.float32, device), "cosine", "mean", True)


@of_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_infinite_elsewhere(dtype, backend, device):
    """No NaN comes from there."""
    loss = infinite_elsewhere()
    x, _, labels, _ = inputs_of(33, 33, 16, DTYPES[dtype], device)
    got, want = [], []
    for made, backend_of, rows in ((got, backend, x), (want, "reference", x.double())):
        rows = rows.detach().requires_grad_()
        with fastpair.use_backend(backend_of):
            value = loss(rows, labels)
        made += [value, *torch.autograd.grad(value, rows)]
    for one, other in zip(got, want):
        assert error(one, other) <= (1e-5 if dtype == "float32" else 0.02)


@of_triton
@pytest.mark.parametrize("distance", ["euclidean", "unit_euclidean", "sqeuclidean"])
def test_distances_of_zero(distance, backend, device):
    """Have gradient zero, also where the slope of the term is infinite."""
    loss = CustomPairLoss(lambda s, p: sqrt(-s), lambda s, p: s, lambda P, N, p: P.mean + N.lse, distance=distance)
    x, _, labels, _ = inputs_of(33, 33, 6, torch.float32, device)
    x[1], labels[1] = x[2], labels[2]
    results = []
    for name, rows in (("triton", x), ("reference", x.double())):
        rows = rows.detach().requires_grad_()
        with fastpair.use_backend(name):
            value = loss(rows, labels)
        results.append([value, *torch.autograd.grad(value, rows)])
    assert all(error(one, other) <= 1e-5 for one, other in zip(*results))


@of_triton
@pytest.mark.parametrize(
    ("name", "references", "reduction"), in_turn(LEARNING, [False, True], ["mean", "mean", "none"])
)
def test_parameters_that_learn_and_numbers_of_rows(name, references, reduction, backend, device, monkeypatch):
    """In several rectangles: a pair counts once for each of its samples that is an anchor."""
    monkeypatch.setattr(pairs, "HEIGHT", 128)
    monkeypatch.setattr(pairs, "WIDTH", 128)
    x, y, labels, ref_labels = inputs_of(140, 135, 5, torch.float32, device)
    w, q = (torch.rand(len(t), generator=torch.Generator().manual_seed(3)).to(device) for t in (x, y))
    results = []
    for name_of, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        loss = LEARNING[name].make(reduction=reduction).to(device)
        rows = [t.to(dtype).requires_grad_() for t in ((x, y) if references else (x,))]
        more = {"ref_emb": rows[1], "ref_labels": ref_labels} if references else {}
        scalars = scalars_of(loss.formula, w, q if references else w.flip(0))
        with fastpair.use_backend(name_of):
            value = loss(rows[0], labels, **more, **scalars)
        weights = torch.arange(1.0, value.numel() + 1, device=device).reshape(value.shape)
        gradients = torch.autograd.grad((value * weights).sum(), [*rows, loss.a, loss.b], materialize_grads=True)
        results.append([value, *gradients])
    for one, other in zip(*results):
        assert error(one, other) <= 3e-5


@of_triton
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("supcon", ("ref_bias",)),
        ("dcl", ("ignore_above",)),
        ("ntxent", ("ref_bias", "ignore_above")),
        ("multi_similarity", ("ref_bias",)),
        ("circle", ("ignore_above",)),
    ],
)
def test_bias_and_threshold(name, arguments, backend, device):
    x, _, labels, _ = inputs_of(130, 33, 16, torch.float32, device)
    given = {"ref_bias": torch.rand(130, device=device), "ignore_above": -0.1}
    results = []
    for of, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        rows = x.to(dtype).requires_grad_()
        value = getattr(functional, f"{name}_loss")(rows, labels, backend=of, **{k: given[k] for k in arguments})
        results.append([value, *torch.autograd.grad(value, rows)])
    assert all(error(one, other) <= 3e-5 for one, other in zip(*results))


@of_triton
def test_results_of_the_operators(backend, device):
    """As many as their schemas have: the dispatcher reads no more."""
    for name, arguments in islice(operator_calls(), 0, None, 7):
        if name in ("pair_loss", "labelled_pair_loss"):
            arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
            results = registration._function(name, "triton")(*arguments)
            assert len(results) == len(getattr(torch.ops.fastpair, name).default._schema.returns)
