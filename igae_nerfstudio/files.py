"""Files that are there whole or not at all, and logs of JSON lines."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional


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


def append_json_line(path: Path, entry: Dict[str, Any]) -> None:
    """Add a line to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def keep_json_lines(path: Path, keep: Callable[[Dict[str, Any]], bool]) -> None:
    """Drop lines of a log, and one that a kill cut off; a resumed training writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if keep(entry):
            kept.append(line)
    text = "".join(f"{line}\n" for line in kept)
    write_atomically(path, lambda file: file.write(text.encode()))
