"""Parameters of tests by covering arrays: every value of a parameter meets every value of each other one in some test,
which a fault that needs two of them shows. All combinations would be many times as many tests."""

from collections.abc import Callable, Iterable, Mapping

import pytest
from allpairspy import AllPairs


def covering(allowed: Callable[[dict], bool] | None = None, **parameters: Mapping | Iterable) -> pytest.MarkDecorator:
    """``parameters``: two or more, each with its values, by name where their text is no name. ``allowed`` says whether
    values belong together; it is asked about the first parameters of a test before there are others."""
    values = {name: of if isinstance(of, Mapping) else {_text(v): v for v in of} for name, of in parameters.items()}

    def chosen(row: list[str]) -> dict:
        return {name: values[name][key] for name, key in zip(values, row)}

    rows = AllPairs([list(of) for of in values.values()], lambda row: allowed is None or allowed(chosen(row)))
    tests = [pytest.param(*chosen(row).values(), id="-".join(row)) for row in rows]
    return pytest.mark.parametrize(list(values), tests)


def _text(value: object) -> str:
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")
