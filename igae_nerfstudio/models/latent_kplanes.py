"""K-Planes (Fridovich-Keil et al. 2023) with a latent head; the RGB model is in `kplanes.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Type

from igae_nerfstudio.models.kplanes import KPlanesField, KPlanesModel, KPlanesModelConfig
from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig


@dataclass
class LatentKPlanesConfig(LatentModelConfig, KPlanesModelConfig):
    """K-Planes, rendering latents."""

    _target: Type = field(default_factory=lambda: LatentKPlanes)

    fast: ClassVar[Dict[str, Any]] = {
        "grid_base_resolution": (32, 32, 32),
        "multiscale_factors": (1, 2),
        "grid_feature_dim": 16,
        "proposal_resolutions": (32,),
        "num_proposal_samples_per_ray": (48,),
        "num_nerf_samples_per_ray": 24,
    }


class LatentKPlanes(LatentModel, KPlanesModel):
    """Multi-scale feature planes with linear outputs of c channels."""

    config: LatentKPlanesConfig

    def make_field(self) -> KPlanesField:
        latent_head: Dict[str, Any] = {"out_channels": self.config.latent_channels, "output_activation": None}
        return KPlanesField(**self.field_arguments(), **latent_head)

    def adapt_field(self, latent_channels: int) -> None:
        """`make_field` has done it."""
