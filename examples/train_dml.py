"""Train an image embedding with one or several losses and measure retrieval on classes it never saw.

    python examples/train_dml.py --loss ce,contrastive,spce --output runs/demo
    python examples/train_dml.py --recipe cub --data-dir CUB_200_2011 --loss ce,supcon --seeds 0,1,2 --device cuda
    torchrun --nproc-per-node 4 examples/train_dml.py --recipe sop --data-dir Stanford_Online_Products --device cuda

Each loss trains the same network from the same seeds, under the same budget. The run folder holds metrics.json
(fractions of 1), history.csv, table.md, curves.png, comparison.png, retrieval.png and two checkpoints a training, the
last and the best; with --log-bounds bounds.png too: all written after every training. Ctrl-C stops after the step in
progress; --resume continues, on a CPU to the same bits where the machine, its thread count and the versions in
metrics.json are the same.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from fastpair_dml.boards import require_tensorboard
from fastpair_dml.commandline import status_of
from fastpair_dml.data import DATASETS, RetrievalData
from fastpair_dml.errors import UserError
from fastpair_dml.history import REPORTED, as_csv, succeeded
from fastpair_dml.losses import LOSSES
from fastpair_dml.options import add_options, describe_settings, refuse_without_effect, without_effect
from fastpair_dml.plan import check_images, describe_memory, describe_plan
from fastpair_dml.plots import plot_bounds, plot_comparison, plot_curves, plot_retrieval
from fastpair_dml.processes import Processes, start
from fastpair_dml.report import table
from fastpair_dml.runfolder import (
    RESULTS,
    create_run,
    read_results,
    read_run,
    write_atomically,
    write_config,
    write_json,
)
from fastpair_dml.settings import (
    RECIPES,
    Settings,
    flag,
    make_settings,
    recipe_values,
    restored,
    show,
    sizes_of_network,
    stored,
)
from fastpair_dml.stopping import Interrupted, Stop
from fastpair_dml.trainer import Trainer
from fastpair_dml.training import Training
from tqdm import tqdm

import fastpair

# What may differ between a run and its continuation: where the data lie, what has no part in the result, and what is
# trained besides.
FREE = ("data_dir", "workers", "cache", "tensorboard", "loss", "seeds")
# Pictures are drawn after a training where that takes less than this share of the time since they were drawn before,
# and at the end.
DRAWING = 0.1

Results = dict[str, dict[int, dict]]


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (``sys.argv`` when None) and return the exit status.

    It is 0; 1 where a training failed and the others did not; or as :func:`status_of` has it.
    """
    arguments = _parse(argv)

    def work() -> int:
        results = run(arguments)
        return int(any("failed" in result for of_seeds in results.values() for result in of_seeds.values()))

    return status_of("train_dml.py", work)


