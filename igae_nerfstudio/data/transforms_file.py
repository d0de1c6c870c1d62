"""`transforms*.json` of Nerfstudio, instant-ngp and Blender: read, checked, and corrected in a copy.

A dataset is never written to: its dataparser gets a temporary folder of links to it with the corrected file, and the
paths that it returns are put back.
"""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio

from igae_nerfstudio.data.poses import checked_poses
from igae_nerfstudio.data.scene_record import UnreadableSplit
from igae_nerfstudio.errors import InputError, one_line

INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
COLMAP_TO_NERFSTUDIO = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
"""What Nerfstudio takes for the `applied_transform` of a dataset that keeps COLMAP's model and does not state it."""


@dataclass(frozen=True)
class TransformsFile:
    """A file whose frames all have a photo and a pose."""

    path: Path
    meta: dict[str, Any]
    poses: Float[np.ndarray, "num_frames 4 4"]
    """Camera-to-world matrices, double."""

    @property
    def folder(self) -> Path:
        """Where paths in it start."""
        return self.path.parent

    def applied_transform(self, target: Type) -> Float[np.ndarray, "3 4"]:
        """To the coordinates of the file, from those before it, as the dataparser `target` sees it."""
        if target is not Nerfstudio:
            return np.eye(4)[:3]
        kept = (self.folder / "colmap/sparse/0").exists() and self.path.name == "transforms.json"
        return np.array(self.meta.get("applied_transform", COLMAP_TO_NERFSTUDIO if kept else np.eye(4)[:3]))

    def corrected(self, target: Type, centre: np.ndarray | None) -> tuple[dict[str, Any], list[Path]]:
        """The file's content with 4 x 4 matrices, moved by -`centre`, and with slashes in its paths.

        For blender-data, which puts .png behind every name, the frames' photos come with it.
        """
        meta = deepcopy(self.meta)
        for frame, pose in zip(meta["frames"], self.poses.copy()):
            if centre is not None:
                pose[:3, 3] -= centre
            if centre is not None or len(frame["transform_matrix"]) == 3:
                frame["transform_matrix"] = pose.tolist()
        if target is Blender:
            return meta, [_blender_photo(self.folder, frame["file_path"]) for frame in meta["frames"]]
        for entry in (meta, *meta["frames"]):
            _correct_paths(entry, partial(_slashed, folder=self.folder))
        return meta, []

    def needs_no_copy(self, meta: dict[str, Any], photos: list[Path]) -> bool:
        """Whether the dataparser finds in the dataset itself what has been corrected."""
        names = [frame["file_path"] for frame in self.meta["frames"]]
        return meta == self.meta and all(photo == _stock_photo(self.folder, name) for photo, name in zip(photos, names))

    def fill_copy(self, copy: Path, meta: dict[str, Any], photos: list[Path]) -> None:
        """Fill a folder with links to the dataset, or to `photos` if there are any, and with the corrected file."""
        if photos:
            for number, (photo, frame) in enumerate(zip(photos, meta["frames"])):
                (copy / f"{number:06d}.png").symlink_to(photo.absolute())
                frame["file_path"] = f"{number:06d}"
        else:
            for entry in self.folder.iterdir():
                if entry.name != self.path.name:
                    (copy / entry.name).symlink_to(entry.absolute())
            here = self.folder.absolute()
            for frame in (meta, *meta["frames"]):
                _correct_paths(frame, lambda path: str(here / path) if ".." in path else path)
        (copy / self.path.name).write_text(json.dumps(meta), encoding="utf-8")

    def put_back(self, outputs: DataparserOutputs, copy: Path, photos: list[Path]) -> DataparserOutputs:
        """Outputs with paths in the dataset instead of in its copy."""

        def original(path: Path) -> Path:
            if photos:
                return photos[int(path.stem)]
            return self.folder / path.relative_to(copy) if path.is_relative_to(copy) else path

        def all_original(value: Any) -> Any:
            if isinstance(value, list) and value and isinstance(value[0], Path):
                return [original(path) for path in value]
            return value

        return replace(
            outputs,
            image_filenames=all_original(outputs.image_filenames),
            mask_filenames=all_original(outputs.mask_filenames),
            metadata={name: all_original(value) for name, value in outputs.metadata.items()},
        )

    def with_pose(self, outputs: DataparserOutputs, meta: dict[str, Any]) -> DataparserOutputs:
        """The pose that instant-ngp-data loses in a split of one photo, from the corrected content."""
        (photo,), cameras = outputs.image_filenames, outputs.cameras
        for frame in meta["frames"]:
            if photo in (self.folder / frame["file_path"], self.folder / (frame["file_path"] + ".png")):
                pose = torch.tensor(frame["transform_matrix"], dtype=torch.float32)[None, :3]
                pose[..., 3] *= outputs.dataparser_scale
        names = ("fx", "fy", "cx", "cy", "width", "height", "camera_type")
        lens = {name: getattr(cameras, name).flatten()[:1, None] for name in names}
        assert cameras.distortion_params is not None
        distortion = cameras.distortion_params.reshape(-1, 6)[:1]
        return replace(outputs, cameras=Cameras(camera_to_worlds=pose, distortion_params=distortion, **lens))


