"""Instant-NGP (Mueller et al. 2022), on CUDA and on the CPU, in RGB and with a latent head.

    MarchedNGP          Nerfstudio's model, which trains on machines without CUDA too
    RGBInstantNGP       the same with a field that is evaluated faster
    LatentInstantNGP    rendering latents

On CUDA, nerfacc's compiled kernels march the occupancy grid and tinycudann evaluates the field where they can be
had. Everywhere else `rendering/occupancy_marching.py` marches the same grid in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.losses import scale_gradients_by_distance_squared
from nerfstudio.model_components.ray_samplers import VolumetricSampler
from nerfstudio.models.instant_ngp import InstantNGPModelConfig, NGPModel
from torch import Tensor

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.errors import one_line
from igae_nerfstudio.models.latent_model import LatentModel, LatentModelConfig, built_for_cuda, linear_head
from igae_nerfstudio.rendering.hash_encoding import use_fast_hash_encoding
from igae_nerfstudio.rendering.occupancy_marching import march_occupancy_grid, render_weights


@cache
def kernels_work() -> bool:
    """Whether nerfacc's CUDA kernels can be had; where nvcc is, it compiles them at their first use, for minutes."""
    try:
        from nerfacc.cuda._backend import _C
    except Exception as error:  # of ninja, the compiler, the linker or the loader
        warn(f"nerfacc's CUDA kernels cannot be compiled; plain torch marches instead ({one_line(error)[:200]})")
        return False
    return _C is not None


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
        """`rgb` (R, c), `accumulation` (R, 1), `depth` (R, 1) and `num_samples_per_ray` (R,) of R rays."""
        if self.compiled:
            return super().get_outputs(ray_bundle)
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
        step_size = self.config.render_step_size
        assert step_size is not None  # chosen where the model is built
        marched = march_occupancy_grid(
            self.occupancy_grid,
            ray_bundle.origins,
            ray_bundle.directions,
            self.field.density_fn if self.training else None,
            near_plane=self.config.near_plane,
            far_plane=self.config.far_plane,
            render_step_size=step_size,
            cone_angle=self.config.cone_angle,
            alpha_thre=self.config.alpha_thre,
            stratified=self.training,
            nears=ray_bundle.nears,
            fars=ray_bundle.fars,
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
    """Nerfstudio's model, with a hash encoding that is several times faster in plain torch.

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
        network = "torch" if self.field.mlp_head.tcnn_encoding is None else "tinycudann"
        marching = "nerfacc's CUDA kernels" if self.compiled else "plain torch"
        log(f"Instant-NGP: occupancy grid marched by {marching}, field evaluated by {network}")


@dataclass
class LatentInstantNGPConfig(LatentModelConfig, RGBInstantNGPConfig):
    """Instant-NGP, rendering latents."""

    _target: type = field(default_factory=lambda: LatentInstantNGP)
    grid_resolution: int | None = None
    """Cells along a side of each level of the occupancy grid; None: the preset's (paper: 64, half of Nerfstudio's, as
    a latent pixel is eight times as wide as a pixel; fast: 32)."""
    render_step_size: float | None = None
    """Distance between samples, scene units; None: the preset's (paper: Nerfstudio's choice, a thousandth of the box's
    diagonal; fast: 0.02)."""
    cone_angle: float | None = None
    """Growth of that distance per scene unit; None: the preset's (paper: 0.004, fast: 0)."""
    max_res: int | None = None
    """Resolution of the finest hash grid; None: the preset's (paper: 2048, fast: 256)."""
    log2_hashmap_size: int | None = None
    """Binary logarithm of the entries of each hash grid; None: the preset's (paper: 19, fast: 17)."""

    presets = {
        "paper": {"grid_resolution": 64, "cone_angle": 0.004, "max_res": 2048, "log2_hashmap_size": 19},
        "fast": {
            "grid_resolution": 32,
            "render_step_size": 0.02,
            "cone_angle": 0.0,
            "max_res": 256,
            "log2_hashmap_size": 17,
        },
    }


class LatentInstantNGP(LatentModel, RGBInstantNGP):
    """Hash grid and occupancy grid with a linear head of c channels."""

    config: LatentInstantNGPConfig

    def adapt_field(self, latent_channels: int) -> None:
        self.field.mlp_head = linear_head(self.field.mlp_head, latent_channels)

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """None."""
        return {}
