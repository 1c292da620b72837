"""The source compiles with the headers of the oldest promised torch; those of the newest built what is under test."""

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


def command_for(source: Path, headers: Path) -> list[str]:
    setup = (ROOT / "setup.py").read_text()
    target = re.search(r'TORCH_TARGET_VERSION = "(\w+)"', setup)[1]
    command = ["c++", "-std=c++20", "-fsyntax-only", "-w", f"-DTORCH_TARGET_VERSION={target}", "-x", "c++"]
    command.append('-DFASTPAIR_CXX_FLAGS=""')
    include = [SOURCES, pybind11.get_include(), sysconfig.get_path("include"), headers]
    if source.parent.name == "cuda":
        # The operators want the runtime, of which the emulator has a stand-in; the rest wants its own headers.
        emulated = source.name == "operators.cpp"
        command.append("-DFASTPAIR_EMULATED" if emulated else '-DFASTPAIR_CUDA_ARCHITECTURES=""')
        runtime = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
        include.insert(0, ROOT / "tests" / "gpu" / "emulator" if emulated else runtime)
    return [*command, *(f"-I{path}" for path in include), str(source)]


def test_the_oldest_torch(headers):
    """Without the kernels' files, which know nothing of torch."""
    sources = [SOURCES / "module.cpp", *SOURCES.glob("cuda/*.cpp")]
    sources += [path for path in SOURCES.glob("cpu/*.cpp") if not path.name.startswith("kernels_")]
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda s: subprocess.run(command_for(s, headers), capture_output=True, text=True), sources)
        failed = {source.name: result.stderr for source, result in zip(sources, done) if result.returncode}
    assert not failed, failed
