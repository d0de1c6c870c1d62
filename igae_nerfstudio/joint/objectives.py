"""What a stage minimises: named terms of a model and a batch, and their weights (paper, equations 5 to 14).

An objective only computes terms whose weight is not 0. Gradients: phi are E's weights, psi D's, tau the renderer's, and
T the planes, hence codes and what the scenes share.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from igae_nerfstudio.autoencoder.equivariance import Transforms, known, masked_error, moved
from igae_nerfstudio.joint.config import WeightsConfig
from igae_nerfstudio.joint.model import Batch, JointModel
from igae_nerfstudio.metrics import PerceptualLoss
from igae_nerfstudio.rendering.total_variation import plane_variation, total_variation

Losses = dict[str, Tensor]
"""Terms by the names of their weights, unweighted scalars."""


class Objective(Protocol):
    """The terms of a batch, and the lambda of each."""

    weights: dict[str, float]

    def __call__(self, model: JointModel, batch: Batch) -> Losses: ...


def weighted_sum(objective: Objective, losses: Losses) -> Tensor:
    """L, equation 12."""
    return sum((objective.weights[name] * value for name, value in losses.items()), start=torch.zeros(()))


class LatentSupervision:
    """Stage 1 (section 4.2): renders against latents that were encoded before; E and D rest.

    Args:
        plane_tv: weight of the planes' total variation.
    """

    def __init__(self, plane_tv: float) -> None:
        self.weights = {"latent": 1.0, "plane_tv": plane_tv}

    def __call__(self, model: JointModel, batch: Batch) -> Losses:
        """`latent` has gradients to tau and T, `plane_tv` to T."""
        losses = {"latent": F.mse_loss(model.render(batch), model.normalized(_given(batch.latents)))}
        if self.weights["plane_tv"]:
            losses["plane_tv"] = plane_variation(batch.planes)
        return losses


class JointObjective:
    """Stage 2: L = L_3D(phi, psi, tau) + L_ae(phi, psi), equation 12.

    Args:
        weights: the lambdas.
        sample_posterior: draw latents from the posterior of a variational encoder.
        perceptual: LPIPS, where its weight is not 0.
        transforms: of the equivariance terms.
    """

    def __init__(
        self,
        weights: WeightsConfig,
        sample_posterior: bool = False,
        perceptual: PerceptualLoss | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        self.sample, self.perceptual, self.transforms = sample_posterior, perceptual, transforms or Transforms()
        real = weights.real_autoencoding  # the lambda in front of the whole of equation 10
        self.weights = {
            "latent": weights.latent,
            "rgb": weights.rgb,
            "scene_autoencoding": weights.scene_autoencoding,
            "plane_tv": weights.plane_tv,
            "real_autoencoding": real,
            "real_perceptual": real * weights.real_perceptual,
            "real_latent_tv": real * weights.real_latent_tv,
            "real_latent_moments": weights.real_latent_moments,
            "equivariance_picture": weights.equivariance_picture,
            "equivariance_latent": weights.equivariance_latent,
        }
        self.equivariance = bool(weights.equivariance_picture or weights.equivariance_latent)

    def __call__(self, model: JointModel, batch: Batch) -> Losses:
        """All terms."""
        weights, images, real = self.weights, _given(batch.images), batch.real
        model.update_background()
        latents = real_latents = None
        if weights["latent"] or weights["scene_autoencoding"] or self.equivariance:
            latents = model.encode(images, self.sample)  # z = E(x)
        if real is not None:
            real_latents = model.encode(real, self.sample)
        losses = self.scene_losses(model, batch, latents)
        if real is not None and real_latents is not None:
            losses.update(self.real_losses(model, real, real_latents))
        if self.equivariance and latents is not None:
            losses.update(self.equivariance_losses(model, (images, real), (latents, real_latents)))
        return losses

    def scene_losses(self, model: JointModel, batch: Batch, latents: Tensor | None) -> Losses:
        """L_3D and L_ae (synth) on views of scenes (equations 5 to 9).

        `latent` has gradients to phi, tau and T, `rgb` to psi, tau and T, `scene_autoencoding` to phi and psi,
        `plane_tv` to T.
        """
        weights, images = self.weights, _given(batch.images)
        losses: Losses = {}
        if weights["latent"] or weights["rgb"]:
            rendered = model.render(batch)  # y~ = R(T, p)
        if weights["latent"]:
            losses["latent"] = F.mse_loss(rendered, model.normalized(_given(latents)))  # equation 6
        if weights["rgb"]:
            losses["rgb"] = F.mse_loss(model.decode_render(rendered), images)  # equation 7
        if weights["scene_autoencoding"]:
            losses["scene_autoencoding"] = F.mse_loss(model.decode(_given(latents)), images)  # equation 9
        if weights["plane_tv"]:
            losses["plane_tv"] = plane_variation(batch.planes)  # equation 14
        return losses

    def real_losses(self, model: JointModel, real: Tensor, latents: Tensor) -> Losses:
        """L_ae (real), equation 10, of real images and their latents, to phi and psi."""
        decoded = model.decode(latents)
        losses = {"real_autoencoding": F.mse_loss(decoded, real)}
        if self.perceptual is not None:
            losses["real_perceptual"] = self.perceptual(decoded, real)
        if self.weights["real_latent_tv"]:
            losses["real_latent_tv"] = total_variation(model.normalized(latents).permute(0, 3, 1, 2), 2, 1)
        if self.weights["real_latent_moments"]:
            losses["real_latent_moments"] = moment_shift(model.real_normalizer.normalize(latents.permute(0, 2, 3, 1)))
        return losses

    def equivariance_losses(
        self, model: JointModel, pictures: tuple[Tensor, Tensor | None], encoded: tuple[Tensor, Tensor | None]
    ) -> Losses:
        """D(T E(x)) against T x to phi and psi, and E(T x) against T E(x) to phi, over views and real images x.

        Args:
            pictures: views and real images, (B, 3, H, H) and (n, 3, H, H).
            encoded: z = E(x) of both.
        """
        images, latents = (torch.cat([part for part in parts if part is not None]) for parts in (pictures, encoded))
        size, side = images.shape[-1], latents.shape[-1]
        transforms = self.transforms.draw(len(images), side).to(images.device)  # T
        moved_images, moved_latents = moved(images, transforms).clamp(0, 1), moved(latents.float(), transforms)
        losses: Losses = {}
        if self.weights["equivariance_picture"]:
            decoded = model.decode(moved_latents)
            losses["equivariance_picture"] = masked_error(decoded, moved_images, known(transforms, size, side)).mean()
        if self.weights["equivariance_latent"]:
            both = (model.encode(moved_images, self.sample), moved_latents)
            first, second = (model.normalized(values).permute(0, 3, 1, 2) for values in both)
            losses["equivariance_latent"] = masked_error(first, second, known(transforms, side, side)).mean()
        return losses


def _given(part: Tensor | None) -> Tensor:
    assert part is not None, "the stage's batches have no such part"
    return part


def moment_shift(latents: Tensor) -> Tensor:
    """How far mean and standard deviation of normalised latents (..., c) are from 1/2 and 1/4, in units of the latter:
    the mean over channels of (4 std - 1)^2 + (4 mean - 2)^2. Not in the paper."""
    std, mean = torch.std_mean(latents.flatten(0, -2).float(), dim=0)
    return ((4 * std - 1).square() + (4 * mean - 2).square()).mean()
