"""From images as they are to the batches that a network sees."""

import contextlib
import math
import os
import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as T

from ..errors import UserError
from . import colour
from .batches import Batch
from .cache import Cache
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
        cache: a folder where resized images are kept for the next time, or None.

    Raises:
        ValueError: ``resize`` is less than ``size``.
    """

    size: int = 224
    resize: int | None = 256
    square: bool = False
    scale: tuple[float, float] = (0.16, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    cache: str | None = None

    def __post_init__(self):
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize is {self.resize}, but must be at least size, which is {self.size}")

    def whole(self, images: Images, index: int) -> torch.Tensor:
        """An image before it is cropped, uint8 of shape (channels, height, width).

        Raises:
            UserError: it cannot be read, or not be kept in the cache.
        """
        if self.cache is None or (key := images.key(index)) is None:
            return self._resized(images, index)
        key = f"{key} {self.resize} {self.square}"
        return Cache(Path(self.cache)).pixels(key, lambda: self._resized(images, index))

    def _resized(self, images: Images, index: int) -> torch.Tensor:
        pixels = images.pixels(index, self.resize)
        if self.resize is None:
            return pixels
        return T.resize(pixels, [self.resize, self.resize] if self.square else [self.resize])

    def centre(self, pixels: torch.Tensor) -> torch.Tensor:
        """The crop in the centre, uint8 of shape (channels, size, size), without any chance."""
        return T.center_crop(pixels, [self.size])

    def crop(self, pixels: torch.Tensor, generator: random.Random) -> torch.Tensor:
        """A random crop, uint8 of shape (channels, size, size), one in two mirrored.

        Its share of the area is uniform on ``scale``, the logarithm of its width over its height uniform between those
        of ``ratio``; one that does not fit is drawn again, up to ten times (Szegedy et al., Going Deeper with
        Convolutions, section 6, as torchvision's ``RandomResizedCrop`` has it).
        """
        crop = T.resized_crop(pixels, *self._box(*pixels.shape[1:], generator), [self.size, self.size])
        return crop.flip(2) if generator.random() < 0.5 else crop

    def _box(self, height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        low, high = self.ratio
        for _ in range(10):
            area = height * width * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return generator.randint(0, height - h), generator.randint(0, width - w), h, w
        # The largest in the centre whose sides have a ratio that is allowed.
        w, h = min(width, round(height * high)), min(height, round(width / low))
        return (height - h) // 2, (width - w) // 2, h, w


class Raw(NamedTuple):
    """A batch as it goes from a reading process to the device.

    Attributes:
        images: of shape (views, n, channels, height, width): uint8, or float32 from 0 to 1.
        labels: int64 of shape (n,).
        colours: how the colours of uint8 images change, or None.
    """

    images: torch.Tensor
    labels: torch.Tensor
    colours: colour.Colours | None = None


class Views(Dataset):
    """Batches of images as a network sees them, neither normalised nor, yet, with their colours changed.

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
        self.images, self.preprocessing, self.augmented = images, preprocessing, augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, batch: Batch) -> Raw:
        """The batch, for :func:`finish`.

        Raises:
            UserError: an image cannot be read.
        """
        labels = self.images.labels[batch.indices]
        return Raw(self._small(batch), labels) if self.preprocessing is None else self._photos(batch, labels)

    def _small(self, batch: Batch) -> torch.Tensor:
        images = self.images.images[batch.indices].float() / 255
        return torch.stack([augment(images, seeds) if self.augmented else images for seeds in batch.seeds])

    def _photos(self, batch: Batch, labels: torch.Tensor) -> Raw:
        make = self.preprocessing
        crops, samples, draws = [], [], []
        for index, seeds in zip(batch.indices.tolist(), batch.seeds.T.tolist()):
            pixels = make.whole(self.images, index)
            if not self.augmented:
                crops += [make.centre(pixels)] * len(seeds)
                continue
            samples.append(colour.sample(pixels))
            for generator in map(random.Random, seeds):
                crops.append(make.crop(pixels, generator))
                draws.append(colour.draw(generator, make.jitter))
        images = _by_view(torch.stack(crops), len(labels))
        if not (self.augmented and any(make.jitter)):
            return Raw(images, labels)
        drawn = (_by_view(torch.tensor(values), len(labels)) for values in zip(*draws))
        return Raw(images, labels, colour.Colours(*drawn, torch.stack(samples)))


def _by_view(rows: torch.Tensor, n: int) -> torch.Tensor:
    """(views, n, ...) of (n * views, ...), the views of an image one after the other."""
    return rows.unflatten(0, (n, -1)).transpose(0, 1).contiguous()


def finish(raw: Raw, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 from 0 to 1 on the device, of shape (views, n, channels, height, width), and their labels."""
    images = raw.images.to(device, non_blocking=True)
    if images.is_floating_point():
        return images, raw.labels
    images = images.float()
    if raw.colours is not None:
        colour.jitter_(images, raw.colours)
    return images.div_(255), raw.labels


CPU = torch.device("cpu")


def load(
    views: Views, batches: Iterable[Batch], *, device: torch.device = CPU, **options
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What ``views`` makes of each batch, in order, finished on the device.

    Args:
        views: the images.
        batches: such as :func:`epoch_batches`.
        device: where colours change, and the images are to be.
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
        for raw in _started(loader):
            yield finish(raw, device)
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
