"""Joint training of many scenes: what a step touches and teaches, and a training that is stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run_in_processes
from many_scenes_data import DEBUG, TINY, Killed, kill_at, make_trainer, small_config, started, train, write_data

from igae_nerfstudio.config_files import to_plain, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.compositions import begin
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.results import SharedBasis, load_scene


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("many_scenes"))


def test_a_step_touches_the_codes_of_its_batch_alone(data: Path, tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path))
    stage, codes = trainer.stages[0], trainer.data.codes
    before = codes.load(range(4))
    trainer.train_step(stage, 0)
    touched = {group.scene for group in stage.schedule.groups(0)}
    assert 0 < len(touched) < 4
    changed = (codes.load(range(4)) != before).any(dim=1)
    assert {i for i in range(4) if changed[i]} == touched == {i for i in range(4) if codes.visits[i]}


def test_codes_learn_with_rates_of_their_own(data: Path, tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path, {"stage1": {"planes_lr": 0.001, "weights_lr": 0.5, "shared_lr": 0}}))
    planes = trainer.model.shared
    before, shared = trainer.data.codes.load(range(4)), planes.shared.detach().clone()
    trainer.train_step(trainer.stages[0], 0)
    step = (trainer.data.codes.load(range(4)) - before).abs()  # Adam's first step is as long as its rate
    assert float(step[:, : planes.plane_numbers].max()) == pytest.approx(0.001, rel=1e-3)
    assert float(step[:, planes.plane_numbers :].max()) == pytest.approx(0.5, rel=1e-3)
    assert torch.equal(planes.shared, shared)


def test_both_stages_teach_everything_that_they_should(data: Path, tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path))
    planes = trainer.model.shared
    for stage, terms in zip(
        trainer.stages, ({"latent", "plane_tv"}, {"latent", "rgb", "scene_autoencoding", "plane_tv"})
    ):
        planes.shared.grad = None
        batch = trainer.batch(stage, 0)
        losses = stage.objective(trainer.model, batch)
        assert set(losses) == terms
        losses["latent"].backward()
        assert float(planes.shared.grad.abs().sum()) > 0
        _, weights, bias = planes.split(batch.codes.grad)
        assert float(weights.abs().sum()) > 0 and float(bias.abs().sum()) > 0


def test_the_renderer_rests_when_it_should(data: Path, tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path, {"stage1": {"renderer_epochs": 1}}))
    stage, weights = trainer.stages[0], []
    for step in (0, stage.schedule.steps_per_epoch):
        trainer.train_step(stage, step)
        weights.append(trainer.model.renderer.decoder[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_some_rays_are_the_same_pixels_of_cameras_and_latents(data: Path, tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path))
    groups, model = trainer.stages[0].schedule.groups(0), trainer.model
    model.renderer.eval()
    torch.manual_seed(0)
    some, whole = trainer.data.batch(groups, rays_per_view=5), trainer.data.batch(groups)
    torch.manual_seed(0)
    pixels = torch.randperm(36)[:5]
    assert (some.sides, whole.sides) == ((5, 1), (6, 6))
    with torch.no_grad():
        few, all_ = model.render(some), model.render(whole)
    torch.testing.assert_close(few[:, :, 0], all_.flatten(1, 2)[:, pixels], atol=1e-5, rtol=1e-5)
    assert torch.equal(some.latents[..., 0], whole.latents.flatten(2)[:, :, pixels])


def results_of(folder: Path) -> list[torch.Tensor]:
    basis = SharedBasis.load(folder)
    scenes = [load_scene(folder / "scenes" / name).planes for name in basis.scenes]
    return [*basis.planes.values(), *basis.renderer.values(), *scenes, *basis.make_model().state_dict().values()]


@pytest.mark.parametrize("stop_at", [(1, 3), (2, 2)])
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    data: Path, tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    whole, stopped = train(data, tmp_path / "whole"), tmp_path / "stopped"
    trainer = make_trainer(data, stopped, {"minutes_per_checkpoint": 0})
    kill_at(trainer, *stop_at)
    with pytest.raises(Killed):
        trainer.run(begin)
    train(data, stopped, {"minutes_per_checkpoint": 0, "fit": {"start": "noise"}})  # those of `fit` are not its own
    for one, other in zip(results_of(whole), results_of(stopped)):
        assert torch.equal(one, other)
    assert set(json.loads((whole / "training.json").read_text())["scenes"]) == set("abcd")


def words(settings: dict, prefix: str = "--") -> list[str]:
    """Nested settings as words of a command line."""
    found = []
    for name, value in settings.items():
        option = f"{prefix}{name.replace('_', '-')}"
        found += words(value, f"{option}.") if isinstance(value, dict) else [option, str(value)]
    return found


@pytest.mark.slow  # tests/joint/test_igae.py does it with the same trainer
def test_two_processes_do_what_one_does(data: Path, tmp_path: Path) -> None:
    """By the command, as `accelerate launch` starts it."""
    command = ["-m", "igae_nerfstudio.joint.scenes_command", "train", "--config", DEBUG, "--scenes", data / "train"]
    command += ["--autoencoder", data / "autoencoder", "--no-tensorboard", *words(TINY), "--triplanes.no-jitter"]
    for count in (1, 2):
        run_in_processes(count, *command, "--output-dir", tmp_path / str(count))
    one, two = (SharedBasis.load(tmp_path / str(count)) for count in (1, 2))
    new = make_trainer(data, tmp_path / "new").model.shared.shared
    assert float((one.planes["shared"] - new).abs().max()) > 1e-3
    torch.testing.assert_close(one.planes["shared"], two.planes["shared"], atol=2e-4, rtol=2e-3)
    torch.testing.assert_close(one.mean_record, two.mean_record, atol=2e-4, rtol=2e-3)


def test_a_checkpoint_with_another_number_of_shared_planes_is_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, {"stage2": {"epochs": 0}})
    with pytest.raises(InputError, match=r"other settings \(micro_macro.shared_planes\)"):
        train(data, tmp_path, {"stage2": {"epochs": 0}, "micro_macro": {"shared_planes": 3}})


def test_the_references_settings() -> None:
    config = ManyScenesConfig()
    assert (config.triplanes.resolution, config.triplanes.features) == (64, 32)
    assert (config.triplanes.samples, config.triplanes.importance_samples) == (48, 48)
    assert (config.stage1.epochs, config.stage1.views_per_batch, config.stage1.renderer_epochs) == (50, 32, 45)
    assert (config.weights.latent, config.weights.rgb, config.weights.scene_autoencoding) == (1, 1, 0.1)
    assert (config.stage2.planes_lr, config.stage2.shared_lr, config.stage2.encoder_lr) == (1e-3, 1e-2, 1e-4)
    assert config.fit.rgb_alignment.epochs == config.fit.latent_supervision.epochs == 50


def test_groups_of_settings_keep_what_is_theirs() -> None:
    entries = {"weights": {"latent": 2}, "fit": {"latent_supervision": {"epochs": 3}}}
    config = with_settings(ManyScenesConfig(), entries, "the test")
    assert (config.weights.latent, config.weights.real_autoencoding) == (2, 0)
    assert config.fit.latent_supervision.epochs == 3 and config.fit.latent_supervision.shared_lr == 0
    assert with_settings(ManyScenesConfig(), to_plain(config), "the test") == config
    with pytest.raises(InputError, match="space is rgb, which has no autoencoder"):
        small_config({"space": "rgb"}).check()
    with pytest.raises(InputError, match="no multiple of fit.rgb_alignment.views_per_scene"):
        small_config({"fit": {"rgb_alignment": {"views_per_batch": 3}}}).check()
