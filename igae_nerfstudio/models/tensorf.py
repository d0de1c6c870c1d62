"""TensoRF (Chen et al. 2022) with a latent head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Dict, Literal, Type

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHead, FieldHeadNames
from nerfstudio.model_components.losses import scale_gradients_by_distance_squared
from nerfstudio.models.tensorf import TensoRFModel, TensoRFModelConfig
from nerfstudio.utils import misc
from torch import Tensor

from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig, rename
from igae_nerfstudio.rendering.total_variation import mean_squared_variation

EMPTY_RAY = 1e-4
"""Accumulation of the coarse pass below which TensoRF leaves a ray to the background."""


@dataclass
class LatentTensoRFConfig(LatentModelConfig, TensoRFModelConfig):
    """Nerfstudio's TensoRF, rendering latents."""

    _target: Type = field(default_factory=lambda: LatentTensoRF)
    regularization: Literal["none", "l1", "tv"] = "tv"
    """Total variation, as in Nerfstudio's `tensorf` method."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))

    fast: ClassVar[Dict[str, Any]] = {
        "init_resolution": 64,
        "final_resolution": 128,
        "num_samples": 24,
        "num_uniform_samples": 64,
    }


class LatentTensoRF(LatentModel, TensoRFModel):
    """Vector-matrix density and latent grids with a linear head of c channels."""

    config: LatentTensoRFConfig

    def adapt_field(self, latent_channels: int) -> None:
        self.field.field_output_rgb = FieldHead(
            latent_channels, FieldHeadNames.RGB, in_dim=self.field.field_output_rgb.in_dim
        )

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Any]:
        """As in Nerfstudio, which writes three white channels into empty rays; here the latent background."""
        if self.training:
            self.camera_optimizer.apply_to_raybundle(ray_bundle)
        coarse = self.sampler_uniform(ray_bundle)
        with torch.no_grad():  # they only say where to look; no loss has a gradient through them
            coarse_weights = coarse.get_weights(self.field.get_density(coarse))
            occupied = self.renderer_accumulation(coarse_weights).flatten() >= EMPTY_RAY

        fine = self.sampler_pdf(ray_bundle, coarse, coarse_weights)
        field_outputs = self._field_outputs(fine, occupied)
        if self.config.use_gradient_scaling:
            field_outputs = scale_gradients_by_distance_squared(field_outputs, fine)
        weights = fine.get_weights(field_outputs[FieldHeadNames.DENSITY])
        return {
            "latent": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": torch.clamp(self.renderer_accumulation(weights), min=0),
            "depth": self.renderer_depth(weights, fine),
        }

    def _field_outputs(self, samples: RaySamples, occupied: Tensor) -> Dict[FieldHeadNames, Tensor]:
        """Densities (R, S, 1) and latents (R, S, c) of samples; 0 and background on rays that are not `occupied` (R,).

        Latents, which cost most, are evaluated where the density is above 0 alone. That changes nothing: elsewhere the
        weight is 0, and so is, as the density ends in a ReLU, every gradient.
        """
        density = torch.zeros(*samples.shape, 1, device=occupied.device)
        latent = self.renderer_rgb.background.expand(*samples.shape, -1).clone()
        if occupied.any():
            density[occupied] = self.field.get_density(samples[occupied])
            dense = density[..., 0] > 0
            if dense.any():
                latent[dense] = self.field.get_outputs(samples[dense][:, None])[:, 0]
        return {FieldHeadNames.DENSITY: density, FieldHeadNames.RGB: latent}

    def get_loss_dict(self, outputs: Dict[str, Any], batch: Dict[str, Tensor], metrics_dict=None) -> Dict[str, Tensor]:
        """As in Nerfstudio, with its total variation (twice the mean square) computed faster."""
        if self.config.regularization != "tv":
            return super().get_loss_dict(outputs, batch, metrics_dict)
        losses = {
            "rgb_loss": self.rgb_loss(batch["latent"], outputs["latent"]),
            "tv_reg_density": 2 * mean_squared_variation(self.field.density_encoding.plane_coef),
            "tv_reg_color": 2 * mean_squared_variation(self.field.color_encoding.plane_coef),
        }
        self.camera_optimizer.get_loss_dict(losses)
        return rename(misc.scale_dict(losses, self.config.loss_coefficients), "rgb", "latent")
