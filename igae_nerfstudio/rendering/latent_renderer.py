"""Volume rendering of c-channel latents.

With weights w_i of the samples along a ray and the outputs f_i of a field's latent head, a pixel is

    y = sum_i w_i (1/2 + f_i) + (1 - sum_i w_i) b,

with b the latent background. The 1/2 is where a colour head's sigmoid starts, and it is the mean of normalised latents
(`autoencoder/normalization.py`). A linear head starts at 0; without the offset a young scene is so far from every
latent but the background's that it lowers its loss fastest by emptying space, from which vanilla NeRF never returns.

Nerfstudio's `RGBRenderer` cannot serve: it refuses other channel counts than three, knows backgrounds by colour name,
and clamps its result to [0, 1] in evaluation, while latents are signed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIDDLE = 0.5
"""What a field's output of 0 stands for."""


class LatentRenderer(nn.Module):
    """Composites latents of c channels along rays; takes the place of a Nerfstudio model's `renderer_rgb`."""

    background: Tensor
    """(c,): what the autoencoder makes of the scene's background colour; in the checkpoint."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.register_buffer("background", torch.zeros(latent_channels))

    def forward(
        self, rgb: Tensor, weights: Tensor, ray_indices: Tensor | None = None, num_rays: int | None = None
    ) -> Tensor:
        """Composite samples; differentiable in latents and weights.

        Args:
            rgb: outputs f of the latent head (*rays, samples, c), or (samples, c) packed; the name is Nerfstudio's.
            weights: (*rays, samples, 1), or (samples, 1) packed.
            ray_indices: (samples,) the ray of each packed sample.
            num_rays: number of rays of a packed call.

        Returns:
            Latents (*rays, c), not clamped.
        """
        values = weights * rgb
        if ray_indices is None or num_rays is None:
            composited, accumulation = values.sum(dim=-2), weights.sum(dim=-2)
        else:  # in half precision the product may be wider than the latents, so its type decides
            composited = values.new_zeros(num_rays, values.shape[-1]).index_add(0, ray_indices, values)
            accumulation = weights.new_zeros(num_rays, 1).index_add(0, ray_indices, weights)
        return composited + accumulation * MIDDLE + (1 - accumulation) * self.background

    def blend_background(self, image: Tensor) -> Tensor:
        """The image: encoded photos are composited before they are encoded."""
        return image

    def blend_background_for_loss_computation(
        self, pred_image: Tensor, pred_accumulation: Tensor, gt_image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rendered and encoded latents: both are on the same background already."""
        return pred_image, gt_image
