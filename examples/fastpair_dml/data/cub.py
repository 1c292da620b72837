"""Caltech-UCSD Birds: Wah, Branson, Welinder, Perona, Belongie, The Caltech-UCSD Birds-200-2011 Dataset, 2011."""

from pathlib import Path

from .benchmark import Benchmark, Counts
from .images import RetrievalData

BENCHMARK = Benchmark(
    name="CUB-200-2011",
    page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    tree="""\
  CUB_200_2011/
    images.txt
    image_class_labels.txt
    classes.txt
    images/001.Black_footed_Albatross/*.jpg, ... 200 folders""",
    counts={"train": Counts(5864, 100), "query": Counts(5924, 100)},
)


def cub(data_dir: Path | None = None) -> RetrievalData:
    """CUB-200-2011: classes 1 to 100 train, 101 to 200 are unseen.

    Args:
        data_dir: the unpacked folder, or the one around it.

    Raises:
        UserError: the folder, a list or an image is missing, or not what was published.
    """
    root = BENCHMARK.find(data_dir, "images.txt")
    paths = BENCHMARK.table(root / "images.txt", {"image_id": int, "path": str})
    classes = dict(BENCHMARK.table(root / "image_class_labels.txt", {"image_id": int, "class_id": int}))
    names = dict(BENCHMARK.table(root / "classes.txt", {"class_id": int, "name": str}))
    for image, path in paths:
        if image not in classes:
            raise BENCHMARK.error(f"{root / 'image_class_labels.txt'} has no class for image {image}, {path}")
    rows = [(path, classes[image]) for image, path in paths]
    return RetrievalData(*BENCHMARK.split(root / "images", rows, names))
