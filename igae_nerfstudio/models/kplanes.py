"""K-Planes (Fridovich-Keil et al. 2023, arXiv 2301.10241) of a static scene, on Nerfstudio's own components.

This is the hybrid variant (small MLP decoders) with the planes xy, xz, yz. The pieces and where they come from:

- plane features, product over the planes (eq. 1, 2): Nerfstudio's `KPlanesEncoding`;
- several scales, concatenated: `KPlanesField`;
- total variation of the planes (eq. 3): `plane_total_variation`;
- proposal sampling, interlevel and distortion losses: mip-NeRF 360 (arXiv 2111.12077) as in Nerfstudio.

The model is built like nerfacto, so code that adapts nerfacto adapts it too. Lengths are in scene units, after the
dataparser's scaling; F is the features of a scale, G those that the density net hands to the colour net.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Literal

import torch
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.encodings import KPlanesEncoding, SHEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP
from nerfstudio.field_components.spatial_distortions import SceneContraction, SpatialDistortion
from nerfstudio.fields.base_field import Field
from nerfstudio.model_components.losses import MSELoss, distortion_loss, interlevel_loss
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler, UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor, nn
from torch.nn import Parameter

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import ImageMetrics, psnr
from igae_nerfstudio.rendering.total_variation import mean_squared_variation


def plane_total_variation(planes: Iterable[Tensor]) -> Tensor:
    """Squared total variation (K-Planes eq. 3) of planes, each (F, H, W) with H, W >= 2: the mean over all of them.

    The paper sums over the features where this takes the mean, so its values are F times larger; the authors'
    published code halves the sum of the two axes, so its values are half of these.
    """
    return torch.stack([mean_squared_variation(plane) for plane in planes]).mean()


def to_grid_coordinates(
    positions: Tensor, aabb: Tensor, spatial_distortion: SpatialDistortion | None = None
) -> tuple[Tensor, Tensor]:
    """World positions (..., 3) to the [-1, 1]^3 that `KPlanesEncoding` expects.

    Without a distortion the box (2, 3) is mapped there. With `SceneContraction(order=inf)`, whose range is [-2, 2]^3
    (mip-NeRF 360 eq. 10 with the max norm), all of space lands inside, whatever the box.

    Returns:
        Coordinates (..., 3), float32, and whether they are in [-1, 1]^3, faces included, (..., 1) bool.
    """
    # float32 also under autocast: half precision has fewer steps in [-1, 1] than a 512^2 plane needs.
    positions = positions.float()
    if spatial_distortion is not None:
        coordinates = spatial_distortion(positions) / 2.0
    else:
        coordinates = (positions - aabb[0]) / (aabb[1] - aabb[0]) * 2.0 - 1.0
    return coordinates, (coordinates.abs() <= 1.0).all(dim=-1, keepdim=True)


class _PlaneField(Field):
    """What radiance field and proposal networks share: plane features to a density (and further features).

    Args:
        aabb: (2, 3), scene box corners [min, max], scene units.
        bounded: there is no density beyond the box; else all of space is contracted into the grid.
    """

    aabb: Tensor
    sigma_net: MLP

    def __init__(self, aabb: Tensor, bounded: bool) -> None:
        super().__init__()
        self.register_buffer("aabb", aabb.detach().clone().float())
        # The max norm makes a cube of all of space, like the grid.
        self.spatial_distortion = None if bounded else SceneContraction(order=float("inf"))

    def grids(self) -> list[Any]:
        """The `KPlanesEncoding`s, by scale."""
        raise NotImplementedError

    def planes(self) -> list[Parameter]:
        """All planes by scale, then xy, xz, yz; shapes (F, points on 2nd axis, points on 1st axis)."""
        return [plane for grid in self.grids() for plane in grid.plane_coefs]

    def plane_features(self, coordinates: Tensor) -> Tensor:
        """Products of three plane features (eq. 1, 2), scales concatenated: (n, 3) in [-1, 1] to (n, F * scales)."""
        return torch.cat([grid(coordinates) for grid in self.grids()], dim=-1)

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Density (..., 1), per scene unit, 0 outside the box, and the net's further outputs (..., G); float32.

        The density is exp(raw - 1). The shift is the authors': the first density is about 0.37, so the volume starts
        half transparent. The backward pass is Nerfstudio's truncated one.
        """
        positions = ray_samples.frustums.get_positions()
        coordinates, inside = to_grid_coordinates(positions, self.aabb, self.spatial_distortion)
        raw = self.sigma_net(self.plane_features(coordinates.reshape(-1, 3))).float()
        raw = raw.view(*positions.shape[:-1], self.sigma_net.out_dim)
        density = trunc_exp(raw[..., :1] - 1.0)
        # `where` and not a product, since inf * 0 = nan.
        return torch.where(inside, density, torch.zeros_like(density)), raw[..., 1:]


