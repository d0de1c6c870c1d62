"""Scenes on disk: cameras and picture files, in one of two layouts.

Blender         `NAME/transforms_{split}.json` and its pictures, as `igae render-objects` writes it
ShapeNet-SRN    (Sitzmann et al. 2019) pictures in `NAME/rgb/`; for each of them, in `NAME/pose/`, a text file with
                its camera-to-world matrix (4 x 4, OpenCV axes: x right, y down, looking along z); and
                `NAME/intrinsics.txt`, whose first line is focal length, cx, cy and 0 and whose last is height and
                width. It has no splits of its own: the first 10 pictures by name are held out, as in 3Da-AE.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from igae_nerfstudio.console import warn
from igae_nerfstudio.errors import InputError, one_line

IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
ORTHONORMAL = 1e-3
"""Largest difference from the identity of R^T R, for a camera-to-world rotation R."""

SRN_TEST_VIEWS = 10
"""So many pictures of a ShapeNet-SRN scene, the first by name, are its splits `test` and `val`; the rest is `train`."""
SRN_PARTS = ("rgb", "pose", "intrinsics.txt")

NEEDED = {
    True: "rgb/NAME.png needs pose/NAME.txt with the 16 numbers of its camera-to-world matrix, and intrinsics.txt "
    "focal length, cx and cy in its first line and height and width, which are equal, in its last",
    False: "the transforms file needs camera_angle_x or fl_x, and frames with file_path and a 4 x 4 transform_matrix",
}


@dataclass
class Scene:
    """One scene's views before they are decoded."""

    name: str
    files: list[str]
    """Pictures, relative to the scene's folder."""
    stamps: list[tuple[str, int, int]]
    """Of each view: file, bytes, time of last modification in ns."""
    poses: np.ndarray
    """(n, 3, 4), camera to world, OpenGL axes."""
    intrinsics: np.ndarray
    """(n, 4): fx, fy, cx, cy in pixels."""
    depth_unit: float | None
    """Scene units of a step of its depth pictures, where it has some."""


