"""A joint training of seconds, and scenes to learn with what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from conftest import ROOT, tiny_autoencoder, write_blender_scene, write_srn_scene

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig
from igae_nerfstudio.igae.config import load_config
from igae_nerfstudio.many_scenes.config import ManyScenesConfig
from igae_nerfstudio.many_scenes.training import ManyScenesTrainer

SIZE = 64
DEBUG = ROOT / "configs" / "many_scenes" / "debug.yaml"


def small_config(*overrides: str) -> ManyScenesConfig:
    """debug.yaml."""
    return load_config(DEBUG, overrides=overrides, of=ManyScenesConfig)


def train_shared(folder: Path, *overrides: str) -> Path:
    """Two scenes learnt jointly; the folder of what they share."""
    for name in ("one", "two"):
        write_blender_scene(folder / "training" / name, (SIZE, SIZE), (4, 1, 1))
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    start = AutoencoderConfig(name_or_path=str(folder / "autoencoder"))
    config = small_config(*overrides)
    ManyScenesTrainer(config, folder / "training", None, start, folder / "shared", tensorboard=False).run()
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
