"""How a command line ends: its exit status, and one line that says why."""

import os
import sys
from collections.abc import Callable

from .errors import UserError
from .stopping import Interrupted


def status_of(program: str, work: Callable[[], int]) -> int:
    """The exit status that ``work`` returns, or one that says why it did not come to its end.

    It is 2 where there is something to put right, 130 where a signal stopped the work, and 141 where nothing reads its
    output any more, as behind ``| head``: what a shell has for a program that SIGPIPE ends.
    """
    # Names of files may hold what cannot be printed.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = work()
        # Else it is only seen after this, at the exit, that nothing reads.
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # What is still to be written is written at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
