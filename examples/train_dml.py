"""Train an image embedding with one or several losses and measure retrieval on classes it never saw.

    python examples/train_dml.py --loss ce,contrastive,spce --output runs/demo

Each loss trains the same network from the same seed. The run folder holds metrics.json (fractions of 1), curves.png,
retrieval.png and a checkpoint for each loss, with --log-bounds bounds.png too; --resume continues a run that was
interrupted, to the same bits where the machine, its thread count and the versions in metrics.json are the same.
"""

import argparse
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from dml.data import DATASETS
from dml.errors import UserError
from dml.losses import RECIPES
from dml.plots import plot_bounds, plot_curves, plot_retrieval
from dml.runfolder import create_run, read_run, write_json
from dml.trainer import RECALL_AT, Trainer, TrainingConfig
from tqdm import tqdm

import fastpair
from fastpair.retrieval import nearest_neighbors

DEFAULTS = {
    "dataset": "glyphs",
    "data_dir": None,
    "loss": "ce",
    "epochs": 12,
    "batch_size": 128,
    "embedding_size": 64,
    "lr": 1e-3,
    "seed": 0,
    "device": "cpu",
    "log_bounds": False,
}
FIGURE_QUERIES = 8
FIGURE_NEIGHBOURS = 5


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (``sys.argv`` when None) and return the exit status."""
    arguments = _parse(argv)
    try:
        run(arguments)
    except UserError as error:
        print(f"train_dml.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume continues the run from its last finished epoch", file=sys.stderr)
        return 130
    return 0


def run(arguments: dict) -> None:
    """Train with each loss in turn, print the table and write the run folder.

    Args:
        arguments: the options that were given, by name; the others have their defaults or, to resume,
            the values that the run was started with.

    Raises:
        UserError: an option, the data or the run folder is not as it should be.
    """
    resume = arguments.pop("resume", False)
    output = arguments.pop("output", None)
    if resume and output is None:
        raise UserError("--resume needs --output, the folder of the run to continue")
    folder = Path(output) if output is not None else Path("runs") / time.strftime("%Y%m%d-%H%M%S")

    stored = read_run(folder) if resume else {}
    config = {**DEFAULTS, **{name: stored[name] for name in DEFAULTS if name in stored}, **arguments}
    losses = _check(config)
    data = DATASETS[config["dataset"]](config["data_dir"] and Path(config["data_dir"]))
    config["data_fingerprint"] = data.fingerprint()
    if resume:
        _refuse_changes(folder, stored, config)
    else:
        create_run(folder, config)

    print(f"{config['dataset']}: {data}")
    training = TrainingConfig(**{name: config[name] for name in TrainingConfig.__dataclass_fields__})
    # The queries depend on the seed alone: every loss, and a resumed run, shows the same ones.
    generator = torch.Generator().manual_seed(training.seed)
    queries = torch.randperm(len(data.test_images), generator=generator)[:FIGURE_QUERIES]
    results, neighbours = {}, {}
    for loss in losses:
        trainer = Trainer(loss, training, data, folder / f"{loss}.pt")
        trainer.fit(tqdm.write)
        results[loss] = trainer.result()
        neighbours[loss] = _neighbours(trainer.embed_test_images(), queries)
        write_json(folder / "metrics.json", {**results, "config": config, "versions": _versions()})
    plot_curves(folder / "curves.png", results)
    plot_retrieval(folder / "retrieval.png", data, queries, neighbours)
    files = ["metrics.json", "curves.png", "retrieval.png"]
    if training.log_bounds:
        plot_bounds(folder / "bounds.png", {loss: result["history"]["bounds"] for loss, result in results.items()})
        files.append("bounds.png")
    print(f"\n{_table(results)}\n\n{folder}: {', '.join(files)}, a checkpoint for each loss")


def _parse(argv: list[str] | None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        # Only what was given is in the result: --resume tells it apart from what is left to the stored run.
        argument_default=argparse.SUPPRESS,
    )

    def option(name, help, **kwargs):
        default = DEFAULTS[name.replace("-", "_")]
        parser.add_argument(f"--{name}", help=help if default is None else f"{help} (default: {default})", **kwargs)

    option("dataset", "what to train on", choices=DATASETS)
    option("data-dir", "the folder of --dataset folder: one sub-folder of images for each class")
    option("loss", f"one loss or several, separated by commas: {', '.join(RECIPES)}")
    option("epochs", "passes over the training images", type=int)
    option("batch-size", "images in a batch", type=int)
    option("embedding-size", "features in an embedding", type=int)
    option("lr", "learning rate of AdamW at the start; it decays to zero along a cosine", type=float)
    option("seed", "seed of the weights, the batches and the augmentation", type=int)
    option("device", "a torch device, such as cpu or cuda")
    parser.add_argument("--log-bounds", action="store_true", help="measure fastpair.bounds and draw them over time")
    parser.add_argument("--output", help="run folder, new or empty (default: runs/<date>-<time>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    return vars(parser.parse_args(argv))


def _check(config: dict) -> list[str]:
    # Argparse has checked what was given; what a run folder says is checked here.
    if config["dataset"] not in DATASETS:
        raise UserError(f"--dataset is {config['dataset']!r}, but must be one of {', '.join(DATASETS)}")
    for name, default in DEFAULTS.items():
        if default is not None and not isinstance(config[name], type(default)):
            kind = type(default).__name__
            raise UserError(f"--{name.replace('_', '-')} is {config[name]!r}, but must be of type {kind}")
    losses = config["loss"].split(",")
    for loss in losses:
        if loss not in RECIPES:
            raise UserError(f"--loss names {loss!r}, but the losses are {', '.join(RECIPES)}")
    if len(set(losses)) < len(losses):
        raise UserError(f"--loss {config['loss']} names a loss twice")
    for name, least in (("epochs", 1), ("batch_size", 2), ("embedding_size", 1), ("seed", 0)):
        if config[name] < least:
            raise UserError(f"--{name.replace('_', '-')} is {config[name]}, but must be at least {least}")
    if config["seed"] >= 2**63:
        raise UserError(f"--seed is {config['seed']}, but must be below 2**63")
    if not 0 < config["lr"] < float("inf"):
        raise UserError(f"--lr is {config['lr']}, but must be positive and finite")
    try:
        torch.zeros(1, device=config["device"]).cpu()
    # An unknown name, a device that this torch was not built for, one that is not there, and one that holds no data.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {config['device']} cannot be used: {str(error).splitlines()[0]}") from error
    return losses


def _refuse_changes(folder: Path, stored: dict, config: dict) -> None:
    # The images may have moved; the fingerprint says whether they are the same.
    changed = [name for name in config if name != "data_dir" and config[name] != stored.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {stored.get(name)!r} and is now {config[name]!r}" for name in changed)
        raise UserError(
            f"--resume cannot continue {folder} with other settings: {differences}. Leave these options out, or start "
            "a new run in another --output"
        )


def _neighbours(embeddings: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    k = min(FIGURE_NEIGHBOURS, len(embeddings) - 1)
    _, indices = nearest_neighbors(embeddings, k=k)
    return indices.cpu()[queries]


def _versions() -> dict:
    return {
        "python": platform.python_version(),
        "fastpair": fastpair.__version__,
        **{package: metadata.version(package) for package in ("torch", "numpy", "matplotlib", "pillow")},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }


def _table(results: dict[str, dict]) -> str:
    columns = [f"recall@{k}" for k in RECALL_AT] + ["map@r"]
    titles = [f"Recall@{k}" for k in RECALL_AT] + ["MAP@R"]
    rows = [["loss", *titles, "training"]]
    for loss, result in results.items():
        cells = [f"{100 * result['before'][c]:.1f} -> {100 * result['after'][c]:.1f}" for c in columns]
        rows.append([loss, *cells, f"{result['training_seconds']:.0f} s"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["Retrieval on unseen classes, %, before -> after training", "-" * max(map(len, lines)), *lines])


if __name__ == "__main__":
    sys.exit(main())
