"""A better start for stage 2: an autoencoder of the same quality in whose latents what agrees in 3D counts most.

An invertible linear map of latents, undone by the decoder, leaves an autoencoder as good as it was. But latents are
compared by their squared error, in stage 2 and later by every latent NeRF, and that does depend on the map. In a
standard autoencoder all directions of the latent space are about equally large, and Tri-Planes can explain a few of
them: all others are noise to them. So each direction is scaled by the share of its variance that the Tri-Planes of
stage 1 explain. Not in the paper, whose joint training has to find this by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def explained_shares(latents: Tensor, rendered: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the latent space and the share of their variance that renders explain.

    Args:
        latents: encoded, (n, c).
        rendered: at the same pixels, (n, c).

    Returns:
        Shares (c,), descending, at most 1; below 0 where renders are worse than the mean. And whitening directions
        (c, c): row i times a latent is its coordinate along direction i, of variance 1.
    """
    total, error = (torch.cov(values.double().T) for values in (latents, latents - rendered))
    ridge = 1e-9 * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype, device=total.device)
    whiten = torch.linalg.inv(torch.linalg.cholesky(total + ridge))
    unexplained, rotation = torch.linalg.eigh(whiten @ error @ whiten.T)
    return 1 - unexplained, rotation.T @ whiten


def consistent_basis(shares: Tensor, directions: Tensor, smallest: float) -> Tensor:
    """The map (c, c) that scales each direction of `explained_shares` by its share, at least by `smallest`.

    A rotation follows that gives every channel a part of every direction, so that the usual normalisation of channels
    does not undo the scaling.
    """
    return spreading_rotation(len(shares)).to(directions) @ (shares.clamp(smallest, 1)[:, None] * directions)


def spreading_rotation(size: int) -> Tensor:
    """The orthogonal cosine transform (size, size), float64: every output has a part of every input."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rotation = torch.cos(torch.pi / size * (n + 0.5) * k) * (2 / size) ** 0.5
    rotation[0] /= 2**0.5
    return rotation.T
