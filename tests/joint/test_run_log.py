"""What a training leaves to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from igae_nerfstudio.joint.run_log import COLUMNS, RunLog


def test_numbers_and_figures_reach_every_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(tmp_path, tensorboard=True, wandb=True, config={"seed": 0})
    log.numbers(2, 20, {"latent": 0.5})
    picture = log.figure(2, 20, [[torch.rand(16, 16, 3) for _ in COLUMNS]] * 2)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"stage": 2, "step": 20, "latent": 0.5}
    assert Image.open(picture).size == (16 * len(COLUMNS), 2 * 16 + 14)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb")) and list(run.rglob("media/images/**/*.png"))


def test_a_resumed_training_forgets_what_came_after(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False, wandb=False, config={})
    for stage, step in ((1, 20), (1, 40), (2, 20), (2, 40)):
        log.numbers(stage, step, {"latent": 0.1})
    with log.path.open("a") as file:
        file.write('{"stage": 2, "st')  # cut off by a kill
    log.rewind(2, 20)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [20, 40, 20]


def test_a_full_disk_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path, tensorboard=True, wandb=False, config={})

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("igae_nerfstudio.joint.run_log.append_json_line", full)
    monkeypatch.setattr("igae_nerfstudio.joint.run_log.write_atomically", full)
    log.numbers(1, 1, {"latent": 0.1})
    log.figure(1, 1, [[torch.rand(16, 16, 3) for _ in COLUMNS]])
    shown = capsys.readouterr().out
    assert shown.count("No space left on device") == 1 and f"cannot be written to {tmp_path}" in shown


def test_tensorboard_on_a_full_disk(tmp_path: Path, small_disk: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Its thread fails, and the training neither ends nor shows a traceback."""
    log = RunLog(tmp_path, tensorboard=True, wandb=False, config={})
    pictures = [[torch.rand(64, 64, 3) for _ in COLUMNS]]
    for step in range(200):
        log.figure(1, step, pictures)
        if log._writer is None:
            break
    assert log._writer is None
    log.close()
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err and shown.out.count("goes on without them") == 1
