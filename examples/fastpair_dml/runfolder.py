"""The folder of a run: what may be written where, and writing it so that no half-written file is ever seen."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

MARKER = "run.json"
FORMAT = "fastpair-examples-run-2"
RESULTS = "metrics.json"


class _Written:
    """A file that remembers why it could not be written to: torch's writer makes an error of its own of it."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        size = memoryview(data).nbytes
        left = memoryview(data).cast("B") if size else data
        try:
            # A file without a buffer may take a part only, as where the disk is nearly full.
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
            raise
        return size

    def read(self, size: int = -1) -> bytes:
        # Not possible, but numpy takes what has no such method for a name.
        return self.file.read(size)

    def flush(self) -> None:
        self.file.flush()

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, *place) -> int:
        return self.file.seek(*place)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a new file and move it to ``path`` when it is complete and on disk.

    Raises:
        UserError: it cannot be written, as where the disk is full; what was at ``path`` is there still.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    written = None
    try:
        # Without a buffer, which would try again to write what does not fit when the file is closed.
        with open(unfinished, "wb", buffering=0) as file:
            written = _Written(file)
            write(written)
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else written and written.error
        if cause is None:
            raise
        raise UserError(f"cannot write {path}: {cause.strerror or cause}; what was there before is kept") from None


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` to ``path`` as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def write_config(folder: Path, config: dict) -> None:
    """Write what the run in ``folder`` is."""
    write_json(folder / MARKER, {"format": FORMAT, "config": config})


def create_run(folder: Path, config: dict) -> None:
    """Make ``folder`` the run folder of ``config``.

    Raises:
        UserError: the folder holds something already, or cannot be made.
    """
    if _is_run(folder):
        raise UserError(
            f"--output {folder} holds a run already; add --resume to continue it, or choose another --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"--output {folder} is not empty and not a run of this program; nothing was written. "
                "Choose a new or an empty folder"
            )
        write_config(folder, config)
    except OSError as error:
        raise UserError(f"cannot make the run folder --output {folder}: {error.strerror}") from error


def read_run(folder: Path) -> dict:
    """The config of the run in ``folder``.

    Raises:
        UserError: there is no run in it.
    """
    if not _is_run(folder):
        raise UserError(f"--resume: there is no run to continue in --output {folder} (no {MARKER} of this program)")
    return json.loads((folder / MARKER).read_text())["config"]


def read_results(folder: Path) -> dict[str, dict[int, dict]]:
    """For each loss and seed of the run in ``folder`` that ended, what ``History.result`` returned.

    Raises:
        UserError: the file of results is damaged.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text())["results"]
        return {loss: {int(seed): dict(of) for seed, of in of_seeds.items()} for loss, of_seeds in results.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"--resume: cannot read the results in {path}: {error!r}. Remove the file: it is made again from the "
            "checkpoints"
        ) from error


def _is_run(folder: Path) -> bool:
    try:
        content = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("config"), dict)
