"""Train an image embedding with one or several losses and measure retrieval on classes it never saw.

    python examples/train_dml.py --loss ce,contrastive,spce --output runs/demo
    python examples/train_dml.py --recipe cub --data-dir CUB_200_2011 --loss ce,supcon --seeds 0,1,2 --device cuda
    torchrun --nproc-per-node 4 examples/train_dml.py --recipe sop --data-dir Stanford_Online_Products --device cuda

Each loss trains the same network from the same seeds, under the same budget. The run folder holds metrics.json
(fractions of 1), table.md, curves.png, comparison.png, retrieval.png and two checkpoints a training, the last and the
best; with --log-bounds bounds.png too. Ctrl-C stops after the step in progress; --resume continues, on a CPU to the
same bits where the machine, its thread count and the versions in metrics.json are the same.
"""

import argparse
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from fastpair_dml.data import DATASETS, RetrievalData
from fastpair_dml.errors import UserError
from fastpair_dml.losses import LOSSES
from fastpair_dml.plots import plot_bounds, plot_comparison, plot_curves, plot_retrieval
from fastpair_dml.processes import Processes, start
from fastpair_dml.report import describe_plan, table
from fastpair_dml.runfolder import create_run, read_run, write_atomically, write_json
from fastpair_dml.settings import RECIPES, Settings, add_options, make_settings, restored, stored
from fastpair_dml.trainer import Interrupted, Trainer
from tqdm import tqdm

import fastpair

