"""Random crops of ordinary photos, which keep the autoencoder general while it learns the scenes' latents.

A batch is a function of the seed and the step alone, so a resumed run sees what an uninterrupted one would have seen.
Photos are decoded when they are needed, on threads and a step ahead; none is kept.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.images import composite, read_image
from igae_nerfstudio.scenes.scene_folders import IMAGE_SUFFIXES
from igae_nerfstudio.scenes.scene_views import to_images

WHITE = np.ones(3)
REDUCING_GAP = 3.0
"""Pillow shrinks by whole factors first while the rest stays above this; the difference cannot be seen."""


class RealImages:
    """The photos of a folder; `open` makes one.

    Args:
        train: files that `batch` draws from.
        validation: files of `validation_batch`.
        size: side of the square crops in pixels.
    """

    def __init__(self, train: list[Path], validation: list[Path], size: int) -> None:
        self.train = train
        self.validation = validation
        self.size = size
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="real-images")
        self._ahead: dict[tuple[int, int, int], list[Future[np.ndarray]]] = {}

    @classmethod
    def open(cls, folder: Path, size: int, hold_out_every: int | None = 20) -> RealImages:
        """List the photos of a folder and its subfolders (jpg, png, webp), sorted by path.

        Args:
            folder: hidden files and folders in it are passed over.
            size: side of the square crops in pixels.
            hold_out_every: every so many photos, from the first, one is kept out of training for validation; None:
                all are for training.

        Raises:
            InputError: there is no photo for training.
        """
        paths: list[Path] = []
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = [n for n in files if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")]
            paths += [Path(parent, name) for name in images]
        paths.sort()
        validation = [] if hold_out_every is None else paths[::hold_out_every]
        train = paths if hold_out_every is None else [p for i, p in enumerate(paths) if i % hold_out_every]
        if not train:
            raise InputError(
                f"{folder} has {len(paths)} real images (jpg, png or webp), {len(validation)} of them held out for "
                "validation; pass a folder with more photos"
            )
        return cls(train, validation, size)

    def batch(self, step: int, count: int, seed: int) -> Tensor:
        """The crops of one step; those of the next step are then decoded in the background.

        The photos come in a random order, each once, then in another. A crop is a square at a random place, its side
        the photo's shorter side half of the time, as in validation, and else log-uniform between `size` and that
        (smaller photos: that side, scaled up), shrunk with a Lanczos filter and mirrored half of the time.

        Args:
            step: number of the step, from 0.
            count: n, the same at all steps.
            seed: not negative.

        Returns:
            (n, 3, size, size) in [0, 1], float32 on the CPU, with channels last in memory.

        Raises:
            InputError: a photo cannot be read.
        """
        now, after = (seed, step, count), (seed, step + 1, count)
        crops = self._ahead.get(now) or self._start(*now)
        self._ahead = {after: self._ahead.get(after) or self._start(*after)}
        return to_images(np.stack([crop.result() for crop in crops]))

    def _start(self, seed: int, step: int, count: int) -> list[Future[np.ndarray]]:
        """Decode a batch in the background: positions step * count and on of an endless sequence of crops."""
        futures = []
        for position in range(step * count, (step + 1) * count):
            epoch, place = divmod(position, len(self.train))
            path = self.train[_order(seed, epoch, len(self.train))[place]]
            futures.append(self._pool.submit(random_crop, path, self.size, (1, seed, position)))
        return futures

    def validation_batch(self, limit: int | None = None) -> Tensor:
        """The centre squares of the photos held out, or of so many, evenly spread, as `batch` returns its crops."""
        paths = self.validation
        if limit is not None and limit < len(paths):
            paths = [paths[i * len(paths) // limit] for i in range(limit)]
        crops = list(self._pool.map(lambda path: centre_crop(path, self.size), paths))
        return to_images(np.stack(crops) if crops else np.zeros((0, self.size, self.size, 3), np.uint8))


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order (count,) of the photos in one epoch."""
    return np.random.default_rng((0, seed, epoch)).permutation(count)


def random_crop(path: Path, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """One training crop (size, size, 3), uint8, as `RealImages.batch` describes.

    Raises:
        InputError: the photo cannot be read.
    """
    scale, x, y, mirror = np.random.default_rng(seed).random(4)
    full = np.array(_size(path))
    shorter = int(full.min())
    side = size * (shorter / size) ** min(1.0, 2 * scale) if shorter > size else float(shorter)
    corner = np.array((x, y)) * (full - side)
    width, height = np.ceil(full * size / side).astype(int).tolist()
    image = Image.fromarray(composite(read_image(path, at_least=(width, height)), WHITE))
    decoded = image.size / full
    box = (*(decoded * corner), *np.minimum(decoded * (corner + side), image.size))
    small = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
    pixels = np.asarray(small)
    return pixels[:, ::-1] if mirror < 0.5 else pixels


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a photo, from its first bytes."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError):
        height, width = read_image(path).shape[:2]  # which says what is wrong with the file
        return width, height


def centre_crop(path: Path, size: int) -> np.ndarray:
    """The centre square of a photo, (size, size, 3), uint8.

    Raises:
        InputError: the photo cannot be read.
    """
    image = Image.fromarray(composite(read_image(path), WHITE))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
