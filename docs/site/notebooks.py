"""Notebooks: their cells run one after the other, and pages made of the cells and what they printed and drew."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch


def cells(path: Path) -> list[tuple[str, str]]:
    return [
        (cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]


def run(code: str, names: dict) -> str:
    """Execute a cell, and return what it printed and the value of its last expression, as Jupyter shows them."""
    body = ast.parse(code).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
        value = eval(compile(last, "<cell>", "eval"), names) if last else None
        if value is not None:
            print(repr(value))
    return printed.getvalue()


def pages(folder: Path) -> dict[str, str]:
    """The pages and pictures, by their paths in the site."""
    made = {}
    for path in sorted(folder.glob("*.ipynb")):
        torch.manual_seed(0)
        names, parts = {}, []
        for kind, source in cells(path):
            if kind == "markdown":
                parts.append(source)
                continue
            printed = run(source, names)
            parts.append(f"```python\n{source}\n```")
            if printed:
                parts.append(f"```text\n{printed.rstrip()}\n```")
            for number in plt.get_fignums():
                name = f"{path.stem}-{len(made)}.svg"
                with io.StringIO() as text:
                    plt.figure(number).savefig(text, format="svg")
                    made[f"notebooks/{name}"] = text.getvalue()
                plt.close(number)
                parts.append(f"![What the cell draws]({name})")
        made[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made
