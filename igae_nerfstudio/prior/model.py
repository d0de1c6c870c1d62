"""A few photos to a posterior over the scene, and what it is a posterior of: numbers z that make a scene.

    y_1..k, p_1..k  --encoder-->  q(z | y, p) = N(mean, deviation^2)  --decoder-->  scene  --renderer-->  y~

After NeRF-VAE (Kosiorek et al. 2021): amortised inference from any number of posed photos, in any order; a standard
normal prior; a scene function shared by all scenes and conditioned on z; volume rendering. Its text could only be read
in summaries. What these do not say is marked "unconfirmed"; what they exclude or do not know, "not in the paper".

Symbols: S scenes, k context photos, (h, w, c) their latents, M = A^3 places of z with D numbers each, F features and K
points a side of a Tri-Plane, W the networks' width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.autoencoder import pad_to_multiple
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.joint.config import Stage1Config
from igae_nerfstudio.joint.model import JointModel
from igae_nerfstudio.joint.scene_parameters import SceneParameters
from igae_nerfstudio.prior.config import ElboConfig, NetworkConfig, PriorConfig
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig, TriPlaneRenderer, initial_planes

LOOK_UP = 0.05
"""Deviation, in scene units, of the distance between a point and the rays that it looks up latents at: half a latent
pixel of photos of 128 x 128 pixels; where rays are further apart, the nearest one counts."""
FIRST_DEVIATION = 0.1
"""Of the posterior at the start: with a deviation of 1, noise would hide the photos from the decoder."""


@dataclass
class Posterior:
    """q(z | photos), Gaussians with a diagonal covariance (unconfirmed)."""

    mean: Tensor
    """(S, M, D)."""
    log_deviation: Tensor
    """(S, M, D), natural logarithm."""

    def sample(self) -> Tensor:
        """z (S, M, D), differentiable in mean and deviation."""
        return self.mean + self.log_deviation.exp() * torch.randn_like(self.mean)

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each number (S, M, D), in nats: (mean^2 + deviation^2 - 1) / 2 - log deviation."""
        return (self.mean.square() + (2 * self.log_deviation).exp() - 1) / 2 - self.log_deviation


def waves(values: Tensor, octaves: int) -> Tensor:
    """Values (..., n) about [-1, 1] and their sines and cosines, (..., n (1 + 2 octaves))."""
    angles = values[..., None] * (math.pi / 2 * 2.0 ** torch.arange(octaves, device=values.device))
    return torch.cat([values, angles.sin().flatten(-2), angles.cos().flatten(-2)], dim=-1)


def grid_points(side: int, extent: float) -> Tensor:
    """Middles (side, side, side, 3) of the cells of [-extent, extent]^3, indexed by x, y and z."""
    line = (torch.arange(side) + 0.5) * (2 * extent / side) - extent
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)


class Encoder(nn.Module):
    """Photos with cameras to a posterior; the order of the photos does not matter.

    A token is a patch of latents with the Plücker coordinates (direction, origin x direction) of its rays. M queries,
    one for each place of z, attend to each other and to the tokens of all photos (the paper: a network a photo and the
    mean of its outputs; unconfirmed). A query begins with what the photos show at its place (`looked_up`).

    Args:
        config: sizes.
        channels: c.
        half_extent: half the side of the cube, scene units.
    """

    points: Tensor

    def __init__(self, config: NetworkConfig, channels: int, half_extent: float) -> None:
        super().__init__()
        self.config, self.half_extent, width = config, half_extent, config.width
        per_ray = 6 * (1 + 2 * config.octaves)
        self.embed = nn.Linear(config.patch**2 * channels + per_ray, width)
        self.queries = nn.Parameter(positions(grid_points(config.anchors, 1).reshape(-1, 3), width))
        corners = grid_points(config.points, half_extent / config.anchors).reshape(1, -1, 3)
        points = grid_points(config.anchors, half_extent).reshape(-1, 1, 3) + corners
        self.register_buffer("points", points, persistent=False)  # (M, points^3, 3)
        self.place = nn.Linear(3 * channels * config.points**3, width) if config.lift else None
        self.layers = layers(config, config.encoder_layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2 * config.dimensions)
        with torch.no_grad():
            self.head.bias[config.dimensions :] = math.log(FIRST_DEVIATION)

    def forward(self, latents: Tensor, origins: Tensor, directions: Tensor) -> Posterior:
        """The posterior from k photos of each scene.

        Args:
            latents: y (S, k, h, w, c), normalised.
            origins: (S, k, h, w, 3) of the rays of latent pixels, scene units.
            directions: the same, of unit length.
        """
        scenes, photos = latents.shape[:2]
        rays = torch.cat([directions, torch.linalg.cross(origins / self.half_extent, directions)], dim=-1)
        patches = F.pixel_unshuffle(self._padded(2 * latents - 1), self.config.patch)
        of_rays = F.avg_pool2d(self._padded(rays), self.config.patch)
        tokens = [patches.flatten(2).mT, waves(of_rays.flatten(2).mT, self.config.octaves)]
        seen = self.embed(torch.cat(tokens, dim=-1)).unflatten(0, (scenes, photos)).flatten(1, 2)
        values = self.queries.expand(scenes, -1, -1)
        if self.place is not None:
            values = values + self.place(self.looked_up(2 * latents - 1, rays))
        for layer in self.layers:
            values = layer(values, seen)
        mean, log_deviation = self.head(self.norm(values)).chunk(2, dim=-1)
        return Posterior(mean, log_deviation.clamp(-10, 2))

    def _padded(self, images: Tensor) -> Tensor:
        """(S, k, h, w, n) as (S k, n, h', w'), sides repeated up to whole patches."""
        return pad_to_multiple(images.flatten(0, 1).permute(0, 3, 1, 2), self.config.patch)

    def looked_up(self, latents: Tensor, rays: Tensor) -> Tensor:
        """What photos show at points in each place of z: mean, least and most over photos, (S, M, points^3 3 c).

        A point's latent in a photo is the mean of those whose rays pass near it; |p x d - m| is its distance from a ray
        with Plücker coordinates (d, m). Not in the paper.
        """
        points = self.points.reshape(-1, 3) / self.half_extent
        d, m = rays.flatten(2, 3).split(3, dim=-1)  # (S, k, h w, 3)
        along, aside = points @ d.mT, points @ torch.linalg.cross(d, m).mT
        squared = points.square().sum(-1)[:, None] - along.square() - 2 * aside + m.square().sum(-1)[:, :, None]
        weights = torch.softmax(-squared / (2 * (LOOK_UP / self.half_extent) ** 2), dim=-1)
        found = weights @ latents.flatten(2, 3)  # (S, k, points, c)
        over_photos = torch.cat([found.mean(dim=1), found.amin(dim=1), found.amax(dim=1)], dim=-1)
        return over_photos.unflatten(1, self.points.shape[:2]).flatten(2)


