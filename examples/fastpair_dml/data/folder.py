"""A folder of one's own images."""

import os
from pathlib import Path

from ..errors import UserError
from .images import FileImages, RetrievalData
from .reading import suffixes


def folder(data_dir: Path | None = None) -> RetrievalData:
    """A folder with one sub-folder of images a class: the first half of the sorted classes train, the rest is unseen.

    Files whose suffix is not one of an image format that Pillow reads are left alone, as is anything whose name starts
    with a dot. That the others can be read is seen when they are.

    Args:
        data_dir: the folder.

    Raises:
        UserError: the folder is missing or unreadable, has fewer than four classes, or fewer than two images
            of a class.
    """
    if data_dir is None:
        raise UserError("--dataset folder needs --data-dir, a folder with one sub-folder of images for each class")
    classes = [path for path in _entries(data_dir) if path.is_dir()]
    if len(classes) < 4:
        raise UserError(
            f"--data-dir {data_dir} has {len(classes)} class folders, but training on one half of the classes and "
            "retrieving the other needs at least 4"
        )
    half = len(classes) // 2
    return RetrievalData(_images(data_dir, classes[:half]), _images(data_dir, classes[half:]))


def all_classes(data_dir: Path | None) -> FileImages:
    """All classes of such a folder, of which none was trained on.

    Raises:
        UserError: the folder is missing or unreadable, has no classes, or fewer than two images of a class.
    """
    if data_dir is None:
        raise UserError("--dataset folder needs --data-dir, a folder with one sub-folder of images for each class")
    classes = [path for path in _entries(data_dir) if path.is_dir()]
    if not classes:
        raise UserError(f"--data-dir {data_dir} has no class folders, but needs one for each class")
    return _images(data_dir, classes)


def images_below(root: Path) -> list[str]:
    """The paths of all images in a folder and the folders in it, from it on, with slashes, sorted.

    Raises:
        UserError: the folder is missing or unreadable, or has no images.
    """

    def refuse(error: OSError):
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    known, paths = suffixes(), []
    for folder, below, files in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        paths += [(here / name).as_posix() for name in files if _is_image(Path(name), known)]
    if not paths:
        raise UserError(f"there are no images in the folder {root}, or in folders in it")
    return sorted(paths)


def _is_image(file: Path, known: set[str]) -> bool:
    return file.suffix.lower() in known and not file.name.startswith(".")


def _images(root: Path, classes: list[Path]) -> FileImages:
    known = suffixes()
    paths, names = [], []
    for path in classes:
        files = [file.name for file in _entries(path) if _is_image(file, known)]
        if len(files) < 2:
            raise UserError(f"the class folder {path} has {len(files)} images, but every class needs at least 2")
        paths += [f"{path.name}/{file}" for file in files]
        names += [path.name] * len(files)
    return FileImages.of_classes(root, paths, names, {name: name for name in names})


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the data folder {path}: {error.strerror}") from error
