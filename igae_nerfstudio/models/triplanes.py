"""Tri-Planes of one scene as a Nerfstudio model (`rendering/triplanes.py`).

They are trained alone here, or come from many scenes learnt together: a run that `igae-scenes export` writes holds the
planes of one scene, with what it takes from the shared basis.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn
from torch.nn import Parameter

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import psnr
from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig
from igae_nerfstudio.rendering.total_variation import plane_variation
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig, TriPlaneRenderer, initial_planes

STRAIGHT = 0.02
"""Radians between a camera's axis and the middle of the scene, below which it looks straight at it."""


@dataclass
class LatentTriPlanesConfig(LatentModelConfig, ModelConfig):
    """Tri-Planes, rendering latents; K, F and samples as in table 10 of the paper."""

    _target: type = field(default_factory=lambda: LatentTriPlanes)
    resolution: int = 64
    """K, points along a side of each plane."""
    features: int = 32
    """F, features of a point."""
    hidden: int = 64
    """Width of the hidden layer that turns features into density and latent."""
    half_extent: float | None = None
    """Half the side of the cube around the origin that holds the scene, scene units; beyond it nothing is rendered.
    None: the dataset's scene box, or what the cameras see where all of them look straight at the origin."""
    samples: int = 48
    """Stratified samples of a ray."""
    importance_samples: int = 48
    """Further samples where the first found density."""
    enable_collider: bool = False
    """Rays begin and end at the cube."""
    loss_coefficients: dict[str, float] = to_immutable_dict({"latent_loss": 1.0, "plane_tv": 1e-4})
    """Weights of the squared error and of the planes' total variation (paper, equation 14)."""


class LatentTriPlanes(LatentModel, Model):
    """Three feature planes and a small network, without view dependence."""

    config: LatentTriPlanesConfig

    def populate_modules(self) -> None:
        Model.populate_modules(self)  # there is no RGB model to adapt
        config = self.config
        if config.half_extent is not None and not config.half_extent > 0:
            raise InputError(f"--pipeline.model.half-extent is {config.half_extent}; it must be positive")
        self.renderer = TriPlaneRenderer(
            TriPlaneConfig(
                resolution=config.resolution,
                features=config.features,
                hidden=config.hidden,
                half_extent=config.half_extent or float(self.scene_box.aabb.abs().max()),
                samples=config.samples,
                importance_samples=config.importance_samples,
            ),
            config.latent_channels,
        )
        self.planes = nn.Parameter(initial_planes(self.renderer.config, torch.default_generator))

    def set_background(self, background: Tensor) -> None:
        self.renderer.set_background(background)

    def set_training_cameras(self, cameras: Cameras) -> None:
        """Where all cameras look straight at the origin, as those of rendered objects do, the cube need not reach
        beyond the ball that they see."""
        seen = radius_seen(cameras)
        if self.config.half_extent is None and seen is not None:
            self._set_cube(min(seen, self.renderer.config.half_extent))

    def _set_cube(self, half_extent: float) -> None:
        self.renderer.config = replace(self.renderer.config, half_extent=half_extent)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        return {"planes": [self.planes], "fields": list(self.renderer.parameters())}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        limits = None
        if ray_bundle.nears is not None and ray_bundle.fars is not None:  # the viewer's crop
            limits = (ray_bundle.nears[None, :, 0], ray_bundle.fars[None, :, 0])
        render = self.renderer(self.planes[None], ray_bundle.origins[None], ray_bundle.directions[None], limits)
        return {
            "latent": render.latents[0],
            "accumulation": render.accumulation[0, :, None],
            "depth": render.depth[0, :, None],
        }

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latent_psnr": psnr(outputs["latent"][None], batch["latent"][None])[0]}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        loss = self.config.loss_coefficients["latent_loss"] * F.mse_loss(outputs["latent"], batch["latent"])
        return {"latent_loss": loss, **self.get_regularizers(outputs, batch)}

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The planes' total variation (paper, equation 14)."""
        return {"plane_tv": self.config.loss_coefficients["plane_tv"] * plane_variation(self.planes[None])}

    def get_extra_state(self) -> dict[str, Any]:
        """The cube travels in the checkpoint: planes mean nothing without it."""
        names = ("resolution", "features", "hidden", "half_extent")
        return {name: getattr(self.renderer.config, name) for name in names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the cube of a checkpoint; raises InputError where its planes have another shape."""
        for name in ("resolution", "features", "hidden"):
            mine = getattr(self.renderer.config, name)
            if state[name] != mine:
                raise InputError(
                    f"the checkpoint's Tri-Planes have {name} {state[name]} and the model's {mine}; set "
                    f"--pipeline.model.{name} {state[name]}"
                )
        self._set_cube(state["half_extent"])


def radius_seen(cameras: Cameras) -> float | None:
    """The radius of the ball around the origin beyond which no camera sees, scene units; None where a camera does not
    look straight at the origin or is no pinhole."""
    if bool((cameras.camera_type != CameraType.PERSPECTIVE.value).any()):
        return None
    positions, backward = cameras.camera_to_worlds[..., 3], cameras.camera_to_worlds[..., 2]
    distance = positions.norm(dim=-1)
    aside = torch.linalg.cross(positions, backward).norm(dim=-1)
    if bool(((positions * backward).sum(dim=-1) <= 0).any()) or bool((aside > STRAIGHT * distance).any()):
        return None
    # The widest angle of a picture is that of the corner that is farthest from the principal point.
    x, y = (
        torch.maximum(centre, size - centre) / focal
        for centre, size, focal in ((cameras.cx, cameras.width, cameras.fx), (cameras.cy, cameras.height, cameras.fy))
    )
    angle = torch.atan(torch.sqrt(x**2 + y**2))[..., 0]
    return float((distance * torch.sin(angle)).max())
