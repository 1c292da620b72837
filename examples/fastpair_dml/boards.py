"""What TensorBoard shows of a training."""

from pathlib import Path

from .errors import UserError


def require_tensorboard() -> None:
    """Raise a UserError where TensorBoard's files cannot be written, before anything is trained."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(f"--tensorboard needs a package that is missing ({error}): pip install tensorboard") from error


class Board:
    """Curves of one training for TensorBoard; without a folder it shows nothing.

    Args:
        folder: where its files are.
        step: the step that the training goes on from; what the files have of later ones is hidden.
    """

    def __init__(self, folder: Path | None, step: int):
        self.writer = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def show(self, values: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
