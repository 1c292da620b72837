"""One loss and one seed from the start to the end: training, looking at it, and keeping it."""

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from . import bounds
from .boards import Board
from .checkpoints import Checkpoints
from .evaluation import embed_test
from .history import SELECTION, History
from .processes import on_gpu
from .stopping import Interrupted, Stop
from .trainer import Diverged, Trainer

# How often there is a look where the settings do not say: during training at most, besides before and after.
EVALUATIONS, BOUNDS = 5, 23


class Training:
    """A trainer, and what is done beside it: evaluations, bounds, curves, checkpoints and lines of text.

    Args:
        trainer: where there is a checkpoint of it, it goes on from there.
        folder: the run folder.
        queries: the queries whose neighbours are kept.
        stop: asked where the work can be left.
        log: called with a line of text, in the main process.
        later: how many trainings come after this one, for the time that is left.

    Raises:
        UserError: the checkpoint is not as it should be.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        queries: torch.Tensor,
        stop: Stop,
        log: Callable[[str], None],
        later: int = 0,
    ):
        self.trainer, self.queries, self.stop, self.log, self.later = trainer, queries, stop, log, later
        self.settings, self.processes = trainer.settings, trainer.processes
        self.history = History()
        self.checkpoints = Checkpoints(folder, trainer.loss, trainer.seed, trainer.settings)
        if self.processes.from_main(lambda: self.checkpoints.path("last").exists()):
            self._restore()
        shown = self.settings.tensorboard and self.processes.main
        self.board = Board(folder / "tensorboard" / trainer.name if shown else None, trainer.steps)
        self.bar = tqdm(
            total=trainer.total_steps,
            initial=trainer.steps,
            desc=trainer.name,
            unit="step",
            disable=None if self.processes.main else True,
        )

    def run(self) -> dict:
        """Train to the end; the state is saved after each epoch. Returns what :meth:`History.result` does.

        A loss that is no longer finite, or that there is no memory for, ends the training, and the result says so.

        Raises:
            UserError: an image cannot be read, or the state cannot be written.
            Interrupted: ``stop`` was asked to; what was trained is saved.
        """
        failed = None
        if on_gpu(self.trainer.device):
            # The trainings before this one may have needed more.
            torch.cuda.reset_peak_memory_stats(self.trainer.device)
        try:
            with self.bar:
                if self._look() and self.trainer.steps:
                    self._save()
                while not self.trainer.finished:
                    self._train_epoch()
                    # First of all: what was trained is worth more than what is measured now.
                    self._save()
                    if self._look():
                        self._save()
                    if not self.trainer.finished:
                        self.stop.check()
        except Diverged as error:
            failed = str(error)
        except torch.OutOfMemoryError as error:
            if self.processes.world > 1:  # the others do not know
                raise
            failed = f"out of memory: {str(error).splitlines()[0]}"
        finally:
            self.board.close()
        if failed is not None:
            self._say(f"failed: {failed}")
        return self.history.result(self.trainer.seconds, failed)

    def _say(self, line: str) -> None:
        if self.processes.main:
            self.log(f"{self.trainer.name}: {line}")

    # ---- training

    def _train_epoch(self) -> None:
        trainer = self.trainer
        step, seconds, epoch = trainer.step_of_epoch, trainer.seconds, trainer.epoch
        self.stop.waits_for = "the step in progress"
        try:
            trainer.train_epoch(self.stop, self._learned)
        except Interrupted:
            self._save()
            raise
        losses = self.history.losses[epoch * trainer.steps_per_epoch :]
        size, done = self.settings.batch_size, trainer.steps - epoch * trainer.steps_per_epoch
        images = min(done * size, len(trainer.data.train)) - step * size
        row = {
            "step": trainer.steps,
            "epoch": epoch + 1,
            "loss": math.fsum(losses) / len(losses),
            "lr": trainer.lr_at(trainer.steps - 1),
            "images_per_second": round(images / (trainer.seconds - seconds), 1),
            "memory_mib": round(peak_mebibytes(trainer.device)),
        }
        self.history.epochs.append(row)
        self.board.show({name: row[name] for name in ("lr", "images_per_second", "memory_mib")}, trainer.steps)
        if self.bar.disable:  # no terminal, where the bar would show it
            self._say(
                f"epoch {epoch + 1} of {trainer.total_epochs}, loss {row['loss']:.4g}, lr {row['lr']:.3g}, "
                f"{row['images_per_second']:.0f} images/s, {row['memory_mib']} MiB, "
                f"{duration(self.seconds_left())} left in all"
            )

    def _learned(self, losses: list[float]) -> None:
        for loss in losses:
            self.history.losses.append(loss)
            self.board.show({"loss": loss}, len(self.history.losses))
        self.bar.update(len(losses))
        if losses:
            self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    def seconds_left(self) -> float:
        """How long this and the later trainings take from here, if they go on as this one did."""
        trainer, history = self.trainer, self.history
        every = looks_every(self.settings.evaluate_every, self.settings.epochs, EVALUATIONS)
        steps = (1 + self.later) * trainer.total_steps - trainer.steps
        looks = (1 + self.later) * (1 + math.ceil(trainer.total_epochs / every)) - len(history.evaluations)
        return steps * trainer.seconds / max(trainer.steps, 1) + looks * history.evaluation_seconds / max(
            len(history.evaluations), 1
        )

    # ---- looking at it

    def _look(self) -> bool:
        """Measure what is due here; returns whether something was."""
        looks = []
        if self._due(self.settings.evaluate_every, EVALUATIONS, self.history.evaluations):
            looks.append(self._evaluate)
        if self.settings.log_bounds and self._due(self.settings.bounds_every, BOUNDS, self.history.bounds):
            looks.append(self._measure_bounds)
        for look in looks:
            look()
        return bool(looks)

    def _due(self, every: int | None, looks: int, points: list[dict]) -> bool:
        trainer = self.trainer
        if points and points[-1]["step"] == trainer.steps:
            return False
        every = looks_every(every, self.settings.epochs, looks)
        return trainer.finished or (trainer.step_of_epoch == 0 and trainer.epoch % every == 0)

    def _evaluate(self) -> None:
        trainer, history = self.trainer, self.history
        start = time.perf_counter()
        self.stop.waits_for = "the batch that is embedded"
        with trainer.autocast():
            gallery = embed_test(
                trainer.model, trainer.data, trainer.preprocessing, stop=self.stop, **trainer.embedding()
            )
        self.stop.waits_for = "the search for neighbours"

        def search() -> tuple[dict[str, float], list[list[int]]] | None:
            try:
                with self.stop.at_once():
                    metrics = gallery.measure(self.settings.recall_at)
                    nearest = gallery.nearest(self.queries.to(gallery.query.device), self.settings.figure_neighbours)
            except Interrupted:
                return None
            return metrics, nearest.tolist()

        found = self.processes.from_main(search)
        if found is None:  # which the other processes have to hear
            raise Interrupted
        metrics, neighbours = found
        history.evaluation_seconds += time.perf_counter() - start
        history.add_evaluation({"step": trainer.steps, **metrics}, neighbours)
        self.board.show(metrics, trainer.steps)
        if history.best is history.evaluations[-1]:
            self._write("best", {"model": trainer.model.state_dict(), "evaluation": history.best})
        self._say(
            f"step {trainer.steps} of {trainer.total_steps}, Recall@1 {100 * metrics[SELECTION]:.1f} %, "
            f"MAP@R {100 * metrics['cosine/map@r']:.1f} %"
        )

    def _measure_bounds(self) -> None:
        self.stop.waits_for = "the batch that is embedded"
        terms = bounds.measure(self.trainer, self.stop)
        self.history.bounds.append({"step": self.trainer.steps, **terms})
        self.board.show({f"bounds/{name}": value for name, value in terms.items()}, self.trainer.steps)

    # ---- keeping it

    def _write(self, which: str, state: dict) -> None:
        self.processes.from_main(lambda: self.checkpoints.write(which, state))

    def _save(self) -> None:
        self._write("last", {**self.trainer.state_dict(), "history": self.history.state_dict()})

    def _restore(self) -> None:
        state = self.checkpoints.read("last")
        self.processes.from_main(lambda: self.checkpoints.read("best") and None)
        try:
            self.history = History(**state["history"])
            self.trainer.load_state_dict(state)
        except Exception as error:  # of another network, of another version
            raise self.checkpoints.error("last", error) from error


def looks_every(every: int | None, epochs: int, looks: int) -> int:
    """After how many epochs to look: ``every``, or so that there are at most ``looks`` before the last."""
    return every or math.ceil(epochs / (looks + 1))


def peak_mebibytes(device: torch.device) -> float:
    """The most memory in use so far: of a GPU since its peak was reset, else of this process since it began."""
    if on_gpu(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
