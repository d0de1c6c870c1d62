"""How bad input ends: in one line that names the thing, the reason and the remedy."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import Iterator


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and says what to do instead."""


@contextmanager
def reported_in_one_line() -> Iterator[None]:
    """Around a command: an `InputError` or ctrl-C ends it with one line on standard error instead of a traceback.

    Raises:
        SystemExit: with status 1 after an `InputError`, 130 after ctrl-C.
    """
    try:
        yield
    except InputError as error:
        sys.exit(f"igae-nerfstudio: {error}")
    except KeyboardInterrupt as interrupt:
        print(f"igae-nerfstudio: {str(interrupt) or 'stopped by ctrl-C'}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
