"""Tri-Planes: latent scenes that share one feature decoder (paper, section 4.2 and appendix C).

A scene T is three orthogonal feature planes XY, XZ, YZ of K x K points and F features on the cube
[-half_extent, half_extent]^3. A point's feature is the sum of the three bilinear look-ups; a small network, the
same for all scenes, turns it into density and latent. Symbols: S scenes in a batch, R rays of each, n samples of a
ray, c latent channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igae_nerfstudio.rendering.latent_renderer import LatentRenderer
from igae_nerfstudio.rendering.ray_sampling import (
    box_interval,
    expected_depth,
    importance_samples,
    intervals_around,
    stratified_samples,
    volume_weights,
)

PLANE_AXES = ((0, 1), (0, 2), (1, 2))
"""The coordinates along width and height of the planes XY, XZ and YZ."""


@dataclass
class TriPlaneConfig:
    """Shape of the Tri-Planes and of their renderer (paper, table 10 and appendix C)."""

    resolution: int = 64
    """K, points along a side of each plane."""
    features: int = 32
    """F, features of a point."""
    hidden: int = 64
    """Width of the shared feature decoder's hidden layer."""
    half_extent: float = 1.0
    """Half the side of the cube that holds a scene, scene units."""
    samples: int = 48
    """Stratified samples of a ray."""
    importance_samples: int = 48
    """Further samples where the first found density."""
    jitter: bool = True
    """Random samples in training; evaluation never has them."""


@dataclass
class TriPlaneRender:
    """What rays see in a batch of scenes."""

    latents: Tensor
    """(S, R, c), normalised."""
    accumulation: Tensor
    """(S, R) in [0, 1]."""
    depth: Tensor
    """(S, R) expected distance along the ray, scene units; light that passes through counts as the far end."""


class TriPlaneRenderer(nn.Module):
    """R_T: the shared feature decoder to latents of c channels, and volume rendering."""

    def __init__(self, config: TriPlaneConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = latent_channels
        self.decoder = nn.Sequential(
            nn.Linear(config.features, config.hidden),
            nn.Softplus(),
            nn.Linear(config.hidden, 1 + latent_channels),
        )
        self.composite = LatentRenderer(latent_channels)

    def set_background(self, background: Tensor) -> None:
        """The latent (c,) behind every scene, normalised."""
        self.composite.background.copy_(background.detach())

    @torch.no_grad()
    def change_latents(self, matrix: Tensor) -> None:
        """Render 1/2 + matrix (y - 1/2) of what were latents y: a map (c, c) of the last layer's heads."""
        last: Any = self.decoder[-1]
        for values in (last.weight, last.bias):
            values[1:] = (matrix.to(values.device, torch.float64) @ values[1:].double()).float()

    def features(self, planes: Tensor, points: Tensor) -> Tensor:
        """Sum (S, P, F) of the three bilinear look-ups in planes (S, 3, F, K, K) at points (S, P, 3), scene units.

        Outside the cube the border's features continue.
        """
        scenes, _, features, *side = planes.shape
        unit = points / self.config.half_extent
        grid = torch.stack([unit[..., list(axes)] for axes in PLANE_AXES], dim=1)  # (S, 3, P, 2)
        found = F.grid_sample(
            planes.reshape(3 * scenes, features, *side),
            grid.reshape(3 * scenes, 1, -1, 2).to(planes.dtype),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        return found.view(scenes, 3, features, -1).sum(dim=1).transpose(1, 2)

    def field(self, planes: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (S, P), per scene unit, not negative, and the latent head's outputs (S, P, c)."""
        raw = self.decoder(self.features(planes, points)).float()
        return F.softplus(raw[..., 0] - 1), raw[..., 1:]

    def forward(
        self, planes: Tensor, origins: Tensor, directions: Tensor, limits: tuple[Tensor, Tensor] | None = None
    ) -> TriPlaneRender:
        """Render rays; samples are random in training and fixed in evaluation.

        Args:
            planes: (S, 3, F, K, K).
            origins: (S, R, 3), scene units.
            directions: (S, R, 3), of unit length.
            limits: nearest and farthest distance (S, R) to render, scene units; None for all of the cube.
        """
        jitter = self.training and self.config.jitter
        near, far = box_interval(origins, directions, self.config.half_extent)
        if limits is not None:
            near = torch.minimum(torch.maximum(near, limits[0]), far)
            far = torch.maximum(torch.minimum(far, limits[1]), near)
        samples, boundaries = stratified_samples(near, far, self.config.samples, jitter)
        if self.config.importance_samples:
            with torch.no_grad():
                density, _ = self._at(planes, origins, directions, samples)
                weights = volume_weights(density, boundaries.diff(dim=-1))
                more = importance_samples(boundaries, weights, self.config.importance_samples, jitter)
            samples = torch.cat([samples, more], dim=-1).sort(dim=-1).values
        density, heads = self._at(planes, origins, directions, samples)
        weights = volume_weights(density, intervals_around(samples, near, far))
        return TriPlaneRender(
            latents=self.composite(heads, weights[..., None]),
            accumulation=weights.sum(dim=-1),
            depth=expected_depth(weights, samples, far),
        )

    def _at(self, planes: Tensor, origins: Tensor, directions: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The field at samples t (S, R, n): density (S, R, n) and heads (S, R, n, c)."""
        points = origins[..., None, :] + samples[..., None] * directions[..., None, :]
        density, heads = self.field(planes, points.flatten(1, 2))
        return density.view(samples.shape), heads.view(*samples.shape, self.latent_channels)


def initial_planes(config: TriPlaneConfig, generator: torch.Generator) -> Tensor:
    """Planes (3, F, K, K) of a new scene: small noise."""
    shape = (3, config.features, config.resolution, config.resolution)
    return 0.1 * torch.randn(shape, generator=generator)
