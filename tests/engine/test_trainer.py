"""Checkpoints that can be read, runs that go on where they stopped, and runs that must stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import latent_config, write_blender_scene
from PIL import Image

from igae_nerfstudio.engine.trainer import to_plain_types
from igae_nerfstudio.errors import InputError


@pytest.fixture
def make_trainer(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path):
    """A set-up trainer of 3 + 3 steps of TensoRF, whose grids grow after step 1; keywords go to the trainer."""

    def make(timestamp: str = "now", **overrides):
        config = latent_config(
            "tensorf",
            blender_scene,
            autoencoder_dir,
            tmp_path,
            latent_supervision_steps=3,
            rgb_alignment_steps=3,
            latent_supervision_lr_factor=1.0,
            rgb_alignment_lr_factor=1.0,
        )
        config.timestamp = timestamp
        config.pipeline.model.upsampling_iters = (1,)
        for name, value in overrides.items():
            setattr(config if hasattr(config, name) else config.pipeline, name, value)
        torch.manual_seed(0)
        trainer = config.setup()
        trainer.setup()
        return trainer

    return make


def test_plain_types_turn_numpy_numbers_into_python_numbers() -> None:
    state = to_plain_types(
        {"lr": np.float64(0.5), "list": [np.int64(3), (np.bool_(True), "x")], "tensor": torch.ones(2)}
    )
    assert type(state["lr"]) is float and type(state["list"][0]) is int and type(state["list"][1][0]) is bool
    assert isinstance(state["tensor"], torch.Tensor)


def test_checkpoints_load_with_weights_only_and_appear_whole(make_trainer) -> None:
    trainer = make_trainer()
    trainer.train()
    ((step, path),) = trainer.checkpoints()
    assert step == 5
    state = torch.load(path, weights_only=True)
    assert state["step"] == 5 and "_model.decoder.decoder.layers.0.weight" in state["pipeline"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not list(trainer.base_dir.glob(".*part"))


def test_a_run_that_is_resumed_ends_like_one_that_was_not(make_trainer) -> None:
    """Stopped after step 3 (one step into alignment, after TensoRF's grids grew), resumed, and compared."""
    whole = make_trainer("whole")
    whole.train()
    first = make_trainer("first", max_num_iterations=4)
    first.train()
    second = make_trainer("second", load_dir=first.checkpoint_dir)
    assert second._start_step == 4
    steps = []
    iteration = second.train_iteration
    second.train_iteration = lambda step: steps.append(step) or iteration(step)
    grid = second.pipeline.model.scene.field.density_encoding.plane_coef
    held = [p for group in second.optimizers.optimizers["encodings"].param_groups for p in group["params"]]
    assert any(p is grid for p in held)  # the optimiser holds the grown grid, not the one it replaced
    before = grid.detach().clone()
    second.train()
    assert steps == [4, 5] and not torch.equal(before, grid)
    camera = whole.pipeline.datamanager.eval_dataset.cameras[0:1]
    pictures = [t.pipeline.eval().model.render(camera).rgb for t in (whole, second)]
    assert float((pictures[0] - pictures[1]).square().mean()) < 1e-4  # ray jitter differs after a restart
    for name, optimizer in whole.optimizers.optimizers.items():
        assert optimizer.param_groups[0]["lr"] == second.optimizers.optimizers[name].param_groups[0]["lr"], name


def test_a_finished_run_has_nothing_left_to_train(make_trainer, capsys) -> None:
    first = make_trainer("first")
    first.train()
    again = make_trainer("again", load_dir=first.checkpoint_dir)
    again.train_iteration = lambda step: pytest.fail("trained again")
    again.train()
    assert "Nothing left to train" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_gives_way_to_an_older_one(make_trainer) -> None:
    trainer = make_trainer("first", save_only_latest_checkpoint=False, steps_per_save=2)
    trainer.train()
    steps = [step for step, _ in trainer.checkpoints()]
    assert steps[-1] == 5 and len(steps) >= 2
    newest = trainer.checkpoints()[-1][1]
    newest.write_bytes(newest.read_bytes()[:1000])
    assert make_trainer("second", load_dir=trainer.checkpoint_dir)._start_step == steps[-2] + 1


def test_a_folder_without_checkpoints_is_named(make_trainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        make_trainer("x", load_dir=tmp_path)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(make_trainer) -> None:
    trainer = make_trainer(steps_per_save=1, save_only_latest_checkpoint=True)
    losses = trainer.pipeline.get_train_loss_dict

    def poisoned(step: int):
        outputs, loss, metrics = losses(step)
        if step == 3:
            loss = {name: value * float("nan") for name, value in loss.items()}
        return outputs, loss, metrics

    trainer.pipeline.get_train_loss_dict = poisoned
    with pytest.raises(InputError) as error:
        trainer.train()
    assert "became nan at step 3" in str(error.value) and "step-000000002.ckpt" in str(error.value)
    state = torch.load(trainer.checkpoints()[-1][1], weights_only=True)
    assert state["step"] == 2
    assert all(bool(v.isfinite().all()) for v in state["pipeline"].values() if isinstance(v, torch.Tensor))


def test_weights_that_are_not_finite_are_never_saved(make_trainer) -> None:
    trainer = make_trainer()
    trainer.save_checkpoint(1)
    with torch.no_grad():
        next(trainer.pipeline.model.decoder.parameters()).fill_(float("inf"))
    with pytest.raises(InputError, match="no longer finite"):
        trainer.save_checkpoint(2)
    assert [step for step, _ in trainer.checkpoints()] == [1]


def test_a_full_disk_keeps_the_older_checkpoint(make_trainer, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    trainer = make_trainer()
    trainer.save_checkpoint(1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    trainer.save_checkpoint(2)
    assert [step for step, _ in trainer.checkpoints()] == [1]
    assert "No space left" in capsys.readouterr().out
    assert not list(trainer.base_dir.glob(".*part"))


def test_the_number_of_steps_follows_from_the_phases(make_trainer) -> None:
    trainer = make_trainer()
    config = yaml.load((trainer.base_dir / "config.yml").read_text(), Loader=yaml.Loader)
    assert config.max_num_iterations == 6 and config.pipeline.autoencoder.architecture is not None
    with pytest.raises(InputError, match="the two phases have 6 steps"):
        make_trainer(max_num_iterations=7)


def test_empty_and_mixed_scenes_are_named(autoencoder_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    def trainer(scene: Path):
        return latent_config("tensorf", scene, autoencoder_dir, tmp_path).setup().setup()

    with pytest.raises(InputError, match="there is no dataset"):
        trainer(tmp_path / "no such scene")
    with pytest.raises(InputError, match="no frames"):
        trainer(write_blender_scene(tmp_path / "empty", counts=(0, 0, 0)))
    mixed = write_blender_scene(tmp_path / "mixed")
    Image.new("RGB", (64, 48)).save(mixed / "train" / "r_002.png")
    with pytest.raises(InputError, match="r_002.png has 64 x 48"):
        trainer(mixed)
    missing = write_blender_scene(tmp_path / "missing")
    (missing / "train" / "r_001.png").unlink()
    with pytest.raises(InputError, match="r_001.png does not exist"):
        trainer(missing)
    with pytest.raises(InputError, match="24 x 24"):
        trainer(write_blender_scene(tmp_path / "small", size=(24, 24)))


@pytest.mark.parametrize("logger", [True, False])
def test_a_run_leaves_numbers_and_a_figure(make_trainer, logger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(steps_per_eval_image=2, steps_per_eval_batch=1000)
    trainer.config.logging.steps_per_log = 2
    monkeypatch.setattr(type(trainer.config), "is_tensorboard_enabled", lambda self: logger)
    trainer.train()
    lines = [json.loads(line) for line in (trainer.base_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["phase"]) for line in lines if "loss" in line]
    assert steps == [(0, "latent supervision"), (2, "latent supervision"), (4, "RGB alignment")]
    assert "latent_loss" in lines[0] and "rgb_alignment_loss" in [line for line in lines if "loss" in line][-1]
    evaluated = [line for line in lines if "eval_psnr" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 5]  # and at the end
    assert {"eval_latent_psnr", "eval_autoencoder_psnr"} <= evaluated[-1].keys()
    with Image.open(trainer.base_dir / "figure.png") as figure:
        assert figure.size == (4 * 48, 48 + 2 * 6 * (192 // 36))  # four pictures; two rows of six channels of 6 x 6

    resumed = make_trainer(load_dir=trainer.checkpoint_dir, rgb_alignment_steps=5)
    (resumed.base_dir / "metrics.jsonl").open("a").write('{"step": 7, "cut o')
    resumed.train()
    again = [json.loads(line) for line in (resumed.base_dir / "metrics.jsonl").read_text().splitlines()]
    assert again[: len(lines)] == lines and again[-1]["step"] == 7
