"""Data sets for training and retrieval on unseen classes, and the way from their images to batches."""

from collections.abc import Callable
from pathlib import Path

from . import cars, cub, folder, glyphs, inshop, sop
from .batches import Batch, batches_per_epoch, epoch_batches, evaluation_batches
from .images import FileImages, Images, RetrievalData, TensorImages
from .preprocessing import Preprocessing, Views, finish, load

__all__ = [
    "DATASETS",
    "Batch",
    "FileImages",
    "Images",
    "Preprocessing",
    "RetrievalData",
    "TensorImages",
    "Views",
    "batches_per_epoch",
    "epoch_batches",
    "evaluation_batches",
    "finish",
    "load",
]

# A data set is a function of --data-dir; one more line here makes one more choice of --dataset.
DATASETS: dict[str, Callable[[Path | None], RetrievalData]] = {
    "glyphs": glyphs.glyphs,
    "folder": folder.folder,
    "cub": cub.cub,
    "cars": cars.cars,
    "sop": sop.sop,
    "inshop": inshop.inshop,
}
