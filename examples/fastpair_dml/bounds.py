"""The paper's losses and bounds on training images, whichever of them is trained with."""

import torch

from fastpair import bounds
from fastpair.losses import LinearCrossEntropyLoss

from .evaluation import embed
from .stopping import Stop
from .trainer import Trainer


def measure(trainer: Trainer, stop: Stop) -> dict[str, float]:
    """``fastpair.bounds.terms`` of some images of the training set, the same all the time."""
    settings, data = trainer.settings, trainer.data
    generator = torch.Generator().manual_seed(trainer.seed)
    index = torch.randperm(len(data.train), generator=generator)[: settings.bounds_images]
    with trainer.autocast():
        embeddings = embed(trainer.model, data.train, trainer.preprocessing, index, stop=stop, **trainer.embedding())

    def terms() -> dict[str, float]:
        labels = data.train.labels[index].to(trainer.device)
        z = trainer.choice.prepare(embeddings)
        classifiers = [module for module in trainer.criterion.modules() if isinstance(module, LinearCrossEntropyLoss)]
        classifier = {"weight": classifiers[0].weight, "bias": classifiers[0].bias} if classifiers else {}
        return bounds.terms(z, labels, lam=settings.bounds_lambda, **classifier)

    return trainer.processes.from_main(terms)
