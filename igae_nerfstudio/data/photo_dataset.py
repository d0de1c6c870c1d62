"""Photos as the autoencoder must see them, and the cameras that saw them.

Nerfstudio's `InputDataset` hands out what is in the file. An encoder needs more: the right way up, the size of its
camera, transparency composited on the background that the scene model renders, masked pixels filled with the colours
beside them, and 8 bits. Lens distortion is removed where OpenCV can; fisheyes, panoramas and other lenses keep their
pictures and their rays (`lenses.py`). Everything that shows or compares photos (training, evaluation, `ns-render
dataset`, the viewer) reads them through this one class.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from igae_nerfstudio.console import warn
from igae_nerfstudio.data.lenses import covered_pixels, pinhole_cameras, undistortion_of
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.images import composite, fill_masked, read_image, read_mask, size_and_orientation

MIN_SIDE = 32
"""Smallest usable image side in pixels: below it a latent image has fewer than 4 x 4 pixels."""
COMMON_SIZE = 0.9
"""Undistorted photos are cropped to one size where that leaves this share of each side."""

ExifOrientation = Literal["fit", "obey", "ignore"]
Size = tuple[int, int]
"""Width and height in pixels."""


class PhotoDataset(InputDataset):
    """Upright, undistorted, composited photos, their masks and their cameras.

    Args:
        dataparser_outputs: what a Nerfstudio dataparser found.
        scale_factor: resizes photos and cameras.
        background_colour: (3,) in [0, 1], what shows through transparent pixels; a dataparser's own
            `alpha_color` wins.
        photos_missing: the files are known to be gone; grey pictures of their sizes stand in for them.
        exif_orientation: `fit`: a photo is turned as its EXIF tag says where only that makes it fit its camera;
            `obey`: wherever there is a tag; `ignore`: nowhere.
    """

    exclude_batch_keys_from_device = ["image", "mask"]

    def __init__(
        self,
        dataparser_outputs: DataparserOutputs,
        scale_factor: float = 1.0,
        background_colour: Tensor | None = None,
        photos_missing: bool = False,
        exif_orientation: ExifOrientation = "fit",
    ) -> None:
        # Shares nothing with the dataparser's own object, whose cameras stay as they are.
        super().__init__(replace(dataparser_outputs, mask_filenames=None))
        self.mask_color = None  # Nerfstudio would paint with it
        self.photos_missing = photos_missing
        colour = dataparser_outputs.alpha_color
        if colour is None:
            colour = torch.ones(3) if background_colour is None else background_colour
        self.background_colour: Tensor = torch.as_tensor(colour, dtype=torch.float32).cpu()
        self._mask_files = dataparser_outputs.mask_filenames
        self._colour_of_masked = self.metadata.get("mask_color")

        cameras = _writable(self.cameras)
        radius = (cameras.metadata or {}).pop("fisheye_crop_radius", None)
        downscaled = self.metadata.get("downscale_factor") or 1
        self._crop_radius = None if radius is None else scale_factor * float(radius) / downscaled
        self._stored: list[tuple[Size, int] | None] = [self._header(path) for path in self.image_filenames]
        self._orientations = self._fit_to_files(cameras, exif_orientation, downscaled)
        self._file_sizes = sizes_of(cameras)
        self._fit_to_scale(cameras, scale_factor)
        self._read_sizes = sizes_of(cameras)
        self._undistortions = [undistortion_of(cameras[i]) for i in range(len(self))]
        self.cameras = pinhole_cameras(cameras, self._undistortions)
        self._crop_to_common_sizes()
        self._sizes = sizes_of(self.cameras)
        # `ns-export tsdf` reads the cameras from here.
        self._dataparser_outputs = replace(self._dataparser_outputs, cameras=deepcopy(self.cameras))

    def photo_and_mask(
        self, image_idx: int
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"] | None]:
        """The photo as the encoder sees it, and which of its pixels are targets; None: all are.

        No targets are the pixels that a mask file masks, those outside of a fisheye's image circle
        (`fisheye_crop_radius`), and those to which the lens gives no direction. They show the colours beside them, or
        the dataparser's `mask_color`.

        Raises:
            InputError: a file is missing or damaged, does not fit its camera, or is too small.
        """
        width, height = self._sizes[image_idx]
        if self.photos_missing:
            return np.full((height, width, 3), 128, dtype=np.uint8), None
        path, size, orientation = self._checked(image_idx), self._read_sizes[image_idx], self._orientations[image_idx]
        photo = composite(read_image(path, size, orientation), self.background_colour.numpy())
        mask = covered_pixels(self.cameras[image_idx], self._crop_radius)
        undistortion = self._undistortions[image_idx]
        if undistortion is not None:
            photo = undistortion.apply(photo)
        photo = photo[:height, :width]
        if self._mask_files is not None:
            header = self._stored[image_idx]
            kept = read_mask(Path(self._mask_files[image_idx]), size, orientation, header and header[0])
            if undistortion is not None:
                kept = undistortion.apply(255 * kept.astype(np.uint8)) == 255
            kept = kept[:height, :width]
            mask = kept if mask is None else mask & kept
        if mask is None or mask.all():
            return photo, None
        if self._colour_of_masked is None:
            return fill_masked(photo, mask, self.background_colour.numpy()), mask
        colour = np.rint(255 * np.array(self._colour_of_masked)).astype(np.uint8)
        return np.where(mask[..., None], photo, colour), mask

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width 3"]:
        return self.photo_and_mask(image_idx)[0]

    def get_image_uint8(self, image_idx: int) -> UInt8[Tensor, "height width 3"]:
        return torch.from_numpy(self.get_numpy_image(image_idx))

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "height width 3"]:
        return self.get_image_uint8(image_idx).float() / 255

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """`image` (H, W, 3), `image_idx` and, where not all pixels are targets, `mask` (H, W, 1) bool."""
        photo, mask = self.photo_and_mask(image_idx)
        image = torch.from_numpy(photo)
        data = {"image_idx": image_idx, "image": image if image_type == "uint8" else image.float() / 255}
        return data if mask is None else {**data, "mask": torch.from_numpy(mask)[..., None]}

    # Which way up, and how large ---------------------------------------------------------------------------------

    def _header(self, path: Path) -> tuple[Size, int] | None:
        """Size as stored and EXIF orientation of a photo; None where it cannot be read, which reading it reports."""
        try:
            return None if self.photos_missing else size_and_orientation(path)
        except InputError:
            return None

    def _checked(self, index: int) -> Path:
        """A photo's file; raises InputError where it does not fit its camera."""
        path, header, wanted = self.image_filenames[index], self._stored[index], self._file_sizes[index]
        if header is not None and _upright(header[0], self._orientations[index]) != wanted:
            (width, height), tag = header
            turned = f" as stored (EXIF orientation {tag})" if tag != 1 else ""
            raise InputError(
                f"image {path} has {width} x {height} pixels{turned}, its camera {wanted[0]} x {wanted[1]}; give its "
                "frame the `w`, `h` and intrinsics of the photo, or resize the photo"
            )
        if min(self._sizes[index]) < MIN_SIDE:
            width, height = self._sizes[index]
            raise InputError(
                f"image {path} has {width} x {height} pixels; latent NeRFs need {MIN_SIDE} x {MIN_SIDE} or more"
            )
        return path

    def _fit_to_files(self, cameras: Cameras, exif: ExifOrientation, downscaled: int) -> list[int]:
        """The EXIF orientation by which each photo is turned; cameras get its size where only rounding differs."""
        orientations, unclear = [], []
        for index, (path, header, camera) in enumerate(zip(self.image_filenames, self._stored, sizes_of(cameras))):
            orientations.append(1)
            if header is None:
                continue
            stored, tag = header
            ways = (1, tag) if exif == "fit" else (tag,) if exif == "obey" else (1,)
            fits = [(way, off) for off in (0, 1) for way in ways if _differ(_upright(stored, way), camera) <= off]
            if not fits:
                continue  # `_checked` names it
            orientations[index] = fits[0][0]
            if exif == "fit" and tag != 1 and _upright(stored, tag) == stored:
                unclear.append(path)
            size = _upright(stored, orientations[index])
            set_size(cameras, index, size, _scales_to_file(path, size, camera, downscaled))
        if unclear:
            warn(
                f"{len(unclear)} photos have an EXIF orientation, and fit their cameras with it and without it "
                f"({unclear[0]} ...). They are read as stored; --pipeline.datamanager.exif-orientation obey turns them."
            )
        return orientations

    def _fit_to_scale(self, cameras: Cameras, scale_factor: float) -> None:
        """Cameras of the resized photos, whose sides are rounded down as in Nerfstudio."""
        if scale_factor == 1.0:
            return
        for index, (width, height) in enumerate(sizes_of(cameras)):
            small = (math.floor(width * scale_factor + 1e-6), math.floor(height * scale_factor + 1e-6))
            set_size(cameras, index, small, (small[0] / width, small[1] / height))

    def _crop_to_common_sizes(self) -> None:
        """Crop undistorted photos on the right and below to the smallest of those that were read in one size."""
        cropped, read = sizes_of(self.cameras), self._read_sizes
        for size in set(read):
            group = [index for index, other in enumerate(read) if other == size]
            width, height = (min(cropped[index][side] for index in group) for side in (0, 1))
            if all(min(width / cropped[i][0], height / cropped[i][1]) >= COMMON_SIZE for i in group):
                self.cameras.width[group], self.cameras.height[group] = width, height