def run(arguments: dict) -> Results:
    """Train with each loss and seed in turn, and write the run folder and print the table after each.

    Args:
        arguments: the options that were given, by name; the others have the values of the recipe or, to resume, those
            that the run was started with.

    Returns:
        For each loss and seed what was measured, as ``History.result`` says it.

    Raises:
        UserError: an option, the data or the run folder is not as it should be.
        Interrupted: a signal asked to stop.
    """
    resume, dry_run, whole = (arguments.pop(name) for name in ("resume", "dry_run", "check_images"))
    show_settings, as_published = arguments.pop("show_settings"), arguments.pop("as_published")
    output, recipe = arguments.pop("output"), arguments.pop("recipe")
    if resume and output is None:
        raise UserError("--resume needs --output, the folder of the run to continue")
    folder = Path(output if output is not None else f"runs/{time.strftime('%Y%m%d-%H%M%S')}")

    before = read_run(folder) if resume else {}
    # A data set that has a recipe brings it along.
    recipe = recipe or before.get("recipe") or arguments.get("dataset", "glyphs")
    settings = _settings(recipe, {**restored(before), **arguments}, as_published)
    refuse_without_effect(settings, arguments)
    if settings.tensorboard:
        require_tensorboard()
    shown = describe_settings(settings, _origins(recipe, as_published, before, arguments))
    if show_settings:
        print(shown)
        return {}
    processes, device = start(settings.device)
    data = DATASETS[settings.dataset](settings.data_dir and Path(settings.data_dir))
    say = tqdm.write if processes.main else lambda _: None
    say(f"{settings.dataset}: {data}")
    for name, why in without_effect(settings).items():
        if name in RECIPES[recipe]:  # as it is to be refused where it was given
            say(f"no effect here has the recipe's {flag(name)} {show(getattr(settings, name))}: {why}")
    if dry_run or whole:
        say(processes.from_main(lambda: check_images(data, whole, os.cpu_count() or 1)))
    if dry_run:
        say(shown)
        trainers = (Trainer(loss, settings.seeds[0], settings, data, device, processes) for loss in settings.loss)
        for line in describe_plan(settings, trainers):
            say(line)
        say(describe_memory(device))
        return {}

    # What is wrong with a loss is said now, not when its turn comes.
    for loss in settings.loss:
        LOSSES[loss].build(data.num_train_classes, settings.embedding_size or 8, settings, **settings.settings_of(loss))

    config = {
        **stored(settings),
        "recipe": recipe,
        "processes": processes.world,
        "data_fingerprint": data.fingerprint(),
    }
    results: Results = {}
    if resume:
        _refuse_changes(folder, before, config)
        results = processes.from_main(lambda: read_results(folder))
        # What is known already stays, in its order, and what is new comes after it.
        for name in ("loss", "seeds"):
            config[name] = list(dict.fromkeys([*before[name], *config[name]]))
        processes.from_main(lambda: write_config(folder, config))
    else:
        processes.from_main(lambda: create_run(folder, config))
    files = RunFiles(folder, config, data, processes, results)
    goes_on = f"--output {folder} --resume continues the run"
    try:
        train(settings, data, device, files, say)
    except UserError as error:
        raise UserError(f"{error}. When it is put right, {goes_on}") from error
    except (Interrupted, KeyboardInterrupt) as stop:
        raise type(stop)(goes_on if processes.main else "") from None
    finally:
        files.draw()
    # There are none of trainings that failed early.
    besides = [name for name, ending in (("pictures", "png"), ("checkpoints", "pt")) if any(folder.glob(f"*.{ending}"))]
    say(f"\n{files.table()}\n\n{folder}: {', '.join([RESULTS, 'history.csv', 'table.md', *besides])}")
    return files.results


def train(settings: Settings, data: RetrievalData, device: torch.device, files: "RunFiles", say: Callable) -> None:
    """Train with each loss and seed that has no result yet, or failed."""
    processes = files.processes
    trainings = [(loss, seed) for loss in settings.loss for seed in settings.seeds if not files.has(loss, seed)]
    stop = Stop(processes)
    with stop.listening():
        for number, (loss, seed) in enumerate(trainings, start=1):
            trainer = Trainer(loss, seed, settings, data, device, processes)
            later = len(trainings) - number
            result = Training(trainer, files.folder, files.queries, stop, say, later).run()
            del trainer  # the next needs the memory
            stop.waits_for = "the writing of results"
            files.add(loss, seed, result)
            if later:
                stop.check()


