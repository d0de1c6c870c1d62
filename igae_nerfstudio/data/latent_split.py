"""One split of a dataset, encoded, and what a training step takes of it."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from igae_nerfstudio.data.lenses import finite_rays

Batch = tuple[Any, dict[str, Any]]
"""Rays, or cameras where the scene model renders pictures, and their targets."""
Photo = tuple[Tensor, Tensor | None]
"""(H, W, 3) uint8, and (H, W) bool, True where it is a target; None: everywhere."""

READERS = 4
"""Threads that read photos."""


@dataclass
class Photos:
    """The photos of a split: in memory as far as they fit, read again when they are asked for otherwise."""

    read: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
    """Reads photo and mask by number (`PhotoDataset.photo_and_mask`)."""
    count: int
    bytes_in_memory: int
    """Photos are kept up to this size in total."""
    _kept: dict[int, Photo] = field(default_factory=dict)
    _ahead: dict[int, Future[Photo]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=READERS)

    def __iter__(self) -> Iterator[Photo]:
        """All of them in order, read ahead."""
        for index in range(self.count):
            self.expect(range(index, min(index + 2 * READERS, self.count)))
            yield self[index]

    def __getitem__(self, index: int) -> Photo:
        if index in self._kept:
            return self._kept[index]
        waiting = self._ahead.pop(index, None)
        photo = self._read(index) if waiting is None else waiting.result()
        self.bytes_in_memory -= sum(part.numel() for part in photo if part is not None)
        if self.bytes_in_memory >= 0:
            self._kept[index] = photo
        return photo

    def _read(self, index: int) -> Photo:
        photo, mask = self.read(index)
        return torch.from_numpy(photo), None if mask is None else torch.from_numpy(mask)

    def expect(self, indices: Iterable[int]) -> None:
        """Begin to read photos that will be asked for."""
        for index in indices:
            if index not in self._kept and index not in self._ahead:
                self._ahead[index] = self._threads.submit(self._read, index)


@dataclass
class LatentSplit:
    """N photos, which may have several sizes, and their latents, as one row of P latent pixels."""

    photos: Photos
    latents: Tensor
    """(P, c): z, the encoder's own numbers, as `compact` keeps them; batches are float32."""
    cameras: Cameras
    """(N,): the latent cameras."""
    downscale: int
    """l."""
    colours: Tensor | None = None
    """(P, 3) in [0, 1], the photo averaged over the l x l pixels of a latent pixel."""
    weights: Tensor | None = None
    """(P,) in [0, 1], how much of what a latent pixel shows is a target; None: all of it everywhere."""
    pictures: bool = False
    """Batches of images and patches have latent cameras (B,) of these windows in place of rays."""

    def __len__(self) -> int:
        return len(self.photos)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(h, w) of each latent image."""
        return [(int(h), int(w)) for h, w in torch.cat([self.cameras.height, self.cameras.width], dim=-1)]

    @cached_property
    def _first(self) -> Tensor:
        """(N,) where each image begins in the row."""
        pixels = torch.tensor([height * width for height, width in self.sizes])
        return pixels.cumsum(0) - pixels

    @cached_property
    def _targets(self) -> Tensor | None:
        """Latent pixels that show a target."""
        return None if self.weights is None else self.weights.nonzero().flatten()

    @cached_property
    def groups(self) -> list[list[int]]:
        """The images of each size."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            by_size.setdefault(size, []).append(index)
        return list(by_size.values())

    def sample(self, most: int = 2**20) -> tuple[Tensor, Tensor | None]:
        """(P', c), (P', 3) float32: all latents and colours that show a target, or so many of them, evenly spread."""
        targets = torch.arange(len(self.latents)) if self._targets is None else self._targets
        chosen = targets[:: -(-len(targets) // most)].to(self.latents.device)
        return self.latents[chosen].float(), None if self.colours is None else self.colours[chosen].float()

    def images(self, indices: Sequence[int], device: torch.device | str) -> Batch:
        """B images of one size: rays (B, h, w) and their targets.

        These are `latent` (B, h, w, c), `colour` (B, h, w, 3) where there are colours, `image` (B, H, W, 3) in [0, 1]
        and `image_idx` (B,); where not all is a target also `valid_mask` (B, H, W, 1), 1 or 0, and `latent_weight`
        (B, h, w, 1).
        """
        height, width = self.sizes[indices[0]]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        photos, masks = zip(*(self.photos[index] for index in indices))
        batch = self._latents(torch.stack([self._first[index] + rows * width + columns for index in indices]))
        batch[1]["image"] = torch.stack(photos).to(device, non_blocking=True).float() / 255
        if any(mask is not None for mask in masks):
            whole = torch.ones(photos[0].shape[:2], dtype=torch.bool)
            valid = torch.stack([whole if mask is None else mask for mask in masks])
            batch[1]["valid_mask"] = valid[..., None].to(device).float()
        batch[1]["image_idx"] = torch.as_tensor(indices)
        return batch

    def patches(
        self, indices: Sequence[int], size: int, margin: int, generator: torch.Generator, device: torch.device | str
    ) -> Batch:
        """As `images`, of a random window of each image: `size` latent pixels a side and `margin` around them.

        With n = size + 2 margin, images are (B, n l, n l, 3). `valid_mask` (B, n l, n l, 1) is also 0 where the decoder
        does not see all latents that it needs; at the image's own edges it sees them up to the edge.
        """
        height, width = self.sizes[indices[0]]
        factor = self.downscale
        windows, photos, masks = [], [], []
        for index in indices:
            rows, valid_rows = _window(height, size, margin, generator)
            columns, valid_columns = _window(width, size, margin, generator)
            windows.append(self._first[index] + rows[:, None] * width + columns)
            top, bottom, left, right = (
                int(end) * factor for end in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            )
            whole, targets = self.photos[index]
            photo = whole[top:bottom, left:right]
            mask = (valid_rows[:, None] & valid_columns).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
            below, right_of = (side - there for side, there in zip(mask.shape, photo.shape))  # the encoder's padding
            mask[photo.shape[0] :], mask[:, photo.shape[1] :] = False, False
            if targets is not None:
                mask[: photo.shape[0], : photo.shape[1]] &= targets[top:bottom, left:right]
            photos.append(F.pad(photo, (0, 0, 0, right_of, 0, below)))
            masks.append(mask[..., None])
        rays, batch = self._latents(torch.stack(windows))
        batch["image"] = torch.stack(photos).to(device).float() / 255
        batch["valid_mask"] = torch.stack(masks).to(device).float()
        batch["image_idx"] = torch.as_tensor(indices)
        return rays, batch

    def random_rays(self, count: int, generator: torch.Generator) -> Batch:
        """Rays (R,) of latent pixels from anywhere; `latent` (R, c), `colour` and `latent_weight` as in `images`."""
        targets = self._targets
        chosen = torch.randint(len(self.latents if targets is None else targets), (count,), generator=generator)
        return self._latents(chosen if targets is None else targets[chosen.to(targets.device)])

    def latent_windows(self, indices: Sequence[int], pixels: int, generator: torch.Generator) -> Batch:
        """Random square windows (B, n, n) of images of one size, of so many latent pixels in all, without photos."""
        height, width = self.sizes[indices[0]]
        side = max(1, math.isqrt(pixels // len(indices)))
        windows = []
        for index in indices:
            rows, _ = _window(height, side, 0, generator)
            columns, _ = _window(width, side, 0, generator)
            windows.append(self._first[index] + rows[:, None] * width + columns)
        return self._latents(torch.stack(windows))

    def photo_pixels(self, indices: Sequence[int], count: int, generator: torch.Generator) -> tuple[RayBundle, Tensor]:
        """Rays (N,) through random pixels of these photos, as many of each, and the pixels' colours (N, 3) in [0, 1].

        The rays are those of the photo's own camera, its lens included. Only targets are chosen, so N is `count` unless
        a photo has none.
        """
        images, places, colours = [], [], []
        for index, share in zip(indices, torch.arange(count).tensor_split(len(indices))):
            photo, mask = self.photos[index]
            targets = None if mask is None else mask.flatten().nonzero().flatten()
            there = photo[..., 0].numel() if targets is None else len(targets)
            chosen = torch.randint(max(1, there), (len(share) if there else 0,), generator=generator)
            pixels = chosen if targets is None else targets[chosen]
            images.append(torch.full_like(pixels, index))
            places.append(torch.stack([pixels // photo.shape[1], pixels % photo.shape[1]], dim=-1))
            colours.append(photo.flatten(0, 1)[pixels])
        device = self.latents.device
        rays = self._rays(torch.cat(images).to(device), (torch.cat(places) + 0.5).to(device) / self.downscale)
        return rays, torch.cat(colours).to(device).float() / 255

    def _latents(self, pixels: Tensor) -> Batch:
        """Rays through the centres of latent pixels (...), their latents and weights."""
        pixels = pixels.to(self.latents.device)
        batch = {"latent": self.latents[pixels].float()}
        if self.colours is not None:
            batch["colour"] = self.colours[pixels].float()
        if self.weights is not None:
            batch["latent_weight"] = self.weights[pixels][..., None]
        first = self._first.to(pixels.device)
        image = torch.searchsorted(first, pixels, right=True) - 1
        within, width = pixels - first[image], self.cameras.width[image, 0]
        row_and_column = torch.stack([within // width, within % width], dim=-1)
        if self.pictures:
            return self._windows(image[:, 0, 0], row_and_column), batch
        return self._rays(image, row_and_column + 0.5), batch

    def _windows(self, images: Tensor, pixels: Tensor) -> Cameras:
        """Cameras (B,) that see a window of each image (B,), whose rows and columns are (B, h, w, 2)."""
        cameras = self.cameras[images]
        corner = pixels[:, 0, 0].to(cameras.cx)
        cameras.cx, cameras.cy = cameras.cx - corner[:, 1:], cameras.cy - corner[:, :1]
        cameras.height, cameras.width = (torch.full_like(cameras.height, side) for side in pixels.shape[1:3])
        return cameras

    def _rays(self, image: Tensor, coordinates: Tensor) -> RayBundle:
        """Rays of images (...) through rows and columns (..., 2), in latent pixels."""
        return finite_rays(self.cameras.generate_rays(image[..., None], coordinates), self.cameras)


def joined(first: RayBundle, second: RayBundle) -> RayBundle:
    """Rays (M,) of all of the first and then of the second, as cameras generate them."""
    first, second = first.flatten(), second.flatten()
    names = ("origins", "directions", "pixel_area", "camera_indices")
    fields = {name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names}
    norms = torch.cat([rays.metadata["directions_norm"] for rays in (first, second)])
    return RayBundle(**fields, metadata={"directions_norm": norms})


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


def batches_of_one_size(
    groups: list[list[int]], size: int, step: int, order: Callable[[int, int], list[int]]
) -> list[int]:
    """The images of a step, all of one size, a function of the step alone.

    Each group's images follow each other in an endless row of permutations, `size` at a time. An epoch has as many
    batches of a group as hold its images, in mixed order.

    Args:
        groups: the images of each size.
        size: B.
        step: of the training.
        order: a permutation of so many things (first argument), by number.
    """
    owners = [number for number, group in enumerate(groups) for _ in range(-(-len(group) // size))]
    epoch, place = divmod(step, len(owners))
    mixed = order(len(owners), epoch) if len(groups) > 1 else range(len(owners))
    owner = owners[mixed[place]]
    batches = owners.count(owner)
    batch = epoch * batches + sum(owners[mixed[earlier]] == owner for earlier in range(place))
    group = groups[owner]
    positions = range(batch * size, (batch + 1) * size)
    return [group[order(len(group), position // len(group))[position % len(group)]] for position in positions]
