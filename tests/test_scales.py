"""Embeddings of every length on the CPU: see scales.py."""

import pytest
import torch
from scales import GRID, HALF_SCALES, SCALES, faults
from support import every_dtype, needs_cpu_kernels


@needs_cpu_kernels
@every_dtype
@pytest.mark.parametrize("loss", GRID)
def test_scales(loss, dtype):
    found = faults(GRID[loss], HALF_SCALES if dtype == torch.float16 else SCALES, dtype, "cpu", 96, 24)
    assert not found, found
