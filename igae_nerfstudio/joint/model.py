"""What a joint training teaches, scenes' codes aside, and the paper's maps between pictures, latents and planes.

Symbols (paper, sections 3 and 4): x are views of scenes (B, 3, H, W) in [0, 1]; z = E_phi(x) are latents (B, c, h, w),
and y = norm(z) (B, h, w, c) the same normalised (`autoencoder/normalization.py`), in which latents are rendered and
compared; T are the scenes' Tri-Planes, R_tau their renderer, y~ = R_tau(T, p) a render at camera p, and x~ = D_psi(z~)
its picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.normalization import LatentNormalizer
from igae_nerfstudio.autoencoder.preview import LatentPreview
from igae_nerfstudio.autoencoder.trainable import IdentityAutoencoder, TrainableAutoencoder
from igae_nerfstudio.joint.config import TrainingConfig
from igae_nerfstudio.joint.scene_parameters import SceneParameters
from igae_nerfstudio.rendering.triplanes import TriPlaneRenderer


@dataclass
class Batch:
    """Views of some scenes, with everything that a step needs of them: G groups of V views of one scene, B = G V."""

    scenes: list[int]
    """The U distinct scenes of the whole batch, over all processes."""
    codes: Tensor
    """(U, L), a leaf that carries gradient."""
    planes: Tensor
    """T (U, 3, F, K, K), made of the codes."""
    place: Tensor
    """(G,), for each group of this process its place in `scenes`."""
    views: Tensor
    """(B,), flat indices of this process's views."""
    origins: Tensor
    """(G, V h w, 3), of the rays through the centres of latent pixels, scene units."""
    directions: Tensor
    """(G, V h w, 3), of unit length."""
    sides: tuple[int, int]
    """(h, w); where only P random pixels of each view are in the batch, (P, 1)."""
    latents: Tensor | None = None
    """z (B, c, h, w) of the views, as they were encoded before the training."""
    images: Tensor | None = None
    """x (B, 3, H, W) in [0, 1]."""
    progress: float = 0.0
    """The share of the stage's steps that are done, in [0, 1)."""
    real: Tensor | None = None
    """Real images I (n, 3, H, W) in [0, 1]."""


class JointModel(nn.Module):
    """Autoencoder, shared parameters of the scenes, their renderer, and the fixed normalisation of latents.

    Args:
        config: settings.
        autoencoder: E and D; the one that does nothing makes scenes of colours.
        scenes: planes from codes.
        background: RGB in [0, 1] behind the scenes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        autoencoder: TrainableAutoencoder | IdentityAutoencoder,
        scenes: SceneParameters,
        background: Sequence[float],
    ) -> None:
        super().__init__()
        channels = autoencoder.latent_channels
        self.autoencoder: Any = autoencoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.renderer = TriPlaneRenderer(config.triplanes, channels)
        self.normalizer = LatentNormalizer(channels, config.latent_normalization)
        self.real_normalizer = LatentNormalizer(channels)
        self.preview = LatentPreview(channels)
        self.shared = scenes
        self.background = tuple(background)

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """z = E(x): (B, 3, H, W) in [0, 1] to (B, c, h, w), a draw of the posterior or its mean."""
        return self.autoencoder.encode(images, sample=sample)

    def normalized(self, latents: Tensor) -> Tensor:
        """y of z: (B, c, h, w) to (B, h, w, c)."""
        return self.normalizer.normalize(latents.permute(0, 2, 3, 1).float())

    def render(self, batch: Batch) -> Tensor:
        """y~ = R(T, p): (B, h, w, c)."""
        rendered = self.renderer(batch.planes[batch.place], batch.origins, batch.directions)
        return rendered.latents.reshape(len(batch.views), *batch.sides, -1)

    def decode(self, latents: Tensor) -> Tensor:
        """D(z): (B, c, h, w) to (B, 3, H, W) about [0, 1], not clamped."""
        return self.autoencoder.decode(latents).float()

    def decode_render(self, rendered: Tensor) -> Tensor:
        """x~ = D(z~) of y~: (B, h, w, c) to (B, 3, H, W) about [0, 1], not clamped."""
        return self.decode(self.normalizer.denormalize(rendered).permute(0, 3, 1, 2))

    @torch.no_grad()
    def fit_latents(self, latents: Tensor, real: Tensor | None = None) -> None:
        """Normalisation, preview and background from latents of views (n, h, w, c) and real images (n, 3, H, W)."""
        self.normalizer.fit(latents)
        self.preview.fit(self.normalizer.normalize(latents))
        if real is not None:
            encoded = torch.cat([self.encode(images) for images in real.to(latents.device).split(10)])
            self.real_normalizer.fit(encoded.permute(0, 2, 3, 1))
        self._set_background()

    def update_background(self) -> None:
        """The latent behind all scenes is what E now makes of their background's colour; a frozen E leaves it."""
        if any(weight.requires_grad for weight in self.autoencoder.parameters_of("encoder")):
            self._set_background()

    def _set_background(self) -> None:
        colour = torch.tensor(self.background, device=self.normalizer.mean.device)
        self.renderer.set_background(self.normalizer.normalize(self.autoencoder.encode_colour(colour)))
