"""What is built, what is installed, and how a backend is chosen."""

import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import torch

import fastpair
import fastpair.functional as FP
from fastpair.backends import available_backends, choose_backend

ROOT = Path(__file__).resolve().parents[1]

needs_extension = pytest.mark.skipif(
    available_backends()["cpu"] is not None, reason=f"the cpu backend is {available_backends()['cpu']}"
)


# ---- configuration


def test_import_is_quick_and_brings_no_compiler(forks, tmp_path):
    code = """
import sys, time, torch
before, start = set(sys.modules), time.perf_counter()
import fastpair
took, new = time.perf_counter() - start, set(sys.modules) - before
assert not any(name.startswith(("torch._dynamo", "torch._inductor", "sympy", "triton")) for name in new), new
print(took)
"""
    # 0.06 s on a quiet machine, where others are busy at the third try; not the seconds that a compiler takes.
    assert any(float(forks.run(code, folder=tmp_path)) < 0.3 for _ in range(3))


def test_types_of_the_package_are_for_users(tmp_path, monkeypatch):
    """A user's strict type checker sees the package's types."""
    mypy = pytest.importorskip("mypy.api")
    script = tmp_path / "user.py"
    script.write_text(
        """
import torch
import fastpair
import fastpair.functional as FP

def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = fastpair.losses.SupConLoss(temperature=0.1)
    value: torch.Tensor = FP.contrastive_loss(x, labels, distance="cosine", pos_margin=1.0)
    recall: dict[int, float] = fastpair.retrieval.recall_at_k(x, labels, k=(1, 2))
    with fastpair.use_backend("reference"):
        value = value + FP.supcon_loss(x, labels, temperature=0.5) * recall[1]
    total: torch.Tensor = loss(x, labels)
    return total + value
"""
    )
    (tmp_path / "wrong.py").write_text("import fastpair.functional as FP\nFP.supcon_loss(1, 2, temperature='hot')\n")
    # To read all of PyTorch and of Triton takes mypy twenty seconds.
    anything = "from typing import Any\ndef __getattr__(name: str) -> Any: ...\n"
    called = "    def __call__(self, *inputs: Any, **named: Any) -> Any: ...\n"
    arithmetic = "".join(f"    def __{name}__(self, other: Any) -> Tensor: ...\n" for name in ("add", "mul"))
    classes = f"class Tensor:\n{arithmetic}class Generator: ...\nclass dtype: ...\nclass device: ...\n"
    module = f"class Module:\n{called}    def __getattr__(self, name: str) -> Any: ...\n"
    for name, stub in {
        "torch": anything + classes,
        "torch.nn": anything + module,
        **dict.fromkeys(("torch.nn.functional", "torch.distributed", "torch.func", "torch.utils"), anything),
        **dict.fromkeys(("torch.utils.checkpoint", "triton", "triton.language", "triton.runtime"), anything),
    }.items():
        folder = tmp_path.joinpath(*name.split("."))
        folder.mkdir()
        (folder / "__init__.pyi").write_text(stub)
    monkeypatch.setenv("MYPYPATH", str(tmp_path))
    options = ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache")]
    options += ["--follow-imports", "silent", "--python-executable", sys.executable]
    shown, problem, status = mypy.run([*options, str(script)])
    assert status == 0, shown + problem
    shown, problem, status = mypy.run([*options, str(tmp_path / "wrong.py")])
    assert shown.count("[arg-type]") == 3, shown + problem


def test_python_m_fastpair_is_show_config(forks, tmp_path, capsys):
    printed = forks.run("import runpy; runpy.run_module('fastpair', run_name='__main__')", folder=tmp_path)
    fastpair.show_config()
    shown = capsys.readouterr().out
    assert printed.splitlines()[0] == shown.splitlines()[0] == f"fastpair {fastpair.__version__}"
    for text in (printed, shown):
        assert torch.__version__ in text
        for name, problem in available_backends().items():
            assert f"{name:<10} {problem or 'available'}" in text
        assert "cpu tensors" in text
        assert "cuda tensors" in text


