"""Reading pictures: one function for photos, views of objects and real images."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from igae_nerfstudio.errors import InputError

HEIF = (".heic", ".heif")
RAW = (".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2")
"""Endings of cameras' raw files, of which Pillow would read the thumbnail."""


def read_image(
    path: Path,
    size: tuple[int, int] | None = None,
    orientation: int = 1,
    at_least: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "height width channels"]:
    """Any file that Pillow opens, and HEIC, raw and deep TIFF files, as 8-bit RGB, or RGBA where it is transparent.

    Grey, palette and CMYK files become RGB. Values of 16 bits are divided by 257; floating-point ones (TIFF) are
    taken to be in [0, 1].

    Args:
        path: the file. HEIC needs the package pillow-heif, raw files (DNG and others) need rawpy.
        size: width and height that the picture is resized to.
        orientation: EXIF orientation, 1 to 8, by which it is turned; 1: as it is stored.
        at_least: width and height that suffice; a JPEG is decoded at a half, a quarter or an eighth of its size where
            that has as many pixels, which takes less time.

    Raises:
        InputError: the file is missing, truncated or not an image, or its package is not installed.
    """
    with _opened(path) as image:
        if at_least is not None:
            image.draft(None, at_least)
        image.load()
        image = turned(_eight_bits(image), orientation)
    if size is not None and size != image.size:
        image = image.resize(size, resample=Image.Resampling.BILINEAR)
    return np.asarray(image)


def size_and_orientation(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height of a picture as it is stored, and its EXIF orientation (1: upright), without reading it all.

    Raises:
        InputError: as `read_image`.
    """
    with _opened(path) as image:
        return image.size, int(image.getexif().get(ExifTags.Base.Orientation, 1))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture turned and mirrored as an EXIF orientation, 1 to 8, says."""
    if orientation == 1:
        return image
    image = image.copy()
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def read_mask(
    path: Path, size: tuple[int, int], orientation: int = 1, stored: tuple[int, int] | None = None
) -> Bool[np.ndarray, "height width"]:
    """A mask file, True where the picture may be used: bright, and opaque where the file has transparency.

    A pixel of the resized mask is True where it mixes no masked pixel. What is brighter than half of the file's
    brightest value counts as bright: 255 in most masks, 1 in others.

    Args:
        path: a file as `read_image` takes it.
        size: width and height of the result.
        orientation: EXIF orientation by which the picture was turned.
        stored: width and height of the picture's file; a mask of that size is turned with it.

    Raises:
        InputError: as `read_image`, or the mask has another shape.
    """
    with _opened(path) as file:
        file.load()
        if stored != file.size:
            orientation = 1
        picture = np.asarray(turned(_eight_bits(file), orientation)).astype(int)
    height, width = picture.shape[:2]
    if abs(width * size[1] - height * size[0]) > 0.05 * width * size[1]:
        raise InputError(
            f"mask {path} has {width} x {height} pixels, its photo {size[0]} x {size[1]}; give it the photo's shape"
        )
    bright = picture[..., :3].max(axis=-1) * (picture[..., 3] if picture.shape[-1] == 4 else 1)
    mask = Image.fromarray(np.where(2 * bright > bright.max(), 255, 0).astype("u1"))
    return np.asarray(mask.resize(size, resample=Image.Resampling.BILINEAR)) == 255


def composite(
    image: UInt8[np.ndarray, "height width channels"], background: Float[np.ndarray, "3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture before a background.

    Args:
        image: RGB, returned as it is, or RGBA, straight alpha.
        background: colour in [0, 1].
    """
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float32) / 255
    return np.rint(image[..., :3] * alpha + 255 * np.asarray(background) * (1 - alpha)).astype(np.uint8)


def fill_masked(
    image: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], colour: Float[np.ndarray, "3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture with the colour of the nearest pixel of the mask in each pixel outside of it.

    Args:
        image: RGB.
        mask: True where the picture stays as it is.
        colour: in [0, 1], taken where the mask is empty.
    """
    import cv2

    if mask.all():
        return image
    if not mask.any():
        return np.full_like(image, np.rint(255 * np.asarray(colour)))
    outside = (~mask).astype("u1")
    _, nearest = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = np.zeros((nearest.max() + 1, 3), "u1")
    colours[nearest[mask]] = image[mask]
    return colours[nearest]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, of which only the beginning may have been read; its errors end in an `InputError`."""
    try:
        if not path.exists():
            raise InputError(f"image {path} does not exist; restore it or take its frame out of the dataset")
        with _open(path) as image:
            yield image
    except InputError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, RuntimeError) as error:
        raise InputError(
            f"image {path} cannot be read ({error}); restore it or take its frame out of the dataset"
        ) from error


def _open(path: Path) -> Image.Image:
    suffix = path.suffix.lower()
    if suffix in HEIF:
        return _package("pillow_heif", "pillow-heif", path).open_heif(path).to_pillow()
    if suffix in RAW:
        with _package("rawpy", "rawpy", path).imread(str(path)) as raw:
            return Image.fromarray(raw.postprocess())
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        deep = _deep_tiff(path) if suffix in (".tif", ".tiff") else None
        if deep is None:
            raise
        return deep


def _package(module: str, package: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"image {path} can be read with the package {package} only; `pip install {package}`, or convert the "
            "photos to JPEG or PNG and name those in the dataset"
        ) from error


def _deep_tiff(path: Path) -> Image.Image | None:
    """A TIFF of several channels with more than 8 bits, which Pillow does not know; None where OpenCV cannot either."""
    import cv2

    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.shape[-1] not in (3, 4):
        return None
    values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB if values.shape[-1] == 3 else cv2.COLOR_BGRA2RGBA)
    if values.dtype.kind != "f":
        return Image.fromarray(np.rint(values * (255 / (256**values.itemsize - 1))).astype("u1"))
    return Image.fromarray(_unit_range(values))


def _unit_range(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.nan_to_num(values).clip(0, 1)).astype("u1")


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits, which older Pillows hand out as 32; Pillow would clip them at 255
        image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64).clip(0, 65535) / 257).astype("u1"))
    elif image.mode == "F":
        image = Image.fromarray(_unit_range(np.asarray(image)))
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")
