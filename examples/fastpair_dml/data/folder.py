"""A folder of one's own images."""

from pathlib import Path

from PIL import Image

from ..errors import UserError
from .images import FileImages, RetrievalData


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


def _images(root: Path, classes: list[Path]) -> FileImages:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths, names = [], []
    for path in classes:
        files = [file.name for file in _entries(path) if file.suffix.lower() in suffixes]
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
