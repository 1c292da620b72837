"""Checks of settings.

A loss has a table of rules, one per setting: its function applies them when it is called, its module when it is
created. A rule takes the name and the value, and raises an exception that states both and what is allowed. ``RULES``
are those of the losses that :mod:`fastpair.formulas` defines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real

from fastpair.formulas.class_losses import CLASS_LOSSES
from fastpair.formulas.pair_losses import PAIR_LOSSES, Choice, Setting
from fastpair.metrics import METRICS, SIMILARITIES

Rule = Callable[[str, object], None]

# Most kernels compute in float32, which can represent settings between these limits and their inverses.
LEAST, MOST = 2.0**-126, 2.0**126


def check(rules: Mapping[str, Rule], **settings) -> None:
    for name, value in settings.items():
        rules[name](name, value)


def number(name: str, value: float) -> None:
    if not isinstance(value, (float, int, Real)):  # the plain types first: an abstract one takes ten times as long
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if isinstance(value, int) and not -MOST <= value <= MOST:
        raise ValueError(f"{name} must fit a floating-point number, got an integer of {value.bit_length()} bits")


def not_nan(name: str, value: float) -> None:
    number(name, value)
    if value != value:  # not math.isnan, which torch.compile cannot trace for a margin that changes
        raise ValueError(f"{name} must not be NaN")


def positive(name: str, value: float) -> None:
    number(name, value)
    if not LEAST <= value <= MOST:
        raise ValueError(f"{name} must be positive and finite, in float32 too, got {value}")


def finite(name: str, value: float) -> None:
    number(name, value)
    if not -MOST <= value <= MOST:
        raise ValueError(f"{name} must be finite, in float32 too, got {value}")


def positive_or_none(name: str, value: float | None) -> None:
    if value is not None:
        positive(name, value)


def fraction(name: str, value: float) -> None:
    number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}")


def integer(name: str, value: int) -> None:
    if not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")


def at_least(name: str, value: int, least: int) -> None:
    integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def degrees(name: str, value: float) -> None:
    number(name, value)
    if not 0 <= value < 180:
        raise ValueError(f"{name} must be at least 0 and below 180 degrees, got {value}")


def anything(name: str, value: object) -> None:
    """No check: of a flag only the truth value is used."""


def one_of(name: str, value: str, options: tuple) -> None:
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def one_of_these(*options: str) -> Rule:
    return lambda name, value: one_of(name, value, options)


distance = one_of_these(*METRICS)
similarity = one_of_these(*SIMILARITIES)
reduction = one_of_these("mean", "sum", "none")
pair_reduction = one_of_these("mean", "sum", "none", "totals")


def one_of_numbers(*options: int) -> Rule:
    def rule(name: str, value: int) -> None:
        if value not in options:
            raise ValueError(f"{name} must be {' or '.join(map(str, options))}, got {value!r}")

    return rule


def rule_of(x: Setting | Choice) -> Rule:
    if isinstance(x, Choice):
        return (one_of_these if isinstance(x.default, str) else one_of_numbers)(*x.formulas)
    return not_nan if x.check == "margin" else globals()[x.check]


RULES = {name: {x.name: rule_of(x) for x in of.arguments} for name, of in {**PAIR_LOSSES, **CLASS_LOSSES}.items()}
MARGINS = {name: [x.name for x in of.settings if x.check == "margin"] for name, of in PAIR_LOSSES.items()}


def check_settings(name: str, settings: dict) -> None:
    check(RULES[name], **settings)
    for margin in MARGINS.get(name, ()):
        distance = settings["distance"]
        if settings[margin] < 0 and not METRICS[distance].similarity:
            raise ValueError(f"{margin} must not be negative for the distance {distance!r}, got {settings[margin]}")
