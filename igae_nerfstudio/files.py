"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Callable, Optional


def write_atomically(path: Path, write: Callable, scratch: Optional[Path] = None) -> None:
    """Write a file so that `path` is either as before or complete, whenever the process dies.

    Args:
        path: the file.
        write: called with an open binary file.
        scratch: folder on the same file system for the unfinished file; the default is the file's own folder.
    """
    handle, temporary = tempfile.mkstemp(dir=scratch or path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private; a cache may be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
