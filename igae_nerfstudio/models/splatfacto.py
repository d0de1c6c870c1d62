"""Gaussian splatting with latent features: what takes the place of rays where a model renders whole pictures.

What is not as in Nerfstudio's splatfacto, and why:

    c linear features, without sigmoid      latents are signed
    harmonics of degree 1 at most           gsplat has none for c channels; latents change little with the direction
    a fixed number of Gaussians, those      a latent picture has few pixels, so few are enough; checkpoints keep their
    that died move to where others are      shape and a resumed run is the same run
    no smaller pictures at first            a latent picture of 16 x 16 pixels has none to give away
    no SSIM                                 its window is 11 pixels wide, most of a latent picture
    no random backgrounds                   photos are composited before they are encoded
    antialiased splats                      a latent pixel is as wide as 8 photo pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.configs.config_utils import to_immutable_dict
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn
from torch.nn import Parameter

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import psnr
from igae_nerfstudio.models.latent_model import LatentModelConfig
from igae_nerfstudio.rendering.latent_renderer import MIDDLE
from igae_nerfstudio.rendering.splatting import Gaussians, covariance_roots, rasterize

DEAD = 0.005
"""Opacity under which a Gaussian is moved."""
FIRST_OPACITY = 0.1


@dataclass
class LatentSplatfactoConfig(LatentModelConfig, ModelConfig):
    """Gaussian splatting, rendering latents."""

    _target: type = field(default_factory=lambda: LatentSplatfacto)
    num_gaussians: int | None = None
    """N; None: the preset's (paper: 20,000, fast: 3,000)."""
    sh_degree: Literal[0, 1] = 1
    """1: latents also change linearly with the direction of view; 0: they do not."""
    relocate_every: int = 100
    """Steps after which Gaussians of next to no opacity move to places of others."""
    relocate_until: float = 0.8
    """The part of the training after which Gaussians stay."""
    noise: float = 3e3
    """How far Gaussians of little opacity wander, as a factor on the learning rate of the means. (gsplat has 5e5, for
    Gaussians as small as a photo's pixels.)"""
    enable_collider: bool = False
    """There are no rays."""
    loss_coefficients: dict[str, float] = to_immutable_dict({"latent_loss": 1.0, "opacity": 3e-3, "scale": 1e-3})
    """Weights of the squared error, the mean opacity and the mean scale."""

    presets = {"paper": {"num_gaussians": 20_000}, "fast": {"num_gaussians": 3_000}}


