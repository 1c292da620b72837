"""Pair losses that users add: the table of their formulas, and the compiler of their CPU kernels.

The kernels are compiled at the first call on CPU tensors, for the precision and the kind of distance of that call,
against the headers that the package brings. They are kept in a folder of the user's cache: FASTPAIR_CACHE, or fastpair
in XDG_CACHE_HOME or ~/.cache. The name of a file there is made of all that it depends on: formula, headers, flags,
compiler. CXX names another compiler than c++, CXXFLAGS further flags.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import subprocess
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path

import torch

import fastpair
from fastpair.backends import _constant_when_traced, cpu_extension, dense
from fastpair.formulas import to_cpp
from fastpair.formulas.formula import PairFormula
from fastpair.formulas.pair_losses import ADDED, FORMULAS
from fastpair.formulas.variants import variant
from fastpair.metrics import METRICS
from fastpair.numerics import accumulate_dtype

SIMD_FLAGS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
}
# As C++ names them.
SCALARS = {torch.float32: "float", torch.float64: "double"}
KINDS = {"dot": "Dot", "sqeuclidean": "SqEuclidean", "euclidean": "Euclidean"}
_lock = threading.Lock()
_compiled: dict[tuple[str, str, str], bool] = {}


def add(formula: PairFormula) -> None:
    """Makes a formula known by its name to every backend."""
    if formula.name not in ADDED:
        dense.PAIR_LOSSES[formula.name] = dense.evaluated(formula)
        ADDED[formula.name] = formula


# Of what a function changes while it is traced, the trace itself knows nothing: these are run, not traced.


@_constant_when_traced
def is_added(name: str) -> bool:
    return name in ADDED


@_constant_when_traced
def add_variant(name: str, ref_bias: bool, ignore_above: bool, learning: bool) -> str:
    """Makes a variant of a formula known, and returns its name. ``learning``: whether its scale learns."""
    return _add_variant(name, ref_bias, ignore_above, learning)


@cache
def _add_variant(name: str, ref_bias: bool, ignore_above: bool, learning: bool) -> str:
    formula = FORMULAS.get(name) or ADDED.get(name)
    if formula is None:
        raise ValueError(f"{'ref_bias' if ref_bias else 'ignore_above'} must be None for a loss over triplets")
    made = variant(formula.learning() if learning else formula, ref_bias, ignore_above)
    add(made)
    return made.name


@_constant_when_traced
def scalars(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The numbers of anchors and of references that an added formula reads."""
    return _scalars(name)


@cache
def _scalars(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(ADDED[name].scalars("anchor")), tuple(ADDED[name].scalars("ref"))


@_constant_when_traced
def compiled(name: str, dtype: torch.dtype, distance: str) -> bool:
    """Whether an added loss has CPU kernels for embeddings of this dtype, which are compiled at the first call."""
    kernels = name, SCALARS[accumulate_dtype(dtype)], KINDS[METRICS[distance].kind]
    with _lock:
        if kernels not in _compiled:
            _compiled[kernels] = _compile(ADDED[name], *kernels[1:])
    return _compiled[kernels]


def _compile(formula: PairFormula, scalar: str, metric: str) -> bool:
    try:
        cpu_extension.add_loss(str(library(formula, scalar, metric)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        problem = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"fastpair computes the loss {formula.name} in dense PyTorch, by blocks of rows and slowly, as its CPU "
            f"kernels cannot be compiled with {shlex.join(compiler())}: {problem.strip()}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def headers() -> Path:
    """The C++ headers: in the package as it is installed, beside it in a checkout."""
    package = Path(fastpair.__file__).parent
    return package / "csrc" if (package / "csrc").is_dir() else package.parent / "csrc"


def library(formula: PairFormula, scalar: str, metric: str) -> Path:
    """The compiled library of a formula, from the cache where it is there."""
    root, header = headers(), to_cpp.header([formula])
    info = cpu_extension.build_info()
    flags = [*shlex.split(info["cxx_flags"]), *SIMD_FLAGS[info["simd_level"]], "-shared", "-fPIC"]
    flags += [f"-DFASTPAIR_SCALAR={scalar}", f"-DFASTPAIR_METRIC={metric}"]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    made_of = [header, *flags, *compiler(), compiler_version(*compiler()), headers_text(root)]
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    folder = cache_folder()
    path = folder / f"{key}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source, made = Path(work, "formula.h"), Path(work, "loss.so")
        source.write_text(header)
        command = [*compiler(), *flags, f'-DFASTPAIR_FORMULAS="{source}"', f"-I{root}"]
        command += ["-x", "c++", str(root / "cpu" / "simd" / "added.inc"), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(made, path)  # at once: another process finds all of it or nothing
    return path


@cache
def compiler_version(*command: str) -> str:
    return subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout


@cache
def headers_text(root: Path) -> str:
    """The text of the headers that an added loss is compiled against: what is loaded has to have the same structs."""
    folders = (root, root / "cpu" / "simd", root / "pair_losses")
    return "".join(path.read_text() for folder in folders for path in sorted(folder.glob("*.[hi]*")))


def cache_folder() -> Path:
    """A folder that only this user may write to, since what lies in it is run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("FASTPAIR_CACHE") or Path(base, "fastpair"))
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
    return private_folder()


@cache
def private_folder() -> Path:
    """Where there is no such folder: one for this process alone."""
    folder = tempfile.TemporaryDirectory(prefix="fastpair-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory] = []
