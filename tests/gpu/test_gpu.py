"""What only a GPU can show: every dtype at sizes of use, graphs, streams, devices, torch.compile, autocast, offsets
beyond 2^31, and that nothing waits for the device."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from support import DTYPES, LOSSES, assert_matches_oracle, cast, every_loss, value_and_gradients
from torch import nn

import fastpair
import fastpair.functional as FP
from fastpair.cached import CachedLoss

HALF = ("float32", "bfloat16", "float16")
COMMON = ["contrastive-euclidean", "supcon-cosine", "multi_similarity-cosine", "linear_cross_entropy", "spce_loss"]


def on_gpu(inputs, dtype=torch.float32):
    return {k: t.cuda() for k, t in cast(inputs, dtype).items()}


def inputs_of(loss, n, d, pattern, dtype=torch.float32, seed=0):
    return on_gpu(loss.inputs(n, d, pattern, torch.Generator().manual_seed(1000 * n + d + seed)), dtype)


@every_loss
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(257, 48, "pairs"), (1000, 129, "few")], ids=str)
def test_dtypes(loss, dtype, shape, gpu, backend):
    inputs = inputs_of(loss, *shape, DTYPES[dtype])
    for reduction in ("mean", "none"):
        # Sums of a thousand losses may be more than float16 holds.
        incoming = torch.ones(loss.shape(inputs, reduction), device=gpu) / shape[0] if reduction == "none" else None
        assert_matches_oracle(loss, inputs, reduction, incoming, backend=backend)


@every_loss
def test_small_batches_get_the_cuda_kernels(loss, gpu):
    assert_same_as_backend("cuda", loss, inputs_of(loss, 65, 9, "few"))


@pytest.mark.parametrize("name", ["contrastive-euclidean", "supcon-cosine-refs", "info_nce"])
def test_large_batches_get_the_triton_kernels(name, gpu):
    assert_same_as_backend("triton", LOSSES[name], inputs_of(LOSSES[name], 1100, 9, "few"))


def assert_same_as_backend(backend, loss, inputs):
    chosen = value_and_gradients(loss.fused, inputs, loss.trained)
    asked = value_and_gradients(partial(loss.fused, backend=backend), inputs, loss.trained)
    assert all(torch.equal(chosen[k], asked[k]) for k in asked)


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("dtype", HALF)
def test_several_rectangles(name, dtype, gpu):
    loss = LOSSES[name]
    if name.startswith("contrastive"):  # among 25 million distances some are at any margin but for rounding
        margins = {"pos_margin": 0.0, "neg_margin": 10.0}
        loss = replace(loss, fused=partial(loss.fused, **margins), dense=partial(loss.dense, **margins))
    inputs = inputs_of(loss, 5000, 32, "pairs", DTYPES[dtype])
    assert_matches_oracle(loss, inputs, backend="triton")


@pytest.mark.parametrize("name", COMMON)
def test_graph(name, gpu, backend):
    loss = LOSSES[name]
    inputs = inputs_of(loss, 512, 64, "few")
    leaves = {k: t.clone().requires_grad_(k in loss.trained) for k, t in inputs.items()}

    def step():
        value = loss.fused(**leaves, backend=backend)
        return value.detach(), torch.autograd.grad(value, [leaves[k] for k in loss.trained])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradients = step()
    fresh = inputs_of(loss, 512, 64, "few", seed=1)
    with torch.no_grad():
        for k, t in fresh.items():
            leaves[k].copy_(t)
    graph.replay()
    want = value_and_gradients(partial(loss.fused, backend=backend), fresh, loss.trained)
    assert torch.equal(value, want["value"])
    assert all(torch.equal(g, want[k]) for k, g in zip(loss.trained, gradients))


def test_graphed_step(gpu):
    """As README shows it: model and loss in one graph, a batch after the other."""

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.loss = torch.nn.Linear(24, 16), fastpair.losses.SupConLoss()

        def forward(self, images, labels):
            return self.loss(self.model(images), labels)

    plain = Step().cuda()
    graphed = copy.deepcopy(plain)
    batches = [(torch.randn(64, 24, device="cuda"), torch.arange(64, device="cuda") % (4 + i)) for i in range(3)]
    step = torch.cuda.make_graphed_callables(graphed, batches[0])
    for images, labels in batches:
        for run, module in ((step, graphed), (plain, plain)):
            module.zero_grad(set_to_none=False)
            run(images, labels).backward()
        for one, other in zip(graphed.parameters(), plain.parameters()):
            torch.testing.assert_close(one.grad, other.grad)


@every_loss
def test_nothing_waits_for_the_device(loss, gpu, backend):
    inputs = inputs_of(loss, 100, 16, "pairs")
    run = partial(value_and_gradients, partial(loss.fused, backend=backend), inputs, loss.trained)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", COMMON)
def test_streams(name, gpu, backend):
    """Kernels run on the current stream: one that is behind another's work sees its results."""
    loss = LOSSES[name]
    inputs = inputs_of(loss, 300, 32, "pairs")
    run = partial(loss.fused, backend=backend)
    want = value_and_gradients(run, inputs, loss.trained)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = {k: torch.zeros_like(t) for k, t in inputs.items()}
        torch.cuda._sleep(10_000_000)
        for k, t in inputs.items():
            late[k].copy_(t)
        got = value_and_gradients(run, late, loss.trained)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", COMMON)
