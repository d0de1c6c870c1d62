"""The posed views of many scenes, in one file on disk: memory does not grow with the number of scenes.

A scene is a folder in one of two layouts:

    Blender         `NAME/transforms_{split}.json` and its pictures, as `igae-render-objects` writes it
    ShapeNet-SRN    (Sitzmann et al. 2019) pictures in `NAME/rgb/`; for each of them, in `NAME/pose/`, a text file with
                    its camera-to-world matrix (4 x 4, OpenCV axes: x right, y down, looking along z); and
                    `NAME/intrinsics.txt`, whose first line is focal length, cx, cy and 0 and whose last is height and
                    width. It has no splits of its own: the first 10 pictures by name are held out, as in 3Da-AE.

The first `SceneViews.open` decodes all pictures into `views.u8`, (V, H, W, 3) in 8 bits: view v of scene s is row
`flat_index(s, v)`. Later ones map that file into memory and read single views from it.

`views.json` beside it says what the file was made from (scenes, and the names, sizes and times of their pictures) and
which file it belongs to. Both are written beside their place and moved there, so a process that dies leaves nothing
that passes for whole. Cameras are read from the text files every time: correcting a pose decodes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from igae_nerfstudio.console import CONSOLE, log, warn
from igae_nerfstudio.errors import DiskFull, InputError
from igae_nerfstudio.files import bytes_text, write_atomically

FORMAT = 1
"""Raised when the same pictures give another `views.u8`."""

VIEWS_FILE, SIDECAR = "views.u8", "views.json"

IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged or no pictures."""

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
ORTHONORMAL = 1e-3
"""Largest difference from the identity of R^T R, for a camera-to-world rotation R."""

CHUNK = 256
"""Views decoded ahead of the one that is written."""
ABANDONED_SECONDS = 3600.0
"""An unfinished file that was not written to for so long is what a killed process left."""

SRN_TEST_VIEWS = 10
"""So many pictures of a ShapeNet-SRN scene, the first by name, are its splits `test` and `val`; the rest is `train`."""
SRN_PARTS = ("rgb", "pose", "intrinsics.txt")

Indices = Union[int, Sequence[int], np.ndarray, Tensor]


@dataclass
class ViewCameras:
    """Pinhole cameras of n views of one size, in Nerfstudio's conventions."""

    camera_to_world: Tensor
    """(n, 3, 4), OpenGL axes: x right, y up, looking along -z."""
    intrinsics: Tensor
    """(n, 4): fx, fy, cx, cy in pixels; the centre of the first pixel is (0.5, 0.5)."""
    height: int
    width: int

    def to(self, device: Union[torch.device, str]) -> ViewCameras:
        return ViewCameras(self.camera_to_world.to(device), self.intrinsics.to(device), self.height, self.width)

    def directions(self, points: Tensor) -> Tensor:
        """Unit directions (n, p, 3) of the rays through image points (p, 2), x and y in pixels."""
        fx, fy, cx, cy = self.intrinsics[:, :, None].unbind(1)
        x, y = (points[:, 0] - cx) / fx, (cy - points[:, 1]) / fy
        # Not a matrix product, which may run in reduced precision on a GPU.
        right, up, back = self.camera_to_world[:, None, :, :3].unbind(-1)
        return F.normalize(x[..., None] * right + y[..., None] * up - back, dim=-1)

    def latent_rays(self, downscale: int) -> tuple[Tensor, Tensor]:
        """Rays through the centres of latent pixels: those of the camera with its intrinsics divided by l, exactly.

        Args:
            downscale: l.

        Returns:
            Origins and unit directions, both (n, h, w, 3) with h = ceil(H / l) and w = ceil(W / l), in world units.
        """
        h, w = math.ceil(self.height / downscale), math.ceil(self.width / downscale)
        rows, columns = ((torch.arange(side, device=self.intrinsics.device) + 0.5) * downscale for side in (h, w))
        points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        directions = self.directions(points.view(-1, 2)).view(-1, h, w, 3)
        return self.camera_to_world[:, None, None, :, 3].expand_as(directions), directions