def test_show_config_tells_of_use_backend(capsys):
    with fastpair.use_backend("reference"):
        fastpair.show_config()
    assert "cpu tensors   reference (use_backend)" in capsys.readouterr().out


@needs_extension
def test_show_config_tells_of_the_build(capsys):
    from fastpair import _C

    info = _C.build_info()
    assert info["torch_target_version"] == "2.10"
    assert info["simd_level"] in ("avx512", "avx2", "baseline")
    fastpair.show_config()
    shown = capsys.readouterr().out
    for fact in (_C.__file__, info["torch_version"], info["compiler"], f"SIMD level {info['simd_level']}"):
        assert fact in shown


@needs_extension
def test_simd_level_can_be_lowered_but_not_raised(forks):
    code = "import os; {}; import torch; from fastpair import _C; print(_C.build_info()['simd_level'])"
    best = forks.run(code.format("os.environ.pop('FASTPAIR_SIMD', None)")).strip()
    levels = ["baseline", "avx2", "avx512"]
    got = [forks.run(code.format("pass"), FASTPAIR_SIMD=wish).strip() for wish in levels]
    assert got == [levels[min(i, levels.index(best))] for i in range(3)]


def test_the_changelog_is_of_this_version():
    """The version stands in fastpair/__init__.py alone: what is built, cited and documented takes it from there."""
    newest = re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] == fastpair.__version__
    assert "version:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8").replace("cff-version:", "")


# ---- choosing a backend


def test_use_backend_nests_and_restores(monkeypatch):
    monkeypatch.setattr("fastpair.backends.FUSED", {"cpu": ["cpu"]})
    monkeypatch.setattr("fastpair.backends._BACKENDS", {**fastpair.backends._BACKENDS, "cpu": usable_cpu()})
    assert choose_backend("cpu") == "cpu"
    with fastpair.use_backend("reference"):
        assert choose_backend("cpu") == "reference"
        assert choose_backend("cpu", "cpu") == "cpu", "an argument goes before the context"
        with fastpair.use_backend("cpu"):
            assert choose_backend("cpu") == "cpu"
        assert choose_backend("cpu") == "reference"
    assert choose_backend("cpu") == "cpu"

    with pytest.raises(KeyError), fastpair.use_backend("reference"):
        raise KeyError
    assert choose_backend("cpu") == "cpu"

    @fastpair.use_backend("reference")
    def decorated():
        return choose_backend("cpu")

    assert decorated() == decorated() == "reference"
    assert choose_backend("cpu") == "cpu"


def usable_cpu():
    return fastpair.backends._Backend("cpu", device_types=("cpu",), problem=None)


def test_use_backend_is_local_to_a_thread(monkeypatch):
    monkeypatch.setattr("fastpair.backends.FUSED", {"cpu": ["cpu"]})
    seen = []
    with fastpair.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(choose_backend("cpu")))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_use_backend_reaches_compiled_code(monkeypatch):
    monkeypatch.setattr("fastpair.backends.FUSED", {"cpu": ["cpu"]})
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def chosen_is_cpu(x):
        return x + (choose_backend(x.device.type) == "cpu")

    @torch.compile(fullgraph=True, backend="eager")
    def uses_reference_inside(x):
        with fastpair.use_backend("reference"):
            inside = x + (choose_backend(x.device.type) == "cpu")
        return inside, x + (choose_backend(x.device.type) == "cpu")

    zero = torch.zeros(())
    assert chosen_is_cpu(zero) == 1
    with fastpair.use_backend("reference"):
        assert chosen_is_cpu(zero) == 0
    assert chosen_is_cpu(zero) == 1
    assert uses_reference_inside(zero) == (0, 1)


@pytest.mark.parametrize("name", ["mkl", "", None, ["cpu"]])
def test_unknown_backend(name):
    message = r"backend must be one of 'cpu', 'cuda', 'triton', 'reference', got "
    with pytest.raises(ValueError, match=message), fastpair.use_backend(name):
        pass
    if name is not None:
        with pytest.raises(ValueError, match=message):
            choose_backend("cpu", name)


