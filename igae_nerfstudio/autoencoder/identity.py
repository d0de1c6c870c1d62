"""The identity as an autoencoder: with it, a trainer of latent scenes trains RGB scenes."""

from __future__ import annotations

from typing import Iterator

from torch import Tensor, nn
from torch.nn import Parameter


class IdentityAutoencoder(nn.Module):
    """E(x) = x and D(z) = z: the methods of `TrainableAutoencoder`, without parameters."""

    latent_channels = 3
    downscale = 1

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def encode_colour(self, colour: Tensor) -> Tensor:
        return colour

    def parameters_of(self, half: str) -> Iterator[Parameter]:
        return iter(())
