"""Embeddings of every length on the CPU: see scales.py."""

import pytest
from scales import EVERY_SCALE, GRID, faults
from support import needs_cpu_kernels


@needs_cpu_kernels
@pytest.mark.parametrize("loss", GRID)
def test_scales(loss):
    n = 40 if loss.startswith("triplet") else 96  # the reference goes through n^3 triplets
    found = faults(GRID[loss], EVERY_SCALE, "cpu", n, 24)
    assert not found, found