def _mlp(in_dim: int, num_layers: int, layer_width: int, out_dim: int, out_activation: nn.Module | None = None) -> MLP:
    sizes: dict[str, Any] = {"in_dim": in_dim, "num_layers": num_layers, "layer_width": layer_width, "out_dim": out_dim}
    return MLP(**sizes, activation=nn.ReLU(), out_activation=out_activation, implementation="torch")


class KPlanesField(_PlaneField):
    """K-Planes radiance field of a static scene with small MLP decoders (arXiv 2301.10241, eq. 1 and 2).

    `f(x) = concat_s prod_{k in xy, xz, yz} P_k^s(x)`, `(sigma_raw, g) = sigma_net(f)`,
    `density = exp(sigma_raw - 1)`, `colour = color_net(SH(direction), g)`. Pure torch.
    """

    def __init__(self, aabb: Tensor, config: KPlanesModelConfig) -> None:
        super().__init__(aabb, config.bounded)
        self.encodings = nn.ModuleList(
            KPlanesEncoding([side * factor for side in config.grid_base_resolution], config.grid_feature_dim)
            for factor in config.multiscale_factors
        )
        features = config.grid_feature_dim * len(config.multiscale_factors)
        self.sigma_net = _mlp(features, config.num_layers_sigma, config.hidden_dim, 1 + config.geo_feat_dim)
        self.direction_encoding = SHEncoding(levels=4, implementation="torch")
        features = self.direction_encoding.get_out_dim() + config.geo_feat_dim
        self.color_net = _mlp(features, config.num_layers_color, config.hidden_dim, 3, nn.Sigmoid())

    def grids(self) -> list[Any]:
        return list(self.encodings)

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """Colours (..., c), float32, of samples with the features (..., G) of `get_density`."""
        assert density_embedding is not None
        # Directions in [-1, 1]; the shift to [0, 1] is tiny-cuda-nn's.
        encoded = self.direction_encoding(ray_samples.frustums.directions.float())
        colour = self.color_net(torch.cat([encoded, density_embedding], dim=-1))
        return {FieldHeadNames.RGB: colour.float()}


class KPlanesDensityField(_PlaneField):
    """One small K-Planes grid of `resolution`^3 points with a density only: a proposal network."""

    def __init__(self, aabb: Tensor, config: KPlanesModelConfig, resolution: int) -> None:
        super().__init__(aabb, config.bounded)
        self.encoding = KPlanesEncoding([resolution] * 3, config.proposal_feature_dim)
        self.sigma_net = _mlp(config.proposal_feature_dim, 2, config.proposal_hidden_dim, 1)

    def grids(self) -> list[Any]:
        return [self.encoding]

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict:
        """No colour."""
        return {}


