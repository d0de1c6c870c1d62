"""Settings of an IG-AE training, from YAML files that hold only what differs from the defaults.

The defaults are the paper's (table 10) where the paper gives a value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Type, TypeVar

import yaml

from igae_nerfstudio.autoencoder.normalization import LatentNormalization
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig

C = TypeVar("C", bound="IGAEConfig")


@dataclass
class DataConfig:
    """What is read."""

    view_size: int = 128
    """Side of views and of crops of real images, pixels."""
    max_scenes: Optional[int] = None
    """Take the first scenes only; None: all (paper: 500)."""
    max_views: Optional[int] = None
    """Take so many training views of each scene, evenly over its list; None: all (paper: 300)."""
    hold_out_every: Optional[int] = 20
    """Every so many-th real image is kept for validation; None: none is."""


@dataclass
class Stage1Config:
    """Tri-Planes on the latents of the autoencoder as it is (paper, section 4.2: before training)."""

    epochs: int = 50
    """Passes over all views (table 10: 50)."""
    views_per_batch: int = 32
    """Views of a step, over all processes."""
    views_per_scene: int = 4
    """Views of one scene in a step; a step has views_per_batch / views_per_scene scenes."""
    planes_lr: float = 1e-3
    """Adam's rate for the planes."""
    renderer_lr: float = 1e-3
    """Adam's rate for the shared feature decoder."""
    plane_tv: float = 1e-5
    """Weight of the planes' total variation."""


@dataclass
class Stage2Config:
    """Everything together (paper, equation 12)."""

    epochs: int = 75
    """Passes over all views (table 10: 75)."""
    views_per_batch: int = 12
    """Scene views of a step, over all processes (table 10: 12)."""
    views_per_scene: int = 3
    """Views of one scene in a step."""
    real_per_batch: int = 3
    """Real images of a step, over all processes (table 10: 3)."""
    latent_rescaling: Optional[float] = None
    """Before the stage begins, scale each direction of the latent space by the share of its variance that the
    Tri-Planes explain, at least by this (`joint/latent_basis.py`); None: leave it, as in the paper."""
    encoder_lr: float = 5e-5
    """Adam's rate for E (table 10: 5e-5)."""
    decoder_lr: float = 5e-5
    """Adam's rate for D (table 10: 5e-5)."""
    convolutions_lr: Optional[float] = None
    """Learning rate of Muon (`autoencoder/muon.py`) for the autoencoder's convolutions;
    None: they learn with Adam, as in the paper. Much faster where there is little time."""
    planes_lr: float = 1e-4
    """Adam's rate for the planes (table 10: 1e-4)."""
    renderer_lr: float = 1e-4
    """Adam's rate for the shared feature decoder (table 10: 1e-4)."""


@dataclass
class WeightsConfig:
    """The lambdas of equations 8, 10 and 11 (table 10); 0 switches a term off."""

    latent: float = 1.0
    """L_latent: encoded against rendered latents, to encoder and planes (equation 6)."""
    rgb: float = 1.0
    """L_RGB: decoded renders against views, to decoder and planes (equation 7)."""
    scene_autoencoding: float = 0.1
    """L_ae (synth): views through the autoencoder (equation 9)."""
    real_autoencoding: float = 0.1
    """L_ae (real): the whole of equation 10."""
    real_perceptual: float = 0.1
    """LPIPS within equation 10."""
    real_latent_tv: float = 1e-4
    """Total variation of real images' latents, (p, q) = (2, 1), within equation 10."""
    real_latent_moments: float = 0.0
    """Keeps mean and standard deviation of each latent channel on real images as they were, in units of that standard
    deviation. Not in the paper; without it, the encoder lowers L_latent most easily by shrinking all latents."""
    plane_tv: float = 1e-4
    """Total variation of the planes, (p, q) = (2, 2)."""


@dataclass
class IGAEConfig:
    """One IG-AE training."""

    data: DataConfig = field(default_factory=DataConfig)
    triplanes: TriPlaneConfig = field(default_factory=TriPlaneConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    lr_decay: float = 0.988
    """Factor on all rates per epoch, from 1 at the start of each stage (table 10: 0.988)."""
    latent_normalization: LatentNormalization = "standardize"
    """How latents are scaled before they are compared: per channel to mean 1/2 and standard deviation 1/4, by the
    authors' `tanh(0.02 z)`, or not at all. Table 10's weights belong to tanh (paper.yaml); with the others L_latent is
    a thousand times larger, and needs a small weight (cpu.yaml)."""
    sample_posterior: bool = False
    """Draw latents from a variational encoder's posterior instead of taking its mean."""
    mixed_precision: bool = True
    """bfloat16 on GPUs that have it."""
    seed: int = 0
    """Of everything random."""
    minutes_per_checkpoint: float = 10.0
    """Time between checkpoints; there is also one at the end of each stage."""
    steps_per_log: int = 20
    """Steps between lines of metrics.jsonl."""
    steps_per_figure: int = 1000
    """Steps between figures and validations."""

    def check(self) -> None:
        """Raises InputError for values that make no sense."""
        for name in ("stage1", "stage2"):
            stage = getattr(self, name)
            for key in ("views_per_batch", "views_per_scene"):
                if getattr(stage, key) < 1:
                    raise InputError(f"{name}.{key} is {getattr(stage, key)}; it must be 1 or more")
            if stage.epochs < 0:
                raise InputError(f"{name}.epochs is {stage.epochs}; it must be 0 or more")
            if stage.views_per_batch % stage.views_per_scene:
                raise InputError(
                    f"{name}.views_per_batch is {stage.views_per_batch}, no multiple of {name}.views_per_scene "
                    f"({stage.views_per_scene})"
                )
        rescaling = self.stage2.latent_rescaling
        if rescaling is not None and not 0 < rescaling <= 1:
            raise InputError(f"stage2.latent_rescaling is {rescaling}; it must be above 0 and at most 1")
        for key, value in dataclasses.asdict(self.weights).items():
            if not value >= 0:
                raise InputError(f"weights.{key} is {value}; it must be 0 or more")
        for key, value in dataclasses.asdict(self.triplanes).items():
            if key not in ("importance_samples", "jitter") and not value > 0:
                raise InputError(f"triplanes.{key} is {value}; it must be above 0")


def load_config(
    *paths: Path, overrides: Sequence[str] = (), of: Type[Any] = IGAEConfig, base: Optional[Dict[str, Any]] = None
) -> Any:
    """Read YAML files.

    Args:
        paths: the files, later over earlier ones; keys that all leave out keep their defaults.
        overrides: further settings such as `stage2.epochs=3`, over all.
        of: which settings.
        base: nested settings to start from, in place of the defaults.

    Raises:
        InputError: no such file, no YAML, a key that does not exist (with the nearest one that does), a value of
            the wrong type, or values that make no sense.
    """
    config = with_settings(of(), base or {}, "the settings")
    for path in paths:
        config = with_settings(config, read_yaml(path), str(path))
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"the override '{key}' must read key=value, for instance stage2.epochs=3")
        own = yaml.safe_load(value)
        for name in reversed(key.split(".")):
            own = {name: own}
        config = with_settings(config, own, f"the override '{item}'")
    config.check()
    return config


def to_dict(config: IGAEConfig) -> Dict[str, Any]:
    """Nested dictionaries, all values included."""
    return dataclasses.asdict(config)
