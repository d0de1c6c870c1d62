"""Training from Python, as Nerfstudio tests its own methods: a method's config, made small, and `train_loop`.

No command line has written a config or made a folder before.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import LATENT_METHODS, SMALL
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.scripts.train import train_loop

from igae_nerfstudio import method_configs
from igae_nerfstudio.errors import InputError


def small_config(method: str, scene: Path, autoencoder: Path, output_dir: Path) -> Any:
    """Two steps, on the CPU."""
    config: Any = deepcopy(getattr(method_configs, f"igae_{method}").config)
    config.machine.device_type = "cpu"
    config.max_num_iterations = 2
    config.vis = "tensorboard"
    config.output_dir, config.timestamp = output_dir, "timestamp"
    config.viewer.quit_on_train_completion = True
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=scene)
    if method != "kplanes_rgb":
        config.pipeline.autoencoder.name_or_path = str(autoencoder)
    for name, value in SMALL[method.removesuffix("_rgb")].items():
        setattr(config.pipeline.model, name, value)
    return config


@pytest.mark.parametrize("method", [*LATENT_METHODS, "kplanes_rgb"])
def test_every_method_trains_without_a_command_line(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    config = small_config(method, blender_scene, autoencoder_dir, tmp_path / "runs")
    before = yaml.dump(config)
    train_loop(local_rank=0, world_size=1, config=config)
    (checkpoint,) = (tmp_path / "runs").rglob("step-000000001.ckpt")
    assert torch.load(checkpoint, weights_only=True)["step"] == 1
    if method != "kplanes_rgb":
        config.set_experiment_name()  # Nerfstudio writes the name and the data into the config; we write nothing
        config.pipeline.datamanager.data = None
        assert yaml.dump(config).replace("experiment_name: unnamed", "experiment_name: null") == before
        written = yaml.load((checkpoint.parents[1] / "config.yml").read_text(), Loader=yaml.Loader)
        assert written.resolved() == written  # once, and resolved


def test_bad_input_is_an_exception_here(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    config = small_config("tensorf", blender_scene, autoencoder_dir, tmp_path)
    config.pipeline.rgb_alignment_steps = 0
    with pytest.raises(InputError, match="--pipeline.rgb-alignment-steps is 0"):
        train_loop(local_rank=0, world_size=1, config=config)
