"""Checks of settings.

A loss has a table of rules, one per setting: its function applies them when it is called, its module when it is
created. A rule takes the name and the value, and raises an exception that states both and what is allowed. ``RULES``
are those of the losses that :mod:`fastpair.formulas` defines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral, Real

from torch import Tensor

from fastpair.formulas.class_losses import CLASS_LOSSES
from fastpair.formulas.pair_losses import PAIR_LOSSES, Choice, Setting
from fastpair.losses.from_pml import distance_name, reduction_name
from fastpair.metrics import METRICS, SIMILARITIES
from fastpair.ops import checks

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


def number_that(holds: Callable[[float], bool], what: str) -> Rule:
    def rule(name: str, value: float) -> None:
        number(name, value)
        if not holds(value):
            raise ValueError(f"{name} must {what}, got {value}")

    return rule


# Not math.isnan, which torch.compile cannot trace for a margin that changes.
not_nan = number_that(lambda x: x == x, "not be NaN")
positive = number_that(lambda x: LEAST <= x <= MOST, "be positive and finite, in float32 too")
not_negative = number_that(lambda x: 0 <= x <= MOST, "not be negative, and finite, in float32 too")
finite = number_that(lambda x: -MOST <= x <= MOST, "be finite, in float32 too")
fraction = number_that(lambda x: 0 <= x <= 1, "lie between 0 and 1")
degrees = number_that(lambda x: 0 <= x < 180, "be at least 0 and below 180 degrees")


def positive_or_none(name: str, value: float | None) -> None:
    if value is not None:
        positive(name, value)


def integer(name: str, value: int) -> None:
    if not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit 64 bits, got an integer of {int(value).bit_length()} bits")


def at_least(name: str, value: int, least: int) -> None:
    integer(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def anything(name: str, value: object) -> None:
    """No check: of a flag only the truth value is used."""


def one_of(*options: int | str) -> Rule:
    def rule(name: str, value: int | str) -> None:
        # A number is compared with numbers alone, a word with words.
        if isinstance(value, str) != isinstance(options[0], str) or value not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")

    return rule


def learnable(rule: Rule) -> Rule:
    """For a setting that may be a tensor of one element, whose value is not looked at: on a GPU that takes a wait."""

    def number_or_tensor(name: str, value: float | Tensor) -> None:
        if isinstance(value, Tensor):
            checks.single(name, value)
        else:
            rule(name, value)

    return number_or_tensor


distance = one_of(*METRICS)
similarity = one_of(*SIMILARITIES)
reduction = one_of("mean", "sum", "none")
pair_reduction = one_of("mean", "sum", "none", "totals")


def rule_of(x: Setting | Choice) -> Rule:
    if isinstance(x, Choice):
        return one_of(*x.formulas)
    return not_nan if x.check == "margin" else globals()[x.check]


RULES = {name: {x.name: rule_of(x) for x in of.arguments} for name, of in {**PAIR_LOSSES, **CLASS_LOSSES}.items()}
for _name, _of in PAIR_LOSSES.items():
    if _of.learnable:
        RULES[_name][_of.learnable.name] = learnable(rule_of(_of.learnable))
MARGINS = {name: [x.name for x in of.settings if x.check == "margin"] for name, of in PAIR_LOSSES.items()}


def check_settings(name: str, settings: dict) -> None:
    check(RULES[name], **settings)
    for margin in MARGINS.get(name, ()):
        distance = settings["distance"]
        if settings[margin] < 0 and not METRICS[distance].similarity:
            raise ValueError(f"{margin} must not be negative for the distance {distance!r}, got {settings[margin]}")


def module_settings(name: str, settings: dict, reducer: object = None) -> dict:
    """The checked settings of a module, by their names here. ``reducer``: in place of ``reduction``."""
    if "distance" in settings:
        settings = settings | {"distance": distance_name(settings["distance"])}
    if reducer is not None:
        if settings["reduction"] != "mean":
            raise ValueError(f"reduction must be left out where reducer is given, got {settings['reduction']!r}")
        settings = settings | {"reduction": reduction_name(name, settings, reducer)}
    check_settings(name, settings)
    return settings
