"""The affine change of variables between an autoencoder's latents and what a scene model renders.

A Nerfstudio method is tuned for colours: values around 1/2, nearly all in [0, 1]. Its loss weights, the size
of its first outputs and its learning rates assume that. Latents of different autoencoders have any mean and
scale, so a scene renders

    y = 1/2 + (z - mean) / (4 std)        per channel, mean and std over the training latents,

which puts two standard deviations on either side into [0, 1]. The map is affine: a loss on y is a loss on z
with every channel weighted alike, and its gradient does not saturate. The authors' code squashes instead,
y = (1 + tanh(0.02 z)) / 2, which uses a hundredth of the range for latents of unit scale and so divides the
squared error by ten thousand; it is kept as an option, for comparison.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

LatentNormalization = Literal["standardize", "tanh", "none"]

TANH_SLOPE = 0.02
"""The authors' slope (official code, `TanhNormalizer`)."""


class LatentNormalizer(nn.Module):
    """z <-> y; the statistics are buffers and travel in the checkpoint.

    Args:
        latent_channels: c.
        kind: `standardize` (affine, from the training latents), `tanh` (the authors'), or `none` (y = z).
    """

    mean: Tensor  # (c,)
    std: Tensor  # (c,)

    def __init__(self, latent_channels: int, kind: LatentNormalization = "standardize") -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(latent_channels))
        self.register_buffer("std", torch.ones(latent_channels))

    def fit(self, latents: Tensor) -> None:
        """Take mean and standard deviation per channel from latents (..., c)."""
        flat = latents.reshape(-1, latents.shape[-1]).double()
        self.mean.copy_(flat.mean(dim=0))
        self.std.copy_(flat.std(dim=0).clamp(min=1e-3))  # a constant channel must not divide by zero

    def normalize(self, latents: Tensor) -> Tensor:
        """y of z, both (..., c)."""
        if self.kind == "standardize":
            return 0.5 + (latents - self.mean) / (4 * self.std)
        if self.kind == "tanh":
            return (1 + torch.tanh(TANH_SLOPE * latents)) / 2
        return latents

    def denormalize(self, values: Tensor) -> Tensor:
        """z of y, both (..., c); differentiable. `tanh` clamps y by 1e-6 inside (0, 1) to stay finite."""
        if self.kind == "standardize":
            return self.mean + (values - 0.5) * (4 * self.std)
        if self.kind == "tanh":
            return torch.atanh((2 * values - 1).clamp(-1 + 2e-6, 1 - 2e-6)) / TANH_SLOPE
        return values
