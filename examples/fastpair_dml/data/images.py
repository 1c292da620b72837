"""Lists of labelled images, in memory or in files, and the lists that make a retrieval task."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..errors import UserError
from .reading import check_header, read_rgb


class Images(Protocol):
    """Labelled images.

    Attributes:
        labels: int64 tensor of shape (n,), counting the classes of this list from 0.
        names: the name of each class.
    """

    labels: torch.Tensor
    names: list[str]

    def __len__(self) -> int: ...

    def pixels(self, index: int, scaled_to: int | None = None) -> torch.Tensor:
        """One image as it is, uint8 of shape (channels, height, width), or nearly: its shorter side will be scaled to
        ``scaled_to`` pixels at most."""

    def key(self, index: int) -> str | None:
        """What tells this image from all others, on this machine; None where it lies in memory."""

    def fingerprint(self, digest) -> None:
        """Feed ``digest``, an object of hashlib, with what tells these images from others."""


@dataclass(frozen=True, eq=False)
class TensorImages:
    """:class:`Images` of one size, in memory.

    Attributes:
        images: uint8 tensor of shape (n, channels, height, width).
        labels, names: as in :class:`Images`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: int, scaled_to: int | None = None) -> torch.Tensor:
        return self.images[index]

    def key(self, index: int) -> str | None:
        return None

    def fingerprint(self, digest) -> None:
        for tensor in (self.images, self.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy())


@dataclass(frozen=True, eq=False)
class FileImages:
    """:class:`Images` in files of any size, read as RGB when they are asked for.

    Attributes:
        root: the folder that the paths start from.
        paths: where each image is, with slashes.
        labels, names: as in :class:`Images`.
    """

    root: Path
    paths: list[str]
    labels: torch.Tensor
    names: list[str]

    @classmethod
    def of_classes(cls, root: Path, paths: Sequence[str], classes: Sequence, names: dict) -> "FileImages":
        """The images ``paths``, each of the class with the key ``classes[i]``; ``names`` has a name for every key.

        The classes that occur are counted in the order of their keys.
        """
        keys = sorted(set(classes))
        numbers = {key: number for number, key in enumerate(keys)}
        labels = torch.tensor([numbers[key] for key in classes], dtype=torch.int64)
        return cls(root, list(paths), labels, [names[key] for key in keys])

    def __len__(self) -> int:
        return len(self.labels)

    def file(self, index: int) -> Path:
        return self.root / self.paths[index]

    def pixels(self, index: int, scaled_to: int | None = None) -> torch.Tensor:
        """See :class:`Images` and :func:`read_rgb`, which raises UserError."""
        return read_rgb(self.file(index), scaled_to)

    def key(self, index: int) -> str | None:
        """Path, size and time of the file.

        Raises:
            UserError: the file is missing.
        """
        file = self.file(index)
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"cannot read the image {file}: {error.strerror}") from error
        return f"{file.absolute()} {status.st_size} {status.st_mtime_ns}"

    def check_header(self, index: int) -> None:
        """See :func:`reading.check_header`, which raises UserError."""
        check_header(self.file(index))

    def fingerprint(self, digest) -> None:
        """Feed ``digest`` with the paths, the sizes of the files and the labels: to read 100,000 files takes too long.

        Raises:
            UserError: a file is missing.
        """
        for path in self.paths:
            try:
                size = os.path.getsize(self.root / path)
            except OSError as error:
                raise UserError(f"cannot read the image {self.root / path}: {error.strerror}") from error
            digest.update(os.fsencode(f"{path}\0{size}\0"))
        digest.update(self.labels.numpy())


@dataclass(frozen=True)
class RetrievalData:
    """Images to train on, and images of other classes to search among.

    Attributes:
        train: what a network learns from.
        query: what to search with.
        gallery: what to search among, of the same classes and counted as ``query`` counts them; None: the queries
            search among themselves, leaving themselves out.
        outputs: how many outputs a classifier has in the paper's code, where that is more than the classes.
    """

    train: Images
    query: Images
    gallery: Images | None = None
    outputs: int | None = None

    @property
    def published_outputs(self) -> int:
        return self.outputs or self.num_train_classes

    @property
    def num_train_classes(self) -> int:
        return len(self.train.names)

    def fingerprint(self) -> str:
        """A hash of images and labels: a resumed run must see the data that it started with."""
        digest = hashlib.sha256()
        for images in (self.train, self.query, self.gallery):
            if images is not None:
                images.fingerprint(digest)
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        train = f"{len(self.train)} images of {self.num_train_classes} classes to train on"
        classes = f"{len(self.query.names)} unseen classes"
        if self.gallery is None:
            return f"{train}, {len(self.query)} images of {classes} to retrieve"
        return f"{train}, {len(self.query)} queries and {len(self.gallery)} gallery images of {classes}"
