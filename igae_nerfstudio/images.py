"""Reading pictures: one function for photos, views of objects and real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from igae_nerfstudio.errors import InputError


def read_image(
    path: Path, scale_factor: float = 1.0, at_least: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width channels"]:
    """Any file that Pillow opens, as 8-bit RGB, or RGBA where it is transparent.

    Grey, palette and CMYK files become RGB. Grey values of 16 bits are divided by 257; floating-point ones (TIFF) are
    taken to be in [0, 1].

    Args:
        path: the file.
        scale_factor: resizes the picture; its sides are rounded down, as in Nerfstudio.
        at_least: width and height that suffice; a JPEG is decoded at a half, a quarter or an eighth of its size where
            that has as many pixels, which takes less time.

    Raises:
        InputError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as file:
            if at_least is not None:
                file.draft(None, at_least)
            file.load()
            image: Image.Image = file
            if image.mode.startswith("I"):  # 16 bits, which older Pillows hand out as 32; Pillow would clip them at 255
                image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64).clip(0, 65535) / 257).astype("u1"))
            elif image.mode == "F":
                image = Image.fromarray(np.rint(255 * np.asarray(image).clip(0, 1)).astype("u1"))
            transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
            image = image.convert("RGBA" if transparent else "RGB")
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist; restore it or take its frame out of the dataset") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"image {path} cannot be read ({error}); restore it or take its frame out of the dataset"
        ) from error
    if scale_factor != 1.0:
        size = (int(image.width * scale_factor), int(image.height * scale_factor))
        image = image.resize(size, resample=Image.Resampling.BILINEAR)
    return np.asarray(image)


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
