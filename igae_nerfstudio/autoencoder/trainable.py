"""An autoencoder in training: E and D with gradients, in the value ranges of `autoencoder.py`."""

from __future__ import annotations

from typing import Any, Iterator, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder, Decoder, flat_latent, latents_of
from igae_nerfstudio.errors import InputError


class TrainableAutoencoder(nn.Module):
    """E and D of a diffusers autoencoder.

    Args:
        autoencoder: loaded by `load_autoencoder`; its module is trained in place.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.module: Any = autoencoder.module.requires_grad_(True).to(memory_format=torch.channels_last)
        self.latent_channels = autoencoder.latent_channels
        self.downscale = autoencoder.downscale

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """z = E(x) with gradient: (B, 3, l h, l w) in [0, 1] -> (B, c, h, w).

        Args:
            images: x.
            sample: draw from the posterior, where there is one, instead of taking its mean.
        """
        images = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        return latents_of(self.module.encode(images), sample)

    def decode(self, latents: Tensor) -> Tensor:
        """x^ = D(z) with gradient: (B, c, h, w) -> (B, 3, l h, l w), about [0, 1], not clamped."""
        return Decoder(self.module)(latents.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def encode_colour(self, colour: Tensor) -> Tensor:
        """The latent (c,) of a flat colour (3,) under the present E."""
        device = next(self.module.parameters()).device
        return flat_latent(self.encode, colour.to(device)).float()

    @torch.no_grad()
    def change_basis(self, matrix: Tensor) -> None:
        """Turn latents z into matrix z, and let the decoder undo it: decode(encode(x)) stays the same.

        Args:
            matrix: (c, c), invertible.

        Raises:
            InputError: encoder and decoder do not meet in plain convolutions.
        """
        module, name = self.module, type(self.module).__name__
        if name != "AutoencoderDC" or module.config["encoder_out_shortcut"] or module.config["decoder_in_shortcut"]:
            raise InputError(
                f"the latents of this {name} cannot be rescaled, since its encoder and decoder meet in more than "
                "convolutions; leave stage2.latent_rescaling out"
            )
        last: nn.Conv2d = module.encoder.conv_out
        first: nn.Conv2d = module.decoder.conv_in
        matrix = matrix.to(last.weight.device, torch.float64)
        assert last.bias is not None
        for values in (last.weight, last.bias):
            values.copy_(torch.einsum("ij,j...->i...", matrix, values.double()))
        inverse = torch.linalg.inv(matrix)
        first.weight.copy_(torch.einsum("oi...,ij->oj...", first.weight.double(), inverse))

    def parameters_of(self, half: Literal["encoder", "decoder"]) -> Iterator[Parameter]:
        """phi, of the encoder, or psi, of the decoder."""
        names = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}[half]
        return (parameter for name, parameter in self.module.named_parameters() if name.startswith(names))


class IdentityAutoencoder(nn.Module):
    """E(x) = x and D(z) = z: with it, a trainer of latent scenes trains RGB scenes."""

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