def sizes_of(cameras: Cameras) -> list[Size]:
    """Width and height of each camera."""
    return [(int(width), int(height)) for width, height in torch.cat([cameras.width, cameras.height], dim=-1)]


def set_size(cameras: Cameras, index: int, size: Size, scales: tuple[float, float]) -> None:
    """Give one camera another size, and its intrinsics the scales, across and down."""
    for focal, centre, side, pixels, scale in zip("xy", "xy", ("width", "height"), size, scales):
        getattr(cameras, f"f{focal}")[index] *= scale
        getattr(cameras, f"c{centre}")[index] *= scale
        getattr(cameras, side)[index] = pixels


def _scales_to_file(path: Path, size: Size, camera: Size, downscaled: int) -> tuple[float, float]:
    """How much larger a photo is than its camera, which was divided by `downscaled` and rounded.

    165 pixels that were halved are 82 or 83, and neither is a half: the original photo, beside the folder of the
    smaller ones, says by how much, or else the side that was rounded the other way.
    """
    original = path.parent.with_name(path.parent.name.removesuffix(f"_{downscaled}")) / path.name
    if downscaled > 1 and original != path and original.exists():
        full, _ = size_and_orientation(original)
        if all(abs(whole / downscaled - side) <= 1 for whole, side in zip(full, size)):
            return size[0] * downscaled / full[0], size[1] * downscaled / full[1]
    return 2 * size[0] / (size[0] + camera[0]), 2 * size[1] / (size[1] + camera[1])


def _upright(size: Size, orientation: int) -> Size:
    """The size of a picture that is turned by an EXIF orientation."""
    return size[::-1] if orientation >= 5 else size


def _differ(size: Size, other: Size) -> int:
    """The larger difference of the sides."""
    return max(abs(size[0] - other[0]), abs(size[1] - other[1]))


def _writable(cameras: Cameras) -> Cameras:
    """A copy with batch shape (N,) and values of their own for each camera, in float32: on float64 `ns-render spiral`
    fails."""
    cameras = deepcopy(cameras if cameras.shape != () else cameras.reshape((1,)))
    for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type", "distortion_params"):
        value = getattr(cameras, name)
        if value is not None:
            setattr(cameras, name, value.clone(memory_format=torch.contiguous_format))
    for name in ("fx", "fy", "cx", "cy"):
        setattr(cameras, name, getattr(cameras, name).float())
    return cameras
