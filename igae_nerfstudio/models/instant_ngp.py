"""Instant-NGP (Mueller et al. 2022), on CUDA and on the CPU, in RGB and with a latent head.

    MarchedNGP          Nerfstudio's own model, which trains on machines without CUDA too
    RGBInstantNGP       its field as Nerfstudio means it, evaluated faster
    LatentInstantNGP    rendering latents

On CUDA, nerfacc's compiled kernels march the occupancy grid and tinycudann evaluates the field where it can be
imported. Everywhere else `rendering/occupancy_marching.py` marches the same grid in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.losses import scale_gradients_by_distance_squared
from nerfstudio.model_components.ray_samplers import VolumetricSampler
from nerfstudio.models.instant_ngp import InstantNGPModelConfig, NGPModel
from torch import Tensor

from igae_nerfstudio.console import log
from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig, built_for_cuda
from igae_nerfstudio.models.nerfacto_field import give_latent_head
from igae_nerfstudio.rendering.hash_encoding import use_fast_hash_encoding
from igae_nerfstudio.rendering.nerfacc_kernels import kernels_work
from igae_nerfstudio.rendering.occupancy_marching import march_occupancy_grid, render_weights


@dataclass
class MarchedNGPConfig(InstantNGPModelConfig):
    """Nerfstudio's Instant-NGP, which trains on machines without CUDA too."""

    _target: type = field(default_factory=lambda: MarchedNGP)


class MarchedNGP(NGPModel):
    """Nerfstudio's model; where its compiled kernels cannot run, plain torch marches its occupancy grid."""

    def populate_modules(self) -> None:
        self.config = replace(self.config)  # Nerfstudio writes the step size that it chooses into it
        super().populate_modules()
        self.compiled = built_for_cuda(self) and kernels_work()

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        return super().get_outputs(ray_bundle) if self.compiled else self._march(ray_bundle)

    def _march(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Nerfstudio's `get_outputs` without compiled kernels."""
        num_rays = len(ray_bundle)
        samples, ray_indices = self._samples(ray_bundle)
        field_outputs = self.field(samples)
        if self.config.use_gradient_scaling:
            field_outputs = scale_gradients_by_distance_squared(field_outputs, samples)
        weights = render_weights(
            field_outputs[FieldHeadNames.DENSITY][..., 0],
            samples.frustums.starts[..., 0],
            samples.frustums.ends[..., 0],
            ray_indices,
            num_rays,
        )[..., None]
        packed = {"weights": weights, "ray_indices": ray_indices, "num_rays": num_rays}
        return {
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], **packed),
            "accumulation": self.renderer_accumulation(**packed),
            "depth": self.renderer_depth(ray_samples=samples, **packed),
            "num_samples_per_ray": torch.bincount(ray_indices, minlength=num_rays),
        }

    def _samples(self, ray_bundle: RayBundle) -> tuple[RaySamples, Tensor]:
        """What Nerfstudio's `VolumetricSampler` returns: packed samples (n, 1) and the ray of each, (n,)."""
        nears, fars = ray_bundle.nears, ray_bundle.fars
        marched = march_occupancy_grid(
            self.occupancy_grid,
            ray_bundle.origins,
            ray_bundle.directions,
            self.field.density_fn if self.training else None,
            near_plane=self.config.near_plane,
            far_plane=self.config.far_plane,
            render_step_size=self.config.render_step_size,
            cone_angle=self.config.cone_angle,
            alpha_thre=self.config.alpha_thre,
            stratified=self.training,
            nears=None if nears is None else nears.flatten(),
            fars=None if fars is None else fars.flatten(),
        )
        index, starts, ends = marched.ray_indices, marched.t_starts, marched.t_ends
        if len(index) == 0:  # one sample of no length, so that losses keep a gradient
            index, starts, ends = index.new_zeros(1), starts.new_ones(1), ends.new_ones(1)
        rays = ray_bundle[index]
        frustums = Frustums(rays.origins, rays.directions, starts[:, None], ends[:, None], rays.pixel_area)
        return RaySamples(frustums=frustums, camera_indices=rays.camera_indices), index


@dataclass
class RGBInstantNGPConfig(MarchedNGPConfig):
    """Instant-NGP in RGB, computed faster where tinycudann is not there."""

    _target: type = field(default_factory=lambda: RGBInstantNGP)


class RGBInstantNGP(MarchedNGP):
    """Nerfstudio's model, whose hash encoding in plain torch is several times faster.

    Nerfstudio 1.1.5 gives the field an appearance embedding when `use_appearance_embedding` is off, and none when it
    is on; here the setting means what it says.
    """

    config: RGBInstantNGPConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        self.field = NerfactoField(
            aabb=self.scene_box.aabb,
            num_images=self.num_train_data,
            log2_hashmap_size=self.config.log2_hashmap_size,
            max_res=self.config.max_res,
            spatial_distortion=None if self.config.disable_scene_contraction else SceneContraction(float("inf")),
            appearance_embedding_dim=32 if self.config.use_appearance_embedding else 0,
            implementation="tcnn" if built_for_cuda(self) else "torch",
        )
        use_fast_hash_encoding(self.field)
        self.sampler = VolumetricSampler(self.occupancy_grid, self.field.density_fn)
        network = "tinycudann" if self.field.mlp_head.tcnn_encoding is not None else "torch"
        marching = "nerfacc's CUDA kernels" if self.compiled else "plain torch"
        log(f"Instant-NGP: occupancy grid marched by {marching}, field evaluated by {network}")


@dataclass
class LatentInstantNGPConfig(LatentModelConfig, RGBInstantNGPConfig):
    """Instant-NGP, rendering latents."""

    _target: type = field(default_factory=lambda: LatentInstantNGP)
    grid_resolution: int = 64
    """Cells along a side of each level of the occupancy grid; half of Nerfstudio's 128, as a latent pixel is
    eight times as wide as a pixel."""

    fast: ClassVar[dict[str, Any]] = {
        "grid_resolution": 32,
        "render_step_size": 0.02,
        "cone_angle": 0.0,
        "max_res": 256,
        "log2_hashmap_size": 17,
    }


class LatentInstantNGP(LatentModel, RGBInstantNGP):
    """Hash grid and occupancy grid with a linear head of c channels."""

    config: LatentInstantNGPConfig

    def adapt_field(self, latent_channels: int) -> None:
        give_latent_head(self.field, latent_channels)
