"""Tests of the Triton kernels: on a GPU where there is one, else on CPU tensors where TRITON_INTERPRET=1 is set."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # support.py and dense.py

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device():
    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no GPU here; make test runs these on CPU tensors with TRITON_INTERPRET=1")


@pytest.fixture(scope="session")
def gpu(device):
    if device != "cuda":
        pytest.skip("needs a GPU: make gpu runs it")
    return device
