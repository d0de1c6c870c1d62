"""Joint training: what a step touches and teaches, and a training that is stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run_and_kill, run_in_processes
from many_scenes_data import DEBUG, TINY, make_trainer, small_config, write_data

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import load_config, to_dict
from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
from igae_nerfstudio.joint.many_scenes_trainer import ManyScenesTrainer
from igae_nerfstudio.joint.results import SharedPart, load_scene


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("many_scenes"))


def started(data: Path, folder: Path, *overrides: str) -> ManyScenesTrainer:
    trainer = make_trainer(data, folder, overrides)
    trainer._encode_all_views()
    trainer._begin()
    return trainer


def test_a_step_touches_the_records_of_its_batch_alone(data: Path, tmp_path: Path) -> None:
    trainer = started(data, tmp_path)
    schedule = trainer.schedule(1)
    before = trainer.planes.load(range(4))
    groups = schedule.groups(0)
    trainer.train_step(groups, schedule)
    touched = {group.scene for group in groups}
    assert 0 < len(touched) < 4
    changed = (trainer.planes.load(range(4)) != before).any(dim=1)
    assert {i for i in range(4) if changed[i]} == touched
    assert {i for i in range(4) if trainer.planes.visits[i]} == touched


def test_records_learn_with_rates_of_their_own(data: Path, tmp_path: Path) -> None:
    trainer = started(data, tmp_path, "stage1.planes_lr=0.001", "stage1.weights_lr=0.5", "stage1.shared_lr=0")
    schedule = trainer.schedule(1)
    before, shared = trainer.planes.load(range(4)), trainer.shared.shared.detach().clone()
    trainer.train_step(schedule.groups(0), schedule)
    step = (trainer.planes.load(range(4)) - before).abs()  # Adam's first step is as long as its rate
    assert float(step[:, : trainer.shared.plane_numbers].max()) == pytest.approx(0.001, rel=1e-3)
    assert float(step[:, trainer.shared.plane_numbers :].max()) == pytest.approx(0.5, rel=1e-3)
    assert torch.equal(trainer.shared.shared, shared)


def test_both_stages_teach_everything_that_they_should(data: Path, tmp_path: Path) -> None:
    trainer = started(data, tmp_path)
    for stage, terms in ((1, {"latent", "plane_tv"}), (2, {"latent", "rgb", "scene_autoencoding", "plane_tv"})):
        trainer.stage = stage
        batch = trainer._scene_batch(trainer.schedule(stage).groups(0), [0, 1, 2, 3])
        losses = (
            trainer.stage1_losses(batch) if stage == 1 else {**trainer.scene_losses(batch), **trainer.real_losses()}
        )
        assert set(losses) == terms
        trainer.shared.shared.grad = None
        losses["latent"].backward()
        assert float(trainer.shared.shared.grad.abs().sum()) > 0
        _, weights, bias = trainer.shared.split(batch.own.grad)
        assert float(weights.abs().sum()) > 0 and float(bias.abs().sum()) > 0


def test_the_renderer_rests_when_it_should(data: Path, tmp_path: Path) -> None:
    trainer = started(data, tmp_path, "stage1.renderer_epochs=1")
    schedule = trainer.schedule(1)
    weights = []
    for step in (0, schedule.steps_per_epoch):
        trainer.step = step
        trainer.train_step(schedule.groups(step), schedule)
        weights.append(trainer.renderer.decoder[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_some_rays_are_the_same_pixels_of_cameras_and_latents(data: Path, tmp_path: Path) -> None:
    trainer = started(data, tmp_path, "stage1.rays_per_view=5")
    groups = trainer.schedule(1).groups(0)
    trainer.renderer.train()
    batch = trainer._scene_batch(groups, [0, 1, 2, 3])
    trainer.renderer.eval()
    whole = trainer._scene_batch(groups, [0, 1, 2, 3])
    assert whole.pixels is None and len(batch.pixels.unique()) == 5
    picked = whole.directions.unflatten(1, (2, -1))[:, :, batch.pixels]
    assert torch.equal(batch.directions.unflatten(1, (2, -1)), picked)
    with torch.no_grad():
        one, other = trainer.stage1_losses(batch)["latent"], trainer.stage1_losses(whole)["latent"]
        render = trainer.render(whole)
        target = trainer._normalized(trainer._latents[whole.views].float()).reshape(render.latents.shape)
    error = (render.latents - target).square().unflatten(1, (2, -1))
    assert float(other) == pytest.approx(float(error.mean()), rel=1e-5)
    assert float(one) == pytest.approx(float(error[:, :, batch.pixels].mean()), rel=1e-4)


def results_of(folder: Path) -> list[torch.Tensor]:
    part = SharedPart.load(folder)
    scenes = [load_scene(folder / "scenes" / name).planes for name in part.scenes]
    module = part.load_autoencoder().module
    return [part.planes.shared.detach(), *scenes, *part.renderer.state_dict().values(), *module.state_dict().values()]


@pytest.mark.parametrize("stop_at", [(1, 3), (2, 2)])
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    data: Path, tmp_path: Path, stop_at: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(data, tmp_path / "whole").run()
    overrides = ["minutes_per_checkpoint=0"]
    run_and_kill(make_trainer(data, tmp_path / "stopped", overrides), *stop_at, monkeypatch)
    make_trainer(data, tmp_path / "stopped", [*overrides, "exploit.start=noise"]).run()  # exploit's are not its own
    for one, other in zip(results_of(tmp_path / "whole"), results_of(tmp_path / "stopped")):
        assert torch.equal(one, other)
    assert set(json.loads((tmp_path / "whole" / "training.json").read_text())["scenes"]) == set("abcd")


def test_two_processes_do_what_one_does(data: Path, tmp_path: Path) -> None:
    """By the command, as `accelerate launch` starts it."""
    command = ["-m", "igae_nerfstudio.joint.scenes_command", "train", "--config", DEBUG, "--scenes", data / "train"]
    command += ["--autoencoder", data / "autoencoder", "--no-tensorboard", "--set", *TINY, "triplanes.jitter=false"]
    for count in (1, 2):
        run_in_processes(count, *command, "--output-dir", tmp_path / str(count))
    one, two = (SharedPart.load(tmp_path / str(count)) for count in (1, 2))
    new = started(data, tmp_path / "new").shared.shared
    assert float((one.planes.shared - new).abs().max()) > 1e-3
    torch.testing.assert_close(one.planes.shared, two.planes.shared, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(one.mean_record, two.mean_record, atol=2e-4, rtol=1e-3)


def test_a_checkpoint_with_another_number_of_shared_planes_is_refused(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path, ["stage2.epochs=0"]).run()
    with pytest.raises(InputError, match=r"other settings \(micro_macro.shared_planes\)"):
        make_trainer(data, tmp_path, ["stage2.epochs=0", "micro_macro.shared_planes=3"]).run()


def test_the_references_settings() -> None:
    config = ManyScenesConfig()
    assert (config.triplanes.resolution, config.triplanes.features) == (64, 32)
    assert (config.triplanes.samples, config.triplanes.importance_samples) == (48, 48)
    assert (config.stage1.epochs, config.stage1.views_per_batch, config.stage1.renderer_epochs) == (50, 32, 45)
    assert (config.weights.latent, config.weights.rgb, config.weights.scene_autoencoding) == (1, 1, 0.1)
    assert (config.stage2.planes_lr, config.stage2.shared_lr, config.stage2.encoder_lr) == (1e-3, 1e-2, 1e-4)
    assert config.exploit.rgb_alignment.epochs == config.exploit.latent_supervision.epochs == 50


def test_groups_of_settings_keep_what_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("weights: {latent: 2}\nexploit: {latent_supervision: {epochs: 3}}\n")
    config = load_config(path, of=ManyScenesConfig)
    assert (config.weights.latent, config.weights.real_autoencoding) == (2, 0)
    assert config.exploit.latent_supervision.epochs == 3 and config.exploit.latent_supervision.shared_lr == 0
    assert load_config(of=ManyScenesConfig, base=to_dict(config)) == config
    with pytest.raises(InputError, match="space is rgb, which has no autoencoder"):
        small_config("space=rgb")
    with pytest.raises(InputError, match="no multiple of exploit.rgb_alignment.views_per_scene"):
        small_config("exploit.rgb_alignment.views_per_batch=3")
