"""ctrl-C in every phase: the step is finished, its state is kept and named, and a resumed run goes on from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import latent_config

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.engine.interruption import STATUS, WholeSteps, ends_in_one_line
from igae_nerfstudio.engine.trainer import LatentTrainer


@pytest.fixture(autouse=True)
def _default_handler() -> None:
    """Shells start background jobs with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def trainer_of(scene: Path, autoencoder: Path, output: Path) -> LatentTrainer:
    phases = {"latent_supervision_steps": 4, "rgb_alignment_steps": 4}
    config = latent_config("tensorf", scene, autoencoder, output, **phases)
    config.steps_per_eval_image = config.steps_per_eval_batch = 10_000
    return config.setup()


@pytest.mark.parametrize("step, phase", [(2, "latent supervision"), (5, "RGB alignment")])
def test_in_a_step_it_is_finished_and_kept(
    step: int, phase: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    trainer.setup()
    whole = trainer.pipeline.get_train_loss_dict

    at = step

    def interrupted(step: int):
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(step)

    monkeypatch.setattr(trainer.pipeline, "get_train_loss_dict", interrupted)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == STATUS
    (kept,) = trainer.checkpoint_dir.iterdir()
    assert torch.load(kept, weights_only=True)["step"] == step
    said = capsys.readouterr().out
    assert "Stopping after this step" in said
    line = next(line for line in said.splitlines() if line.startswith("Stopped by ctrl-C"))
    assert trainer.config.logging.profiler == "none"  # Nerfstudio prints its table after everything else
    assert phase in line and str(kept) in line and f"--load-dir {trainer.checkpoint_dir}" in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    resumed.config.load_dir = trainer.checkpoint_dir
    resumed.setup()
    resumed.train()
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000007.ckpt"]


def test_twice_in_a_step_names_the_checkpoint_before(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    trainer.config.steps_per_save = 2
    trainer.setup()
    whole = trainer.pipeline.get_train_loss_dict

    def interrupted(step: int):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return whole(step)

    monkeypatch.setattr(trainer.pipeline, "get_train_loss_dict", interrupted)
    with pytest.raises(SystemExit):
        trainer.train()
    (kept,) = trainer.checkpoint_dir.iterdir()
    assert kept.name == "step-000000002.ckpt" and "after step 2 is kept" in capsys.readouterr().out


def test_between_steps_it_is_immediate(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """As in an evaluation, or while the viewer has paused the training."""
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    trainer.setup()

    def interrupted(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")

    monkeypatch.setattr(trainer, "eval_iteration", interrupted)
    with pytest.raises(SystemExit):
        trainer.train()
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000003.ckpt"]
    assert "Stopping after this step" not in capsys.readouterr().out


def test_while_encoding_the_cache_is_kept(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    cache = tmp_path / "latents"
    trainer.config.pipeline.datamanager.latent_cache_dir = cache
    encode, calls = Autoencoder.encode, []

    def interrupted(self, images):
        calls.append(images)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", interrupted)
    with pytest.raises(SystemExit) as end:
        trainer.setup()
    assert end.value.code == STATUS
    said = capsys.readouterr().out
    assert "while encoding training images" in said and str(cache) in said
    assert len(list(cache.glob("*.json"))) == 2

    again = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    again.config.pipeline.datamanager.latent_cache_dir = cache
    again.setup()
    assert "2 latent images from the cache, 4 encoded" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["in the step", "after it"])
def test_in_the_last_step_the_run_is_finished_and_kept(
    where: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Before Nerfstudio has written the last checkpoint."""
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    trainer.setup()
    name, place = ("get_train_loss_dict", trainer.pipeline) if where == "in the step" else ("_after_train", trainer)
    whole = getattr(place, name)

    def interrupted(*arguments, **named):
        if where == "after it" or named.get("step", arguments and arguments[0]) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*arguments, **named)

    monkeypatch.setattr(place, name, interrupted)
    trainer.train()
    assert [path.name for path in trainer.checkpoint_dir.iterdir()] == ["step-000000007.ckpt"]
    assert f"Closed by ctrl-C; the finished run is {trainer.base_dir}" in capsys.readouterr().out


def test_again_while_the_state_is_saved(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    trainer = trainer_of(blender_scene, autoencoder_dir, tmp_path)
    trainer.setup()
    save = trainer.save_checkpoint

    def impatient(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(step)

    monkeypatch.setattr(trainer, "save_checkpoint", impatient)
    monkeypatch.setattr(trainer, "eval_iteration", lambda step: step == 3 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == STATUS and "after step 3 is kept" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_the_middle_of_a_printed_line() -> None:
    """A real process that prints without a pause: its buffer cannot be entered twice."""
    code = """
import os, signal, sys, threading
from igae_nerfstudio.console import log
from igae_nerfstudio.engine.interruption import WholeSteps, say_at_once, stopped
def end(number, frame):
    raise stopped("here", say_at_once)
for number in range(200):
    steps = WholeSteps()
    with steps:
        steps.begin()
        threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGINT)).start()
        while not steps._asked:
            sys.stdout.write("x" * 500)
            sys.stdout.flush()
signal.signal(signal.SIGINT, end)
threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGINT)).start()
while True:
    sys.stdout.write("x" * 500)
    sys.stdout.flush()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == STATUS and result.stderr == ""
    assert result.stdout.count("\nStopping after this step") == 200
    assert "\nStopped by ctrl-C here\n" in result.stdout


def test_a_command_ends_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as end, ends_in_one_line("while waiting: nothing was written"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert end.value.code == STATUS
    assert capsys.readouterr().out == "Stopped by ctrl-C while waiting: nothing was written\n"


def test_a_host_programs_handler_is_left_alone() -> None:
    def own(number, frame) -> None:
        raise AssertionError

    signal.signal(signal.SIGINT, own)
    with WholeSteps():
        assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, signal.default_int_handler)
