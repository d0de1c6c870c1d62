"""The terms of the IG-AE objective that are more than a mean squared error (paper, equations 10, 13 and 14)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.grid_variation import squared_variation


def total_variation(images: Tensor, p: float, q: float) -> Tensor:
    """Equation 13: the mean over pixels of |I_ij - I_i-1,j|_p^q + |I_ij - I_i,j-1|_p^q.

    Args:
        images: (..., C, H, W); the norm is over the C channels of a difference.
        p: the norm, 1 or 2.
        q: its power; (2, 2) makes smooth, (2, 1) keeps sharp edges.

    Returns:
        A scalar, the mean over the leading dimensions. Differences of zero have gradient zero.
    """
    height, width = images.shape[-2:]
    if (p, q) == (2, 2):
        each = images.shape[-3] / images.numel()  # of a pixel, over leading dimensions too
        return squared_variation(images, each, each)
    total = images.new_zeros(())
    for dim in (-2, -1):
        total = total + (_norm(images.diff(dim=dim), p) ** q).sum(dim=(-2, -1)).mean()
    return total / (height * width)


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the channels, with gradient zero (and not NaN) at zero."""
    if p == 1:
        return difference.abs().sum(dim=-3)
    squared = difference.square().sum(dim=-3)
    zero = squared == 0
    return torch.where(zero, torch.zeros_like(squared), torch.where(zero, torch.ones_like(squared), squared).sqrt())


def plane_variation(planes: Tensor) -> Tensor:
    """Equation 14 with (p, q) = (2, 2): the sum over the three planes of (S, 3, F, K, K), the mean over scenes."""
    return 3 * total_variation(planes, 2, 2)


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
