"""Photographs in the training example: read as they are meant, changed as torchvision changes them, and kept."""

import dataclasses
import itertools
import os
import random

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
v2 = pytest.importorskip("torchvision.transforms.v2")
Image = pytest.importorskip("PIL.Image")
stats = pytest.importorskip("scipy.stats")

import trees  # noqa: E402
from fastpair_dml.data import (  # noqa: E402
    DATASETS,
    Batch,
    Preprocessing,
    TensorImages,
    Views,
    colour,
    evaluation_batches,
    load,
    reading,
)
from fastpair_dml.errors import UserError  # noqa: E402

T = v2.functional
ADJUST = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)


@pytest.fixture(scope="module")
def picture():
    """Colours that change slowly over an image of 48 x 64, grey and white among them, with an edge."""
    y, x = np.mgrid[:48, :64] / 64
    channels = [np.sin(5 * x + 2 * y), np.cos(4 * y - 3 * x) + (x > 0.6), np.sin(7 * x * y + 1)]
    pixels = np.clip(90 + 100 * np.stack(channels), 0, 255).astype(np.uint8)
    pixels[:, :8] = pixels[0, :8]
    pixels[:, -6:] = 255
    return torch.from_numpy(pixels)


def views_of(images, make, seeds):
    """One image, seen once for each seed, float32 of shape (n, channels, size, size)."""
    batch = Batch(torch.zeros(1, dtype=torch.int64), torch.as_tensor(seeds)[:, None])
    ((views, _),) = load(Views(images, make, augmented=True), [batch])
    return views[:, 0]


def one_image(pixels):
    return TensorImages(pixels[None], torch.zeros(1, dtype=torch.int64), ["one"])


# ---- colours


def jittered(pixels, order, factors, **options):
    """One image of 32 x 32, which is all samples."""
    colours = colour.Colours(torch.tensor([[order]]), torch.tensor([[factors]]), pixels[None])
    return colour.jitter_(pixels.float()[None, None], colours, **options)[0, 0]


@pytest.mark.parametrize("operation", range(4))
def test_each_operation_is_torchvisions(picture, operation):
    pixels = picture[:, :32, 20:52].contiguous()
    for factor in (0.0, 0.7, 0.95, 1.0, 1.3, 2.5) if operation < 3 else (-0.5, -0.1, 0.0, 0.03, 0.5):
        factors = [1.0, 1.0, 1.0, 0.0]
        factors[operation] = factor
        found = jittered(pixels, [operation], factors)
        expected = ADJUST[operation](pixels, factor).float()
        # Where the sum of roundings comes to a whole number, or just not.
        assert (found - expected).abs().max() <= 1 and (found != expected).float().mean() < 0.15, factor
        assert torch.equal(found, found.round()) and 0 <= found.min() <= found.max() <= 255


def test_operations_come_in_their_order(picture):
    pixels, factors = picture[:, :32, 20:52].contiguous(), [1.2, 0.75, 1.25, 0.08]
    results = set()
    for order in itertools.permutations(range(4)):
        expected = pixels
        for operation in order:
            expected = ADJUST[operation](expected, factors[operation])
        found = jittered(pixels, list(order), factors)
        assert (found - expected.float()).abs().mean() < 0.25
        results.add(found.numpy().tobytes())
    assert len(results) == 24
    left_out = [9.0, 9.0, factors[2], 9.0]
    assert torch.equal(jittered(pixels, [2], factors), jittered(pixels, [2], left_out))


def test_images_together_change_as_each_alone(picture):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 9, 3, 16, 20), generator=generator).float()
    orders = torch.stack([torch.randperm(4, generator=generator) for _ in range(18)]).view(2, 9, 4)
    factors = 0.6 + 0.8 * torch.rand(2, 9, 4, generator=generator)
    factors[..., 3] -= 1
    samples = torch.randint(256, (9, 3, 32, 32), generator=generator, dtype=torch.uint8)
    colours = colour.Colours(orders, factors, samples)
    alone, together = (colour.jitter_(images.clone(), colours, one_by_one) for one_by_one in (True, False))
    assert torch.equal(alone, together) and not torch.equal(alone, images)
    one = colour.Colours(orders[1:, 3:4], factors[1:, 3:4], samples[3:4])
    assert torch.equal(colour.jitter_(images[1:, 3:4].clone(), one)[0, 0], alone[1, 3])


def test_grey_images_keep_to_grey(picture):
    pixels = picture[:1, :32, 20:52].contiguous()
    expected = T.adjust_contrast(T.adjust_brightness(pixels, 1.2), 0.7).float()
    assert (jittered(pixels, [0, 3, 2, 1], [1.2, 0.7, 1.9, 0.3]) - expected).abs().max() <= 1


