"""What is compared: each method as Nerfstudio has it, in RGB, and as this package has it, in latents."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import method_configs as nerfstudio_methods
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from igae_nerfstudio import method_configs
from igae_nerfstudio.engine.trainer import default_device
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.instant_ngp import MarchedNGPConfig

Space = Literal["rgb", "latent", "peer"]
"""RGB, latents as this package trains them, and latents with other settings for comparison."""

METHODS = ("vanilla-nerf", "instant-ngp", "tensorf", "kplanes")

RGB_RAYS = 4096
"""Rays of an RGB training step, the batch of Nerfstudio's methods (of vanilla NeRF: 1,024; of Instant-NGP: as many as
give 2^18 samples)."""

PAPER_MINUTES = {"vanilla-nerf": (637, 28), "instant-ngp": (6, 19), "tensorf": (92, 20), "kplanes": (88, 29)}
"""Training, RGB and latent (paper, table 7)."""
PAPER_MILLISECONDS = {
    "vanilla-nerf": (1201, 26.4),
    "instant-ngp": (11.3, 14.0),
    "tensorf": (101.4, 17.1),
    "kplanes": (63.3, 18.0),
}
"""A picture of 128 x 128, RGB and latent with its decode (paper, table 7)."""


@dataclass(frozen=True)
class Side:
    """One method in one space, on pictures of one size."""

    method: str
    space: Space
    data: Path
    dataparser: str
    """A name that `ns-train` takes after its options, such as `blender-data`."""
    size: int
    """The longer side of the pictures in pixels; the scene's own are resampled to it."""
    autoencoder: str
    folder: Path
    """For what the trainer writes."""
    preset: str = "paper"
    """Of a latent side, as in --pipeline.preset."""
    settings: Optional[Path] = None
    """Of a latent side, as in --pipeline.settings."""


def dataparser_config(name: str, data: Path) -> DataParserConfig:
    """The config of a dataparser; `auto` tells a Blender scene by its files and takes `nerfstudio-data` otherwise.

    Raises:
        InputError: there is no such dataparser or no such folder.
    """
    if not data.exists():
        raise InputError(f"--data {data} does not exist; pass the folder of a scene")
    if name == "auto":
        name = "blender-data" if (data / "transforms_train.json").exists() else "nerfstudio-data"
    if name not in all_dataparsers:
        raise InputError(f"there is no dataparser '{name}'; choose one of {', '.join(all_dataparsers)}")
    config = deepcopy(all_dataparsers[name])
    config.data = data
    return config


def native_size(name: str, data: Path) -> int:
    """The longer side of a scene's pictures, in pixels.

    Raises:
        InputError: the scene cannot be read.
    """
    try:
        cameras = dataparser_config(name, data).setup().get_dataparser_outputs(split="train").cameras
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--data {data} cannot be read: {reason}; check the path or choose --dataparser") from error
    return int(max(cameras.height.max(), cameras.width.max()))


def trainer_config(side: Side) -> TrainerConfig:
    """The config that `ns-train` would run, with its defaults; writes no checkpoints and evaluates nothing itself."""
    if side.space != "rgb":
        name = f"igae_{side.method.replace('-', '_')}"
        config = deepcopy(getattr(method_configs, name).config)
        config.pipeline.autoencoder.name_or_path = side.autoencoder
        config.pipeline.preset, config.pipeline.settings = side.preset, side.settings
        config.pipeline.datamanager.latent_cache_dir = side.folder / "latents"
    else:
        config = _rgb_config(side.method)
        config.pipeline.datamanager.train_num_rays_per_batch = RGB_RAYS
        config.machine.device_type = default_device()
    data = config.pipeline.datamanager
    data.dataparser = dataparser_config(side.dataparser, side.data)
    # A hair more, so that sizes are not rounded down below what was asked for.
    data.camera_res_scale_factor = (side.size + 1e-3) / native_size(side.dataparser, side.data)
    config.data = side.data
    config.output_dir = side.folder
    config.experiment_name, config.timestamp = f"{side.method}-{side.space}-{side.size}", "bench"
    config.vis = "tensorboard"
    config.logging.local_writer.enable = False
    return config


def _rgb_config(method: str) -> Any:
    if method == "kplanes":  # which Nerfstudio lacks
        return deepcopy(method_configs.igae_kplanes_rgb.config)
    config: Any = deepcopy(nerfstudio_methods[method])
    if method == "instant-ngp":
        # Nerfstudio's own pipeline changes the number of rays, so that a step has 2^18 samples.
        config.pipeline = VanillaPipelineConfig(datamanager=config.pipeline.datamanager, model=config.pipeline.model)
        if default_device() == "cpu":  # Nerfstudio's own needs CUDA
            settings = {name: value for name, value in vars(config.pipeline.model).items() if name != "_target"}
            config.pipeline.model = MarchedNGPConfig(**settings)
    return config
