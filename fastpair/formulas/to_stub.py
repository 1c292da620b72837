"""Prints the types of what is made from the definitions, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Iterable

from .pair_losses import Choice, Definition

HEADER = """\
# The types of pair.py. Made by `python -m fastpair.formulas` from fastpair/formulas/pair_losses.py: not to be edited.
from torch import Tensor

from fastpair.losses.base import PairLoss

"""


def settings(of: Definition) -> list[str]:
    """In the order in which modules take them."""
    choice = [f"{of.formula.name}: int = {of.formula.default}"] if isinstance(of.formula, Choice) else []
    numbers = [f"{x.name}: float = {x.default}" for x in of.settings]
    return [*numbers, f'distance: str = "{of.distance}"', *choice, 'reduction: str = "mean"']


def declarations(of: Definition) -> str:
    lines = [
        f"def {of.name}_loss(",
        "    embeddings: Tensor,",
        "    labels: Tensor | None,",
        "    ref_emb: Tensor | None = None,",
        "    ref_labels: Tensor | None = None,",
        "    *,",
        *(f"    {x}," for x in settings(of)),
        "    indices_tuple: tuple[Tensor, ...] | None = None,",
        "    exclude_self: bool | Tensor | None = None,",
        "    backend: str | None = None,",
        ") -> Tensor: ...",
        "",
        f"class {of.module}(PairLoss):",
        f'    """{of.title}.',
        "",
        f"    {of.text}",
        '    """',
        "",
        "    def __init__(",
        "        self,",
        *(f"        {x}," for x in settings(of)),
        "    ) -> None: ...",
        *(f"    {x.name}: float" for x in of.settings),
    ]
    return "\n".join(lines) + "\n"


def stub(definitions: Iterable[Definition]) -> str:
    definitions = list(definitions)
    modules, functions = (sorted(names) for names in zip(*((of.module, f"{of.name}_loss") for of in definitions)))
    names = [f'    "{name}",' for name in (*modules, *functions)]
    tables = ["FUNCTIONS: dict[str, object]", "MODULES: dict[str, type[PairLoss]]"]
    listed = "\n".join([*tables, "", "__all__ = [", *names, "]"])
    return HEADER + listed + "\n\n" + "\n".join(map(declarations, definitions))
