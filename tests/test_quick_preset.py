"""The preset quick: what it chooses, what it leaves alone, and what it says."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import latent_config

from igae_nerfstudio import method_configs
from igae_nerfstudio.config_files import read_yaml
from igae_nerfstudio.engine.trainer import LatentTrainerConfig
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.tensorf import LatentTensoRFConfig
from igae_nerfstudio.presets import QUICK, flat


def quick(method: str) -> LatentTrainerConfig:
    config = deepcopy(getattr(method_configs, method.replace("-", "_")).config)
    config.experiment_name, config.timestamp, config.pipeline.preset = "name", "now", "quick"
    return config


@pytest.mark.parametrize("method", read_yaml(QUICK))
def test_every_setting_of_the_preset_arrives(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, entries = quick(method).resolved(), read_yaml(QUICK)[method]
    for name, value in flat(entries["pipeline"]):
        found = config.pipeline
        for part in name.split("."):
            found = getattr(found, part)
        assert (list(found) if isinstance(value, list) else found) == value, name
    assert config.optimizers["decoder"]["optimizer"].lr == entries["optimizers"]["decoder"]["optimizer"]["lr"]
    pipeline = config.pipeline
    assert pipeline.decoder_lr_decay**pipeline.rgb_alignment_steps == pytest.approx(0.26)
    total = pipeline.latent_supervision_steps + pipeline.rgb_alignment_steps
    schedulers = [group["scheduler"] for group in config.optimizers.values() if group["scheduler"] is not None]
    assert config.max_num_iterations == total and {scheduler.max_steps for scheduler in schedulers} <= {total}
    said = " ".join(capsys.readouterr().out.split())
    assert f"preset quick chooses latent-supervision-steps {pipeline.latent_supervision_steps}, " in said
    assert config.resolved() == config and not capsys.readouterr().out  # as `--load-config` would


def test_options_of_the_user_win(tmp_path: Path) -> None:
    config = quick("igae-tensorf")
    config.pipeline.latent_supervision_steps, config.pipeline.decoder_lr_decay = 7, 0.5
    config.pipeline.model.num_samples = 9
    config.optimizers["decoder"]["optimizer"].lr = 3e-4
    config.optimizers["fields"]["scheduler"].max_steps = 11
    config = config.resolved()
    assert (config.pipeline.latent_supervision_steps, config.pipeline.decoder_lr_decay) == (7, 0.5)
    model = config.pipeline.model
    assert isinstance(model, LatentTensoRFConfig) and (model.num_samples, model.init_resolution) == (9, 48)
    assert config.optimizers["decoder"]["optimizer"].lr == 3e-4
    assert config.optimizers["fields"]["scheduler"].max_steps == 11
    assert config.optimizers["encodings"]["scheduler"].max_steps == config.max_num_iterations
    default = method_configs.igae_tensorf.config  # which nothing has changed
    assert isinstance(default, LatentTrainerConfig) and default.optimizers["decoder"]["optimizer"].lr == 1e-4

    file = tmp_path / "settings.yaml"
    file.write_text("preset: quick\nlatent_supervision_steps: 5\n")
    config = quick("igae-tensorf")
    config.pipeline.preset, config.pipeline.settings = "paper", file
    assert config.resolved().max_num_iterations == 5 + config.resolved().pipeline.rgb_alignment_steps


def test_a_method_without_the_preset_is_named() -> None:
    with pytest.raises(InputError, match="igae-nerfacto has no preset quick, .* take --pipeline.preset fast"):
        quick("igae-nerfacto").resolved()


def test_a_quick_run_is_built(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path, preset="quick")
    config.pipeline.model.num_samples = config.pipeline.model.init_resolution = None
    pipeline = config.resolved().pipeline.setup(device="cpu")
    assert pipeline.model.scene.config.num_samples == 20 and pipeline.model.scene.config.init_resolution == 48
