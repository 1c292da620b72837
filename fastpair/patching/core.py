"""Replacing methods of other libraries' losses, restoring them, and saying what was done.

A method is replaced on its class, once, by a function that decides at every call: whether the object is one that was
asked for, whether its settings and this call are computed by fastpair, else by the original. Objects do not change, so
that what is pickled or copied knows nothing of it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import operator
import textwrap
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import nn

__all__ = ["Report", "patch", "unpatch"]

CLIENTS = ("sentence_transformers", "open_clip", "lightly", "pytorch_metric_learning")


# ---- what the files of the clients say


@dataclass(frozen=True)
class Case:
    """When the original is called, and why. ``holds`` takes the loss, that of a call its arguments too."""

    reason: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Method:
    """A method that fastpair stands in for.

    owner, name: its class, "module:Class", and the name of the method.
    by: what computes it, for the report.
    compute: takes its arguments.
    settings, calls: the cases that are left to the original, of an object and of a call.
    uses: further methods of the class whose results are computed in ``compute``: a subclass that overrides one gets
        the original.
    reads: functions elsewhere, "module:name" or "module:Class.name", whose definitions ``compute`` repeats.
    """

    owner: str
    name: str
    by: str
    compute: Callable
    settings: tuple[Case, ...] = ()
    calls: tuple[Case, ...] = ()
    uses: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.owner.partition(':')[2]}.{self.name}"


@dataclass(frozen=True)
class Client:
    """A library: its name on the package index; the methods that are replaced; for each the fingerprints of sources,
    its own and of what it uses and reads, whose definitions ``compute`` has; losses that stay, and why."""

    distribution: str
    methods: tuple[Method, ...]
    known: dict[str, tuple[str, ...]]
    left: dict[str, str] = field(default_factory=dict)


def fingerprint(functions: list[Callable]) -> str:
    """What the source of functions says, without comments and docstrings. Empty where there is no source."""
    lines: list[str] = []
    for function in functions:
        try:
            source = textwrap.dedent(inspect.getsource(function))
            (statement,) = ast.parse(source).body
        except (OSError, TypeError, SyntaxError):
            return ""
        of_function = source.splitlines()
        if isinstance(statement, ast.FunctionDef) and ast.get_docstring(statement) is not None:
            docstring = statement.body[0]
            del of_function[docstring.lineno - 1 : docstring.end_lineno]
        lines += [line.rstrip() for line in of_function if line.strip() and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


# ---- a method in use


class Slot:
    """A method of a class and its stand-in, which is in place while anything asks for it."""

    def __init__(self, method: Method):
        self.method = method
        module, _, name = method.owner.partition(":")
        self.owner: type = getattr(importlib.import_module(module), name)
        self.original: FunctionType = getattr(self.owner, method.name)
        self.inherited = method.name not in self.owner.__dict__
        self.used = {name: getattr(self.owner, name) for name in method.uses}
        self.everywhere = False
        self.objects: set[int] = set()
        self.calls: Counter[str | None] = Counter()
        self.stand_in = _stand_in(self)

    def fingerprint(self) -> str:
        read = (name.partition(":") for name in self.method.reads)
        try:
            elsewhere = [operator.attrgetter(name)(importlib.import_module(module)) for module, _, name in read]
        except (ImportError, AttributeError):
            return ""
        return fingerprint([self.original, *self.used.values(), *elsewhere])

    def is_overridden_by(self, other: Slot) -> bool:
        """Whether the other's class, one derived from this one's, has a method of the same name."""
        same = other.method.name == self.method.name
        return same and other.owner is not self.owner and issubclass(other.owner, self.owner)

    def settings_reason(self, loss: Any) -> str | None:
        """Why an object's calls all go to the original, if they do."""
        for name, function in self.used.items():
            if getattr(type(loss), name) is not function or name in loss.__dict__:
                return f"{name} is overridden"
        return _first(self.method.settings, loss)

    def reason(self, loss: Any, *args: Any, **kwargs: Any) -> str | None:
        return self.settings_reason(loss) or _first(self.method.calls, loss, *args, **kwargs)

    def in_place(self) -> bool:
        """Whether the class has the original or the stand-in, not what something else has put there."""
        return getattr(self.owner, self.method.name) in (self.original, self.stand_in)

    def put(self) -> None:
        """The class gets what ``everywhere`` and ``objects`` ask for. A stand-in that something else has replaced or
        wrapped in the meantime stays there, and calls the original."""
        name = self.method.name
        if self.everywhere or self.objects:
            if getattr(self.owner, name) is self.original:
                setattr(self.owner, name, self.stand_in)
        elif self.owner.__dict__.get(name) is self.stand_in:
            # A single step: another thread may call the method meanwhile.
            if self.inherited:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, self.original)


