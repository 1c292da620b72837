"""The folder of a run: what may be written where, and writing it so that no half-written file is ever seen."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

MARKER = "run.json"
FORMAT = "fastpair-examples-run-1"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a new file and move it to ``path`` when it is complete and on disk."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict) -> None:
    """Write ``content`` to ``path`` as indented JSON, atomically."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


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
        write_json(folder / MARKER, {"format": FORMAT, "config": config})
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


def _is_run(folder: Path) -> bool:
    try:
        content = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT and isinstance(content.get("config"), dict)
