"""The data of the training example: layouts are read as published, and batches depend on nothing but their seeds."""

import multiprocessing
import os
import shutil
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

import trees  # noqa: E402
from fastpair_dml.data import (  # noqa: E402
    DATASETS,
    Batch,
    FileImages,
    Preprocessing,
    RetrievalData,
    TensorImages,
    Views,
    batches_per_epoch,
    epoch_batches,
    evaluation_batches,
    glyphs,
    load,
)
from fastpair_dml.errors import UserError  # noqa: E402

BENCHMARKS = {
    "cub": ("cub", trees.make_cub),
    "cars": ("cars", trees.make_cars_annos),
    "cars devkit": ("cars", trees.make_cars_devkit),
    "sop": ("sop", trees.make_sop),
    "inshop": ("inshop", trees.make_inshop),
}
SMALL = Preprocessing(size=16, resize=20, jitter=(0.2, 0.2, 0.2, 0.1))


@pytest.fixture(scope="module")
def rendered():
    return glyphs.render_glyphs()


@pytest.fixture
def image_folder(tmp_path):
    return trees.make_image_folder(tmp_path / "images")


@pytest.fixture(params=BENCHMARKS)
def published(request, tmp_path, monkeypatch):
    """The reader of a benchmark, and a small folder of it."""
    trees.tiny_counts(monkeypatch)
    return published_tree(request.param, tmp_path)


def published_tree(key, root):
    name, make = BENCHMARKS[key]
    return DATASETS[name], make(root)


@pytest.fixture
def noise():
    """Twenty small images in memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 1, 12, 10), generator=generator, dtype=torch.uint8)
    return TensorImages(images, torch.arange(20) % 4, list("abcd"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Sixteen small photos of four classes in files."""
    trees.tiny_counts(monkeypatch)
    return DATASETS["cub"](trees.make_cub(tmp_path)).train


# The published benchmarks


def test_benchmarks_are_split_by_class_and_every_image_has_its_label(published):
    read, data_dir = published
    data = read(data_dir)
    found = {name: getattr(data, name) for name in ("train", "query", "gallery")}
    numbers = {"train": {0, 1, 2, 3}, "query": {0, 1, 2, 3}}
    if data.gallery is None:
        del found["gallery"]
    else:
        numbers |= {"query": {0, 2}, "gallery": {1, 3}}
    for part, images in found.items():
        first = 1 if part == "train" else 5
        drawn = [trees.class_and_number(images.pixels(i)) for i in range(len(images))]
        assert sorted(drawn) == [(c, n) for c in range(first, first + 4) for n in sorted(numbers[part])]
        assert images.labels.tolist() == [c - first for c, _ in drawn] and images.labels.dtype == torch.int64
        assert images.pixels(0).dtype == torch.uint8 and images.pixels(0).shape[::2] == (3, 40)
        assert len(images.names) == 4 and all(str(c) in images.names[c - first] for c, _ in drawn)
    assert data.num_train_classes == 4
    assert str(data).startswith("16 images of 4 classes to train on, ")


def test_names_and_descriptions_are_for_people(published):
    read, data_dir = published
    data = read(data_dir)
    name = data.query.names[0]
    if data.gallery is None:
        assert str(data).endswith(", 16 images of 4 unseen classes to retrieve")
        assert name in ("005.Bird_5", "Maker Model 5", "cabinet 5")
    else:
        assert str(data).endswith(", 8 queries and 8 gallery images of 4 unseen classes")
        assert name == "id_00000005" and data.gallery.names == data.query.names


def test_the_folder_around_is_accepted_unless_it_has_two(published, tmp_path):
    read, data_dir = published
    (tmp_path / "another").mkdir()
    (tmp_path / "a file").write_text("")
    expected = read(data_dir).fingerprint()
    assert read(tmp_path).fingerprint() == expected
    shutil.copytree(data_dir, tmp_path / "copy")
    with pytest.raises(UserError, match="several folders in .* hold .*copy"):
        read(tmp_path)
    assert read(data_dir).fingerprint() == expected


