"""Pictures and tables of what ``benchmarks.compare``, ``benchmarks.end_to_end`` and ``benchmarks.gpu`` measured.

    python -m benchmarks.report RESULT.json ... [--output FOLDER]

For every result file NAME.json: FOLDER/NAME.md, tables of times, ratios to fastpair and memory; and FOLDER/NAME-
time.svg, NAME-memory.svg and so on, and the same as PNG: against the batch size, the number of classes and the
dimension, on logarithmic axes. The floor of a pair loss is one and a half matrix products, its scores and its
gradient; that of batch-hard triplets the scores alone, that of cross-entropy three.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind readers tell apart; the marks differ too.
STYLES = {
    "fastpair": ("#0072B2", "o"),
    "cuda": ("#0072B2", "o"),
    "triton": ("#56B4E9", "D"),
    "eager": ("#E69F00", "s"),
    "compile": ("#009E73", "^"),
    "compile reduce-overhead": ("#F0E442", "<"),
    "pytorch-metric-learning": ("#CC79A7", "v"),
    "F.linear_cross_entropy": ("#D55E00", "P"),
    "liger": ("#D55E00", "X"),
    "cut-cross-entropy": ("#999999", "*"),
}
NAMES = {"n": "batch size n", "d": "dimension d", "K": "classes K"}
OURS = ("fastpair", "cuda")
# What rows can hold for each variant: its unit, and how the file of its picture ends.
FIELDS = {
    "milliseconds": ("loss and gradient, milliseconds", "time"),
    "wall_milliseconds": ("loss and gradient by the host's clock, milliseconds", "wall"),
    "graph_milliseconds": ("loss and gradient in a CUDA graph, milliseconds", "graph"),
    "extra_mebibytes": ("extra memory, MiB", "memory"),
    "steps_per_second": ("steps a second", "steps"),
    "loss_share": ("the loss's share of a step", "share"),
    "step_mebibytes": ("memory of a step, MiB", "step-memory"),
}
# Of maxima the gradient takes no product.
FLOOR = {"linear_cross_entropy": 3.0, "linear cross-entropy": 3.0, "hard_triplet": 0.5}


def curves(rows: list[dict], field: str) -> dict[tuple, list[dict]]:
    """Rows that differ in one size only, at least three of them: (name, that size, the others) -> rows in its order."""
    found: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        if any(variant in STYLES for variant in row.get(field, ())):
            for along in row["sizes"]:
                rest = tuple((k, v) for k, v in row["sizes"].items() if k != along)
                found[row["name"], along, rest].append(row)
    lines = {}
    for key, members in found.items():
        by_size = {row["sizes"][key[1]]: row for row in members}  # the last one measured
        if len(by_size) >= 3:
            lines[key] = [by_size[size] for size in sorted(by_size)]
    return lines


def draw(rows: list[dict], field: str, label: str, path: Path) -> bool:
    lines = curves(rows, field)
    if not lines:
        return False
    columns = min(3, len(lines))
    high = -(-len(lines) // columns)
    figure, axes = plt.subplots(high, columns, figsize=(4.6 * columns, 3.6 * high), squeeze=False)
    handles = {}
    for axis, ((name, along, rest), members) in zip(axes.flat, lines.items()):
        sizes = [row["sizes"][along] for row in members]
        for variant in dict.fromkeys(v for row in members for v in row[field] if v in STYLES):
            known = [(size, row[field][variant]) for size, row in zip(sizes, members) if row[field].get(variant, 0) > 0]
            color, marker = STYLES[variant]
            (handles[variant],) = axis.plot(*zip(*known), color=color, marker=marker, markersize=4, linewidth=1.4)
        if field == "milliseconds":
            units = next((units for work, units in FLOOR.items() if work in name), 1.5)
            floor = [units * row[field]["product"] for row in members]
            (handles["floor"],) = axis.plot(sizes, floor, color="black", linestyle="--", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=NAMES[along], ylabel=label)
        axis.set_title(", ".join([name.replace("_", " "), *(f"{k} = {v}" for k, v in rest)]), fontsize=10)
        axis.grid(True, which="major", alpha=0.3)
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    floor = handles.pop("floor", None)
    labels = list(handles)
    if floor:
        handles["floor"] = floor
        labels.append("floor: the matrix products alone")
    across = 2 * columns
    figure.legend(handles.values(), labels, loc="lower center", ncols=across, frameon=False, fontsize=9)
    inches = 0.15 + 0.22 * -(-len(labels) // across)
    figure.tight_layout(rect=(0, inches / (3.6 * high), 1, 1))
    for kind in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=120)
    plt.close(figure)
    return True


def rounded(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[dict], field: str, unit: str) -> list[str]:
    """Each variant's figure, and how many times fastpair's it is; variants of their own make a table of their own."""
    tables: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if field in row:
            tables["" if any(ours in row[field] for ours in OURS) else row["name"]].append(row)
    return [line for members in tables.values() for line in one_table(members, field, unit)]


def one_table(rows: list[dict], field: str, unit: str) -> list[str]:
    variants = list(dict.fromkeys(v for row in rows for v in row[field] if v != "product"))
    heads = [unit, *variants, *(["fastpair in units"] if field == "milliseconds" else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        ours = next((row[field][variant] for variant in OURS if variant in row[field]), None)
        cells = [row["work"].replace("_", " ")]
        for variant in variants:
            value = row[field].get(variant)
            ratio = f" ({value / ours:.2g}×)" if value and ours and value != ours else ""
            cells.append("–" if value is None else rounded(value) + ratio)
        if field == "milliseconds":
            cells.append(f"{ours / row[field]['product']:.2f}" if ours else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def report(result: Path, folder: Path) -> None:
    data = json.loads(result.read_text())
    rows = data["results"]
    facts = ", ".join(f"{k} {v}" for k, v in data["environment"].items())
    text = [f"# {result.stem}", "", facts, ""]
    for field, (label, what) in FIELDS.items():
        if draw(rows, field, label, folder / f"{result.stem}-{what}"):
            text += [f"![{label}]({result.stem}-{what}.svg)", ""]
        text += table(rows, field, label)
    (folder / f"{result.stem}.md").write_text("\n".join(text))
    print(folder / f"{result.stem}.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: where the first result is")
    options = parser.parse_args()
    folder = options.output or options.results[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    for result in options.results:
        report(result, folder)


if __name__ == "__main__":
    main()
