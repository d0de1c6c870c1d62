"""Settings from YAML, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import IGAEConfig, load_config


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "igae").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path: Path) -> None:
    load_config(path)


def test_the_papers_table_10() -> None:
    config = load_config(ROOT / "configs" / "igae" / "paper.yaml")
    assert (config.data.max_scenes, config.stage1.epochs, config.stage2.epochs) == (500, 50, 75)
    weights = config.weights
    assert (weights.latent, weights.rgb, weights.plane_tv) == (1, 1, 1e-4)
    assert (weights.scene_autoencoding, weights.real_autoencoding) == (0.1, 0.1)
    assert (weights.real_perceptual, weights.real_latent_tv) == (0.1, 1e-4)
    assert config.latent_normalization == "tanh"  # the weights belong to it
    stage = config.stage2
    assert (stage.views_per_batch, stage.real_per_batch) == (12, 3)
    assert (stage.encoder_lr, stage.decoder_lr, stage.planes_lr, config.lr_decay) == (5e-5, 5e-5, 1e-4, 0.988)
    assert config == IGAEConfig() or config.data != IGAEConfig().data  # the defaults are the paper's, sizes aside


@pytest.mark.parametrize(
    "text, message",
    [
        ("stage3: {}", "no setting 'stage3'; the nearest is 'stage[12]'"),
        ("weights: {latents: 1}", "no setting 'weights.latents'; the nearest is 'weights.latent'"),
        ("weights: 3", "'weights' must be a group of settings"),
        ("seed: many", "'seed' is 'many'; it must be int"),
        ("seed: 1.5", "'seed' is 1.5; it must be int"),
        ("lr_decay: [1]", "'lr_decay' is .*; it must be float"),
        ("mixed_precision: 1", "'mixed_precision' is 1; it must be bool"),
        ("latent_normalization: log", "must be one of standardize, tanh, none"),
        ("weights: {rgb: -1}", "weights.rgb is -1"),
        ("stage2: {latent_rescaling: 0}", "stage2.latent_rescaling is 0"),
        ("stage1: {views_per_batch: 7}", "no multiple of stage1.views_per_scene"),
        ("a: [", "no readable YAML"),
        ("- 1", "must hold"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_overrides_and_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("stage2: {encoder_lr: 1e-4}\ndata: {max_scenes: null}")
    config = load_config(path, overrides=("stage2.epochs=3", "weights.rgb=0"))
    assert config.stage2.encoder_lr == 1e-4 and config.stage2.epochs == 3 and config.weights.rgb == 0
    assert config.data.max_scenes is None
    with pytest.raises(InputError, match="key=value"):
        load_config(path, overrides=("stage2.epochs",))
    with pytest.raises(InputError, match="override 'stage2.epoch=3': there is no setting 'stage2.epoch'"):
        load_config(path, overrides=("stage2.epoch=3",))
    with pytest.raises(InputError, match="no readable value"):
        load_config(path, overrides=("seed=[",))
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "missing.yaml")


def test_ablations_go_over_any_config() -> None:
    folder = ROOT / "configs" / "igae"
    full = load_config(folder / "cpu.yaml")
    no_3d, no_pr = (load_config(folder / "cpu.yaml", folder / f"{name}.yaml") for name in ("no_3d", "no_pr"))
    assert (no_3d.weights.latent, no_3d.weights.rgb, no_3d.stage2.latent_rescaling) == (0, 0, None)
    assert no_3d.weights.real_autoencoding == full.weights.real_autoencoding > 0
    assert (no_pr.weights.scene_autoencoding, no_pr.weights.real_autoencoding) == (0, 0)
    assert no_pr.weights.real_latent_moments == 0 and no_pr.weights.latent == full.weights.latent > 0
    assert no_3d.triplanes == no_pr.triplanes == full.triplanes