class RunFiles:
    """What is measured, and written into the run folder after every training.

    Args:
        folder: the run folder.
        config: of the run.
        data: the images, for the picture of neighbours.
        processes: the main one writes.
        results: for each loss and seed what was measured before, as ``History.result`` says it.
    """

    def __init__(
        self, folder: Path, config: dict, data: RetrievalData, processes: Processes, results: Results | None = None
    ):
        self.folder, self.config, self.data, self.processes = folder, config, data, processes
        self.results: Results = results or {}
        # The queries depend on the first seed alone: every loss, and a resumed run, shows the same ones.
        generator = torch.Generator().manual_seed(config["seeds"][0])
        self.queries = torch.randperm(len(data.query), generator=generator)[: config["figure_queries"]]
        # What is resumed may have been stopped before its pictures were drawn.
        self._undrawn = bool(self.results)
        self._drawn, self._took = time.monotonic(), 0.0

    def has(self, loss: str, seed: int) -> bool:
        """Whether a training has come to its end."""
        result = self.results.get(loss, {}).get(seed)
        return result is not None and "failed" not in result

    def table(self) -> str:
        return table(self.results, self.config["recall_at"], self.config["report"])

    def add(self, loss: str, seed: int, result: dict) -> None:
        """Write numbers and table with one more training, and the pictures unless that would take long."""
        known = {**self.results, loss: {**self.results.get(loss, {}), seed: result}}
        # In the order in which the run was given them.
        self.results = {
            name: {number: known[name][number] for number in self.config["seeds"] if number in known[name]}
            for name in self.config["loss"]
            if name in known
        }
        self.processes.from_main(self._write)
        self._undrawn = True
        if self._took < DRAWING * (time.monotonic() - self._drawn):
            self.draw()

    def _write(self) -> None:
        write_json(self.folder / RESULTS, {"config": self.config, "versions": _versions(), "results": self.results})
        _write_text(self.folder / "table.md", self.table() + "\n")
        _write_text(self.folder / "history.csv", as_csv(self.results))

    def draw(self) -> None:
        """The pictures, where there is something that they do not show yet."""
        results = succeeded(self.results)
        if not (self._undrawn and results and self.processes.main):
            return
        start = time.monotonic()
        report = self.config["report"]
        plot_curves(self.folder / "curves.png", results, report)
        plot_comparison(self.folder / "comparison.png", results, report)
        first = {loss: next(iter(of_seeds.values())) for loss, of_seeds in results.items()}
        neighbours = {loss: torch.tensor(result["neighbours"][REPORTED[report]]) for loss, result in first.items()}
        plot_retrieval(self.folder / "retrieval.png", self.data, self.queries, neighbours, report)
        if self.config["log_bounds"]:
            history = {loss: result["history"]["bounds"] for loss, result in first.items()}
            plot_bounds(self.folder / "bounds.png", history)
        self._undrawn = False
        self._drawn = time.monotonic()
        self._took = self._drawn - start


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _parse(argv: list[str] | None) -> dict:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        # Only the settings that were given are in the result: they go before those of a recipe or of a stored run.
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--recipe", choices=RECIPES, default=None, help="settings to start from (default: those of --dataset)"
    )
    switches = {
        "--as-published": "what the authors' code does and the recipes do not, too: see examples/README.md",
        "--resume": "continue the run in --output, with other --loss and --seeds besides, if given",
        "--dry-run": "check data and model, print every setting and the plan with its time and memory, and stop",
        "--check-images": "read every image whole at the start, not only its header in a --dry-run",
        "--show-settings": "print every setting and where it comes from, and stop",
    }
    parser.add_argument("--output", default=None, help="run folder, new or empty (default: runs/<date>-<time>)")
    for name, help in switches.items():
        parser.add_argument(name, default=False, action="store_true", help=help)
    add_options(parser, {"dataset": tuple(DATASETS), "loss": tuple(LOSSES)})
    return vars(parser.parse_args(argv))


def _settings(recipe: str, given: dict, as_published: bool) -> Settings:
    # Argparse has checked the types of what was given; what a run folder says is checked here.
    if recipe not in RECIPES:
        raise UserError(f"--dataset is {recipe!r}, but must be one of {', '.join(DATASETS)}")
    settings = make_settings(recipe, given, as_published)
    if settings.dataset not in DATASETS:
        raise UserError(f"--dataset is {settings.dataset!r}, but must be one of {', '.join(DATASETS)}")
    for loss in settings.loss:
        if loss not in LOSSES:
            raise UserError(f"--loss names {loss!r}, but the losses are {', '.join(LOSSES)}")
    return settings


def _origins(recipe: str, as_published: bool, before: dict, given: dict) -> dict[str, str]:
    """Where settings that are not the defaults come from; the later of these goes before the earlier."""
    published = f"{recipe}{', as published' if as_published else ''}"
    values, set_before = recipe_values(recipe, as_published), {**before, **given}
    return {
        **dict.fromkeys(values, f"recipe {published}"),
        **dict.fromkeys(sizes_of_network({**values, **set_before}, set_before), "the network's own"),
        **dict.fromkeys(before, "the run that is continued"),
        **dict.fromkeys(given, "given"),
    }


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