@pytest.mark.parametrize(
    "key, part, found, expected",
    [
        ("cub", "train", "32 images of 8 classes", "5864 images of 100 classes"),
        ("cars", "train", "32 images of 8 classes", "8054 images of 98 classes"),
        ("cars devkit", "train", "32 images of 8 classes", "8054 images of 98 classes"),
        ("sop", "train", "16 images of 4 classes", "59551 images of 11318 classes"),
        ("inshop", "train", "16 images of 4 classes", "25882 images of 3997 classes"),
    ],
)
def test_the_published_numbers_are_expected(tmp_path, key, part, found, expected):
    read, data_dir = published_tree(key, tmp_path)
    with pytest.raises(UserError, match=f"the {part} part of .* has {found}, but must have {expected}"):
        read(data_dir)


def test_the_published_numbers_of_the_unseen_classes():
    from fastpair_dml.data import cars, cub, inshop, sop

    expected = {
        cub: {"query": (5924, 100)},
        cars: {"query": (8131, 98)},
        sop: {"query": (60502, 11316)},
        inshop: {"query": (14218, 3985), "gallery": (12612, 3985)},
    }
    for module, parts in expected.items():
        counts = {name: (part.images, part.classes) for name, part in module.BENCHMARK.counts.items()}
        counts.pop("train")
        assert counts == parts


