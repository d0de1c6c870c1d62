"""K-Planes for static scenes on nerfstudio's own components.

Fridovich-Keil, Meanti, Warburg, Recht, Kanazawa: "K-Planes: Explicit Radiance Fields in Space, Time, and
Appearance", CVPR 2023, arXiv 2301.10241. This is the hybrid variant (small MLP decoders) with the three
planes xy, xz, yz of a static scene. The pieces and where they come from:

- plane features, product over the planes (eq. 1, 2): nerfstudio's ``KPlanesEncoding``;
- several scales, concatenated: :class:`KPlanesField`;
- total variation of the planes (eq. 3): :func:`plane_total_variation`;
- proposal sampling, interlevel and distortion losses: mip-NeRF 360 (arXiv 2111.12077) as in nerfstudio.

The model has the attributes of nerfstudio's nerfacto (``field``, ``proposal_networks``, ``density_fns``,
``proposal_sampler``, ``renderer_rgb``, ``renderer_accumulation``, ``renderer_depth``, ``rgb_loss``, ``psnr``,
``ssim``), so code that adapts nerfacto can adapt this model too. :meth:`KPlanesModel.make_field` is the place
to change the number of channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Literal, Optional, Sequence, Tuple, Type

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

from igae_nerfstudio.rendering.total_variation import mean_squared_variation


def plane_total_variation(planes: Iterable[Tensor]) -> Tensor:
    """Squared total variation of feature planes (K-Planes eq. 3), averaged over everything it is summed over.

    For one plane ``P``: ``mean((P[c, i+1, j] - P[c, i, j])^2) + mean((P[c, i, j+1] - P[c, i, j])^2)``; then
    the mean over the planes, every plane (of any scale) with the same weight.

    The paper sums over the features ``c`` where this takes the mean, so its values are ``feature_dim`` times
    larger; the authors' published code takes the mean over features and *half* of the sum of the two axes, so
    its values are half of these.

    Args:
        planes: Planes of shape (feature_dim, height, width) with height, width >= 2; at least one. Sizes may
            differ.

    Returns:
        Scalar tensor >= 0 (squared feature units), 0 exactly when every plane is constant per feature.

    Raises:
        ValueError: If ``planes`` is empty.
    """
    terms = [mean_squared_variation(plane) for plane in planes]
    if not terms:
        raise ValueError("plane_total_variation needs at least one plane.")
    return torch.stack(terms).mean()


def to_grid_coordinates(
    positions: Tensor, aabb: Tensor, spatial_distortion: Optional[SpatialDistortion] = None
) -> Tuple[Tensor, Tensor]:
    """World positions to the [-1, 1] coordinates that ``KPlanesEncoding`` expects.

    Without a distortion the box ``aabb`` is mapped to [-1, 1]^3. With one (``SceneContraction(order=inf)``,
    whose range is [-2, 2]^3; mip-NeRF 360 eq. 10 with the max norm) all of space lands inside and ``aabb`` is
    not used.

    Args:
        positions: World positions (scene units), shape (..., 3), any finite values.
        aabb: Box corners [min, max] (scene units), shape (2, 3).
        spatial_distortion: Contraction with range [-2, 2]^3, or None.

    Returns:
        Grid coordinates, float32, shape (..., 3), in [-1, 1] where the mask is true; and a boolean mask of
        shape (..., 1), true inside the box, faces included (with a distortion: everywhere).
    """
    # float32 also under autocast: half precision has fewer steps in [-1, 1] than a 512^2 plane needs.
    positions = positions.float()
    if spatial_distortion is not None:
        coordinates = spatial_distortion(positions) / 2.0
    else:
        coordinates = (positions - aabb[0]) / (aabb[1] - aabb[0]) * 2.0 - 1.0
    inside = (coordinates.abs() <= 1.0).all(dim=-1, keepdim=True)
    return coordinates, inside


def _plane_density(raw: Tensor, inside: Tensor) -> Tensor:
    """``exp(raw - 1)`` inside, 0 outside; shapes (..., 1), float32, scene units^-1.

    The shift by 1 is the authors' (their ``trunc_exp(x - 1)``): the first density is about 0.37, so the
    volume starts half transparent. The backward pass is nerfstudio's truncated one. ``where`` and not a
    product, since inf * 0 = nan.
    """
    density = trunc_exp(raw.float() - 1.0)
    return torch.where(inside, density, torch.zeros_like(density))


def _check_resolution(resolution: Sequence[int]) -> None:
    # A plane side of 1 has neither an interpolation cell nor a neighbour difference.
    if len(resolution) != 3 or min(resolution) < 2:
        raise ValueError(f"A static K-Planes grid needs three sides >= 2, got {tuple(resolution)}.")


class KPlanesField(Field):
    """K-Planes radiance field of a static scene with small MLP decoders (arXiv 2301.10241, eq. 1 and 2).

    ``f(x) = concat_s prod_{k in xy, xz, yz} P_k^s(x)``, ``(sigma_raw, g) = sigma_net(f)``,
    ``density = trunc_exp(sigma_raw - 1)``, ``colour = color_net(SH(direction), g)``. Pure torch, no
    tiny-cuda-nn.

    Args:
        aabb: Scene box corners [min, max] (scene units), shape (2, 3). Density is 0 outside it. Not used with
            a ``spatial_distortion``.
        out_channels: Number c of colour (or latent) channels, >= 1.
        output_activation: Module on the c channels; None for unbounded (signed) values.
        grid_base_resolution: Grid points along x, y, z at scale 1, each >= 2.
        multiscale_factors: Positive integer multipliers of the base resolution, one grid each.
        grid_feature_dim: Features per scale, >= 1.
        geo_feat_dim: Features from the density net to the colour net, >= 1.
        hidden_dim: Width of the hidden layers of both nets.
        num_layers_sigma: Linear layers of the density net, >= 1 (2 = one hidden layer).
        num_layers_color: Linear layers of the colour net, >= 1 (3 = two hidden layers).
        spatial_distortion: Contraction with range [-2, 2]^3 (``SceneContraction(order=float("inf"))``), or
            None.

    Raises:
        ValueError: If a grid side is smaller than 2 or there is no scale.
    """

    aabb: Tensor

    def __init__(
        self,
        aabb: Tensor,
        out_channels: int = 3,
        output_activation: Optional[nn.Module] = nn.Sigmoid(),
        grid_base_resolution: Sequence[int] = (128, 128, 128),
        multiscale_factors: Sequence[int] = (1, 2, 4),
        grid_feature_dim: int = 32,
        geo_feat_dim: int = 15,
        hidden_dim: int = 64,
        num_layers_sigma: int = 2,
        num_layers_color: int = 3,
        spatial_distortion: Optional[SpatialDistortion] = None,
    ) -> None:
        super().__init__()
        if not multiscale_factors:
            raise ValueError("multiscale_factors is empty: the field needs at least one scale.")
        self.register_buffer("aabb", aabb.detach().clone().float())
        self.out_channels = out_channels
        self.geo_feat_dim = geo_feat_dim
        self.spatial_distortion = spatial_distortion

        self.encodings = nn.ModuleList()
        for factor in multiscale_factors:
            resolution = tuple(side * factor for side in grid_base_resolution)
            _check_resolution(resolution)
            self.encodings.append(KPlanesEncoding(resolution=resolution, num_components=grid_feature_dim))

        self.sigma_net = MLP(
            in_dim=grid_feature_dim * len(multiscale_factors),
            num_layers=num_layers_sigma,
            layer_width=hidden_dim,
            out_dim=1 + geo_feat_dim,
            activation=nn.ReLU(),
            implementation="torch",
        )
        self.direction_encoding = SHEncoding(levels=4, implementation="torch")
        self.color_net = MLP(
            in_dim=self.direction_encoding.get_out_dim() + geo_feat_dim,
            num_layers=num_layers_color,
            layer_width=hidden_dim,
            out_dim=out_channels,
            activation=nn.ReLU(),
            out_activation=output_activation,
            implementation="torch",
        )

    def planes(self) -> List[Parameter]:
        """All planes by scale, then xy, xz, yz; shapes (feature_dim, points on 2nd axis, on 1st axis)."""
        encodings: Any = self.encodings
        return [plane for encoding in encodings for plane in encoding.plane_coefs]

    def plane_features(self, coordinates: Tensor) -> Tensor:
        """Product of the three plane features (eq. 1, 2), the scales concatenated.

        Args:
            coordinates: Grid coordinates in [-1, 1], shape (n, 3); values outside take the border features.

        Returns:
            Features, shape (n, grid_feature_dim * number of scales), unbounded.
        """
        return torch.cat([encoding(coordinates) for encoding in self.encodings], dim=-1)

    def get_density(self, ray_samples: RaySamples) -> Tuple[Tensor, Tensor]:
        """Density and geometry features at the sample positions.

        Args:
            ray_samples: Samples of batch shape (...).

        Returns:
            Density (scene units^-1, >= 0, 0 outside the box), shape (..., 1), float32; and the geometry
            features, shape (..., geo_feat_dim), float32.
        """
        positions = ray_samples.frustums.get_positions()
        coordinates, inside = to_grid_coordinates(positions, self.aabb, self.spatial_distortion)
        raw = self.sigma_net(self.plane_features(coordinates.reshape(-1, 3))).float()
        raw = raw.view(*positions.shape[:-1], 1 + self.geo_feat_dim)
        return _plane_density(raw[..., :1], inside), raw[..., 1:]

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Optional[Tensor] = None
    ) -> Dict[FieldHeadNames, Tensor]:
        """Colour (or latent) of the samples.

        Args:
            ray_samples: Samples of batch shape (...), with unit viewing directions.
            density_embedding: Geometry features from :meth:`get_density`, shape (..., geo_feat_dim).

        Returns:
            ``FieldHeadNames.RGB``: shape (..., out_channels), float32, in the range of the output activation.
        """
        if density_embedding is None:
            raise ValueError("KPlanesField.get_outputs needs the geometry features of get_density.")
        # The torch implementation of SHEncoding takes directions in [-1, 1]; the shift to [0, 1] is
        # tiny-cuda-nn's.
        encoded = self.direction_encoding(ray_samples.frustums.directions.float())
        colour = self.color_net(torch.cat([encoded, density_embedding], dim=-1))
        return {FieldHeadNames.RGB: colour.float()}


class KPlanesDensityField(Field):
    """One small K-Planes grid with a density only: a proposal network (arXiv 2301.10241).

    Args:
        aabb: Scene box corners [min, max] (scene units), shape (2, 3). Density is 0 outside it. Not used with
            a ``spatial_distortion``.
        resolution: Grid points along x, y, z, each >= 2.
        feature_dim: Features of the grid, >= 1.
        hidden_dim: Width of the one hidden layer.
        spatial_distortion: Contraction with range [-2, 2]^3, or None.

    Raises:
        ValueError: If a grid side is smaller than 2.
    """

    aabb: Tensor

    def __init__(
        self,
        aabb: Tensor,
        resolution: Sequence[int] = (64, 64, 64),
        feature_dim: int = 8,
        hidden_dim: int = 64,
        spatial_distortion: Optional[SpatialDistortion] = None,
    ) -> None:
        super().__init__()
        _check_resolution(resolution)
        self.register_buffer("aabb", aabb.detach().clone().float())
        self.spatial_distortion = spatial_distortion
        self.encoding = KPlanesEncoding(resolution=tuple(resolution), num_components=feature_dim)
        self.sigma_net = MLP(
            in_dim=feature_dim,
            num_layers=2,
            layer_width=hidden_dim,
            out_dim=1,
            activation=nn.ReLU(),
            implementation="torch",
        )

    def planes(self) -> List[Parameter]:
        """The planes xy, xz, yz; shapes (feature_dim, points on 2nd axis, on 1st axis)."""
        return list(self.encoding.plane_coefs)

    def get_density(self, ray_samples: RaySamples) -> Tuple[Tensor, None]:
        """Density at the sample positions.

        Args:
            ray_samples: Samples of batch shape (...).

        Returns:
            Density (scene units^-1, >= 0, 0 outside the box), shape (..., 1), float32; and None (no
            features).
        """
        positions = ray_samples.frustums.get_positions()
        coordinates, inside = to_grid_coordinates(positions, self.aabb, self.spatial_distortion)
        raw = self.sigma_net(self.encoding(coordinates.reshape(-1, 3)))
        return _plane_density(raw.view(*positions.shape[:-1], 1), inside), None

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Optional[Tensor] = None) -> dict:
        """A proposal network has no colour.

        Args:
            ray_samples: Not used.
            density_embedding: Not used.

        Returns:
            An empty dictionary.
        """
        return {}


@dataclass
class KPlanesModelConfig(ModelConfig):
    """Configuration of :class:`KPlanesModel`; lengths are in scene units (after the dataparser's scaling)."""

    _target: Type = field(default_factory=lambda: KPlanesModel)
    """Class to instantiate."""
    bounded: bool = True
    """True: the scene is inside the scene box (rays clipped to it, first samples uniform in depth). False:
    all of space, contracted (SceneContraction, max norm), rays from near_plane to far_plane, first samples
    piecewise."""
    near_plane: float = 0.05
    """Distance along the ray where sampling starts, >= 0 (scene units). With bounded=True nerfstudio's box
    collider applies it in training only; in evaluation rays start at the box, or at the camera if it is
    inside."""
    far_plane: float = 6.0
    """Distance along the ray where sampling stops, > near_plane (scene units). Only used with
    bounded=False."""
    background_color: Literal["random", "last_sample", "black", "white"] = "white"
    """Colour behind the volume, as in nerfacto."""
    grid_base_resolution: Tuple[int, int, int] = (128, 128, 128)
    """Grid points along x, y, z at scale 1, each >= 2."""
    multiscale_factors: Tuple[int, ...] = (1, 2, 4)
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
    proposal_resolutions: Tuple[int, ...] = (64, 128)
    """Grid points per side (cubic) of each proposal network, each >= 2; its length is the number of
    networks."""
    proposal_feature_dim: int = 8
    """Features of each proposal grid, >= 1."""
    proposal_hidden_dim: int = 64
    """Width of the hidden layer of each proposal network, >= 1."""
    num_proposal_samples_per_ray: Tuple[int, ...] = (256, 128)
    """Samples per ray of each proposal network, as many numbers as proposal_resolutions."""
    num_nerf_samples_per_ray: int = 48
    """Samples per ray of the field, >= 1."""
    use_single_jitter: bool = False
    """One random offset for all samples of a ray (True) or one per sample (False), in training."""
    proposal_update_every: int = 5
    """Training steps between proposal network updates after the warm-up, >= 1. The planes of the proposal
    networks get the gradient of their total variation in every step, as in the authors' code."""
    proposal_warmup: int = 5000
    """Training steps over which that interval grows from 1 to proposal_update_every, >= 0."""
    use_proposal_weight_anneal: bool = True
    """Anneal the proposal weights at the start of the training (mip-NeRF 360 eq. 18)."""
    proposal_weights_anneal_slope: float = 10.0
    """Slope of the annealing, > 0; larger goes faster to the unchanged weights."""
    proposal_weights_anneal_max_num_iters: int = 1000
    """Training steps after which the proposal weights are used unchanged, >= 1."""
    loss_coefficients: Dict[str, float] = to_immutable_dict(
        {"rgb_loss": 1.0, "plane_tv": 0.01, "plane_tv_proposal": 1e-4, "interlevel": 1.0, "distortion": 0.01}
    )
    """Weight (>= 0) of each loss term. A regulariser with weight 0 is not computed; a missing key is an
    error, since a silent weight of 1 would let the total variation erase the scene."""


class KPlanesModel(Model):
    """K-Planes (arXiv 2301.10241) for static scenes as a nerfstudio model with the structure of nerfacto.

    Args:
        config: Configuration.
        scene_box: Scene box; with ``config.bounded`` the only space with density.
        num_train_data: Number of training images (not used by the field: no appearance embedding).
    """

    config: KPlanesModelConfig

    def make_field(self) -> KPlanesField:
        """The radiance field, from ``self.config`` and ``self.scene_box``; override for other channels.

        Called once, by :meth:`populate_modules`. A subclass may return a field with ``out_channels=c`` and
        ``output_activation=None``; it then also needs renderers and losses for c channels (nerfstudio's
        ``RGBRenderer`` blends string backgrounds for 3 channels only).

        Returns:
            A field on the CPU.
        """
        return KPlanesField(**self.field_arguments())

    def field_arguments(self) -> Dict[str, Any]:
        """Keyword arguments of the stock :class:`KPlanesField`, for overrides of :meth:`make_field` that
        change some of them and keep the others."""
        return {
            "aabb": self.scene_box.aabb,
            "grid_base_resolution": self.config.grid_base_resolution,
            "multiscale_factors": self.config.multiscale_factors,
            "grid_feature_dim": self.config.grid_feature_dim,
            "geo_feat_dim": self.config.geo_feat_dim,
            "hidden_dim": self.config.hidden_dim,
            "num_layers_sigma": self.config.num_layers_sigma,
            "num_layers_color": self.config.num_layers_color,
            "spatial_distortion": self.make_spatial_distortion(),
        }

    def make_spatial_distortion(self) -> Optional[SpatialDistortion]:
        """None for a bounded scene, else the max-norm contraction to [-2, 2]^3 (a cube, like the grid)."""
        return None if self.config.bounded else SceneContraction(order=float("inf"))

    def populate_modules(self) -> None:
        """Builds field, proposal networks, sampler, collider, renderers, loss and metrics (not LPIPS).

        Raises:
            ValueError: If the numbers of proposal resolutions and of proposal sample counts differ, or are 0.
        """
        super().populate_modules()
        config = self.config
        num_proposals = len(config.proposal_resolutions)
        if num_proposals < 1 or len(config.num_proposal_samples_per_ray) != num_proposals:
            raise ValueError(
                "proposal_resolutions and num_proposal_samples_per_ray need the same length >= 1, got "
                f"{config.proposal_resolutions} and {config.num_proposal_samples_per_ray}."
            )

        self.field = self.make_field()
        self.proposal_networks: Any = nn.ModuleList(
            KPlanesDensityField(
                self.scene_box.aabb,
                resolution=(side, side, side),
                feature_dim=config.proposal_feature_dim,
                hidden_dim=config.proposal_hidden_dim,
                spatial_distortion=self.make_spatial_distortion(),
            )
            for side in config.proposal_resolutions
        )
        self.density_fns = [network.density_fn for network in self.proposal_networks]

        # A clipped ray has no far tail: equal steps in depth. None is nerfstudio's piecewise sampler.
        initial_sampler = UniformSampler(single_jitter=config.use_single_jitter) if config.bounded else None
        self.proposal_sampler = ProposalNetworkSampler(
            num_nerf_samples_per_ray=config.num_nerf_samples_per_ray,
            num_proposal_samples_per_ray=tuple(config.num_proposal_samples_per_ray),
            num_proposal_network_iterations=num_proposals,
            single_jitter=config.use_single_jitter,
            update_sched=self.proposal_update_interval,
            initial_sampler=initial_sampler,
        )

        if config.enable_collider:
            self.collider: Any
            if config.bounded:
                self.collider = AABBBoxCollider(self.scene_box, near_plane=config.near_plane)
            else:
                self.collider = NearFarCollider(near_plane=config.near_plane, far_plane=config.far_plane)

        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        # Median: it does not average across a depth edge, nor depend on the other rays of the chunk.
        self.renderer_depth = DepthRenderer(method="median")

        self.rgb_loss = MSELoss()

        # Imported here, so that importing this module (configs, registration) does not load torchmetrics.
        from torchmetrics.functional import structural_similarity_index_measure
        from torchmetrics.image import PeakSignalNoiseRatio

        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = structural_similarity_index_measure
        # In a list, since an attribute would register the module: its weights would be in every checkpoint.
        self._lpips: List[Any] = []
        self._lpips_missing = False

    def proposal_update_interval(self, step: int) -> float:
        """Steps between proposal network updates at a training step.

        Args:
            step: Training step, >= 0.

        Returns:
            Plain float in [1, proposal_update_every], growing linearly over ``proposal_warmup`` steps.
        """
        every = float(self.config.proposal_update_every)
        warmup = self.config.proposal_warmup
        fraction = 1.0 if warmup <= 0 else min(float(step) / warmup, 1.0)
        return max(1.0, every * fraction)

    def proposal_anneal(self, step: int) -> float:
        """Exponent on the proposal weights at a training step (mip-NeRF 360, arXiv 2111.12077, eq. 18).

        Args:
            step: Training step, >= 0.

        Returns:
            Plain float in [0, 1]: 0 is uniform resampling, 1 the unchanged weights.
        """
        fraction = min(max(float(step) / max(self.config.proposal_weights_anneal_max_num_iters, 1), 0.0), 1.0)
        slope = float(self.config.proposal_weights_anneal_slope)
        return slope * fraction / ((slope - 1.0) * fraction + 1.0)

    def get_param_groups(self) -> Dict[str, List[Parameter]]:
        """Parameters for the optimisers: groups "proposal_networks" and "fields"."""
        return {
            "proposal_networks": list(self.proposal_networks.parameters()),
            "fields": list(self.field.parameters()),
        }

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        """Annealing before each training step (if configured), the sampler's step counter after it.

        Args:
            training_callback_attributes: Not used.

        Returns:
            One or two callbacks.
        """
        callbacks = []
        if self.config.use_proposal_weight_anneal:
            callbacks.append(
                TrainingCallback(
                    where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                    update_every_num_iters=1,
                    func=lambda step: self.proposal_sampler.set_anneal(self.proposal_anneal(step)),
                )
            )
        # Always, not only with annealing as in nerfacto: without it the update schedule would stay at step 0.
        callbacks.append(
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=self.proposal_sampler.step_cb,
            )
        )
        return callbacks

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Any]:
        """Renders rays.

        Args:
            ray_bundle: Rays of batch shape (num_rays,), nears and fars set (by the collider), unit
                directions.

        Returns:
            "rgb": shape (num_rays, channels), in [0, 1] in evaluation; "accumulation": opacity in [0, 1],
            shape (num_rays, 1); "depth": median depth along the ray (scene units), shape (num_rays, 1). In
            training also "weights_list" and "ray_samples_list" (proposals first, field last); in evaluation
            also "prop_depth_i" like "depth". All tensors are floating point.
        """
        ray_samples, weights_list, ray_samples_list = self.proposal_sampler(ray_bundle, density_fns=self.density_fns)
        field_outputs = self.field(ray_samples)
        weights = ray_samples.get_weights(field_outputs[FieldHeadNames.DENSITY])
        weights_list.append(weights)
        ray_samples_list.append(ray_samples)

        with torch.no_grad():
            depth = self.renderer_depth(weights=weights, ray_samples=ray_samples)
        outputs: Dict[str, Any] = {
            "rgb": self.renderer_rgb(rgb=field_outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
            "depth": depth,
        }
        if self.training:
            outputs["weights_list"] = weights_list
            outputs["ray_samples_list"] = ray_samples_list
        else:
            for i in range(len(self.proposal_networks)):
                outputs[f"prop_depth_{i}"] = self.renderer_depth(
                    weights=weights_list[i], ray_samples=ray_samples_list[i]
                )
        return outputs

    def get_metrics_dict(self, outputs: Dict[str, Any], batch: Dict[str, Any]) -> Dict[str, Tensor]:
        """Scalars to log.

        Args:
            outputs: From :meth:`get_outputs`.
            batch: With "image", shape (num_rays, 3) or (num_rays, 4) with alpha, in [0, 1].

        Returns:
            "psnr" (dB); in training also "distortion" (unweighted mip-NeRF 360 eq. 15, in [0, 1]).
        """
        gt_rgb = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        metrics_dict = {"psnr": self.psnr(outputs["rgb"].detach(), gt_rgb)}
        if self.training:
            metrics_dict["distortion"] = distortion_loss(outputs["weights_list"], outputs["ray_samples_list"])
        return metrics_dict

    def get_loss_dict(
        self, outputs: Dict[str, Any], batch: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """Loss terms, each already times its ``loss_coefficients`` entry.

        Args:
            outputs: From :meth:`get_outputs`.
            batch: With "image", shape (num_rays, 3) or (num_rays, 4) with alpha, in [0, 1].
            metrics_dict: From :meth:`get_metrics_dict`; its "distortion" is used if it is there.

        Returns:
            Scalars >= 0: "rgb_loss" (mean squared error); in training also the terms of
            :meth:`get_regularization_dict`.
        """
        pred_rgb, gt_rgb = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"],
            pred_accumulation=outputs["accumulation"],
            gt_image=batch["image"].to(self.device),
        )
        loss_dict = {"rgb_loss": self.loss_coefficient("rgb_loss") * self.rgb_loss(gt_rgb, pred_rgb)}
        if self.training:
            loss_dict.update(self.get_regularization_dict(outputs, metrics_dict))
        return loss_dict

    def get_regularization_dict(
        self, outputs: Dict[str, Any], metrics_dict: Optional[Dict[str, Tensor]] = None
    ) -> Dict[str, Tensor]:
        """The loss terms that need no image, each already times its ``loss_coefficients`` entry.

        Args:
            outputs: Training outputs of :meth:`get_outputs`.
            metrics_dict: From :meth:`get_metrics_dict`; its "distortion" is used if it is there.

        Returns:
            Scalars >= 0: "interlevel" (mip-NeRF 360 eq. 13), "distortion" (its eq. 15), "plane_tv" and
            "plane_tv_proposal" (K-Planes eq. 3); without those whose coefficient is 0.
        """
        weights_list, ray_samples_list = outputs["weights_list"], outputs["ray_samples_list"]

        def distortion() -> Tensor:
            if metrics_dict is not None and "distortion" in metrics_dict:
                return metrics_dict["distortion"]
            return distortion_loss(weights_list, ray_samples_list)

        terms = {
            "interlevel": lambda: interlevel_loss(weights_list, ray_samples_list),
            "distortion": distortion,
            "plane_tv": lambda: plane_total_variation(self.field.planes()),
            "plane_tv_proposal": lambda: plane_total_variation(
                plane for network in self.proposal_networks for plane in network.planes()
            ),
        }
        # Not nerfstudio's scale_dict: it multiplies in place, so it would scale the logged metric as well.
        coefficients = {name: self.loss_coefficient(name) for name in terms}
        return {name: coefficients[name] * term() for name, term in terms.items() if coefficients[name] != 0.0}

    def loss_coefficient(self, name: str) -> float:
        """Weight of a loss term.

        Args:
            name: Key of ``config.loss_coefficients``.

        Returns:
            The weight, >= 0.

        Raises:
            KeyError: If the key is missing.
        """
        coefficients = self.config.loss_coefficients
        if name not in coefficients:
            raise KeyError(f"loss_coefficients has no {name!r} (it has {sorted(coefficients)}); 0 switches it off.")
        return float(coefficients[name])

    def compute_lpips(self, prediction: Tensor, target: Tensor) -> Optional[float]:
        """LPIPS (AlexNet) of two images; the network is built on the first call, outside the module registry.

        Args:
            prediction: Image in [0, 1], shape (1, 3, height, width).
            target: Image in [0, 1], shape (1, 3, height, width).

        Returns:
            Distance >= 0, or None if the network's weights cannot be had (one line is printed, once).
        """
        if self._lpips_missing:
            return None
        if not self._lpips:
            try:
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                metric = LearnedPerceptualImagePatchSimilarity(normalize=True)
            # No network, no torchvision, a broken cache: many error types, and all of them mean "no LPIPS".
            except Exception as error:
                self._lpips_missing = True
                print(f"LPIPS is left out: {type(error).__name__}: {error}".splitlines()[0])
                return None
            self._lpips.append(metric.eval())
        metric = self._lpips[0].to(self.device)
        value = float(metric(prediction, target))
        # The metric also keeps a running mean over its calls; nobody reads it.
        metric.reset()
        return value

    def get_image_metrics_and_images(
        self, outputs: Dict[str, Tensor], batch: Dict[str, Tensor]
    ) -> Tuple[Dict[str, float], Dict[str, Tensor]]:
        """Metrics and pictures of one evaluation image.

        Args:
            outputs: Of one camera, shapes (height, width, channels).
            batch: With "image", shape (height, width, 3) or (height, width, 4) with alpha, in [0, 1].

        Returns:
            Metrics "psnr" (dB), "ssim" (<= 1) and, where its weights can be had, "lpips" (>= 0); and pictures
            "img" (ground truth beside prediction), "accumulation", "depth", "prop_depth_i", shapes (height,
            width', 3).
        """
        gt_rgb = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        predicted_rgb = outputs["rgb"].to(self.device)
        accumulation = outputs["accumulation"]

        images_dict = {
            "img": torch.cat([gt_rgb, predicted_rgb], dim=1),
            "accumulation": colormaps.apply_colormap(accumulation),
        }
        for key in ["depth"] + [f"prop_depth_{i}" for i in range(len(self.proposal_networks))]:
            if key in outputs:
                images_dict[key] = colormaps.apply_depth_colormap(outputs[key], accumulation=accumulation)

        # (height, width, 3) to (1, 3, height, width), the layout of the metrics.
        gt_image = torch.moveaxis(gt_rgb, -1, 0)[None]
        predicted_image = torch.moveaxis(predicted_rgb, -1, 0)[None]
        ssim: Any = self.ssim(predicted_image, gt_image, data_range=1.0)
        metrics_dict = {
            "psnr": float(self.psnr(predicted_image, gt_image)),
            "ssim": float(ssim),
        }
        lpips = self.compute_lpips(predicted_image, gt_image)
        if lpips is not None:
            metrics_dict["lpips"] = lpips
        return metrics_dict, images_dict
