"""What the compilers of GPU code made, as a tool of the CUDA toolkit that Triton carries shows it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


def cuobjdump(*arguments: str | Path) -> str:
    triton = pytest.importorskip("triton")
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def instructions(code: str) -> list[tuple[int, str]]:
    """Of one function: addresses and texts."""
    return [(int(at, 16), text) for at, text in re.findall(r"^\s+/\*([0-9a-f]+)\*/\s+(.*?) *;", code, re.MULTILINE)]


def loops(found: list[tuple[int, str]]) -> dict[int, int]:
    """First and last address of each, from the target of a branch back to the branch."""
    branches = [(at, re.search(r"\bBRA\b.*\b0x([0-9a-f]+)$", text)) for at, text in found]
    return {int(to[1], 16): at for at, to in branches if to and int(to[1], 16) < at}
