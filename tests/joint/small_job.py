"""A joint training of seconds, and scenes to learn with what comes out, in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from conftest import write_blender_scene, write_srn_scene
from many_scenes_data import make_trainer, write_data

SIZE = 48


def train_shared(folder: Path, *overrides: str) -> Path:
    """Scenes in `train/`, learnt jointly; the folder of what they share."""
    make_trainer(write_data(folder), folder / "shared", overrides).run()
    return folder / "shared"


def write_scenes(folder: Path, names: Tuple[str, ...]) -> Path:
    """Scenes of 8 training and 10 test views; those whose name begins with `srn` in the layout of ShapeNet-SRN."""
    for name in names:
        blender = folder / ".blender" if name.startswith("srn") else folder / name
        if not blender.exists():
            write_blender_scene(blender, (SIZE, SIZE), (8, 1, 10))
        if name.startswith("srn"):
            write_srn_scene(folder / name, blender)
    return folder
