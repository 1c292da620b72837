"""Stanford Cars: Krause, Stark, Deng, Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 3dRR 2013."""

from pathlib import Path

import numpy as np

from ..errors import UserError
from .benchmark import Benchmark, Counts
from .images import RetrievalData

LABELLED = "cars_test_annos_withlabels.mat"

BENCHMARK = Benchmark(
    name="Cars-196",
    page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    tree=f"""\
  car_ims/*.jpg                 or   cars_train/*.jpg
  cars_annos.mat                     cars_test/*.jpg
                                     devkit/cars_meta.mat
                                     devkit/cars_train_annos.mat
                                     devkit/{LABELLED}""",
    counts={"train": Counts(8054, 98), "query": Counts(8131, 98)},
)


def cars(data_dir: Path | None = None) -> RetrievalData:
    """Cars-196: classes 1 to 98 train, 99 to 196 are unseen; the published halves of each class are one here.

    Args:
        data_dir: the folder of ``car_ims`` or of ``cars_train`` and ``cars_test``, or the one around it.

    Raises:
        UserError: the folder, a list or an image is missing, or not what was published; or there is no scipy.
    """
    root = BENCHMARK.find(data_dir, "car_ims", "cars_train")
    if (root / "car_ims").is_dir():
        file = root / "cars_annos.mat"
        rows, names = _rows(file, "relative_im_path"), _read(file, "class_names")
    else:
        train, test = _rows(_devkit(root, "cars_train_annos.mat"), "fname"), _rows(_test_list(root), "fname")
        rows = [(f"cars_train/{path}", number) for path, number in train]
        rows += [(f"cars_test/{path}", number) for path, number in test]
        names = _read(_devkit(root, "cars_meta.mat"), "class_names")
    return RetrievalData(*BENCHMARK.split(root, rows, dict(enumerate(map(str, names), start=1))))


def _devkit(root: Path, *names: str) -> Path:
    """The first of ``names`` that lies in the devkit or beside it."""
    for name in names:
        for folder in (root / "devkit", root):
            if (folder / name).is_file():
                return folder / name
    raise BENCHMARK.error(f"there is no {names[0]} in {root / 'devkit'} or {root}")


def _test_list(root: Path) -> Path:
    # The devkit came with a list without classes, for a challenge; the one that has them was published later, alone.
    file = _devkit(root, LABELLED, "cars_test_annos.mat")
    if "class" not in (_read(file, "annotations").dtype.names or ()):
        raise BENCHMARK.error(f"{file} does not say the classes; {LABELLED} does, and must lie in the same folder")
    return file


def _rows(file: Path, path: str) -> list[tuple[str, int]]:
    annotations = _read(file, "annotations")
    try:
        return [(str(row[path]), int(row["class"])) for row in annotations]
    except (ValueError, TypeError, IndexError) as error:
        raise BENCHMARK.error(f"{file} is not a list of {path} and class: {error}") from error


def _read(file: Path, variable: str) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{file} can only be read with scipy: pip install scipy") from error
    try:
        with open(file, "rb") as content:
            return np.atleast_1d(loadmat(content, squeeze_me=True, variable_names=[variable])[variable])
    # Damaged files make scipy raise almost anything, zlib.error and NotImplementedError among it.
    except Exception as error:
        raise BENCHMARK.error(f"cannot read {variable} in {file}: {error}") from error
