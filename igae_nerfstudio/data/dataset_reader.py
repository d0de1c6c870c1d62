"""Any of Nerfstudio's dataparsers, with its dataset checked before and its poses after.

dataset --> what is wrong ends in one line --> corrected copy of its transforms, in memory --> dataparser --> outputs

A dataset is never written to. Where its `transforms.json` needs correction, the dataparser gets a temporary folder of
links to the dataset with the corrected file, and the paths that it returns are put back.
"""

from __future__ import annotations

import json
import math
import os
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Callable, Literal, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.dataparsers.base_dataparser import (
    DataParser,
    DataParserConfig,
    DataparserOutputs,
    transform_poses_to_original_space,
)
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser, ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.data.dataset_kinds import (
    INTRINSICS,
    colmap_models,
    count_images,
    described,
    has_model,
    option,
    what_it_is,
)
from igae_nerfstudio.data.poses import check_extent, checked_poses, far_centre
from igae_nerfstudio.data.scene_record import SceneRecordConfig, UnreadableSplit
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.images import HEIF, RAW

COLMAP_TO_NERFSTUDIO = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]]
"""What Nerfstudio takes for the `applied_transform` of a dataset that keeps COLMAP's model and does not state it."""


@dataclass
class DatasetReaderConfig(DataParserConfig):
    """Lives in memory only: a run's config.yml keeps the dataparser that the user chose."""

    _target: Type = field(default_factory=lambda: DatasetReader)
    inner: DataParserConfig = field(default_factory=DataParserConfig)
    """The dataparser that reads the dataset `data`."""


