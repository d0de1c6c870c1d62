"""The entry point that Nerfstudio loads at the start of every command, for every method.

Nerfstudio loads plugins outside any `try`: an exception here would end `ns-train nerfacto` as well. So this
module imports nothing, builds the methods when they are asked for, and turns any failure into one line; Nerfstudio
then passes over the missing methods.
"""

from __future__ import annotations

import sys
from typing import Any

_reported = False


def __getattr__(name: str) -> Any:
    """A method specification of `method_configs`, or None if it could not be built."""
    global _reported
    if not name.startswith("igae_"):
        raise AttributeError(name)
    try:
        from igae_nerfstudio import method_configs

        return getattr(method_configs, name)
    except Exception as error:
        if not _reported:
            _reported = True
            print(
                f"igae-nerfstudio: its methods are unavailable ({type(error).__name__}: {error}); other methods work. "
                "`python -c 'import igae_nerfstudio.method_configs'` shows why.",
                file=sys.stderr,
            )
        return None
