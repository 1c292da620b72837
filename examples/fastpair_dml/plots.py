"""The figures of a run: curves over the training steps, how the losses compare, what the unseen queries retrieve."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .data import RetrievalData
from .runfolder import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers tell the curves apart in print.
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P")
RIGHT, WRONG = "#009E73", "#CC3311"
DASHES = (0, (2, 1))
PAIR_LOSSES = {"snca": "SNCA", "multi_similarity": "multi-similarity", "contrastive": "contrastive"}
# From one image to the next, in images.
COLUMN, ROW = 1.12, 1.36
# The smoothed loss is the mean over this many steps to either side.
WINDOW = 7


def plot_curves(path: Path, results: dict[str, dict[int, dict]]) -> None:
    """Draw each loss over the training steps, and Recall@1 of the unseen classes for all of them: means over the seeds.

    Args:
        path: the PNG file to write.
        results: for each loss and seed, what ``Trainer.result`` returned.
    """
    rows = len(results)
    figure = Figure(figsize=(10, max(3.6, 1.6 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    first = None
    for row, (name, of_seeds) in enumerate(results.items()):
        axes = figure.add_subplot(grid[row, 0], sharex=first)
        first = first or axes
        losses = np.mean([result["history"]["loss"] for result in of_seeds.values()], axis=0)
        steps = np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=_colour(row), alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=_colour(row), linewidth=1.8)
        axes.set_ylabel(f"{name} loss")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if row == 0:
            axes.set_title("Training loss")
        if row < rows - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("step")
    figure.align_ylabels()

    axes = figure.add_subplot(grid[:, 1], sharex=first)
    for row, (name, of_seeds) in enumerate(results.items()):
        histories = [result["history"]["evaluations"] for result in of_seeds.values()]
        steps = [point["step"] for point in histories[0]]
        recall = 100 * np.array([[point["cosine/recall@1"] for point in history] for history in histories])
        label = f"{name}, {recall[:, -1].mean():.1f} % at the end"
        _line(axes, steps, recall.mean(0), label, row)
        axes.fill_between(steps, recall.min(0), recall.max(0), color=_colour(row), alpha=0.15, linewidth=0)
    axes.set_title("Recall@1 on unseen classes, %")
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def plot_comparison(path: Path, results: dict[str, dict[int, dict]]) -> None:
    """Draw Recall@1 and MAP@R of the unseen classes at the end: a row a loss, every seed and their mean.

    Args:
        path: the PNG file to write.
        results: as for :func:`plot_curves`.
    """
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(results)), layout="constrained")
    places = np.arange(len(results))
    titles = {"cosine/recall@1": "Recall@1 on unseen classes, %", "cosine/map@r": "MAP@R on unseen classes, %"}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (metric, title) in zip(panels, titles.items()):
        for place, of_seeds in zip(places, results.values()):
            values = [100 * result["after"][metric] for result in of_seeds.values()]
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], markerfacecolor="none", markersize=7)
            axes.plot(np.mean(values), place, "|", color="#000000", markersize=16, markeredgewidth=2)
        axes.set_title(title)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(places, list(results))
    panels[0].set_ylim(len(results) - 0.5, -0.5)
    figure.legend(
        [
            Line2D([], [], color=COLOURS[0], marker="o", markerfacecolor="none", linestyle=""),
            Line2D([], [], color="#000000", marker="|", markersize=12, markeredgewidth=2, linestyle=""),
        ],
        ["one seed", "mean"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
    _save(figure, path)


def plot_retrieval(path: Path, data: RetrievalData, queries: torch.Tensor, neighbours: dict[str, torch.Tensor]) -> None:
    """Draw queries, and beside each its nearest neighbours after training with each loss.

    A neighbour of the query's class has a solid green frame, another a dashed red one and its class written below.

    Args:
        path: the PNG file to write.
        data: the data set, whose queries and gallery are shown.
        queries: indices of the queries, int64 of shape (rows,).
        neighbours: for each loss, indices of the neighbours, nearest first, int64 of shape (rows, k).
    """
    gallery = data.query if data.gallery is None else data.gallery
    k = next(iter(neighbours.values())).shape[1]
    # One axes for everything, in units of an image: an axes for each image takes seconds to draw.
    block = k * COLUMN + 0.3
    width, height = COLUMN + 0.3 + block * len(neighbours), ROW * len(queries)
    figure = Figure(figsize=(0.8 * width, 0.8 * (height + 1.2)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")

    axes.text(0.5, -0.15, "query", ha="center", fontsize=10)
    for row, query in enumerate(queries.tolist()):
        label = data.query.labels[query]
        _show(axes, 0, ROW * row, data.query.pixels(query), _short(data, label), "#808080", "-")
    for number, (name, indices) in enumerate(neighbours.items()):
        start = COLUMN + 0.3 + number * block
        axes.text(start + k * COLUMN / 2, -0.15, f"{name}: {k} nearest", ha="center", fontsize=10)
        for row, query in enumerate(queries.tolist()):
            for rank, index in enumerate(indices[row].tolist()):
                label = gallery.labels[index]
                right = label == data.query.labels[query]
                text, frame = ("", (RIGHT, "-")) if right else (_short(data, label), (WRONG, DASHES))
                _show(axes, start + rank * COLUMN, ROW * row, gallery.pixels(index), text, *frame)
    # Last, because every image sets the limits to its own.
    axes.set(xlim=(-0.15, width - 0.25), ylim=(height, -1.2))
    keys = [Line2D([], [], color=RIGHT, linewidth=3), Line2D([], [], color=WRONG, linewidth=3, linestyle=DASHES)]
    figure.legend(
        keys,
        ["same class", "another class, named below"],
        loc="upper center",
        ncols=2,
        frameon=False,
        fontsize=9,
        title="Random queries among the unseen classes",
        title_fontsize=10,
    )
    _save(figure, path)


def plot_bounds(path: Path, history: dict[str, list[dict[str, float]]]) -> None:
    """Draw what the losses of the paper are on some training images while the network learns from one of them.

    A row for each loss that is trained: cross-entropy and its pairwise forms, the pair losses relative to their value
    at the start, and the lower bound on the mutual information of embeddings and labels.

    Args:
        path: the PNG file to write.
        history: for each loss, ``fastpair.bounds.terms`` and the "step" of each point.
    """
    figure = Figure(figsize=(13, 3.6 * len(history)), layout="constrained")
    grid = figure.subplots(len(history), 3, squeeze=False, sharex=True)
    titles = ("Cross-entropy and its pairwise forms", "Pair losses, relative to the start", "Information, nats")
    for axes, title in zip(grid[0], titles):
        axes.set_title(title)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for (entropies, pairs, information), (name, points) in zip(grid, history.items()):
        steps = [point["step"] for point in points]
        known = points[0].keys()
        entropies.set_ylabel(f"trained with {name}")
        for number, key in enumerate(("ce", "spce", "pce")):
            if key in known:
                _line(entropies, steps, [point[key] for point in points], key.upper(), number)
        for number, (key, label) in enumerate(PAIR_LOSSES.items()):
            sums = [point[f"{key}/tightness"] + point[f"{key}/contrast"] for point in points]
            _line(pairs, steps, [value / sums[0] for value in sums], label, number)
        pairs.set_ylim(bottom=0)
        information.axhline(points[0]["entropy"], color="#000000", linestyle=DASHES, label="H(Y)")
        if "information" in known:
            _line(information, steps, [point["information"] for point in points], "H(Y) - CE, at most I(Z;Y)", 0)
        else:
            information.text(0.5, 0.25, "no classifier, no CE", ha="center", transform=information.transAxes)
        for axes in (entropies, pairs, information):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=9)
    _save(figure, path)


def _line(axes: Axes, steps: Sequence[int], values: Sequence[float], label: str, number: int) -> None:
    # Where the colours begin again, the markers are others.
    marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    axes.plot(steps, values, color=_colour(number), marker=marker, markersize=4, label=label)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _smooth(values: list[float]) -> np.ndarray:
    """Mean over a window around each step, shorter at both ends; unlike a running average it does not lag behind."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = np.arange(len(values))
    start, end = np.maximum(steps - WINDOW, 0), np.minimum(steps + WINDOW + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


def _short(data: RetrievalData, label: torch.Tensor) -> str:
    name = data.query.names[label]
    return name if len(name) <= 12 else name[:11] + "…"


def _show(axes: Axes, x: float, y: float, image: torch.Tensor, text: str, colour: str, style) -> None:
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(x, x + 1, y + 1, y), aspect="auto")
    axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linestyle=style, linewidth=2.5, zorder=3))
    axes.text(x + 0.5, y + 1.06, text, ha="center", va="top", fontsize=7, parse_math=False)


def _save(figure: Figure, path: Path) -> None:
    # A canvas of its own: pyplot would look for a display and keep the figure for ever.
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