def test_float64_tensors_of_a_gpu_take_the_reference_path(monkeypatch):
    triton = fastpair.backends._Backend("cpu", device_types=("cuda",), problem=None, takes_float64=False)
    monkeypatch.setattr("fastpair.backends._BACKENDS", {**fastpair.backends._BACKENDS, "triton": triton})
    monkeypatch.setattr("fastpair.backends.FUSED", {"cuda": ["triton"]})
    monkeypatch.setattr("fastpair.backends._warned_device_types", set())
    assert choose_backend("cuda", dtype=torch.bfloat16) == "triton"
    with pytest.warns(RuntimeWarning, match="'triton' takes no float64 tensors"):
        assert choose_backend("cuda", dtype=torch.float64) == "reference"
    with pytest.raises(RuntimeError, match="takes float32, bfloat16 and float16 tensors, but got torch.float64"):
        choose_backend("cuda", "triton", torch.float64)


@pytest.fixture
def both_gpu_backends(monkeypatch):
    known = {
        "cuda": fastpair.backends._Backend("cpu", device_types=("cuda",), problem=None, for_small_batches=True),
        "triton": fastpair.backends._Backend("cpu", device_types=("cuda",), problem=None),
    }
    monkeypatch.setattr("fastpair.backends._BACKENDS", {**fastpair.backends._BACKENDS, **known})
    monkeypatch.setattr("fastpair.backends.FUSED", {"cuda": ["cuda", "triton"]})


def test_small_and_large_batches_of_a_gpu(both_gpu_backends, monkeypatch):
    assert choose_backend("cuda") == "cuda"
    assert choose_backend("cuda", large=True) == "triton"
    assert choose_backend("cuda", lacking=("cuda",)) == "triton"
    assert choose_backend("cuda", "cuda", large=True) == "cuda", "who asks for it gets it"
    with pytest.raises(RuntimeError, match="'cuda' has no kernel for this loss; 'triton', 'reference' can compute it"):
        choose_backend("cuda", "cuda", lacking=("cuda",))
    monkeypatch.setattr("fastpair.backends.FUSED", {"cuda": ["cuda"]})
    assert choose_backend("cuda", large=True) == "cuda", "slow, but fused"


def test_gpus_that_the_cuda_kernels_are_too_new_for(both_gpu_backends, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for capability, chosen in (((7, 5), "triton"), ((8, 0), "cuda"), ((12, 0), "cuda")):
        monkeypatch.setattr("fastpair.backends._has_older_devices", None)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda i, other=capability: (9, 0) if i else other)
        assert choose_backend("cuda") == chosen
    monkeypatch.setattr("fastpair.backends._has_older_devices", True)
    with pytest.raises(RuntimeError, match="compute capability 8.0 or newer"):
        choose_backend("cuda", "cuda")


def test_triton_is_imported_by_those_who_use_it(forks, tmp_path):
    code = "import fastpair, sys; print('fastpair.backends.triton' in sys.modules)"
    assert forks.run(code, folder=tmp_path).strip() == "False"


def test_backend_that_does_not_serve_the_device(monkeypatch):
    monkeypatch.setattr("fastpair.backends._BACKENDS", {**fastpair.backends._BACKENDS, "cpu": usable_cpu()})
    with pytest.raises(RuntimeError, match="backend 'cpu' runs on cpu tensors, but got tensors on 'cuda'"):
        choose_backend("cuda", "cpu")
    assert choose_backend("cuda", "reference") == "reference"


def test_device_without_kernels_warns_once(monkeypatch):
    monkeypatch.setattr("fastpair.backends._warned_device_types", set())
    with pytest.warns(RuntimeWarning, match="xpu tensors on the dense reference path") as caught:
        assert [choose_backend("xpu") for _ in range(3)] == ["reference"] * 3
    assert len(caught) == 1


