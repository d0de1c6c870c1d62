"""Presets and settings files: what they change, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from igae_nerfstudio import method_configs
from igae_nerfstudio.config_files import use_fast_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.vanilla_nerf import LatentVanillaNeRFConfig
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipelineConfig

REPOSITORY = Path(__file__).parents[2]
METHODS = ("vanilla_nerf", "instant_ngp", "tensorf", "kplanes", "nerfacto")


def pipeline_of(method: str) -> LatentPipelineConfig:
    from copy import deepcopy

    return deepcopy(getattr(method_configs, f"igae_{method}").config.pipeline)


@pytest.mark.parametrize("method", METHODS)
def test_the_fast_preset_sets_what_exists_and_keeps_what_was_chosen(method: str) -> None:
    fast, paper = pipeline_of(method), pipeline_of(method)
    fast.preset = "fast"
    fast.resolve()
    for name, value in fast.model.fast.items():
        assert getattr(fast.model, name) == value != getattr(paper.model, name)
    assert bool(fast.model.fast) == (method != "nerfacto")
    chosen = LatentVanillaNeRFConfig(num_coarse_samples=77)
    use_fast_settings(chosen)
    assert chosen.num_coarse_samples == 77 and chosen.layer_width == 128


@pytest.mark.parametrize("method", METHODS)
def test_the_authors_schedule_is_read(method: str) -> None:
    pipeline = pipeline_of(method)
    pipeline.settings = REPOSITORY / "configs/latent_nerf/official.yaml"
    model, dataparser = pipeline.model, pipeline.datamanager.dataparser
    pipeline.resolve()
    assert pipeline.datamanager.images_per_batch == 1 and pipeline.latent_normalization == "tanh"
    assert pipeline.rgb_alignment_lr_factor == 0.1 and not pipeline.regularize_alignment
    assert pipeline.model is model and pipeline.datamanager.dataparser is dataparser and pipeline.settings is None
    pipeline.resolve()  # once more changes nothing
    assert pipeline.datamanager.images_per_batch == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rgb_alignment_step: 3", "no setting 'rgb_alignment_step'; the nearest is 'rgb_alignment_steps'"),
        ("datamanager: {images_per_batch: many}", "'datamanager.images_per_batch' is 'many'; it must be int"),
        ("model: {num_coarse_samples: 8}", "no setting 'model.num_coarse_samples'"),
        ("latent_normalization: linear", "must be one of standardize, tanh, none"),
        ("[1, 2]", "must hold `key: value` lines"),
    ],
)
def test_bad_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    pipeline = pipeline_of("tensorf")
    pipeline.settings = tmp_path / "settings.yaml"
    pipeline.settings.write_text(text)
    with pytest.raises(InputError, match=message):
        pipeline.resolve()
    assert pipeline.datamanager.images_per_batch == 4