class DatasetReader(DataParser):
    """Checked outputs of the wrapped dataparser, for every split.

    Where the dataset has no photos for 'val', those of 'test' take their place, and the other way round; where it has
    neither, the training photos do. One line says so.

    Raises:
        InputError: the dataset cannot be read, or a camera pose cannot be used; from `get_dataparser_outputs`.
    """

    config: DatasetReaderConfig
    downscale_factor: int | None = None
    """Set by Nerfstudio for commands that need no photos."""

    def __init__(self, config: DatasetReaderConfig) -> None:
        super().__init__(config)
        self.inner: Any = replace(deepcopy(config.inner), data=Path(config.data))
        # Points are for splats, and are not needed here.
        for name, unused in (("load_3D_points", False), ("ply_path", None)):
            if hasattr(self.inner, name):
                setattr(self.inner, name, unused)
        self.includes_time = getattr(self.inner._target, "includes_time", False)
        self._splits: dict[str, DataparserOutputs] = {}
        self._files: dict[Path, tuple[dict[str, Any], Float[np.ndarray, "num_frames 4 4"]]] = {}

    @property
    def data(self) -> Path:
        """The dataset's folder, or its file."""
        return self.inner.data

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        if not self._splits:
            self._splits = self._read_splits()
        return self._splits[split]

    def _read_splits(self) -> dict[str, DataparserOutputs]:
        if not self.data.exists() and not isinstance(self.inner, SceneRecordConfig):
            raise InputError(f"there is no dataset {self.data}; pass its folder to --data")
        found: dict[str, DataparserOutputs] = {}
        missing: dict[str, str] = {}
        for split in ("train", "val", "test"):
            try:
                outputs = self._read(split)
            except UnreadableSplit as error:
                if split == "train":
                    raise
                missing[split] = str(error)
            else:
                if len(outputs.image_filenames):
                    found[split] = outputs
                else:
                    missing[split] = f"The split '{split}' of {self.data} has no photos"
        if not found:
            raise InputError(f"{missing['train']}, nor has any other; add photos to it")
        if missing:
            instead = next(split for split in ("test", "val", "train") if split in found)
            count = len(found[instead].image_filenames)
            _say_once(
                f"{next(iter(missing.values()))}; '{instead}' ({count} photo{'s' * (count > 1)}) takes the place of "
                + " and ".join(f"'{split}'" for split in missing)
            )
            found.update({split: found[instead] for split in missing})
        return found

    @cached_property
    def _parser(self) -> DataParser:
        return _Colmap(self.inner) if self.inner._target is ColmapDataParser else self.inner.setup()

    @property
    def _name(self) -> str:
        """What the dataparser is called on the command line."""
        target = self.inner._target
        return next(
            (f"`{name}`" for name, config in all_dataparsers.items() if config._target is target), target.__name__
        )

    # One split ------------------------------------------------------------------------------------------------

    def _read(self, split: str) -> DataparserOutputs:
        target = self.inner._target
        if issubclass(target, (Nerfstudio, InstantNGP, Blender)):
            outputs = self._read_transforms(split)
        elif target is ColmapDataParser:
            outputs = self._read_colmap(split)
        else:
            outputs = self._parsed(self._parser, split)
        if len(outputs.image_filenames):
            names = [str(path) for path in outputs.image_filenames]
            checked_poses(names, outputs.cameras.camera_to_worlds.reshape(-1, 3, 4).tolist(), str(self.data))
        precise = outputs.dataparser_transform.dtype is torch.float64
        return CentredOutputs(**vars(outputs)) if precise else outputs

    def _parsed(self, parser: DataParser, split: str, folder: Path | None = None) -> DataparserOutputs:
        """What the dataparser finds; `folder` stands for the dataset's in messages."""
        if self.downscale_factor is not None and getattr(self.inner, "downscale_factor", None) is None:
            parser.downscale_factor = self.downscale_factor  # type: ignore[attr-defined]
        try:
            return parser.get_dataparser_outputs(split)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            reason = self._reason(error)
            if folder is not None:
                reason = reason.replace(str(folder), str(self._folder))
            raise UnreadableSplit(f"{self._name} cannot read the split '{split}' of {self.data}: {reason}") from error

    def _reason(self, error: BaseException) -> str:
        """The dataparser's own reason, and a remedy where it is certain."""
        if isinstance(error, KeyError):
            return f"there is no {error}"
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            return f"there is no {error.filename}{self._photos_elsewhere(Path(error.filename))}"
        if isinstance(error, (EOFError, SystemExit)) and isinstance(self.inner, ColmapDataParserConfig):
            factor = self.inner.downscale_factor
            large = "have more than 1600 pixels a side" if factor is None else f"are to be {factor} times smaller"
            return (
                f"the photos {large}, and there are no smaller ones; add `--downscale-factor 1` after `colmap` to take "
                "them as they are"
            )
        reason = one_line(error).rstrip(".")
        if "should contain train/eval" in reason:
            return f"{reason}; rename them, or leave out `--eval-mode filename`"
        expected = isinstance(error, (AssertionError, RuntimeError, ValueError, OSError))
        return reason if expected else f"{type(error).__name__}: {reason}"

    def _photos_elsewhere(self, path: Path) -> str:
        """The option for COLMAP photos that are not where they are looked for."""
        if isinstance(self.inner, ColmapDataParserConfig):
            name = os.path.relpath(path, self.data / self.inner.images_path)
            for folder in (self.data, *sorted(self.data.iterdir())):
                if (folder / name).is_file():
                    return f"; add `--images-path {folder.relative_to(self.data)}` after `colmap`"
        return ""

    # transforms.json ------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.data.parent if self.data.suffix == ".json" else self.data

    def _read_transforms(self, split: str) -> DataparserOutputs:
        _, train_poses = self._transforms(self._transforms_file("train"))
        path = self._transforms_file(split)
        meta, poses = self._transforms(path)
        if split == "train":
            check_extent(poses, str(path))
            if len(poses) == 1 and hasattr(self.inner, "auto_scale_poses"):
                self.inner.auto_scale_poses = False  # it would divide by the extent of the cameras, zero
        centre = far_centre(train_poses, getattr(self.inner, "center_method", "none") != "none")
        corrected = deepcopy(meta)
        for frame, pose in zip(corrected["frames"], poses.copy()):
            if centre is not None:
                pose[:3, 3] -= centre
            if centre is not None or len(frame["transform_matrix"]) == 3:
                frame["transform_matrix"] = pose.tolist()
        if len(meta["frames"][0]["transform_matrix"]) == 3:
            _log_once(f"The poses of {path} have three rows of numbers; 0 0 0 1 is taken for the fourth.")
        photos: list[Path] = []
        if issubclass(self.inner._target, Blender):
            photos = [_blender_photo(self._folder, frame["file_path"]) for frame in meta["frames"]]
            if not photos[0].exists():
                raise UnreadableSplit(f"{self._name} finds no {photos[0]}, which {path} names")
        else:
            for entry in (corrected, *corrected["frames"]):
                _correct_paths(entry, partial(_slashed, folder=self._folder))
        if issubclass(self.inner._target, Nerfstudio) and self.inner.downscale_factor is None:
            if not _opens(self._folder / corrected["frames"][0]["file_path"]):
                self.inner.downscale_factor = 1
        unchanged = corrected == meta and all(
            photo == _stock_photo(self._folder, frame["file_path"]) for photo, frame in zip(photos, meta["frames"])
        )
        if unchanged:
            outputs = self._parsed(self._parser, split)
        else:
            with TemporaryDirectory(prefix="igae-dataset-") as name:
                copy = _copy(self._folder, Path(name), path.name, corrected, photos)
                data = copy / path.name if self.data.suffix == ".json" else copy
                outputs = self._parsed(replace(self.inner, data=data).setup(), split, copy)
            outputs = _put_back(outputs, copy, self._folder, photos)
        if outputs.cameras.camera_to_worlds.shape[-2:] != (3, 4):
            outputs = self._with_pose(outputs, corrected)
        if centre is not None:
            _say_centred(self.data, centre)
            outputs = _uncentred(outputs, centre, np.array(self._applied_transform(meta)))
        return outputs

    def _transforms_file(self, split: str) -> Path:
        if issubclass(self.inner._target, Blender):
            return self.data / f"transforms_{split}.json"
        return self.data if self.data.suffix == ".json" else self.data / "transforms.json"

    def _transforms(self, path: Path) -> tuple[dict[str, Any], Float[np.ndarray, "num_frames 4 4"]]:
        """A `transforms.json` and its poses, checked."""
        if path not in self._files:
            meta = self._checked_meta(path)
            names = [frame["file_path"] for frame in meta["frames"]]
            matrices = [frame["transform_matrix"] for frame in meta["frames"]]
            self._files[path] = meta, checked_poses(names, matrices, str(path))
        return self._files[path]

    def _checked_meta(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            hint = what_it_is(self.data) if path.name in ("transforms.json", "transforms_train.json") else None
            raise UnreadableSplit(f"{self._name} finds no {path.name} in {self.data}" + (f"; {hint}" if hint else ""))
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
        self._check_entries(path, meta)
        return meta

    def _check_entries(self, path: Path, meta: dict[str, Any]) -> None:
        """What the dataparser would miss with a bare key for a message."""
        if issubclass(self.inner._target, Blender):
            if "camera_angle_x" in meta:
                return
            value = ""
            if "fl_x" in meta and "w" in meta:
                value = f"; here it is {2 * math.atan(0.5 * float(meta['w']) / float(meta['fl_x'])):.8f}"
            raise InputError(
                f"{path} has no 'camera_angle_x'; write the horizontal field of view there, in radians{value}"
            )
        if not issubclass(self.inner._target, Nerfstudio):
            return
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

    def _applied_transform(self, meta: dict[str, Any]) -> Any:
        """(3, 4), to the coordinates of a `transforms.json` from those before it."""
        if not issubclass(self.inner._target, Nerfstudio):
            return np.eye(4)[:3]
        kept = (self.data / "colmap/sparse/0").exists()
        return meta.get("applied_transform", COLMAP_TO_NERFSTUDIO if kept else np.eye(4)[:3])

    def _with_pose(self, outputs: DataparserOutputs, meta: dict[str, Any]) -> DataparserOutputs:
        """The pose that instant-ngp-data has lost in a split of one photo."""
        (photo,) = outputs.image_filenames
        for frame in meta["frames"]:
            if photo in (self._folder / frame["file_path"], self._folder / (frame["file_path"] + ".png")):
                pose = torch.tensor(frame["transform_matrix"], dtype=torch.float32)[None, :3]
                pose[..., 3] *= outputs.dataparser_scale
        cameras = outputs.cameras
        lens = {
            name: getattr(cameras, name).flatten()[:1, None] for name in ("fx", "fy", "cx", "cy", "width", "height")
        }
        distortion = cameras.distortion_params
        assert distortion is not None
        cameras = Cameras(
            camera_to_worlds=pose,
            distortion_params=distortion.reshape(-1, 6)[:1],
            camera_type=cameras.camera_type.flatten()[:1, None],
            **lens,
        )
        return replace(outputs, cameras=cameras)

    # COLMAP ---------------------------------------------------------------------------------------------------

    def _read_colmap(self, split: str) -> DataparserOutputs:
        chosen = self.data / self.inner.colmap_path
        models = colmap_models(self.data)
        if not has_model(chosen):
            where = f"there is no COLMAP model in {chosen}"
            if models:
                raise InputError(f"{where}; there is {described(models)}: use {option(models[0][0])}")
            hint = what_it_is(self.data)
            raise InputError(
                f"{where}, neither cameras.txt nor cameras.bin; {hint or 'pass its folder to --colmap-path'}"
            )
        images = count_images(chosen)
        if models and images < models[0][1]:
            path, most = models[0]
            _say_once(
                f"The COLMAP model in {chosen} has {images} images, that in {path} {most}: {option(path)} reads it."
            )
        parser = self._parser
        assert isinstance(parser, _Colmap)
        outputs = self._parsed(parser, split)
        distortion = outputs.cameras.distortion_params
        assert distortion is not None
        distortion[:, 3] += torch.tensor(parser.fourth)[torch.as_tensor(parser.indices, dtype=torch.long)]
        if parser.centre is not None:
            _say_centred(self.data, parser.centre)
            outputs = _uncentred(outputs, parser.centre, parser.applied)
        return outputs


class _Colmap(ColmapDataParser):
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
                frame[key] = _slashed(frame[key])
        # Nerfstudio's fisheye has this coefficient; its dataparser refuses it for the sake of another lens.
        fisheye = meta["camera_model"] == "OPENCV_FISHEYE"
        self.fourth = [float(frame.pop("k4", 0.0)) if fisheye else 0.0 for frame in frames]
        if self.config.downscale_factor is None and not _opens(Path(frames[0]["file_path"])):
            self.config.downscale_factor = 1
        self.meta = meta
        return meta

    def _get_image_indices(self, image_filenames: list[Path], split: str) -> Any:
        self.indices = super()._get_image_indices(image_filenames, split)
        return self.indices


@dataclass
class CentredOutputs(DataparserOutputs):
    """Outputs whose way back to the dataset's coordinates is computed in double precision."""

    def transform_poses_to_original_space(
        self, poses: Tensor, camera_convention: Literal["opengl", "opencv"] = "opencv"
    ) -> Tensor:
        """Poses (N, 3, 4) in the dataset's coordinates, double."""
        transform = self.dataparser_transform.double()
        return transform_poses_to_original_space(poses.double(), transform, self.dataparser_scale, camera_convention)


def _uncentred(outputs: DataparserOutputs, centre: np.ndarray, applied: np.ndarray) -> DataparserOutputs:
    """Outputs for poses of which `centre` (3,) has been subtracted, with the transform of the dataset as it is.

    Args:
        outputs: of the dataparser.
        centre: in the coordinates that the dataparser has read.
        applied: (3, 4), to those coordinates from the original ones.
    """
    transform = outputs.dataparser_transform.double()
    shift = (
        transform[:, :3] @ torch.linalg.inv(torch.tensor(applied[:, :3], dtype=torch.float64)) @ torch.tensor(centre)
    )
    transform = torch.cat([transform[:, :3], transform[:, 3:] - shift[:, None]], dim=1)
    return replace(outputs, dataparser_transform=transform)


def _copy(folder: Path, copy: Path, name: str, meta: dict[str, Any], photos: list[Path]) -> Path:
    """Fill `copy` with links to a dataset and with `meta` as the file `name`; with `photos`, with links to these."""
    if photos:
        for number, (photo, frame) in enumerate(zip(photos, meta["frames"])):
            (copy / f"{number:06d}.png").symlink_to(photo.absolute())
            frame["file_path"] = f"{number:06d}"
    else:
        for entry in folder.iterdir():
            if entry.name != name:
                (copy / entry.name).symlink_to(entry.absolute())
        for frame in (meta, *meta["frames"]):
            _correct_paths(frame, lambda path: str(folder.absolute() / path) if ".." in path else path)
    (copy / name).write_text(json.dumps(meta), encoding="utf-8")
    return copy


def _put_back(outputs: DataparserOutputs, copy: Path, folder: Path, photos: list[Path]) -> DataparserOutputs:
    """Paths in the dataset instead of in its copy."""

    def original(path: Path) -> Path:
        if photos:
            return photos[int(path.stem)]
        return folder / path.relative_to(copy) if path.is_relative_to(copy) else path

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


def _correct_paths(entry: dict[str, Any], correct: Callable[[str], str]) -> None:
    """Correct the paths in a frame, or in a file's lists of the photos of its splits."""
    for key in ("file_path", "mask_path", "depth_file_path"):
        if isinstance(entry.get(key), str):
            entry[key] = correct(entry[key])
    for key in ("train_filenames", "val_filenames", "test_filenames"):
        if key in entry:
            entry[key] = [correct(name) for name in entry[key]]


def _slashed(name: str, folder: Path = Path()) -> str:
    """A path of Windows with slashes; of one with a drive, as much of its end as the folder has."""
    if "\\" not in name or (folder / name).exists():
        return name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ends = (str(PurePosixPath(*parts[start:])) for start in range(len(parts)))
    return next((end for end in ends if (folder / end).exists()), str(PurePosixPath(*parts)))


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


def _opens(path: Path) -> bool:
    """Whether the dataparser can look up the size of a photo (HEIC and raw files are read by this package only)."""
    if path.suffix.lower() in HEIF + RAW:
        return False
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except OSError:
        return True  # missing, which the dataparser says


@cache
def _say_once(message: str) -> None:
    warn(message)


def _say_centred(data: Path, centre: np.ndarray) -> None:
    x, y, z = centre
    _log_once(f"The cameras of {data} lie around ({x:.0f}, {y:.0f}, {z:.0f}); they are moved to the origin.")


@cache
def _log_once(message: str) -> None:
    log(message)
