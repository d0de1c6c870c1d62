"""What the prior's training minimises: the negative ELBO of a scene's views given z, in nats a scene.

    -log p(y | z) + KL(q(z | context) || N(0, I))

as sums over all pixels, channels and numbers of z (a mean over pixels would be a KL weight near 0 in disguise). The
likelihood is a Gaussian of each latent channel; the paper's is of pixels, its deviation unconfirmed. Warm-up of the
KL and free bits are not in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from igae_nerfstudio.joint.model import Batch, JointModel
from igae_nerfstudio.joint.objectives import Losses
from igae_nerfstudio.prior.config import PriorConfig
from igae_nerfstudio.prior.model import scenes_of
from igae_nerfstudio.rendering.total_variation import plane_variation

ACTIVE = 0.1
"""A number of z is active where its mean over the batch of the KL is above this, in nats."""


def gaussian_nll(error: Tensor, log_deviation: Tensor) -> Tensor:
    """-log N(error; 0, deviation^2) of each number (..., c), in nats; log_deviation is (c,)."""
    return error.square() / (2 * (2 * log_deviation).exp()) + log_deviation + math.log(2 * math.pi) / 2


def kl_cost(kl: Tensor, free: float) -> Tensor:
    """KL of a scene in nats, of that of each number (S, M, D); a number's mean over scenes counts at least `free`."""
    return kl.mean(dim=0).clamp(min=free).sum()


def turned(vectors: Tensor, angles: Tensor) -> Tensor:
    """Vectors (S, ..., 3) of each scene turned about the z axis by its angle (S,), radians."""
    sine, cosine = (value.view(-1, *[1] * (vectors.dim() - 2)) for value in (angles.sin(), angles.cos()))
    x, y, z = vectors.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)


class NegativeElbo:
    """`Objective` of stage 2 (`joint/objectives.py`): a step's scenes, each with context photos and new views.

    Of a group's views the first k are the context, k drawn from `context`, and the last ones the new views. Random
    numbers are torch's, which the trainer seeds by step.
    """

    def __init__(self, config: PriorConfig) -> None:
        self.config = config
        self.weights = {"likelihood": 1.0, "kl": 1.0, "plane_tv": config.stage2.plane_tv}
        self.weights |= {"latent": 0.0, "kl_nats": 0.0, "active": 0.0, "deviation": 0.0}  # shown, and not minimised

    def __call__(self, model: JointModel, batch: Batch) -> Losses:
        """`likelihood` (gradient to all but E and D), `kl` (to the encoder) and `plane_tv`; and what is only shown: the
        mean squared error `latent`, the KL in nats `kl_nats`, `active` numbers of z, the likelihood's `deviation`."""
        config, prior = self.config, scenes_of(model)
        assert batch.latents is not None
        scenes, (h, w) = len(batch.place), batch.sides
        views = len(batch.views) // scenes
        latents = model.normalized(batch.latents).view(scenes, views, h, w, -1)
        angles = torch.randint(config.turns, (scenes,)).to(latents.device) * (2 * math.pi / config.turns)
        origins, directions = (
            turned(rays.view(scenes, views, h, w, 3), angles) for rays in (batch.origins, batch.directions)
        )
        photos = config.context[int(torch.randint(len(config.context), ()))]
        posterior = prior.encoder(latents[:, :photos], origins[:, :photos], directions[:, :photos])
        z = posterior.mean if config.network.deterministic else posterior.sample()
        scene = prior.scene(z)
        pixels = torch.randperm(config.targets * h * w)[: config.rays_per_scene]
        target, o, d = (
            values[:, views - config.targets :].flatten(1, 3)[:, pixels] for values in (latents, origins, directions)
        )
        error = model.renderer(scene, o, d).latents - target  # (S, R, c)
        scale = config.likelihood_views * h * w / len(pixels)
        losses = {"likelihood": scale * gaussian_nll(error, prior.log_deviation).sum() / scenes}
        kl = posterior.kl()
        if not config.network.deterministic:
            warm = batch.progress / config.kl_warm_up if config.kl_warm_up else 1.0
            free = config.free_nats if warm < 1 else 0.0
            losses["kl"] = config.kl_weight * min(warm, 1.0) * kl_cost(kl, free)
        if self.weights["plane_tv"]:
            losses["plane_tv"] = plane_variation(scene)
        return losses | self.shown(error.detach(), kl.detach(), prior.log_deviation.detach())

    def shown(self, error: Tensor, kl: Tensor, log_deviation: Tensor) -> Losses:
        """Terms without weight."""
        return {
            "latent": error.square().mean(),
            "kl_nats": kl.sum(dim=(1, 2)).mean(),
            "active": (kl.mean(dim=0) > ACTIVE).sum().float(),
            "deviation": log_deviation.exp().mean(),
        }