class SceneViews:
    """The views of S scenes, V in all, each H x W pixels; `open` makes one.

    Args:
        names: of the scenes.
        counts: views of each scene.
        files: of the views (V), relative to the folder of scenes; for messages.
        camera_to_world: (V, 3, 4).
        intrinsics: (V, 4), as in `ViewCameras`.
        pixels: (V, H, W, 3) uint8, usually mapped from a file.
        background: RGB in [0, 1] behind transparent pixels.
        fingerprint: changes with the pictures; for what is derived from them and kept.
    """

    def __init__(
        self,
        names: list[str],
        counts: Sequence[int],
        files: list[str],
        camera_to_world: Tensor,
        intrinsics: Tensor,
        pixels: np.ndarray,
        background: Sequence[float] = (1.0, 1.0, 1.0),
        fingerprint: str = "",
    ) -> None:
        self.names = names
        self.files = files
        self.pixels = pixels
        self.background = tuple(background)
        self.fingerprint = fingerprint
        self.height, self.width = pixels.shape[1:3]
        self._counts = torch.tensor(counts)
        self._first = self._counts.cumsum(0) - self._counts
        self._camera_to_world = camera_to_world
        self._intrinsics = intrinsics

    @classmethod
    def open(
        cls,
        scenes_dir: Path,
        size: int,
        cache_dir: Path,
        split: str = "train",
        background: Sequence[float] = (1.0, 1.0, 1.0),
        limit_scenes: Optional[int] = None,
        limit_views: Optional[int] = None,
        only: Optional[Sequence[str]] = None,
        quiet: bool = False,
    ) -> SceneViews:
        """Read the cameras, and decode the pictures unless that was done before.

        Args:
            scenes_dir: folder with a subfolder for each scene; hidden ones are passed over.
            size: side of the square pictures in pixels.
            cache_dir: folder that receives `views.u8` and `views.json`, 3 size^2 bytes a view.
            split: which `transforms_{split}.json`.
            background: RGB in [0, 1] behind transparent pixels.
            limit_scenes: take only so many scenes, the first by name.
            limit_views: take only so many views of each scene, spread over its list.
            only: take the scenes of these names, in this order, and look for no others.
            quiet: say nothing while the pictures are decoded.

        Raises:
            InputError: the scenes cannot be used, or the pictures cannot be written to `cache_dir`.
        """
        for what, limit in (("scenes", limit_scenes), ("views", limit_views)):
            if limit is not None and limit < 1:
                raise InputError(f"the limit of {what} is {limit}; it must be at least 1, or None for all")
        folders = find_scenes(scenes_dir, split) if only is None else [scenes_dir / name for name in only]
        folders = folders[:limit_scenes]
        scenes = [read_scene(folder, split, size, limit_views) for folder in folders]
        digest = hashlib.sha256()
        for scene in scenes:
            digest.update(json.dumps([scene.name, scene.stamps]).encode())
        identity = {
            "format": FORMAT,
            "split": split,
            "size": size,
            "background": [float(value) for value in background],
            "scenes": [[scene.name, len(scene.files)] for scene in scenes],
            "files_sha256": digest.hexdigest(),
        }
        files = [f"{scene.name}/{file}" for scene in scenes for file in scene.files]
        shape = (len(files), size, size, 3)
        if not _is_made_from(cache_dir, identity, math.prod(shape)):
            paths = [scenes_dir / file for file in files]
            _write_views(cache_dir, paths, size, background, identity, quiet)
        poses = torch.from_numpy(np.concatenate([scene.poses for scene in scenes])).float()
        intrinsics = torch.from_numpy(np.concatenate([scene.intrinsics for scene in scenes])).float()
        return cls(
            [scene.name for scene in scenes],
            [len(scene.files) for scene in scenes],
            files,
            poses,
            intrinsics,
            np.memmap(cache_dir / VIEWS_FILE, dtype=np.uint8, mode="r", shape=shape),
            background,
            hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        )

    @property
    def num_scenes(self) -> int:
        return len(self.names)

    @property
    def total_views(self) -> int:
        return len(self.files)

    def num_views(self, scene: int) -> int:
        return int(self._counts[scene])

    def flat_index(self, scene: Indices, view: Indices) -> Tensor:
        """Row of `views.u8` of each view: an int64 tensor on the CPU of the arguments' (broadcast) shape.

        Raises:
            IndexError: a scene has no such view.
        """
        scene, view = torch.as_tensor(scene).cpu(), torch.as_tensor(view).cpu()
        if bool(((scene < 0) | (scene >= self.num_scenes)).any()):
            raise IndexError(f"scene {scene.tolist()} of {self.num_scenes}")
        if bool(((view < 0) | (view >= self._counts[scene])).any()):
            raise IndexError(f"view {view.tolist()} of scene {scene.tolist()}")
        return self._first[scene] + view

    def images(self, scene_indices: Indices, view_indices: Indices) -> Tensor:
        """Views (n, 3, H, W) in [0, 1], float32 on the CPU, with channels last in memory."""
        pixels = np.asarray(self.pixels[self.flat_index(scene_indices, view_indices).numpy()])
        mapping = getattr(self.pixels, "_mmap", None)
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            # The system keeps what was read as long as it likes; this process does not count it as its own memory.
            mapping.madvise(mmap.MADV_DONTNEED)
        return to_images(pixels)

    def cameras(self, scene_indices: Indices, view_indices: Indices) -> ViewCameras:
        """The cameras of n views, on the CPU."""
        return self._cameras(self.flat_index(scene_indices, view_indices))

    def _cameras(self, rows: Union[Tensor, slice]) -> ViewCameras:
        return ViewCameras(self._camera_to_world[rows], self._intrinsics[rows], self.height, self.width)

    def check_cameras(self, half_extent: float) -> None:
        """Make sure that every view sees the volume [-half_extent, half_extent]^3, in scene units.

        Raises:
            InputError: a view looks past the volume.
        """
        for name, first, count in zip(self.names, self._first.tolist(), self._counts.tolist()):
            blind = ~sees_cube(self._cameras(slice(first, first + count)), half_extent)
            if blind.any():
                view, extent = int(blind.nonzero()[0]), f"{half_extent:g}"
                raise InputError(
                    f"{int(blind.sum())} of the {count} views of scene {name} look past the volume "
                    f"[-{extent}, {extent}]^3, the first is view {view} ({self.files[first + view]}); correct its "
                    "transform_matrix (camera to world, looking along -z), or move and scale the scene into the volume"
                )


