"""Prints the tables of the losses in README and docs, between two lines that mark their place."""

from __future__ import annotations

from collections.abc import Iterable

from . import to_python
from .pair_losses import PairDefinition

BEGIN = "<!-- made by `python -m fastpair.formulas` from fastpair/formulas/pair_losses.py -->\n"
END = "<!-- end -->\n"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    # A bar would end the cell.
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def losses(definitions: Iterable[PairDefinition]) -> str:
    return table(
        ["`fastpair.losses`", "the loss of an anchor", "`--loss`"],
        [(f"`{of.module}`", of.text, f"`{of.option}`") for of in definitions],
    )


def details(definitions: Iterable[PairDefinition]) -> str:
    return table(
        ["loss and its settings", '`reduction="mean"`', "source"],
        [(f"`{of.module}({', '.join(settings(of))})`", of.mean, of.source) for of in definitions],
    )


def settings(of: PairDefinition) -> list[str]:
    """Names and defaults, except the reduction, which has the next column."""
    return [f"{x.name}={to_python.shown(x.default)}" for x in of.arguments if x.name != "reduction"]


def inserted(text: str, made: str) -> str:
    """The text, with ``made`` in place of what is between the marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{made}\n{END}{rest.split(END, 1)[1]}"