def test_samples_are_spread_over_the_whole_image():
    ramp = torch.arange(96, dtype=torch.uint8).expand(1, 64, 96).contiguous()
    assert colour.sample(ramp)[0, 0].tolist() == [3 * i + 1 for i in range(32)]
    assert colour.sample(ramp.mT.contiguous())[0, :, 0].tolist() == [3 * i + 1 for i in range(32)]


# ---- the distribution


def describe(views):
    """What tells distributions of views apart: (statistics, n)."""
    x, y = views.diff(dim=3).abs().mean((1, 2, 3)), views.diff(dim=2).abs().mean((1, 2, 3))
    left, right = views[..., :16].mean((1, 2, 3)), views[..., 16:].mean((1, 2, 3))
    chroma = views.amax(1) - views.amin(1)
    return torch.stack(
        [*views.mean((2, 3)).T, *views.std((2, 3)).T, chroma.mean((1, 2)), x, y, x / y, left - right, views[:, 0, 0, 0]]
    )


def least_p(one, other):
    """The smallest p value of Kolmogorov and Smirnov's test over all statistics."""
    return min(stats.ks_2samp(a, b).pvalue for a, b in zip(describe(one).numpy(), describe(other).numpy(), strict=True))


def by_torchvision(steps, picture, n):
    """So many views of a picture, by torchvision's transforms."""
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.stack([transform(picture) for _ in range(n)])


JITTER = (0.3, 0.3, 0.3, 0.1)
SEEDS = np.random.default_rng(0).integers(2**63 - 1, size=300)


def test_jitter_has_the_distribution_of_torchvisions(picture):
    # Nothing but colours changes.
    picture = picture[:, :32, 20:52].contiguous()
    expected = by_torchvision([v2.ColorJitter(*JITTER), v2.RandomHorizontalFlip()], picture, len(SEEDS))

    def views(jitter):
        make = Preprocessing(size=32, resize=None, scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=jitter)
        return views_of(one_image(picture), make, SEEDS)

    assert least_p(views(JITTER), expected) > 1e-3
    # What would be too little is seen.
    for operation in range(4):
        less = [amount / 2 if i == operation else amount for i, amount in enumerate(JITTER)]
        assert least_p(views(less), expected) < 1e-3, operation


def test_crops_and_jitter_have_the_distribution_of_torchvisions(picture):
    scale, ratio = (0.16, 1.0), (3 / 4, 4 / 3)
    steps = [v2.Resize(40), v2.ColorJitter(*JITTER), v2.RandomResizedCrop(32, scale, ratio), v2.RandomHorizontalFlip()]
    expected = by_torchvision(steps, picture, len(SEEDS))
    make = Preprocessing(size=32, resize=40, scale=scale, ratio=ratio, jitter=JITTER)
    assert least_p(views_of(one_image(picture), make, SEEDS), expected) > 1e-3
    assert least_p(views_of(one_image(picture), dataclasses.replace(make, scale=(0.3, 1.0)), SEEDS), expected) < 1e-3


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (40, 90)])
def test_boxes_have_the_distribution_of_torchvisions(height, width):
    def boxes(**options):
        make = Preprocessing(size=32, resize=None, **options)
        return torch.tensor([make._box(height, width, random.Random(seed)) for seed in range(2000)]).double()

    theirs = v2.RandomResizedCrop(32, (0.16, 1.0), (3 / 4, 4 / 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        empty = torch.empty(3, height, width)
        drawn = [theirs.make_params([empty]) for _ in range(2000)]
    expected = torch.tensor([[d[name] for name in ("top", "left", "height", "width")] for d in drawn]).double()

    def least_p(found):
        with_ratio = [torch.cat([boxes, boxes[:, 3:] / boxes[:, 2:3]], dim=1).T for boxes in (found, expected)]
        return min(stats.ks_2samp(a, b).pvalue for a, b in zip(*with_ratio))

    assert least_p(boxes()) > 1e-3
    for other in ({"scale": (0.2, 1.0)}, {"ratio": (0.7, 1.4)}, {"ratio": (3 / 4, 1.2)}):
        assert least_p(boxes(**other)) < 1e-3, other


@pytest.mark.parametrize("height, width, expected", [(10, 100, (10, 13)), (100, 10, (13, 10))])
def test_crops_that_never_fit_are_the_largest_in_the_middle(height, width, expected):
    make = Preprocessing(size=8, resize=None, scale=(0.9, 1.0))
    numbers = torch.arange(100, dtype=torch.uint8)
    pixels = (numbers[:width] if width > height else numbers[:height, None]).expand(3, height, width).contiguous()
    values = views_of(one_image(pixels), make, [0, 1])[0] * 255
    covered = (values.max() - values.min()).item() / 7 * 8
    assert covered == pytest.approx(max(expected), abs=1) and values.mean() == pytest.approx(49.5, abs=1)


# ---- files


def test_sixteen_bits_become_eight(tmp_path):
    values = np.linspace(0, 65535, 24 * 20).astype(np.uint16).reshape(24, 20)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = reading.read_rgb(tmp_path / name)
        assert pixels.shape == (3, 24, 20) and pixels.dtype == torch.uint8
        assert np.abs(pixels.numpy() - values / 257.0).max() <= 0.51


@pytest.mark.parametrize("dtype, kind", [(np.float32, "floats"), (np.int32, "integers")])
def test_pixels_whose_range_nothing_tells_are_refused(tmp_path, dtype, kind):
    Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4)).save(tmp_path / "depth.tif")
    for read in (reading.read_rgb, reading.check_header):
        with pytest.raises(UserError, match=rf"cannot read the image .*depth\.tif: its pixels are {kind} of 32 bits"):
            read(tmp_path / "depth.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photos_stand_upright(tmp_path, picture, suffix):
    upright = picture.permute(1, 2, 0).numpy()
    # How EXIF 2.32 describes where row 0 and column 0 of what is stored are: top left, top right, ...
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, exif=exif, quality=100, subsampling=0)
        found = reading.read_rgb(file)
        assert found.shape == picture.shape and (found.float() - picture.float()).abs().mean() < 2, orientation


