"""What every test starts from: seeded generators, one number of threads, and a compiler that is quick."""

import gc
import os

import pytest
import torch
from forks import Forks

from fastpair.backends import cpu_extension

# Some hundred losses that users write are compiled, which takes three times as long with the package's own -O3. Without
# optimisation their loops have no vectors: see `vectors` in test_custom.py.
os.environ.setdefault("CXXFLAGS", "-O0")
# To look for garbage among the objects of all tests takes a twentieth of the time by default.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _seeded():
    # torch.manual_seed would format a traceback for each kind of device, here or not.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def forks():
    """New interpreters, but that they have imported PyTorch and what builds a package."""
    with Forks("torch", "setuptools.build_meta", "torch.utils.cpp_extension") as forks:
        yield forks


@pytest.fixture
def small_squares():
    """The CPU kernels cut the scores of 256 samples and more as else those of 2048 and more, eight times as many, and
    keep none of more than 512 samples between two sweeps, else 4096."""
    if cpu_extension is None:
        pytest.skip("fastpair is built without its CPU kernels")
    before = cpu_extension.set_square_length(256)
    yield
    cpu_extension.set_square_length(before)


@pytest.fixture
def threads():
    """``threads(n)`` sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
