"""Builds the extensions ``fastpair._C``, for the CPU, and ``fastpair._C_cuda``; everything else about the package is in
pyproject.toml.

FASTPAIR_BUILD_EXT=0 leaves both out, FASTPAIR_BUILD_EXT=1 makes a missing C++ compiler an error. By default they are
left out only where no C++ compiler works, or Python came without its headers: on a machine that can build, what fails
to compile fails to install. FASTPAIR_BUILD_CUDA=0 leaves the CUDA extension out, FASTPAIR_BUILD_CUDA=1 makes it an
error where it cannot be built; by default it is built where torch has CUDA and nvcc is found. No GPU is needed.
TORCH_CUDA_ARCH_LIST chooses the architectures, NVCC the compiler.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

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
    # Products are fused with sums where the code says so, and nowhere else: see product() in csrc/elementary.h.
    "-ffp-contract=off",
    "-fvisibility=hidden",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
]

# clang-cl, the compiler on Windows (CXX=clang-cl), takes them behind a prefix.
CXX_ARGUMENTS = [f"/clang:{flag}" for flag in CXX_FLAGS] if sys.platform == "win32" else CXX_FLAGS

# What a loss that is compiled while the package is in use is made of.
ADDED_LOSS = [
    path
    for pattern in ("csrc/*.h", "csrc/pair_losses/*.h", "csrc/cpu/simd/*.h", "csrc/cpu/simd/*.inc")
    for path in sorted(glob(pattern))
]

NVCC_FLAGS = ["-std=c++20", "-O3", "--threads=2"]

# Before torch's libraries, which export newer parts of the C++ library as they happen to hold them: an extension that
# took them from there would ask for more of torch than its stable ABI.
CXX_LIBRARY = ["stdc++"] if sys.platform == "linux" else []


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


def wants(variable: str, problem_of: Callable[[], str | None], part: str) -> bool:
    """Whether to build a part: 0 leaves it out, 1 makes a problem an error; else it is built where it can be."""
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0, 1 or unset, got {choice!r}")
    if choice == "0":
        return False
    problem = problem_of()
    if problem and choice == "1":
        raise SystemExit(f"{variable}=1, but {problem}")
    if problem:
        print(f"fastpair is built without {part}: {problem}", file=sys.stderr)
    return problem is None


def nvcc_command() -> list[str]:
    return shlex.split(os.environ.get("NVCC", "nvcc"))


def cuda_problem() -> str | None:
    """Say why no CUDA extension can be compiled here, None if one can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        home = cuda_home()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"cannot run {shlex.join(nvcc_command())}: {error}"
    if not (home / "include" / "cuda_runtime.h").exists():
        return f"there is no include/cuda_runtime.h in {home}, which nvcc takes for its toolkit: set NVCC"
    # torch.utils.cpp_extension refuses a toolkit of another major version.
    if (release := nvcc_release()).split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release}, but torch {torch.__version__} of CUDA {torch.version.cuda}: set NVCC"
    return None


def nvcc_release() -> str:
    shown = subprocess.run([*nvcc_command(), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", shown)
    return found[1] if found else "an unknown version"


def cuda_home() -> Path:
    """The toolkit by what nvcc says: where it lies on the PATH may be a script that calls it."""
    shown = subprocess.run([*nvcc_command(), "--dryrun", "x.cu"], check=True, capture_output=True, text=True).stderr
    tops = [line.partition("TOP=")[2] for line in shown.splitlines() if "TOP=" in line]
    if not tops:
        raise OSError("its --dryrun names no TOP, the folder of the toolkit")
    return Path(tops[0]).resolve()


def architectures() -> str:
    """In the form of TORCH_CUDA_ARCH_LIST: the chips of data centres that nvcc knows, and code for those to come."""
    known = subprocess.run([*nvcc_command(), "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    return ";".join(a for a in ("8.0", "9.0", "10.0") if f"compute_{a.replace('.', '')}" in known.split()) + "+PTX"


def cuda_extension() -> Extension:
    import pybind11

    home = cuda_home()
    os.environ["CUDA_HOME"] = str(home)  # where torch.utils.cpp_extension, not yet imported, would guess
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures())
    from torch.utils.cpp_extension import include_paths, library_paths

    return Extension(
        "fastpair._C_cuda",
        sources=sorted(glob("csrc/cuda/*.cpp") + glob("csrc/cuda/*.cu")),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include(), *include_paths(), str(home / "include")],
        library_dirs=[*library_paths(), str(home / "lib64"), str(home / "lib")],
        # The runtime is linked in, so that the extension works with any that torch brought.
        libraries=[*CXX_LIBRARY, "c10", "torch_cpu", "torch_cuda", "torch", "cudart_static", "dl", "rt", "pthread"],
        define_macros=[("FASTPAIR_CUDA_ARCHITECTURES", f'"{os.environ["TORCH_CUDA_ARCH_LIST"]}"')],
        extra_compile_args={"cxx": CXX_ARGUMENTS, "nvcc": NVCC_FLAGS},
        language="c++",
    )


class BuildPackage(build_py):
    """Puts ``ADDED_LOSS`` into the package; where it is used in place, they lie beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, path in zip(ADDED_LOSS, self.added()):
                self.mkpath(os.path.dirname(path))
                self.copy_file(source, path)

    def added(self) -> list[str]:
        return [os.path.join(self.build_lib, "fastpair", source) for source in ADDED_LOSS]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self.added())]


def native_build() -> dict:
    extensions = []
    # The first: it says where the toolkit is to be found before torch looks for it.
    if wants("FASTPAIR_BUILD_CUDA", cuda_problem, "its CUDA kernels for small batches"):
        extensions.append(cuda_extension())
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

    extension = Extension(
        "fastpair._C",
        sources=sorted(glob("csrc/*.cpp") + glob("csrc/cpu/**/*.cpp", recursive=True)),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        # pybind11's own headers go before the copy that torch ships.
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include(), *include_paths()],
        library_dirs=library_paths(),
        # Not torch_python, whose ABI changes from release to release.
        libraries=[*CXX_LIBRARY, "c10", "torch_cpu", "torch"],
        # A loss that is compiled while the package is in use takes the same flags.
        define_macros=[("FASTPAIR_CXX_FLAGS", f'"{shlex.join(CXX_FLAGS)}"')],
        extra_compile_args={"cxx": CXX_ARGUMENTS},
        language="c++",
    )
    return {
        "ext_modules": [extension, *extensions],
        "cmdclass": {"build_ext": BuildExtension, "build_py": BuildPackage},
    }


# An sdist needs neither torch nor a compiler.
wanted = "sdist" not in sys.argv and wants("FASTPAIR_BUILD_EXT", compiler_problem, "its fused CPU kernels")
setup(**(native_build() if wanted else {}))
