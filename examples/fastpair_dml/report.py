"""What a run says in words: its table."""

import statistics
from collections.abc import Iterable, Sequence

from .history import REPORTED, SELECTION, succeeded

TIMED = ("training", "evaluation")
TIMES = (
    "Training time is that of the steps, with the reading of their images; evaluation time that of the looks at the "
    "unseen classes. Both are means over the seeds."
)


def table(results: dict[str, dict[int, dict]], recall_at: Sequence[int], report: str = "last") -> str:
    """Retrieval on unseen classes in percent, in Markdown: a row a loss, mean and standard deviation over the seeds.

    Args:
        results: for each loss and seed, what ``History.result`` returned; of those that failed the reason is told.
        recall_at: the depths of Recall@k.
        report: "last" or "best", the evaluation whose metrics the columns have; of the other there is Recall@1.
    """
    columns = [(f"Recall@{k}", f"cosine/recall@{k}") for k in recall_at]
    columns += [("MAP@R", "cosine/map@r"), (f"Recall@{recall_at[0]}, L2", f"l2/recall@{recall_at[0]}")]
    shown, other = REPORTED[report], REPORTED["best" if report == "last" else "last"]
    beside = "best, at step" if report == "last" else "last"
    times = [f"{what}, s" for what in TIMED]
    rows = [["loss", "Recall@1 before", *(title for title, _ in columns), f"Recall@1 {beside}", *times]]
    finished = succeeded(results)
    for loss, of_seeds in results.items():
        runs = list(finished.get(loss, {}).values())
        name = loss if len(runs) == len(of_seeds) else f"{loss} ({len(runs)} of {len(of_seeds)} seeds)"
        if not runs:
            rows.append([f"{loss} (failed)", *("-" for _ in rows[0][1:])])
            continue
        compared = over_seeds(run[other][SELECTION] for run in runs)
        if report == "last":
            compared += ", " + "/".join(str(run["best"]["step"]) for run in runs)
        rows.append(
            [
                name,
                over_seeds(run["before"][SELECTION] for run in runs),
                *(over_seeds(run[shown][metric] for run in runs) for _, metric in columns),
                compared,
                *(in_seconds(statistics.mean(run[f"{what}_seconds"] for run in runs)) for what in TIMED),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    failures = [
        f"{loss}-{seed} failed: {result['failed']}"
        for loss, of_seeds in results.items()
        for seed, result in of_seeds.items()
        if "failed" in result
    ]
    return "\n\n".join(["\n".join(lines), TIMES, *failures])


def in_seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 999.5 else f"{seconds:.0f}"


def over_seeds(fractions: Iterable[float]) -> str:
    percent = [100 * value for value in fractions]
    mean = f"{statistics.mean(percent):.1f}"
    return mean if len(percent) == 1 else f"{mean} ± {statistics.stdev(percent):.1f}"
