"""Contact sheets, plots and films."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from igae_nerfstudio.errors import InputError, one_line

LINE = 14
"""Height of a line of text on a sheet, in pixels."""
ERROR_RANGE = 0.25
"""The error map's brightest colour, as a mean absolute difference of colours in [0, 1]."""

Photo = Float[Tensor, "height width 3"]
Latent = Float[Tensor, "latent_height latent_width channels"]


def to_uint8(image: Float[Tensor, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Colours in [0, 1] as bytes."""
    return torch.round(255 * image.detach().cpu().float().clamp(0, 1)).to(torch.uint8).numpy()


def sheet(columns: dict[str, list[np.ndarray]], captions: dict[str, str] | None = None) -> Image.Image:
    """A contact sheet: named columns of pictures, one row per view.

    Args:
        columns: title -> pictures (H, W, 3), uint8, all of one size.
        captions: title -> text below the column. Titles and captions wider than a column are broken into lines.
    """
    body = np.concatenate([np.concatenate(row, axis=1) for row in zip(*columns.values())])
    width = body.shape[1] // len(columns)
    titles = [broken(title, width - 4) for title in columns]
    below = [broken((captions or {}).get(title, ""), width - 4) for title in columns]
    head, foot = (LINE * max(map(len, texts)) for texts in (titles, below))
    image = Image.new("RGB", (body.shape[1], head + body.shape[0] + (foot + 2 if captions else 2)), "white")
    image.paste(Image.fromarray(body), (0, head))
    draw = ImageDraw.Draw(image)
    for lines, top in ((titles, 1), (below, head + body.shape[0] + 1)):
        for column, texts in enumerate(lines):
            for number, text in enumerate(texts):
                draw.text((column * width + 2, top + LINE * number), text, fill="black")
    return image


def broken(text: str, width: int) -> list[str]:
    """The lines of a text, none wider than so many pixels: broken between words, and a long word anywhere."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    lines = []
    for line in text.split("\n"):
        while measure(line) > width and len(line) > 1:
            end = next((n for n in range(len(line) - 1, 1, -1) if measure(line[:n]) <= width), 1)
            space = line.rfind(" ", 1, end + 1)
            lines.append(line[: end if space < 0 else space])
            line = line[len(lines[-1]) :].lstrip()
        lines.append(line)
    return lines


def new_figure(count: int) -> tuple[Any, list[Any]]:
    """A figure and `count` axes next to each other, drawn without a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def evaluation_figure(
    photo: Photo, rgb: Photo, autoencoded: Photo | None, latent: Latent, encoded: Latent | None
) -> Float[Tensor, "rows columns 3"]:
    """Photo, decoded render, photo through the autoencoder, error of the render; rendered channels; encoded channels.

    Pictures are in [0, 1], latents normalised; without the autoencoder its picture is white and its latents miss.

    Returns:
        Values in [0, 1], on the CPU.
    """
    from nerfstudio.utils import colormaps

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


def write_film(path: Path, frames: Sequence[Image.Image], frame_rate: int) -> None:
    """Write frames of one size as H.264, which needs even sides: odd ones lose a line. No partial file is left.

    Raises:
        InputError: there is no ffmpeg, or it fails.
    """
    import mediapy

    mediapy.set_ffmpeg(find_ffmpeg())
    width, height = (side // 2 * 2 for side in frames[0].size)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        mediapy.write_video(str(part), [np.asarray(frame)[:height, :width] for frame in frames], fps=frame_rate)
        part.replace(path)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be written: ffmpeg failed ({one_line(error)[-200:]})") from error
    finally:
        part.unlink(missing_ok=True)


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