class PlaneDecoder(nn.Module):
    """z to Tri-Planes, as a change of the mean scene's: learnt tokens attend to each other and to z.

    A token of a plane begins with the z of all places that lie above and below it. The last layer starts at zero, so
    training starts at the mean scene. All that the planes know of a scene passes through z. Not in the paper, which
    has no planes.

    Args:
        config: sizes.
        planes: F and K.
    """

    def __init__(self, config: NetworkConfig, planes: TriPlaneConfig) -> None:
        super().__init__()
        self.config, self.factor, width = config, planes.resolution // config.plane_tokens, config.width
        line = (torch.arange(config.plane_tokens) + 0.5) * (2 / config.plane_tokens) - 1
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        zero = torch.zeros_like(rows)
        places = [(columns, rows, zero), (columns, zero, rows), (zero, columns, rows)]  # PLANE_AXES
        points = torch.cat([torch.stack(place, dim=-1).reshape(-1, 3) for place in places])
        self.tokens = nn.Parameter(positions(points, width))
        self.memory = nn.Parameter(positions(grid_points(config.anchors, 1).reshape(-1, 3), width))
        self.embed = nn.Linear(config.dimensions, width)
        self.columns = nn.ModuleList([nn.Linear(config.anchors * config.dimensions, width) for _ in range(3)])
        self.layers = layers(config, config.decoder_layers)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, planes.features * self.factor**2)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor) -> Tensor:
        """z (S, M, D) to changes of the planes (S, 3, F, K, K)."""
        side, tokens = self.config.anchors, self.config.plane_tokens
        volume = z.unflatten(1, (side, side, side))  # x, y, z
        starts = []
        for axes, embed in zip(((2, 1, 3), (3, 1, 2), (3, 2, 1)), self.columns):  # rows, columns, above each other
            column = embed(volume.permute(0, *axes, 4).flatten(3)).permute(0, 3, 1, 2)
            starts.append(F.interpolate(column, (tokens, tokens), mode="bilinear").flatten(2).mT)
        values = self.tokens + torch.cat(starts, dim=1)
        memory = self.memory + self.embed(z)
        for layer in self.layers:
            values = layer(values, memory)
        pixels = self.last(self.norm(values)).unflatten(1, (3, tokens, tokens))
        return F.pixel_shuffle(pixels.permute(0, 1, 4, 2, 3), self.factor)