def test_another_device_than_the_current(name, gpu, backend):
    loss = LOSSES[name]
    inputs = inputs_of(loss, 100, 16, "pairs")
    run = partial(loss.fused, backend=backend)
    want = value_and_gradients(run, inputs, loss.trained)
    got = value_and_gradients(run, {k: t.to("cuda:1") for k, t in inputs.items()}, loss.trained)
    assert all(torch.equal(got[k].to("cuda:0"), want[k]) for k in want)


@pytest.mark.parametrize("name", COMMON)
def test_compile(name, gpu, backend):
    loss = LOSSES[name]
    inputs = inputs_of(loss, 200, 16, "pairs")

    torch._dynamo.reset()

    def twice(**tensors):
        return loss.fused(**tensors, backend=backend) * 2

    got = value_and_gradients(torch.compile(twice, fullgraph=True), inputs, loss.trained)
    want = value_and_gradients(twice, inputs, loss.trained)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, gpu):
    """Parameters keep their dtype, and so do their gradients; the products are in half precision."""
    head = fastpair.losses.LinearCrossEntropyLoss(num_classes=50, embedding_size=32).cuda()
    x, labels = torch.randn(64, 32, device="cuda", requires_grad=True), torch.randint(50, (64,), device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        value = head(x, labels)
    value.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in head.parameters())
    plain = head(x, labels)
    torch.testing.assert_close(value, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_cached_loss(dtype, gpu):
    """The device's random numbers, autocast and a loss scale, against a loop over the chunks that keeps all graphs."""
    encoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.5), nn.Linear(64, 16)).to(gpu)
    x, labels = torch.randn(300, 32, device=gpu), torch.randint(50, (300,), device=gpu)
    loss = fastpair.losses.SupConLoss()
    results = []
    for value_of in (
        CachedLoss(encoder, loss, 128),
        lambda x, labels: loss(torch.cat([encoder(part) for part in x.split(128)]), labels),
    ):
        torch.manual_seed(3)
        with torch.autocast(gpu, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            value = value_of(x, labels)
        torch.rand(5, device=gpu)
        before = torch.cuda.get_rng_state()
        (1024 * value).backward()
        assert torch.equal(torch.cuda.get_rng_state(), before)
        results.append([value.detach(), *(p.grad for p in encoder.parameters())])
        encoder.zero_grad()
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_offsets_beyond_32_bits(gpu):
    """More than 2^31 scores, and references whose elements are more than 2^31."""
    n, d = 50_000, 64
    generator = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(n, d, device="cuda", generator=generator, dtype=torch.bfloat16).requires_grad_()
    labels = torch.arange(n, device="cuda") // 4
    losses = FP.supcon_loss(x, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert losses.isfinite().all() and gradient.isfinite().all()
    for rows in (slice(0, 100), slice(n - 100, n)):
        own = torch.arange(n, device="cuda")[rows]
        part = FP.supcon_loss(
            x[rows].double(), labels[rows], x.double(), labels, exclude_self=own, reduction="none", backend="reference"
        )
        torch.testing.assert_close(losses[rows].double(), part, rtol=1e-3, atol=1e-3)

    d = 4096
    m = 2**31 // d + 100
    y = torch.randn(m, d, device="cuda", generator=generator, dtype=torch.bfloat16)
    x, classes = y[-64:].clone(), torch.arange(m, device="cuda")
    losses = FP.triplet_margin_loss(
        x, classes[-64:], y, classes, triplets_per_anchor="hard", distance="cosine", margin=1.5, reduction="none"
    )
    # Each anchor's positive is itself, at cosine 1, and every other row of 4096 random numbers is far from it.
    assert ((losses > 0.4) & (losses < 0.8)).all()


def test_memory_of_a_large_batch(gpu):
    n, d = 32768, 128
    x = torch.randn(n, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.arange(n, device="cuda") // 4
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    FP.supcon_loss(x, labels).backward()
    assert torch.cuda.max_memory_allocated() - before < 256 << 20
