"""The twin of igae-splatfacto: the same Gaussians with three channels, trained on photos of their own size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from igae_nerfstudio.models.latent_model import rename
from igae_nerfstudio.models.splatfacto import LatentSplatfacto, LatentSplatfactoConfig


@dataclass
class RGBSplatfactoConfig(LatentSplatfactoConfig):
    """Colours in place of latents."""

    _target: type = field(default_factory=lambda: RGBSplatfacto)
    latent_channels: int = 3
    num_gaussians: int | None = 5_000


class RGBSplatfacto(LatentSplatfacto):
    """Renders `rgb`; takes what Nerfstudio's full-image datamanager gives, float pictures on white."""

    def populate_modules(self) -> None:
        super().populate_modules()
        self.set_background(torch.ones(3))

    def get_outputs(self, ray_bundle: Cameras) -> dict[str, Any]:
        return rename(super().get_outputs(ray_bundle), "latent", "rgb")

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        outputs = rename(super().get_outputs_for_camera(camera, obb_box), "latent", "rgb")
        return {**outputs, "rgb": outputs["rgb"].clamp(0, 1)}

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        return super().get_loss_dict({"latent": outputs["rgb"]}, {"latent": batch["image"].flatten(0, 1)})
