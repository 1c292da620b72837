"""What a user's process must survive: interrupts, memory that runs out, tensors at any address."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import DTYPES, needs_cpu_kernels

import fastpair
import fastpair.functional as FP

FOLDER = Path(__file__).parent / "robustness"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def outcomes(printed: str) -> dict[str, dict]:
    """What a script of the folder reports of each of its calls."""
    return {(line := json.loads(text)).pop("call"): line for text in printed.splitlines()}


@needs_cpu_kernels
@linux_only
def test_interrupts(forks):
    found = outcomes(forks.run((FOLDER / "interrupts.py").read_text()))
    assert found.pop("handled") == {"seen": 1, "equal": True}
    assert set(found) == {"pairs", "triplets", "classes", "backward"}
    for name, times in found.items():
        assert times["interrupted"] < 0.7 * times["whole"], (name, times)


@pytest.fixture
def run_with(tmp_path):
    """``run_with(name, *arguments)``: what Python prints with ``name`` for the functions that allocate memory."""

    def run(name: str, *arguments: str | Path) -> str:
        library, source = tmp_path / f"{name}.so", FOLDER / f"{name}.cpp"
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        subprocess.run([*compiler, "-O1", "-shared", "-fPIC", "-std=c++20", source, "-o", library, "-ldl"], check=True)
        paths = os.pathsep.join([str(FOLDER.parent), str(Path(fastpair.__file__).parents[1])])
        environment = {**os.environ, "PYTHONPATH": paths, "LD_PRELOAD": str(library)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@needs_cpu_kernels
@linux_only
def test_every_output_is_written(run_with):
    run_with("poisoned_allocations", "-m", "pytest", "-q", "-p", "no:cacheprovider", FOLDER / "poisoned.py")


@needs_cpu_kernels
@linux_only
def test_allocations_that_fail(run_with):
    """Each allocation of a call fails in turn: an exception says so, or the result is right all the same."""
    found = outcomes(run_with("failing_allocations", FOLDER / "fail_allocations.py"))
    assert len(found) == 4
    for name, counts in found.items():
        assert counts.pop("refused") > 20, name
        assert set(counts) <= {"unharmed"}, (name, counts)


def misaligned(t: torch.Tensor) -> torch.Tensor:
    """The same elements one byte behind where they should lie."""
    data = bytearray(1) + t.flatten().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(data, dtype=t.dtype, offset=1).view(t.shape)


@needs_cpu_kernels
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_misaligned_tensors(dtype):
    x, w = torch.randn(40, 9).to(dtype), torch.randn(7, 9).to(dtype)
    labels, rows = torch.arange(40) % 7, torch.arange(40) - 1
    calls = (
        (FP.pairwise_distance, (x, w), {"metric": "dot"}),
        (FP.pairwise_distance, (x, w), {"metric": "euclidean"}),
        (FP.supcon_loss, (x, labels.sort().values), {"distance": "dot"}),
        (FP.contrastive_loss, (x, labels, x.flip(0), labels), {"exclude_self": rows, "distance": "euclidean"}),
        (FP.triplet_margin_loss, (x, labels), {}),
        (FP.linear_cross_entropy, (x, w, labels, w[:, 0].contiguous()), {}),
        (FP.arcface_loss, (x, w, labels), {}),
        (FP.spce_loss, (x, labels), {}),
    )
    for function, tensors, settings in calls:
        moved = [misaligned(t) for t in tensors]
        moved_settings = {k: misaligned(v) if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        assert all(t.data_ptr() % 2 for t in moved)
        want, got = function(*tensors, **settings), function(*moved, **moved_settings)
        assert torch.equal(got, want), function.__name__