@dataclass
class KPlanesModelConfig(ModelConfig):
    """K-Planes of a static scene."""

    _target: type = field(default_factory=lambda: KPlanesModel)
    bounded: bool = True
    """True: the scene is inside the scene box (rays clipped to it, first samples uniform in depth). False: all of
    space, contracted, rays from near_plane to far_plane, first samples piecewise."""
    near_plane: float = 0.05
    """Distance along the ray where sampling starts, >= 0. With bounded=True Nerfstudio's box collider applies it in
    training only; in evaluation rays start at the box, or at a camera inside it."""
    far_plane: float = 6.0
    """Distance along the ray where sampling stops, > near_plane, with bounded=False."""
    background_color: Literal["random", "last_sample", "black", "white"] = "white"
    """Colour behind the volume, as in nerfacto."""
    grid_base_resolution: tuple[int, int, int] = (128, 128, 128)
    """Grid points along x, y, z at scale 1, each >= 2."""
    multiscale_factors: tuple[int, ...] = (1, 2, 4)
    """Multipliers of the base resolution, >= 1, one grid each; their features are concatenated."""
    grid_feature_dim: int = 32
    """Features per scale, >= 1."""
    geo_feat_dim: int = 15
    """Features from the density net to the colour net, >= 1."""
    hidden_dim: int = 64
    """Width of the hidden layers of the density and colour nets, >= 1."""
    num_layers_sigma: int = 2
    """Linear layers of the density net, >= 1."""
    num_layers_color: int = 3
    """Linear layers of the colour net, >= 1."""
    proposal_resolutions: tuple[int, ...] = (64, 128)
    """Grid points per side of each proposal network, each >= 2; its length is the number of networks."""
    proposal_feature_dim: int = 8
    """Features of each proposal grid, >= 1."""
    proposal_hidden_dim: int = 64
    """Width of the hidden layer of each proposal network, >= 1."""
    num_proposal_samples_per_ray: tuple[int, ...] = (256, 128)
    """Samples per ray of each proposal network, as many numbers as proposal_resolutions."""
    num_nerf_samples_per_ray: int = 48
    """Samples per ray of the field, >= 1."""
    use_single_jitter: bool = False
    """One random offset for all samples of a ray (True) or one per sample (False), in training."""
    proposal_update_every: int = 5
    """Steps between proposal network updates after the warm-up, >= 1; their total variation counts in every step."""
    proposal_warmup: int = 5000
    """Steps over which that interval grows from 1, >= 0."""
    use_proposal_weight_anneal: bool = True
    """Anneal the proposal weights at the start of the training (mip-NeRF 360 eq. 18)."""
    proposal_weights_anneal_slope: float = 10.0
    """Slope of the annealing, > 0; larger goes faster to the unchanged weights."""
    proposal_weights_anneal_max_num_iters: int = 1000
    """Steps after which the proposal weights are used unchanged, >= 1."""
    loss_coefficients: dict[str, float] = to_immutable_dict(
        {"rgb_loss": 1.0, "plane_tv": 0.01, "plane_tv_proposal": 1e-4, "interlevel": 1.0, "distortion": 0.01}
    )
    """Weight (>= 0) of each loss term; all must be there. A regulariser with weight 0 is not computed."""


