"""An autoencoder in training: E and D with gradients, in the value ranges of `autoencoder.py`."""

from __future__ import annotations

from typing import Any, Iterator, Literal, Tuple

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
        """z = E(x) with gradient.

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of the downscale factor.
            sample: draw from the posterior, where there is one, instead of taking its mean.

        Returns:
            (B, c, h, w).
        """
        images = (2 * images - 1).contiguous(memory_format=torch.channels_last)
        return latents_of(self.module.encode(images), sample)

    def decode(self, latents: Tensor) -> Tensor:
        """x^ = D(z) with gradient: (B, c, h, w) -> (B, 3, l h, l w), about [0, 1], not clamped."""
        return Decoder(self.module)(latents.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def encode_colour(self, colour: Tensor) -> Tensor:
        """What E now makes of a flat colour (3,): a latent (c,)."""
        device = next(self.module.parameters()).device
        return flat_latent(self.encode, colour.to(device)).float()

    @torch.no_grad()
    def change_basis(self, matrix: Tensor) -> None:
        """Make the encoder's latents matrix z of what were z, and let the decoder undo it: decode(encode(x)) stays.

        Args:
            matrix: (c, c), invertible.

        Raises:
            InputError: encoder and decoder do not meet in plain convolutions.
        """
        last, first = self._convolutions_at_latents()
        matrix = matrix.to(last.weight.device, torch.float64)
        assert last.bias is not None
        for values in (last.weight, last.bias):
            values.copy_(torch.einsum("ij,j...->i...", matrix, values.double()))
        inverse = torch.linalg.inv(matrix)
        first.weight.copy_(torch.einsum("oi...,ij->oj...", first.weight.double(), inverse))

    def _convolutions_at_latents(self) -> Tuple[nn.Conv2d, nn.Conv2d]:
        config = self.module.config
        name = type(self.module).__name__
        if name == "AutoencoderDC" and not (config["encoder_out_shortcut"] or config["decoder_in_shortcut"]):
            return self.module.encoder.conv_out, self.module.decoder.conv_in
        raise InputError(
            f"the latents of this {name} cannot be rescaled (its encoder and decoder meet in more than convolutions); "
            "leave stage2.latent_rescaling out"
        )

    def parameters_of(self, half: Literal["encoder", "decoder"]) -> Iterator[Parameter]:
        """phi or psi."""
        names = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}[half]
        return (parameter for name, parameter in self.module.named_parameters() if name.startswith(names))