def test_a_missing_folder_says_where_it_comes_from_and_how_it_looks(published, tmp_path):
    read, _ = published
    with pytest.raises(UserError, match=r"it needs --data-dir(.|\n)*https://(.|\n)*unpacks to\n  \w+"):
        read(None)
    with pytest.raises(UserError, match=r"cannot read the data folder .*gone: No such file(.|\n)*https://"):
        read(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no .* in --data-dir .*empty or a folder in it(.|\n)*https://"):
        read(tmp_path / "empty")


def test_missing_images_are_counted_and_the_first_is_named(published):
    read, data_dir = published
    query = read(data_dir).query
    lost = [query.root / query.paths[i] for i in (2, 5)]
    for file in lost:
        file.unlink()
    with pytest.raises(UserError) as raised:
        read(data_dir)
    assert f"2 of the {len(query)} images of the query part are missing, the first of them {lost[0]}" in str(
        raised.value
    )


@pytest.mark.parametrize("key", ["cub", "sop", "inshop"])
def test_a_missing_folder_of_images_is_missing_images(tmp_path, monkeypatch, key):
    trees.tiny_counts(monkeypatch)
    read, data_dir = published_tree(key, tmp_path)
    train = read(data_dir).train
    shutil.rmtree((train.root / train.paths[0]).parent)
    with pytest.raises(UserError, match=f"images of the train part are missing, the first of them .*{train.paths[0]}"):
        read(data_dir)


def replace(file, old, new):
    def spoil(data_dir):
        text = (data_dir / file).read_text()
        assert old in text
        (data_dir / file).write_text(text.replace(old, new, 1))

    return spoil


def remove(file):
    return lambda data_dir: (data_dir / file).unlink()


def tear(file):
    return lambda data_dir: os.truncate(data_dir / file, 200)


def hide_labels(data_dir):
    (data_dir / "devkit" / "cars_test_annos_withlabels.mat").unlink()


def swap_item(data_dir):
    """The gallery images of one item become those of another, of a number that no query has."""
    file = data_dir / "Eval" / "list_eval_partition.txt"
    lines = file.read_text().splitlines()
    lines = [line.replace(" id_00000005", " id_00000099") if line.endswith("gallery") else line for line in lines]
    file.write_text("\n".join(lines))


@pytest.mark.parametrize(
    "key, spoil, message",
    [
        ("cub", remove("classes.txt"), "cannot read .*classes.txt: No such file"),
        ("cub", remove("image_class_labels.txt"), "cannot read .*image_class_labels.txt: No such file"),
        (
            "cub",
            replace("images.txt", "2 008.", "2, 008."),
            "line 2 of .*images.txt is '2, 008.*be 'image_id path'",
        ),
        ("cub", replace("images.txt", "1 003.", "1 0 003."), "line 1 of .*images.txt is .*must be 'image_id path'"),
        ("cub", replace("image_class_labels.txt", "32 4\n", ""), "no class for image 32, 004.Bird_4/Bird_4_0003.jpg"),
        ("cub", replace("image_class_labels.txt", "32 4\n", "32 5\n"), "has 15 images of 4 classes, but must have 16"),
        ("cub", replace("classes.txt", "6 006.Bird_6\n", ""), "1 classes of .* have no name, the first of them 6"),
        ("cars", remove("cars_annos.mat"), "cannot read annotations in .*cars_annos.mat: .*No such file"),
        ("cars", tear("cars_annos.mat"), "cannot read annotations in .*cars_annos.mat: "),
        ("cars devkit", remove("devkit/cars_meta.mat"), "there is no cars_meta.mat in .*devkit or .*stanford_cars"),
        ("cars devkit", remove("devkit/cars_train_annos.mat"), "there is no cars_train_annos.mat in"),
        (
            "cars devkit",
            hide_labels,
            "cars_test_annos.mat does not say the classes; cars_test_annos_withlabels.mat does",
        ),
        (
            "cars devkit",
            lambda data_dir: [hide_labels(data_dir), remove("devkit/cars_test_annos.mat")(data_dir)],
            "there is no cars_test_annos_withlabels.mat in",
        ),
        ("sop", remove("Ebay_test.txt"), "cannot read .*Ebay_test.txt: No such file"),
        (
            "sop",
            replace("Ebay_train.txt", " bicycle_final", " bicycle final"),
            "line 4 of .*must be 'image_id class",
        ),
        (
            "sop",
            replace("Ebay_test.txt", "\n2 8 ", "\n2 9 "),
            "has 16 images of 5 classes, but must have 16",
        ),
        ("sop", lambda d: (d / "Ebay_test.txt").write_bytes(b"\n\xff\xfe"), "line 2 of .*must be 'image_id class"),
        (
            "inshop",
            replace("Eval/list_eval_partition.txt", "query", "val"),
            "is for 'val', but must be for train",
        ),
        ("inshop", replace("Eval/list_eval_partition.txt", "query", "train"), "train .* has 17 images of 5 classes"),
        ("inshop", swap_item, "the queries and the gallery in .* are not of the same items"),
    ],
)
def test_lists_that_are_not_as_published(tmp_path, monkeypatch, key, spoil, message):
    trees.tiny_counts(monkeypatch)
    read, data_dir = published_tree(key, tmp_path)
    read(data_dir)
    spoil(data_dir)
    with pytest.raises(UserError, match=message):
        read(data_dir)


@pytest.mark.parametrize(
    "key, source", [("cars devkit", "devkit/cars_test_annos_withlabels.mat"), ("inshop", "Img/img")]
)
def test_what_some_archives_unpack_elsewhere_may_lie_in_the_folder_itself(tmp_path, monkeypatch, key, source):
    trees.tiny_counts(monkeypatch)
    read, data_dir = published_tree(key, tmp_path)
    expected = read(data_dir).fingerprint()
    shutil.move(data_dir / source, data_dir)
    assert read(data_dir).fingerprint() == expected


def test_cars_without_scipy_say_what_to_install(tmp_path, monkeypatch):
    trees.tiny_counts(monkeypatch)
    read, data_dir = published_tree("cars", tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"cars_annos\.mat can only be read with scipy: pip install scipy"):
        read(data_dir)


# One's own folders, and glyphs


def test_folder_reads_classes_in_order(image_folder):
    data = DATASETS["folder"](image_folder)
    for images, classes in ((data.train, (0, 1, 2)), (data.query, (3, 4, 5))):
        assert images.paths == [f"class-{c}/{i}.png" for c in classes for i in range(8)]
        assert images.names == [f"class-{c}" for c in classes]
        assert images.labels.tolist() == [c for c in range(3) for _ in range(8)]
        for index in (0, 23):
            expected = np.asarray(Image.open(image_folder / images.paths[index]))
            assert np.array_equal(images.pixels(index).permute(1, 2, 0).numpy(), expected)
    assert data.num_train_classes == 3 and data.gallery is None


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: root.rename(root.with_name("gone")), "cannot read the data folder .*images: No such file"),
        (lambda root: [p.rename(root / f".{p.name}") for p in root.glob("class-[345]")], "has 3 class folders"),
        (lambda root: [p.unlink() for p in root.glob("class-2/[1-7].png")], "class-2 has 1 images"),
    ],
)
def test_folder_errors_name_the_path(image_folder, spoil, message):
    spoil(image_folder)
    with pytest.raises(UserError, match=message):
        DATASETS["folder"](image_folder)