def find_scenes(scenes_dir: Path, split: str) -> list[Path]:
    """The folders of scenes with a split, sorted by name; hidden ones, such as unfinished renders, are passed over.

    Raises:
        InputError: there is none.
    """
    if not scenes_dir.is_dir():
        raise InputError(f"the folder of scenes {scenes_dir} does not exist; igae render-objects makes one from meshes")
    wanted = f"transforms_{split}.json"

    def is_scene(folder: Path) -> bool:
        return (folder / wanted).is_file() or is_srn_scene(folder)

    folders = sorted(path for path in scenes_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    scenes = [folder for folder in folders if is_scene(folder)]
    if not scenes:
        remedy = "pass the folder above it" if is_scene(scenes_dir) else "igae render-objects makes them from meshes"
        raise InputError(
            f"{scenes_dir} holds no scene, that is, no folder with {wanted} or with {', '.join(SRN_PARTS)}; {remedy}"
        )
    if len(scenes) < len(folders):
        others = ", ".join(folder.name for folder in folders if folder not in scenes)
        warn(f"Left out, because without {wanted}: {others} in {scenes_dir}")
    return scenes


def is_srn_scene(folder: Path) -> bool:
    """Whether a folder is in the layout of ShapeNet-SRN."""
    return all((folder / part).exists() for part in SRN_PARTS)


def read_scene(folder: Path, split: str, size: int, limit_views: int | None = None) -> Scene:
    """The cameras and files of one scene.

    Args:
        folder: of the scene.
        split: which `transforms_{split}.json`, or which share of the pictures of a ShapeNet-SRN scene.
        size: side of the square pictures in pixels, for which the intrinsics are.
        limit_views: take only so many views, one at random (but always the same) from each of so many equal
            stretches of the list: lists often go from the top to the bottom, or along a path.

    Raises:
        InputError: the scene's text files cannot be used, or a picture is missing.
    """
    srn = is_srn_scene(folder)
    try:
        views = (_read_srn if srn else _read_blender)(folder, split, size)
        views = _spread(views, limit_views)
        if not views:
            raise ValueError(f"the split '{split}' has no views")
        poses = np.array([view["pose"] for view in views], dtype=np.float64).reshape(len(views), 4, 4)
        intrinsics = np.array([view["intrinsics"] for view in views], dtype=np.float64)
        _check_cameras(poses, intrinsics, [view["file"] for view in views])
        depth_unit = views[0].get("depth_unit_scale_factor")
    except (OSError, ValueError, KeyError, TypeError, IndexError, ArithmeticError) as error:
        raise InputError(
            f"scene {folder} cannot be used ({type(error).__name__}: {one_line(error)}); {NEEDED[srn]}"
        ) from error
    stamps = [_find_image(folder, view["file"], view.get("image_suffix")) for view in views]
    return Scene(folder.name, [stamp[0] for stamp in stamps], stamps, poses[:, :3], intrinsics, depth_unit)


def _spread(items: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` of some items, one at random (but always the same) from each of so many equal stretches."""
    if limit is None or limit >= len(items):
        return items
    edges = [i * len(items) // limit for i in range(limit + 1)]
    rng = np.random.default_rng(0)
    return [items[rng.integers(low, high)] for low, high in zip(edges, edges[1:])]


def _read_blender(folder: Path, split: str, size: int) -> list[dict[str, Any]]:
    meta = json.loads((folder / f"transforms_{split}.json").read_text(encoding="utf-8"))
    views = []
    for frame in meta["frames"]:
        view = {**meta, **frame, "file": str(frame["file_path"]), "pose": frame["transform_matrix"]}
        bent = [key for key in DISTORTION if view.get(key)]
        if bent:
            raise ValueError(f"lens distortion {', '.join(bent)}: undistort the pictures first")
        width, height = float(view.get("w", size)), float(view.get("h", size))
        if "fl_x" in view:
            fx = float(view["fl_x"])
        else:
            fx = 0.5 * width / math.tan(0.5 * float(view["camera_angle_x"]))
        fy, cx, cy = float(view.get("fl_y", fx)), view.get("cx", width / 2), view.get("cy", height / 2)
        x, y = size / width, size / height  # the intrinsics may be for another size, which the file names
        views.append({**view, "intrinsics": (fx * x, fy * y, float(cx) * x, float(cy) * y)})
    return views


def _read_srn(folder: Path, split: str, size: int) -> list[dict[str, Any]]:
    lines = [
        line.split() for line in (folder / "intrinsics.txt").read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    focal, cx, cy = (float(value) for value in lines[0][:3])
    height, width = (float(value) for value in lines[-1])
    if height != width:
        raise ValueError(f"intrinsics.txt is for pictures of {width:g} x {height:g} pixels")
    intrinsics = tuple(value * size / height for value in (focal, focal, cx, cy))
    pictures = sorted(path for path in (folder / "rgb").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    views = []
    for picture in pictures[SRN_TEST_VIEWS:] if split == "train" else pictures[:SRN_TEST_VIEWS]:
        numbers = (folder / "pose" / f"{picture.stem}.txt").read_text(encoding="utf-8").split()
        pose = np.array(numbers, dtype=np.float64).reshape(4, 4)
        pose[:3, 1:3] *= -1  # OpenCV's y and z axes point the other way
        views.append({"file": f"rgb/{picture.name}", "pose": pose, "intrinsics": intrinsics})
    return views


def _check_cameras(poses: np.ndarray, intrinsics: np.ndarray, names: list[str]) -> None:
    rotations = poses[:, :3, :3]
    error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max(axis=(1, 2))
    rigid = (error < ORTHONORMAL) & (np.linalg.det(rotations) > 0) & np.isfinite(poses).all(axis=(1, 2))
    if not rigid.all():
        frame = int((~rigid).nonzero()[0][0])
        raise ValueError(
            f"the matrix of view {frame} ({names[frame]}) is no rotation and translation: write camera-to-world "
            "matrices without scale and mirroring"
        )
    if not (np.isfinite(intrinsics).all() and (intrinsics[:, :2] > 0).all()):
        raise ValueError(f"impossible intrinsics: fx, fy, cx, cy are {intrinsics.tolist()[0]} pixels")


def _find_image(folder: Path, name: str, suffix: str | None) -> tuple[str, int, int]:
    """The file of a view, whose path may lack its suffix; its size in bytes; and its time in ns."""
    name = name.removeprefix("./")
    has_suffix = name.lower().endswith(IMAGE_SUFFIXES)
    candidates = [name] if has_suffix else [name + end for end in dict.fromkeys([suffix or ".png", ".png", ".webp"])]
    for candidate in candidates:
        try:
            status = os.stat(folder / candidate)
        except OSError:
            continue
        return candidate, status.st_size, status.st_mtime_ns
    raise InputError(f"image {folder / candidates[0]} does not exist; render its scene again or take its frame out")
