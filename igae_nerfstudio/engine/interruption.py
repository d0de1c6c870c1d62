"""Ctrl-C during a training: the step is finished, so that what is then saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

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
