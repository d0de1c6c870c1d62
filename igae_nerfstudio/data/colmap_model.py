"""COLMAP's models in a dataset, and Nerfstudio's dataparser for them with checked poses."""

from __future__ import annotations

import os
import re
import shlex
import struct
from pathlib import Path
from typing import Any, Iterable

import numpy as np
from jaxtyping import Float
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from PIL import Image, UnidentifiedImageError

from igae_nerfstudio.data.poses import check_extent, checked_poses, far_centre
from igae_nerfstudio.images import HEIF, RAW


def colmap_models(data: Path) -> list[tuple[str, int]]:
    """COLMAP's models in a dataset: path relative to it and number of images, most images first."""
    places = ("colmap/sparse/*", "sparse/*", "colmap/sparse", "sparse", "colmap", ".")
    found = [path for place in places for path in in_order(data.glob(place) if place != "." else [data])]
    models = [(path.relative_to(data).as_posix(), count_images(path)) for path in found if has_model(path)]
    return sorted(models, key=lambda model: -model[1])


def has_model(folder: Path) -> bool:
    """Whether a folder holds a COLMAP model."""
    return (folder / "cameras.txt").is_file() or (folder / "cameras.bin").is_file()


def count_images(model: Path) -> int:
    """Images of a model, from the file that Nerfstudio reads."""
    try:
        if (model / "cameras.txt").is_file():
            with (model / "images.txt").open(encoding="utf-8", errors="replace") as lines:
                entries = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
                return sum(1 for _ in entries if next(lines, True))  # each is followed by a line of points
        with (model / "images.bin").open("rb") as file:
            return struct.unpack("<Q", file.read(8))[0]
    except (OSError, struct.error):
        return 0


def described(models: list[tuple[str, int]]) -> str:
    """Models in words, the one with most images first."""
    (path, images), others = models[0], len(models) - 1
    name = "the folder itself" if path == "." else path
    return f"a COLMAP model with {images} images in {name}" + f" (the largest of {others + 1})" * (others > 0)


def option(path: str) -> str:
    """The words that choose a model."""
    return f"`colmap --colmap-path {shlex.quote(path)}`"


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By number where names have them: 2 before 10."""
    return sorted(
        paths, key=lambda path: [int(word) if word.isdigit() else -1 for word in re.split(r"(\d+)", path.name)]
    )


class CheckedColmap(ColmapDataParser):
    """COLMAP's dataparser; poses are checked and centred before they lose digits, fisheye lenses keep their k4."""

    centre: Float[np.ndarray, "3"] | None = None
    applied: Float[np.ndarray, "3 4"] = np.eye(4)[:3]
    fourth: list[float]
    """k4 of each photo of the model."""
    indices: Any
    """The photos of the split among them."""
    meta: dict[str, Any] | None = None

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        if self.meta is not None:
            return self.meta
        meta = super()._get_all_images_and_cameras(recon_dir)
        frames = meta["frames"]
        remedy = "correct its line in images.txt, or delete that line and the next (a model of .bin files: first run "
        remedy += "`colmap model_converter --output_type TXT`)"
        names = [os.path.relpath(frame["file_path"], self.config.data / self.config.images_path) for frame in frames]
        poses = checked_poses(names, [frame["transform_matrix"] for frame in frames], str(recon_dir), remedy)
        check_extent(poses, str(recon_dir))
        if len(frames) == 1:
            self.config.auto_scale_poses = False  # it would divide by the extent of the cameras, zero
        self.centre = far_centre(poses, self.config.center_method != "none")
        self.applied = np.array(meta.get("applied_transform", self.applied))
        for frame, pose in zip(frames, poses):
            if self.centre is not None:
                pose[:3, 3] -= self.centre
            frame["transform_matrix"] = pose
            for key in {"file_path", "mask_path", "depth_path"} & set(frame):
                if not Path(frame[key]).exists():
                    frame[key] = frame[key].replace("\\", "/")
        # Nerfstudio's fisheye has this coefficient; its dataparser refuses it for the sake of another lens.
        fisheye = meta["camera_model"] == "OPENCV_FISHEYE"
        self.fourth = [float(frame.pop("k4", 0.0)) if fisheye else 0.0 for frame in frames]
        if self.config.downscale_factor is None and not readable_by_nerfstudio(Path(frames[0]["file_path"])):
            self.config.downscale_factor = 1
        self.meta = meta
        return meta

    def _get_image_indices(self, image_filenames: list[Path], split: str) -> Any:
        self.indices = super()._get_image_indices(image_filenames, split)
        return self.indices


def readable_by_nerfstudio(path: Path) -> bool:
    """Whether Nerfstudio can look up a photo's size; HEIC and raw files are read by this package only."""
    if path.suffix.lower() in HEIF + RAW:
        return False
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except OSError:
        return True  # missing, which the dataparser says
