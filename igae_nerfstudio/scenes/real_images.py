"""Random crops of ordinary photos, which keep the autoencoder general while it learns the scenes' latents.

A batch is a function of the seed and the step alone, so a resumed run sees what an uninterrupted one would have seen.
Photos are decoded when they are needed, on threads and a step ahead; none is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes.scene_views import IMAGE_SUFFIXES, UNREADABLE, on_background, to_images

MIN_SIDE = 16
"""Smallest usable image side in pixels."""
WHITE = (1.0, 1.0, 1.0)
REDUCING_GAP = 3.0
"""Pillow shrinks by whole factors first while the rest stays above this; the difference cannot be seen."""

Transform = Callable[[Image.Image], np.ndarray]


class RealImages:
    """The photos of a folder; `open` makes one.

    Args:
        train: files that `batch` draws from.
        validation: files of `validation_batch`.
        size: side of the square crops in pixels.
        prefetch_steps: batches that are decoded ahead.
    """

    def __init__(self, train: list[Path], validation: list[Path], size: int, prefetch_steps: int = 1) -> None:
        self.train = train
        self.validation = validation
        self.size = size
        self.prefetch_steps = prefetch_steps
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="real-images")
        self._pending: dict[tuple[int, int, int], list[Future]] = {}

    @classmethod
    def open(cls, folder: Path, size: int, hold_out_every: Optional[int] = 20, prefetch_steps: int = 1) -> RealImages:
        """List the photos of a folder and its subfolders (jpg, png, webp), sorted by path.

        Args:
            folder: hidden files and folders in it are passed over.
            size: side of the square crops in pixels.
            hold_out_every: every so many photos, from the first, one is kept out of training for validation; None:
                all are for training.
            prefetch_steps: batches that are decoded ahead.

        Raises:
            InputError: there is no photo.
        """
        if not folder.is_dir():
            raise InputError(f"the folder of real images {folder} does not exist; pass one with photos")
        if hold_out_every is not None and hold_out_every < 2:
            raise InputError(f"every real image of {hold_out_every} is to be held out; use 2 or more, or None")
        paths = []
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            images = [n for n in files if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")]
            paths += [Path(parent, name) for name in images]
        paths.sort()
        if not paths:
            raise InputError(f"there is no real image (jpg, png or webp) in {folder} or below it; pass one with photos")
        validation = [] if hold_out_every is None else paths[::hold_out_every]
        train = paths if hold_out_every is None else [p for i, p in enumerate(paths) if i % hold_out_every]
        return cls(train, validation, size, prefetch_steps)

    def batch(self, step: int, count: int, seed: int) -> Tensor:
        """The crops of one step; those of the next steps are then decoded in the background.

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
            InputError: there are fewer photos than `count`, or one of them cannot be used.
        """
        if count > len(self.train):
            raise InputError(
                f"fewer real images ({len(self.train)}) than a batch ({count}); add photos to the folder or make the "
                "batch smaller"
            )
        wanted = [(seed, ahead, count) for ahead in range(step, step + 1 + self.prefetch_steps)]
        for key in [key for key in self._pending if key not in wanted]:
            for future in self._pending.pop(key):
                future.cancel()
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._start(*key)
        return to_images(np.stack([future.result() for future in self._pending.pop(wanted[0])]))

    def _start(self, seed: int, step: int, count: int) -> list[Future]:
        """Decode a batch in the background: positions step * count and on of an endless sequence of crops."""
        futures = []
        for position in range(step * count, (step + 1) * count):
            epoch, place = divmod(position, len(self.train))
            path = self.train[_order(seed, epoch, len(self.train))[place]]
            futures.append(self._pool.submit(random_crop, path, self.size, (1, seed, position)))
        return futures

    def validation_batch(self, limit: Optional[int] = None) -> Tensor:
        """The centre squares of the photos held out, shrunk with a Lanczos filter.

        Args:
            limit: take only so many, evenly spread over the list.

        Returns:
            (n, 3, size, size) in [0, 1], float32 on the CPU, with channels last in memory.

        Raises:
            InputError: a photo cannot be used.
        """
        paths = self.validation
        if limit is not None and limit < len(paths):
            paths = [paths[i * len(paths) // limit] for i in range(limit)]
        pixels = np.zeros((len(paths), self.size, self.size, 3), np.uint8)
        for i, crop in enumerate(self._pool.map(lambda path: centre_crop(path, self.size), paths)):
            pixels[i] = crop
        return to_images(pixels)

    def close(self) -> None:
        """Stop decoding ahead."""
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order (count,) of the photos in one epoch."""
    return np.random.default_rng((0, seed, epoch)).permutation(count)


def random_crop(path: Path, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """One training crop (size, size, 3), uint8, as `RealImages.batch` describes.

    Raises:
        InputError: the photo cannot be used.
    """
    scale, x, y, mirror = np.random.default_rng(seed).random(4)

    def crop(image: Image.Image) -> np.ndarray:
        full = np.array(image.size)
        shorter = int(full.min())
        side = size * (shorter / size) ** min(1.0, 2 * scale) if shorter > size else float(shorter)
        corner = np.array((x, y)) * (full - side)
        # A JPEG is decoded at a half, a quarter or an eighth of its size where the crop is shrunk by more than that.
        image.draft(None, tuple(np.ceil(full * size / side).astype(int).tolist()))
        image.load()
        decoded = image.size / full
        box = (*(decoded * corner), *np.minimum(decoded * (corner + side), image.size))
        if image.mode != "RGB" or "transparency" in image.info:
            image = Image.fromarray(on_background(image, WHITE))
        small = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
        pixels = np.asarray(small)
        return pixels[:, ::-1] if mirror < 0.5 else pixels

    return _decode(path, crop)


def centre_crop(path: Path, size: int) -> np.ndarray:
    """The centre square of a photo, (size, size, 3), uint8.

    Raises:
        InputError: the photo cannot be used.
    """

    def crop(image: Image.Image) -> np.ndarray:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = Image.fromarray(on_background(image.crop((left, top, left + side, top + side)), WHITE))
        return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))

    return _decode(path, crop)


def _decode(path: Path, transform: Transform) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if min(image.size) < MIN_SIDE:
                raise InputError(
                    f"real image {path} has {image.width} x {image.height} pixels; take it out of the folder, both "
                    f"sides must have {MIN_SIDE} or more"
                )
            return transform(image)
    except UNREADABLE as error:
        raise InputError(
            f"real image {path} cannot be read ({error}); restore it or take it out of the folder"
        ) from error