def test_large_photos_are_decoded_at_a_fraction_of_their_size(tmp_path, picture):
    large = T.resize(picture, [480, 640])
    noise = torch.randint(-20, 21, large.shape, generator=torch.Generator().manual_seed(0))
    large = (large.int() + noise).clamp(0, 255).to(torch.uint8)
    file = tmp_path / "large.jpg"
    Image.fromarray(large.permute(1, 2, 0).numpy()).save(file, quality=95)
    whole = reading.read_rgb(file)
    sizes = {scaled_to: tuple(reading.read_rgb(file, scaled_to).shape[1:]) for scaled_to in (300, 121, 120, 60, 30, 10)}
    assert sizes == {300: (480, 640), 121: (480, 640), 120: (240, 320), 60: (120, 160), 30: (60, 80), 10: (60, 80)}
    # What is left out is not seen where the image gets smaller still.
    for scaled_to in (120, 60, 30):
        fraction, all_of_it = (T.resize(p, [scaled_to]).float() for p in (reading.read_rgb(file, scaled_to), whole))
        assert (fraction - all_of_it).abs().mean() < 1


# ---- the cache


@pytest.fixture
def photos(tmp_path, monkeypatch):
    trees.tiny_counts(monkeypatch)
    return DATASETS["cub"](trees.make_cub(tmp_path)).train


def every_view(images, make):
    batch = next(evaluation_batches(len(images), len(images), 0, 1))
    batches = [(batch._replace(seeds=batch.seeds + 7), True), (batch, False)]
    return [next(load(Views(images, make, augmented), [batch]))[0] for batch, augmented in batches]


def test_a_cache_has_the_same_bits_and_is_read_the_next_time(tmp_path, photos, monkeypatch):
    plain = Preprocessing(size=16, resize=20, jitter=(0.2, 0.2, 0.2, 0.1))
    cached = dataclasses.replace(plain, cache=str(tmp_path / "kept"))
    expected = every_view(photos, plain)
    read = []
    original = reading.read_rgb
    monkeypatch.setattr("fastpair_dml.data.images.read_rgb", lambda *of: read.append(of) or original(*of))
    for times_read in (16, 16):
        for found, wanted in zip(every_view(photos, cached), expected):
            assert torch.equal(found, wanted)
        assert len(read) == times_read
    # Of another size, and of a file that changed, they are others.
    every_view(photos, dataclasses.replace(cached, resize=24))
    assert len(read) == 32
    file = photos.file(3)
    Image.open(photos.file(4)).save(file)
    os.utime(file, (1, 1))
    found, wanted = (every_view(photos, make)[1] for make in (cached, plain))
    assert torch.equal(found, wanted) and len(read) == 32 + 1 + 32
    assert not list(tmp_path.glob("kept/**/*.tmp"))


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 700), lambda file: file.write_bytes(b"torn")])
def test_damaged_files_of_a_cache_are_made_again(tmp_path, photos, damage):
    make = Preprocessing(size=16, resize=20, cache=str(tmp_path / "kept"))
    expected = every_view(photos, make)
    kept = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    assert len(kept) == 16
    before = kept[0].read_bytes()
    damage(kept[0])
    assert all(map(torch.equal, every_view(photos, make), expected))
    assert kept[0].read_bytes() == before


def test_a_cache_that_cannot_be_written_is_named(tmp_path, photos):
    (tmp_path / "file").write_text("mine")
    make = Preprocessing(size=16, resize=20, cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to --cache .*file: .*; leave it out, or choose another folder"):
        every_view(photos, make)
    photos.file(0).unlink()
    with pytest.raises(UserError, match="cannot read the image .*: No such file"):
        every_view(photos, dataclasses.replace(make, cache=str(tmp_path / "kept")))
