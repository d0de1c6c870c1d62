"""Vanilla NeRF (Mildenhall et al. 2020) with latent heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.field_heads import FieldHead, FieldHeadNames
from nerfstudio.fields.vanilla_nerf_field import NeRFField
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig
from torch import Tensor

from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig


@dataclass
class LatentVanillaNeRFConfig(LatentModelConfig, VanillaModelConfig):
    """Nerfstudio's vanilla NeRF, rendering latents."""

    _target: type = field(default_factory=lambda: LatentVanillaNeRF)
    layer_width: int | None = None
    """Width of the layers of both networks, half of it after the direction enters; None: the preset's (paper: 256,
    fast: 128)."""
    num_coarse_samples: int | None = None
    """Samples of the coarse network; None: the preset's (paper: 64, fast: 32)."""
    num_importance_samples: int | None = None
    """Further samples of the fine network; None: the preset's (paper: 128, fast: 32)."""

    presets = {
        "paper": {"layer_width": 256, "num_coarse_samples": 64, "num_importance_samples": 128},
        "fast": {"layer_width": 128, "num_coarse_samples": 32, "num_importance_samples": 32},
    }


class LatentVanillaNeRF(LatentModel, NeRFModel):
    """Coarse and fine MLP with linear heads of c channels; the fine render is the one that is decoded."""

    config: LatentVanillaNeRFConfig
    field_coarse: Any
    field_fine: Any

    def adapt_field(self, latent_channels: int) -> None:
        width, encodings = self.config.layer_width, ("position_encoding", "direction_encoding")
        assert width is not None  # the config is resolved
        for name in ("field_coarse", "field_fine"):
            nerf: Any = NeRFField(
                **{encoding: getattr(getattr(self, name), encoding) for encoding in encodings},
                base_mlp_layer_width=width,
                head_mlp_layer_width=width // 2,
            )
            (colours,) = nerf.field_heads
            nerf.field_heads[0] = FieldHead(latent_channels, FieldHeadNames.RGB, in_dim=colours.in_dim)
            setattr(self, name, nerf)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        outputs = super().get_outputs(ray_bundle)
        for name in ("latent", "accumulation", "depth"):
            outputs[name] = outputs[f"{name}_fine"]
        return outputs

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The squared error of the coarse render: no picture is made of it, so equation 3 does not teach it."""
        weight = self.config.loss_coefficients["rgb_loss_coarse"]
        return {"latent_loss_coarse": weight * self.rgb_loss(batch["latent"], outputs["latent_coarse"])}
