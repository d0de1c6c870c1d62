"""The cameras of a dataset, kept in a run's folder: a finished run can be viewed and rendered without its dataset.

A record is one file of plain tensors, numbers and strings, which loads with `weights_only=True`:

    {"data": path of the dataset,
     "splits": {"train" | "val" | "test": {"cameras": {...}, "image_filenames": [...], "scene_box": (2, 3), ...}}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Type

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.files import write_atomically

CAMERA_FIELDS = ("camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type")


class UnreadableSplit(InputError):
    """A dataparser does not find a split; another one may take its place."""


def save_scene_record(path: Path, data: Path, splits: dict[str, DataparserOutputs]) -> None:
    """Write what the dataparser found in each split, without the photos; whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    record = {"data": str(data), "splits": {name: _to_plain(outputs) for name, outputs in splits.items()}}
    write_atomically(path, lambda file: torch.save(record, file))


def _to_plain(outputs: DataparserOutputs) -> dict[str, Any]:
    cameras = outputs.cameras
    return {
        "cameras": {name: getattr(cameras, name) for name in CAMERA_FIELDS},
        "image_filenames": [str(path) for path in outputs.image_filenames],
        "alpha_color": None if outputs.alpha_color is None else torch.as_tensor(outputs.alpha_color),
        "scene_box": outputs.scene_box.aabb,
        "dataparser_transform": outputs.dataparser_transform,
        "dataparser_scale": float(outputs.dataparser_scale),
    }


def recorded_dataset(path: Path) -> Path:
    """Where the dataset of a record was; raises InputError where the record cannot be read."""
    return Path(_load(path)["data"])


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"the cameras kept in {path} cannot be read ({one_line(error)[:80]}); put the dataset back to where it was"
        ) from error


@dataclass
class SceneRecordConfig(DataParserConfig):
    """A dataparser that reads a run's own record."""

    _target: Type = field(default_factory=lambda: SceneRecord)
    record: Path = Path()
    """The file that `save_scene_record` wrote."""


class SceneRecord(DataParser):
    """Gives the recorded cameras and the names of the photos, which need not exist any more."""

    config: SceneRecordConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: dict | None) -> DataparserOutputs:
        saved = _load(self.config.record)["splits"]
        if split not in saved:
            raise UnreadableSplit(
                f"the dataset had no split '{split}' when the run was trained, only {', '.join(saved)}"
            )
        outputs = dict(saved[split])
        return DataparserOutputs(
            cameras=Cameras(**outputs.pop("cameras")),
            image_filenames=[Path(name) for name in outputs.pop("image_filenames")],
            scene_box=SceneBox(aabb=outputs.pop("scene_box")),
            **outputs,
        )
