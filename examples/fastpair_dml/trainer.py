"""Training of one model with one loss and one seed: the steps, and nothing else."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice, takewhile

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastpair.cached import CachedLoss

from .data import Preprocessing, RetrievalData, TensorImages, Views, batches_per_epoch, epoch_batches, load
from .errors import UserError
from .losses import LOSSES
from .model import build_model
from .processes import Processes, autocast, on_gpu
from .settings import Settings, flag, show
from .stopping import Interrupted, Stop

# Losses are read from the device after so many steps: each time, the host waits for it.
READ_EVERY = 20


class Diverged(Exception):
    """The loss is no longer finite."""


class Trainer:
    """A model, a loss and everything that changes while the one learns from the other.

    Args:
        loss: a name in ``LOSSES``.
        seed: of weights, batches and augmentation.
        settings: of the run.
        data: the images.
        device: where the model lives.
        processes: those that share the work; each gets its share of every batch.

    Raises:
        UserError: the model cannot be made, or there are too few images.
    """

    def __init__(
        self,
        loss: str,
        seed: int,
        settings: Settings,
        data: RetrievalData,
        device: torch.device,
        processes: Processes,
    ):
        self.loss, self.seed, self.settings, self.data = loss, seed, settings, data
        self.device, self.processes = device, processes
        self.choice = LOSSES[loss]
        self.per_class = settings.per_class if self.choice.pairs else 1
        photos = not isinstance(data.train, TensorImages)
        self.preprocessing = Preprocessing(**settings.preprocessing()) if photos else None
        if settings.batch_size < 2 * processes.world:
            raise UserError(
                f"{flag('batch_size')} is {settings.batch_size}, but must be at least 2 for each of {processes.world} "
                "processes"
            )
        n = len(data.train)
        if settings.drop_last:
            self.steps_per_epoch = n // settings.batch_size
            needs = f"a whole batch of {settings.batch_size}, without which {flag('drop_last')} leaves nothing"
        else:
            self.steps_per_epoch = batches_per_epoch(n, settings.batch_size, processes.world)
            needs = f"{processes.world} processes"
        if self.steps_per_epoch == 0:
            raise UserError(f"{n} images to train on are too few for {needs}")

        # The model is made before the loss, so that every loss starts from the same network.
        torch.manual_seed(seed)
        self.model = build_model(settings, data).to(device)
        outputs = data.published_outputs if settings.published_outputs else data.num_train_classes
        given = settings.settings_of(loss)
        self.criterion = self.choice.build(outputs, self.model.embedding_size, settings, **given).to(device)
        self.network = self._parallel(self.model)
        if settings.compile:
            self.network = torch.compile(self.network)
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        # Each process draws a dropout of its own.
        torch.manual_seed(seed + processes.rank)

        self.epoch = self.step_of_epoch = 0
        self.seconds = 0.0

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.seed}"

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
        planned = self.steps_per_epoch * self.settings.epochs
        return planned if self.settings.max_steps is None else min(planned, self.settings.max_steps)

    @property
    def total_epochs(self) -> int:
        """The last of them may be a part of one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def steps(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step_of_epoch

    @property
    def finished(self) -> bool:
        return self.steps >= self.total_steps

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.settings.precision)

    # ---- training

    def train_epoch(self, stop: Stop, report: Callable[[list[float]], None]) -> None:
        """Train to the end of the epoch in progress, or of the training.

        Args:
            stop: asked after every step whether to stop there.
            report: called now and then with the losses of the steps since the last call.

        Raises:
            Diverged: a loss is not finite.
            Interrupted: ``stop`` was asked to; the step in progress is complete.
        """
        self.network.train()
        start = time.perf_counter()
        unread: list[Tensor] = []

        def read() -> None:
            losses = torch.stack(unread).tolist() if unread else []
            unread.clear()
            finite = list(takewhile(math.isfinite, losses))
            report(finite)
            if len(finite) < len(losses):
                number, lr = self.steps - len(losses) + len(finite) + 1, show(self.settings.lr)
                raise Diverged(
                    f"the {self.loss} loss is {losses[len(finite)]} at step {number}; {flag('lr')} {lr} may be too high"
                )

        left = min(self.steps_per_epoch, self.total_steps - self.epoch * self.steps_per_epoch)
        try:
            for views, labels in self.batches():
                unread.append(self.train_step(views, labels))
                self.step_of_epoch += 1
                if len(unread) >= READ_EVERY:
                    read()
                # The processes have to stop at the same step. That they ask each other makes the device wait, too.
                ask = self.processes.world == 1 or self.step_of_epoch % READ_EVERY == 0
                if ask and self.step_of_epoch < left and stop.asked():
                    read()
                    raise Interrupted
            read()
        finally:
            self.seconds += time.perf_counter() - start
        if self.step_of_epoch == self.steps_per_epoch:
            self.epoch, self.step_of_epoch = self.epoch + 1, 0

    def batches(self, workers: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of what remains of the epoch: images (views, n, c, h, w) and labels (n,).

        ``workers`` read them; None: as many as the settings say.
        """
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
        # Those of the epoch that are to be trained with: fewer where the last is left out, or the steps are limited.
        batches = islice(batches, min(self.steps_per_epoch - self.step_of_epoch, self.total_steps - self.steps))
        views = Views(self.data.train, self.preprocessing, augmented=True)
        workers = self.settings.workers if workers is None else workers
        options = {"num_workers": workers, "pin_memory": on_gpu(self.device)}
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

    # ---- its state

    def embedding(self) -> dict:
        """How :func:`evaluation.embed` is to work here."""
        return {
            "batch_size": self.settings.evaluation_batch,
            "workers": self.settings.workers,
            "device": self.device,
            "processes": self.processes,
        }

    def _stateful(self) -> dict:
        return {
            "model": self.model,
            "criterion": self.criterion,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
        }

    # What a state holds as it is.
    VALUES = ("epoch", "step_of_epoch", "seconds")

    def state_dict(self) -> dict:
        """All that :meth:`load_state_dict` needs to go on to the same bits; every process has to ask for it."""
        random = torch.cuda.get_rng_state(self.device) if on_gpu(self.device) else torch.get_rng_state()
        states = {name: part.state_dict() for name, part in self._stateful().items()}
        values = {name: getattr(self, name) for name in self.VALUES}
        return {**states, **values, "random": self.processes.gather(random)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a :meth:`state_dict` whose tensors are on the CPU."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        for name in self.VALUES:
            setattr(self, name, state[name])
        # The generators' states must stay on the CPU; load_state_dict moves the rest to where it belongs.
        random = state["random"][self.processes.rank]
        if on_gpu(self.device):
            torch.cuda.set_rng_state(random, self.device)
        else:
            torch.set_rng_state(random)