def test_data_sets_say_whether_they_read_a_folder(tmp_path):
    assert list(DATASETS) == ["glyphs", "folder", "cub", "cars", "sop", "inshop"]
    with pytest.raises(UserError, match="--dataset folder needs --data-dir"):
        DATASETS["folder"](None)
    with pytest.raises(UserError, match="--dataset glyphs draws its images"):
        DATASETS["glyphs"](tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "spoil",
    [lambda file: file.write_bytes(b"torn"), lambda file: os.truncate(file, 400), lambda file: file.unlink()],
    ids=["no image", "truncated", "gone"],
)
def test_damaged_images_are_named_when_they_are_read(image_folder, spoil, workers):
    images = DATASETS["folder"](image_folder).train
    spoil(image_folder / "class-1" / "0.png")
    views = Views(images, SMALL, augmented=False)
    with pytest.raises(UserError) as raised:
        list(load(views, evaluation_batches(len(images), 4, 0, 1), num_workers=workers))
    assert str(raised.value).startswith(f"cannot read the image {image_folder / 'class-1' / '0.png'}: ")
    assert "\n" not in str(raised.value), "without a worker's traceback"
    assert not multiprocessing.active_children(), "the workers were stopped at once"


def test_images_that_are_not_rgb_become_rgb(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey, grey, grey, grey], axis=2)).save(tmp_path / "alpha.png")
    images = FileImages.of_classes(tmp_path, ["grey.png", "alpha.png"], [0, 1], {0: "a", 1: "b"})
    for index in range(2):
        assert np.array_equal(images.pixels(index).numpy(), np.stack([grey, grey, grey]))


def test_fingerprints_tell_data_apart_and_know_what_moved(image_folder, tmp_path, noise):
    read = DATASETS["folder"]
    seen = [read(image_folder).fingerprint()]
    image_folder = image_folder.rename(tmp_path / "moved")
    assert read(image_folder).fingerprint() == seen[0]
    Image.new("RGB", (8, 8)).save(image_folder / "class-0" / "0.png")
    seen.append(read(image_folder).fingerprint())
    (image_folder / "class-5" / "7.png").rename(image_folder / "class-5" / "8.png")
    seen.append(read(image_folder).fingerprint())
    # Neither paths nor sizes, but a label changes.
    train = read(image_folder).train
    relabelled = FileImages(train.root, train.paths, train.labels.flip(0), train.names)
    seen += [RetrievalData(images, images).fingerprint() for images in (train, relabelled)]

    brighter = TensorImages(noise.images + 1, noise.labels, noise.names)
    parts = [(noise, noise), (noise, brighter), (brighter, noise), (noise, noise, noise)]
    seen += [RetrievalData(*images).fingerprint() for images in parts]
    assert len(set(seen)) == len(seen)


