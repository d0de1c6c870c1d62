"""Presets fill what is open in a method's config, and what is chosen by hand stays."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace

import pytest
from conftest import LATENT_METHODS

from igae_nerfstudio import method_configs
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.tensorf import LatentTensoRFConfig

PRESETS = ("paper", "fast")


def config_of(method: str):
    return getattr(method_configs, f"igae_{method}").config.pipeline.model


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", LATENT_METHODS)
def test_a_preset_fills_what_is_open(method: str, preset: str) -> None:
    config = config_of(method)
    resolved = config.resolved(preset, 5)
    assert resolved.latent_channels == 5
    assert resolved.resolved(preset, 5) == resolved
    names = {name for values in config.presets.values() for name in values}
    assert all(getattr(config, name) is None for name in names), "a default would hide the preset"
    assert {name: getattr(resolved, name) for name in config.presets[preset]} == config.presets[preset]
    # Instant-NGP's step size is the one value that Nerfstudio's own code chooses.
    left = {name for name in names if getattr(resolved, name) is None}
    assert left == ({"render_step_size"} if (method, preset) == ("instant_ngp", "paper") else set())
    unchanged = {field.name for field in fields(config)} - names - {"latent_channels"}
    assert all(getattr(resolved, name) == getattr(config, name) for name in unchanged)


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_the_paper_preset_is_nerfstudios_default(method: str) -> None:
    """But for the occupancy grid, which is half as fine, as a latent pixel is eight times as wide as a pixel."""
    config = config_of(method)
    stock = next(kind for kind in type(config).__mro__ if kind.__module__.startswith("nerfstudio."))
    if method == "kplanes":  # which Nerfstudio lacks
        from igae_nerfstudio.models.kplanes import KPlanesModelConfig as stock
    for name, value in config.presets["paper"].items():
        if (method, name) not in (
            ("instant_ngp", "grid_resolution"),
            ("vanilla_nerf", "layer_width"),
            ("splatfacto", "num_gaussians"),
        ):
            assert value == getattr(stock(), name), name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", LATENT_METHODS)
def test_what_is_chosen_by_hand_stays(method: str, preset: str) -> None:
    """Also where it is what the other preset has."""
    config = config_of(method)
    chosen = config.presets["fast" if preset == "paper" else "paper"]
    by_hand = replace(config, **chosen).resolved(preset, 4)
    assert {name: getattr(by_hand, name) for name in chosen} == chosen


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="no preset 'quick'; choose one of paper, fast"):
        LatentTensoRFConfig().resolved("quick", 4)


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_configs_can_be_inspected(method: str) -> None:
    config = config_of(method)
    assert not hasattr(config, "sdf_field")  # what `ns-export marching-cubes` asks
    assert dict(inspect.getmembers(config))["latent_channels"] == 16
