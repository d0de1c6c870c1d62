"""Files that are there whole or not at all, logs of JSON lines, full disks, and folders for one process alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

from filelock import FileLock, Timeout

from igae_nerfstudio.errors import DiskFull, InputError

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder"
"""In a folder that one process has for itself: what the system locks, and which process that is."""

FULL = {errno.ENOSPC: "no space left on device", errno.EFBIG: "file too large", errno.EDQUOT: "disk quota exceeded"}
"""Errors that say that nothing more can be written, and how."""

NOT_WRITTEN = (
    "unexpected pos",
    "PytorchStreamWriter failed",
    "iostream error",
    *(f"(os error {number})" for number in FULL),
)
"""What torch and safetensors say of a write that failed, in errors that are no OSError."""


def user_cache(name: str) -> Path:
    """`$XDG_CACHE_HOME/igae-nerfstudio/NAME`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igae-nerfstudio" / name


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


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes to map into memory, with room for all of them: a full disk shows here, and not when
    a mapped page is first written to, which kills the process without a word.

    Raises:
        OSError: there is no room; the file is not there then.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def append_json_line(path: Path, entry: Dict[str, Any]) -> None:
    """Add a line to a log, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    line = (json.dumps(entry) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if file.write(line) < len(line):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


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


# --- Full disks ---


def bytes_text(size: float) -> str:
    """A number of bytes with its unit, such as `1.5 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'bytes' else 1}f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def why_not_written(error: Optional[BaseException]) -> Optional[str]:
    """A few words where an error, or one that led to it, says that a disk is full; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return FULL[error.errno]
        if any(text in str(error) for text in NOT_WRITTEN):
            return "a file could not be written to its end"
        if isinstance(error, DiskFull) and error.__cause__ is None:
            return "no space left on device"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """What cannot be written in the block ends it with one line.

    Raises:
        DiskFull: there is no room left.
        InputError: another reason, such as missing rights.
    """
    try:
        yield
    except Exception as error:
        reason = why_not_written(error)
        if reason is not None:
            with suppress(OSError):
                reason += f"; {bytes_text(shutil.disk_usage(folder).free)} free"
            raise DiskFull(
                f"{folder} cannot take more ({reason}); free some space and run the same command again: it goes on "
                "from what is there"
            ) from error
        place = getattr(error, "filename", None)
        if isinstance(error, OSError) and isinstance(place, (str, Path)) and Path(place).is_relative_to(folder):
            raise InputError(
                f"{place} cannot be written ({error.strerror}); mend that, or choose another --output-dir"
            ) from error
        raise


# --- A folder for one process ---


@contextmanager
def job_folder(folder: Path, command: str) -> Iterator[None]:
    """Work in a folder, made where it is missing, as the only process that does; what cannot be written ends in one
    line (`writing_into`). The system gives the lock back when the process ends, however it does.

    Processes of one training (Hugging Face accelerate) work together: the first has the lock for all.

    Args:
        folder: where everything goes.
        command: the name under which another process learns who has the folder.

    Raises:
        InputError: another process works in it, or it cannot be written.
    """
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if _rank():
            yield
            return
        lock, holder = FileLock(folder / LOCK_FILE, timeout=0), folder / HOLDER_FILE
        try:
            lock.acquire()
        except Timeout as error:
            with suppress(OSError):
                command = holder.read_text(encoding="utf-8")
            raise InputError(
                f"another process works in {folder} ({command}); wait for its end or stop it, or choose another "
                "--output-dir"
            ) from error
        try:
            with suppress(OSError):  # on a full disk the lock alone must do
                holder.write_text(f"{command}, process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()


def _rank() -> int:
    """Of this process among those that were launched together."""
    names = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # those that accelerate reads
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)
