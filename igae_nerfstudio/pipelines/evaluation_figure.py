"""One figure that shows how a latent NeRF is doing: pictures in the first row, latent channels in the two below."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from nerfstudio.utils import colormaps
from torch import Tensor

ERROR_RANGE = 0.25
"""The error map's brightest colour, as a mean absolute difference of colours in [0, 1]."""


def evaluation_figure(
    photo: Tensor, rgb: Tensor, autoencoded: Optional[Tensor], latent: Tensor, encoded: Optional[Tensor]
) -> Tensor:
    """Photo, decoded render, photo through the autoencoder, error of the render; rendered channels; encoded channels.

    Args:
        photo: (H, W, 3) in [0, 1].
        rgb: the decoded render, the same.
        autoencoded: the photo through the untouched autoencoder, or None where that is out of reach.
        latent: rendered, (h, w, c), normalised.
        encoded: of the photo, the same, or None.

    Returns:
        (rows, columns, 3) in [0, 1], on the CPU. What is missing is white.
    """
    error = (rgb - photo).abs().mean(dim=-1, keepdim=True) / ERROR_RANGE
    heat = colormaps.apply_colormap(error.clamp(0, 1))
    pictures = [photo, rgb, torch.ones_like(photo) if autoencoded is None else autoencoded, heat]
    first = torch.cat([picture.float().cpu() for picture in pictures], dim=1)
    width = first.shape[1]
    rows = [first] + [_channels(values, width) for values in (latent, encoded) if values is not None]
    return torch.cat(rows, dim=0).clamp(0, 1)


def _channels(latent: Tensor, width: int) -> Tensor:
    """All channels of (h, w, c) beside each other in grey, enlarged to fit a width and filled up with white."""
    h, w, c = latent.shape
    factor = max(1, width // (c * w))
    row = latent.float().cpu().permute(0, 2, 1).reshape(h, c * w)[:, :width]
    row = row.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return F.pad(row, (0, width - row.shape[1]), value=1.0)[..., None].expand(-1, -1, 3)
