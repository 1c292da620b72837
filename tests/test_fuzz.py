"""Some calls of the fuzzer, the same every time; ``python tests/fuzz.py`` makes more of them."""

import pytest
from fuzz import fuzz
from support import needs_cpu_kernels


@needs_cpu_kernels
def test_calls():
    findings = []
    counts = fuzz(seed=2, numbers=range(300), report=findings.append)
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)
    assert counts["legal"] > 200 and counts["illegal"] > 50
