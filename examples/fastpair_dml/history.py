"""What was measured while a network was trained."""

import csv
import io
from dataclasses import asdict, dataclass, field

# What decides which of the evaluations is the best.
SELECTION = "cosine/recall@1"
# What a result calls the evaluation that is reported, by the setting.
REPORTED = {"last": "after", "best": "best"}


@dataclass
class History:
    """What was measured in one training, in order of the steps.

    Attributes:
        losses: of every step.
        epochs: for every epoch its "step", "epoch", mean "loss", last "lr", "images_per_second", and "memory_mib", the
            most so far: on a GPU of this training, on a CPU of the process, with the trainings before this one.
        evaluations: for every look at the unseen classes its "step" and the metrics, fractions of 1.
        bounds: the "step" and ``fastpair.bounds.terms``.
        neighbours: for some queries the indices of the nearest images, at the evaluations in ``REPORTED``.
        evaluation_seconds: what the evaluations took.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    bounds: list[dict[str, float]] = field(default_factory=list)
    neighbours: dict[str, list[list[int]]] = field(default_factory=dict)
    evaluation_seconds: float = 0.0

    def state_dict(self) -> dict:
        return asdict(self)

    @property
    def best(self) -> dict[str, float]:
        """The first of the best evaluations."""
        return max(self.evaluations, key=lambda evaluation: evaluation[SELECTION])

    def add_evaluation(self, evaluation: dict[str, float], neighbours: list[list[int]]) -> None:
        self.evaluations.append(evaluation)
        self.neighbours["after"] = neighbours
        if self.best is evaluation:
            self.neighbours["best"] = neighbours

    def result(self, training_seconds: float, failed: str | None = None) -> dict:
        """What ``metrics.json`` says about the training; metrics are fractions of 1.

        Args:
            training_seconds: what the steps took.
            failed: why it ended before its last step, if it did.
        """
        result: dict = {} if failed is None else {"failed": failed}
        if self.evaluations:
            result |= {
                "before": _metrics(self.evaluations[0]),
                "after": _metrics(self.evaluations[-1]),
                "best": self.best,
            }
        return result | {
            "steps": len(self.losses),
            "training_seconds": round(training_seconds, 2),
            "evaluation_seconds": round(self.evaluation_seconds, 2),
            "neighbours": self.neighbours,
            "history": {
                "loss": self.losses,
                "epochs": self.epochs,
                "evaluations": self.evaluations,
                "bounds": self.bounds,
            },
        }


def _metrics(evaluation: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in evaluation.items() if name != "step"}


def succeeded(results: dict[str, dict[int, dict]]) -> dict[str, dict[int, dict]]:
    """The results of trainings that reached their end, of losses that have one."""
    kept = {
        loss: {seed: result for seed, result in of_seeds.items() if "failed" not in result}
        for loss, of_seeds in results.items()
    }
    return {loss: of_seeds for loss, of_seeds in kept.items() if of_seeds}


def as_csv(results: dict[str, dict[int, dict]]) -> str:
    """The histories of all trainings: a row for each step at the end of an epoch or where something was measured.

    Empty cells were not measured there. Metrics are fractions of 1, bounds have names that start with ``bounds/``, and
    ``memory_mib`` is as :class:`History` has it.
    """
    rows = []
    for loss, of_seeds in results.items():
        for seed, result in of_seeds.items():
            at: dict[int, dict] = {}
            history = result["history"]
            bounds = [_named("bounds/", point) for point in history["bounds"]]
            for points in (history["epochs"], history["evaluations"], bounds):
                for point in points:
                    at.setdefault(point["step"], {"trained_with": loss, "seed": seed}).update(point)
            rows += [at[step] for step in sorted(at)]
    columns = ["trained_with", "seed", "step"]
    columns += [name for row in rows for name in row if name not in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(columns)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _named(prefix: str, point: dict[str, float]) -> dict[str, float]:
    return {name if name == "step" else prefix + name: value for name, value in point.items()}
