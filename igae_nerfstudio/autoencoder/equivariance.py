"""How well an autoencoder stands that its latents are moved: D(T E(x)) against T x.

A novel view is a warped latent picture. An autoencoder that was never taught so decodes latents that are turned or
shifted by a part of a latent pixel much worse than those of the turned picture. EQ-VAE (arXiv 2502.09509) and AF-LDM
(arXiv 2503.09419) teach it with transforms T of the plane, for which no scene is needed. Not in the IG-AE paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import psnr

MARGIN = 1.0
"""Latent pixels at the border of a picture that do not count where they were moved: what lies beyond is not known."""
WARP_DEGREES, WARP_SHIFT = 10.0, 0.5
"""The transform of `warp_psnr`: a turn, and a shift along both axes in latent pixels."""


@dataclass
class Transforms:
    """The random transforms of the equivariance terms."""

    rotation: float = 25.0
    """Largest angle, degrees."""
    scale: float = 1.3
    """Largest factor on the size; the smallest is its inverse."""
    anisotropy: float = 1.15
    """Largest ratio of the sizes along two axes of a random direction."""
    shift: float = 1.5
    """Largest shift along each axis, latent pixels."""

    def check(self, side: int) -> None:
        """Raises InputError for values that make no sense with latents of side x side."""
        if not (0 <= self.rotation <= 180 and 1 <= self.scale <= 2 and 1 <= self.anisotropy <= 2):
            raise InputError(
                f"transforms of rotation {self.rotation}, scale {self.scale} and anisotropy {self.anisotropy} cannot "
                "be used; the rotation must be from 0 to 180 degrees, the factors from 1 to 2"
            )
        if not 0 <= self.shift <= side / 4:
            raise InputError(
                f"transforms.shift is {self.shift} latent pixels; it must be from 0 to {side / 4:g}, a quarter of the "
                "picture's side"
            )

    def draw(self, count: int, side: int) -> Tensor:
        """Random transforms (count, 2, 3) of pictures whose latents are side x side, for `moved`."""
        angle, axis, size, ratio, x, y = 2 * torch.rand(6, count) - 1
        angle, axis = math.radians(self.rotation) * angle, math.pi / 2 * axis
        size, ratio = self.scale**size, self.anisotropy ** (ratio / 2)
        stretched = torch.diag_embed(torch.stack([size * ratio, size / ratio], dim=-1))
        linear = _rotation(angle) @ _rotation(axis) @ stretched @ _rotation(-axis)
        return torch.cat([linear, 2 * self.shift / side * torch.stack([x, y], dim=-1)[..., None]], dim=-1)


def _rotation(angle: Tensor) -> Tensor:
    """(...,) radians to (..., 2, 2)."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([cosine, -sine, sine, cosine], dim=-1).unflatten(-1, (2, 2))


def moved(pictures: Tensor, transforms: Tensor) -> Tensor:
    """T x, bicubic, the picture mirrored at its borders: square pictures or latents (B, c, n, n) to the same.

    Args:
        pictures: x.
        transforms: (B, 2, 3), from places in the result to places in x, both in [-1, 1] from border to border.
    """
    grid = F.affine_grid(transforms.to(pictures), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def known(transforms: Tensor, size: int, side: int) -> Tensor:
    """Where a moved picture of size x size pixels shows what is inside the picture: (B, 1, size, size), 1 or 0.

    Args:
        transforms: as in `moved`.
        size: of the picture, or of its latents.
        side: of the latents; `MARGIN` of their pixels do not count.
    """
    grid = F.affine_grid(transforms, [len(transforms), 1, size, size], align_corners=False)
    return (grid.abs() <= 1 - 2 * MARGIN / side).all(dim=-1)[:, None].float()


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The squared error (B,) of pictures (B, c, n, n), the mean where the mask (B, 1, n, n) is 1."""
    error = (prediction - target).square().mean(dim=1, keepdim=True)
    return (mask * error).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp_min(1)


@torch.no_grad()
def warp_psnr(pictures: Tensor, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """PSNR in dB (B,) of D(T E(x)) against T x, for a turn by 10 degrees and a shift by half a latent pixel.

    Args:
        pictures: x, square, (B, 3, n, n) in [0, 1].
        latents: E(x), (B, c, s, s).
        decode: D, latents to pictures.
    """
    side = latents.shape[-1]
    linear = _rotation(torch.tensor(math.radians(WARP_DEGREES)))
    transform = torch.cat([linear, torch.full((2, 1), 2 * WARP_SHIFT / side)], dim=-1)[None]
    seen = known(transform, pictures.shape[-1], side)[0, 0].bool().to(pictures.device)
    transforms = transform.expand(len(pictures), -1, -1)
    decoded, target = decode(moved(latents, transforms)), moved(pictures, transforms)
    return psnr(decoded.clamp(0, 1)[..., seen], target.clamp(0, 1)[..., seen])
