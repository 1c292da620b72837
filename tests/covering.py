"""Parameters of tests by covering arrays: every value of a parameter meets every value of each other one in some test,
which a fault that needs two of them shows. All combinations would be many times as many tests."""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, cycle, product

import pytest
from allpairspy import AllPairs


def covering(allowed: Callable[[dict], bool] | None = None, **parameters: Mapping | Iterable) -> pytest.MarkDecorator:
    """``parameters``: two or more, each with its values, by name where their text is no name. ``allowed`` says whether
    values belong together; it is asked about the first parameters of a test before there are others."""
    values = {name: of if isinstance(of, Mapping) else {_text(v): v for v in of} for name, of in parameters.items()}

    def chosen(row: Iterable[str]) -> dict:
        return {name: values[name][key] for name, key in zip(values, row)}

    def fits(row: Iterable[str]) -> bool:
        return allowed is None or allowed(chosen(row))

    names = [list(of) for of in values.values()]
    rows = [tuple(row) for row in AllPairs(names, fits)]
    places = list(combinations(range(len(names)), 2))
    met = {(i, j, row[i], row[j]) for row in rows for i, j in places}
    # Where some values do not belong together, the search leaves out pairs that have a test.
    for i, j in places if allowed else ():
        for one, other in product(names[i], names[j]):
            if (i, j, one, other) in met:
                continue
            choices = [{i: [one], j: [other]}.get(at, of) for at, of in enumerate(names)]
            row = next(filter(fits, product(*choices)), None)
            if row is not None:
                rows.append(row)
                met |= {(a, b, row[a], row[b]) for a, b in places}
    return pytest.mark.parametrize(
        list(values), [pytest.param(*chosen(row).values(), id="-".join(row)) for row in rows]
    )


def in_turn(names: Iterable, *others: Iterable) -> list[tuple]:
    """Each name with one value of every other parameter, which take turns: fewer tests than an array."""
    return list(zip(names, *map(cycle, others)))


def _text(value: object) -> str:
    return "_".join(map(str, value)) if isinstance(value, tuple) else str(value).removeprefix("torch.")
