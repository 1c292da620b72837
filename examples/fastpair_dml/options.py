"""The settings on the command line: options, their help, and which of them have no effect."""

import argparse
import types
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_origin

from .errors import UserError
from .losses import LOSSES
from .settings import KINDS, RECIPES, Settings, describe, flag, show

# The settings in the groups of --help; the last has those that are not named.
GROUPS = {
    "data": ("dataset", "data_dir"),
    "losses": (
        *("loss", "seeds", "loss_settings", "per_class", "dropout", "label_smoothing", "center_weight"),
        "published_outputs",
    ),
    "network": ("model", "weights", "embedding_size", "feature_norm", "freeze_batch_norm"),
    "optimization": (
        *("epochs", "max_steps", "batch_size", "drop_last", "chunk", "optimizer", "lr", "warmup", "momentum"),
        *("nesterov", "weight_decay"),
    ),
    "images": ("image_size", "resize", "square", "crop_scale", "crop_ratio", "jitter", "cache"),
    "evaluation": (
        *("recall_at", "evaluate_every", "evaluation_batch", "report", "figure_queries", "figure_neighbours"),
        *("log_bounds", "bounds_every", "bounds_images", "bounds_lambda"),
    ),
    "machine": (),
}


def add_options(parser: argparse.ArgumentParser, choices: dict[str, tuple[str, ...]]) -> None:
    """One option for each setting, in groups. ``choices``: names that settings are chosen from, for their help."""
    group_of = {name: title for title, names in GROUPS.items() for name in names}
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for option in fields(Settings):
        names = option.metadata["choices"] or choices.get(option.name)
        help = option.metadata["help"] + (f" ({', '.join(names)})" if names else "") + _defaults(option.name)
        group, kind = groups[group_of.get(option.name, list(GROUPS)[-1])], KINDS[option.name]
        # Percent signs are argparse's own.
        help = help.replace("%", "%%")
        if kind is bool:
            group.add_argument(flag(option.name), help=help, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(flag(option.name), help=help, type=_parser(kind), metavar=option.name.upper())


def _defaults(name: str) -> str:
    """The default, and the recipes' own values where they have others."""
    default = getattr(Settings, name)
    recipes: dict[str, list[str]] = {}
    for recipe, values in RECIPES.items():
        if name in values and values[name] != default and name != "dataset":
            recipes.setdefault(_word(values[name]), []).append(recipe)
    others = "; ".join(f"{', '.join(names)}: {value}" for value, names in recipes.items())
    return f" (default: {_word(default)}{f'; {others}' if others else ''})"


def _word(value) -> str:
    if value is None or value == ():
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool) else show(value)


def _parser(kind) -> Callable[[str], Any]:
    if get_origin(kind) is tuple:
        number = get_args(kind)[0]

        def parse(text: str) -> tuple:
            return tuple(number(part) for part in text.split(","))

    elif isinstance(kind, types.UnionType):
        value = get_args(kind)[0]

        def parse(text: str):
            return None if text == "none" else value(text)

    else:
        return kind
    parse.__name__ = describe(kind)  # what argparse says that a wrong value is not
    return parse


def without_effect(settings: Settings) -> dict[str, str]:
    """The settings that change nothing beside the others, and why."""
    nothing = {}
    if settings.optimizer != "sgd":
        nothing |= dict.fromkeys(("momentum", "nesterov"), f"{flag('optimizer')} is {settings.optimizer}")
    used = {name for loss in settings.loss for name in LOSSES[loss].settings}
    for name in {name: None for choice in LOSSES.values() for name in choice.settings}:
        if name not in used:
            users = [loss for loss, choice in LOSSES.items() if name in choice.settings]
            of = ", ".join(users) if len(users) < 5 else "losses on pairs"
            nothing[name] = f"{flag('loss')} is {show(settings.loss)}, and only {of} use it"
    if settings.dataset == "glyphs":
        names = ("resize", "square", "crop_scale", "crop_ratio", "jitter")
        nothing |= dict.fromkeys(names, "glyphs have an augmentation of their own")
        nothing["cache"] = "glyphs are in memory"
    elif settings.resize is None:
        nothing["square"] = f"{flag('resize')} is none"
    if settings.dataset != "inshop":
        nothing["published_outputs"] = f"with {flag('dataset')} {settings.dataset} these are the classes"
    if not settings.log_bounds:
        names = ("bounds_every", "bounds_images", "bounds_lambda")
        nothing |= dict.fromkeys(names, f"it needs {flag('log_bounds')}")
    return nothing


def refuse_without_effect(settings: Settings, given: dict[str, Any]) -> None:
    """Raise a UserError where an option was given that changes nothing."""
    for name, why in without_effect(settings).items():
        if name in given:
            raise UserError(f"{flag(name)} has no effect: {why}; leave it out")


def describe_settings(settings: Settings, origins: dict[str, str]) -> str:
    """Every setting in the groups of --help, with where it comes from, and those that have no effect.

    Args:
        settings: the settings.
        origins: for settings that are not the defaults, where they come from.
    """
    nothing = without_effect(settings)
    group_of = {name: title for title, names in GROUPS.items() for name in names}
    lines = {title: [] for title in GROUPS}
    for option in fields(Settings):
        value, origin = _word(getattr(settings, option.name)), origins.get(option.name, "default")
        note = f"{origin}, no effect" if option.name in nothing else origin
        lines[group_of.get(option.name, list(GROUPS)[-1])].append(f"  {option.name:<20} {value:<24} {note}")
    return "\n".join(line for title, of_group in lines.items() for line in (f"{title}:", *of_group))
