"""That the benchmark of whole training steps runs."""

import pytest


def test_training_steps(request):
    if not request.config.getoption("--quick"):
        pytest.skip("python -m benchmarks.end_to_end measures them")
    from benchmarks import end_to_end  # which needs all that the examples do

    (row,) = end_to_end.rows(0.2, quick=True)
    end_to_end.print_row(row)
    assert min(row["steps_per_second"].values()) > 0