class LatentSplatfacto(Model):
    """N Gaussians whose number and order never change (Kheradmand et al. 2024, "3DGS as MCMC", at its final size)."""

    config: LatentSplatfactoConfig
    renders_pictures = True
    background: Tensor
    """(c,) behind the Gaussians."""

    def __init__(self, *args: Any, seed_points: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> None:
        self.seed_points = None if seed_points is None else seed_points[0]
        super().__init__(*args, **kwargs)

    def populate_modules(self) -> None:
        super().populate_modules()
        config, count = self.config, self.config.num_gaussians
        assert count is not None
        if count < 4:
            raise InputError(f"--pipeline.model.num-gaussians is {count}; it must be 4 or more")
        means = self._first_means(count)
        channels = config.latent_channels
        self.gauss_params = nn.ParameterDict(
            {
                "means": means,
                "scales": nearest_distances(means).log().clamp_min(-10)[:, None].repeat(1, 3),
                "quats": F.normalize(torch.randn(count, 4), dim=-1),
                "opacities": torch.full((count, 1), math.log(FIRST_OPACITY / (1 - FIRST_OPACITY))),
                "features_dc": torch.zeros(count, channels),
                "features_rest": torch.zeros(count, 3 if config.sh_degree else 0, channels),
            }
        )
        self.register_buffer("background", torch.zeros(channels))

    def _first_means(self, count: int) -> Tensor:
        """(N, 3): seed points, or random ones of the scene box."""
        seeds, low, high = self.seed_points, self.scene_box.aabb[0], self.scene_box.aabb[1]
        if seeds is None or len(seeds) == 0:
            return low + (high - low) * torch.rand(count, 3)
        chosen = torch.randperm(len(seeds))[:count]
        repeated = chosen[torch.arange(count) % len(chosen)]
        jitter = 0.5 * nearest_distances(seeds)[repeated, None] * torch.randn(count, 3)
        return seeds[repeated].float() + jitter.where(torch.arange(count)[:, None] >= len(chosen), torch.zeros(()))

    # Rendering -----------------------------------------------------------------------------------------------

    def set_background(self, background: Tensor) -> None:
        self.background.copy_(background)

    def set_training_cameras(self, cameras: Cameras) -> None:
        """Refuse cameras that cannot be rendered, before the first step."""
        _refuse_bent_rays(cameras)

    def gaussians(self, camera: Cameras, box: OrientedBox | None = None) -> Gaussians:
        """As a camera of batch shape (1,) sees them; those outside a box have no opacity."""
        parameters = self.gauss_params
        features = MIDDLE + parameters["features_dc"]
        if self.config.sh_degree:
            directions = F.normalize(parameters["means"].detach() - camera.camera_to_worlds[0, :, 3], dim=-1)
            features = features + (directions[:, :, None] * parameters["features_rest"]).sum(dim=1)
        opacities = parameters["opacities"][:, 0].sigmoid()
        if box is not None:
            opacities = opacities * box.within(parameters["means"])
        return Gaussians(parameters["means"], parameters["scales"].exp(), parameters["quats"], opacities, features)

    def picture(self, camera: Cameras, box: OrientedBox | None = None) -> dict[str, Tensor]:
        """`latent` (h, w, c), `depth` (h, w, 1), `accumulation` (h, w, 1) of a latent camera of batch shape (1,)."""
        _refuse_bent_rays(camera)
        latent, depth, accumulation = rasterize(self.gaussians(camera, box), camera)
        return {
            "latent": latent + (1 - accumulation) * self.background,
            "depth": depth,
            "accumulation": accumulation,
        }

    def get_outputs(self, ray_bundle: Cameras) -> dict[str, Any]:
        """As `picture`, of latent cameras (B,) of one size, flat: `latent` (B h w, c) and so on."""
        pictures = [self.picture(ray_bundle[i : i + 1]) for i in range(len(ray_bundle))]
        return {name: torch.cat([picture[name].flatten(0, 1) for picture in pictures]) for name in pictures[0]}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """As `picture`."""
        return self.picture(camera, obb_box)

    # Training ------------------------------------------------------------------------------------------------

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latent_psnr": psnr(outputs["latent"][None], batch["latent"][None])[0]}

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        """Squared error of the latents, and the regularisers."""
        error = F.mse_loss(outputs["latent"], batch["latent"])
        return {
            "latent_loss": self.config.loss_coefficients["latent_loss"] * error,
            **self.get_regularizers(outputs, batch),
        }

    def get_regularizers(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean opacity and scale, so that Gaussians of no use die and are moved (Kheradmand et al., section 3.5)."""
        weights = self.config.loss_coefficients
        return {
            "opacity": weights["opacity"] * self.gauss_params["opacities"].sigmoid().mean(),
            "scale": weights["scale"] * self.gauss_params["scales"].exp().mean(),
        }

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group for each kind of parameter, as in splatfacto."""
        return {name: [parameter] for name, parameter in self.gauss_params.items() if parameter.numel()}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """After each step Gaussians wander, and at times dead ones move."""
        optimizers, trainer = attributes.optimizers, attributes.trainer
        assert optimizers is not None and trainer is not None
        last = self.config.relocate_until * trainer.config.max_num_iterations

        def move(step: int) -> None:
            generator = torch.Generator().manual_seed(step)
            if (step + 1) % self.config.relocate_every == 0 and step < last:
                self.relocate(optimizers.optimizers, generator)
            self.wander(optimizers.optimizers["means"].param_groups[0]["lr"], generator)

        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], move, 1)]

    @torch.no_grad()
    def wander(self, rate: float, generator: torch.Generator) -> None:
        """Noise on the means, of the shape of each Gaussian, for those of little opacity (equation 8)."""
        parameters = self.gauss_params
        amount = self.config.noise * rate * torch.sigmoid(100 * (DEAD - parameters["opacities"].sigmoid()))
        noise = torch.randn(len(amount), 3, generator=generator).to(amount) * amount
        roots = covariance_roots(parameters["quats"], parameters["scales"].exp())
        parameters["means"] += (roots @ (roots.transpose(1, 2) @ noise[..., None]))[..., 0]

    @torch.no_grad()
    def relocate(self, optimizers: dict[str, torch.optim.Optimizer], generator: torch.Generator) -> int:
        """Move dead Gaussians onto living ones, drawn by opacity, which share theirs (equation 9); how many moved.

        Raises:
            InputError: all are dead.
        """
        parameters = self.gauss_params
        opacities = parameters["opacities"][:, 0].sigmoid()
        dead = opacities <= DEAD
        if not bool((~dead).any()):
            raise InputError(
                "all Gaussians have lost their opacity; lower --pipeline.model.loss-coefficients opacity or the "
                "learning rates, and start again"
            )
        moved = dead.nonzero().flatten()
        if len(moved) == 0:
            return 0
        probabilities = (opacities * ~dead).double().cpu()
        targets = torch.multinomial(probabilities, len(moved), replacement=True, generator=generator).to(moved)
        copies = targets.bincount(minlength=len(opacities))[targets] + 1
        opacity, factor = shared_between(opacities[targets], copies)
        parameters["opacities"][targets, 0] = opacity.clamp(DEAD, 1 - 1e-6).logit()
        parameters["scales"][targets] += factor.log()[:, None]
        for name, parameter in parameters.items():
            parameter[moved] = parameter[targets]
            state = {} if name not in optimizers else optimizers[name].state.get(parameter, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[targets] = 0
        return len(moved)


def shared_between(opacities: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity, and factor on the scale, with which n Gaussians in one place look as one did (equation 9).

    o' = 1 - (1 - o)^(1 / n), and the factor is o / sum_m C(n, m) (-1)^(m - 1) o'^m / sqrt(m), m from 1 to n.

    Args:
        opacities: o, (K,), under 1.
        copies: n, (K,), 1 or more; from 51 on as 51, beyond which the sum loses its digits.
    """
    n = copies.clamp_max(51).double()[:, None]
    o = opacities.double().clamp_max(1 - 1e-6)[:, None]
    shared = 1 - (1 - o) ** (1 / n)
    m = torch.arange(1, 52, device=o.device).double()
    binomials = (torch.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma((n - m).clamp_min(0) + 1)).exp() * (m <= n)
    total = (binomials * (-1) ** (m - 1) * shared**m / m.sqrt()).sum(dim=-1)
    return shared[:, 0].to(opacities), (o[:, 0] / total).to(opacities)


def nearest_distances(points: Tensor) -> Tensor:
    """(N,): mean distance of points (N, 3) to their three nearest neighbours."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=min(4, len(points))).fit(points.cpu().numpy())
    return torch.from_numpy(found.kneighbors(points.cpu().numpy())[0][:, 1:]).float().mean(dim=-1)


def _refuse_bent_rays(cameras: Cameras) -> None:
    kinds = cameras.camera_type
    if bool((kinds != CameraType.PERSPECTIVE.value).any()) or bool(
        cameras.distortion_params is not None and (cameras.distortion_params != 0).any()
    ):
        raise InputError(
            "igae-splatfacto renders pinhole pictures, and a camera has a fisheye, panoramic or k4 lens; take "
            "igae-nerfacto"
        )
