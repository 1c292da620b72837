"""Data sets for training and retrieval on unseen classes, batches and augmentation."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from .errors import UserError
from .glyphs import render_glyphs

FOLDER_IMAGE_SIZE = 64


@dataclass(frozen=True)
class RetrievalData:
    """Images to train on, and images of other classes to search among.

    Attributes:
        train_images, test_images: uint8 tensors of shape (n, channels, height, width).
        train_labels, test_labels: int64 tensors of shape (n,), each counting its own classes from 0.
        test_names: the name of each test class, for figures.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    test_names: list[str]

    @property
    def num_train_classes(self) -> int:
        return int(self.train_labels.max()) + 1

    def fingerprint(self) -> str:
        """A hash of every image and label: a resumed run must see the data that it started with."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        channels, height, width = self.train_images.shape[1:]
        return (
            f"{len(self.train_images)} images of {self.num_train_classes} classes to train on, {len(self.test_images)} "
            f"images of {len(self.test_names)} unseen classes to retrieve, {channels} x {height} x {width}"
        )


def glyphs(data_dir: Path | None = None) -> RetrievalData:
    """The glyphs data set: the first 246 classes in code-point order train, the other 247 are for retrieval.

    Args:
        data_dir: must be None, the images are drawn from matplotlib's fonts.

    Raises:
        UserError: ``data_dir`` was given, or the fonts are missing, unreadable or others than expected.
    """
    if data_dir is not None:
        raise UserError(f"--data-dir is {data_dir}, but --dataset glyphs draws its images and reads no folder")
    images, characters = render_glyphs()
    names = [f"{c} U+{ord(c):04X}" for c in characters]
    return _split(list(torch.from_numpy(images)[:, :, None]), names)


def folder(data_dir: Path | None = None) -> RetrievalData:
    """A folder with one sub-folder of images a class: the first half of the sorted classes train, the rest is unseen.

    Images become RGB, are scaled and centre-cropped to 64 x 64 and kept in memory. Files whose suffix is
    not one of an image format that Pillow reads are left alone, as is anything whose name starts with a dot.

    Args:
        data_dir: the folder.

    Raises:
        UserError: the folder is missing or unreadable, has fewer than four classes, a class has fewer than two images,
            or an image cannot be read.
    """
    if data_dir is None:
        raise UserError("--dataset folder needs --data-dir, a folder with one sub-folder of images for each class")
    classes = [path for path in _entries(data_dir) if path.is_dir()]
    if len(classes) < 4:
        raise UserError(
            f"--data-dir {data_dir} has {len(classes)} class folders, but training on one half of the classes and "
            "retrieving the other needs at least 4"
        )
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = []
    for path in classes:
        files = [file for file in _entries(path) if file.suffix.lower() in suffixes]
        if len(files) < 2:
            raise UserError(f"the class folder {path} has {len(files)} images, but every class needs at least 2")
        images.append(torch.stack([_read_image(file) for file in files]))
    return _split(images, [path.name for path in classes])


# A data set is a function of --data-dir; one more line here makes one more choice of --dataset.
DATASETS: dict[str, Callable[[Path | None], RetrievalData]] = {"glyphs": glyphs, "folder": folder}


def _split(images: list[torch.Tensor], names: list[str]) -> RetrievalData:
    half = len(images) // 2

    def gather(classes):
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(c) for c in classes]))
        return torch.cat(classes), labels

    return RetrievalData(*gather(images[:half]), *gather(images[half:]), names[half:])


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the data folder {path}: {error.strerror}") from error


def _read_image(file: Path) -> torch.Tensor:
    try:
        with Image.open(file) as image:
            image = ImageOps.fit(image.convert("RGB"), (FOLDER_IMAGE_SIZE, FOLDER_IMAGE_SIZE))
    # Damaged files make Pillow's decoders raise almost anything, SyntaxError and struct.error among it.
    except Exception as error:
        raise UserError(f"cannot read the image {file}: {error}") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def batches(
    labels: torch.Tensor, batch_size: int, per_class: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """One epoch of batches that visits every sample once.

    The samples of each class are shuffled and cut into groups of ``per_class``; the groups are shuffled and laid end to
    end. ``per_class=1`` is a plain shuffle.

    Args:
        labels: integer class labels of shape (n,).
        batch_size: samples in a batch; the last one has what remains.
        per_class: how many samples of a class come together.
        generator: the source of randomness.

    Yields:
        int64 indices of shape (batch_size,).
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    groups = [group for samples in by_class.split(labels.bincount().tolist()) for group in samples.split(per_class)]
    order = torch.cat([groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()])
    yield from order.split(batch_size)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn by up to 8 degrees, shift by up to 10 % and scale by up to 8 %, differently for each image.

    Args:
        images: float tensor of shape (n, channels, height, width).
        generator: a CPU generator, so that every device sees the same augmentation.

    Returns:
        A tensor like ``images``.
    """
    angle, scale, shift_x, shift_y = 2 * torch.rand(4, len(images), generator=generator) - 1
    angle = torch.deg2rad(8 * angle)
    # affine_grid maps output to input coordinates, which run from -1 to 1: 0.2 is a tenth of the image.
    cos, sin = angle.cos() * (1 + 0.08 * scale), angle.sin() * (1 + 0.08 * scale)
    theta = torch.stack([cos, -sin, 0.2 * shift_x, sin, cos, 0.2 * shift_y], dim=1).view(-1, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
