"""Full disks, and folders that one process has for itself; processes are real ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest
import safetensors.torch
import torch

from igae_nerfstudio.errors import DiskFull, InputError
from igae_nerfstudio.files import append_json_line, bytes_text, job_folder, reserve, why_not_written, write_atomically

HOLD = """
import sys, time
from pathlib import Path
from igae_nerfstudio.files import job_folder
with job_folder(Path(sys.argv[1]), "igae-train"):
    print("has it", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process works in a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_bytes_have_a_unit() -> None:
    assert [bytes_text(size) for size in (0, 999, 1000, 2_340_000, 7.25e10)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "2.3 MB",
        "72.5 GB",
    ]


# Full disks


def test_a_reserved_file_has_room_for_all_of_it(tmp_path: Path) -> None:
    """A file with holes would kill the process (SIGBUS) where a page of it has no room."""
    reserve(tmp_path / "file", 1_000_000)
    status = (tmp_path / "file").stat()
    assert status.st_size == 1_000_000 and 512 * status.st_blocks >= 1_000_000


def test_a_file_without_room_is_not_there(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(OSError) as raised:
        reserve(tmp_path / "file", 30_000)
    assert why_not_written(raised.value) == "file too large" and not (tmp_path / "file").exists()


def test_a_line_of_a_log_is_there_whole_or_not_at_all(tmp_path: Path, small_disk: None) -> None:
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"text": "a" * 15_000})
    for _ in range(2):
        with pytest.raises(OSError):
            append_json_line(path, {"text": "b" * 15_000})
    append_json_line(path, {"text": "c"})
    assert [json.loads(line)["text"][0] for line in path.read_text().splitlines()] == ["a", "c"]


WRITERS = {
    "torch by its path": lambda path, value: torch.save(value, path),
    "torch through a file": lambda path, value: write_atomically(path, lambda file: torch.save(value, file)),
    "safetensors": lambda path, value: safetensors.torch.save_file({"x": value}, path),
    "text": lambda path, value: path.write_text("x" * value.numel()),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_libraries_raise_is_understood(writer: str, tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(DiskFull) as raised, job_folder(tmp_path / "out", "igae-train"):
        WRITERS[writer](tmp_path / "out" / "file", torch.rand(100_000))
    text = str(raised.value)
    assert text.startswith(f"igae-nerfstudio: {tmp_path / 'out'} cannot take more (") and "\n" not in text
    assert " free)" in text and "run the same command again" in text


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    assert why_not_written(RuntimeError("shapes differ")) is None and why_not_written(None) is None
    with pytest.raises(RuntimeError, match="shapes differ"), job_folder(tmp_path / "out", "igae-train"):
        raise RuntimeError("shapes differ")
    with pytest.raises(FileNotFoundError), job_folder(tmp_path / "out", "igae-train"):
        (tmp_path / "elsewhere").read_text()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=re.escape(f"{folder} cannot be written")), job_folder(folder, ""):
            pass


# A folder for one process


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with held(folder) as other, pytest.raises(InputError) as raised, job_folder(folder, "igae-scenes train"):
        pass
    text = str(raised.value)
    assert f"another process works in {folder} (igae-train, process {other.pid} on " in text
    assert "choose another --output-dir" in text and "\n" not in text


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with held(tmp_path):
        pass
    with job_folder(tmp_path, "igae-train"):
        assert str(os.getpid()) in (tmp_path / ".lock-holder").read_text()
    with job_folder(tmp_path, "igae-train"):
        pass
    assert not (tmp_path / ".lock-holder").exists()


def test_processes_of_one_training_do_not_lock_each_other_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with job_folder(tmp_path, "igae-train"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InputError), job_folder(tmp_path, "igae-train"):
            pass


COMMANDS = {
    "igae-train": ["--config", "configs/igae/debug.yaml"],
    "igae-scenes train": ["--config", "configs/many_scenes/debug.yaml"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_of_two_commands_ends_at_once(command: str, tmp_path: Path) -> None:
    from conftest import ROOT

    name, *words = command.split()
    script = [str(Path(sys.executable).parent / name), *words, *COMMANDS[command], "--scenes", str(tmp_path / "scenes")]
    with held(tmp_path / "out") as other:
        start = time.monotonic()
        result = subprocess.run([*script, "--output-dir", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
        assert other.poll() is None and time.monotonic() - start < 300
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"works in {tmp_path / 'out'} (igae-train, process {other.pid} on " in result.stderr
    assert set(os.listdir(tmp_path / "out")) == {".lock", ".lock-holder"}