def _first(cases: tuple[Case, ...], *args: Any, **kwargs: Any) -> str | None:
    for case in cases:
        if case.holds(*args, **kwargs):
            return case.reason
    return None


def _stand_in(slot: Slot) -> Callable:
    original, compute = slot.original, slot.method.compute

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        if slot.everywhere or id(self) in slot.objects:
            reason = slot.reason(self, *args, **kwargs)
            if not torch.compiler.is_compiling():
                slot.calls[reason] += 1
            if reason is None:
                return compute(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return method


# ---- patching


class _Library:
    """A client that is installed, with the slots of the methods that are known there."""

    def __init__(self, name: str):
        self.name = name
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed, so that there is nothing to patch")
        self.client: Client = importlib.import_module(f"fastpair.patching.{name}").CLIENT
        self.version = importlib.metadata.version(self.client.distribution)
        self.slots: list[Slot] = []
        self.unknown: dict[str, str] = {}
        for method in self.client.methods:
            try:
                slot = Slot(method)
            except (ImportError, AttributeError):
                self.unknown[method.title] = f"{self.release} has no {method.owner.replace(':', '.')}.{method.name}"
                continue
            if slot.fingerprint() in self.client.known[method.title]:
                self.slots.append(slot)
            else:
                self.unknown[method.title] = f"its source in {self.release} is none that fastpair knows"

    @property
    def release(self) -> str:
        return f"{self.client.distribution} {self.version}"

    def losses_in(self, obj: nn.Module) -> Iterator[tuple[Slot, nn.Module]]:
        """The modules of an object, itself included, with the slots of their classes."""
        for module in obj.modules():
            if self.client.left.keys().isdisjoint(self.classes_of(module)):
                of_module = [slot for slot in self.slots if isinstance(module, slot.owner)]
                yield from ((slot, module) for slot in of_module if not any(map(slot.is_overridden_by, of_module)))

    def classes_of(self, module: nn.Module) -> set[str]:
        """The names of this library's classes that a module is of."""
        return {cls.__name__ for cls in type(module).__mro__ if cls.__module__.partition(".")[0] == self.name}


_libraries: dict[str, _Library] = {}
_lock = threading.RLock()


def _library(name: str) -> _Library:
    if name not in CLIENTS:
        raise ValueError(f"client must be one of {', '.join(map(repr, CLIENTS))}, got {name!r}")
    if name not in _libraries:
        _libraries[name] = _Library(name)
    return _libraries[name]


class Report:
    """What :func:`patch` did; ``print`` shows it. Leaving a ``with`` block of it undoes what it did.

    Attributes:
        replaced: the methods that are replaced, and what computes them: {"ClipLoss.forward": "info_nce_loss"}.
        kept: the methods and losses that are not, and why.
        conditions: for each replaced method when a call goes to the original, which is decided at the call.
    """

    def __init__(self, library: _Library, obj: nn.Module | None, undo: Callable[[], None]):
        self._library, self._undo = library, undo
        self._slots = list(library.slots)
        self.client = library.name
        self.replaced: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        self._title = library.release
        of_objects = () if obj is None else tuple(library.losses_in(obj))
        if obj is not None:
            self._title = f"{type(obj).__name__} of {library.release}"
            self._slots = list(dict.fromkeys(slot for slot, _ in of_objects))
            self._explain(obj, of_objects)
        else:
            self.kept = {**library.unknown, **library.client.left}
            for slot in self._slots:
                if slot.in_place():
                    self.replaced[slot.method.title] = slot.method.by
                else:
                    self.kept[slot.method.title] = "something else has replaced it"
        self.conditions = {
            slot.method.title: [
                case.reason for case in (*(slot.method.settings if obj is None else ()), *slot.method.calls)
            ]
            for slot in self._slots
            if slot.method.title in self.replaced
        }

    def _explain(self, obj: nn.Module, of_objects: tuple[tuple[Slot, nn.Module], ...]) -> None:
        left = {**self._library.client.left, **self._library.unknown}
        classes = set().union(*map(self._library.classes_of, obj.modules()))
        self.kept = {title: reason for title, reason in left.items() if title.partition(".")[0] in classes}
        for slot, loss in of_objects:
            title, name, by = slot.method.title, slot.method.name, slot.method.by
            if getattr(type(loss), name) not in (slot.original, slot.stand_in):
                by += f", where {type(loss).__name__}.{name} calls it"
            reason = slot.settings_reason(loss)
            if reason is None:
                self.replaced[title] = by
            else:
                self.kept[title] = reason
        if not self.replaced and not self.kept:
            self.kept[type(obj).__name__] = "fastpair has no loss of this definition"

    @property
    def calls(self) -> dict[str, dict[str | None, int]]:
        """The calls since the method was first patched, by the reason why the original computed them; None: fastpair
        did. Calls that ``torch.compile`` traces are not counted."""
        return {slot.method.title: dict(slot.calls) for slot in self._slots if slot.calls}

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo()

    def __str__(self) -> str:
        lines = [f"fastpair.patch({self.client!r}): {self._title}"]
        lines += [f"  {title} is computed by {by}" for title, by in self.replaced.items()]
        cases = [(reason, title) for title, reasons in self.conditions.items() for reason in reasons]
        if cases:
            lines.append("  unless")
        for reason, titles in _grouped(cases):
            of = "" if len(titles) == len(self.replaced) else f" ({', '.join(titles)})"
            lines.append(f"    {reason}{of}")
        for reason, titles in _grouped([(reason, title) for title, reason in self.kept.items()]):
            lines.append(f"  {', '.join(titles)} stay{'s' * (len(titles) == 1)}: {reason}")
        for title, calls in self.calls.items():
            lines += [f"  {title} was called {count} times, {_whose(reason)}" for reason, count in calls.items()]
        return "\n".join(lines)

    __repr__ = __str__


def _grouped(pairs: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """The second of the pairs that have the same first; a method by its class alone."""
    groups: dict[str, list[str]] = {}
    for first, second in pairs:
        groups.setdefault(first, []).append(second.partition(".")[0])
    return list(groups.items())


def _whose(reason: str | None) -> str:
    return "computed by fastpair" if reason is None else f"by the original: {reason}"


def patch(client: str, obj: nn.Module | None = None) -> Report:
    """Compute a library's losses by fastpair, wherever the definitions are the same.

    Methods of its classes are replaced, for all of their objects, present and to come, or for ``obj`` and the modules
    in it alone. Names, signatures, attributes and states stay. What an object's settings, or a call, ask for and
    fastpair has not is computed by the original method; the report says when. Patching twice is patching once. Each
    process has to patch for itself.

    Args:
        client: "sentence_transformers", "open_clip", "lightly" or "pytorch_metric_learning", which is imported.
        obj: a loss of that library, or a module that contains some. None: all losses.

    Returns:
        A :class:`Report`, which may be printed, and which is a context manager: at the end of a ``with`` block the
        losses are what they were before the call.

    Raises:
        ValueError: a client that fastpair does not know. ImportError: one that is not installed. TypeError: an ``obj``
            that is no module.
    """
    if not (obj is None or isinstance(obj, nn.Module)):
        raise TypeError(f"obj must be a loss, a torch.nn.Module, got {type(obj).__name__}")
    with _lock:
        library = _library(client)
        changed: list[Slot] = []
        if obj is None:
            for slot in library.slots:
                if not slot.everywhere:
                    slot.everywhere = True
                    changed.append(slot)
                slot.put()
            return Report(library, None, functools.partial(_switch_off, changed))
        added: list[tuple[Slot, int]] = []
        for slot, loss in library.losses_in(obj):
            if id(loss) not in slot.objects:
                slot.objects.add(id(loss))
                weakref.finalize(loss, _forget, slot, id(loss)).atexit = False
                added.append((slot, id(loss)))
            slot.put()
        return Report(library, obj, functools.partial(_forget_all, added))


def unpatch(client: str | None = None, obj: nn.Module | None = None) -> None:
    """Give a library its own methods back, the very function objects, or those of one object; without a name, to all.

    What was not patched stays as it is. An object that was patched by itself is so until it is unpatched by itself, or
    all of its library is.

    Raises:
        ValueError: a client that fastpair does not know.
    """
    if client is not None and client not in CLIENTS:
        raise ValueError(f"client must be one of {', '.join(map(repr, CLIENTS))}, or None, got {client!r}")
    with _lock:
        for name, library in _libraries.items():
            if client not in (None, name):
                continue
            if obj is not None:
                _forget_all([(slot, id(loss)) for slot, loss in library.losses_in(obj)])
                continue
            for slot in library.slots:
                slot.objects.clear()
            _switch_off(library.slots)


def _switch_off(slots: list[Slot]) -> None:
    with _lock:
        for slot in slots:
            slot.everywhere = False
            slot.put()


def _forget(slot: Slot, key: int) -> None:
    with _lock:
        slot.objects.discard(key)
        slot.put()


def _forget_all(added: list[tuple[Slot, int]]) -> None:
    for slot, key in added:
        _forget(slot, key)
