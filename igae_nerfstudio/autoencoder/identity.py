"""The identity as an autoencoder: with it, a trainer of latent scenes trains RGB scenes."""

from __future__ import annotations

from typing import Iterator

from torch import Tensor, nn
from torch.nn import Parameter


class IdentityAutoencoder(nn.Module):
    """E(x) = x and D(z) = z, with the methods of `TrainableAutoencoder` and no parameters."""

    latent_channels = 3
    downscale = 1

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """z = x, (B, 3, H, W)."""
        del sample
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """x^ = z, (B, 3, H, W)."""
        return latents

    def encode_colour(self, colour: Tensor) -> Tensor:
        """The colour (3,) itself."""
        return colour

    def parameters_of(self, half: str) -> Iterator[Parameter]:
        """No parameters."""
        del half
        return iter(())
