"""Any of Nerfstudio's dataparsers, with its dataset checked before and its poses after.

dataset --> check, correct a copy --> dataparser --> check poses --> a split for every command

What is wrong ends in one line: the dataparser's own reason, and a remedy where it is certain.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Type

import numpy as np
import torch
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
from torch import Tensor

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.data.colmap_model import (
    CheckedColmap,
    colmap_models,
    count_images,
    described,
    has_model,
    option,
    readable_by_nerfstudio,
)
from igae_nerfstudio.data.dataset_kinds import what_it_is
from igae_nerfstudio.data.poses import check_extent, checked_poses, far_centre
from igae_nerfstudio.data.scene_record import SceneRecordConfig, UnreadableSplit
from igae_nerfstudio.data.transforms_file import TransformsFile, read_transforms
from igae_nerfstudio.errors import InputError, one_line


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
        self._files: dict[Path, TransformsFile] = {}

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
        return CheckedColmap(self.inner) if self.inner._target is ColmapDataParser else self.inner.setup()

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
        if target in (Nerfstudio, InstantNGP, Blender):
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

    def _parsed(self, parser: DataParser, split: str, stands_for: tuple[str, str] = ("", "")) -> DataparserOutputs:
        """What the dataparser finds; in messages, the second folder is put for the first."""
        if self.downscale_factor is not None and getattr(self.inner, "downscale_factor", None) is None:
            parser.downscale_factor = self.downscale_factor  # type: ignore[attr-defined]
        try:
            outputs = parser.get_dataparser_outputs(split)
            factor = getattr(parser, "downscale_factor", None) or getattr(parser, "_downscale_factor", None)
            outputs.metadata["downscale_factor"] = factor or 1
            return outputs
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            reason = self._reason(error).replace(*stands_for) if stands_for[0] else self._reason(error)
            raise UnreadableSplit(f"{self._name} cannot read the split '{split}' of {self.data}: {reason}") from error

    def _reason(self, error: BaseException) -> str:
        """The dataparser's own reason, and a remedy where it is certain."""
        if isinstance(error, KeyError):
            return f"there is no {error}"
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            return f"there is no {error.filename}{self._photos_elsewhere(Path(error.filename))}"
        if isinstance(error, (EOFError, SystemExit)) and isinstance(self.inner, ColmapDataParserConfig):
            log("")  # ends the line of the question that nobody has answered
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

    def _read_transforms(self, split: str) -> DataparserOutputs:
        target = self.inner._target
        train, file = self._transforms("train"), self._transforms(split)
        if split == "train":
            check_extent(file.poses, str(file.path))
            if len(file.poses) == 1 and hasattr(self.inner, "auto_scale_poses"):
                self.inner.auto_scale_poses = False  # it would divide by the extent of the cameras, zero
        centre = far_centre(train.poses, getattr(self.inner, "center_method", "none") != "none")
        meta, photos = file.corrected(target, centre)
        if len(file.meta["frames"][0]["transform_matrix"]) == 3:
            _say_once(f"The poses of {file.path} have three rows of numbers; 0 0 0 1 is taken for the fourth.")
        if photos and not photos[0].exists():
            raise UnreadableSplit(f"{self._name} finds no {photos[0]}, which {file.path} names")
        if target is Nerfstudio and self.inner.downscale_factor is None:
            if not readable_by_nerfstudio(file.folder / meta["frames"][0]["file_path"]):
                self.inner.downscale_factor = 1
        if file.needs_no_copy(meta, photos):
            outputs = self._parsed(self._parser, split)
        else:
            with TemporaryDirectory(prefix="igae-dataset-") as name:
                copy = Path(name)
                file.fill_copy(copy, meta, photos)
                config = replace(self.inner, data=copy / file.path.name if file.path == self.data else copy)
                outputs = self._parsed(config.setup(), split, (name, str(file.folder)))
            outputs = file.put_back(outputs, copy, photos)
        if outputs.cameras.camera_to_worlds.shape[-2:] != (3, 4):
            outputs = file.with_pose(outputs, meta)
        return outputs if centre is None else self._moved(outputs, centre, file.applied_transform(target))

    def _transforms(self, split: str) -> TransformsFile:
        name = f"transforms_{split}.json" if self.inner._target is Blender else "transforms.json"
        path = self.data if self.data.suffix == ".json" and self.inner._target is not Blender else self.data / name
        if path not in self._files:
            if not path.is_file():
                hint = None if split in ("val", "test") else what_it_is(self.data)
                raise UnreadableSplit(f"{self._name} finds no {name} in {self.data}" + (f"; {hint}" if hint else ""))
            self._files[path] = read_transforms(path, self.inner._target)
        return self._files[path]

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
        assert isinstance(parser, CheckedColmap)
        outputs = self._parsed(parser, split)
        distortion = outputs.cameras.distortion_params
        assert distortion is not None
        distortion[:, 3] += torch.tensor(parser.fourth)[torch.as_tensor(parser.indices, dtype=torch.long)]
        return outputs if parser.centre is None else self._moved(outputs, parser.centre, parser.applied)

    def _moved(self, outputs: DataparserOutputs, centre: np.ndarray, applied: np.ndarray) -> DataparserOutputs:
        """Outputs for poses that have been moved by -`centre`, with the transform of the dataset as it is.

        Args:
            outputs: of the dataparser.
            centre: (3,), in the coordinates that the dataparser has read.
            applied: (3, 4), to those coordinates from the original ones.
        """
        x, y, z = centre
        _say_once(f"The cameras of {self.data} lie around ({x:.0f}, {y:.0f}, {z:.0f}); they are moved to the origin.")
        transform = outputs.dataparser_transform.double()
        shift = transform[:, :3] @ torch.tensor(np.linalg.solve(applied[:, :3], centre))
        transform = torch.cat([transform[:, :3], transform[:, 3:] - shift[:, None]], dim=1)
        return replace(outputs, dataparser_transform=transform)


@dataclass
class CentredOutputs(DataparserOutputs):
    """Outputs whose way back to the dataset's coordinates is computed in double precision."""

    def transform_poses_to_original_space(
        self, poses: Tensor, camera_convention: Literal["opengl", "opencv"] = "opencv"
    ) -> Tensor:
        """Poses (N, 3, 4) in the dataset's coordinates, double."""
        transform = self.dataparser_transform.double()
        return transform_poses_to_original_space(poses.double(), transform, self.dataparser_scale, camera_convention)


@cache
def _say_once(message: str) -> None:
    warn(message)
