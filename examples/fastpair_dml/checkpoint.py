"""What was trained, read from a checkpoint."""

import dataclasses
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .data import FileImages, Images, Preprocessing, RetrievalData, TensorImages
from .errors import UserError
from .evaluation import Gallery, embed, embed_test
from .model import EmbeddingModel, make_model
from .processes import Processes
from .runfolder import MARKER, read_run
from .settings import Settings, restored


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], Settings]:
    """The weights of the network in a checkpoint of ``train_dml.py``, and the settings of its run.

    Raises:
        UserError: the file is missing or damaged, is not a checkpoint, or its run's settings are neither in it nor in
            the folder that it lies in.
    """
    if file.is_dir():
        names = ", ".join(sorted(path.name for path in file.glob("*.pt"))) or "none"
        raise UserError(f"the checkpoint {file} is a folder; name one of its checkpoints: {names}")
    try:
        with open(file, "rb") as content:
            empty = not content.read(1)
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {file}: {error.strerror}") from error
    if empty:
        raise UserError(f"the checkpoint {file} is empty: it was never written, or damaged since")
    try:
        # torch.load believes the bytes of tensors whatever they are; their checksums stand in the archive.
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
        if part is not None:
            raise UserError(f"the checkpoint {file} is damaged: the checksum of {part} in it is wrong")
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, an OSError, ...
    except Exception as error:
        raise UserError(f"{file} is damaged, or not a checkpoint of train_dml.py") from error
    if not (isinstance(content, dict) and isinstance(content.get("model"), dict)):
        raise UserError(f"{file} is not a checkpoint of train_dml.py: there is no network in it")
    config = content.get("config")
    if config is None:
        try:
            config = read_run(file.parent)
        except UserError as error:
            raise UserError(
                f"the settings of the checkpoint {file} are unknown: there is no {MARKER} of its run in {file.parent}"
            ) from error
    return content["model"], Settings(**restored(config))


@dataclass(frozen=True)
class Trained:
    """A network that was trained, and how images are brought to it.

    Attributes:
        model: images (n, channels, height, width), values from 0 to 1, to embeddings (n, embedding_size).
        settings: of its run.
        preprocessing: of photographs.
        device: where the network is.
    """

    model: EmbeddingModel
    settings: Settings
    preprocessing: Preprocessing
    device: torch.device

    @classmethod
    def load(cls, file: Path | str, device: torch.device | str = "cpu", **changes) -> "Trained":
        """The network in a checkpoint, ``LOSS-SEED.best.pt`` or ``LOSS-SEED.last.pt``.

        Args:
            file: the checkpoint, in the folder of its run.
            device: where the network is to be.
            **changes: settings in place of those of the run, such as ``workers`` and ``cache``.

        Raises:
            UserError: see :func:`read_checkpoint`; or the weights do not fit the settings.
        """
        state, settings = read_checkpoint(Path(file))
        settings = dataclasses.replace(settings, **changes)
        try:
            # Only the small network has images of any statistics, and of these only their number of channels counts.
            channels = state["mean"].numel()
            model = make_model(dataclasses.replace(settings, weights="none"), [0.0] * channels, [1.0] * channels)
            model.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"the weights in {file} are not those of --model {settings.model} of its run") from error
        options = settings.preprocessing()
        if settings.dataset == "glyphs" and settings.resize is None:
            # Trained on images as they are, of this size: what is of any other is scaled to it.
            options |= {"resize": settings.image_size, "square": True}
        return cls(model.to(device).eval(), settings, Preprocessing(**options), torch.device(device))

    def embed(self, images: Images | Sequence[Path | str]) -> Tensor:
        """Embeddings (n, embedding_size) of images, or of the files in which they are; float32, on the CPU.

        They have the lengths that the network gives them: ``torch.nn.functional.normalize`` makes them unit vectors.

        Raises:
            UserError: an image cannot be read.
        """
        if not hasattr(images, "labels"):
            paths = [str(path) for path in images]
            images = FileImages(Path(), paths, torch.zeros(len(paths), dtype=torch.int64), [""])
        if not len(images):
            return torch.empty(0, self.model.embedding_size)
        with self._autocast():
            return embed(self.model, images, **self._how(images)).cpu()

    def gallery(self, data: RetrievalData) -> Gallery:
        """Queries and gallery of a data set, embedded.

        Raises:
            UserError: an image cannot be read.
        """
        with self._autocast():
            return embed_test(self.model, data, **self._how(data.query))

    def _autocast(self) -> torch.autocast:
        precision = self.settings.precision
        return torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32")

    def _how(self, images: Images) -> dict:
        return {
            "preprocessing": None if isinstance(images, TensorImages) else self.preprocessing,
            "batch_size": self.settings.batch_size,
            "workers": self.settings.workers,
            "device": self.device,
            "processes": Processes(),
        }
