"""The GPU check where there is no GPU: tiny parts, parts that go wrong, and what it leaves."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from conftest import LATENT_METHODS, ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from check_on_gpu import METHODS

SCRIPT = ROOT / "scripts" / "check_on_gpu.py"

WRONG = f"""
import subprocess, sys, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
import check_on_gpu

def hangs(work):
    work.report("child", pid=subprocess.Popen(["sleep", "600"]).pid)
    time.sleep(600)

def breaks(work):
    work.report("kernel", blocks=3)
    raise RuntimeError("no such kernel")

def attempts(work):
    work.attempt("first", lambda: 1 / 0)
    work.report("second", curve=[1.0, 2.5])
    work.report("second", end=7)

check_on_gpu.PARTS = {{"hangs": (hangs, 1), "breaks": (breaks, 10), "attempts": (attempts, 10)}}
check_on_gpu.main()
"""


def command(*words: object, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, str(script), *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
    )


def parts_of(folder: Path) -> dict[str, Any]:
    """The report's entries by part."""
    return {entry["part"]: entry for entry in json.loads((folder / "gpu.json").read_text())["parts"]}


def test_every_latent_method_is_checked() -> None:
    assert sorted(METHODS) == sorted(name.replace("_", "-") for name in LATENT_METHODS)


def test_without_cuda_it_says_so_in_one_line(tmp_path: Path) -> None:
    result = command("--output-dir", tmp_path / "out")
    assert result.returncode == 2 and result.stdout == ""
    assert "CUDA" in result.stderr and "--device cpu" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_parts_that_go_wrong_cost_the_others_nothing(tmp_path: Path) -> None:
    """One hangs with a child of its own, one breaks in its middle, and of one a measurement fails."""
    script, out = tmp_path / "wrong.py", tmp_path / "out"
    script.write_text(WRONG)
    result = command("--device", "cpu", "--minutes", 1, "--output-dir", out, script=script)
    assert result.returncode == 1, result.stderr
    parts, table = parts_of(out), (out / "gpu.md").read_text()
    assert parts["hangs"]["ended"] == "stopped after its 3 s" and parts["hangs"]["seconds"] < 10
    alive = [process.pid for process in psutil.process_iter() if process.status() != psutil.STATUS_ZOMBIE]
    assert parts["hangs"]["results"]["child"]["pid"] not in alive
    assert parts["breaks"]["ended"] == "failed: RuntimeError: no such kernel"
    assert parts["breaks"]["results"] == {"kernel": {"blocks": 3}}
    assert "Traceback" in (out / "breaks.log").read_text()
    results = parts["attempts"]["results"]
    assert results == {"first": {"failed": results["first"]["failed"]}, "second": {"curve": [1.0, 2.5], "end": 7}}
    assert parts["attempts"]["ended"] == "failed: first" and "ZeroDivisionError" in results["first"]["failed"]
    for row in ("| hangs | child | pid: ", "| **breaks** | ", "| attempts | second | curve: 1, 2.5; end: 7 |"):
        assert row in table


def test_two_parts_in_tiny_sizes(tmp_path: Path) -> None:
    result = command("--device", "cpu", "--minutes", 4, "--output-dir", tmp_path, "--parts", "machine", "train")
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert result.returncode == 0, result.stdout + result.stderr + logs
    parts = parts_of(tmp_path)
    versions = parts["machine"]["results"]["software"]
    assert versions["torch"].startswith(importlib.metadata.version("torch")) and versions["cores"] == os.cpu_count()
    trained = parts["train"]["results"]["float32"]
    steps, seconds, first, last = trained["stage 1: steps, seconds of one, losses"]
    assert steps >= 2 and seconds > 0 and 0 < last < first
    assert 15 < trained["real_psnr"] < 40 and trained["real_psnr"] > trained["render_psnr"]
    assert "| train | float32 | stage 1" in (tmp_path / "gpu.md").read_text()

    wheels = command("--output-dir", tmp_path, "--list-wheels").stdout.splitlines()
    names = [line.partition("==")[0] for line in wheels]
    assert {"torch", "nerfacc", "diffusers", "accelerate"} <= set(names) and "igae-nerfstudio" not in names
    assert f"diffusers=={importlib.metadata.version('diffusers')}  # " in "\n".join(wheels)
