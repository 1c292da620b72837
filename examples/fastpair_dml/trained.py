"""What was trained, to be used."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import read_checkpoint
from .data import FileImages, Images, Preprocessing, RetrievalData, TensorImages
from .errors import UserError
from .evaluation import Gallery, embed, embed_test
from .model import EmbeddingModel, make_model
from .processes import Processes, autocast
from .settings import Settings


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
            file: the checkpoint, wherever it is.
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
        with autocast(self.device, self.settings.precision):
            return embed(self.model, images, **self._how(images)).cpu()

    def gallery(self, data: RetrievalData) -> Gallery:
        """Queries and gallery of a data set, embedded.

        Raises:
            UserError: an image cannot be read.
        """
        with autocast(self.device, self.settings.precision):
            return embed_test(self.model, data, **self._how(data.query))

    def _how(self, images: Images) -> dict:
        return {
            "preprocessing": None if isinstance(images, TensorImages) else self.preprocessing,
            "batch_size": self.settings.evaluation_batch,
            "workers": self.settings.workers,
            "device": self.device,
            "processes": Processes(),
        }
