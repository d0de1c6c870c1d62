"""How bad input ends: one line that names the thing and the remedy."""

from __future__ import annotations


class InputError(SystemExit):
    """Something the user gave cannot be used; the message names it and says what to do instead.

    It derives from `SystemExit`, so it ends `ns-train`, `ns-eval`, `ns-render`, `ns-viewer` and `ns-export`
    (whose code is Nerfstudio's, not ours) with this one line on standard error, exit status 1 and no
    traceback. Code that uses the package as a library catches it by its own name.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"igae-nerfstudio: {message}")


class DiskFull(InputError):
    """A folder has no room for what is to be written there; after some space is freed, the same command goes on."""
