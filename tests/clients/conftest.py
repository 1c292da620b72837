"""What the tests of patched libraries start from: nothing is patched, before and after."""

import pytest

import fastpair


@pytest.fixture(autouse=True)
def _unpatched():
    fastpair.unpatch()
    yield
    fastpair.unpatch()
