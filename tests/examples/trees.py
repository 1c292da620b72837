"""Small folders of images in the layouts that the training example reads.

The benchmarks have eight classes of four images, numbered from 1 and from 0: an image's red says its class and its
green its number, so that a reader that takes one for another is found out. Classes come in no order in the lists.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

CLASSES = range(1, 9)
NUMBERS = range(4)
STEP = 30
# Each class and number once, neighbours of different classes.
SAMPLES = [(c, number) for number in NUMBERS for c in (3, 8, 1, 6, 2, 7, 5, 4)]


def class_and_number(pixels):
    """What ``draw`` drew, from uint8 pixels of shape (3, height, width)."""
    return tuple((pixels[:2].float().mean((1, 2)) / STEP).round().int().tolist())


def draw(file, c, number):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng((c, number)).integers(-4, 5, (30 + c, 40, 3))
    colour = (STEP * c, STEP * number, 128)
    Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(file, quality=95)


def make_cub(root):
    root = root / "CUB_200_2011"
    paths = {}
    for image, (c, number) in enumerate(SAMPLES, start=1):
        paths[image] = f"{c:03}.Bird_{c}/Bird_{c}_{number:04}.jpg"
        draw(root / "images" / paths[image], c, number)
    _write(root / "images.txt", (f"{image} {path}" for image, path in paths.items()))
    # In another order: the lists belong together by their numbers.
    _write(root / "image_class_labels.txt", (f"{image} {SAMPLES[image - 1][0]}" for image in reversed(paths)))
    _write(root / "classes.txt", (f"{c} {c:03}.Bird_{c}" for c in CLASSES))
    return root


def make_cars_annos(root):
    root = root / "cars"
    rows = []
    for image, (c, number) in enumerate(SAMPLES, start=1):
        rows.append({"relative_im_path": f"car_ims/{image:06}.jpg", **BOX, "class": c, "test": number % 2})
        draw(root / "car_ims" / f"{image:06}.jpg", c, number)
    _save_mat(root / "cars_annos.mat", annotations=_structs(rows), class_names=_class_names())
    return root


def make_cars_devkit(root):
    root = root / "stanford_cars"
    for part, numbers, file in (
        ("train", (0, 2), "cars_train_annos.mat"),
        ("test", (1, 3), "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for image, (c, number) in enumerate((s for s in SAMPLES if s[1] in numbers), start=1):
            # The same names in both folders, as in the published ones.
            rows.append({**BOX, "class": c, "fname": f"{image:05}.jpg"})
            draw(root / f"cars_{part}" / f"{image:05}.jpg", c, number)
        _save_mat(root / "devkit" / file, annotations=_structs(rows))
    unlabelled = [{name: value for name, value in row.items() if name != "class"} for row in rows]
    _save_mat(root / "devkit" / "cars_test_annos.mat", annotations=_structs(unlabelled))
    _save_mat(root / "devkit" / "cars_meta.mat", class_names=_class_names())
    return root


def make_sop(root):
    root = root / "Stanford_Online_Products"
    for file, wanted in (("Ebay_train.txt", CLASSES[:4]), ("Ebay_test.txt", CLASSES[4:])):
        lines = ["image_id class_id super_class_id path"]
        for image, (c, number) in enumerate(SAMPLES, start=1):
            if c in wanted:
                super_class = ("bicycle", "cabinet")[c % 2]
                path = f"{super_class}_final/{c:012}_{number}.JPG"
                draw(root / path, c, number)
                lines.append(f"{image} {c} {c % 2 + 1} {path}")
        _write(root / file, lines)
    return root


def make_inshop(root):
    root = root / "In-shop Clothes Retrieval Benchmark"
    lines = [str(len(SAMPLES)), "image_name item_id evaluation_status"]
    for c, number in SAMPLES:
        path = f"img/WOMEN/Dresses/id_{c:08}/{number:02}_1_front.jpg"
        draw(root / "Img" / path, c, number)
        status = "train" if c in CLASSES[:4] else ("query", "gallery")[number % 2]
        lines.append(f"{path:<70} id_{c:08} {status}")
    _write(root / "Eval" / "list_eval_partition.txt", lines)
    return root


def make_image_folder(root):
    """Six classes of eight small noisy images, each class of a colour of its own."""
    random = np.random.default_rng(0)
    for c in range(6):
        (root / f"class-{c}").mkdir(parents=True)
        colour = random.integers(0, 256, 3)
        for i in range(8):
            pixels = np.clip(colour + random.normal(0, 30, (20, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class-{c}" / f"{i}.png")
    (root / "notes.txt").write_text("not a class")
    (root / "class-0" / ".hidden.png").write_text("not an image")
    (root / "class-0" / "readme.md").write_text("not an image either")
    return root


@functools.cache
def glyphs(data_dir=None):
    """The data set of that name, drawn once for all tests that do not change its images."""
    from fastpair_dml.data.glyphs import glyphs

    return glyphs(data_dir)


def tiny_counts(monkeypatch):
    """Have the example expect these trees rather than the published data sets."""
    from fastpair_dml.data import cars, cub, inshop, sop
    from fastpair_dml.data.benchmark import Counts

    for module, query in ((cub, 16), (cars, 16), (sop, 16), (inshop, 8)):
        counts = {name: Counts(16 if name == "train" else query, 4) for name in module.BENCHMARK.counts}
        monkeypatch.setattr(module, "BENCHMARK", dataclasses.replace(module.BENCHMARK, counts=counts))


BOX = {"bbox_x1": 3, "bbox_y1": 2, "bbox_x2": 30, "bbox_y2": 25}


def _write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _save_mat(file, **variables):
    file.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(file, variables)


def _structs(rows):
    """A 1 x n struct array, as MATLAB keeps it: every number is a 1 x 1 matrix."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(value if isinstance(value, str) else np.uint8([[value]]) for value in row.values())
    return array


def _class_names():
    cells = np.empty((1, len(CLASSES)), dtype=object)
    cells[0] = [f"Maker Model {c}" for c in CLASSES]
    return cells
