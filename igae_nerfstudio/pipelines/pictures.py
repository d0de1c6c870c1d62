"""Pictures of any Nerfstudio run, latent or RGB, sheets of them, and films."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from igae_nerfstudio.errors import InputError

LINE = 14
"""Height of a line of text on a sheet, in pixels."""


def rendered_rgb(outputs: Dict[str, Tensor]) -> Tensor:
    """The picture among a model's outputs; Nerfstudio's vanilla NeRF calls it `rgb_fine`."""
    return outputs["rgb"] if "rgb" in outputs else outputs["rgb_fine"]


def photo_of(dataset, index: int) -> Tensor:
    """A dataset's photo (H, W, 3) in [0, 1], before white where it is transparent."""
    image = dataset.get_image_float32(index)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return image


def to_uint8(image: Tensor) -> np.ndarray:
    """(H, W, 3) in [0, 1] as uint8."""
    return torch.round(255 * image.detach().cpu().float().clamp(0, 1)).to(torch.uint8).numpy()


def sheet(columns: Dict[str, List[np.ndarray]], captions: Optional[Dict[str, str]] = None) -> Image.Image:
    """Named columns of pictures (H, W, 3), one row per view, all of one size; captions stand below their columns."""
    body = np.concatenate([np.concatenate(row, axis=1) for row in zip(*columns.values())])
    lines = max((text.count("\n") + 1 for text in captions.values()), default=0) if captions else 0
    image = Image.new("RGB", (body.shape[1], body.shape[0] + LINE * (1 + lines) + 2), "white")
    image.paste(Image.fromarray(body), (0, LINE))
    draw = ImageDraw.Draw(image)
    width = body.shape[1] // len(columns)
    for i, title in enumerate(columns):
        draw.text((i * width + 2, 1), title[: width // 6], fill="black")
        for number, text in enumerate((captions or {}).get(title, "").split("\n")):
            draw.text((i * width + 2, body.shape[0] + LINE * (1 + number) + 1), text[: width // 6], fill="black")
    return image


def write_film(path: Path, frames: List[Image.Image], frame_rate: int) -> None:
    """Write frames of one size as H.264, which wants even sides: odd ones lose a line.

    Raises:
        InputError: there is no ffmpeg.
    """
    import mediapy

    mediapy.set_ffmpeg(find_ffmpeg())
    width, height = (side // 2 * 2 for side in frames[0].size)
    mediapy.write_video(str(path), [np.asarray(frame)[:height, :width] for frame in frames], fps=frame_rate)


def find_ffmpeg() -> str:
    """The ffmpeg program of the system, or else that of the package imageio-ffmpeg.

    Raises:
        InputError: there is neither.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        try:
            import imageio_ffmpeg

            program = imageio_ffmpeg.get_ffmpeg_exe()
        except Exception as error:
            raise InputError(
                "a film needs ffmpeg, which is not installed; install it, or `pip install imageio-ffmpeg`"
            ) from error
    return program
