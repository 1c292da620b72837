"""The files that a training is kept in, and finding out that one is not what it should be."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError
from .runfolder import write_atomically
from .settings import Settings, restored, stored


class Checkpoints:
    """``LOSS-SEED.last.pt``, the state to go on from, and ``LOSS-SEED.best.pt``, the network at its best evaluation.

    Args:
        folder: where they are.
        loss, seed: of the training; they stand in the files too.
        settings: of the run; they stand in the files too, which can be used wherever they are.
    """

    def __init__(self, folder: Path, loss: str, seed: int, settings: Settings):
        self.folder, self.loss, self.seed, self.settings = folder, loss, seed, settings

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.seed}"

    def path(self, which: str) -> Path:
        return self.folder / f"{self.name}.{which}.pt"

    def write(self, which: str, state: dict) -> None:
        """Write ``state`` as "last" or "best"; what was there stays until all of it is on disk.

        Raises:
            UserError: it cannot be written.
        """
        content = {"loss": self.loss, "seed": self.seed, "config": stored(self.settings), **state}
        write_atomically(self.path(which), lambda file: torch.save(content, file))

    def read(self, which: str) -> dict:
        """The state that was written, on the CPU.

        Raises:
            UserError: the file is missing, empty or damaged, or belongs to another training.
        """
        try:
            state = _content(self.path(which))
            if (state["loss"], state["seed"]) != (self.loss, self.seed):
                raise ValueError(f"it is of {state['loss']}-{state['seed']}, not of {self.name}")
        except ValueError as error:
            raise self.error(which, error) from error
        return state

    def error(self, which: str, problem: object) -> UserError:
        """The error to raise for ``problem`` with a file: with it comes what a person can do."""
        return UserError(
            f"cannot continue from the checkpoint {self.path(which)}: {problem}. Put back a copy of it; or remove "
            f"{self.path('last').name} and {self.path('best').name}, and {self.name} is trained from its start while "
            "the others keep what they have"
        )


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], Settings]:
    """The weights of the network in a checkpoint, and the settings of its run.

    Raises:
        UserError: the file is missing, empty or damaged, or no checkpoint.
    """
    try:
        content = _content(file)
    except ValueError as error:
        raise UserError(f"cannot use the checkpoint {file}: {error}") from error
    return content["model"], Settings(**restored(content["config"]))


def _content(file: Path) -> dict:
    """What is in a checkpoint, on the CPU.

    Raises:
        ValueError: what is wrong with the file.
    """
    if file.is_dir():
        names = ", ".join(sorted(path.name for path in file.glob("*.pt"))) or "none"
        raise ValueError(f"it is a folder; name one of its checkpoints: {names}")
    try:
        empty = file.stat().st_size == 0
    except OSError as error:
        raise ValueError(error.strerror) from error
    if empty:
        raise ValueError("it is empty: it was never written, or damaged since")
    try:
        # torch.load believes the tensors' bytes whatever they are; their checksums stand in the archive.
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
    # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, ...
    except Exception as error:
        raise ValueError(f"it is damaged, or not a checkpoint of train_dml.py: {error}") from error
    if damaged:
        raise ValueError(f"the checksum of {damaged} in it is wrong")
    kinds = {"loss": str, "seed": int, "config": dict, "model": dict}
    if not (isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items())):
        raise ValueError(f"it is not a checkpoint of train_dml.py, which has {', '.join(kinds)} in it")
    return content
