"""What a training leaves to look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igae_nerfstudio.joint.run_log import RunLog


def test_numbers_and_figures_reach_every_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(tmp_path, tensorboard=True, wandb=True, config={"seed": 0})
    log.numbers(2, 20, {"latent": 0.5})
    view = np.zeros((16, 64, 3), np.uint8)
    picture = log.figure(2, 20, {"view": [view] * 2, "render": [view] * 2})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"stage": 2, "step": 20, "latent": 0.5}
    assert Image.open(picture).width == 2 * 64
    assert list((tmp_path / "tensorboard").glob("events.*"))
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb")) and list(run.rglob("media/images/**/*.png"))


def test_a_resumed_training_forgets_what_came_after(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for stage, step in ((1, 20), (1, 40), (2, 20), (2, 40)):
        log.numbers(stage, step, {"latent": 0.1})
    with log.path.open("a") as file:
        file.write('{"stage": 2, "st')  # cut off by a kill
    log.rewind(2, 20)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [20, 40, 20]