def read_transforms(path: Path, target: Type) -> TransformsFile:
    """Read and check a file.

    Args:
        path: exists.
        target: class of the dataparser that will read it.

    Raises:
        UnreadableSplit: it has no frames.
        InputError: it is no JSON, lacks what the dataparser needs, or has a pose that cannot be used.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no readable JSON ({one_line(error)}); repair it or make it again") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UnreadableSplit(
            f"{path} has no frames, so no photo has a pose; write them into 'frames', or make it again"
        )
    for number, frame in enumerate(frames, 1):
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                name = frame.get("file_path", f"number {number}")
                raise InputError(f"{path}: the frame {name} has no '{key}'; write it, or remove the frame")
    if target is Blender:
        _check_blender(path, meta)
    elif target is Nerfstudio:
        _check_nerfstudio(path, meta)
    names = [frame["file_path"] for frame in frames]
    return TransformsFile(path, meta, checked_poses(names, [frame["transform_matrix"] for frame in frames], str(path)))


def _check_blender(path: Path, meta: dict[str, Any]) -> None:
    if "camera_angle_x" in meta:
        return
    value = ""
    if "fl_x" in meta and "w" in meta:
        value = f"; here it is {2 * math.atan(0.5 * float(meta['w']) / float(meta['fl_x'])):.8f}"
    raise InputError(f"{path} has no 'camera_angle_x'; write the horizontal field of view there, in radians{value}")


def _check_nerfstudio(path: Path, meta: dict[str, Any]) -> None:
    for key in INTRINSICS:
        frame = next((frame for frame in meta["frames"] if key not in frame and key not in meta), None)
        if frame is None:
            continue
        if {"camera_angle_x", "fl_x", "x_fov"} & set(meta) and ("h" in meta or "w" not in meta):
            raise InputError(
                f"{path} has no '{key}', as in the format of instant-ngp; add `instant-ngp-data` after the options"
            )
        raise InputError(f"{path} has no '{key}', nor has its frame {frame['file_path']}; write it to either")
    model = meta.get("camera_model", "OPENCV")
    if model not in CAMERA_MODEL_TO_TYPE:
        raise InputError(
            f"{path} has the unknown camera_model '{model}'; undistort the photos (COLMAP's image_undistorter), or "
            f"write the one that fits: {', '.join(CAMERA_MODEL_TO_TYPE)}"
        )


def _correct_paths(entry: dict[str, Any], correct: Callable[[str], str]) -> None:
    """Correct the paths in a frame, or in a file's lists of the photos of its splits."""
    for key in ("file_path", "mask_path", "depth_file_path"):
        if isinstance(entry.get(key), str):
            entry[key] = correct(entry[key])
    for key in ("train_filenames", "val_filenames", "test_filenames"):
        if key in entry:
            entry[key] = [correct(name) for name in entry[key]]


def _slashed(name: str, folder: Path) -> str:
    """A path of Windows with slashes; of one with a drive, as much of its end as the folder has."""
    if "\\" not in name or (folder / name).exists():
        return name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ends = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
    return next((end for end in ends if (folder / end).exists() or (folder / f"{end}.png").exists()), ends[0])


def _stock_photo(folder: Path, name: str) -> Path:
    """Where Nerfstudio's blender-data looks for a photo."""
    return folder / Path(name.replace("./", "") + ".png")


def _blender_photo(folder: Path, name: str) -> Path:
    """The file of a frame: with .png behind its name as Nerfstudio reads it, else with its own ending or any other."""
    stock = _stock_photo(folder, name)
    if stock.exists():
        return stock
    path = folder / _slashed(name, folder)
    if path.is_file():
        return path
    return next(iter(sorted(path.parent.glob(f"{path.name}.*"))), stock)
