"""Docstrings as mkdocs shows them: references of Sphinx become links, its tables text of fixed width."""

from __future__ import annotations

import re

import griffe


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = converted(obj.docstring.value)


def converted(text: str) -> str:
    text = re.sub(r":(?:func|class|mod|meth):`~?([\w.]+)`", r"`\1`", text)
    lines, table = [], False
    for line in text.splitlines():
        rule = re.fullmatch(r"\s*=+( =+)+\s*", line) is not None
        if rule and not table:
            indent = re.match(r"\s*", line)[0]
            lines += ["", f"{indent}```text"]
            table = True
        elif table and not line.strip():
            lines += [f"{indent}```"]
            table = False
        if not rule:
            lines.append(line)
    if table:
        lines.append(f"{indent}```")
    return "\n".join(lines)
