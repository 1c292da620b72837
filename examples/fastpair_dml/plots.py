"""The figures of a run: curves over the training steps, how the losses compare, what the unseen queries retrieve."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .data import RetrievalData
from .history import REPORTED, SELECTION
from .runfolder import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart, with olive for their yellow, too faint on white;
# markers tell the curves apart in print.
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#7A7200")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
RIGHT, WRONG, GREY = "#009E73", "#CC3311", "#808080"
DASHES = (0, (2, 1))
PAIR_LOSSES = {"snca": "SNCA", "multi_similarity": "multi-similarity", "contrastive": "contrastive"}
# From one image to the next, in images.
COLUMN, ROW = 1.12, 1.36
# Characters in each of the two lines of a class's name: about as wide as an image.
CAPTION = 15
# Before a second column begins.
CURVES_IN_COLUMN, BOUNDS_IN_COLUMN = 8, 8
# Which evaluation of a training is drawn, in words, by the setting ``report``.
AT = {"last": "at the end", "best": "at the best look"}
# The smoothed loss is the mean over this many steps to either side.
WINDOW = 7


def plot_curves(path: Path, results: dict[str, dict[int, dict]], report: str) -> None:
    """Draw each loss over the training steps, and Recall@1 of the unseen classes for all of them: means over the seeds.

    Args:
        path: the PNG file to write.
        results: for each loss and seed, what ``Training.run`` returned, of those that did not fail.
        report: "last" or "best", the evaluation of each that the legend has; the best of each seed has a star.
    """
    rows, columns = _rows_and_columns(len(results), CURVES_IN_COLUMN)
    figure = Figure(figsize=(7 + 4 * columns, max(3.8, 1.5 * rows)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4 * columns, 7])
    # Column by column.
    panels = left.subplots(rows, columns, squeeze=False, sharex=True).T.flatten()
    for number, (name, of_seeds) in enumerate(results.items()):
        axes = panels[number]
        losses = np.mean([result["history"]["loss"] for result in of_seeds.values()], axis=0)
        steps = np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=_colour(number), alpha=0.3, linewidth=0.8)
        axes.plot(steps, _smooth(losses), color=_colour(number), linewidth=1.8)
        axes.set_title(name, fontsize=9, loc="left", pad=3)
        # A loss that hardly changes lies far from zero, by its own margin too near to the upper edge to be seen.
        bottom, top = min(0, losses.min()), max(0, losses.max())
        axes.set_ylim(bottom, top + (0.05 * (top - bottom) or 1))
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        if number % rows == rows - 1 or number == len(results) - 1:
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    for axes in panels[len(results) :]:
        axes.axis("off")
    left.suptitle(f"Training loss, and its mean over {2 * WINDOW + 1} steps")

    axes = right.subplots()
    several = max(len(of_seeds) for of_seeds in results.values()) > 1
    for number, (name, of_seeds) in enumerate(results.items()):
        histories = [result["history"]["evaluations"] for result in of_seeds.values()]
        steps = [point["step"] for point in histories[0]]
        recall = 100 * np.array([[point[SELECTION] for point in history] for history in histories])
        reported = np.mean([100 * result[REPORTED[report]][SELECTION] for result in of_seeds.values()])
        _line(axes, steps, recall.mean(0), f"{name}, {reported:.1f} % {AT[report]}", number)
        if report == "best":
            best = [result["best"] for result in of_seeds.values()]
            places = [[point["step"] for point in best], [100 * point[SELECTION] for point in best]]
            star = {"marker": "*", "markersize": 13, "markeredgecolor": "#000000", "linestyle": "", "zorder": 3}
            axes.plot(*places, color=_colour(number), **star)
        if len(recall) > 1:
            axes.fill_between(steps, recall.min(0), recall.max(0), color=_colour(number), alpha=0.12, linewidth=0)
    right.suptitle("Recall@1 on unseen classes, %")
    notes = ["mean, least and most of the seeds"] * several + ["stars: the best looks"] * (report == "best")
    axes.set_title("; ".join(notes), fontsize=9, loc="left", pad=3)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9)
    save(figure, path)


def plot_comparison(path: Path, results: dict[str, dict[int, dict]], report: str) -> None:
    """Draw Recall@1 and MAP@R of the unseen classes: a row a loss, every seed, and their mean.

    Args:
        path: the PNG file to write.
        results: as for :func:`plot_curves`.
        report: "last" or "best", the evaluation that is drawn.
    """
    figure = Figure(figsize=(10, 1.4 + 0.42 * len(results)), layout="constrained")
    places = np.arange(len(results))
    titles = {
        SELECTION: f"Recall@1 on unseen classes {AT[report]}, %",
        "cosine/map@r": f"MAP@R on unseen classes {AT[report]}, %",
    }
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (metric, title) in zip(panels, titles.items()):
        for place, of_seeds in zip(places, results.values()):
            values = [100 * result[REPORTED[report]][metric] for result in of_seeds.values()]
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], markerfacecolor="none", markersize=7)
            if len(values) > 1:
                axes.plot(np.mean(values), place, "|", color="#000000", markersize=16, markeredgewidth=2)
        axes.set_title(title)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(places, list(results))
    panels[0].set_ylim(len(results) - 0.5, -0.5)
    if any(len(of_seeds) > 1 for of_seeds in results.values()):
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
    save(figure, path)


def plot_retrieval(
    path: Path, data: RetrievalData, queries: torch.Tensor, neighbours: dict[str, torch.Tensor], report: str
) -> None:
    """Draw queries, and beside each its nearest neighbours after training with each loss.

    A neighbour of the query's class has a solid green frame, another a dashed red one and its class written below.

    Args:
        path: the PNG file to write.
        data: the data set, whose queries and gallery are shown.
        queries: indices of the queries, int64 of shape (rows,).
        neighbours: for each loss, indices of the neighbours, nearest first, int64 of shape (rows, k).
        report: "last" or "best", the evaluation at which they were.
    """
    gallery = data.query if data.gallery is None else data.gallery
    k = next(iter(neighbours.values())).shape[1]
    blocks = min(len(neighbours), 3 if len(neighbours) <= 6 else 5)
    bands = -(-len(neighbours) // blocks)
    # One axes for everything, in units of an image: an axes for each image takes seconds to draw.
    block, band = k * COLUMN + 0.3, ROW * len(queries) + 0.6
    width, height = COLUMN + 0.3 + block * blocks, band * bands - 0.6
    figure = Figure(figsize=(0.9 * width, 0.9 * (height + 1.2)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")

    for start in range(bands):
        axes.text(0.5, band * start - 0.15, "query", ha="center", fontsize=10)
        for row, query in enumerate(queries.tolist()):
            text = _short(data, data.query.labels[query])
            show(axes, 0, band * start + ROW * row, data.query.pixels(query), text, GREY)
    for number, (name, indices) in enumerate(neighbours.items()):
        x, y = COLUMN + 0.3 + number % blocks * block, number // blocks * band
        axes.text(x + k * COLUMN / 2, y - 0.15, f"{name}: {k} nearest", ha="center", fontsize=10)
        for row, query in enumerate(queries.tolist()):
            for rank, index in enumerate(indices[row].tolist()):
                label = gallery.labels[index]
                right = label == data.query.labels[query]
                text, frame = ("", (RIGHT, "-")) if right else (_short(data, label), (WRONG, DASHES))
                show(axes, x + rank * COLUMN, y + ROW * row, gallery.pixels(index), text, *frame)
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
        title=f"Random queries among the unseen classes, and their neighbours {AT[report]}",
        title_fontsize=10,
    )
    save(figure, path)


def plot_bounds(path: Path, history: dict[str, list[dict[str, float]]]) -> None:
    """Draw what the losses of the paper are on some training images while the network learns from one of them.

    A row for each loss that is trained: cross-entropy and its pairwise forms, the pair losses relative to their value
    at the start, and the lower bound on the mutual information of embeddings and labels.

    Args:
        path: the PNG file to write.
        history: for each loss, ``fastpair.bounds.terms`` and the "step" of each point.
    """
    rows, columns = _rows_and_columns(len(history), BOUNDS_IN_COLUMN)
    figure = Figure(figsize=(13 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 3 * columns, squeeze=False, sharex=True)
    titles = ("Cross-entropy and its pairwise forms", "Pair losses, relative to the start", "Information, nats")
    panels_of = [grid[number % rows, 3 * (number // rows) :][:3] for number in range(rows * columns)]
    for axes in (axes for panels in panels_of[len(history) :] for axes in panels):
        axes.axis("off")
    for number, ((name, points), panels) in enumerate(zip(history.items(), panels_of)):
        for axes, title in zip(panels, titles):
            if number % rows == 0:
                axes.set_title(title)
            if number % rows == rows - 1 or number == len(history) - 1:
                axes.set_xlabel("step")
                axes.tick_params(labelbottom=True)
        entropies, pairs, information = panels
        steps = [point["step"] for point in points]
        known = points[0].keys()
        entropies.set_ylabel(f"trained with {name}")
        for style, key in enumerate(("ce", "spce", "pce")):
            if key in known:
                _line(entropies, steps, [point[key] for point in points], key.upper(), style)
        for style, (key, label) in enumerate(PAIR_LOSSES.items()):
            sums = [point[f"{key}/tightness"] + point[f"{key}/contrast"] for point in points]
            _line(pairs, steps, [value / sums[0] for value in sums], label, style)
        pairs.set_ylim(bottom=0)
        information.axhline(points[0]["entropy"], color="#000000", linestyle=DASHES, label="H(Y)")
        if "information" in known:
            _line(information, steps, [point["information"] for point in points], "H(Y) - CE, at most I(Z;Y)", 0)
        else:
            information.text(0.5, 0.25, "no classifier, no CE", ha="center", transform=information.transAxes)
        for axes in (entropies, pairs, information):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=9)
    save(figure, path)


def _rows_and_columns(count: int, tall: int) -> tuple[int, int]:
    """For ``count`` things, in columns of at most ``tall``."""
    columns = -(-count // tall)
    return -(-count // columns), columns


def _line(axes: Axes, steps: Sequence[int], values: Sequence[float], label: str, number: int) -> None:
    # Where the colours begin again, the markers and the dashes are others.
    again = number // len(COLOURS)
    marker, line = MARKERS[(number + again) % len(MARKERS)], LINES[again % len(LINES)]
    axes.plot(steps, values, color=_colour(number), linestyle=line, marker=marker, markersize=4, label=label)
    axes.locator_params(axis="x", integer=True)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _smooth(values: list[float]) -> np.ndarray:
    """Mean over a window around each step, shorter at both ends; unlike a running average it does not lag behind."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = np.arange(len(values))
    start, end = np.maximum(steps - WINDOW, 0), np.minimum(steps + WINDOW + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


def _short(data: RetrievalData, label: torch.Tensor) -> str:
    name = drawable(data.query.names[label])
    if "\N{REPLACEMENT CHARACTER}" in name:  # names that cannot be read tell no classes apart
        name = f"{int(label)}: {name}"
    return in_two_lines(name)


def in_two_lines(name: str) -> str:
    """``name`` for below an image, without its middle where that is too long: classes often differ at their end."""
    if len(name) > 2 * CAPTION:
        name = f"{name[:CAPTION]}…{name[1 - CAPTION :]}"
    lines = textwrap.wrap(name, CAPTION)
    return "\n".join(lines if len(lines) <= 2 else (name[:CAPTION], name[CAPTION:]))


def drawable(name: str) -> str:
    """``name``, with a sign in place of each character that the font does not have, or that stands for a bare byte."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in name)


def show(axes: Axes, x: float, y: float, image: torch.Tensor, text: str, colour: str, style="-") -> None:
    """An image in the middle of the unit square at (x, y), as large as its proportions allow, in a frame.

    Args:
        axes: where to draw, downwards.
        x, y: the upper left corner of the square.
        image: uint8 of shape (1 or 3, height, width).
        text: what stands below it.
        colour, style: of the frame.
    """
    pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
    height, width = (side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    left, top = x + (1 - width) / 2, y + (1 - height) / 2
    extent = (left, left + width, top + height, top)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
    frame = {"fill": False, "edgecolor": colour, "linestyle": style, "linewidth": 2.5, "zorder": 3}
    axes.add_patch(Rectangle((left, top), width, height, **frame))
    axes.text(x + 0.5, top + height + 0.06, text, ha="center", va="top", fontsize=7, parse_math=False)


def save(figure: Figure, path: Path) -> None:
    # A canvas of its own: pyplot would look for a display and keep the figure for ever.
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
