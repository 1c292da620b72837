"""What the emulator shows of the CUDA kernels beyond their results, and the operators that PyTorch is told of."""

import pytest
import torch
from host_reads import no_host_reads
from support import LOSSES, cast, error, every_fifth, operator_calls, value_and_gradients

import fastpair
import fastpair.functional as FP
from fastpair.formulas.pair_losses import TRIPLETS
from fastpair.ops import pair_loss, relation

pytestmark = pytest.mark.parametrize("backend", ["cuda"], indirect=True)

# One of every way through the kernels: one launch's phases in their order, sums at once, two sides, references.
WAYS = ["contrastive-euclidean", "contrastive-cosine-p2", "supcon-cosine-refs", "ntxent-cosine", "info_nce", "siglip",
        "triplet_margin-unit_euclidean-hard", "proxy_anchor", "linear_cross_entropy", "arcface"]  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_order_of_the_threads_does_not_matter(name, dtype, backend, device, monkeypatch):
    """The emulator resumes threads in an order of choice: a missing barrier makes a difference."""
    if device == "cuda":
        pytest.skip("the order of the threads cannot be chosen on a GPU")
    loss = LOSSES[name]
    inputs = loss.inputs(70, 70, "few", torch.Generator().manual_seed(0))
    inputs = {k: t.to(dtype) if t.is_floating_point() else t for k, t in inputs.items()}
    results = []
    for order in ("forward", "backward", "1", "2"):
        monkeypatch.setenv("FASTPAIR_EMULATED_ORDER", order)
        with fastpair.use_backend("cuda"):
            results.append(value_and_gradients(loss.fused, inputs, loss.trained))
    for other in results[1:]:
        assert all(torch.equal(other[k], results[0][k]) for k in other)


@pytest.mark.parametrize("name", WAYS)
def test_a_step_can_be_captured(name, backend, device, monkeypatch):
    """In a CUDA graph: the host reads no number, and what stands in the inputs' memory counts, not what stood there."""
    # These look at numbers of CPU tensors alone.
    monkeypatch.setattr("fastpair.ops.checks.class_range", lambda *_: None)
    monkeypatch.setattr(
        "fastpair.ops.autograd.scaled_",
        lambda gradients, wanted, factor: [g * factor if want else g for g, want in zip(gradients, wanted)],
    )
    loss = LOSSES[name]
    batches = [loss.inputs(40, 16, "few", torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    one, other = ({k: t.to(device) for k, t in cast(batch, torch.float32).items()} for batch in batches)
    with fastpair.use_backend("cuda"):
        leaves = {k: t.clone().requires_grad_(k in loss.trained) for k, t in one.items()}
        with no_host_reads():
            torch.autograd.grad(loss.fused(**leaves), [leaves[k] for k in loss.trained])
        with torch.no_grad():
            for k, t in leaves.items():
                t.copy_(other[k])
        got = torch.autograd.grad(loss.fused(**leaves), [leaves[k] for k in loss.trained])
        want = value_and_gradients(loss.fused, other, loss.trained)
    assert all(torch.equal(gradient, want[k]) for k, gradient in zip(loss.trained, got))


def test_opcheck(backend, device):
    def has_kernel(name, arguments):
        if any(a in TRIPLETS for a in arguments if isinstance(a, str)):
            return False
        # These kernels take sets of labels as a matrix of pairs.
        return hasattr(torch.ops.fastpair, f"cuda_{name}") and not (name == "pair_loss" and arguments[3].ndim == 2)

    checked = set()
    for name, arguments in every_fifth(of for of in operator_calls() if has_kernel(*of)):
        arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(getattr(torch.ops.fastpair, f"cuda_{name}").default, arguments)
        checked.add(f"fastpair::cuda_{name}")
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastpair::cuda_")}
    parts = {f"fastpair::cuda_{name}" for name in ("inverse_norms", "project_gradient", "softmax")}
    assert checked == registered - parts


def test_triplets_say_who_has_them(backend, device):
    x, labels = torch.randn(4, 3, device=device), torch.tensor([0, 0, 1, 1], device=device)
    with pytest.raises(RuntimeError, match="'cuda' has no kernel for this loss; .*'reference' can compute it"):
        FP.triplet_margin_loss(x, labels, backend="cuda")


def test_arguments_of_a_direct_call(backend, device):
    x, labels = torch.randn(4, 3, device=device), torch.tensor([0, 0, 1, 1], device=device)
    call = torch.ops.fastpair.cuda_labelled_pair_loss

    def run(loss="snca", params=(1.0,), distance="cosine", reduction="mean", labels=labels, x=x, two_sided=False,
            ref_emb=None):  # fmt: skip
        ref_labels = None if ref_emb is None else labels
        tensors = (x, ref_emb, labels, ref_labels, None, None)
        return call(*tensors, loss, list(params), distance, two_sided, reduction, True, False)

    run()
    for arguments, message in (
        ({"loss": "no such"}, "no CUDA kernel for the loss no such"),
        ({"params": ()}, "params must have 1 elements, got 0"),
        ({"distance": "l7"}, "unknown distance l7"),
        ({"reduction": "max"}, "unknown reduction max"),
        ({"labels": labels[:3]}, "labels must have 4 elements"),
        ({"x": x.double()}, "expected float32, bfloat16 or float16"),
        ({"x": x[0]}, "embeddings must have 2 dimensions"),
        ({"two_sided": True}, "two_sided needs ref_emb"),
        ({"two_sided": True, "ref_emb": x, "reduction": "totals"}, "two_sided has no totals"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(**arguments)


def test_compile(backend, device):
    """The C++ operators and the one written in Python are one node of the graph each."""
    for name in ("supcon-cosine", "linear_cross_entropy"):
        loss = LOSSES[name]
        inputs = loss.inputs(20, 6, "few", torch.Generator().manual_seed(0))
        inputs = {k: (t.float() if t.is_floating_point() else t).to(device) for k, t in inputs.items()}
        torch.compiler.reset()
        compiled = torch.compile(lambda **t: 2 * loss.fused(**t, backend="cuda"), fullgraph=True, backend="aot_eager")  # noqa: B023
        got = value_and_gradients(compiled, inputs, loss.trained)
        want = value_and_gradients(lambda **t: 2 * loss.fused(**t, backend="cuda"), inputs, loss.trained)  # noqa: B023
        for k in want:
            torch.testing.assert_close(got[k], want[k])


def test_the_closest_positive(backend, device):
    """The formula that ``ignore_above`` asks, with its gradient."""
    x, labels = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 9
    labels[0] = 100  # has no positive
    results = []
    for name, rows in (("cuda", x.to(device)), ("reference", x.double())):
        rows.requires_grad_()
        given = relation(rows, labels.to(rows.device), None, None)
        value = pair_loss("best_positive", [], rows, given, "cosine", "none", name)
        results.append([value.detach().cpu()[1:], *torch.autograd.grad(value[1:].sum(), rows)])
        assert value[0] == -torch.inf
    assert all(error(one, other) <= 1e-5 for one, other in zip(*results))
