"""Ctrl-C during a training: the step is finished, so that what is then saved is whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Iterator, Optional

from igae_nerfstudio.console import log


class StoppedBetweenSteps(KeyboardInterrupt):
    """Ctrl-C, with the last step finished: what is in memory can be saved."""


class StopBetweenSteps:
    """While entered, ctrl-C is remembered and `check` raises it between steps; a second one stops at once.

    Does nothing outside the main thread and where a host program, such as a notebook, has its own handler.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> StopBetweenSteps:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def release(self) -> None:
        """Give ctrl-C back: the steps are done."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def check(self) -> None:
        """Raises StoppedBetweenSteps where ctrl-C came since the training began; call it after each step."""
        if self.requested:
            raise StoppedBetweenSteps

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log("Stopping after this step; ctrl-C once more stops at once.")


# --- To be removed with the last of its users: see StopBetweenSteps and errors.reported_in_one_line ---
STATUS = 128 + signal.SIGINT
"""Exit status of a command that ctrl-C ended, as shells have it."""


def stopped(message: str, log: Callable[[str], None] = log) -> SystemExit:
    """Say what is kept; raise what this returns to end the command. A signal handler says it with `say_at_once`."""
    log(f"Stopped by ctrl-C {message}")
    return SystemExit(STATUS)


def say_at_once(message: str) -> None:
    """Print one line from a signal handler: it may have come in the middle of a `log`, which is entered once."""
    try:
        os.write(sys.stdout.fileno(), f"\n{message}\n".encode())
    except (AttributeError, OSError, ValueError):  # no file lies below, as in a notebook
        log(message)


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
