"""Functions made from printed source, which tracebacks, ``inspect`` and Triton's compiler can read."""

from __future__ import annotations

import linecache
import zlib
from collections.abc import Callable


def function(name: str, source: str, namespace: dict) -> Callable:
    """The function that ``source`` defines, with ``namespace`` as its globals."""
    file = f"<fastpair formula {name} {zlib.crc32(source.encode()):08x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    local: dict = {}
    exec(compile(source, file, "exec"), namespace, local)
    made = local[name]
    made.__module__ = namespace["__name__"]
    return made
