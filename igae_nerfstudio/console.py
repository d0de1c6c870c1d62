"""Lines for the user, each in one piece, and the progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress

CONSOLE = Console()


def log(message: str, style: str | None = None) -> None:
    """Print one line. Long lines are not broken: paths in them stay whole, and a log can be searched for them."""
    CONSOLE.print(message, style=style, soft_wrap=True, markup=False, highlight=False)


def warn(message: str) -> None:
    """Print one line in yellow."""
    log(message, style="yellow")


def progress_bar(title: str, quiet: bool = False, suffix: str | None = None) -> Progress:
    """Nerfstudio's progress bar, with a speed where it has a unit (`suffix`); a quiet one shows nothing."""
    from nerfstudio.utils.rich_utils import get_progress

    progress = get_progress(title, suffix)
    progress.disable = quiet
    return progress
