"""fastpair.patch("open_clip"): its losses patched against not patched, alone and in a model that trains."""

import copy
import io
import math
import pickle

import pytest
import torch
from patched import assert_same, counted

import fastpair

open_clip = pytest.importorskip("open_clip")
theirs = pytest.importorskip("open_clip.loss")

CLIP, SIGLIP = "ClipLoss.forward", "SigLipLoss._loss"


def features(n=24, d=10, dtype=torch.float64, length=1.0):
    views = [length * torch.randn(n, d, dtype=dtype) for _ in range(2)]
    return [x.requires_grad_() for x in views]


def parameter(value, shape=(), dtype=torch.float64):
    return torch.full(shape, value, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("scale", [14.0, 1.0, -2.0])
@pytest.mark.parametrize("length", [1.0, 0.3])
def test_clip_loss(dtype, shape, scale, length):
    x, y = features(dtype=dtype, length=length)
    t = parameter(scale, shape, dtype)
    loss = theirs.ClipLoss()
    assert_same("open_clip", CLIP, lambda: loss(x, y, t), [x, y, t])


def test_clip_loss_with_a_bias_and_a_dict():
    x, y = features()
    t, b = parameter(5.0, (1,)), parameter(-3.0, (1,))
    loss = theirs.ClipLoss()
    assert_same("open_clip", CLIP, lambda: loss(x, y, t, b, output_dict=True)["contrastive_loss"], [x, y, t, b])
    with fastpair.patch("open_clip"):
        found = loss(x, y, t, logit_bias=b, output_dict=True)
        assert list(found) == ["contrastive_loss"]
        found["contrastive_loss"].backward()
    assert torch.equal(b.grad, torch.zeros(1, dtype=torch.float64)), "DistributedDataParallel waits for it"


def test_clip_loss_with_a_plain_scale():
    x, y = features()
    assert_same("open_clip", CLIP, lambda: theirs.ClipLoss()(x, y, 7.0, 1.0), [x, y])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [-4.0, None])
@pytest.mark.parametrize("length", [1.0, 3.0])
def test_siglip_loss(dtype, bias, length):
    x, y = features(dtype=dtype, length=length)
    t = parameter(2.0, (1,), dtype)
    b = [] if bias is None else [parameter(bias, (1,), dtype)]
    loss = theirs.SigLipLoss()
    assert_same("open_clip", SIGLIP, lambda: loss(x, y, t, *(b or [None])), [x, y, t, *b])
    with fastpair.patch("open_clip"):
        assert list(loss(x, y, t, None, output_dict=True)) == ["contrastive_loss"]


def test_siglip_loss_of_another_ranks_texts():
    x, y = features()
    t, b = parameter(2.0), parameter(-4.0)
    loss = theirs.SigLipLoss()
    assert_same("open_clip", SIGLIP, lambda: loss._loss(x, y, t, b, negative_only=True), [x, y, t, b], "another rank")


def test_methods_that_subclasses_use():
    x, y = features()
    t = parameter(5.0)
    logits, labels = torch.randn(24, 7, 3, dtype=torch.float64, requires_grad=True), torch.randint(7, (24, 3))
    coca = theirs.CoCaLoss(caption_loss_weight=0.5, clip_loss_weight=2.0)

    def by_coca():
        return sum(coca(x, y, logits.movedim(1, 2), labels, t, output_dict=True).values())

    assert_same("open_clip", CLIP, by_coca, [x, y, logits, t])

    distilled = theirs.DistillClipLoss()
    others = features()
    want = distilled(x, y, t, *others, t)
    with fastpair.patch("open_clip") as report:
        got = distilled(x, y, t, *others, t)
        assert theirs.ClipLoss().get_logits(x, y, t)[0].shape == (24, 24)
        assert theirs.ClipLoss().get_ground_truth(x.device, 3).tolist() == [0, 1, 2]
    assert all(map(torch.equal, got, want))
    assert "logits" in report.kept["DistillClipLoss"]


def test_a_subclass_with_logits_of_its_own():
    class Halved(theirs.ClipLoss):
        def get_logits(self, *args, **kwargs):
            return tuple(logits / 2 for logits in super().get_logits(*args, **kwargs))

    x, y = features()
    assert_same("open_clip", CLIP, lambda: Halved()(x, y, 5.0), [x, y], "get_logits is overridden")
    report = fastpair.patch("open_clip", Halved())
    assert report.kept == {CLIP: "get_logits is overridden"}
    assert not report.replaced
    fastpair.unpatch()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, t: (x[:0], y[:0], t), "other than matrices"),
        (lambda x, y, t: (x[None, 0], y[None, 0], t.expand(1, 1)), "not one number"),
        (lambda x, y, t: (x.float(), y.float().bfloat16(), t), "other than matrices"),
    ],
)
def test_calls_of_the_original(change, reason):
    x, y = features()
    arguments = change(x, y, parameter(3.0))
    loss = theirs.ClipLoss()
    with counted("open_clip", CLIP, reason):
        try:
            got = loss(*arguments)
        except RuntimeError as error:
            got = str(error)
    try:
        want = loss(*arguments)
    except RuntimeError as error:
        want = str(error)
    assert str(got) == str(want)