class SceneFunction(TriPlaneRenderer):
    """The paper's ways to condition: density and latent of a point from z, without planes.

    `attention`: points attend to z in two layers. `vector`: an MLP of the point and all of z. Layers and widths are
    unconfirmed. It renders as Tri-Planes do, with z (S, M, D) in the place of planes.
    """

    def __init__(self, config: NetworkConfig, planes: TriPlaneConfig, channels: int) -> None:
        super().__init__(planes, channels)
        self.network, width = config, planes.hidden
        per_point = 3 * (1 + 2 * (config.octaves + 1))
        self.point = nn.Linear(per_point, width)
        if config.conditioning == "attention":
            self.memory = nn.Parameter(positions(grid_points(config.anchors, 1).reshape(-1, 3), width))
            self.embed = nn.Linear(config.dimensions, width)
            self.attend = nn.ModuleList([nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2)])
        else:
            self.embed = nn.Linear(config.anchors**3 * config.dimensions, width)
            self.attend = nn.ModuleList()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.decoder = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1 + channels))

    def field(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (S, P) and heads (S, P, c) of points (S, P, 3); `planes` is z (S, M, D)."""
        values = self.point(waves(points / self.config.half_extent, self.network.octaves + 1))
        if self.attend:
            memory = self.memory + self.embed(planes)
            for attend, mlp in zip(self.attend, self.mlps):
                values = values + attend(values, memory, memory, need_weights=False)[0]
                values = values + mlp(values)
        else:
            values = values + self.embed(planes.flatten(1))[:, None]
            for mlp in self.mlps:
                values = values + mlp(values)
        raw = self.decoder(values).float()
        return F.softplus(raw[..., 0] - 1), raw[..., 1:]


class ScenePrior(SceneParameters):
    """Encoder, decoder and mean scene: what all scenes share. A scene has no code of its own.

    Args:
        config: settings.
        channels: c.
    """

    def __init__(self, config: PriorConfig, channels: int) -> None:
        super().__init__()
        network, planes = config.network, config.triplanes
        self.network = network
        self.code_numbers = self.plane_numbers = 1  # of which nothing is made
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.encoder = Encoder(network, channels, planes.half_extent)
            self.decoder, self.mean = None, None
            if network.conditioning == "planes":
                self.decoder = PlaneDecoder(network, planes)
                self.mean = nn.Parameter(initial_planes(planes, torch.Generator().manual_seed(config.seed)))
        self.log_deviation = nn.Parameter(torch.full((channels,), math.log(config.first_deviation)))
        """(c,), natural logarithm of the likelihood's deviation."""

    def scene(self, z: Tensor) -> Tensor:
        """What the renderer takes of z (S, M, D): Tri-Planes (S, 3, F, K, K), or z itself."""
        return z if self.decoder is None else self.mean + self.decoder(z)

    def forward(self, codes: Tensor) -> Tensor:
        """The mean scene, for each of S codes: planes (S, 3, F, K, K), or z = 0."""
        if self.mean is not None:
            return self.mean.expand(len(codes), *self.mean.shape)
        return codes.new_zeros(len(codes), self.network.anchors**3, self.network.dimensions)

    def initial_code(self, generator: torch.Generator) -> Tensor:
        return torch.zeros(1)

    def groups(self, stage: Stage1Config | Any) -> list[dict[str, Any]]:
        """The mean scene; in stage 2 networks and likelihood too."""
        groups = [] if self.mean is None else [{"name": "mean", "params": [self.mean], "lr": stage.planes_lr}]
        if isinstance(stage, ElboConfig):
            network = [*self.encoder.parameters(), *(() if self.decoder is None else self.decoder.parameters())]
            groups.append({"name": "network", "params": network, "lr": stage.network_lr})
            groups.append({"name": "deviation", "params": [self.log_deviation], "lr": stage.deviation_lr})
        return groups


def prior_model(config: PriorConfig, autoencoder: TrainableAutoencoder, background: Sequence[float]) -> JointModel:
    """An untrained prior with its renderer and the frozen autoencoder."""
    channels = autoencoder.latent_channels
    model = JointModel(config, autoencoder.requires_grad_(False), ScenePrior(config, channels), background)
    if config.network.conditioning != "planes":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model.renderer = SceneFunction(config.network, config.triplanes, channels)
    return model


def scenes_of(model: JointModel) -> ScenePrior:
    """The encoder and decoder of a `prior_model`."""
    assert isinstance(model.shared, ScenePrior)
    return model.shared


def decoded(model: JointModel, z: Tensor, origins: Tensor, directions: Tensor) -> Tensor:
    """Pictures (k, 3, H, W) in [0, 1] of one scene z (1, M, D), along rays (1, k, h, w, 3) of latent pixels."""
    latents = model.renderer(scenes_of(model).scene(z), origins.flatten(1, 3), directions.flatten(1, 3)).latents
    return model.decode_render(latents.view(*origins.shape[1:4], -1)).clamp(0, 1)


def positions(points: Tensor, width: int) -> Tensor:
    """Embeddings (n, W) of points (n, 3) in [-1, 1]^3 to begin with: sines of each coordinate, and little else."""
    octaves = max(1, min(4, width // 6))
    known = waves(points, octaves)[:, 3:]
    noise = 0.02 * torch.randn(len(points), width)
    noise[:, : known.shape[1]] += 0.5 * known[:, :width]
    return noise


def layers(config: NetworkConfig, count: int) -> nn.ModuleList:
    """Layers in which tokens attend to each other and to others; norms first, without dropout."""
    options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    sizes = (config.width, config.heads, 4 * config.width)
    return nn.ModuleList(nn.TransformerDecoderLayer(*sizes, **options) for _ in range(count))
