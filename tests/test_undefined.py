"""NaN and infinity on the CPU: see undefined.py."""

from covering import covering
from support import has_reduction, needs_cpu_kernels
from undefined import BY_ROWS, CASES, SPREAD, TOLERANCE, faults


@needs_cpu_kernels
@covering(has_reduction, loss=SPREAD, case=CASES, reduction=BY_ROWS, size=[(12, 1), (70, 1), (70, 2)])
def test_kernels(loss, case, reduction, size, threads):
    """By one thread and by two, which cut the matrix of scores at other places."""
    n, count = size
    threads(count)
    found = list(faults(loss, case, n, "cpu", reduction))
    assert not found, "\n".join(found)


@covering(has_reduction, loss=SPREAD, case=CASES, reduction=BY_ROWS, dtype=TOLERANCE.keys())
def test_dense_evaluation(loss, case, reduction, dtype):
    found = list(faults(loss, case, 12, "reference", reduction, dtype))
    assert not found, "\n".join(found)
