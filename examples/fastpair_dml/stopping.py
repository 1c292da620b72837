"""Stopping when asked to: by Ctrl-C, or by the SIGTERM of a launcher."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .processes import Processes


class Interrupted(Exception):
    """A signal asked to stop; the state is saved as far as it can be gone on from."""


class Stop:
    """Whether a signal has come, asked for where the work can be left.

    Attributes:
        waits_for: what the first Ctrl-C says that it waits for.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.waits_for = "the work in progress"
        self._received = self._at_once = False

    def asked(self) -> bool:
        """Whether any process was asked to stop; all of them have to ask at the same places."""
        return self.processes.any(self._received)

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: a signal has come.
        """
        if self.asked():
            raise Interrupted

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For long work that leaves nothing behind: what asks to stop is not remembered, but stops it.

        Raises:
            Interrupted: a signal has come to this process, now or before.
        """
        self._at_once = True
        try:
            if self._received:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A first Ctrl-C, or a SIGTERM, is remembered until it is asked for; a second Ctrl-C stops at once."""
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number, frame) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._received = True
        if self.processes.main:
            again = "; again to stop at once" if number == signal.SIGINT else ""
            how = "stopping" if self._at_once else f"stopping after {self.waits_for}{again}"
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{how}\n".encode())
        if self._at_once:
            raise Interrupted
