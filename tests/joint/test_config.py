"""Settings from YAML and from command lines, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint import command, compositions
from igae_nerfstudio.joint.config import IGAEConfig, ManyScenesConfig

CONFIGS = {"igae": IGAEConfig, "many_scenes": ManyScenesConfig}


def load(*names: str, folder: str = "igae") -> Any:
    config = CONFIGS[folder]()
    for name in names:
        config = with_settings(config, read_yaml(ROOT / "configs" / folder / f"{name}.yaml"), name)
    config.check()
    return config


@pytest.mark.parametrize("folder", CONFIGS)
def test_every_config_of_the_repository_loads(folder: str) -> None:
    for path in (ROOT / "configs" / folder).glob("*.yaml"):
        load(path.stem, folder=folder)


def test_the_papers_table_10() -> None:
    config = load("paper")
    assert (config.data.max_scenes, config.stage1.epochs, config.stage2.epochs) == (500, 50, 75)
    weights = config.weights
    assert (weights.latent, weights.rgb, weights.plane_tv) == (1, 1, 1e-4)
    assert (weights.scene_autoencoding, weights.real_autoencoding) == (0.1, 0.1)
    assert (weights.real_perceptual, weights.real_latent_tv) == (0.1, 1e-4)
    assert (weights.real_latent_moments, weights.equivariance_picture, weights.equivariance_latent) == (0, 0, 0)
    assert config.latent_normalization == "tanh"  # the weights belong to it
    stage = config.stage2
    assert (stage.views_per_batch, stage.real_per_batch) == (12, 3)
    assert (stage.encoder_lr, stage.decoder_lr, stage.planes_lr, config.lr_decay) == (5e-5, 5e-5, 1e-4, 0.988)


@pytest.mark.parametrize(
    "text, message",
    [
        ("stage3: {}", "no setting 'stage3'; the nearest is 'stage[12]'"),
        ("weights: {latents: 1}", "no setting 'weights.latents'; the nearest is 'weights.latent'"),
        ("weights: {rgb: -1}", "weights.rgb is -1"),
        ("weights: {equivariance_latent: .inf}", "weights.equivariance_latent is inf"),
        ("stage2: {latent_rescaling: 0}", "stage2.latent_rescaling is 0"),
        ("stage1: {views_per_batch: 7}", "no multiple of stage1.views_per_scene"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        with_settings(IGAEConfig(), read_yaml(path), str(path)).check()


def test_ablations_go_over_any_config() -> None:
    full, no_3d, no_pr = load("cpu"), load("cpu", "no_3d"), load("cpu", "no_pr")
    assert (no_3d.weights.latent, no_3d.weights.rgb, no_3d.stage2.latent_rescaling) == (0, 0, None)
    assert no_3d.weights.real_autoencoding == full.weights.real_autoencoding > 0
    assert (no_pr.weights.scene_autoencoding, no_pr.weights.real_autoencoding) == (0, 0)
    assert no_pr.weights.real_latent_moments == 0 and no_pr.weights.latent == full.weights.latent > 0
    assert no_3d.triplanes == no_pr.triplanes == full.triplanes


def test_the_command_takes_files_and_then_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(compositions, "train_igae", lambda *arguments: seen.extend(arguments))
    files = [str(ROOT / "configs" / "igae" / f"{name}.yaml") for name in ("cpu", "no_pr")]
    folders = ["--scenes", "S", "--images", "I", "--output-dir", "O"]
    command.main(["--config", *files, "--stage2.epochs", "3", "--weights.latent", "0.25", *folders, "--no-tensorboard"])
    config, scenes, images, output_dir, autoencoder, tensorboard, wandb = seen
    expected = load("cpu", "no_pr")
    expected.stage2.epochs, expected.weights.latent = 3, 0.25
    assert config == expected
    assert (scenes, images, output_dir) == (Path("S"), Path("I"), Path("O"))
    assert (autoencoder, tensorboard, wandb) == ("bundled-ae", False, False)


def test_help_shows_every_setting_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["--help"], prog="igae train")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert end.value.code == 0 and "usage: igae train" in text
    assert "--stage2.encoder-lr" in text and "Adam's rate for E (table 10: 5e-5)." in text


def test_a_bad_file_or_folder_is_one_line(tmp_path: Path) -> None:
    folders = ["--scenes", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="config .*none.yaml does not exist"):
        command.main([*folders, "--config", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit, match="the folder of scenes .*none does not exist"):
        command.main(folders)