class KPlanesModel(Model):
    """K-Planes as a Nerfstudio model with the structure of nerfacto."""

    config: KPlanesModelConfig
    field: KPlanesField

    def populate_modules(self) -> None:
        super().populate_modules()
        config = self.config
        num_proposals = len(config.proposal_resolutions)
        if num_proposals < 1 or len(config.num_proposal_samples_per_ray) != num_proposals:
            raise InputError(
                f"proposal_resolutions {config.proposal_resolutions} and num_proposal_samples_per_ray "
                f"{config.num_proposal_samples_per_ray} must have the same length, 1 or more; set both"
            )
        self.field = KPlanesField(self.scene_box.aabb, config)
        networks = [KPlanesDensityField(self.scene_box.aabb, config, side) for side in config.proposal_resolutions]
        self.proposal_networks = nn.ModuleList(networks)
        self.density_fns = [network.density_fn for network in networks]
        self.proposal_sampler = ProposalNetworkSampler(
            num_nerf_samples_per_ray=config.num_nerf_samples_per_ray,
            num_proposal_samples_per_ray=tuple(config.num_proposal_samples_per_ray),
            num_proposal_network_iterations=num_proposals,
            single_jitter=config.use_single_jitter,
            update_sched=self.proposal_update_interval,
            # A clipped ray has no far tail: equal steps in depth. None is Nerfstudio's piecewise sampler.
            initial_sampler=UniformSampler(single_jitter=config.use_single_jitter) if config.bounded else None,
        )
        if config.enable_collider:
            near, far = config.near_plane, config.far_plane
            self.collider = AABBBoxCollider(self.scene_box, near) if config.bounded else NearFarCollider(near, far)
        self.renderer_rgb: Any = RGBRenderer(background_color=config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        # Median: it does not average across a depth edge, nor depend on the other rays of the chunk.
        self.renderer_depth = DepthRenderer(method="median")
        self.rgb_loss = MSELoss()
        self.image_metrics = ImageMetrics()

    def proposal_update_interval(self, step: int) -> float:
        """Steps between proposal network updates: from 1 to `proposal_update_every` over `proposal_warmup` steps."""
        warmup = self.config.proposal_warmup
        fraction = 1.0 if warmup <= 0 else min(float(step) / warmup, 1.0)
        return max(1.0, float(self.config.proposal_update_every) * fraction)

    def proposal_anneal(self, step: int) -> float:
        """Exponent on the proposal weights, from 0 (uniform resampling) to 1 (mip-NeRF 360 eq. 18)."""
        fraction = min(float(step) / max(self.config.proposal_weights_anneal_max_num_iters, 1), 1.0)
        slope = float(self.config.proposal_weights_anneal_slope)
        return slope * fraction / ((slope - 1.0) * fraction + 1.0)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        parts = {"proposal_networks": self.proposal_networks, "fields": self.field}
        return {name: list(part.parameters()) for name, part in parts.items()}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Annealing before each training step (if configured), the sampler's step counter after it."""

        def anneal(step: int) -> None:
            self.proposal_sampler.set_anneal(self.proposal_anneal(step))

        # Counted always, not only with annealing as in nerfacto: else the update schedule would stay at step 0.
        count = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.proposal_sampler.step_cb, 1)
        if not self.config.use_proposal_weight_anneal:
            return [count]
        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], anneal, 1), count]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """`rgb` (R, c), `accumulation` (R, 1), in [0, 1], and `depth` (R, 1), the median along the ray, of R rays.

        In training also `weights_list` and `ray_samples_list`, proposals first; in evaluation also `prop_depth_i`.
        """
        ray_samples, weights_list, ray_samples_list = self.proposal_sampler(ray_bundle, density_fns=self.density_fns)
        field_outputs = self.field(ray_samples)
        weights = ray_samples.get_weights(field_outputs[FieldHeadNames.DENSITY])
        weights_list.append(weights)
        ray_samples_list.append(ray_samples)

        with torch.no_grad():
            depth = self.renderer_depth(weights=weights, ray_samples=ray_samples)
        outputs: dict[str, Any] = {
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
            "depth": depth,
        }
        if self.training:
            return {**outputs, "weights_list": weights_list, "ray_samples_list": ray_samples_list}
        for i in range(len(self.proposal_networks)):
            outputs[f"prop_depth_{i}"] = self.renderer_depth(weights=weights_list[i], ray_samples=ray_samples_list[i])
        return outputs

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`psnr` (dB) of the batch."""
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        return {"psnr": psnr(outputs["rgb"][None], target[None])[0]}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        """`rgb_loss`, the mean squared error, and the regularisers, times their weights."""
        rendered, target = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"],
            pred_accumulation=outputs["accumulation"],
            gt_image=batch["image"].to(self.device),
        )
        loss = self.config.loss_coefficients["rgb_loss"] * self.rgb_loss(target, rendered)
        return {"rgb_loss": loss, **self.get_regularizers(outputs, batch)}

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """In training `interlevel` (mip-NeRF 360 eq. 13), `distortion` (its eq. 15), `plane_tv` and `plane_tv_proposal`
        (K-Planes eq. 3), times their weights; without those whose weight is 0."""
        if not self.training:
            return {}
        along_rays = outputs["weights_list"], outputs["ray_samples_list"]
        proposals: Any = self.proposal_networks
        terms = {
            "interlevel": lambda: interlevel_loss(*along_rays),
            "distortion": lambda: distortion_loss(*along_rays),
            "plane_tv": lambda: plane_total_variation(self.field.planes()),
            "plane_tv_proposal": lambda: plane_total_variation(
                plane for network in proposals for plane in network.planes()
            ),
        }
        weight = self.config.loss_coefficients
        return {name: weight[name] * term() for name, term in terms.items() if weight[name] != 0.0}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """`psnr` (dB), `ssim` and `lpips` of one evaluation image, and the pictures `img` (photo, render),
        `accumulation`, `depth` and `prop_depth_i`; all of (H, W, channels)."""
        photo = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        rendered, accumulation = outputs["rgb"].to(self.device), outputs["accumulation"]
        images = {"img": torch.cat([photo, rendered], dim=1), "accumulation": colormaps.apply_colormap(accumulation)}
        for name in ("depth", *(f"prop_depth_{i}" for i in range(len(self.proposal_networks)))):
            images[name] = colormaps.apply_depth_colormap(outputs[name], accumulation=accumulation)
        return self.image_metrics(rendered, photo), images
