"""Atomic files, logs of lines, and folders that one process has for itself."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import append_json_line, job_folder, keep_json_lines, write_atomically

HOLD = """
import sys, time
from pathlib import Path
from igae_nerfstudio.files import job_folder
with job_folder(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another process works in a folder, and is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        yield
    finally:
        process.kill()
        process.wait()


def test_a_file_is_complete_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fails(file) -> None:
        file.write(b"new")
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_log_drops_lines_that_a_resumed_training_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in range(4):
        append_json_line(path, {"step": step})
    path.open("a").write('{"step": 4, "cut o')
    keep_json_lines(path, lambda entry: entry["step"] < 2)
    append_json_line(path, {"step": 2})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_folder_is_for_one_process_until_that_dies(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with (
        held(folder),
        pytest.raises(InputError, match="another process works in .*out; wait for its end"),
        job_folder(folder),
    ):
        pass
    with job_folder(folder):  # the system has given the killed process's lock back
        pass


def test_processes_of_one_training_do_not_lock_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with job_folder(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InputError), job_folder(tmp_path):
            pass
