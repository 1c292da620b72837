"""The source compiles with the headers of the oldest promised torch; those of the newest built what is under test. That
asks no more of torch than the oldest's stable ABI. The code for other machines compiles too."""

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import pytest
from support import needs_cpu_kernels

from fastpair.backends import cpu_extension, cuda_extension

triton = pytest.importorskip("triton")  # which brings the headers of the CUDA runtime

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"
OLDEST = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1] + ".0"

pytestmark = needs_cpu_kernels  # where there is a compiler


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Kept under build/. They are the same in every wheel of a release, and the smallest is the one for macOS."""
    kept = ROOT / "build" / f"torch-{OLDEST}"
    if not kept.exists():
        folder = tmp_path_factory.mktemp("torch")
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        command += ["--python-version", "3.11", "--platform", "macosx_11_0_arm64", f"torch=={OLDEST}"]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no wheel of torch {OLDEST}: {done.stderr[-300:]}")
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            part = kept.with_suffix(".part")
            wheel.extractall(part, [name for name in wheel.namelist() if name.startswith("torch/include/")])
        (part / "torch" / "include").rename(kept)
        shutil.rmtree(part)
    return kept


def command_for(source: Path, headers: Path, compiler: str = "c++") -> list[str]:
    setup = (ROOT / "setup.py").read_text()
    target = re.search(r'TORCH_TARGET_VERSION = "(\w+)"', setup)[1]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-w", f"-DTORCH_TARGET_VERSION={target}", "-x", "c++"]
    command.append('-DFASTPAIR_CXX_FLAGS=""')
    include = [SOURCES, pybind11.get_include(), sysconfig.get_path("include"), headers]
    if source.parent.name == "cuda":
        # The operators want the runtime, of which the emulator has a stand-in; the rest wants its own headers.
        emulated = source.name == "operators.cpp"
        command.append("-DFASTPAIR_EMULATED" if emulated else '-DFASTPAIR_CUDA_ARCHITECTURES=""')
        runtime = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
        include.insert(0, ROOT / "tests" / "gpu" / "emulator" if emulated else runtime)
    return [*command, *(f"-I{path}" for path in include), str(source)]


def test_the_oldest_torch(headers, tmp_path):
    """Without the kernels' files, which know nothing of torch."""
    # Most of the time goes to torch's headers: they are compiled once.
    once = tmp_path / "torch.h"
    once.write_text("#include <torch/csrc/stable/library.h>\n#include <torch/csrc/stable/ops.h>\n")
    command = [{"c++": "c++-header", "-fsyntax-only": "-w"}.get(a, a) for a in command_for(once, headers)[1:]]
    subprocess.run(["c++", *command, "-o", f"{once}.gch"], check=True)

    def compile_one(source: Path) -> subprocess.CompletedProcess:
        command = [*command_for(source, headers), "-include", str(once)]
        return subprocess.run(command, capture_output=True, text=True)

    sources = [SOURCES / "module.cpp", *SOURCES.glob("cuda/*.cpp"), *SOURCES.glob("cpu/*.cpp")]
    with ThreadPoolExecutor(2) as pool:
        failed = {s.name: of.stderr for s, of in zip(sources, pool.map(compile_one, sources)) if of.returncode}
    assert not failed, failed


# ---- the symbols that the extension asks torch for


# What each declares is a C function; all else in torch's headers is compiled into the extension.
SHIMS = ("torch/csrc/stable/c/shim.h", "torch/csrc/inductor/aoti_torch/c/shim.h")
# Not torch's, though they may lie in torch's library, and weak: where they are missing, the dispatcher's product takes
# over, and nothing sets MKL's threads.
BLAS = {"sgemm_", "dgemm_", "MKL_Set_Num_Threads_Local"}
# Of the compiler's start-up files, weak too.
START_UP = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


def imported(library: str) -> set[str]:
    """The symbols that ``library`` leaves to others than Python and the system, whose symbols have versions."""
    done = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    return {name for name in names if "@" not in name and not re.match("_?Py", name)}


def declared(headers: Path) -> set[str]:
    text = "".join((headers / shim).read_text() for shim in SHIMS)
    return set(re.findall(r"\b(?:aoti_)?torch_\w+(?=\()", text))


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="needs nm and ELF")
@pytest.mark.parametrize("extension", [cpu_extension, cuda_extension], ids=["cpu", "cuda"])
def test_symbols_are_those_of_the_stable_abi(headers, extension):
    """The wheel serves every torch from the oldest on as long as this holds."""
    if extension is None:
        pytest.skip("not built")
    stable, of_torch = declared(headers), imported(extension.__file__) - START_UP - BLAS
    assert {"torch_call_dispatcher", "torch_library_impl"} <= of_torch & stable
    assert not of_torch - stable, sorted(of_torch - stable)


# ---- other compilers and machines

# The files that other systems and processors take differently. None of them includes a header of torch.
OF_A_MACHINE = ("cpu/memory.cpp", "cpu/simd/added_loss.cpp", "cpu/simd/level.cpp", "cpu/simd/baseline.cpp")


@pytest.mark.parametrize(
    "compiler", ["aarch64-linux-gnu-g++", "x86_64-w64-mingw32-g++-posix", "clang++"], ids=["arm64", "windows", "clang"]
)
def test_other_compilers(headers, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    for path in OF_A_MACHINE:
        command = command_for(SOURCES / path, headers, compiler)
        done = subprocess.run([*command, "-fopenmp-simd", "-Wall", "-Werror"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


ELEMENTARY = """
#include <algorithm>
#include <cmath>
#include <cstdio>
#include "elementary.h"

int main() {
  double exp_error = 0, log_error = 0, tanh_error = 0;
  for (float x = -87; x < 88; x += 0.0137f) {
    exp_error = std::max(exp_error, std::abs(fastpair::exponential(x) / std::exp(double(x)) - 1));
    const float y = std::exp(x);
    const double off = std::abs(fastpair::logarithm(y) - std::log(double(y)));
    log_error = std::max(log_error, off / std::max(1.0, std::abs(double(x))));
    tanh_error = std::max(tanh_error, std::abs(fastpair::tanh(x / 20) - std::tanh(double(x / 20))));
  }
  std::printf("%g %g %g", exp_error, log_error, tanh_error);
}
"""


@pytest.mark.parametrize("compiler, emulator", [("c++", None), ("aarch64-linux-gnu-g++", "qemu-aarch64")])
def test_elementary_functions_of_a_machine(tmp_path, compiler, emulator):
    """Where products may be fused with sums, as on arm64, they are as accurate as here."""
    if shutil.which(compiler) is None or (emulator and shutil.which(emulator) is None):
        pytest.skip(f"no {compiler} or {emulator}")
    (tmp_path / "main.cpp").write_text(ELEMENTARY)
    flags = [
        "-std=c++20",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-static",
        f"-I{SOURCES}",
    ]
    subprocess.run([compiler, *flags, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")], check=True)
    command = [*([emulator] if emulator else []), str(tmp_path / "main")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    errors = [float(error) for error in done.stdout.split()]
    assert len(errors) == 3 and max(errors) < 2e-7, errors
