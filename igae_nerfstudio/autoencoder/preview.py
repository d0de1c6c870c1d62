"""Latents in three colours, for people."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentPreview(nn.Module):
    """A fixed affine map from c latent channels to three colours: the principal axes of the training latents.

    Fitted once per scene (or training), so that all frames of a video and all views of a scene share it.
    """

    projection: Tensor  # (c, 3)
    offset: Tensor  # (3,)

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(latent_channels, 3))
        self.register_buffer("offset", torch.full((3,), 0.5))

    def fit(self, latents: Tensor) -> None:
        """Axes and ranges (1st to 99th percentile) from normalised latents (..., c)."""
        flat = latents.reshape(-1, latents.shape[-1])
        mean = flat.mean(dim=0)
        axes = torch.linalg.svd((flat - mean).T @ (flat - mean) / len(flat))[0][:, :3]
        axes = axes * torch.sign(axes.sum(dim=0)).where(axes.sum(dim=0) != 0, torch.ones(3, device=axes.device))
        if axes.shape[1] < 3:  # fewer channels than colours
            axes = F.pad(axes, (0, 3 - axes.shape[1]))
        values = (flat @ axes)[:: max(1, len(flat) // 100_000)]
        low, high = (torch.quantile(values, q, dim=0) for q in (0.01, 0.99))
        self.projection.copy_(axes / (high - low).clamp(min=1e-6))
        self.offset.copy_(-low / (high - low).clamp(min=1e-6))

    def forward(self, latents: Tensor) -> Tensor:
        """(..., c) -> (..., 3) in [0, 1]."""
        return (latents @ self.projection + self.offset).clamp(0, 1)
