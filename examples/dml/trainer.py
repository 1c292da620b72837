"""Training of one model with one loss, resumable at the end of every epoch to the same bits."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fastpair import bounds
from fastpair.losses import LinearCrossEntropyLoss
from fastpair.retrieval import map_at_r, recall_at_k

from .data import RetrievalData, augment, batches
from .errors import UserError
from .losses import RECIPES
from .model import SmallCNN, image_statistics
from .runfolder import write_atomically

RECALL_AT = (1, 2, 4, 8)
# The unseen classes are looked at before, after, and in between at most this often.
EVALUATIONS_DURING_TRAINING = 5
EVALUATION_BATCH = 512
# The bounds are measured on so many training images, the same all the time, and at most so often after the start.
BOUNDS_IMAGES = 1024
BOUNDS_POINTS = 24
# PCE's lambda: a constant, so that its curve is one of one function. As a bound on CE it would have to be smaller.
BOUNDS_LAMBDA = 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """What decides the result of a training run, apart from the data and the loss."""

    epochs: int
    batch_size: int
    embedding_size: int
    lr: float
    seed: int
    device: str
    log_bounds: bool


class Trainer:
    """A model, a loss and everything that changes while the one learns from the other.

    Args:
        loss: a name in ``RECIPES``.
        config: the settings.
        data: the images.
        checkpoint: the file that holds the state; where it exists, training continues from it.

    Raises:
        UserError: the checkpoint cannot be read.
    """

    def __init__(self, loss: str, config: TrainingConfig, data: RetrievalData, checkpoint: Path):
        self.loss, self.config, self.data, self.checkpoint = loss, config, data, checkpoint
        self.recipe = RECIPES[loss]
        self.steps_per_epoch = math.ceil(len(data.train_images) / config.batch_size)
        # The model is made before the loss, so that every loss starts from the same network.
        torch.manual_seed(config.seed)
        self.model = SmallCNN(*image_statistics(data.train_images), config.embedding_size).to(config.device)
        self.criterion = self.recipe.build(data.num_train_classes, config.embedding_size).to(config.device)
        parameters = [*self.model.parameters(), *self.criterion.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.total_steps)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.bounds: list[dict[str, float]] = []
        if checkpoint.exists():
            self._load()

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def fit(self, log: Callable[[str], None]) -> None:
        """Train up to the last epoch, saving the state after each.

        Args:
            log: called with a line of text after every evaluation.

        Raises:
            UserError: the loss is no longer finite.
        """
        every = math.ceil(self.config.epochs / (EVALUATIONS_DURING_TRAINING + 1))
        if not self.evaluations:
            self._evaluate(log)
            self._measure_bounds()
        points = math.ceil(self.config.epochs / BOUNDS_POINTS)
        bar = tqdm(total=self.total_steps, initial=len(self.losses), desc=self.loss, unit="step", disable=None)
        with bar:
            while self.epoch < self.config.epochs:
                start = time.perf_counter()
                self._train_one_epoch(bar)
                self.seconds += time.perf_counter() - start
                self.epoch += 1
                if self.epoch % every == 0 or self.epoch == self.config.epochs:
                    self._evaluate(log)
                if self.epoch % points == 0 or self.epoch == self.config.epochs:
                    self._measure_bounds()
                self._save()

    def _train_one_epoch(self, bar: tqdm) -> None:
        self.model.train()
        batch_size, per_class = self.config.batch_size, self.recipe.per_class
        for index in batches(self.data.train_labels, batch_size, per_class, self.generator):
            self.losses.append(self.train_step(index))
            self.scheduler.step()
            if not math.isfinite(self.losses[-1]):
                raise UserError(
                    f"the {self.loss} loss is {self.losses[-1]} at step {len(self.losses)}; --lr {self.config.lr} may "
                    "be too high"
                )
            bar.set_postfix(loss=f"{self.losses[-1]:.3f}", refresh=False)
            bar.update()

    def train_step(self, index: torch.Tensor) -> float:
        """Learn from the training images ``index``, int64 of shape (n,); returns their loss."""
        loss = self.criterion(*self.loss_inputs(index))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def loss_inputs(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the training images ``index``, and their labels or the embeddings of another view."""
        images = self.data.train_images[index].to(self.config.device).float() / 255
        embeddings = self.recipe.prepare(self.model(augment(images, self.generator)))
        if self.recipe.two_views:
            return embeddings, self.recipe.prepare(self.model(augment(images, self.generator)))
        return embeddings, self.data.train_labels[index].to(self.config.device)

    def embed_test_images(self) -> torch.Tensor:
        """Embeddings of the test images, float32 of shape (n, embedding_size)."""
        return self._embed(self.data.test_images)

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        return torch.cat(
            [self.model(part.to(self.config.device).float() / 255) for part in images.split(EVALUATION_BATCH)]
        )

    def _measure_bounds(self) -> None:
        """What the paper's losses are on some training images, whichever of them is trained with."""
        if not self.config.log_bounds:
            return
        generator = torch.Generator().manual_seed(self.config.seed)
        index = torch.randperm(len(self.data.train_images), generator=generator)[:BOUNDS_IMAGES]
        embeddings = self.recipe.prepare(self._embed(self.data.train_images[index]))
        labels = self.data.train_labels[index].to(self.config.device)
        classifiers = [module for module in self.criterion.modules() if isinstance(module, LinearCrossEntropyLoss)]
        classifier = {"weight": classifiers[0].weight, "bias": classifiers[0].bias} if classifiers else {}
        terms = bounds.terms(embeddings, labels, lam=BOUNDS_LAMBDA, **classifier)
        self.bounds.append({"step": len(self.losses), **terms})

    def _evaluate(self, log: Callable[[str], None]) -> None:
        embeddings = self.embed_test_images()
        labels = self.data.test_labels.to(self.config.device)
        metrics = {f"recall@{k}": value for k, value in recall_at_k(embeddings, labels, k=RECALL_AT).items()}
        metrics["map@r"] = map_at_r(embeddings, labels)
        self.evaluations.append({"step": len(self.losses), **metrics})
        log(
            f"{self.loss}: step {len(self.losses)} of {self.total_steps}, "
            f"Recall@1 {100 * metrics['recall@1']:.1f} %, MAP@R {100 * metrics['map@r']:.1f} %"
        )

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "losses": self.losses,
            "evaluations": self.evaluations,
            "bounds": self.bounds,
        }
        write_atomically(self.checkpoint, lambda file: torch.save(state, file))

    def _load(self) -> None:
        try:
            # The generator's state must stay on the CPU; load_state_dict moves the rest to where it belongs.
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            for name in ("model", "criterion", "optimizer", "scheduler"):
                getattr(self, name).load_state_dict(state[name])
            self.generator.set_state(state["generator"])
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.losses, self.evaluations, self.bounds = (state[name] for name in ("losses", "evaluations", "bounds"))
        # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, ...
        except Exception as error:
            raise UserError(f"cannot continue from the checkpoint {self.checkpoint}: {error}") from error

    def result(self) -> dict:
        """What ``metrics.json`` says about this loss; metrics are fractions of 1."""

        def metrics(evaluation):
            return {name: value for name, value in evaluation.items() if name != "step"}

        return {
            "before": metrics(self.evaluations[0]),
            "after": metrics(self.evaluations[-1]),
            "steps": len(self.losses),
            "training_seconds": round(self.seconds, 2),
            "history": {"loss": self.losses, "evaluations": self.evaluations, "bounds": self.bounds},
        }
