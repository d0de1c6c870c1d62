"""What Nerfstudio's commands on finished runs (`ns-render`, `ns-viewer`, ...) do not see to, before they need it.

Their code is Nerfstudio's. It imports the methods, reads the run's config.yml and builds the pipeline; this is called
from the first and from the last of these.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from types import FrameType
from typing import Optional, Sequence

import yaml

from igae_nerfstudio.autoencoder.autoencoder import first_line
from igae_nerfstudio.console import warn
from igae_nerfstudio.engine.interruption import STATUS, handles_interrupts, say_at_once, stopped
from igae_nerfstudio.engine.port import check_port
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import find_ffmpeg
from igae_nerfstudio.files import user_cache

WHAT_IS_KEPT = {
    "ns-render": "while rendering: pictures that are already written stay, a film is cut short; run the command again",
    "ns-eval": "while evaluating: nothing was written, and the run is as it was",
    "ns-export": "while exporting: the run is as it was",
    "ns-viewer": "in the viewer: the run is as it was",
}
"""By command, what it says at ctrl-C."""

LAST_SETTING = "vis"
"""Nerfstudio writes a run's settings in alphabetical order."""


def prepare_command(arguments: Optional[Sequence[str]] = None) -> None:
    """See to ffmpeg, the port, the checkpoint and ctrl-C, if this process is one of the commands above.

    Args:
        arguments: of the process, by default `sys.argv`.

    Raises:
        InputError: a film is asked for and there is no ffmpeg; the viewer's port is in use; the newest checkpoint is
            damaged, or there is none.
    """
    arguments = sys.argv if arguments is None else arguments
    command = Path(arguments[0]).stem if arguments else ""
    if command not in WHAT_IS_KEPT:
        return
    if command == "ns-render" and "dataset" not in arguments[1:2]:
        provide_ffmpeg()
    if command == "ns-viewer":
        port = value_of("--viewer.websocket-port", arguments)
        if port is not None and port.isdigit():
            check_port(int(port))
    config = value_of("--load-config", arguments)
    if config is not None:
        check_checkpoint(Path(config))
    if handles_interrupts():

        def end(number: int, frame: Optional[FrameType]) -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more, and the process ends without a word
            # What fails on the way out is of no interest, such as a film whose ffmpeg ctrl-C has ended as well.
            sys.excepthook = lambda *error: os._exit(STATUS)
            raise stopped(WHAT_IS_KEPT[command], say_at_once)

        signal.signal(signal.SIGINT, end)


def check_config_of_command(arguments: Optional[Sequence[str]] = None) -> None:
    """`check_config` of what `--load-config` names, if this process is one of the commands above.

    Args:
        arguments: of the process, by default `sys.argv`.
    """
    arguments = sys.argv if arguments is None else arguments
    if arguments and Path(arguments[0]).stem in WHAT_IS_KEPT:
        config = value_of("--load-config", arguments)
        if config is not None:
            check_config(Path(config))


def check_config(config: Path) -> None:
    """Make sure that a run's config.yml is whole.

    One that is cut off at the end of a line may still be YAML, and what it lacks would be taken for settings that are
    newer than the run (`engine/old_runs.py`).

    Args:
        config: the run's config.yml.

    Raises:
        InputError: it is not there, is no YAML, is empty or ends too early.
    """
    if not config.is_file():
        raise InputError(f"--load-config {config} is no file; pass the config.yml of a run")
    try:
        node = yaml.compose(config.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        line = "" if where is None else f" in line {where.line + 1}"
        reason = f"{getattr(error, 'problem', None) or first_line(error)}{line}"
    else:
        settings = {key.value for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()
        if LAST_SETTING in settings:
            return
        reason = "it is empty" if node is None else "it is cut short, or not of a run"
    raise InputError(
        f"the run's config.yml cannot be read: {reason} ({config}); put it back from a copy, or train again"
    )


def check_checkpoint(config: Path) -> None:
    """Make sure that a run has a checkpoint, and that the newest, which Nerfstudio takes, is whole.

    Args:
        config: the run's config.yml.

    Raises:
        InputError: there is none; it is damaged.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # what it warns of was said when Nerfstudio read it
        folder = yaml.load(config.read_text(), Loader=yaml.Loader).get_checkpoint_dir()
    if not folder.exists():
        raise InputError(f"{folder} is not there; run the command in the folder in which the run was trained")
    found = sorted(folder.glob("step-*.ckpt"))
    if not found:
        raise InputError(f"{folder} is empty: the run ended before its first checkpoint; train again")
    if not zipfile.is_zipfile(found[-1]):  # as torch.save writes them, with a directory at the end
        whole = [path for path in found if zipfile.is_zipfile(path)]
        remedy = f"remove it, and {whole[-1]} is taken" if whole else "train again"
        raise InputError(f"{found[-1]} is damaged; {remedy}")


def provide_ffmpeg() -> None:
    """Put the ffmpeg of the package imageio-ffmpeg on this process's PATH where the system has none.

    Raises:
        InputError: there is neither.
    """
    if shutil.which("ffmpeg"):
        return
    folder = user_cache("bin")
    program = find_ffmpeg()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "ffmpeg"
        link.unlink(missing_ok=True)
        link.symlink_to(program)
    except OSError as error:
        warn(f"{program} cannot be linked into {folder} ({error.strerror}); Nerfstudio may not find it.")
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def value_of(option: str, arguments: Sequence[str]) -> Optional[str]:
    """The value of `--option VALUE` or `--option=VALUE` (the last one), with - or _."""
    words = [word.replace("_", "-") if word.startswith("--") else word for word in arguments]
    found = None
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            found = arguments[i + 1]
        elif word.startswith(f"{option}="):
            found = arguments[i].partition("=")[2]
    return found
