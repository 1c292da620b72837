"""Training of one model with one loss and one seed, resumable after any step to the same bits."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from fastpair import bounds
from fastpair.cached import CachedLoss
from fastpair.losses import LinearCrossEntropyLoss

from .data import Preprocessing, RetrievalData, TensorImages, Views, batches_per_epoch, epoch_batches, load
from .errors import UserError
from .evaluation import Gallery, embed, embed_test
from .losses import LOSSES
from .model import build_model
from .processes import Processes, on_gpu
from .runfolder import write_atomically
from .settings import Settings, flag, show

# The unseen classes are looked at before, after, and in between at most this often.
EVALUATIONS_DURING_TRAINING = 5
EVALUATION_BATCH = 128
# The bounds are measured on so many training images, the same all the time, and at most so often after the start.
BOUNDS_IMAGES = 1024
BOUNDS_POINTS = 24
# PCE's lambda: a constant, so that its curve is one of one function. As a bound on CE it would have to be smaller.
BOUNDS_LAMBDA = 1.0
# Losses are read from the device after so many steps: each time, the host waits for it.
READ_EVERY = 20
# What decides which of the evaluations is the best.
SELECTION = "cosine/recall@1"


class Interrupted(Exception):
    """Training was stopped by a signal, and its state is saved."""


class Trainer:
    """A model, a loss and everything that changes while the one learns from the other.

    Args:
        loss: a name in ``LOSSES``.
        seed: of weights, batches and augmentation.
        settings: of the run.
        data: the images.
        device: where the model lives.
        processes: those that share the work; each gets its share of every batch.
        folder: where the states ``LOSS-SEED.last.pt`` and ``LOSS-SEED.best.pt`` are kept; where there is one,
            training continues from it. None keeps nothing.

    Raises:
        UserError: the checkpoint cannot be read, or the model cannot be made.
    """

    def __init__(
        self,
        loss: str,
        seed: int,
        settings: Settings,
        data: RetrievalData,
        device: torch.device,
        processes: Processes,
        folder: Path | None = None,
    ):
        self.loss, self.seed, self.settings, self.data = loss, seed, settings, data
        self.device, self.processes, self.folder = device, processes, folder
        self.choice = LOSSES[loss]
        self.per_class = settings.per_class if self.choice.pairs else 1
        photos = not isinstance(data.train, TensorImages)
        self.preprocessing = Preprocessing(**settings.preprocessing()) if photos else None
        if settings.batch_size < 2 * processes.world:
            raise UserError(
                f"{flag('batch_size')} is {settings.batch_size}, but must be at least 2 for each of {processes.world} "
                "processes"
            )
        self.steps_per_epoch = batches_per_epoch(len(data.train), settings.batch_size, processes.world)
        if self.steps_per_epoch == 0:
            raise UserError(f"{len(data.train)} images to train on are too few for {processes.world} processes")

        # The model is made before the loss, so that every loss starts from the same network.
        torch.manual_seed(seed)
        self.model = build_model(settings, data).to(device)
        self.criterion = self.choice.build(data.num_train_classes, self.model.embedding_size, settings).to(device)
        self.network = self._parallel(self.model)
        if settings.compile:
            self.network = torch.compile(self.network)
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        # Each process draws a dropout of its own.
        torch.manual_seed(seed + processes.rank)

        self.epoch = self.step_of_epoch = 0
        self.seconds = 0.0
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []
        self.bounds: list[dict[str, float]] = []
        self._unread: list[Tensor] = []
        self.board = None
        if settings.tensorboard and folder is not None and processes.main:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder / "tensorboard" / self.name)
        if folder is not None and self.checkpoint("last").exists():
            self._load()

    # ---- what is trained, and how

    def _parallel(self, model: nn.Module) -> nn.Module:
        if self.processes.world == 1:
            return model
        if on_gpu(self.device):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[self.device.index] if on_gpu(self.device) else None)

    def _optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        parameters = [p for p in (*self.model.parameters(), *self.criterion.parameters()) if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": s.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if s.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=s.lr)
        return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: up along a line, down along a cosine, the lower of the two."""
        s = self.settings
        cosine = (1 + math.cos(math.pi * step / self.total_steps)) / 2
        return s.lr * (min((step + 1) / s.warmup, cosine) if s.warmup else cosine)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.settings.epochs

    @property
    def steps(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step_of_epoch

    def autocast(self) -> torch.autocast:
        precision = self.settings.precision
        return torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32")

    # ---- training

    def fit(self, log: Callable[[str], None]) -> None:
        """Train up to the last epoch, saving the state after each.

        Args:
            log: called with a line of text after every evaluation, in the main process.

        Raises:
            UserError: the loss is no longer finite.
            Interrupted: a signal asked to stop; the state after the step in progress is saved.
        """
        epochs = self.settings.epochs
        every = math.ceil(epochs / (EVALUATIONS_DURING_TRAINING + 1))
        points = math.ceil(epochs / BOUNDS_POINTS)
        if not self.evaluations:
            self._evaluate(log)
            self._measure_bounds()
        bar = tqdm(
            total=self.total_steps,
            initial=self.steps,
            desc=self.name,
            unit="step",
            disable=None if self.processes.main else True,
        )
        with bar, _signals() as stop:
            while self.epoch < epochs:
                self._train_one_epoch(bar, stop)
                if self.epoch % every == 0 or self.epoch == epochs:
                    self._evaluate(log)
                if self.epoch % points == 0 or self.epoch == epochs:
                    self._measure_bounds()
                self._save()
                if self.processes.any(bool(stop)):
                    raise Interrupted
        if self.board is not None:
            self.board.close()

    def _train_one_epoch(self, bar: tqdm, stop: list) -> None:
        self.network.train()
        start = time.perf_counter()
        for views, labels in self.batches():
            self._unread.append(self.train_step(views, labels))
            self.step_of_epoch += 1
            bar.update()
            if len(self._unread) >= READ_EVERY:
                self._read_losses(bar)
            # The processes have to stop at the same step. That they ask each other makes the device wait, too.
            ask = self.processes.world == 1 or self.step_of_epoch % READ_EVERY == 0
            if ask and self.step_of_epoch < self.steps_per_epoch and self.processes.any(bool(stop)):
                self._read_losses(bar)
                self.seconds += time.perf_counter() - start
                self._save()
                raise Interrupted
        self._read_losses(bar)
        self.epoch, self.step_of_epoch = self.epoch + 1, 0
        self.seconds += time.perf_counter() - start

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of what remains of the epoch: images (views, n, c, h, w) and labels (n,)."""
        batches = epoch_batches(
            self.data.train.labels,
            self.settings.batch_size,
            self.per_class,
            self.seed,
            self.epoch,
            views=2 if self.choice.two_views else 1,
            rank=self.processes.rank,
            world=self.processes.world,
            skip=self.step_of_epoch,
        )
        views = Views(self.data.train, self.preprocessing, augmented=True)
        options = {"num_workers": self.settings.workers, "pin_memory": on_gpu(self.device)}
        return load(views, batches, device=self.device, **options)

    def train_step(self, views: Tensor, labels: Tensor) -> Tensor:
        """Learn from this process's share of a batch; returns the loss of the whole, a tensor of one element."""
        with self.autocast():
            loss = self.loss_of(views, labels)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.steps)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def loss_of(self, views: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, by chunks where the settings say so."""
        images, labels = views.to(self.device, non_blocking=True).flatten(0, 1), labels.to(self.device)
        if self.settings.chunk is None:
            return self._of_embeddings(self.network(images), labels)
        return CachedLoss(self.network, self._of_embeddings, self.settings.chunk)(images, labels)

    def _of_embeddings(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        embeddings = self.choice.prepare(embeddings)
        return self.criterion(*(embeddings.chunk(2) if self.choice.two_views else (embeddings, labels)))

    def _read_losses(self, bar: tqdm) -> None:
        if not self._unread:
            return
        losses = torch.stack(self._unread).tolist()
        self._unread.clear()
        for loss in losses:
            self.losses.append(loss)
            self._show({"loss": loss}, len(self.losses))
            if not math.isfinite(loss):
                raise UserError(
                    f"the {self.loss} loss is {loss} at step {len(self.losses)}; {flag('lr')} {show(self.settings.lr)} "
                    "may be too high"
                )
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    # ---- looking at it

    def _show(self, values: dict[str, float], step: int) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.seed}"

    def _embedding(self) -> dict:
        return {
            "batch_size": EVALUATION_BATCH,
            "workers": self.settings.workers,
            "device": self.device,
            "processes": self.processes,
        }

    def embed_test(self) -> Gallery:
        """The images of unseen classes, embedded."""
        with self.autocast():
            return embed_test(self.model, self.data, self.preprocessing, **self._embedding())

    def _evaluate(self, log: Callable[[str], None]) -> None:
        metrics = self.embed_test().metrics(self.settings.recall_at)
        best = max((past[SELECTION] for past in self.evaluations), default=-1.0)
        self.evaluations.append({"step": self.steps, **metrics})
        self._show(metrics, self.steps)
        if metrics[SELECTION] > best:
            self._write("best", {"model": self.model.state_dict(), "evaluation": self.evaluations[-1]})
        if self.processes.main:
            log(
                f"{self.name}: step {self.steps} of {self.total_steps}, "
                f"Recall@1 {100 * metrics[SELECTION]:.1f} %, MAP@R {100 * metrics['cosine/map@r']:.1f} %"
            )

    def _measure_bounds(self) -> None:
        """What the paper's losses are on some training images, whichever of them is trained with."""
        if not self.settings.log_bounds:
            return
        generator = torch.Generator().manual_seed(self.seed)
        index = torch.randperm(len(self.data.train), generator=generator)[:BOUNDS_IMAGES]
        embeddings = embed(self.model, self.data.train, self.preprocessing, index, **self._embedding())
        embeddings, labels = self.choice.prepare(embeddings).to(self.device), self.data.train.labels[index]
        classifiers = [module for module in self.criterion.modules() if isinstance(module, LinearCrossEntropyLoss)]
        classifier = {"weight": classifiers[0].weight, "bias": classifiers[0].bias} if classifiers else {}
        terms = bounds.terms(embeddings, labels.to(self.device), lam=BOUNDS_LAMBDA, **classifier)
        self.bounds.append({"step": self.steps, **terms})

    def result(self) -> dict:
        """What ``metrics.json`` says about this training; metrics are fractions of 1."""
        return {
            "before": _metrics(self.evaluations[0]),
            "after": _metrics(self.evaluations[-1]),
            "best": max(self.evaluations, key=lambda evaluation: evaluation[SELECTION]),
            "steps": self.steps,
            "training_seconds": round(self.seconds, 2),
            "history": {"loss": self.losses, "evaluations": self.evaluations, "bounds": self.bounds},
        }

    # ---- its state on disk

    def checkpoint(self, which: str) -> Path:
        return self.folder / f"{self.name}.{which}.pt"

    def _write(self, which: str, state: dict) -> None:
        if self.folder is not None and self.processes.main:
            write_atomically(self.checkpoint(which), lambda file: torch.save(state, file))

    def _stateful(self) -> dict:
        return {
            "model": self.model,
            "criterion": self.criterion,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }

    # What a checkpoint holds as it is.
    VALUES = ("epoch", "step_of_epoch", "seconds", "losses", "evaluations", "bounds")

    def _save(self) -> None:
        random = torch.cuda.get_rng_state(self.device) if on_gpu(self.device) else torch.get_rng_state()
        states = {name: part.state_dict() for name, part in self._stateful().items()}
        values = {name: getattr(self, name) for name in self.VALUES}
        self._write("last", {**states, **values, "random": self.processes.gather(random)})

    def _load(self) -> None:
        path = self.checkpoint("last")
        try:
            # The generators' states must stay on the CPU; load_state_dict moves the rest to where it belongs.
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            for name in self.VALUES:
                setattr(self, name, state[name])
            random = state["random"][self.processes.rank]
            if self.processes.main and not self.checkpoint("best").is_file():
                raise FileNotFoundError(f"{self.checkpoint('best').name}, which belongs to it, is missing")
        # torch.load has no error of its own: a damaged file is a RuntimeError, an EOFError, a KeyError, ...
        except Exception as error:
            raise UserError(f"cannot continue from the checkpoint {path}: {error}") from error
        if on_gpu(self.device):
            torch.cuda.set_rng_state(random, self.device)
        else:
            torch.set_rng_state(random)


def _metrics(evaluation: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in evaluation.items() if name != "step"}


@contextmanager
def _signals() -> Iterator[list]:
    """A list that a first Ctrl-C, or a SIGTERM, makes true; a second Ctrl-C stops at once."""
    received: list = []

    def remember(number, frame):
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
