"""K-Planes (Fridovich-Keil et al. 2023) with a latent head; the RGB model is in `kplanes.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from igae_nerfstudio.models.kplanes import KPlanesModel, KPlanesModelConfig
from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig, linear_head


@dataclass
class LatentKPlanesConfig(LatentModelConfig, KPlanesModelConfig):
    """K-Planes, rendering latents."""

    _target: type = field(default_factory=lambda: LatentKPlanes)
    grid_base_resolution: tuple[int, int, int] | None = None
    """Grid points along x, y, z at scale 1, each >= 2; None: the preset's (paper: 128, fast: 32)."""
    multiscale_factors: tuple[int, ...] | None = None
    """Multipliers of the base resolution, >= 1, one grid each; None: the preset's (paper: 1 2 4, fast: 1 2)."""
    grid_feature_dim: int | None = None
    """Features per scale, >= 1; None: the preset's (paper: 32, fast: 16)."""
    proposal_resolutions: tuple[int, ...] | None = None
    """Grid points per side of each proposal network; None: the preset's (paper: 64 128, fast: 32)."""
    num_proposal_samples_per_ray: tuple[int, ...] | None = None
    """Samples per ray of each proposal network; None: the preset's (paper: 256 128, fast: 48)."""
    num_nerf_samples_per_ray: int | None = None
    """Samples per ray of the field; None: the preset's (paper: 48, fast: 24)."""

    presets = {
        "paper": {
            "grid_base_resolution": (128, 128, 128),
            "multiscale_factors": (1, 2, 4),
            "grid_feature_dim": 32,
            "proposal_resolutions": (64, 128),
            "num_proposal_samples_per_ray": (256, 128),
            "num_nerf_samples_per_ray": 48,
        },
        "fast": {
            "grid_base_resolution": (32, 32, 32),
            "multiscale_factors": (1, 2),
            "grid_feature_dim": 16,
            "proposal_resolutions": (32,),
            "num_proposal_samples_per_ray": (48,),
            "num_nerf_samples_per_ray": 24,
        },
    }


class LatentKPlanes(LatentModel, KPlanesModel):
    """Multi-scale feature planes with linear outputs of c channels."""

    config: LatentKPlanesConfig

    def adapt_field(self, latent_channels: int) -> None:
        self.field.color_net = linear_head(self.field.color_net, latent_channels)
