"""Image files as pixels: upright, in eight bits a channel, and large photographs at a fraction of their size."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError

# Of a photograph this many times as large as what it is scaled to, a JPEG decoder may leave out the finest frequencies.
SPARE = 2


def read_rgb(file: Path, scaled_to: int | None = None) -> torch.Tensor:
    """The pixels of an image file, uint8 of shape (3, height, width), turned as its EXIF orientation says.

    Sixteen bits of grey become eight; an alpha channel is left out.

    Args:
        file: in any format that Pillow reads.
        scaled_to: the shorter side will be scaled to this many pixels at most: a JPEG may be decoded at a half, a
            quarter or an eighth of its size, as long as each side keeps ``SPARE`` times as many. None decodes all.

    Raises:
        UserError: the file is missing or damaged, or its pixels are floats or integers of more than 16 bits, whose
            range nothing tells.
    """
    # In one piece: Pillow reads and decodes a few kilobytes at a time.
    with _naming(file), Image.open(io.BytesIO(file.read_bytes())) as image:
        _refuse_unknown_range(image)
        if scaled_to is not None:
            image.draft(None, (SPARE * scaled_to,) * 2)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        pixels = _eight_bits(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check_header(file: Path) -> None:
    """Read the beginning of an image file, which says its format, its size and what its pixels are.

    Raises:
        UserError: as for :func:`read_rgb`, but for what is damaged behind the beginning.
    """
    with _naming(file), Image.open(file) as image:
        _refuse_unknown_range(image)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Make a UserError that names the file of whatever is wrong with it."""
    try:
        yield
    # Damaged files make Pillow's decoders raise almost anything, SyntaxError and struct.error among it.
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            reason = "it is in no format that Pillow reads"
        else:
            reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the image {file}: {reason}") from error


def suffixes() -> set[str]:
    """The suffixes, in lower case and with their dot, of the formats that Pillow reads."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _refuse_unknown_range(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise ValueError(
            f"its pixels are {kind} of 32 bits (mode {image.mode!r} of Pillow), and nothing says which of them is "
            "white; save it with 8 or 16 bits a channel"
        )


def _eight_bits(image: Image.Image) -> np.ndarray:
    if re.fullmatch("I;16[BLN]?", image.mode):
        # Pillow's own conversion makes white of all above 255.
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    # A copy, which may be written to: the array of an image may not.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
