"""One split of a dataset, encoded, and what a training step takes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

Batch = tuple[RayBundle, dict[str, Any]]
"""Rays and their targets."""


@dataclass
class LatentSplit:
    """N photos of H x W pixels and their latents of h x w, as stacked tensors."""

    photos: Tensor
    """(N, H, W, 3) uint8, on the CPU."""
    latents: Tensor
    """(N, h, w, c): z, the encoder's own numbers, as `compact` keeps them; batches are float32."""
    rays: RayBundle
    """(N, h, w) rays through the centres of the latent pixels."""
    downscale: int
    """l."""

    def __len__(self) -> int:
        return len(self.photos)

    def images(self, indices: Sequence[int], device: torch.device | str) -> Batch:
        """Rays (B, h, w) and {"latent": (B, h, w, c), "image": (B, H, W, 3) in [0, 1], "image_idx": (B,)}."""
        chosen = torch.as_tensor(indices)
        image = self.photos[chosen].to(device, non_blocking=True).float() / 255
        on_device = chosen.to(device)
        return self.rays[on_device], {"latent": self.latents[on_device].float(), "image": image, "image_idx": chosen}

    def patches(
        self, indices: Sequence[int], size: int, margin: int, generator: torch.Generator, device: torch.device | str
    ) -> Batch:
        """As `images`, of a random window of each image: `size` latent pixels a side and `margin` around them.

        With n = size + 2 margin, images are (B, n l, n l, 3). `valid_mask` (B, n l, n l, 1) is 1 where the decoder sees
        all latents that it needs, which is up to the edge at the image's own edges, and 0 elsewhere.
        """
        (height, width), factor = self.latents.shape[1:3], self.downscale
        windows, photos, masks = [], [], []
        for index in indices:
            rows, valid_rows = _window(height, size, margin, generator)
            columns, valid_columns = _window(width, size, margin, generator)
            windows.append((int(index) * height + rows[:, None]) * width + columns)
            top, bottom, left, right = (
                int(end) * factor for end in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            )
            photo = self.photos[index, top:bottom, left:right]
            mask = (valid_rows[:, None] & valid_columns).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
            below, right_of = (whole - there for whole, there in zip(mask.shape, photo.shape))  # the encoder's padding
            mask[photo.shape[0] :], mask[:, photo.shape[1] :] = False, False
            photos.append(F.pad(photo, (0, 0, 0, right_of, 0, below)))
            masks.append(mask[..., None])
        chosen = torch.stack(windows).to(device)
        return self.rays.flatten()[chosen], {
            "latent": self.latents.flatten(0, 2)[chosen].float(),
            "image": torch.stack(photos).to(device).float() / 255,
            "valid_mask": torch.stack(masks).to(device).float(),
            "image_idx": torch.as_tensor(indices),
        }

    def random_rays(self, count: int, generator: torch.Generator) -> Batch:
        """Rays (R,) and {"latent": (R, c)} of R latent pixels from anywhere."""
        pixels = self.latents.flatten(0, 2)
        chosen = torch.randint(len(pixels), (count,), generator=generator).to(pixels.device)
        return self.rays.flatten()[chosen], {"latent": pixels[chosen].float()}


def _window(side: int, size: int, margin: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latent pixels along one side of a random window of `size` and margins, and which of them are not margin.

    A window that would stick out is moved in, so that the edges are seen as often as the middle; at an edge of the
    image there is no margin.
    """
    length = min(size + 2 * margin, side)
    first = int(torch.randint(-margin, side - length + margin + 1, (), generator=generator).clamp(0, side - length))
    pixels = torch.arange(first, first + length)
    low = first + margin if first > 0 else 0
    high = first + length - margin if first + length < side else side
    return pixels, (pixels >= low) & (pixels < high)


def compact(latents: Tensor) -> Tensor:
    """Latents in half precision, if that changes them by no more than a thousandth of their deviation (60 dB)."""
    half = latents.half()
    error = (half.float() - latents).square().mean().sqrt()
    return half if bool(error <= 1e-3 * latents.std()) else latents


def stack_rays(bundles: Sequence[RayBundle]) -> RayBundle:
    """Stack ray bundles of one shape (h, w) to (N, h, w)."""
    first = bundles[0]
    fields = ("origins", "directions", "pixel_area", "camera_indices", "nears", "fars", "times")
    stacked: dict[str, Any] = {
        name: None if getattr(first, name) is None else torch.stack([getattr(bundle, name) for bundle in bundles])
        for name in fields
    }
    metadata = {
        name: torch.stack([bundle.metadata[name] for bundle in bundles])
        for name, value in first.metadata.items()
        if isinstance(value, Tensor)
    }
    return RayBundle(**stacked, metadata=metadata)
