"""Collapsed classes on the CPU: see collapsed.py."""

import pytest
from collapsed import DISTANCES, SHAPES, faults
from support import needs_cpu_kernels


@needs_cpu_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=lambda v: "-".join(map(str, v)))
@pytest.mark.parametrize("distance", DISTANCES)
def test_collapsed(distance, shape):
    found = list(faults(distance, shape, "cpu"))
    assert not found, "\n".join(found)
