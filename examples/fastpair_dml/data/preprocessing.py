"""From images as they are to the batches that a network sees."""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ..errors import UserError
from .batches import Batch
from .images import Images, TensorImages


@dataclass(frozen=True)
class Preprocessing:
    """How photos are cropped, scaled and augmented.

    Attributes:
        size: height and width of what the network sees.
        resize: what an image is scaled to before it is cropped, at least ``size``; None leaves it as it is.
        square: scale both sides to ``resize``, whatever the image's shape, rather than the shorter one.
        scale, ratio: the share of the image that a random crop covers, and its width over its height.
        jitter: how far brightness, contrast, saturation and hue may change.

    Raises:
        ValueError: ``resize`` is less than ``size``.
    """

    size: int = 224
    resize: int | None = 256
    square: bool = False
    scale: tuple[float, float] = (0.16, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self):
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, but must be at least size, which is {self.size}")

    def train(self) -> v2.Compose:
        """Jitter, a random crop and mirroring: from uint8 (channels, height, width) to float32 from 0 to 1."""
        # Before the crop, as the paper's code has it: contrast changes about the mean of the whole image.
        jitter = [v2.ColorJitter(*self.jitter)] if any(self.jitter) else []
        crop = v2.RandomResizedCrop(self.size, self.scale, self.ratio)
        return self._pipeline([*jitter, crop, v2.RandomHorizontalFlip()])

    def evaluate(self) -> v2.Compose:
        """The crop in the centre, without any chance: from uint8 (channels, height, width) to float32 from 0 to 1."""
        return self._pipeline([v2.CenterCrop(self.size)])

    def _pipeline(self, steps: list) -> v2.Compose:
        resize = []
        if self.resize is not None:
            resize.append(v2.Resize((self.resize, self.resize) if self.square else self.resize))
        return v2.Compose([*resize, *steps, v2.ToDtype(torch.float32, scale=True)])


class Views(Dataset):
    """Batches of images as a network sees them, float32 from 0 to 1, neither normalised nor on a device.

    An augmentation is decided by its seed in the batch alone: not by the process or the worker that makes it, nor by
    the rest of the batch.

    Args:
        images: the images.
        preprocessing: what is done to them; None takes images in memory as they are and augments with :func:`augment`.
        augmented: whether to augment.

    Raises:
        TypeError: ``preprocessing`` is None and the images are not in memory.
    """

    def __init__(self, images: Images, preprocessing: Preprocessing | None, augmented: bool):
        if preprocessing is None and not isinstance(images, TensorImages):
            raise TypeError(f"{type(images).__name__} need a preprocessing, but preprocessing is None")
        self.images, self.augmented = images, augmented
        self.transform = preprocessing and (preprocessing.train() if augmented else preprocessing.evaluate())

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of shape (views, n, channels, height, width) and their labels, int64 of shape (n,).

        Raises:
            UserError: an image cannot be read.
        """
        make = self._small if self.transform is None else self._photos
        return make(batch), self.images.labels[batch.indices]

    def _small(self, batch: Batch) -> torch.Tensor:
        images = self.images.images[batch.indices].float() / 255
        return torch.stack([augment(images, seeds) if self.augmented else images for seeds in batch.seeds])

    def _photos(self, batch: Batch) -> torch.Tensor:
        photos = []
        # The generator of the CPU alone: torch.manual_seed would seed those of the devices too, for good.
        with torch.random.fork_rng(devices=[]):
            for index, seeds in zip(batch.indices.tolist(), batch.seeds.T.tolist()):
                pixels = self.images.pixels(index)
                for seed in seeds:
                    torch.default_generator.manual_seed(seed)
                    photos.append(self.transform(pixels))
        return torch.stack(photos).unflatten(0, (len(batch.indices), -1)).transpose(0, 1)


def load(views: Views, batches: Iterable[Batch], **options) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What ``views`` makes of each batch, in order.

    Args:
        views: the images.
        batches: such as :func:`epoch_batches`.
        **options: of ``torch.utils.data.DataLoader``, such as ``num_workers`` and ``pin_memory``.

    Raises:
        UserError: an image cannot be read, here or in a worker.
    """
    # Without a generator of its own the loader draws from the one that a resumed run has to find as it was.
    own = torch.Generator()
    loader = DataLoader(
        views, batch_sampler=batches, collate_fn=_as_it_is, worker_init_fn=_leave_group, generator=own, **options
    )
    try:
        yield from _started(loader)
    except UserError as error:
        # From a worker comes an error whose text is the worker's whole traceback, with the message at its end. Its own
        # traceback has a cycle that keeps the loader from stopping its workers at once: they wait for 5 s each.
        message = str(error).rpartition("UserError: ")[2].rstrip()
        raise UserError(message) from error.with_traceback(None)


def _as_it_is(batch):
    return batch


def _started(loader: DataLoader) -> Iterator:
    # No name for it in a caller, where it would live, and its workers, as long as the traceback of an error.
    with _no_stop():
        return iter(loader)


_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _no_stop() -> Iterator[None]:
    """Signals wait, here and in the processes that are started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_group(_) -> None:
    # A Ctrl-C, or what a launcher sends, goes to the whole group: what to do about it is for the process that trains to
    # say, which needs its workers to the end of the step. To ignore a signal drops one that waits, but while it is
    # blocked a new one waits all the same: none must come after, so the group is left first.
    os.setpgrp()
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
        signal.signal(number, signal.SIG_DFL)  # in place of the inherited handler of the process that trains
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def augment(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Turn by up to 8 degrees, shift by up to 10 % and scale by up to 8 %, differently for each image.

    Args:
        images: float32 tensor of shape (n, channels, height, width).
        seeds: int64 tensor of shape (n,); each decides what happens to its image.

    Returns:
        A tensor like ``images``.
    """
    # 15 bits of the seed for each, as numbers between -1 and 1 of shape (n, 1, 1).
    bits = (seeds >> torch.tensor([[0], [15], [30], [45]])) & 0x7FFF
    angle, scale, shift_x, shift_y = ((bits.double() + 0.5) / 2**14 - 1)[..., None, None]
    angle, scale = torch.deg2rad(8 * angle), 1 + 0.08 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Where in the image each pixel comes from, in coordinates from -1 to 1: 0.2 is a tenth of the image. Unlike
    # affine_grid's matrix product, operations on single elements have the same bits in a batch of any size.
    y, x = ((2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1 for size in images.shape[2:])
    y = y[:, None]
    grid = torch.stack([cos * x - sin * y + 0.2 * shift_x, sin * x + cos * y + 0.2 * shift_y], dim=3).float()
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
