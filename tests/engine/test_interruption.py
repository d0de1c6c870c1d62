"""ctrl-C: the step is finished, its state is kept and named, and a resumed run goes on from it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import latent_config

from igae_nerfstudio.engine.interruption import StopBetweenSteps
from igae_nerfstudio.engine.trainer import LatentTrainer
from igae_nerfstudio.errors import InputError, reported_in_one_line


@pytest.fixture(autouse=True)
def _default_handler() -> None:
    """Shells start background jobs with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def trainer_of(scene: Path, autoencoder: Path, output: Path, **changes) -> LatentTrainer:
    phases = {"latent_supervision_steps": 4, "rgb_alignment_steps": 4}
    config = latent_config("tensorf", scene, autoencoder, output, **phases)
    config.steps_per_eval_image = config.steps_per_eval_batch = 10_000
    for name, value in changes.items():
        setattr(config, name, value)
    trainer = config.setup()
    trainer.setup()
    return trainer


def interrupt_in_step(trainer: LatentTrainer, step: int, times: int = 1) -> None:
    whole = trainer.pipeline.get_train_loss_dict

    at = step

    def interrupted(step: int):
        if step == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return whole(step)

    trainer.pipeline.get_train_loss_dict = interrupted


def test_the_step_is_finished_and_kept(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    interrupt_in_step(trainer, 5)
    monkeypatch.setattr(sys, "argv", ["ns-train"])
    with pytest.raises(SystemExit) as end:
        trainer.train()
    said = capsys.readouterr()
    assert end.value.code == 130 and "Stopping after this step" in said.out
    assert said.err.count("\n") == 1 and f"--load-dir {trainer.checkpoint_dir}" in said.err
    (kept,) = trainer.checkpoint_dir.iterdir()
    assert torch.load(kept, weights_only=True)["step"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = trainer_of(blender_scene, autoencoder_dir, tmp_path, load_dir=trainer.checkpoint_dir)
    resumed.train()
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000007.ckpt"]


def test_twice_stops_at_once_and_keeps_the_checkpoint_before(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path, steps_per_save=2)
    interrupt_in_step(trainer, 5, times=2)
    with pytest.raises(KeyboardInterrupt):  # from Python, it is what it always is
        trainer.train()
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000004.ckpt"]


def test_after_the_last_step_the_viewers_page_is_closed(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Nerfstudio keeps it up until ctrl-C."""
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    monkeypatch.setattr(trainer, "_train_complete_viewer", lambda: os.kill(os.getpid(), signal.SIGINT))
    trainer.train()
    assert f"Closed by ctrl-C; the finished run is {trainer.base_dir}" in capsys.readouterr().out


def test_a_host_programs_handler_is_left_alone() -> None:
    def own(number, frame) -> None:
        raise AssertionError

    signal.signal(signal.SIGINT, own)
    with StopBetweenSteps():
        assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_commands_end_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as end, reported_in_one_line():
        raise InputError("the folder is empty; fill it")
    assert end.value.code == "igae-nerfstudio: the folder is empty; fill it"  # status 1, on standard error
    with pytest.raises(SystemExit) as end, reported_in_one_line():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "igae-nerfstudio: stopped by ctrl-C\n"


def test_an_input_error_is_an_exception_that_callers_catch() -> None:
    caught = None
    try:
        raise InputError("x")
    except Exception as error:
        caught = error
    assert isinstance(caught, ValueError)
