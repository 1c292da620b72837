"""Differentiation, registration with torch.library, torch.compile and autocast."""

from functools import partial

import pytest
import torch
import torch._inductor.config
from covering import covering, in_turn
from support import (
    LAYERS,
    LOSSES,
    METRICS,
    batch,
    batch_and_references,
    cast,
    error,
    every_fifth,
    every_loss,
    needs_cpu_kernels,
    operator_calls,
    oracle,
    value_and_gradients,
)

import fastpair.functional as FP
from fastpair.backends.call import LabelledPairLossCall, PairLossCall
from fastpair.losses import ContrastiveLoss, LinearCrossEntropyLoss, PCELoss, SPCELoss

pytestmark = needs_cpu_kernels


def small(loss, dtype=torch.float32, n=12, d=5, seed=0):
    return cast(loss.inputs(n, d, "few", torch.Generator().manual_seed(seed)), dtype)


def leaves_of(loss, inputs):
    leaves = {name: t.clone().requires_grad_(name in loss.trained) for name, t in inputs.items()}
    return leaves, [leaves[name] for name in loss.trained]


# Circle loss has weights that are constants of its gradient: finite differences see them change.
@covering(lambda known: known["loss"].fused.func is not FP.circle_loss, loss=LOSSES, reduction=["mean", "none"])
def test_gradcheck(loss, reduction):
    inputs = small(loss, torch.float64, n=7, d=3)
    if "ref_emb" in inputs:
        # Rows that both sides share have a distance of zero, where a distance has a kink.
        inputs["ref_emb"] = inputs["ref_emb"] + 0.1
    leaves, trained = leaves_of(loss, inputs)

    def run(*values):
        return loss.fused(**leaves | dict(zip(loss.trained, values)), reduction=reduction, backend="cpu")

    assert torch.autograd.gradcheck(run, trained)


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck_of_pairwise_distance(metric):
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: FP.pairwise_distance(x, y, metric), (x, y))
    # A distance has a kink on the diagonal.
    off = ~torch.eye(5, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: FP.pairwise_distance(x, metric=metric)[off], (x,))


def test_opcheck():
    checked = set()
    for name, arguments in every_fifth(operator_calls()):
        torch.library.opcheck(getattr(torch.ops.fastpair, name).default, arguments)
        checked.add(f"fastpair::{name}")
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastpair::")}
    assert checked == {name for name in registered if not name.startswith("fastpair::cuda_")}  # see tests/gpu


# ---- backward


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_backward_gives_the_same(loss, reduction):
    leaves, trained = leaves_of(loss, small(loss))
    value = loss.fused(**leaves, reduction=reduction)
    incoming = torch.randn(value.shape)
    first = torch.autograd.grad(value, trained, incoming, retain_graph=True)
    kept = [g.clone() for g in first]
    for gradient in first:
        gradient.fill_(9)
    for again, want in zip(torch.autograd.grad(value, trained, incoming), kept):
        assert torch.equal(again, want)


# PCE has a test of its own; the center loss is plain PyTorch.
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("pce_loss", "center")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward_is_refused(name, reduction):
    loss = LOSSES[name]
    leaves, trained = leaves_of(loss, small(loss))
    value = loss.fused(**leaves, reduction=reduction).sum()
    # An incoming gradient that is itself differentiable is what a gradient penalty makes.
    gradients = torch.autograd.grad(value * value, trained, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(gradients[0].square().sum(), trained)


def test_double_backward_of_pce_and_distances_is_refused():
    loss = LOSSES["pce_loss"]
    leaves, trained = leaves_of(loss, small(loss))
    x = torch.randn(4, 3, requires_grad=True)
    for value, inputs in ((loss.fused(**leaves), trained), (FP.pairwise_distance(x).square().sum(), [x])):
        gradients = torch.autograd.grad(value, inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(gradients[0].square().sum(), inputs)


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_for_those_that_ask(loss, reduction):
    inputs = small(loss)
    run = partial(loss.fused, reduction=reduction)
    want = value_and_gradients(run, inputs, loss.trained)
    for name in loss.trained:
        leaves = {key: t.clone().requires_grad_(key == name) for key, t in inputs.items()}
        run(**leaves).sum().backward()
        torch.testing.assert_close(leaves[name].grad, want[name], rtol=1e-6, atol=1e-7)
        assert all(leaves[other].grad is None for other in leaves if other != name)
    assert not run(**inputs).requires_grad


@every_loss
def test_without_gradients(loss):
    leaves, _ = leaves_of(loss, small(loss))
    want = loss.fused(**leaves).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            value = loss.fused(**leaves)
        assert not value.requires_grad
        torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-7)


@every_loss
def test_gradients_accumulate_over_uses(loss):
    """A tensor that is used twice, and a loss as part of a larger one."""
    leaves, trained = leaves_of(loss, small(loss))
    once = torch.autograd.grad(loss.fused(**leaves), trained)
    doubled = {name: t * 2 if name in loss.trained else t for name, t in leaves.items()}
    value = loss.fused(**leaves) * 3 + 0 * loss.fused(**doubled)
    for got, want in zip(torch.autograd.grad(value, trained), once):
        torch.testing.assert_close(got, 3 * want, rtol=1e-6, atol=1e-7)


@every_loss
def test_float16_gradients_survive_a_loss_scale(loss):
    """Gradients far below the least float16 come through when the loss is scaled, as GradScaler does."""
    inputs = small(loss, torch.float16, n=40)
    incoming = torch.tensor(2.0**16)
    shrink = 2.0**-26
    want = oracle(loss, inputs)
    got = value_and_gradients(lambda **leaves: loss.fused(**leaves) * shrink, inputs, loss.trained, incoming)
    for name in loss.trained:
        assert error(got[name] / (2.0**16 * shrink), want[name]) <= 2e-2


# ---- torch.compile


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "reduction"), in_turn(LAYERS, ["mean", "none"]))
def test_compile(name, reduction):
    """Once for any batch size."""
    loss = LOSSES[name]
    run = partial(loss.fused, reduction=reduction)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (12, 17):
            inputs = small(loss, n=n, seed=n)
            incoming = torch.randn(len(inputs[loss.rows]) if reduction == "none" else ())
            want = value_and_gradients(run, inputs, loss.trained, incoming)
            got = value_and_gradients(compiled, inputs, loss.trained, incoming)
            for key in want:
                torch.testing.assert_close(got[key], want[key], rtol=1e-6, atol=1e-7)


