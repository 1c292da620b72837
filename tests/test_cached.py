"""CachedLoss against the whole batch at once, and, where chunks draw random numbers or change buffers, against a plain
loop over the chunks that keeps all graphs."""

import contextlib
from collections import UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from support import needs_cpu_kernels
from torch import nn

from fastpair import losses
from fastpair.cached import CachedLoss
from fastpair.formulas import softplus

pytestmark = needs_cpu_kernels
N, FEATURES, D, CLASSES = 10, 6, 5, 4


def make_encoder(*middle, dtype=torch.float64):
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), *middle, nn.Linear(8, D)).to(dtype)


def features(n=N, dtype=torch.float64):
    return torch.randn(n, FEATURES, dtype=dtype)


def in_chunks(encoder, x, chunk):
    """The embeddings with all graphs, the encoder seeing one chunk after the other."""
    return torch.cat([encoder(part) for part in x.split(chunk)])


def gradients(value, leaves, scale=1.0):
    """The gradients that ``backward`` adds to the leaves'; None for those that get none."""
    (value * scale).sum().backward()
    found = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def assert_same(got, want, leaves, tolerance=1e-12):
    """Two values, and their gradients by the leaves."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients(got, leaves), gradients(want, leaves), strict=True):
        assert b is not None and b.any()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


class Counted(nn.Module):
    """An encoder that remembers the sizes of its batches, and whether they had a graph."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.calls = encoder, []

    def forward(self, x):
        self.calls.append((len(x), torch.is_grad_enabled()))
        return self.encoder(x)


# ---- the whole batch


@pytest.mark.parametrize("chunk", [1, 3, 5, N, 100])
def test_one_encoder(chunk):
    """Also the further arguments of the loss, and the gradient by the inputs."""
    encoder, x = Counted(make_encoder()), features().requires_grad_()
    labels, ids = torch.randint(3, (N,)), torch.randint(6, (N,))
    loss, more = losses.SupConLoss(), {"ids": ids, "weights": torch.rand(N, dtype=torch.float64)}
    leaves = [x, *encoder.parameters()]
    assert_same(CachedLoss(encoder, loss, chunk)(x, labels, **more), loss(encoder(x), labels, **more), leaves)
    sizes = [len(part) for part in x.split(chunk)]
    assert encoder.calls == [*((n, False) for n in sizes), (N, True), *((n, True) for n in sizes)]


def scaled(scale):
    return losses.CustomPairLoss(
        lambda s, p: p.scale * s,
        lambda s, p: p.scale * s,
        lambda P, N, p: softplus(N.lse - P.lse),
        needs=["positives"],
        scale=scale,
    )