def test_without_the_extension(forks, tmp_path):
    code = """
import sys, warnings
sys.modules["fastpair._C"] = None  # what import does for a module that is not there
import torch, fastpair, fastpair.functional as FP
x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
labels = torch.arange(8) // 2
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    losses = [FP.contrastive_loss(x, labels), FP.spce_loss(x, labels), FP.contrastive_loss(x, labels)]
    losses[0].backward()
assert torch.isfinite(x.grad).all() and losses[0] == losses[2]
ours = [w for w in caught if "fastpair" in str(w.message)]
assert len(ours) == 1, ours
assert ours[0].filename == "<string>" and ours[0].lineno == 9, (ours[0].filename, ours[0].lineno)
fastpair.backends._warned_device_types.clear()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fastpair.losses.SupConLoss()(x, labels)
assert [(w.filename, w.lineno) for w in caught] == [("<string>", 18)], caught
assert "fastpair._C" in str(ours[0].message) and "reinstall" in str(ours[0].message)
for ask in (lambda: fastpair.use_backend("cpu").__enter__(), lambda: FP.contrastive_loss(x, labels, backend="cpu")):
    try:
        ask()
    except RuntimeError as error:
        assert "'cpu' is not available here" in str(error) and "reinstall" in str(error)
    else:
        raise AssertionError("the cpu backend was taken without its extension")
with warnings.catch_warnings(record=True) as caught, fastpair.use_backend("reference"):
    warnings.simplefilter("always")
    print(FP.contrastive_loss(x, labels).item())
assert not caught
fastpair.show_config()
"""
    shown = forks.run(code, folder=tmp_path)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    expected = FP.contrastive_loss(x, torch.arange(8) // 2, backend="reference").item()
    assert float(shown.splitlines()[0]) == pytest.approx(expected, rel=1e-6)
    assert "extension  none" in shown
    assert "cpu        not built" in shown


# ---- distributions


@pytest.fixture(scope="module")
def build(forks):
    """``build(kind, source, output, **variables)`` calls the build backend as pip does without isolation."""

    def build(kind: str, source: Path, output: Path, **variables: str) -> subprocess.CompletedProcess:
        code = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
        output.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("CXX", "FASTPAIR_BUILD_EXT", "FASTPAIR_BUILD_CUDA"):
                patch.delenv(name, raising=False)
            return forks.start(code, output, folder=source, **variables).wait()

    return build


@pytest.fixture(scope="module")
def sdist(build, tmp_path_factory) -> Path:
    """The unpacked sdist, built from a copy of the source tree."""
    folder = tmp_path_factory.mktemp("sdist")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", ignore=unwanted)
    done = build("sdist", folder / "tree", folder / "out")
    assert done.returncode == 0, done.stderr
    (archive,) = (folder / "out").iterdir()
    assert archive.name == f"fastpair-{fastpair.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    return folder / f"fastpair-{fastpair.__version__}"


def test_sdist_has_every_source(sdist):
    wanted = [p.relative_to(ROOT) for name in ("csrc", "fastpair", "tests") for p in (ROOT / name).rglob("*.*")]
    wanted = [p for p in wanted if p.suffix in (".py", ".cpp", ".h", ".cu")]
    assert any(p.suffix == ".h" for p in wanted)
    missing = [str(p) for p in wanted if not (sdist / p).is_file()]
    assert not missing
    assert not list(sdist.rglob("*.so")), "an sdist holds nothing compiled"
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "Makefile"):
        assert (sdist / name).is_file()


@pytest.mark.parametrize("variables", [{"FASTPAIR_BUILD_EXT": "0"}, {"CXX": "/nonexistent/c++"}, {"CXX": "false"}])
def test_wheel_without_extension_is_pure_python(build, sdist, tmp_path, variables):
    done = build("wheel", sdist, tmp_path / "out", **variables)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert wheel.name == f"fastpair-{fastpair.__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "fastpair/backends/__init__.py" in names
    assert not [name for name in names if name.endswith(".so")]
    if "CXX" in variables:
        assert "built without its fused CPU kernels" in done.stderr


