"""Total variation of feature grids and images (paper, equations 13 and 14).

The squared one, which regularises feature planes, has its own gradient: with automatic differentiation each of its four
slices becomes a zero-filled gradient of the grid's full size, which costs more than rendering a batch of latent rays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SquaredVariation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grids: Tensor, down: float, across: float) -> Tensor:
        ctx.save_for_backward(grids)
        ctx.weights = {-2: down, -1: across}
        total = grids.new_zeros(())
        for dim, weight in ctx.weights.items():
            difference = grids.diff(dim=dim).flatten()
            total += weight * torch.dot(difference, difference)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (grids,) = ctx.saved_tensors
        gradient = torch.zeros_like(grids)
        for dim, weight in ctx.weights.items():
            difference = grids.diff(dim=dim)
            length = difference.shape[dim]
            gradient.narrow(dim, 1, length).addcmul_(difference, above, value=2 * weight)
            gradient.narrow(dim, 0, length).addcmul_(difference, above, value=-2 * weight)
        return gradient, None, None


def squared_variation(grids: Tensor, down: float, across: float) -> Tensor:
    """down * sum (G_ij - G_i-1,j)^2 + across * sum (G_ij - G_i,j-1)^2 over all of (..., H, W); differentiable once."""
    return _SquaredVariation.apply(grids, down, across)


def mean_squared_variation(grids: Tensor) -> Tensor:
    """The mean squared difference between neighbouring rows of (..., H, W) plus that between columns; H, W >= 2."""
    height, width = grids.shape[-2:]
    maps = grids.numel() // (height * width)
    return squared_variation(grids, 1 / (maps * (height - 1) * width), 1 / (maps * height * (width - 1)))


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
