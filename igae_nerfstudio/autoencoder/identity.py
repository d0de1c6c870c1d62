"""The autoencoder that does nothing: with it, what learns latent scenes learns plain RGB ones."""

from __future__ import annotations

from typing import Iterator

from torch import Tensor, nn
from torch.nn import Parameter


class IdentityAutoencoder(nn.Module):
    """E and D that return what they get, with the methods of `TrainableAutoencoder` and nothing to train."""

    latent_channels = 3
    downscale = 1

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """(B, 3, H, W) as it is."""
        del sample
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) as it is."""
        return latents

    def encode_colour(self, colour: Tensor) -> Tensor:
        """(3,) as it is."""
        return colour

    def parameters_of(self, half: str) -> Iterator[Parameter]:
        """None."""
        del half
        return iter(())
