"""Configurations of other versions load, or say what is missing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from conftest import latent_config

from igae_nerfstudio import method_configs  # noqa: F401  registers the reading of this package's objects
from igae_nerfstudio.engine import old_runs
from igae_nerfstudio.errors import InputError


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A config.yml as `ns-train` writes it."""
    return yaml.dump(latent_config("tensorf", tmp_path / "scene", tmp_path / "autoencoder", tmp_path))


def read(text: str):
    return yaml.load(text, Loader=yaml.Loader)  # as Nerfstudio's commands do


def test_a_config_of_this_version_loads_as_it_was(saved: str, capsys) -> None:
    config = read(saved)
    assert yaml.dump(config) == saved
    assert config.pipeline.autoencoder.encode_precision == "float32"
    assert "another version" not in capsys.readouterr().out


def test_a_class_that_is_gone_is_named(saved: str) -> None:
    text = saved.replace("latent_pipeline.LatentPipelineConfig", "pipeline.OldPipelineConfig")
    with pytest.raises(InputError, match=r"igae_nerfstudio\.pipelines\.pipeline\.OldPipelineConfig.*another version"):
        read(text)
    text = saved.replace("latent_pipeline.LatentPipeline ''", "latent_pipeline.OldPipeline ''")
    with pytest.raises(InputError, match="OldPipeline"):
        read(text)


def test_a_class_that_has_moved_is_followed(saved: str, monkeypatch) -> None:
    old = "igae_nerfstudio.pipelines.pipeline.OldPipelineConfig"
    monkeypatch.setitem(old_runs.MOVED, old, "igae_nerfstudio.pipelines.latent_pipeline.LatentPipelineConfig")
    config = read(saved.replace("igae_nerfstudio.pipelines.latent_pipeline.LatentPipelineConfig", old))
    assert type(config.pipeline).__name__ == "LatentPipelineConfig"
    assert config.pipeline.rgb_alignment_steps == 15_000


def test_settings_of_other_versions(saved: str, capsys) -> None:
    """What the file lacks takes its default, with a factory too; what is unknown is passed over; both are said."""
    config = read(saved)
    del config.pipeline.__dict__["autoencoder"], config.pipeline.__dict__["decoder_lr_decay"]
    config.pipeline.old_setting = 3
    loaded = read(yaml.dump(config)).pipeline
    assert loaded.autoencoder.name_or_path == "bundled" and loaded.decoder_lr_decay == 0.9996
    assert not hasattr(loaded, "old_setting")
    said = " ".join(capsys.readouterr().out.split())
    assert "autoencoder, decoder_lr_decay take their defaults" in said and "old_setting are no longer known" in said


def test_a_class_of_another_package_that_is_gone_is_named(saved: str) -> None:
    text = saved.replace("blender_dataparser.BlenderDataParserConfig", "gone_dataparser.GoneDataParserConfig")
    with pytest.raises(InputError, match=r"gone_dataparser.*other versions of Nerfstudio or of its plugins") as error:
        read(text)
    assert "\n" not in str(error.value)


def test_other_packages_are_read_as_before() -> None:
    with pytest.raises(yaml.YAMLError):
        read("!!python/object:nerfstudio.no.Such {}")


def test_a_checkpoint_of_another_model_is_named(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path)
    pipeline = config.pipeline.setup(device="cpu")
    state = copy.deepcopy(pipeline.state_dict())
    state["_model._extra_state"]["version"] = "0.0.9"
    state["_model.scene.field.B.weight"] = torch.zeros(3, 3)
    with pytest.raises(InputError, match=r"does not fit the model .*B\.weight.* 0\.0\.9, and this is") as error:
        pipeline.load_pipeline(state, 0)
    assert "\n" not in str(error.value)
