"""TensoRF (Chen et al. 2022) with fewer evaluations and a faster total variation, in RGB and with a latent head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHead, FieldHeadNames
from nerfstudio.model_components.losses import scale_gradients_by_distance_squared
from nerfstudio.models.tensorf import TensoRFModel, TensoRFModelConfig
from nerfstudio.utils import misc
from torch import Tensor

from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig
from igae_nerfstudio.rendering.total_variation import mean_squared_variation

EMPTY_RAY = 1e-4
"""Accumulation of the coarse pass below which TensoRF leaves a ray to the background."""


@dataclass
class RGBTensoRFConfig(TensoRFModelConfig):
    """Nerfstudio's TensoRF with the settings of its `tensorf` method, computed faster."""

    _target: type = field(default_factory=lambda: RGBTensoRF)
    regularization: Literal["none", "l1", "tv"] = "tv"
    """Total variation, as in Nerfstudio's `tensorf` method."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Poses stay as they are."""
    background_color: Literal["random", "black", "white"] = "white"
    """Colour behind the scene; Nerfstudio's `last_sample` would need the colours of empty samples."""


class RGBTensoRF(TensoRFModel):
    """Nerfstudio's TensoRF: the same weights, renders, losses and gradients, with less work."""

    config: RGBTensoRFConfig

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """`rgb` (R, c), `accumulation` (R, 1) and `depth` (R, 1) of R rays; the coarse pass has no gradient."""
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
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": torch.clamp(self.renderer_accumulation(weights), min=0),
            "depth": self.renderer_depth(weights, fine),
        }

    def _field_outputs(self, samples: RaySamples, occupied: Tensor) -> dict[FieldHeadNames, Tensor]:
        """Densities (R, S, 1) and colours (R, S, c) of samples; 0 on rays that are not `occupied` (R,).

        Colours, which cost most, are evaluated only where the density is above 0. That changes nothing: elsewhere the
        weight is 0, and so is, as the density ends in a ReLU, every gradient.
        """
        density = torch.zeros(*samples.shape, 1, device=occupied.device)
        colour = torch.zeros(*samples.shape, self.field.field_output_rgb.get_out_dim(), device=occupied.device)
        if occupied.any():
            density[occupied] = self.field.get_density(samples[occupied])
            dense = density[..., 0] > 0
            if dense.any():
                colour[dense] = self.field.get_outputs(samples[dense][:, None])[:, 0]
        return {FieldHeadNames.DENSITY: density, FieldHeadNames.RGB: colour}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        """As in Nerfstudio, with its total variation (twice the mean square) computed faster."""
        rendered, target = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"],
            pred_accumulation=outputs["accumulation"],
            gt_image=batch["image"].to(self.device),
        )
        loss = misc.scale_dict({"rgb_loss": self.rgb_loss(target, rendered)}, self.config.loss_coefficients)
        return {**loss, **self.get_regularizers(outputs, batch)}

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Total variation or L1 of the grids, times `loss_coefficients`."""
        losses: dict[str, Tensor] = {}
        if self.config.regularization == "tv":
            losses["tv_reg_density"] = 2 * mean_squared_variation(self.field.density_encoding.plane_coef)
            losses["tv_reg_color"] = 2 * mean_squared_variation(self.field.color_encoding.plane_coef)
        elif self.config.regularization == "l1":
            grids = torch.cat([grid.flatten() for grid in self.field.density_encoding.parameters()])
            losses["l1_reg"] = grids.abs().mean()
        self.camera_optimizer.get_loss_dict(losses)
        return misc.scale_dict(losses, self.config.loss_coefficients)


@dataclass
class LatentTensoRFConfig(LatentModelConfig, RGBTensoRFConfig):
    """TensoRF, rendering latents."""

    _target: type = field(default_factory=lambda: LatentTensoRF)
    init_resolution: int | None = None
    """Grid points along a side at first; None: the preset's (paper: 128, fast: 64)."""
    final_resolution: int | None = None
    """Grid points along a side at last; None: the preset's (paper: 300, fast: 128)."""
    num_samples: int | None = None
    """Samples of the fine pass; None: the preset's (paper: 50, fast: 24)."""
    num_uniform_samples: int | None = None
    """Samples of the coarse pass; None: the preset's (paper: 200, fast: 64)."""

    presets = {
        "paper": {"init_resolution": 128, "final_resolution": 300, "num_samples": 50, "num_uniform_samples": 200},
        "fast": {"init_resolution": 64, "final_resolution": 128, "num_samples": 24, "num_uniform_samples": 64},
    }


class LatentTensoRF(LatentModel, RGBTensoRF):
    """Vector-matrix density and latent grids with a linear head of c channels."""

    config: LatentTensoRFConfig

    def adapt_field(self, latent_channels: int) -> None:
        self.field.field_output_rgb = FieldHead(
            latent_channels, FieldHeadNames.RGB, in_dim=self.field.field_output_rgb.in_dim
        )
