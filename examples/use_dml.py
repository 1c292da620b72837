"""Use what train_dml.py trained: measure it on other data, embed a folder of images, search in it.

    python examples/use_dml.py evaluate runs/cub/ce-0.best.pt --dataset cars --data-dir cars
    python examples/use_dml.py embed runs/cub/ce-0.best.pt photos -o embeddings.npz
    python examples/use_dml.py search runs/cub/ce-0.best.pt photos query.jpg another.jpg -o found

evaluate prints Recall@k and MAP@R. embed writes an .npz file of embeddings (n, d) and of paths (n,) in the folder.
search writes found.html, a page of the nearest neighbours by cosine, and found.png, the same as a picture.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fastpair_dml.commandline import status_of
from fastpair_dml.data import DATASETS, FileImages, RetrievalData
from fastpair_dml.data.folder import all_classes, images_below
from fastpair_dml.errors import UserError
from fastpair_dml.evaluation import METRICS
from fastpair_dml.processes import start
from fastpair_dml.runfolder import write_atomically, write_json
from fastpair_dml.search import Found, readable, write_page, write_picture
from fastpair_dml.settings import PRECISIONS
from fastpair_dml.trained import Trained

from fastpair.retrieval import nearest_neighbors


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (``sys.argv`` when None) and return the exit status, as ``status_of`` has it."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")

    def work() -> int:
        command(**arguments)
        return 0

    return status_of("use_dml.py", work)


def evaluate(
    checkpoint: str,
    dataset: str | None,
    data_dir: str | None,
    every_class: bool,
    recall_at: tuple[int, ...] | None,
    output: str | None,
    device: str,
    **changes,
) -> None:
    """Print how well the embeddings of a data set's unseen classes, or of every class, retrieve.

    Raises:
        UserError: the checkpoint, an option or the data are not as they should be.
    """
    target = None if output is None else _place(output)
    trained = _trained(checkpoint, device, changes)
    settings = trained.settings
    dataset = dataset or settings.dataset
    if data_dir is None and dataset == settings.dataset:
        data_dir = settings.data_dir
    folder = data_dir and Path(data_dir)
    if every_class:
        if dataset != "folder":
            raise UserError(
                f"--every-class is for --dataset folder, but --dataset is {dataset}, which has its own split"
            )
        images = all_classes(folder)
        data = RetrievalData(images, images)
        print(f"{len(images)} images of {len(images.names)} classes to retrieve")
    else:
        data = DATASETS[dataset](folder)
        print(f"{dataset}: {data}")
    recall_at = recall_at or settings.recall_at
    metrics = trained.gallery(data).measure(recall_at)
    if target is not None:
        write_json(target, {"checkpoint": checkpoint, "dataset": dataset, "data_dir": data_dir, "metrics": metrics})
    rows = {f"Recall@{k}": f"recall@{k}" for k in recall_at} | {"MAP@R": "map@r"}
    width = max(map(len, rows))
    print(f"\n| {'%':{width}} | {' | '.join(metric.rjust(9) for metric in METRICS.values())} |")
    print(f"|{'-' * (width + 2)}|{'----------:|' * len(METRICS)}")
    for title, name in rows.items():
        cells = [f"{100 * metrics[f'{metric}/{name}']:9.1f}" for metric in METRICS]
        print(f"| {title:{width}} | {' | '.join(cells)} |")


def embed(checkpoint: str, folder: str, output: str, device: str, **changes) -> None:
    """Write the embeddings of all images in a folder, and in the folders in it.

    Raises:
        UserError: the checkpoint, an option or an image is not as it should be, or the file cannot be written.
    """
    target = _place(output)
    trained = _trained(checkpoint, device, changes)
    images = _images(folder)
    embeddings = trained.embed(images).numpy()
    write_atomically(target, lambda file: np.savez(file, embeddings=embeddings, paths=np.array(images.paths)))
    print(f"{output}: embeddings {embeddings.shape[0]} x {embeddings.shape[1]}")


def search(
    checkpoint: str, folder: str, queries: list[str], neighbours: int, output: str, device: str, **changes
) -> None:
    """Write the page and the picture of what the images in a folder have nearest to each query.

    Raises:
        UserError: the checkpoint, an option or an image is not as it should be, or a file cannot be written.
    """
    if neighbours < 1:
        raise UserError(f"--neighbours is {neighbours}, but must be at least 1")
    page, picture = (_place(f"{output}.{suffix}") for suffix in ("html", "png"))
    trained = _trained(checkpoint, device, changes)
    images = _images(folder)
    # The queries first: one that cannot be read is known before all the rest was.
    embeddings = trained.embed(queries)
    # One more than asked for: a query that lies in the folder itself is left out.
    k = min(neighbours + 1, len(images))
    cosines, indices = nearest_neighbors(embeddings, trained.embed(images), k=k)
    files = [images.file(index).resolve() for index in range(len(images))]
    found = []
    for query, *row in zip(map(Path, queries), indices.tolist(), cosines.tolist()):
        others = [(index, cosine) for index, cosine in zip(*row) if files[index] != query.resolve()]
        if not others:
            raise UserError(f"there is no image in {folder} but the query {query}")
        found.append(Found(query, others[:neighbours]))
    name = Path(checkpoint).name
    about = f"The nearest of {len(images)} images in {readable(folder)} by the cosine of their embeddings, by {name}."
    write_page(page, "Nearest neighbours", about, images, found)
    write_picture(picture, images, found)
    for of_query in found:
        best = "  ".join(f"{readable(images.paths[index])} {cosine:.3f}" for index, cosine in of_query.neighbours)
        print(f"{readable(str(of_query.query))}: {best}")
    print(f"{page}, {picture}")


def _trained(checkpoint: str, device: str, changes: dict) -> Trained:
    _, chosen = start(device)
    return Trained.load(checkpoint, chosen, **{name: value for name, value in changes.items() if value is not None})


def _images(folder: str) -> FileImages:
    paths = images_below(Path(folder))
    return FileImages.of_classes(Path(folder), paths, [0] * len(paths), {0: ""})


def _place(path: str) -> Path:
    # Known before the images were embedded, rather than after.
    if not Path(path).parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {Path(path).parent}")
    return Path(path)


def _depths(text: str) -> tuple[int, ...]:
    depths = tuple(int(part) for part in text.split(","))
    if min(depths) < 1:
        raise argparse.ArgumentTypeError(f"{text}, but every depth must be at least 1")
    return depths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="LOSS-SEED.best.pt or LOSS-SEED.last.pt, wherever it is"
    )
    how = common.add_argument_group("how")
    how.add_argument("--device", default="cpu", help="a torch device, such as cpu or cuda (default: cpu)")
    how.add_argument("--precision", choices=PRECISIONS, help="the dtype of autocast (default: that of the run)")
    how.add_argument("--evaluation-batch", type=int, help="images at once (default: that of the run)")
    how.add_argument("--workers", type=int, help="processes that read images (default: that of the run)")
    how.add_argument("--cache", help="a folder to keep decoded and resized photos in (default: that of the run)")

    def add(command: Callable, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(command.__name__, parents=[common], help=help, description=help)
        added.set_defaults(command=command)
        return added

    of = add(evaluate, "measure retrieval on a data set")
    of.add_argument("--dataset", choices=DATASETS, help="what to measure on (default: that of the run)")
    of.add_argument("--data-dir", help="the folder that holds the data set (default: that of the run)")
    of.add_argument("--every-class", action="store_true", help="of --dataset folder all classes, not the second half")
    of.add_argument("--recall-at", type=_depths, metavar="K,...", help="the depths k of Recall@k (default: the run's)")
    of.add_argument("-o", "--output", metavar="FILE", help="write the numbers there as JSON, fractions of 1")
    of = add(embed, "embed a folder of images")
    of.add_argument("folder", metavar="FOLDER", help="images, in it or in folders in it")
    of.add_argument("-o", "--output", metavar="FILE", default="embeddings.npz", help="default: embeddings.npz")
    of = add(search, "find the images of a folder that are nearest to others")
    of.add_argument("folder", metavar="FOLDER", help="images to search among, in it or in folders in it")
    of.add_argument("queries", metavar="QUERY", nargs="+", help="images to search with")
    of.add_argument("-k", "--neighbours", type=int, default=8, help="how many for each query (default: 8)")
    of.add_argument(
        "-o", "--output", metavar="NAME", default="found", help="write NAME.html and NAME.png (default: found)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