def test_a_fingerprint_of_a_missing_file_names_it(image_folder):
    data = DATASETS["folder"](image_folder)
    (image_folder / "class-4" / "3.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*class-4/3\.png: No such file"):
        data.fingerprint()


def test_glyphs_are_493_classes_of_16_different_images(rendered):
    images, characters = rendered
    assert images.shape == (493, 16, 32, 32) and images.dtype == np.uint8
    assert list(characters) == sorted(set(characters)) and len(characters) == 493
    assert characters[:10] == "0123456789" and "A" in characters
    assert not {"\u0391", "\u0410"} & set(characters), "Greek Alpha and Cyrillic A are drawn like Latin A"
    for face in range(16):
        assert len({image.tobytes() for image in images[:, face]}) == 493
    # The margin that shifts need: nothing is cut off.
    border = np.ones((32, 32), dtype=bool)
    border[1:-1, 1:-1] = False
    assert images.max(axis=(2, 3)).min() > 100 and not images[..., border].any()


def test_glyphs_are_the_same_every_time_and_split_by_class(rendered):
    images, characters = rendered
    data = trees.glyphs()
    assert np.array_equal(data.train.images.numpy(), images[:246].reshape(-1, 1, 32, 32))
    assert np.array_equal(data.query.images.numpy(), images[246:].reshape(-1, 1, 32, 32))
    assert data.num_train_classes == 246 and len(data.query.names) == 247 and data.gallery is None
    assert data.train.labels.tolist() == [c for c in range(246) for _ in range(16)]
    assert data.query.names[0] == f"{characters[246]} U+{ord(characters[246]):04X}"
    assert torch.equal(data.query.pixels(17), torch.from_numpy(images[247, 1])[None])
    assert str(data) == "3936 images of 246 classes to train on, 3952 images of 247 unseen classes to retrieve"


def test_missing_fonts_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError) as raised:
        DATASETS["glyphs"](None)
    message = str(raised.value)
    assert "16 of them are not in" in message and str(tmp_path / "fonts" / "ttf") in message
    assert "STIXGeneralBolIta.ttf" in message and "DejaVuSans.ttf" in message


