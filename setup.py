"""Builds the extension ``fastpair._C``; everything else about the package is in pyproject.toml.

FASTPAIR_BUILD_EXT=0 leaves the extension out, FASTPAIR_BUILD_EXT=1 makes a missing C++ compiler an error. By default
the extension is left out only where no C++ compiler works, or Python came without its headers: on a machine that can
build, what fails to compile fails to install.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

# The oldest torch release whose stable ABI the extension uses, in the encoding of torch/headeronly/version.h: 2.10.
TORCH_TARGET_VERSION = "0x020a000000000000"

CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fopenmp-simd",
    # Both free the vectoriser without giving up NaN, infinities or the order of sums, as -ffast-math would.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]


def compiler_problem() -> str | None:
    """Say why no extension of Python can be compiled here, None if one can."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <vector>\nint main() { return std::vector<int>().size(); }\n")
        include = "-I" + sysconfig.get_path("include")
        command = [*shlex.split(compiler), include, str(source), "-o", str(Path(folder, "probe"))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, IndexError) as error:
            return f"cannot run the C++ compiler {compiler!r}: {error}"
        except subprocess.CalledProcessError as error:
            return f"the C++ compiler {compiler!r} cannot build an empty extension: {error.stderr.strip()}"
    return None


def wants_extension() -> bool:
    choice = os.environ.get("FASTPAIR_BUILD_EXT", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"FASTPAIR_BUILD_EXT must be 0, 1 or unset, got {choice!r}")
    if choice == "0":
        return False
    problem = compiler_problem()
    if problem and choice == "1":
        raise SystemExit(f"FASTPAIR_BUILD_EXT=1, but {problem}")
    if problem:
        print(f"fastpair is built without its fused CPU kernels: {problem}", file=sys.stderr)
    return problem is None


def native_build() -> dict:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

    extension = Extension(
        "fastpair._C",
        sources=sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp")),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        # pybind11's own headers go before the copy that torch ships.
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include(), *include_paths()],
        library_dirs=library_paths(),
        # Not torch_python, whose ABI changes from release to release.
        libraries=["c10", "torch_cpu", "torch"],
        extra_compile_args=CXX_FLAGS,
        language="c++",
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


# An sdist needs neither torch nor a compiler.
setup(**(native_build() if "sdist" not in sys.argv and wants_extension() else {}))
