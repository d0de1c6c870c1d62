"""ctrl-C ends a command in one line that names what is kept.

A training step that has begun is finished first, so that the state that is saved is that of a whole step.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Iterator, Optional

from igae_nerfstudio.console import say

STATUS = 128 + signal.SIGINT
"""Exit status of a command that ctrl-C ended, as shells have it."""


def stopped(message: str, say: Callable[[str], None] = say) -> SystemExit:
    """Say what is kept; raise what this returns to end the command. A signal handler says it with `say_at_once`."""
    say(f"Stopped by ctrl-C {message}")
    return SystemExit(STATUS)


def say_at_once(message: str) -> None:
    """Print one line from a signal handler: it may have come in the middle of a `say`, which is entered once."""
    try:
        os.write(sys.stdout.fileno(), f"\n{message}\n".encode())
    except (AttributeError, OSError, ValueError):  # no file lies below, as in a notebook
        say(message)


@contextmanager
def ends_in_one_line(kept: str) -> Iterator[None]:
    """Around a command: ctrl-C ends it and says what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise stopped(kept) from None


@contextmanager
def undisturbed() -> Iterator[None]:
    """While entered, ctrl-C does nothing: a state is being saved, and people press the keys more than once."""
    ours = handles_interrupts()
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def handles_interrupts() -> bool:
    """Whether ctrl-C reaches this thread as Python has it by default; a notebook or a host program has its own way."""
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


class WholeSteps:
    """While entered, ctrl-C raises `KeyboardInterrupt` between steps, and within one only when it comes twice."""

    def __init__(self) -> None:
        self.inside = False
        """Whether a step has begun and not ended."""
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> WholeSteps:
        if handles_interrupts():
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def begin(self) -> None:
        """A step begins."""
        self.inside = True

    def end(self) -> None:
        """A step has ended.

        Raises:
            KeyboardInterrupt: ctrl-C came while it ran.
        """
        self.inside = False
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: Optional[FrameType]) -> None:
        if not self.inside or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        say_at_once("Stopping after this step; ctrl-C once more stops at once.")