FIGURE_QUERIES = 8
FIGURE_NEIGHBOURS = 5
# What may differ between a run and its continuation: where the data lie, and what has no part in the result.
FREE = ("data_dir", "workers", "cache", "tensorboard")


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (``sys.argv`` when None) and return the exit status."""
    arguments = _parse(argv)
    try:
        run(arguments)
    except UserError as error:
        print(f"train_dml.py: error: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return 0


def run(arguments: dict) -> None:
    """Train with each loss and seed in turn, print the table and write the run folder.

    Args:
        arguments: the options that were given, by name; the others have the values of the recipe or, to resume, those
            that the run was started with.

    Raises:
        UserError: an option, the data or the run folder is not as it should be.
        Interrupted: a signal asked to stop.
    """
    resume, dry_run = arguments.pop("resume"), arguments.pop("dry_run")
    output, recipe = arguments.pop("output"), arguments.pop("recipe")
    if resume and output is None:
        raise UserError("--resume needs --output, the folder of the run to continue")
    folder = Path(output if output is not None else f"runs/{time.strftime('%Y%m%d-%H%M%S')}")

    before = read_run(folder) if resume else {}
    # A data set that has a recipe brings it along.
    recipe = recipe or before.get("recipe") or arguments.get("dataset", "glyphs")
    settings = _settings(recipe, {**restored(before), **arguments})
    processes, device = start(settings.device)
    data = DATASETS[settings.dataset](settings.data_dir and Path(settings.data_dir))
    config = {
        **stored(settings),
        "recipe": recipe,
        "processes": processes.world,
        "data_fingerprint": data.fingerprint(),
    }
    say = tqdm.write if processes.main else lambda _: None
    say(f"{settings.dataset}: {data}")
    if dry_run:
        trainers = [Trainer(loss, settings.seeds[0], settings, data, device, processes) for loss in settings.loss]
        say(describe_plan(trainers))
        return
    if resume:
        _refuse_changes(folder, before, config)
    else:
        processes.from_main(lambda: create_run(folder, config))
    try:
        results, neighbours, queries = train(settings, data, device, processes, folder, say)
    except (Interrupted, KeyboardInterrupt) as stop:
        raise type(stop)(f"--output {folder} --resume continues the run" if processes.main else "") from None
    if processes.main:
        write_results(folder, config, results, data, queries, neighbours)
        say(f"\n{table(results, settings.recall_at)}\n\n{folder}: metrics.json, table.md, pictures and checkpoints")


def train(
    settings: Settings, data: RetrievalData, device: torch.device, processes: Processes, folder: Path, say
) -> tuple[dict[str, dict[int, dict]], dict[str, torch.Tensor], torch.Tensor]:
    """Train with each loss and seed. Returns the results, the neighbours of some queries, and the queries."""
    # The queries depend on the first seed alone: every loss, and a resumed run, shows the same ones.
    generator = torch.Generator().manual_seed(settings.seeds[0])
    queries = torch.randperm(len(data.query), generator=generator)[:FIGURE_QUERIES]
    results: dict[str, dict[int, dict]] = {loss: {} for loss in settings.loss}
    neighbours = {}
    for loss in settings.loss:
        for seed in settings.seeds:
            trainer = Trainer(loss, seed, settings, data, device, processes, folder)
            trainer.fit(say)
            results[loss][seed] = trainer.result()
            if seed == settings.seeds[0]:
                neighbours[loss] = trainer.embed_test().neighbours(queries, FIGURE_NEIGHBOURS)
    return results, neighbours, queries


def write_results(
    folder: Path,
    config: dict,
    results: dict[str, dict[int, dict]],
    data: RetrievalData,
    queries: torch.Tensor,
    neighbours: dict[str, torch.Tensor],
) -> None:
    """Numbers, table and pictures of a finished run."""
    write_json(folder / "metrics.json", {"config": config, "versions": _versions(), "results": results})
    text = table(results, config["recall_at"]) + "\n"
    write_atomically(folder / "table.md", lambda file: file.write(text.encode()))
    plot_curves(folder / "curves.png", results)
    plot_comparison(folder / "comparison.png", results)
    plot_retrieval(folder / "retrieval.png", data, queries, neighbours)
    if config["log_bounds"]:
        first = {loss: next(iter(of_seeds.values())) for loss, of_seeds in results.items()}
        plot_bounds(folder / "bounds.png", {loss: result["history"]["bounds"] for loss, result in first.items()})


def _parse(argv: list[str] | None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        # Only the settings that were given are in the result: they go before those of a recipe or of a stored run.
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default=None, help="settings to start from (default: those of --dataset)"
    )
    add_options(parser, {"dataset": tuple(DATASETS), "loss": tuple(LOSSES)})
    parser.add_argument("--output", default=None, help="run folder, new or empty (default: runs/<date>-<time>)")
    parser.add_argument("--resume", default=False, action="store_true", help="continue the run in --output")
    parser.add_argument(
        "--dry-run", default=False, action="store_true", help="check data and model, print the plan, and stop"
    )
    return vars(parser.parse_args(argv))


def _settings(recipe: str, given: dict) -> Settings:
    # Argparse has checked the types of what was given; what a run folder says is checked here.
    if recipe not in RECIPES:
        raise UserError(f"--dataset is {recipe!r}, but must be one of {', '.join(DATASETS)}")
    settings = make_settings(recipe, given)
    if settings.dataset not in DATASETS:
        raise UserError(f"--dataset is {settings.dataset!r}, but must be one of {', '.join(DATASETS)}")
    for loss in settings.loss:
        if loss not in LOSSES:
            raise UserError(f"--loss names {loss!r}, but the losses are {', '.join(LOSSES)}")
    return settings


def _refuse_changes(folder: Path, before: dict, config: dict) -> None:
    # The images may have moved; the fingerprint says whether they are the same.
    changed = [name for name in config if name not in FREE and config[name] != before.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {before.get(name)!r} and is now {config[name]!r}" for name in changed)
        raise UserError(
            f"--resume cannot continue {folder} with other settings: {differences}. Leave these options out, or start "
            "a new run in another --output"
        )


def _versions() -> dict:
    return {
        "python": platform.python_version(),
        # With what they were built for, which the metadata of a package does not say.
        **{package.__name__: package.__version__ for package in (fastpair, torch, torchvision)},
        **{package: metadata.version(package) for package in ("numpy", "matplotlib", "pillow")},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    status = main()
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(status)
