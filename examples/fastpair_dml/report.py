"""What a run says in words: its plan, and its table."""

import statistics
from collections.abc import Iterable, Sequence

import torch

from .settings import show


def table(results: dict[str, dict[int, dict]], recall_at: Sequence[int]) -> str:
    """Retrieval on unseen classes in percent, in Markdown: a row a loss, mean and standard deviation over the seeds."""
    columns = [(f"Recall@{k}", f"cosine/recall@{k}") for k in recall_at]
    columns += [("MAP@R", "cosine/map@r"), (f"Recall@{recall_at[0]}, L2", f"l2/recall@{recall_at[0]}")]
    first = columns[0]
    rows = [["loss", f"{first[0]} before", *(title for title, _ in columns), "training"]]
    for loss, of_seeds in results.items():
        runs = list(of_seeds.values())
        seconds = statistics.mean(run["training_seconds"] for run in runs)
        cells = [over_seeds(run["after"][name] for run in runs) for _, name in columns]
        rows.append([loss, over_seeds(run["before"][first[1]] for run in runs), *cells, f"{seconds:.0f} s"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def over_seeds(fractions: Iterable[float]) -> str:
    percent = [100 * value for value in fractions]
    mean = f"{statistics.mean(percent):.1f}"
    return mean if len(percent) == 1 else f"{mean} ± {statistics.stdev(percent):.1f}"


def describe_plan(trainers: list) -> str:
    """What the trainings would do; one batch goes through the network and each loss."""
    trainer = trainers[0]
    settings, model = trainer.settings, trainer.model
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"network: {settings.model}, {parameters:,} parameters, images of {settings.image_size} x "
        f"{settings.image_size}, embeddings of {model.embedding_size}, weights {settings.weights}",
        f"training: {settings.epochs} epochs of {trainer.steps_per_epoch} steps, {settings.batch_size} images each in "
        f"{trainer.processes.world} processes; {settings.optimizer}, lr {show(settings.lr)}, warmup {settings.warmup} "
        f"steps, weight decay {show(settings.weight_decay)}; {settings.precision} on {trainer.device}",
        f"measured: Recall@{show(settings.recall_at)} and MAP@R, cosine and L2",
    ]
    for trainer in trainers:
        views, labels = next(trainer.batches())
        trainer.network.train()
        with torch.no_grad(), trainer.autocast():
            loss = trainer.loss_of(views, labels)
        learned = sum(p.numel() for p in trainer.criterion.parameters())
        lines.append(
            f"{trainer.loss}: {loss.item():.3f} on the first batch, {trainer.per_class} images a class come together, "
            f"{learned:,} parameters of its own; seeds {show(settings.seeds)}"
        )
    return "\n".join(lines)
