"""A better start for stage 2: an autoencoder of the same quality in whose latents what agrees in 3D counts most.

An invertible linear map of latents, undone by the decoder, leaves an autoencoder as good as it was. But latents are
compared by their squared error, in stage 2 and later by every latent NeRF, and that does depend on the map. In a
standard autoencoder all directions of the latent space are about equally large, and Tri-Planes can explain a few of
them: all others are noise to them. So each direction is scaled by the share of its variance that the Tri-Planes of
stage 1 explain. Not in the paper, whose joint training has to find this by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from igae_nerfstudio.console import log
from igae_nerfstudio.scenes.view_schedule import ViewGroup

if TYPE_CHECKING:
    from igae_nerfstudio.joint.trainer import Trainer

BACKGROUND_RADIUS = 0.15
"""Normalised latents nearer to the background's than this are taken for background."""


@torch.no_grad()
def rescale_latents(trainer: Trainer, smallest: float) -> None:
    """At the end of stage 1, change autoencoder, normalisation and renderer so that what the Tri-Planes explain counts
    most, and at least `smallest` of every direction; renders and autoencoded pictures stay what they are."""
    model, accelerator = trainer.model, trainer.accelerator
    shares, directions = explained_shares(*latents_on_objects(trainer))
    matrix = consistent_basis(shares, directions, smallest).to(trainer.device)  # of y - 1/2
    matrix = accelerator.reduce(matrix, reduction="mean")  # the same to the last bit in all processes
    old = 4 * model.normalizer.std.double()
    model.autoencoder.change_basis(matrix / old)  # of z
    trainer.fit_latents(trainer.data.some_latents() @ (matrix / old).float().T)
    model.renderer.change_latents((matrix.T / (4 * model.normalizer.std.double())).T)
    if trainer.main:
        log(f"Share of the variance of latents explained, by direction: {', '.join(f'{s:.2f}' for s in shares)}")


def latents_on_objects(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Encoded and rendered latents (n, c), normalised, of four views of every scene, away from the background."""
    model, data = trainer.model, trainer.data
    model.renderer.eval()
    encoded, rendered = [], []
    for scene, count in enumerate(data.counts):
        batch = data.batch([ViewGroup(scene, tuple(range(0, count, max(1, count // 4))[:4]))])
        assert batch.latents is not None
        render, latents = model.render(batch), model.normalized(batch.latents)
        there = (latents - model.renderer.composite.background).norm(dim=-1) > BACKGROUND_RADIUS
        encoded.append(latents[there])
        rendered.append(render[there])
    return torch.cat(encoded), torch.cat(rendered)


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
