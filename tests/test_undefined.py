"""NaN and infinity on the CPU: see undefined.py."""

import pytest
from support import needs_cpu_kernels
from undefined import SPREAD, TOLERANCE, faults


@needs_cpu_kernels
@pytest.mark.parametrize("loss", SPREAD)
@pytest.mark.parametrize("n", [12, 70])
def test_kernels(loss, n, threads):
    """By one thread and by two, which cut the matrix of scores at other places."""
    for count in (1, 2):
        threads(count)
        found = list(faults(SPREAD[loss], n, "cpu"))
        assert not found, "\n".join(found)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("loss", SPREAD)
def test_dense_evaluation(loss, dtype):
    found = list(faults(SPREAD[loss], 12, "reference", dtype=dtype))
    assert not found, "\n".join(found)
