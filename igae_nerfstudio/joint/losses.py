"""The terms of the IG-AE objective that are more than a mean squared error (paper, equation 10)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from igae_nerfstudio.errors import InputError


def moment_shift(latents: Tensor) -> Tensor:
    """How far mean and standard deviation of normalised latents (..., c) are from 1/2 and 1/4, in units of the latter:
    the mean over channels of (4 std - 1)^2 + (4 mean - 2)^2. Not in the paper."""
    std, mean = torch.std_mean(latents.flatten(0, -2).float(), dim=0)
    return ((4 * std - 1).square() + (4 * mean - 2).square()).mean()


class PerceptualLoss(nn.Module):
    """L_p of equation 10: LPIPS (Zhang et al. 2018) with AlexNet, frozen.

    Raises:
        InputError: its weights are neither in torch's cache nor can be fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls torchvision in an older way
                self.network: nn.Module = lpips.LPIPS(net="alex", verbose=False)
        except Exception as error:
            raise InputError(
                f"the perceptual loss needs AlexNet's weights, which cannot be had ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); fetch them once where there is "
                "a network, or set weights.real_perceptual: 0"
            ) from error
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean distance of images (B, 3, H, W) about [0, 1]; gradient to `images`."""
        return self.network(2 * images - 1, 2 * targets - 1).mean()
