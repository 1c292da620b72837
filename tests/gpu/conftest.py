"""Tests of the GPU kernels. On a machine with a GPU they run there. Elsewhere they run on CPU tensors: the Triton
kernels in Triton's interpreter, where TRITON_INTERPRET=1 is set, the CUDA kernels in the emulator of this folder, where
it is not."""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils import cpp_extension

sys.path.insert(0, str(Path(__file__).parents[1]))  # support.py and dense.py

import fastpair.backends
import fastpair.backends.cuda
from fastpair.backends.call import CrossEntropyCall

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
SOURCES = Path(__file__).parents[2] / "csrc"
EMULATOR = Path(__file__).with_name("emulator")


def build_emulator(folder: Path) -> Path:
    """The CUDA operators for CPU tensors, from the kernels' own sources and a runtime that runs them on the host."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler!r} to build the emulator with")
    include = ["-I", EMULATOR, "-I", SOURCES, *(f"-I{path}" for path in cpp_extension.include_paths())]
    # Attributes of device code mean nothing on the host. More optimisation would take longer than it saves.
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wno-attributes", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    # The compiler of device code fuses products with sums, the host's where it is told to.
    flags += ["-DFASTPAIR_EMULATED", "-ffp-contract=fast", *(["-mfma"] if platform.machine() == "x86_64" else [])]

    def compile_one(source: Path) -> Path:
        done = folder / f"{source.parent.name}-{source.stem}.o"
        command = [compiler, *flags, *include, "-x", "c++", "-c", source, "-o", done]
        subprocess.run(list(map(str, command)), check=True)
        return done

    kernels = [*SOURCES.glob("cuda/*.cu"), SOURCES / "cuda" / "operators.cpp"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*kernels, *EMULATOR.glob("*.cpp")]))
    library = folder / "emulated.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    subprocess.run(
        [compiler, "-shared", "-o", str(library), *map(str, objects), *paths, "-ltorch_cpu", "-lc10"], check=True
    )
    return library


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    torch.ops.load_library(build_emulator(tmp_path_factory.mktemp("emulator")))
    # Of the operators of this backend the only one that is Python.
    of_call = fastpair.backends.cuda.linear_cross_entropy
    name = "fastpair::cuda_linear_cross_entropy"
    torch.library.impl(name, "CPU", lambda *arguments: of_call(CrossEntropyCall(*arguments)))


def _once(function: Callable, of: Callable) -> Callable:
    """``function``, called once for all arguments of which ``of`` is the same."""
    results = {}

    def called(*arguments):
        key = of(*arguments)
        if key not in results:
            results[key] = function(*arguments)
        return results[key]

    return called


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter():
    """Triton's interpreter without most of what is not arithmetic, half of its time. Once is enough to replace the
    language by its own for the functions of a module, which it does around every launch, looking through all of it at
    every call of a function; to look up a type in a table that it makes for that; and to make the type of a block. No
    integer is computed a second time in 64 bits, as none is in what the compiler makes. And since a program costs the
    same whatever its size, those over rows have more of them."""
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    from fastpair.backends.triton import rows

    replace_all = interpreter._patch_lang

    def replace_for_good(fn):
        replace_all(fn)
        return SimpleNamespace(restore=lambda: None)

    with_element = tl.block_type.with_element_ty
    builder = interpreter.interpreter_builder
    quick = [
        (interpreter, "_patch_lang", _once(replace_for_good, lambda fn: fn.__module__)),
        (interpreter, "_get_np_dtype", _once(interpreter._get_np_dtype, lambda of: of.scalar.name)),
        (tl.block_type, "with_element_ty", _once(with_element, lambda block, of: (*block.shape, of.name))),
        (tl.block_type, "to_ir", lambda block, builder: block),
        (builder, "options", replace(builder.options, sanitize_overflow=False)),
        (rows, "ROWS", 32),
    ]
    with contextlib.ExitStack() as stack:
        for of, name, by in quick:
            stack.enter_context(mock.patch.object(of, name, by))
        yield


@pytest.fixture(params=["triton", "cuda"])
def backend(request, monkeypatch):
    """A backend that can be asked for tensors on `device`."""
    if request.param == "cuda" and INTERPRETED:
        pytest.skip("Triton's interpreter has no part in these")
    if request.param == "triton" and not (ON_GPU or INTERPRETED):
        pytest.skip("no GPU here; make test runs these on CPU tensors with TRITON_INTERPRET=1")
    if request.param == "cuda" and not ON_GPU:
        request.getfixturevalue("emulator")
        emulated = replace(fastpair.backends._BACKENDS["cuda"], device_types=("cpu",), problem=None)
        monkeypatch.setitem(fastpair.backends._BACKENDS, "cuda", emulated)
    return request.param


@pytest.fixture(scope="session")
def device():
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture(scope="session")
def gpu():
    if not ON_GPU:
        pytest.skip("needs a GPU: make gpu runs it")
    return "cuda"


def pytest_runtest_logreport(report):
    """At once: a run that is stopped gets no summary."""
    if ON_GPU and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}: {report.longreprtext.splitlines()[-1]}", flush=True)
        for line in [line for line in report.longreprtext.splitlines() if line.startswith("E ")][:3]:
            print(line[:300], flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """After an error of the device nothing on it is true: the process ends, with the name of the test."""
    report = yield
    if ON_GPU and report.failed:
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            message = f"{item.nodeid} left the device in error: {error}\n{report.longreprtext}"
            if "PYTEST_XDIST_WORKER" not in os.environ:
                pytest.exit(message, returncode=3)
            with item.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
                print(message, file=sys.stderr, flush=True)
            os._exit(3)  # another worker takes the tests that are left
    return report
