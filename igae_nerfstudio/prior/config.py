"""Settings of `igae prior train`. The defaults are those of `configs/prior/paper.yaml`: a large network, for a GPU.

"Paper" is NeRF-VAE (Kosiorek et al. 2021, arXiv 2104.00587). Its tables could not be had, so no number here is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import Stage1Config, TrainingConfig, check_stage

Conditioning = Literal["planes", "attention", "vector"]


@dataclass
class NetworkConfig:
    """Encoder, z and decoder. z lies on a grid of places in the scene's cube: A along each side, M = A^3 in all."""

    conditioning: Conditioning = "planes"
    """How z makes a scene: Tri-Planes decoded by attention (exportable); a scene function whose sample points attend to
    z, as in the paper; or an MLP of points and all of z as one vector, the paper's baseline."""
    anchors: int = 8
    """A."""
    dimensions: int = 8
    """D, numbers of z at each place."""
    width: int = 256
    """Of both transformers."""
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    patch: int = 2
    """Side of the patches of latent pixels that are the encoder's tokens."""
    plane_tokens: int = 16
    """Tokens along a side of a plane; divides triplanes.resolution."""
    octaves: int = 3
    """Sines of rays and points, at most 4: with many octaves an encoder learns the training cameras by heart."""
    lift: bool = True
    """Each place of z also sees what the photos show where it is (not in the paper, whose inference ignores geometry,
    which its authors name as a limit)."""
    points: int = 1
    """Points along each side of a place that look latents up in the photos."""
    deterministic: bool = False
    """No noise and no KL: the upper bound of what the variational one reconstructs. It cannot be sampled."""


@dataclass
class ElboConfig(Stage1Config):
    """The negative ELBO, by encoder, decoder, mean scene and renderer."""

    epochs: int = 60
    views_per_batch: int = 192
    """Views of a step, over all processes; views_per_batch / views_per_scene scenes."""
    views_per_scene: int = 12
    """The largest number of context photos and the new views."""
    planes_lr: float = 1e-3
    """Adam's rate for the mean scene's planes."""
    renderer_lr: float = 2e-3
    """Adam's rate for the renderer; a low one leaves scenes grey for long."""
    network_lr: float = 3e-4
    """Adam's rate for encoder and decoder."""
    deviation_lr: float = 1e-2
    """Adam's rate for the logarithm of the likelihood's deviation."""
    plane_tv: float = 0.0
    """Weight of the planes' total variation, in nats."""


@dataclass
class PriorConfig(TrainingConfig):
    """A prior over scenes."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    context: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of context photos; a step draws one of them."""
    targets: int = 4
    """New views of each scene that a step's likelihood compares."""
    rays_per_scene: int = 1024
    """Random latent pixels of these views in a step; at most all of them."""
    turns: int = 4
    """A step turns each scene about the vertical axis to one of so many evenly spread directions; 1: it does not."""
    likelihood_views: int = 12
    """The likelihood of the pixels in a step is scaled to so many whole views. Against the KL, more views mean sharper
    scenes, fewer mean better samples."""
    kl_weight: float = 1.0
    """1: the ELBO."""
    kl_warm_up: float = 0.3
    """Share of the steps in which the KL's weight grows from 0."""
    free_nats: float = 0.02
    """The KL of each number of z costs nothing below this in the warm-up's steps (free bits)."""
    first_deviation: float = 0.15
    """The likelihood's deviation at the start, of normalised latents; it is learnt, one for each channel."""
    stage1: Stage1Config = field(default_factory=lambda: Stage1Config(epochs=2, planes_lr=1e-2, renderer_lr=5e-3))
    """The mean scene: one scene for all views, with its renderer."""
    stage2: ElboConfig = field(default_factory=ElboConfig)
    lr_decay: float = 0.96

    def check(self) -> None:
        """Raises InputError for values that do not fit together."""
        network, planes = self.network, self.triplanes
        check_stage("stage1", self.stage1)
        check_stage("stage2", self.stage2)
        if not self.context or min(self.context) < 1:
            raise InputError(f"context is {list(self.context)}; it needs one number of photos or more, each at least 1")
        needed = max(self.context) + self.targets
        if self.targets < 1 or self.stage2.views_per_scene != needed:
            raise InputError(
                f"stage2.views_per_scene is {self.stage2.views_per_scene}; set it to {needed}, the largest number in "
                f"context and targets ({self.targets}, at least 1)"
            )
        if planes.resolution % network.plane_tokens:
            raise InputError(
                f"network.plane_tokens {network.plane_tokens} does not divide triplanes.resolution "
                f"{planes.resolution}; take a divisor"
            )
        if network.width % (2 * network.heads) or min(network.width, network.anchors, network.dimensions) < 1:
            raise InputError(f"network.width is {network.width}; take a multiple of 2 network.heads ({network.heads})")
        if network.conditioning != "planes" and (self.stage1.plane_tv or self.stage2.plane_tv):
            raise InputError(f"conditioning {network.conditioning} has no planes; set plane_tv of both stages to 0")
