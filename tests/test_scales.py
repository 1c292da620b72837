"""Embeddings of every length on the CPU: see scales.py."""

import pytest
from scales import EVERY_SCALE, GRID, faults
from support import needs_cpu_kernels


@needs_cpu_kernels
@pytest.mark.parametrize("loss", GRID)
def test_scales(loss):
    found = faults(GRID[loss], EVERY_SCALE, "cpu", 96, 24)
    assert not found, found