@needs_extension
def test_an_installed_wheel_compiles_losses_that_users_write(forks, sdist, tmp_path):
    """The wheel has the headers. Its extension is the one under test: another would take minutes to compile."""
    tree = tmp_path / "tree"
    shutil.copytree(sdist, tree, ignore=shutil.ignore_patterns("build"))

    def setup(*command: str) -> None:
        code = "import runpy; runpy.run_path('setup.py', run_name='__main__')"
        forks.run(code, "-q", *command, folder=tree, FASTPAIR_BUILD_EXT="1", FASTPAIR_BUILD_CUDA="0")

    setup("build_py")
    (package,) = tree.glob("build/lib*/fastpair")
    shutil.copy(fastpair.backends.cpu_extension.__file__, package)
    setup("bdist_wheel", "--skip-build", "--dist-dir", str(tmp_path))
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = """
import warnings, torch, fastpair
from fastpair.backends import added
warnings.simplefilter("error")
x, labels = torch.eye(4), torch.arange(4) // 2
loss = fastpair.losses.CustomPairLoss(lambda s, p: 1 - s, lambda s, p: s, lambda P, N, p: P.sum + N.sum)
print(loss(x, labels).item(), fastpair.__file__, added.headers())
"""
    shown = forks.run(code, folder=tmp_path / "installed", FASTPAIR_CACHE=str(tmp_path / "cache"))
    package = tmp_path / "installed" / "fastpair"
    assert shown.split() == ["1.0", str(package / "__init__.py"), str(package / "csrc")]
    assert len(list((tmp_path / "cache").glob("*.so"))) == 1, "dense"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FASTPAIR_BUILD_EXT": "1", "CXX": "/nonexistent/c++"}, "FASTPAIR_BUILD_EXT=1, but cannot run"),
        ({"FASTPAIR_BUILD_EXT": "yes"}, "FASTPAIR_BUILD_EXT must be 0, 1 or unset, got 'yes'"),
        ({"FASTPAIR_BUILD_CUDA": "on"}, "FASTPAIR_BUILD_CUDA must be 0, 1 or unset, got 'on'"),
        pytest.param(
            {"FASTPAIR_BUILD_CUDA": "1"},
            "is built without CUDA",
            marks=pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA"),
        ),
        pytest.param(
            {"FASTPAIR_BUILD_CUDA": "1", "NVCC": "/nonexistent/nvcc"},
            "cannot run /nonexistent/nvcc",
            marks=pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA"),
        ),
    ],
)
def test_build_that_cannot_do_what_was_asked(build, sdist, tmp_path, variables, message):
    done = build("wheel", sdist, tmp_path / "out", **variables)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
@needs_extension
def test_nvcc_of_another_cuda(build, sdist, tmp_path):
    toolkit = tmp_path / "cuda"
    (toolkit / "include").mkdir(parents=True)
    (toolkit / "include" / "cuda_runtime.h").touch()
    nvcc = toolkit / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 9.2, V9.2.1'\necho '#$ TOP={toolkit}' >&2\n")
    nvcc.chmod(0o755)
    done = build("wheel", sdist, tmp_path / "out", NVCC=str(nvcc), FASTPAIR_BUILD_CUDA="1")
    assert done.returncode != 0
    message = f"nvcc is of CUDA 9.2, but torch {torch.__version__} of CUDA {torch.version.cuda}: set NVCC"
    assert f"FASTPAIR_BUILD_CUDA=1, but {message}" in done.stderr


@needs_extension
def test_code_that_does_not_compile_does_not_install(build, sdist, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(sdist, tree, ignore=shutil.ignore_patterns("csrc", "build"))
    (tree / "csrc").mkdir()
    (tree / "csrc" / "module.cpp").write_text("#error deliberate\n")
    done = build("wheel", tree, tmp_path / "out")
    assert done.returncode != 0
    assert "deliberate" in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("*.whl"))
