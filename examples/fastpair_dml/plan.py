"""What a run would do, seen from a few steps of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from fastpair.retrieval import nearest_neighbors

from .data import FileImages, RetrievalData, Views, evaluation_batches, load
from .errors import UserError
from .evaluation import METRICS
from .processes import cores, on_gpu
from .settings import Settings, show
from .trainer import Trainer
from .training import EVALUATIONS, duration, looks_every, peak_mebibytes

# Steps that are timed after the first, which a device needs to get ready, and the seconds after which one is enough.
TIMED_STEPS, PATIENCE = 3, 20.0
# Queries whose search is timed: as many as are searched for at once.
SEARCHED = 1024


def check_images(data: RetrievalData, whole: bool, threads: int) -> str:
    """Read every image's header, or all of it, some at a time; returns what was read.

    Raises:
        UserError: images cannot be read; the first is named.
    """
    parts = [images for images in (data.train, data.query, data.gallery) if isinstance(images, FileImages)]
    places = [(images, index) for images in parts for index in range(len(images))]
    start = time.perf_counter()
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        problems = list(filter(None, pool.map(partial(_problem, whole=whole), places, chunksize=64)))
    if problems:
        raise UserError(f"{len(problems)} of {len(places)} images cannot be read. The first: {problems[0]}")
    what = "images" if whole else "headers of images"
    return f"checked: {len(places)} {what} in files, {time.perf_counter() - start:.0f} s"


def _problem(place: tuple[FileImages, int], whole: bool) -> str | None:
    images, index = place
    try:
        images.pixels(index) if whole else images.check_header(index)
    except UserError as error:
        return str(error)
    return None


def describe_plan(settings: Settings, trainers: Iterator[Trainer]) -> Iterator[str]:
    """What the trainings would do, line by line: a few steps of each are made, and what they take is told.

    Args:
        settings: of the run.
        trainers: one for each loss, made as it is asked for; none is kept.
    """
    seconds, looking = 0.0, None
    for trainer in trainers:
        if looking is None:
            yield from _network(trainer)
            looking = _look_seconds(trainer)
            yield f"a look at the unseen classes: about {duration(looking)}"
        step, first_loss = _step_seconds(trainer)
        every = looks_every(settings.evaluate_every, settings.epochs, EVALUATIONS)
        epochs = -(-trainer.total_steps // trainer.steps_per_epoch)
        training = step * trainer.total_steps + looking * (1 + -(-epochs // every))
        seconds += training * len(settings.seeds)
        learned = sum(p.numel() for p in trainer.criterion.parameters())
        yield (
            f"{trainer.loss}: {first_loss:.3f} on the first batch, {trainer.per_class} images a class come together, "
            f"{learned:,} parameters of its own; seeds {show(settings.seeds)}; a step {step:.3g} s, a training about "
            f"{duration(training)}"
        )
        del trainer
    yield (
        f"estimate: {duration(seconds)} in all, from {TIMED_STEPS} steps of each loss, with {cores():g} CPU cores a "
        "process; without bounds, pictures and checkpoints"
    )


def _network(trainer: Trainer) -> Iterator[str]:
    settings, model = trainer.settings, trainer.model
    parameters = sum(p.numel() for p in model.parameters())
    yield (
        f"network: {settings.model}, {parameters:,} parameters, images of {settings.image_size} x "
        f"{settings.image_size}, embeddings of {model.embedding_size}, weights {settings.weights}"
    )
    yield (
        f"training: {settings.epochs} epochs of {trainer.steps_per_epoch} steps, {trainer.total_steps} steps at most, "
        f"{settings.batch_size} images each in {trainer.processes.world} processes, on {trainer.device}"
    )
    yield f"measured: Recall@{show(settings.recall_at)} and MAP@R, cosine and L2"


class Took(NamedTuple):
    """What a part of the work took: seconds, and seconds of CPU cores."""

    seconds: float
    core_seconds: float

    def __sub__(self, before: "Took") -> "Took":
        return Took(self.seconds - before.seconds, self.core_seconds - before.core_seconds)


def _now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def together(reading: Took, computing: Took, workers: int, cores: float) -> float:
    """Seconds for a batch that is read in this process and computed with, where ``workers`` read ahead on ``cores``."""
    if not workers:
        return reading.seconds + computing.seconds
    # Readers beyond the cores only wait for each other, and all wait for cores that compute.
    shared = (reading.core_seconds + computing.core_seconds) / cores
    return max(reading.seconds / workers, computing.seconds, shared)


def _step_seconds(trainer: Trainer) -> tuple[float, float]:
    """What a step takes once the device is warm, and the loss of the first batch."""
    trainer.network.train()
    clock, reading, computing, losses = _now(), [], [], []
    for views, labels in trainer.batches(workers=0):
        read = _now()
        # Its value: a GPU has to be waited for.
        losses.append(trainer.train_step(views, labels).item())
        reading.append(read - clock)
        clock = _now()
        computing.append(clock - read)
        if len(losses) > TIMED_STEPS or computing[-1].seconds > PATIENCE:
            break
    return together(min(reading), min(computing), trainer.settings.workers, cores()), losses[0]


@torch.no_grad()
def _look_seconds(trainer: Trainer) -> float:
    """What an evaluation takes: a batch is embedded, and some random queries search as large a gallery."""
    settings, data, model, device = trainer.settings, trainer.data, trainer.model, trainer.device
    views = Views(data.query, trainer.preprocessing, augmented=False)
    size, world = settings.evaluation_batch, trainer.processes.world
    model.eval()
    times = []
    for _ in range(2):  # the first warms up
        start = _now()
        batch, _ = next(load(views, evaluation_batches(len(data.query), size, 0, 1), device=device, num_workers=0))
        read = _now()
        with trainer.autocast():
            model(batch[0]).float().cpu()
        times.append(together(read - start, _now() - read, settings.workers, cores()))
    searched = data.query if data.gallery is None else data.gallery
    items = len(searched)
    images = len(data.query) + (0 if data.gallery is None else items)
    embedding = min(times) * max(images / (min(size, len(data.query)) * world), 1)

    gallery = torch.randn(items, model.embedding_size, device=device)
    queries = gallery[:SEARCHED]
    start = time.perf_counter()
    depth = min(max(*settings.recall_at, int(searched.labels.bincount().max())), items)
    nearest_neighbors(queries, gallery, depth)[1].cpu()
    searching = (time.perf_counter() - start) * len(data.query) / len(queries) * len(METRICS)
    return embedding + searching


def describe_memory(device: torch.device) -> str:
    """The most memory that the steps of the plan took."""
    where = "on the device" if on_gpu(device) else "of this process, its readers not counted"
    return f"memory: {peak_mebibytes(device):,.0f} MiB {where}"
