"""What is compared.

    stock     the method as Nerfstudio has it, in RGB
    twin      the same in RGB with every part that makes the latent method faster: fused Adam, a faster hash encoding,
              no colours of empty samples, a faster total variation, the same occupancy grid and far plane
    latent    the latent method

So stock / twin is what the parts buy, twin / latent what the latent space buys. Speed is measured with the methods'
defaults, quality over time with settings in which each learns fast (`over_time.yaml`).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import method_configs as nerfstudio_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from benchmarks.bench import OVER_TIME, Cell
from benchmarks.rgb_splatfacto import RGBSplatfactoConfig
from igae_nerfstudio import method_configs
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.engine.trainer import default_device
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.instant_ngp import MarchedNGPConfig, RGBInstantNGPConfig
from igae_nerfstudio.models.tensorf import RGBTensoRFConfig
from igae_nerfstudio.presets import QUICK, decoder_decay, with_quick_settings

RGB_RAYS = 4096
"""Rays of an RGB step, as in Nerfstudio's TensoRF (vanilla NeRF: 1,024; Instant-NGP: as many as have 2^18 samples)."""


def trainer_config(cell: Cell) -> TrainerConfig:
    """The training of a cell, which evaluates nothing itself."""
    latent: Any = deepcopy(getattr(method_configs, f"igae_{cell.method.replace('-', '_')}").config)
    if cell.baseline == "latent":
        config = latent
        config.pipeline.autoencoder.name_or_path = cell.autoencoder
        config.pipeline.preset = cell.preset
        config.pipeline.datamanager.latent_cache_dir = cell.path.with_suffix("") / "latents"
    else:
        config = rgb_config(cell, latent)
    config.pipeline.datamanager.dataparser = dataparser_config(cell)
    config.pipeline.datamanager.camera_res_scale_factor = scale_factor(cell)
    config.data, config.output_dir = cell.data, cell.path.parent
    config.experiment_name, config.timestamp, config.vis = cell.path.stem, "bench", "tensorboard"
    config.logging.local_writer.enable = False
    return learning_fast(config, cell) if cell.over_time else config


def rgb_config(cell: Cell, latent: Any) -> Any:
    """Nerfstudio's method or the twin of the latent one, both with Nerfstudio's plain datamanager and pipeline.

    TensoRF's own datamanager has processes, whose work this process's clock does not see; Instant-NGP's own pipeline
    changes the number of rays.
    """
    methods: dict[str, Any] = {**nerfstudio_methods, "kplanes": method_configs.igae_kplanes_rgb.config}
    config = deepcopy(methods[cell.method])
    model = config.pipeline.model
    if cell.baseline == "twin":
        config.optimizers = {name: group for name, group in latent.optimizers.items() if name != "decoder"}
        if cell.method == "tensorf":
            model = RGBTensoRFConfig()
        elif cell.method == "instant-ngp":
            model = RGBInstantNGPConfig(eval_num_rays_per_chunk=8192, grid_resolution=64, far_plane=4.0)
        elif cell.method == "vanilla-nerf":
            model.collider_params = latent.pipeline.model.collider_params
        elif cell.method == "splatfacto":
            model = RGBSplatfactoConfig()
    elif cell.method == "instant-ngp" and default_device() == "cpu":  # Nerfstudio's marching needs CUDA
        model = MarchedNGPConfig(eval_num_rays_per_chunk=8192)
    data: Any = VanillaDataManagerConfig(train_num_rays_per_batch=RGB_RAYS, eval_num_rays_per_batch=RGB_RAYS)
    if cell.method == "splatfacto":  # whole pictures in place of rays
        data = replace(config.pipeline.datamanager, cache_images_type="float32")
    config.pipeline = VanillaPipelineConfig(datamanager=data, model=model)
    config.machine.device_type = default_device()
    return config


def learning_fast(config: Any, cell: Cell) -> Any:
    """The config with the preset `quick` or, in RGB, the settings of `over_time.yaml`, and schedules that end with its
    last step."""
    where, settings, steps = str(OVER_TIME), read_yaml(OVER_TIME)[cell.method].get(cell.baseline, {}), steps_of(cell)
    for entries in (settings.get("pipeline", {}), settings.get("from_256_pixels", {}) if cell.size >= 256 else {}):
        config.pipeline = with_settings(config.pipeline, entries, where)
    with_steps(config, steps)
    if cell.baseline == "latent":
        config.pipeline.preset = "quick"
        return with_quick_settings(config)
    for name, group in config.optimizers.items():
        for part, entries in settings.get("optimizers", {}).get(name, {}).items():
            group[part] = with_settings(group[part], entries, where)
    return config


def with_steps(config: Any, steps: list[int]) -> None:
    """Set the length of RGB's one phase, or of the two of latents; schedules of rates end with the last step."""
    if len(steps) == 2:
        config.pipeline.latent_supervision_steps, config.pipeline.rgb_alignment_steps = steps
        config.pipeline.decoder_lr_decay = decoder_decay(steps[1])
    for group in config.optimizers.values():
        if group["scheduler"] is not None:
            group["scheduler"].max_steps = sum(steps)


def steps_of(cell: Cell) -> list[int]:
    """Steps of a training over time: RGB's, or those of latent supervision and of RGB alignment."""
    if cell.baseline == "latent":
        quick = read_yaml(QUICK)[f"igae-{cell.method}"]["pipeline"]
        steps = [quick["latent_supervision_steps"], quick["rgb_alignment_steps"]]
    else:
        steps = read_yaml(OVER_TIME)[cell.method][cell.baseline]["steps"]
    return [max(1, round(cell.quality * count)) for count in steps]


def dataparser_config(cell: Cell) -> Any:
    """The config of the scene's dataparser; raises InputError where there is none of that name."""
    name = cell.dataparser
    if name == "auto":
        name = "blender-data" if (cell.data / "transforms_train.json").exists() else "nerfstudio-data"
    if name not in all_dataparsers:
        raise InputError(f"there is no dataparser '{name}'; choose one of {', '.join(all_dataparsers)}")
    config = deepcopy(all_dataparsers[name])
    config.data = cell.data
    return config


def longest_side(cell: Cell) -> int:
    """Pixels along the longer side of the scene's largest picture."""
    cameras = dataparser_config(cell).setup().get_dataparser_outputs(split="train").cameras
    return int(max(cameras.height.max(), cameras.width.max()))


def scale_factor(cell: Cell) -> float:
    """On the scene's pictures, for the cell's size; a hair more, so that no side is rounded down below it."""
    return (cell.size + 1e-3) / longest_side(cell)
