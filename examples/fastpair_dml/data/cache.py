"""Decoded and resized images, kept in a folder for the next time."""

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError

# Before the bytes of the pixels, row by row, red, green and blue of each: what it is, height and width.
HEADER = struct.Struct("<8sII")
MAGIC = b"fpixels1"


@dataclass(frozen=True)
class Cache:
    """A folder of pixels, a file an image. Processes may share it: a file appears when it is complete."""

    folder: Path

    def pixels(self, key: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``make`` returned for ``key`` the first time, uint8 of shape (3, height, width).

        A file that is damaged is made again.

        Args:
            key: whatever decides what ``make`` returns.
            make: called where there is nothing yet.

        Raises:
            UserError: the folder cannot be written to; or ``make`` raises it.
        """
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        file = self.folder / name[:2] / name[2:]
        kept = _read(file)
        if kept is None:
            kept = make()
            try:
                _write(file, kept)
            except OSError as error:
                raise UserError(
                    f"cannot write to --cache {self.folder}: {error.strerror}; leave it out, or choose another folder"
                ) from error
        return kept


def _read(file: Path) -> torch.Tensor | None:
    try:
        content = np.fromfile(file, np.uint8)
        magic, height, width = HEADER.unpack(content[: HEADER.size].tobytes())
    except (OSError, struct.error):
        return None
    if magic != MAGIC or len(content) != HEADER.size + 3 * height * width:
        return None
    return torch.from_numpy(content[HEADER.size :].reshape(height, width, 3)).permute(2, 0, 1)


def _write(file: Path, pixels: torch.Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Its own name in each process: two may be at the same image.
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as target:
            target.write(HEADER.pack(MAGIC, *pixels.shape[1:]))
            target.write(pixels.permute(1, 2, 0).contiguous().numpy())
        os.replace(unfinished, file)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
