"""What the readers of published benchmarks share: finding the folder, reading lists, and checking that all is there."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .images import FileImages


@dataclass(frozen=True)
class Counts:
    """How many images and classes a part has."""

    images: int
    classes: int

    def __str__(self) -> str:
        return f"{self.images} images of {self.classes} classes"


@dataclass(frozen=True)
class Benchmark:
    """A published data set, read from the folder that its archives unpack to.

    Attributes:
        name: what it is called.
        page: where it comes from.
        tree: how its folder looks.
        counts: how large the parts are, by their names; every result on the benchmark is on exactly these.
    """

    name: str
    page: str
    tree: str
    counts: dict[str, Counts]

    def error(self, problem: str) -> UserError:
        """The error to raise for ``problem``: with it comes what a person needs to put the folder right."""
        return UserError(f"{self.name}: {problem}. It is published at {self.page} and unpacks to\n{self.tree}")

    def find(self, data_dir: Path | None, *markers: str) -> Path:
        """The folder of the data set: ``data_dir``, or the one sub-folder of it, that holds one of ``markers``.

        Raises:
            UserError: there is none, or several sub-folders do.
        """
        if data_dir is None:
            raise self.error("it needs --data-dir, its folder or the one around it")

        def holds(folder: Path) -> bool:
            return any(os.path.exists(folder / marker) for marker in markers)

        if holds(data_dir):
            return data_dir
        try:
            found = sorted(folder for folder in data_dir.iterdir() if holds(folder))
        except OSError as error:
            raise self.error(f"cannot read the data folder {data_dir}: {error.strerror}") from error
        wanted = " or ".join(markers)
        if not found:
            raise self.error(f"there is no {wanted} in --data-dir {data_dir} or a folder in it")
        if len(found) > 1:
            folders = ", ".join(folder.name for folder in found)
            raise self.error(f"several folders in --data-dir {data_dir} hold {wanted}: {folders}; name one of them")
        return found[0]

    def table(self, file: Path, columns: dict[str, Callable], header: int = 0) -> list[tuple]:
        """The rows of a text file of columns between spaces; empty lines are none.

        Args:
            file: the file.
            columns: for each column its name and what makes a value of its text, or raises ValueError.
            header: how many lines there are before the first row.

        Raises:
            UserError: the file cannot be read, or a line has other columns.
        """
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise self.error(f"cannot read {file}: {error.strerror}") from error
        rows = []
        for number, line in enumerate(lines[header:], start=header + 1):
            if not line.strip():
                continue
            try:
                rows.append(tuple(parse(text) for parse, text in zip(columns.values(), line.split(), strict=True)))
            except ValueError as error:
                wanted = " ".join(columns)
                raise self.error(f"line {number} of {file} is {line!r}, but must be {wanted!r}") from error
        return rows

    def part(self, name: str, root: Path, rows: list[tuple], class_names: dict) -> FileImages:
        """One part of the data set, complete.

        Args:
            name: which.
            root: the folder that the paths start from.
            rows: path and key of the class for each image.
            class_names: a name for every key.

        Raises:
            UserError: there are more or fewer images or classes than there should be, a class has no name, or a file is
                missing.
        """
        paths, classes = [path for path, _ in rows], [key for _, key in rows]
        found, expected = Counts(len(paths), len(set(classes))), self.counts[name]
        if found != expected:
            raise self.error(f"the {name} part of {root} has {found}, but must have {expected}")
        if unnamed := sorted(set(classes) - class_names.keys()):
            raise self.error(f"{len(unnamed)} classes of {root} have no name, the first of them {unnamed[0]}")
        if missing := _missing(root, paths):
            raise self.error(
                f"{len(missing)} of the {len(paths)} images of the {name} part are missing, the first of them "
                f"{root / missing[0]}"
            )
        return FileImages.of_classes(root, paths, classes, class_names)

    def split(self, root: Path, rows: list[tuple], class_names: dict) -> tuple[FileImages, FileImages]:
        """The parts ``train`` and ``query`` where the classes are numbered from 1 and the first ones train.

        Arguments and errors are those of :meth:`part`.
        """
        last = self.counts["train"].classes
        train = [row for row in rows if row[1] <= last]
        query = [row for row in rows if row[1] > last]
        return self.part("train", root, train, class_names), self.part("query", root, query, class_names)


def _missing(root: Path, paths: list[str]) -> list[str]:
    # One listing a folder: to ask for 100,000 files one by one takes long on a disk that is far away.
    listings: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, _, file = path.rpartition("/")
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(root / folder))
            except OSError:
                listings[folder] = set()
        if file not in listings[folder]:
            missing.append(path)
    return missing