def test_unreadable_and_unexpected_fonts_are_named(monkeypatch, tmp_path):
    # Two, which have more characters in common than all.
    monkeypatch.setattr(glyphs, "FACES", ("DejaVuSans", "STIXGeneral"))
    real = glyphs.font_files()
    fonts = tmp_path / "fonts" / "ttf"
    fonts.mkdir(parents=True)
    monkeypatch.setattr(glyphs.matplotlib, "get_data_path", lambda: str(tmp_path))
    for file in real:
        shutil.copy(file, fonts)
    with pytest.raises(UserError, match="has 493 classes, but the fonts in .* give"):
        glyphs.render_glyphs()
    (fonts / "STIXGeneral.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"cannot read the font .*STIXGeneral\.ttf"):
        glyphs.render_glyphs()


# Batches


def same(found, expected):
    """Whether two lists of tuples of tensors are the same, to the bit."""
    assert len(found) == len(expected)
    return all(torch.equal(a, b) for pair in zip(found, expected) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("per_class", [1, 4])
def test_batches_visit_every_sample_once(per_class):
    labels = torch.arange(5).repeat(8)[torch.randperm(40)]
    epochs = [list(epoch_batches(labels, 12, per_class, seed=0, epoch=epoch)) for epoch in range(2)]
    for epoch in epochs:
        assert [len(batch.indices) for batch in epoch] == [12, 12, 12, 4]
        order = torch.cat([batch.indices for batch in epoch])
        assert order.sort().values.tolist() == list(range(40))
        assert all(len(set(group)) == 1 for group in labels[order].view(-1, per_class).tolist())
    assert not same(epochs[0], epochs[1])


def test_classes_that_do_not_divide_come_in_smaller_groups():
    labels = torch.tensor([0] * 5 + [1] * 6 + [2])
    order = torch.cat([batch.indices for batch in epoch_batches(labels, 12, 4, seed=0, epoch=0)])
    assert order.sort().values.tolist() == list(range(12))
    changes = (labels[order].diff() != 0).sum()
    assert changes <= 4, "five groups"


def test_batches_depend_on_seed_and_epoch_and_nothing_else():
    labels = torch.arange(10).repeat(6)
    numbers = [(0, 0), (0, 1), (1, 0), (2**63 - 1, 0), (2**32, 0)]
    epochs = [list(epoch_batches(labels, 16, 2, *pair)) for pair in numbers]
    torch.manual_seed(5)
    assert all(same(list(epoch_batches(labels, 16, 2, *pair)), epoch) for pair, epoch in zip(numbers, epochs))
    assert len({tuple(epoch[0].indices.tolist()) for epoch in epochs}) == len(numbers)
    seeds = torch.cat([batch.seeds.flatten() for epoch in epochs for batch in epoch])
    assert len(seeds.unique()) == len(seeds) and seeds.min() >= 0
    assert 0.4 < seeds.double().mean() / 2**63 < 0.6


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("n, batches", [(46, 5), (43, 4), (40, 4)])
def test_ranks_share_the_batches_of_one_process(world, n, batches):
    labels = torch.arange(n) % 4
    whole = list(epoch_batches(labels, 10, 2, seed=3, epoch=1, views=2))
    shards = [list(epoch_batches(labels, 10, 2, seed=3, epoch=1, views=2, rank=r, world=world)) for r in range(world)]
    joined = [Batch(*(torch.cat(parts, dim=-1) for parts in zip(*batch))) for batch in zip(*shards, strict=True)]
    assert len(joined) == batches == batches_per_epoch(n, 10, world)
    assert same(joined, whole[:batches])
    for parts in zip(*shards):
        sizes = [len(part.indices) for part in parts]
        assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1
        assert all(part.seeds.shape == (2, len(part.indices)) for part in parts)


def test_a_last_batch_of_one_sample_is_left_out():
    assert [len(batch.indices) for batch in epoch_batches(torch.zeros(9, dtype=torch.int64), 4, 1, 0, 0)] == [4, 4]
    assert [batches_per_epoch(n, 4, 1) for n in (1, 2, 8, 9, 10)] == [0, 1, 2, 2, 3]


def test_skipping_goes_on_exactly():
    labels = torch.arange(8).repeat(5)
    whole = list(epoch_batches(labels, 12, 4, seed=0, epoch=2, views=2))
    for skip in range(5):
        assert same(list(epoch_batches(labels, 12, 4, seed=0, epoch=2, views=2, skip=skip)), whole[skip:])


def test_a_batch_without_two_samples_a_process_is_refused():
    with pytest.raises(ValueError, match="batch_size is 7, but must be at least 2 for each of 4 processes"):
        next(epoch_batches(torch.arange(40), 7, 1, 0, 0, world=4))


@pytest.mark.parametrize("n", [0, 1, 2, 10, 11])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_is_in_order(n, world):
    ranks = [list(evaluation_batches(n, 3, rank, world)) for rank in range(world)]
    sizes = [sum(len(batch.indices) for batch in batches) for batches in ranks]
    assert max(sizes) - min(sizes) <= 1
    everything = [batch for batches in ranks for batch in batches]
    assert [i for batch in everything for i in batch.indices.tolist()] == list(range(n))
    for batch in everything:
        assert 0 < len(batch.indices) <= 3 and batch.seeds.shape == (1, len(batch.indices))


# What the network sees


def made(views, batch):
    """Images and labels of one batch, as they come to the network."""
    (result,) = load(views, [batch])
    return result


def augmented(make, pixels, n):
    """So many augmentations of one image."""
    images = TensorImages(pixels[None], torch.zeros(1, dtype=torch.int64), ["a"])
    batch = Batch(torch.zeros(1, dtype=torch.int64), torch.arange(n)[:, None])
    return made(Views(images, make, augmented=True), batch)[0][:, 0]


def evaluated(make, pixels):
    images = TensorImages(pixels[None], torch.zeros(1, dtype=torch.int64), ["a"])
    return made(Views(images, make, augmented=False), next(evaluation_batches(1, 1, 0, 1)))[0][0, 0]


def every_kind_of_views(noise, photos, augmented):
    return [
        Views(noise, None, augmented),
        Views(noise, Preprocessing(size=8, resize=10), augmented),
        Views(photos, SMALL, augmented),
    ]


@pytest.mark.parametrize("augmented", [True, False])
def test_workers_and_ranks_make_the_same_tensors(noise, photos, augmented):
    for views in every_kind_of_views(noise, photos, augmented):
        labels = views.images.labels

        def batches(labels=labels, **options):
            return epoch_batches(labels, 6, 2, seed=0, epoch=0, views=2, **options)

        alone = list(load(views, batches()))
        assert sum(len(found) for _, found in alone) == len(views) == len(labels)
        for (images, found), batch in zip(alone, batches(), strict=True):
            assert torch.equal(found, labels[batch.indices])
            assert images.shape[:3] == (2, len(found), views.images.pixels(0).shape[0])
            assert images.dtype == torch.float32 and 0 <= images.min() <= images.max() <= 1
            assert torch.equal(images[0], images[1]) != augmented
        before = torch.get_rng_state()
        assert same(list(load(views, batches(), num_workers=2)), alone)
        assert torch.equal(torch.get_rng_state(), before), "the run's own generator is left alone"

        shards = [list(load(views, batches(rank=rank, world=2))) for rank in range(2)]
        for (images, found), *parts in zip(alone, *shards):
            assert torch.equal(torch.cat([part for part, _ in parts], dim=1), images)
            assert torch.equal(torch.cat([part for _, part in parts]), found)


def test_an_augmentation_depends_on_its_seed_alone(noise, photos):
    seeds = torch.randint(2**63 - 1, (2, 7), generator=torch.Generator().manual_seed(1))
    indices = torch.tensor([3, 9, 3, 0, 4, 8, 1])
    for views in every_kind_of_views(noise, photos, augmented=True):
        images, _ = made(views, Batch(indices, seeds))
        torch.manual_seed(7)
        before = torch.get_rng_state()
        reversed_, _ = made(views, Batch(indices.flip(0), seeds.flip(0, 1)))
        assert torch.equal(torch.get_rng_state(), before), "the run's own generator is left alone"
        assert torch.equal(reversed_, images.flip(0, 1))
        one, _ = made(views, Batch(indices[2:3], seeds[:1, 2:3]))
        assert torch.equal(one[0, 0], images[0, 2])
        assert not torch.equal(images[0, 0], images[0, 2]), "the same image, another seed"


def test_small_images_move_little_and_differently():
    images = torch.zeros(256, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 12:20, 12:20] = 255
    views = Views(TensorImages(images, torch.zeros(256, dtype=torch.int64), ["square"]), None, augmented=True)
    (batch,) = epoch_batches(views.images.labels, 256, 1, seed=0, epoch=0)
    moved = made(views, batch)[0][0]
    axis = torch.arange(32.0)
    mass = moved.sum((1, 2, 3))
    shifts = torch.stack([(moved.sum((1, other)) * axis).sum(1) / mass - 15.5 for other in (2, 3)])
    for shift in shifts:
        # A tenth of 32 pixels at most, before the scale and the turn; and some come near it.
        assert -3.95 < shift.min() < -2.9 and 2.9 < shift.max() < 3.95 and shift.mean().abs() < 0.4
    assert shifts.corrcoef()[0, 1].abs() < 0.2
    # An area of 64 pixels, by at most 8 % in each direction.
    assert 64 / 1.08**2 - 2 < mass.min() < 58 and 70 < mass.max() < 64 / 0.92**2 + 2
    assert len({image.numpy().tobytes() for image in moved}) == 256


def test_small_images_turn_by_eight_degrees_at_most():
    images = torch.zeros(256, 1, 33, 33, dtype=torch.uint8)
    images[:, :, 16, 6:27] = 255
    views = Views(TensorImages(images, torch.zeros(256, dtype=torch.int64), ["line"]), None, augmented=True)
    (batch,) = epoch_batches(views.images.labels, 256, 1, seed=0, epoch=0)
    turned = made(views, batch)[0][0, :, 0]
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    mass = turned.sum((1, 2))
    x, y = (axis - ((turned * axis).sum((1, 2)) / mass)[:, None, None] for axis in (x, y))
    slope = (turned * x * y).sum((1, 2)) / (turned * x * x).sum((1, 2))
    degrees = torch.rad2deg(slope.atan())
    assert -8.5 < degrees.min() < -6.5 and 6.5 < degrees.max() < 8.5 and degrees.mean().abs() < 1


def test_evaluation_of_small_images_is_the_images(noise):
    images, labels = made(Views(noise, None, augmented=False), next(evaluation_batches(20, 20, 0, 1)))
    assert torch.equal(images[0], noise.images / 255) and torch.equal(labels, noise.labels)


def test_evaluation_of_photos_is_the_centre():
    pixels = torch.randint(256, (3, 30, 40), dtype=torch.uint8)
    pixels[:, :, 0] = 255
    whole = pixels / 255
    centre = evaluated(Preprocessing(size=20, resize=None), pixels)
    assert centre.dtype == torch.float32 and torch.allclose(centre, whole[:, 5:25, 10:30], atol=1e-6)
    shorter = evaluated(Preprocessing(size=30, resize=30), pixels)
    assert torch.allclose(shorter, whole[:, :, 5:35], atol=1e-6)
    square = evaluated(Preprocessing(size=30, resize=30, square=True), pixels)
    assert square.shape == (3, 30, 30) and square[:, :, 0].mean() > 0.75 > square[:, :, 1].mean()


def test_training_crops_mirror_and_jitter_within_their_bounds():
    ramp = torch.arange(64, dtype=torch.uint8).mul(3).expand(3, 64, 64)
    plain = Preprocessing(size=64, resize=None, scale=(1, 1), ratio=(1, 1))
    crops = augmented(plain, ramp, 64)
    kept, mirrored = (torch.isclose(crops, image / 255, atol=1e-6).flatten(1).all(1) for image in (ramp, ramp.flip(2)))
    assert (kept ^ mirrored).all() and 16 < kept.sum() < 48

    # The ramp's slope says how wide a crop was: a quarter of the area is half the width.
    cropped = augmented(Preprocessing(size=64, resize=None, scale=(0.25, 0.25), ratio=(1, 1)), ramp, 8)
    widths = (cropped[:, 0, 0, 60] - cropped[:, 0, 0, 4]).abs() * 255 / 3 / 56 * 64
    assert torch.allclose(widths, torch.tensor(32.0), atol=1)

    grey = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    jittered = augmented(Preprocessing(size=8, resize=None, jitter=(0.2, 0.0, 0.0, 0.0)), grey, 64)
    brightness = jittered.mean((1, 2, 3)) * 255
    assert 79 <= brightness.min() < 90 and 110 < brightness.max() <= 120


def test_settings_that_make_no_sense_are_refused(photos):
    with pytest.raises(ValueError, match="resize is 200, but must be at least size, which is 224"):
        Preprocessing(resize=200)
    with pytest.raises(TypeError, match="FileImages need a preprocessing, but preprocessing is None"):
        Views(photos, None, augmented=False)