def sees_cube(cameras: ViewCameras, half_extent: float) -> Tensor:
    """Which views (n,) see the cube [-half_extent, half_extent]^3.

    Those of which a ray meets it in front of the camera, of the image's corners, edges' middles, middle and an 8 x 8
    grid; and, for cubes that slip between these, those in whose image its middle or a corner lies.
    """
    size = torch.tensor([float(cameras.width), float(cameras.height)])
    grid, edges = (torch.arange(8) + 0.5) / 8, torch.tensor([0.0, 0.5, 1.0])
    points = torch.cat([torch.cartesian_prod(grid, grid), torch.cartesian_prod(edges, edges)]) * size
    directions = cameras.directions(points)
    directions = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    origins = cameras.camera_to_world[:, None, :, 3]
    one, other = (-half_extent - origins) / directions, (half_extent - origins) / directions
    enter, leave = torch.minimum(one, other).amax(-1), torch.maximum(one, other).amin(-1)
    met = (leave >= enter.clamp(min=0)).any(-1)

    ends = torch.tensor([-half_extent, half_extent])
    corners = torch.cat([torch.zeros(1, 3), torch.cartesian_prod(ends, ends, ends)])
    x, y, z = torch.einsum("nji,npj->npi", cameras.camera_to_world[..., :3], corners - origins).unbind(-1)
    fx, fy, cx, cy = cameras.intrinsics[:, :, None].unbind(1)
    u, v = fx * x / -z + cx, cy - fy * y / -z
    inside = (z < 0) & (u >= 0) & (u <= size[0]) & (v >= 0) & (v <= size[1])
    return met | inside.any(-1)


# --- Reading scenes ---


@dataclass
class Scene:
    """One scene's views before they are decoded."""

    name: str
    files: list[str]
    """Relative to the scene's folder."""
    stamps: list[tuple[str, int, int]]
    """Of each view: file, bytes, time of last modification in ns."""
    poses: np.ndarray
    """(n, 3, 4), camera to world."""
    intrinsics: np.ndarray
    """(n, 4): fx, fy, cx, cy in pixels."""
    depth_unit: Optional[float]
    """Scene units of a step of its depth pictures, where it has some."""


