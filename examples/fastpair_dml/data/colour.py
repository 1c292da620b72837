"""Colour jitter of whole batches, on the device that trains: brightness, contrast, saturation and hue, in any order.

Each operation does to an image of bytes what that of torchvision's ``ColorJitter`` does, roundings with it, but to the
crop that the network sees rather than to the image that the crop is taken from: all but contrast change a pixel by
itself, and for contrast, which changes about the mean of the whole image, pixels of the whole image come along.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Of red, green and blue, in grey (ITU-R BT.601).
GREY = (0.2989, 0.587, 0.114)
# Whole images are known by so many pixels in each direction, the middles of as many equal parts.
SAMPLES = 32


class Colours(NamedTuple):
    """How the colours of a batch change.

    Attributes:
        orders: which of ``OPERATIONS`` an image goes through, first to last, int64 of shape (views, n, k).
        factors: how far it changes in each of them, float32 of shape (views, n, 4).
        samples: some pixels of the images that the batch was cropped from, uint8 of shape (n, channels, s, s).
    """

    orders: Tensor
    factors: Tensor
    samples: Tensor


def draw(generator: random.Random, amounts: Sequence[float]) -> tuple[list[int], list[float]]:
    """An order of the operations whose amount is not zero, and a factor for each of the four.

    Factors of brightness, contrast and saturation are uniform on [max(0, 1 - amount), 1 + amount], the shift of the hue
    on [-amount, amount], in turns; every order is as likely as another.
    """
    factors = [generator.uniform(max(0.0, 1 - amount), 1 + amount) for amount in amounts[:3]]
    factors.append(generator.uniform(-amounts[3], amounts[3]))
    order = [operation for operation, amount in enumerate(amounts) if amount]
    generator.shuffle(order)
    return order, factors


def sample(image: Tensor) -> Tensor:
    """Pixels of an image (channels, height, width) on a grid over it, of shape (channels, SAMPLES, SAMPLES)."""
    return F.interpolate(image[None], (SAMPLES, SAMPLES), mode="nearest-exact")[0]


def jitter_(images: Tensor, colours: Colours, one_by_one: bool | None = None) -> Tensor:
    """Change the colours of images in place, and return them.

    Grey images, of one channel, have neither saturation nor hue.

    Args:
        images: (views, n, channels, height, width), float32, whole numbers from 0 to 255.
        colours: what happens to each.
        one_by_one: whether each image goes through its operations alone, rather than with all that have the same order:
            the same result, sooner where it stays in the cache of a core. Default: on a CPU.
    """
    # A view of them, never a copy: the changes are to be theirs.
    flat = images.view(-1, *images.shape[2:])
    factors = colours.factors.flatten(0, 1).to(images.device)[..., None, None, None]
    samples = colours.samples.to(images.device).float().repeat(len(images), 1, 1, 1)
    orders = [tuple(order) for order in colours.orders.flatten(0, 1).tolist()]
    if one_by_one is None:
        one_by_one = images.device.type == "cpu"
    if one_by_one:
        parts = [part.split(1) for part in (flat, samples, factors)]
        memory = flat.new_empty(6, 1, *flat.shape[2:])
        for order, crops, whole, changes in zip(orders, *parts):
            _change(order, crops, whole, changes, memory)
        return images
    for order in sorted(set(orders)):
        rows = torch.tensor([i for i, other in enumerate(orders) if other == order]).to(images.device)
        crops = flat[rows]
        _change(order, crops, samples[rows], factors[rows], crops.new_empty(6, len(crops), *crops.shape[2:]))
        flat[rows] = crops
    return images


def _change(order: tuple[int, ...], crops: Tensor, samples: Tensor, factors: Tensor, spare: Tensor) -> None:
    factors = factors.unbind(1)
    for operation in order:
        OPERATIONS[operation](crops, samples, factors[operation], spare)


# Each changes crops in place, and the samples of the whole images where a contrast may follow. ``factor`` has the shape
# (n, 1, 1, 1), ``spare`` is memory of the shape (6, n, height, width): what is asked for anew has to be mapped anew.


def _brightness(crops: Tensor, samples: Tensor, factor: Tensor, spare: Tensor) -> None:
    for pixels in (crops, samples):
        pixels.mul_(factor).clamp_(max=255).floor_()


def _contrast(crops: Tensor, samples: Tensor, factor: Tensor, spare: Tensor) -> None:
    mean = _grey(samples, torch.empty_like(samples[:, 0])).mean((1, 2, 3), keepdim=True)
    crops.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255).floor_()


def _saturation(crops: Tensor, samples: Tensor, factor: Tensor, spare: Tensor) -> None:
    if crops.shape[1] == 1:
        return
    for pixels, memory in ((crops, spare[0]), (samples, torch.empty_like(samples[:, 0]))):
        grey = _grey(pixels, memory).mul_(1 - factor)
        pixels.mul_(factor).add_(grey).clamp_(0, 255).floor_()


def _hue(crops: Tensor, samples: Tensor, factor: Tensor, spare: Tensor) -> None:
    if crops.shape[1] == 1:
        return
    for pixels, memory in ((crops, spare), (samples, samples.new_empty(6, *samples[:, 0].shape))):
        _turn(pixels, factor[:, 0], memory)


def _grey(pixels: Tensor, memory: Tensor) -> Tensor:
    """(n, 1, height, width) of (n, channels, height, width), written to ``memory``, (n, height, width)."""
    if pixels.shape[1] == 1:
        return memory.copy_(pixels[:, 0])[:, None]
    red, green, blue = pixels.unbind(1)
    torch.mul(red, GREY[0], out=memory)
    return memory.add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).floor_()[:, None]


def _turn(pixels: Tensor, by: Tensor, spare: Tensor) -> None:
    """Turn the hue by ``by`` turns, at the same saturation and value (Smith, Color Gamut Transform Pairs, 1978).

    With the largest channel v, the smallest v - c and the hue h in turns, a channel is v - c clamp(2 - 6 |d|, 0, 1),
    where d is the way, round the circle of hues, from h to the hue opposite the channel's own.
    """
    red, green, blue = pixels.unbind(1)
    value, chroma, unit, hue, other, place = spare
    torch.maximum(torch.maximum(red, green, out=value), blue, out=value)
    torch.minimum(torch.minimum(red, green, out=chroma), blue, out=chroma)
    torch.sub(value, chroma, out=chroma)
    torch.clamp(chroma, min=1, out=unit).mul_(6).reciprocal_()
    # As if blue were the largest, then green where it is, then red where it is. Of whole numbers the difference, at
    # most 1, says which: a mask of its own dtype takes ten times as long.
    torch.sub(red, green, out=hue).mul_(unit).add_(4 / 6)
    torch.sub(blue, red, out=other).mul_(unit).add_(2 / 6)
    torch.lerp(other, hue, torch.sub(value, green, out=place).clamp_(max=1), out=hue)
    torch.sub(green, blue, out=other).mul_(unit)
    torch.lerp(other, hue, torch.sub(value, red, out=place).clamp_(max=1), out=hue)
    # Above 0, for the fraction of what follows.
    hue.add_(by + 2)
    for channel, opposite in ((red, 1 / 2), (green, 5 / 6), (blue, 1 / 6)):
        torch.sub(hue, opposite - 0.5, out=place).frac_().sub_(0.5).abs_().mul_(-6).add_(2).clamp_(0, 1)
        torch.sub(value, place.mul_(chroma), out=channel)
        # As bytes are made of fractions: each has an equal part of [0, 1].
        channel.mul_(255.999 / 255).floor_()


OPERATIONS = (_brightness, _contrast, _saturation, _hue)
