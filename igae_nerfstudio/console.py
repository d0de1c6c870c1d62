"""Lines for the user, each in one piece."""

from __future__ import annotations

from rich.console import Console

CONSOLE = Console()


def log(message: str, style: str | None = None) -> None:
    """Print one line. Long lines are not broken: paths in them stay whole, and a log can be searched for them."""
    CONSOLE.print(message, style=style, soft_wrap=True, markup=False, highlight=False)


def warn(message: str) -> None:
    """Print one line in yellow."""
    log(message, style="yellow")