def find_scenes(scenes_dir: Path, split: str) -> list[Path]:
    """The folders of scenes, sorted by name; hidden ones, such as unfinished renders, are passed over.

    Raises:
        InputError: there is none, or a scene lacks the split.
    """
    if not scenes_dir.is_dir():
        raise InputError(f"the folder of scenes {scenes_dir} does not exist; igae-render-objects makes one from meshes")
    wanted = f"transforms_{split}.json"
    scenes, others = [], []
    for folder in sorted(path for path in scenes_dir.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (folder / wanted).is_file() or is_srn_scene(folder):
            scenes.append(folder)
        elif any(folder.glob("transforms_*.json")):
            raise InputError(f"scene {folder} has no {wanted}; render it again, or move it out of {scenes_dir}")
        else:
            others.append(folder.name)
    if not scenes:
        is_one = (scenes_dir / wanted).is_file() or is_srn_scene(scenes_dir)
        remedy = "pass the folder above it" if is_one else "igae-render-objects makes them"
        raise InputError(
            f"{scenes_dir} holds no scene, that is, no folder with a {wanted} or with {', '.join(SRN_PARTS)}; {remedy}"
        )
    if others:
        warn(f"No scenes, because without transforms files: {', '.join(others)} in {scenes_dir}")
    return scenes


def is_srn_scene(folder: Path) -> bool:
    """Whether a folder is in the layout of ShapeNet-SRN."""
    return all((folder / part).exists() for part in SRN_PARTS)


def read_scene(folder: Path, split: str, size: int, limit_views: Optional[int] = None) -> Scene:
    """The cameras and files of one scene.

    Args:
        folder: of the scene, in the Blender layout or in that of ShapeNet-SRN.
        split: which `transforms_{split}.json`, or which share of the pictures of a ShapeNet-SRN scene.
        size: side of the pictures in pixels, for which the intrinsics are.
        limit_views: take only so many views, one at random (but always the same) from each of so many equal
            stretches of the list: lists often go from the top to the bottom, or along a path.

    Raises:
        InputError: the scene's text files cannot be used, or a picture is missing.
    """
    return (_read_srn if is_srn_scene(folder) else _read_blender)(folder, split, size, limit_views)


def _spread(items: list[Any], limit: Optional[int]) -> list[Any]:
    """At most `limit` of some items, one at random (but always the same) from each of so many equal stretches."""
    if limit is None or limit >= len(items):
        return items
    edges = [i * len(items) // limit for i in range(limit + 1)]
    rng = np.random.default_rng(0)
    return [items[rng.integers(low, high)] for low, high in zip(edges, edges[1:])]


def _read_blender(folder: Path, split: str, size: int, limit_views: Optional[int]) -> Scene:
    path = folder / f"transforms_{split}.json"
    if not path.is_file():
        raise InputError(f"scene {folder} has no {path.name}; render it again with views of that split")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        frames = _spread(list(meta["frames"]), limit_views)
        poses = np.array([frame["transform_matrix"] for frame in frames], dtype=np.float64)
        intrinsics = np.array([_intrinsics({**meta, **frame}, size, path) for frame in frames], dtype=np.float64)
        names = [str(frame["file_path"]) for frame in frames]
        depth_unit = float(meta["depth_unit_scale_factor"]) if "depth_unit_scale_factor" in meta else None
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error}); it needs camera_angle_x or fl_x, and frames "
            "with file_path and a 4 x 4 transform_matrix"
        ) from error
    if not frames:
        raise InputError(f"scene {folder} has no views: {path.name} lists no frames; render it again or move it away")
    if poses.shape != (len(frames), 4, 4):
        raise InputError(f"the transform_matrix of the frames in {path} must be 4 x 4 each")
    _check_poses(poses, names, path)
    files = [_find_image(folder, name, meta.get("image_suffix")) for name in names]
    stamps = [(file, status.st_size, status.st_mtime_ns) for file, status in files]
    return Scene(folder.name, [file for file, _ in files], stamps, poses[:, :3], intrinsics, depth_unit)


