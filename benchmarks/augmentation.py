"""How many augmented photographs a core makes for the recipes of the training example, and what each way to them costs.

    python -m benchmarks.augmentation [--json FILE] [--seconds S] [--quick]

JPEG files of one photograph, that of matplotlib's sample data. Images a second of one core; each way in a process of
its own, as when a data loader reads, medians of interleaved rounds. "torchvision" decodes all of a file and applies
torchvision's transforms to the image, as the example once did. "reading" is what a process of --workers does, "one
core" that and the rest, which otherwise happens on the device; "cached" is with --cache, once all is in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from PIL import Image
from torchvision.transforms import v2

from benchmarks.compare import ROOT, command_line, environment, medians, record, work

sys.path.insert(0, str(ROOT / "examples"))
from fastpair_dml.data import Batch, FileImages, Preprocessing, Views, finish
from fastpair_dml.settings import make_settings

BATCH = 16
# The recipe, and width and height of the files.
WORKS = (("cub", 500, 375), ("cars", 500, 375), ("cub", 1600, 1200))
CPU = torch.device("cpu")


def photographs(folder: Path, width: int, height: int) -> FileImages:
    """A batch of files of the given size, of four classes."""
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        whole = image.convert("RGB")
    cut = whole.resize((width, width * whole.height // whole.width), Image.BICUBIC).crop((0, 0, width, height))
    paths = [f"{number}.jpg" for number in range(BATCH)]
    for path in paths:
        cut.save(folder / path, quality=92)
    return FileImages(folder, paths, torch.arange(BATCH) % 4, list("abcd"))


def torchvision_way(images: FileImages, make: Preprocessing) -> Callable[[], object]:
    resize = [v2.Resize((make.resize, make.resize) if make.square else make.resize)]
    jitter = [v2.ColorJitter(*make.jitter)] if any(make.jitter) else []
    crop = v2.RandomResizedCrop(make.size, make.scale, make.ratio)
    transform = v2.Compose([*resize, *jitter, crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])

    def one(path: str) -> torch.Tensor:
        with Image.open(images.root / path) as image:
            return transform(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))

    return lambda: torch.stack([one(path) for path in images.paths])


def own_way(images: FileImages, make: Preprocessing, whole: bool) -> Callable[[], object]:
    batch = Batch(torch.arange(BATCH), torch.arange(BATCH)[None])
    views = Views(images, make, augmented=True)
    return (lambda: finish(views.__getitems__(batch), CPU)) if whole else (lambda: views.__getitems__(batch))


def way(name: str, recipe: str, images: FileImages) -> Callable[[], object]:
    """Makes a batch, in one of the ways of ``WAYS``."""
    cache = str(images.root / "cache") if "cached" in name else None
    make = Preprocessing(**make_settings(recipe, {"cache": cache}).preprocessing())
    return torchvision_way(images, make) if name == "torchvision" else own_way(images, make, "one core" in name)


WAYS = ("torchvision", "reading", "one core", "reading cached", "one core cached")


def serve(calls: Connection, *of) -> None:
    """Run a way whenever asked, until nobody will ask again."""
    torch.set_num_threads(1)
    run = way(*of)
    with contextlib.suppress(EOFError):
        while True:
            calls.recv()
            run()
            calls.send(None)


def apart(stack: contextlib.ExitStack, *of) -> Callable[[], None]:
    """A way, run in a process of its own up to the end of ``stack``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *of))
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(ours.close)

    def run() -> None:
        ours.send(None)
        ours.recv()

    return run


def rows(seconds: float, quick: bool) -> Iterator[dict]:
    for recipe, width, height in WORKS[:1] if quick else WORKS:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            images = photographs(Path(folder), width, height)
            times = medians({name: apart(stack, name, recipe, images) for name in WAYS}, seconds)
        sizes = {"width": width, "height": height}
        yield {**work(recipe, sizes), "images_per_second": {name: BATCH / t for name, t in times.items()}}


def print_row(row: dict) -> None:
    print(row["work"])
    speeds = row["images_per_second"]
    for name, speed in speeds.items():
        print(f"    {name:26s}{speed:8.0f} images/s {speed / speeds['torchvision']:8.1f} x", flush=True)


def main() -> None:
    options = command_line(__doc__).parse_args()
    measured = rows(0.2 if options.quick else options.seconds, options.quick)
    record({"environment": environment()}, measured, print_row, options.json)


if __name__ == "__main__":
    main()
