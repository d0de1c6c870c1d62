"""Runs of two steps, for tests of what reads finished runs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from conftest import SMALL, latent_config, tiny_autoencoder, write_blender_scene
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

from igae_nerfstudio import method_configs


def make_runs(folder: Path) -> dict[str, Path]:
    """A latent and an RGB run of one scene, and a latent one of another scene; two steps each."""
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    scene = write_blender_scene(folder / "scene", counts=(4, 3, 3))
    other = write_blender_scene(folder / "other", counts=(4, 2, 2))
    phases = {"latent_supervision_steps": 1, "rgb_alignment_steps": 1}
    latent = latent_config("kplanes", scene, folder / "autoencoder", folder / "latent", **phases)
    elsewhere = latent_config("kplanes", other, folder / "autoencoder", folder / "elsewhere", **phases)
    rgb = deepcopy(method_configs.igae_kplanes_rgb.config)
    rgb.machine.device_type, rgb.vis, rgb.max_num_iterations = "cpu", "tensorboard", 2
    rgb.output_dir, rgb.experiment_name, rgb.timestamp = folder / "rgb", "test", "now"
    rgb.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=scene)
    rgb.pipeline.datamanager.train_num_rays_per_batch = rgb.pipeline.datamanager.eval_num_rays_per_batch = 64
    for name, value in SMALL["kplanes"].items():
        setattr(rgb.pipeline.model, name, value)
    for config in (latent, elsewhere, rgb):
        config.save_config()
        trainer = config.setup()
        trainer.setup()
        trainer.train()
    return {name: folder / name for name in ("latent", "elsewhere", "rgb")}
