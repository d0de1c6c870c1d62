"""Lines for the user, on Nerfstudio's console and each in one piece."""

from __future__ import annotations

from typing import Optional

from nerfstudio.utils.rich_utils import CONSOLE


def say(message: str, style: Optional[str] = None) -> None:
    """Print one line. Long lines are not broken: paths in them stay whole, and a log can be searched for them."""
    CONSOLE.print(message, style=style, soft_wrap=True, markup=False, highlight=False)


def warn(message: str) -> None:
    """Print one line in yellow."""
    say(message, style="yellow")
