"""That the list of deliberate faults keeps up with the code; ``make mutants`` plants them."""

from pathlib import Path

from mutants.__main__ import SUITES
from mutants.faults import FAULTS

ROOT = Path(__file__).parents[1]


def test_every_fault_can_be_planted():
    """Where it is to stand is one place, and tests are named that have to catch it."""
    sources = {fault.file: (ROOT / fault.file).read_text() for fault in FAULTS}
    counts = {fault.name: sources[fault.file].count(fault.text) for fault in FAULTS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert [fault.name for fault in FAULTS if fault.text == fault.replacement or fault.suite not in SUITES] == []
    assert len(counts) == len(FAULTS)  # names are distinct