def _read_srn(folder: Path, split: str, size: int, limit_views: Optional[int]) -> Scene:
    pictures = sorted(path for path in (folder / "rgb").iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    held_out, rest = pictures[:SRN_TEST_VIEWS], pictures[SRN_TEST_VIEWS:]
    pictures = _spread(rest if split == "train" else held_out, limit_views)
    if not pictures:
        raise InputError(
            f"scene {folder} has no views for the split '{split}': rgb has {len(held_out)} pictures, and the "
            f"first {SRN_TEST_VIEWS} are held out; render it again or move it away"
        )
    names = [f"rgb/{path.name}" for path in pictures]
    matrices = []
    for picture in pictures:
        path = folder / "pose" / f"{picture.stem}.txt"
        try:
            matrices.append(np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64).reshape(4, 4))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be used ({type(error).__name__}: {error}); it needs the 16 numbers of the "
                f"camera-to-world matrix of rgb/{picture.name}"
            ) from error
    poses = np.stack(matrices)
    poses[:, :3, 1:3] *= -1  # OpenCV's y and z axes point the other way
    _check_poses(poses, names, folder / "pose")
    intrinsics = np.array([_srn_intrinsics(folder / "intrinsics.txt", size)] * len(names))
    found = [_find_image(folder, name, None) for name in names]
    stamps = [(file, status.st_size, status.st_mtime_ns) for file, status in found]
    return Scene(folder.name, names, stamps, poses[:, :3], intrinsics, None)


def _srn_intrinsics(path: Path, size: int) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of pictures of `size`; the file may be for another size, which it names."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        focal, cx, cy = (float(value) for value in lines[0][:3])
        height, width = (int(float(value)) for value in lines[-1])
        if len(lines) < 2 or height != width:
            raise ValueError("its last line is no height and width of a square")
        scale = size / height
    except (OSError, ValueError, IndexError, ArithmeticError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error}); its first line holds focal length, cx and cy in "
            "pixels, its last one height and width, which are equal"
        ) from error
    if not (0.0 < focal < math.inf and math.isfinite(cx) and math.isfinite(cy)):
        raise InputError(f"{path} has impossible intrinsics (focal length {focal:g}, cx {cx:g}, cy {cy:g} pixels)")
    return focal * scale, focal * scale, cx * scale, cy * scale


def _intrinsics(camera: dict[str, Any], size: int, path: Path) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels, from fl_x where it is given and else from the field of view."""
    for key, expected in (("w", size), ("h", size)):
        if int(camera.get(key, expected)) != expected:
            raise InputError(f"{path} has {key} = {camera[key]}; {_size_remedy(size, int(camera[key]))}")
    bent = [key for key in DISTORTION if float(camera.get(key) or 0.0)]
    if bent:
        raise InputError(f"{path} has lens distortion ({', '.join(bent)}); undistort the pictures first")
    if "fl_x" in camera:
        fx = float(camera["fl_x"])
    else:
        fx = 0.5 * size / math.tan(0.5 * float(camera["camera_angle_x"]))
    fy = float(camera.get("fl_y", fx))
    cx, cy = float(camera.get("cx", size / 2)), float(camera.get("cy", size / 2))
    if not (0.0 < fx < math.inf and 0.0 < fy < math.inf and math.isfinite(cx) and math.isfinite(cy)):
        raise InputError(f"{path} has impossible intrinsics (fx, fy, cx, cy = {fx:g}, {fy:g}, {cx:g}, {cy:g} pixels)")
    return fx, fy, cx, cy


def _check_poses(poses: np.ndarray, names: list[str], path: Path) -> None:
    finite = np.isfinite(poses).all(axis=(1, 2))
    rotations = np.where(finite[:, None, None], poses, 0.0)[:, :3, :3]
    error = np.abs(rotations.transpose(0, 2, 1) @ rotations - np.eye(3)).max(axis=(1, 2))
    for bad, problem in (
        (~finite, "has numbers that are not finite"),
        ((error > ORTHONORMAL) | (np.linalg.det(rotations) < 0), "is no rotation and translation"),
    ):
        if bad.any():
            frame = int(bad.nonzero()[0][0])
            raise InputError(
                f"the transform_matrix of frame {frame} ({names[frame]}) in {path} {problem}; write camera-to-world "
                "matrices without scale and mirroring, or take the frame out"
            )


def _find_image(folder: Path, name: str, suffix: Optional[str]) -> tuple[str, os.stat_result]:
    """The file of a frame, relative to the scene, whose path may lack its suffix; and its status."""
    name = name.removeprefix("./")
    has_suffix = name.lower().endswith(IMAGE_SUFFIXES)
    candidates = [name] if has_suffix else [name + end for end in dict.fromkeys([suffix or ".png", ".png", ".webp"])]
    for candidate in candidates:
        try:
            return candidate, os.stat(folder / candidate)
        except OSError:
            continue
    raise InputError(f"image {folder / candidates[0]} does not exist; render its scene again or take its frame out")


# --- Decoding ---


def on_background(image: Image.Image, background: Sequence[float]) -> np.ndarray:
    """A loaded picture of any mode as (H, W, 3) uint8, transparent pixels composited on RGB in [0, 1]."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if not (image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info):
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float32)
    alpha = pixels[..., 3:] / 255
    colour = 255 * np.asarray(background, dtype=np.float32)
    return np.rint(pixels[..., :3] * alpha + colour * (1 - alpha)).astype(np.uint8)


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 pictures (n, H, W, 3) as float32 (n, 3, H, W) in [0, 1], with channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)


