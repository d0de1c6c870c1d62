"""Atomic files, logs of JSON lines, and a folder for one process."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

from filelock import FileLock, Timeout

from igae_nerfstudio.errors import InputError


def user_cache(name: str) -> Path:
    """`$XDG_CACHE_HOME/igae-nerfstudio/NAME`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igae-nerfstudio" / name


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], scratch: Path | None = None) -> None:
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


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
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


@contextmanager
def job_folder(folder: Path) -> Iterator[None]:
    """Work in a folder, made where it is missing, as the only process that does.

    Processes of one training (Hugging Face accelerate) work together: the first one holds the lock for all.

    Raises:
        InputError: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")):
        yield
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(
            f"another process works in {folder}; wait for its end or stop it, or choose another --output-dir"
        ) from error
