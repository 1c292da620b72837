"""The files that a training is kept in, and finding out that one is not what it should be."""

import zipfile
from pathlib import Path

import torch

from .errors import UserError
from .runfolder import write_atomically


class Checkpoints:
    """``LOSS-SEED.last.pt``, the state to go on from, and ``LOSS-SEED.best.pt``, the network at its best evaluation.

    Args:
        folder: where they are.
        loss, seed: of the training; they stand in the files too.
    """

    def __init__(self, folder: Path, loss: str, seed: int):
        self.folder, self.loss, self.seed = folder, loss, seed

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
        content = {"loss": self.loss, "seed": self.seed, **state}
        write_atomically(self.path(which), lambda file: torch.save(content, file))

    def read(self, which: str) -> dict:
        """The state that was written, on the CPU.

        Raises:
            UserError: the file is missing, empty or damaged, or belongs to another training.
        """
        path = self.path(which)
        try:
            if path.stat().st_size == 0:
                raise ValueError("it is empty")
            # torch.load believes the tensors' bytes whatever they are; their checksums stand in the archive.
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} in it is wrong")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if (state["loss"], state["seed"]) != (self.loss, self.seed):
                raise ValueError(f"it is of {state['loss']}-{state['seed']}, not of {self.name}")
            return state
        # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, ...
        except Exception as error:
            raise self.error(which, error) from error

    def error(self, which: str, problem: object) -> UserError:
        """The error to raise for ``problem`` with a file: with it comes what a person can do."""
        return UserError(
            f"cannot continue from the checkpoint {self.path(which)}: {problem}. Put back a copy of it; or remove "
            f"{self.path('last').name} and {self.path('best').name}, and {self.name} is trained from its start while "
            "the others keep what they have"
        )