def read_view(path: Path, size: int, background: Sequence[float]) -> np.ndarray:
    """One view (size, size, 3), uint8.

    Raises:
        InputError: it is missing, damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            if image.size != (size, size):
                width, height = image.size
                remedy = _size_remedy(size, width if width == height else None)
                raise InputError(f"image {path} has {width} x {height} pixels; {remedy}")
            image.load()
            return on_background(image, background)
    except UNREADABLE as error:
        raise InputError(
            f"image {path} cannot be read ({error}); render its scene again or take its frame out"
        ) from error


def _size_remedy(size: int, other: Optional[int]) -> str:
    wanted = f"the views are to have {size} x {size}: render the scenes again with --size {size}"
    return wanted if other is None else f"{wanted}, or set the config's view_size to {other}"


def _is_made_from(cache_dir: Path, identity: dict[str, Any], size: int) -> bool:
    """Whether the file of views is whole and was made from what `identity` says."""
    try:
        status = (cache_dir / VIEWS_FILE).stat()
        sidecar = json.loads((cache_dir / SIDECAR).read_text(encoding="utf-8"))
        return status.st_size == size and sidecar == {**identity, "written_ns": status.st_mtime_ns}
    except (OSError, ValueError):
        return False


def _write_views(
    cache_dir: Path,
    paths: list[Path],
    size: int,
    background: Sequence[float],
    identity: dict[str, Any],
    quiet: bool,
) -> None:
    """Decode all views into the file of views, and write its sidecar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()

    def write(file: BinaryIO, advance: Callable[[], None]) -> None:
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(paths), CHUNK):
                for pixels in pool.map(lambda path: read_view(path, size, background), paths[first : first + CHUNK]):
                    file.write(pixels.tobytes())
                    advance()

    target = cache_dir / VIEWS_FILE
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        for abandoned in cache_dir.glob(f".{VIEWS_FILE}.*"):
            if time.time() - abandoned.stat().st_mtime > ABANDONED_SECONDS:
                abandoned.unlink(missing_ok=True)
        needed, free = len(paths) * size * size * 3, shutil.disk_usage(cache_dir).free
        if needed > free:
            raise DiskFull(
                f"the views take {bytes_text(needed)} and {cache_dir} has {bytes_text(free)} left; free some space and "
                "run the same command again, choose another folder, or take fewer scenes or views"
            )
        with Progress(*columns, console=CONSOLE, disable=quiet or not CONSOLE.is_terminal) as progress:
            task = progress.add_task("Decoding views", total=len(paths))
            write_atomically(target, lambda file: write(file, lambda: progress.advance(task)))
        sidecar = json.dumps({**identity, "written_ns": target.stat().st_mtime_ns}, indent=1)
        write_atomically(cache_dir / SIDECAR, lambda file: file.write(sidecar.encode()))
    except OSError as error:
        raise InputError(
            f"the views cannot be written to {cache_dir} ({error.strerror or error}); free some space there, or choose "
            "another folder"
        ) from error
    counts = f"{len(paths)} views of {len(identity['scenes'])} scenes"
    if not quiet:
        log(f"{counts} decoded into {target} in {time.monotonic() - start:.0f} s")