# It asks by compiling some code for each instruction set whether the compiler has it, which takes as long as the step.
@torch._inductor.config.patch({"cpp.vec_isa_ok": True})
def test_compile_of_a_training_step_by_inductor():
    generator = torch.Generator().manual_seed(2)
    net, classifier_loss = torch.nn.Linear(6, 4), LinearCrossEntropyLoss(3, 4)
    pair_loss, data = ContrastiveLoss(), torch.randn(10, 6, generator=generator)
    labels = torch.randint(3, (10,), generator=generator)
    parameters = [*net.parameters(), *classifier_loss.parameters()]

    def step(data, labels):
        z = net(data)
        return classifier_loss(z, labels) + pair_loss(z, labels) + SPCELoss()(z, labels)

    want = torch.autograd.grad(step(data, labels), parameters)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(data, labels), parameters)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-6)


def test_compile_with_a_margin_that_changes():
    compiled = torch.compile(
        lambda x, labels, margin: FP.contrastive_loss(x, labels, neg_margin=margin), fullgraph=True, backend="aot_eager"
    )
    x, labels = torch.randn(6, 3), torch.arange(6) % 2
    for margin in (1.0, 1.5, 2.0):
        torch.testing.assert_close(compiled(x, labels, margin), FP.contrastive_loss(x, labels, neg_margin=margin))


def test_compile_of_pairwise_distance():
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    compiled = torch.compile(FP.pairwise_distance, fullgraph=True, backend="aot_eager")
    for metric in METRICS:
        got, want = compiled(x, y, metric), FP.pairwise_distance(x, y, metric)
        assert torch.equal(got, want)
        for g, w in zip(torch.autograd.grad(got.sum(), (x, y)), torch.autograd.grad(want.sum(), (x, y))):
            assert torch.equal(g, w)


# ---- autocast


def autocast(run):
    """``run`` under autocast; the backward is outside, as PyTorch recommends."""
    return torch.autocast("cpu", dtype=torch.bfloat16)(run)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_of_the_classifier(backend):
    """As for nn.Linear: products in bfloat16, parameters and their gradients in float32."""
    inputs = small(LOSSES["linear_cross_entropy-smooth-ignore"], n=40, d=16)
    loss = LOSSES["linear_cross_entropy-smooth-ignore"]
    mixed = inputs | {"embeddings": inputs["embeddings"].bfloat16()}
    got = value_and_gradients(autocast(partial(loss.fused, backend=backend)), mixed, loss.trained)
    want = oracle(loss, cast(inputs, torch.bfloat16))
    assert got["value"].dtype == torch.float32
    for name in loss.trained:
        assert got[name].dtype == mixed[name].dtype
    assert max(error(got[name], want[name]) for name in want) <= 1e-2


@pytest.mark.parametrize("name", [name for name in LAYERS if LOSSES[name].inputs in (batch, batch_and_references)])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_pairs_as_they_are(name, backend):
    loss = LOSSES[name]
    inputs = small(loss, n=40)
    run = partial(loss.fused, backend=backend)
    want = value_and_gradients(run, inputs, loss.trained)
    got = value_and_gradients(autocast(run), inputs, loss.trained)
    for result in want:
        torch.testing.assert_close(got[result], want[result], rtol=1e-6, atol=1e-7)


