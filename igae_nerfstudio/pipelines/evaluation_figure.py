"""One picture that shows how a latent NeRF is doing: photo, render and error, and the latent channels below."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.utils import colormaps
from torch import Tensor

Photo = Float[Tensor, "height width 3"]
Latent = Float[Tensor, "latent_height latent_width channels"]

ERROR_RANGE = 0.25
"""The error map's brightest colour, as a mean absolute difference of colours in [0, 1]."""


def evaluation_figure(
    photo: Photo, rgb: Photo, autoencoded: Photo | None, latent: Latent, encoded: Latent | None
) -> Float[Tensor, "rows columns 3"]:
    """Photo, decoded render, photo through the autoencoder, error of the render; rendered channels; encoded channels.

    Args:
        photo: in [0, 1].
        rgb: the decoded render, likewise.
        autoencoded: the photo through the untouched autoencoder; None without it.
        latent: rendered, normalised.
        encoded: the photo's, likewise; None without the autoencoder.

    Returns:
        Values in [0, 1], on the CPU. What is missing is white.
    """
    error = (rgb - photo).abs().mean(dim=-1, keepdim=True) / ERROR_RANGE
    heat = colormaps.apply_colormap(error.clamp(0, 1))
    pictures = [photo, rgb, torch.ones_like(photo) if autoencoded is None else autoencoded, heat]
    rows = [torch.cat([picture.float().cpu() for picture in pictures], dim=1)]
    for values in (latent, encoded):
        if values is not None:
            rows.append(_channels(values, rows[0].shape[1]))
    return torch.cat(rows).clamp(0, 1)


def _channels(latent: Latent, width: int) -> Float[Tensor, "rows width 3"]:
    """All channels next to each other in grey, enlarged to fit a width and filled up with white."""
    h, w, c = latent.shape
    row = latent.float().cpu().permute(0, 2, 1).reshape(h, c * w)[:, :width]
    row = row.repeat_interleave(max(1, width // (c * w)), 1).repeat_interleave(max(1, width // (c * w)), 0)
    return F.pad(row, (0, width - row.shape[1]), value=1.0)[..., None].expand(-1, -1, 3)
