"""Nerfacto (Tancik et al. 2023) with a latent head: what a further method takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor

from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig, built_for_cuda, linear_head


@dataclass
class LatentNerfactoConfig(LatentModelConfig, NerfactoModelConfig):
    """Nerfstudio's nerfacto, rendering latents."""

    _target: type = field(default_factory=lambda: LatentNerfacto)
    use_appearance_embedding: bool = False
    """Latents have no exposure or white balance to explain."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Poses stay as they are."""


class LatentNerfacto(LatentModel, NerfactoModel):
    """Hash grid, proposal networks, linear head of c channels."""

    config: LatentNerfactoConfig

    def populate_modules(self) -> None:
        if not built_for_cuda(self):
            self.config = replace(self.config, implementation="torch")  # tinycudann's modules exist on CUDA only
        super().populate_modules()

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interlevel and distortion loss of mip-NeRF 360, in training."""
        if not self.training:
            return {}
        along_rays = outputs["weights_list"], outputs["ray_samples_list"]
        return {
            "interlevel_loss": self.config.interlevel_loss_mult * interlevel_loss(*along_rays),
            "distortion_loss": self.config.distortion_loss_mult * distortion_loss(*along_rays),
        }

    def adapt_field(self, latent_channels: int) -> None:
        self.field.mlp_head = linear_head(self.field.mlp_head, latent_channels)