def test_bad_calls_raise_what_the_original_raises():
    x, _ = features()
    with fastpair.patch("open_clip"):
        with pytest.raises(TypeError, match="logit_scale"):
            theirs.ClipLoss()(x, x)
        with pytest.raises(IndexError, match="Target 23"):
            theirs.ClipLoss()(x, x[1:], 1.0)


def test_transforms_go_to_the_original():
    x, y = (t.detach() for t in features())
    loss = theirs.ClipLoss()
    want = torch.func.grad(loss)(x, y, 3.0)
    with counted("open_clip", CLIP, "torch.func"):
        assert torch.equal(torch.func.grad(loss)(x, y, 3.0), want)


def test_half_precision_and_autocast():
    x, y = features(n=200, d=64, dtype=torch.float32)
    exact = theirs.ClipLoss()(x.double(), y.double(), 5.0)
    with fastpair.patch("open_clip"):
        half = theirs.ClipLoss()(x.bfloat16(), y.bfloat16(), torch.tensor(5.0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = theirs.ClipLoss()(x, y, torch.tensor(5.0))
    assert half.dtype == autocast.dtype == torch.float32
    assert abs(half - exact) < 0.02 * exact
    torch.testing.assert_close(autocast.double(), exact, rtol=1e-5, atol=0)


def test_states_pickles_and_copies():
    loss = theirs.ClipLoss(cache_labels=True)
    x, y = features()
    before = dict(loss.__dict__)
    with fastpair.patch("open_clip", loss):
        loss(x, y, 2.0)
        pickled, copied = pickle.dumps(loss), copy.deepcopy(loss)
        assert loss.__dict__.keys() == before.keys()
        assert loss.state_dict() == {}
        with fastpair.patch("open_clip", loss) as report:
            pickle.loads(pickled)(x, y, 2.0)
            copied(x, y, 2.0)
            assert report.calls[CLIP][None] >= 1
            count = report.calls[CLIP][None]
            loss(x, y, 2.0)
            assert report.calls[CLIP][None] == count + 1, "neither the copy nor what was loaded is patched"
    assert pickle.loads(pickled).__dict__.keys() == before.keys()


# ---- a model


SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
}


def model_of(loss):
    torch.manual_seed(3)
    siglip = isinstance(loss, theirs.SigLipLoss)
    bias = {"init_logit_bias": -10.0, "init_logit_scale": math.log(10)} if siglip else {}
    return open_clip.CLIP(**copy.deepcopy(SIZES), output_dict=True, **bias)


def trained(loss, steps=6):
    """The losses of some steps, and the model's state as it is saved."""
    model = model_of(loss)
    # Not Adam, to which the sign of a rounding error is a step.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(steps):
        images = torch.randn(12, 3, 16, 16, generator=generator)
        texts = torch.randint(1, 50, (12, 8), generator=generator)
        outputs = model(images, texts)
        value = sum(loss(**outputs, output_dict=True).values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "loss": loss.state_dict()}, saved)
    return values, torch.load(io.BytesIO(saved.getvalue()))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_training(name):
    loss = getattr(theirs, name)()
    want, state = trained(loss)
    with counted("open_clip", CLIP if name == "ClipLoss" else SIGLIP, None):
        got, patched_state = trained(loss)
    assert got == pytest.approx(want, rel=1e-4)
    assert state["loss"] == patched_state["loss"]
    model_of(loss).load_state_dict(patched_state["model"])
    for key, value in state["model"].items():
        torch.testing.assert_close(patched_state["model"][key], value, rtol=1e-3, atol=1e-4)


def test_losses_that_open_clip_makes():
    """``create_loss`` of its training script."""

    class Arguments:
        distill = siglip = False
        model = "ViT-B-32"
        local_loss = gather_with_grad = horovod = False
        rank, world_size = 0, 1
        loss_dist_impl = None

    x, y = features()
    with counted("open_clip", CLIP, None):
        open_clip.create_loss(Arguments)(x, y, 2.0)
    Arguments.siglip = True
    with counted("open_clip", SIGLIP, None):
        open_clip.create_loss(Arguments)(x, y, 2.0, -1.0)


def test_compiled():
    loss, (x, y) = theirs.ClipLoss(), features(dtype=torch.float32)
    want = loss(x, y, 3.0)
    for obj in (None, loss):
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        with fastpair.patch("open_clip", obj):
            torch.testing.assert_close(compiled(x, y, 3.0), want)
        torch.testing.assert_close(compiled(x, y, 3.0), want)