# ---- modules


def test_modules_are_the_functions():
    z, labels = torch.randn(10, 4), torch.arange(10) % 3
    probabilities = torch.randn(10, 3).softmax(1)
    margins = {"pos_margin": 0.2, "neg_margin": 1.1, "distance": "cosine", "power": 2, "reduction": "sum"}
    assert torch.equal(ContrastiveLoss(**margins)(z, labels), FP.contrastive_loss(z, labels, **margins))
    refs = {"ref_emb": torch.randn(6, 4), "ref_labels": torch.arange(6) % 3}
    assert torch.equal(ContrastiveLoss()(z, labels, **refs), FP.contrastive_loss(z, labels, **refs))
    assert torch.equal(SPCELoss("none")(z, labels), FP.spce_loss(z, labels, reduction="none"))
    want = FP.pce_loss(z, labels, probabilities, lam=0.5, reduction="sum")
    assert torch.equal(PCELoss(0.5, "sum")(z, labels, probabilities), want)
    head = LinearCrossEntropyLoss(3, 4, label_smoothing=0.1, ignore_index=2, reduction="none", dtype=torch.float64)
    want = FP.linear_cross_entropy(
        z.double(), head.weight, labels, head.bias, label_smoothing=0.1, ignore_index=2, reduction="none"
    )
    assert torch.equal(head(z.double(), labels), want)
    assert [name for name, _ in head.named_parameters()] == ["weight", "bias"]
    assert LinearCrossEntropyLoss(3, 4, bias=False).bias is None
    assert "0.2" in repr(ContrastiveLoss(**margins))


def test_forward_mode_is_refused_rather_than_zero():
    x, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    for loss in (FP.contrastive_loss, FP.spce_loss):
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(lambda x, loss=loss: loss(x, labels), (x,), (torch.ones_like(x),))


def test_compile_with_one_tensor_in_two_places():
    x, labels = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 2])

    def both(x, labels):
        return FP.contrastive_loss(x, labels, x, labels) + FP.pairwise_distance(x, x).mean()

    (want,) = torch.autograd.grad(both(x, labels), x)
    (got,) = torch.autograd.grad(torch.compile(both, fullgraph=True, backend="aot_eager")(x, labels), x)
    torch.testing.assert_close(got, want)


def test_direct_calls_of_the_operators_check_shapes():
    ops, x = torch.ops.fastpair, torch.randn(5, 4)
    labels = torch.zeros(5, dtype=torch.long)
    settings = (None, "contrastive", [0.0, 1.0], "dot", False, "mean", False, False)
    others = dict.fromkeys(("learned", "ids", "ref_ids", "pairs", "weights", "anchor_scalars", "ref_scalars"))

    def related(**given):
        rest = {"grad_learned": False, **others, **given}
        names = PairLossCall._fields
        plain = dict(zip(LabelledPairLossCall._fields, (x, None, labels, None, None, *settings)))
        return ops.pair_loss(*(({**plain, **rest})[name] for name in names))

    linear = ("linear", 1.0, 0.0, 0.0, -1)
    allowed = "must have|must hold|go together|no parameter of contrastive learns|triplets have neither"
    for call in (
        lambda: ops.labelled_pair_loss(x, None, labels[:3], None, None, *settings),
        lambda: ops.labelled_pair_loss(x, x, labels, None, None, *settings),
        lambda: ops.labelled_pair_loss(x, x[:, :2], labels, labels, None, *settings),
        lambda: ops.labelled_pair_loss(x, x, labels, labels, labels - 2, *settings),
        lambda: ops.labelled_pair_loss(x, x, labels, labels, labels + 5, *settings),
        lambda: related(ids=labels[:2]),
        lambda: related(weights=x[0]),
        lambda: related(anchor_scalars=x.T),
        lambda: related(ref_scalars=x.T),
        lambda: related(learned=x[0]),
        lambda: related(learned=x[0, :2]),
        lambda: related(learned=x[0, :1], loss="triplet", params=[]),
        lambda: related(grad_learned=True),
        lambda: related(grad_learned=True, loss="triplet", params=[0.1]),
        lambda: ops.linear_cross_entropy(x, x[:, :2], None, labels, None, *linear, "mean", True, True, False),
        lambda: ops.linear_cross_entropy(x, x, None, labels, x[0], *linear, "none", True, True, False),
        lambda: ops.spce(x, labels[:2], None, "mean", True),
        lambda: ops.pairwise_distance(x, x[:, :2], "dot"),
        lambda: ops.pairwise_distance_backward(x, x, None, "dot", True, False),
    ):
        with pytest.raises(
            RuntimeError,
            match=allowed,
        ):
            call()
