"""Lines for the user, each in one piece."""

from __future__ import annotations

from typing import Optional

from rich.console import Console

CONSOLE = Console()


def say(message: str, style: Optional[str] = None) -> None:
    """Print one line. Long lines are not broken: paths in them stay whole, and a log can be searched for them."""
    CONSOLE.print(message, style=style, soft_wrap=True, markup=False, highlight=False)


def warn(message: str) -> None:
    """Print one line in yellow."""
    say(message, style="yellow")