@pytest.mark.parametrize(
    "loss",
    [
        losses.LinearCrossEntropyLoss(CLASSES, D),
        losses.ArcFaceLoss(CLASSES, D, scale=8.0),
        losses.ProxyAnchorLoss(CLASSES, D, alpha=8.0),
        scaled(nn.Parameter(torch.tensor(3.0))),
        nn.Sequential(nn.Linear(D, CLASSES), nn.LogSoftmax(1)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_parameters_of_the_loss(loss):
    encoder, x, labels = make_encoder(), features(), torch.randint(CLASSES, (N,))
    loss = loss.double()
    plain = (lambda z, y: F.nll_loss(loss(z), y)) if isinstance(loss, nn.Sequential) else loss
    cached = CachedLoss(encoder, plain, 3)
    assert_same(cached(x, labels), plain(encoder(x), labels), [*encoder.parameters(), *loss.parameters()])
    assert plain is not loss or set(cached.parameters()) == {*encoder.parameters(), *loss.parameters()}


@pytest.mark.parametrize(
    "loss",
    [losses.InfoNCELoss(), losses.InfoNCELoss(0.2, learn_temperature=True), losses.SigLIPLoss(3.0, -1.0)],
    ids=["InfoNCE", "InfoNCE-learned", "SigLIP"],
)
@pytest.mark.parametrize("shared", [False, True])
def test_two_encoders(loss, shared):
    first = make_encoder()
    second = first if shared else make_encoder()
    loss, x, y = loss.double(), features(), features()
    cached = CachedLoss([first, second], loss, 4)
    leaves = list(cached.parameters())
    assert len(leaves) == len(list(loss.parameters())) + (4 if shared else 8)
    assert_same(cached(x, y), loss(first(x), second(y)), leaves)


def test_inputs_of_different_sizes_and_a_function_for_a_loss():
    anchors, references = make_encoder(), make_encoder()
    x, y, labels, ref_labels = features(), features(7), torch.randint(3, (N,)), torch.randint(3, (7,))

    def loss(z, ref_emb, labels, ref_labels):
        return losses.MultiSimilarityLoss()(z, labels, ref_emb=ref_emb, ref_labels=ref_labels)

    cached = CachedLoss([anchors, references], loss, 4)
    assert_same(
        cached(x, y, labels, ref_labels=ref_labels),
        loss(anchors(x), references(y), labels, ref_labels),
        list(cached.parameters()),
    )


def test_a_loss_for_each_anchor():
    encoder, x, labels = make_encoder(), features(), torch.arange(N) // 2
    loss, weights = losses.SupConLoss(reduction="none"), torch.linspace(1, 2, N, dtype=torch.float64)
    got, want = (value @ weights for value in (CachedLoss(encoder, loss, 3)(x, labels), loss(encoder(x), labels)))
    assert_same(got, want, list(encoder.parameters()))


class OfDictionary(nn.Module):
    """A tokenizer's output to embeddings: means of token vectors over the attention mask."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, D, dtype=torch.float64)

    def forward(self, batch):
        assert type(batch) is dict
        mask = batch["attention_mask"][:, :, None]
        return (self.tokens(batch["input_ids"]) * mask).sum(1) / mask.sum(1)


class OfTuple(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoder, self.kind = make_encoder(), kind

    def forward(self, pair):
        assert type(pair) is self.kind
        x, further = pair
        return self.encoder(x) * further["gate"]


Pair = namedtuple("Pair", "x further")


@pytest.mark.parametrize("mapping", [dict, UserDict])
def test_dictionaries(mapping):
    encoder, labels = OfDictionary(), torch.arange(N) // 2
    batch = {"input_ids": torch.randint(20, (N, 7)), "attention_mask": torch.rand(N, 7) < 0.7}
    batch["attention_mask"][:, 0] = True
    loss = losses.SupConLoss()
    cached = CachedLoss(encoder, loss, 4)
    assert_same(cached(mapping(batch), labels), loss(encoder(batch), labels), list(encoder.parameters()))


def test_parameters_that_the_first_forward_changes():
    """An embedding shortens its vectors in place, where they are longer than they may be."""
    encoder, labels, loss = OfDictionary(), torch.arange(N) // 2, losses.SupConLoss()
    encoder.tokens.max_norm = 1.0
    batch = {"input_ids": torch.randint(20, (N, 7)), "attention_mask": torch.ones(N, 7, dtype=torch.bool)}
    found, want = (
        gradients(value(batch, labels), [encoder.tokens.weight])[0]
        for value in (CachedLoss(encoder, loss, 4), lambda x, y: loss(encoder(x), y))
    )
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [tuple, list, Pair])
def test_tuples(kind):
    encoder, labels = OfTuple(kind), torch.arange(N) // 2
    gate = torch.rand(N, D, dtype=torch.float64).requires_grad_()
    inputs = (features(), {"gate": gate})
    inputs = Pair(*inputs) if kind is Pair else kind(inputs)
    loss = losses.SupConLoss()
    cached = CachedLoss(encoder, loss, 4)
    assert_same(cached(inputs, labels), loss(encoder(inputs), labels), [gate, *encoder.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes(dtype):
    encoder, x, labels = make_encoder(dtype=dtype), features(dtype=dtype), torch.arange(N) // 2
    loss = losses.SupConLoss()
    value = CachedLoss(encoder, loss, 3)(x, labels)
    # Row by row the products of the whole batch and of chunks round alike but for the order of their sums.
    assert_same(value, loss(encoder(x), labels), list(encoder.parameters()), 16 * torch.finfo(dtype).eps)


# ---- what comes after the loss


def test_scaled_losses_and_further_terms():
    encoder, x, labels = make_encoder(), features(), torch.arange(N) // 2
    loss, leaves = losses.SupConLoss(), list(encoder.parameters())
    cached = CachedLoss(encoder, loss, 3)

    def total(value):
        return 1024 * value + encoder(x).square().mean() + value.square()

    assert_same(total(cached(x, labels)), total(loss(encoder(x), labels)), leaves)


def test_a_grad_scaler():
    encoder, x, labels = make_encoder(dtype=torch.float32), features(dtype=torch.float32), torch.arange(N) // 2
    loss, leaves = losses.SupConLoss(), list(encoder.parameters())
    want = gradients(loss(encoder(x), labels), leaves)
    optimizer, scaler = torch.optim.SGD(leaves, lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    before = [p.detach().clone() for p in leaves]
    scaler.scale(CachedLoss(encoder, loss, 3)(x, labels)).backward()
    scaler.step(optimizer)
    for p, old, g in zip(leaves, before, want):
        torch.testing.assert_close(old - p, g, rtol=1e-4, atol=1e-6)


def test_gradients_add_up_over_calls():
    encoder, loss, labels = make_encoder(), losses.SupConLoss(), torch.arange(N) // 2
    x, y = features(), features()
    cached, leaves = CachedLoss(encoder, loss, 3), list(encoder.parameters())
    want = gradients(loss(encoder(x), labels) + 2 * loss(encoder(y), labels), leaves)
    first, second = cached(x, labels), cached(y, labels)
    second.backward()
    second_again = cached(y, labels)
    (first + second_again).backward()
    for leaf, g in zip(leaves, want):
        torch.testing.assert_close(leaf.grad, g, rtol=1e-12, atol=1e-12)


def test_a_graph_that_is_kept_gives_the_gradient_again():
    encoder = make_encoder(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Dropout(0.5))
    value = CachedLoss(encoder, losses.SupConLoss(), 5)(features(), torch.arange(N) // 2)
    value.backward(retain_graph=True)
    once = [p.grad.clone() for p in encoder.parameters()]
    value.backward()
    for p, g in zip(encoder.parameters(), once):
        torch.testing.assert_close(p.grad, 2 * g, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


# ---- the second forward is the first one


@pytest.mark.parametrize("towers", [1, 2])
def test_dropout(towers):
    encoders, inputs = [make_encoder(nn.Dropout(0.5)) for _ in range(towers)], [features() for _ in range(towers)]
    loss = losses.SupConLoss() if towers == 1 else losses.InfoNCELoss()
    rest = [torch.arange(N) // 2] if towers == 1 else []
    cached = CachedLoss(encoders, loss, 4)
    torch.manual_seed(5)
    want = loss(*(in_chunks(*of, 4) for of in zip(encoders, inputs)), *rest)
    torch.manual_seed(5)
    got = cached(*inputs, *rest)
    torch.rand(3)
    before = torch.get_rng_state()
    assert_same(got, want, list(cached.parameters()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast(inside):
    """Backward outside of autocast, as it should be, and inside, where its state and cache must make no difference."""
    encoder, x, labels = make_encoder(dtype=torch.float32), features(dtype=torch.float32), torch.arange(N) // 2
    seen = []
    encoder[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    loss, leaves = losses.SupConLoss(), list(encoder.parameters())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        want = loss(in_chunks(encoder, x, 4), labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = CachedLoss(encoder, loss, 4)(x, labels)
        if inside:
            gradients(got, leaves)
            got = CachedLoss(encoder, loss, 4)(x, labels)
            assert all(g is not None and g.any() for g in gradients(encoder(x).sum(), leaves))
    assert_same(got, want, leaves, 1e-5)
    assert set(seen) == {torch.bfloat16}


def test_no_autocast_within_autocast():
    encoder, x, labels = make_encoder(dtype=torch.float32), features(dtype=torch.float32), torch.arange(N) // 2
    loss = losses.SupConLoss()
    got, want = CachedLoss(encoder, loss, 4)(x, labels), loss(encoder(x), labels)
    leaves = list(encoder.parameters())
    expected = gradients(want, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(got, leaves)
    # The products of backward itself may be bfloat16 then; a forward in bfloat16 would differ in every layer's output.
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


@pytest.mark.parametrize("kind", ["batch norm", "spectral norm"])
def test_buffers_change_once(kind):
    """Both forwards of a chunk start with the same buffers, and only the first changes them."""
    torch.manual_seed(1)
    if kind == "batch norm":
        one, other = (make_encoder(nn.BatchNorm1d(8, momentum=None)) for _ in range(2))
    else:
        one, other = (make_encoder(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x, labels, loss = features(), torch.arange(N) // 2, losses.SupConLoss()
    got, want = CachedLoss(one, loss, 5)(x, labels), loss(in_chunks(other, x, 5), labels)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(got, list(one.parameters())), gradients(want, list(other.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", ["encoder", "all"])
def test_compile(what):
    """Compiled encoders do the same. A compiled CachedLoss runs as it is."""
    torch._dynamo.reset()
    encoder = make_encoder(nn.BatchNorm1d(8), nn.Dropout(0.5))
    x, labels, loss = features(), torch.arange(N) // 2, losses.SupConLoss()
    if what == "encoder":
        cached = CachedLoss(torch.compile(encoder, backend="aot_eager"), loss, 4)
    else:
        cached = torch.compile(CachedLoss(encoder, loss, 4), backend="aot_eager")
    torch.manual_seed(5)
    got = cached(x, labels)
    torch.manual_seed(5)
    assert_same(got, loss(in_chunks(encoder, x, 4), labels), list(encoder.parameters()))


def test_batch_norm_in_evaluation_mode_is_the_whole_batch():
    encoder, x, labels = make_encoder(nn.BatchNorm1d(8)), features(), torch.arange(N) // 2
    encoder(features(50))
    encoder.eval()
    loss = losses.SupConLoss()
    assert_same(CachedLoss(encoder, loss, 3)(x, labels), loss(encoder(x), labels), list(encoder.parameters()))


# ---- what is not run again


def test_frozen_encoders_run_once():
    frozen, learning = Counted(make_encoder()), Counted(make_encoder(nn.Dropout(0.0)))
    frozen.requires_grad_(False)
    x, y, info_nce = features(), features(), losses.InfoNCELoss(learn_temperature=True).double()

    def loss(first, second):
        assert not first.requires_grad
        return info_nce(first, second)

    leaves = [*learning.parameters(), *info_nce.parameters()]
    assert_same(CachedLoss([frozen, learning], loss, 5)(x, y), loss(frozen(x), learning(y)), leaves)
    assert frozen.calls == [(5, False), (5, False), (N, True)]
    assert learning.calls == [(5, False), (5, False), (N, True), (5, True), (5, True)]
    learning.requires_grad_(False)
    got, want = CachedLoss([frozen, learning], loss, 5)(x, y), loss(frozen(x), learning(y))
    assert_same(got, want, list(info_nce.parameters()))


def test_without_a_gradient():
    encoder, x, labels = Counted(make_encoder()), features(), torch.arange(N) // 2
    loss = losses.SupConLoss()
    with torch.no_grad():
        value = CachedLoss(encoder, loss, 5)(x, labels)
    assert not value.requires_grad and encoder.calls == [(5, False), (5, False)]
    torch.testing.assert_close(value, loss(encoder(x), labels))


def test_an_encoder_without_a_graph():
    """Parameters that require a gradient but have no part in the output."""

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = make_encoder()

        def forward(self, x):
            return self.encoder(x).detach()

    loss = losses.LinearCrossEntropyLoss(CLASSES, D).double()
    encoder, x, labels = Detached(), features(), torch.randint(CLASSES, (N,))
    assert_same(CachedLoss(encoder, loss, 3)(x, labels), loss(encoder(x), labels), list(loss.parameters()))


def test_an_empty_batch():
    encoder, loss = Counted(make_encoder()), losses.SupConLoss()
    value = CachedLoss(encoder, loss, 3)(features(0), torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0 and encoder.calls == [(0, False), (0, True)]
    assert all(not p.grad.any() for p in encoder.parameters())


# ---- errors


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((len, losses.SupConLoss(), 3), TypeError, "encoder must be a torch.nn.Module, or a list of them, got builtin"),
        (([make_encoder(), 3], losses.SupConLoss(), 3), TypeError, "encoder must be .*, got int"),
        (([], losses.SupConLoss(), 3), ValueError, "encoder must be a module or several, got none"),
        ((make_encoder(), "supcon", 3), TypeError, "loss must be a module or a function, got str"),
        ((make_encoder(), losses.SupConLoss(), 0), ValueError, "chunk must be at least 1, got 0"),
        ((make_encoder(), losses.SupConLoss(), 2.5), TypeError, "chunk must be an integer, got float"),
    ],
)
def test_wrong_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        CachedLoss(*arguments)


X = features()


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        ("text", TypeError, "inputs must be a tensor, or a tuple, list or dictionary of tensors, got str"),
        ({"x": X, "names": ["a"] * N}, TypeError, r"inputs\['names'\]\[0\] must be a tensor, .* got str"),
        ({}, ValueError, "inputs must hold a tensor, got an empty dict"),
        ((X, X[:3]), ValueError, r"inputs\[1\] must have 10 samples like inputs\[0\], got 3"),
        ({"x": X, "scale": X[0, 0]}, ValueError, r"inputs\['scale'\] must have its samples along dimension 0"),
    ],
)
def test_wrong_inputs(inputs, error, message):
    with pytest.raises(error, match=message):
        CachedLoss(make_encoder(), losses.SupConLoss(), 3)(inputs, torch.arange(N))


def test_missing_inputs():
    with pytest.raises(TypeError, match="inputs must be given for 2 encoders, before other arguments, got 1"):
        CachedLoss([make_encoder(), make_encoder()], losses.InfoNCELoss(), 3)(X)
    with pytest.raises(ValueError, match=r"inputs 1\[1\] must have 10 samples like inputs 1\[0\], got 3"):
        CachedLoss([make_encoder(), make_encoder()], losses.InfoNCELoss(), 3)(X, (X, X[:3]))


@pytest.mark.parametrize(
    "output, error, message",
    [
        (lambda z: z.sum(1), ValueError, r"the output of Lambda for inputs must have two dimensions .* shape \(4,\)"),
        (
            lambda z: z[:2],
            ValueError,
            r"the output of Lambda for inputs must have 4 rows, one a sample, got shape \(2, 5",
        ),
        (lambda z: {"z": z}, TypeError, "the output of Lambda for inputs must be a tensor, got dict"),
        (lambda z: z.long(), TypeError, "the output of Lambda for inputs must be float32, .* got torch.int64"),
    ],
)
def test_wrong_outputs(output, error, message):
    class Lambda(nn.Module):
        def forward(self, x):
            return output(x[:, :D])

    with pytest.raises(error, match=message):
        CachedLoss(Lambda(), losses.SupConLoss(), 4)(X, torch.arange(N))


@pytest.mark.parametrize("what", ["inputs", "parameters", "mode"])
def test_changes_before_backward(what):
    encoder, x = make_encoder(), features()
    value = CachedLoss(encoder, losses.SupConLoss(), 4)(x, torch.arange(N) // 2)
    if what == "inputs":
        x.add_(1)
    elif what == "parameters":
        with torch.no_grad():
            encoder[0].weight.mul_(2)
    else:
        encoder.eval()
    message = "parameters and the training mode of Sequential must be those of the call until backward"
    with pytest.raises(RuntimeError, match="modified by an inplace operation" if what == "inputs" else message):
        value.backward()


@pytest.mark.parametrize("chunk", [4, N])
def test_optimizers_that_step_in_backward(chunk):
    """They would change the weights between two chunks."""
    encoder = make_encoder()

    def step(p):
        p.sub_(p.grad)

    for p in encoder.parameters():
        p.register_post_accumulate_grad_hook(step)
    value = CachedLoss(encoder, losses.SupConLoss(), chunk)(features(), torch.arange(N) // 2)
    with pytest.raises(RuntimeError, match="they changed") if chunk < N else contextlib.nullcontext():
        value.backward()


def test_what_backward_cannot_do():
    encoder, x = make_encoder(), features().requires_grad_()
    cached = CachedLoss(encoder, lambda z: z.square().sum(), 4)
    with pytest.raises(RuntimeError, match="CachedLoss can be differentiated once, got create_graph=True"):
        torch.autograd.grad(cached(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="call backward\\(\\), without inputs, in place of torch.autograd.grad"):
        torch.autograd.grad(cached(x), x)
    assert all(p.grad is None for p in encoder.parameters())


def test_it_says_what_it_is():
    shown = repr(CachedLoss(make_encoder(), losses.SupConLoss(), 4))
    assert shown.startswith("CachedLoss(\n  chunk=4") and "SupConLoss(temperature=0.1" in shown
