"""Nerfacto (Tancik et al. 2023) with a latent head: what a further method takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig

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

    def populate_modules(self) -> None:
        if not built_for_cuda(self):
            self.config = replace(self.config, implementation="torch")  # tinycudann's modules exist on CUDA only
        super().populate_modules()

    def adapt_field(self, latent_channels: int) -> None:
        self.field.mlp_head = linear_head(self.field.mlp_head, latent_channels)
