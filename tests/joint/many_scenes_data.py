"""Tiny scenes, a tiny autoencoder and settings that finish in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from conftest import ROOT, tiny_autoencoder, write_blender_scene

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig
from igae_nerfstudio.joint.config import load_config
from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
from igae_nerfstudio.joint.many_scenes_trainer import ManyScenesTrainer

DEBUG = ROOT / "configs" / "many_scenes" / "debug.yaml"
TINY = (
    "data.view_size=48",
    "data.max_views=4",
    "triplanes.resolution=8",
    "triplanes.samples=6",
    "triplanes.importance_samples=6",
    "stage1.views_per_batch=4",
    "stage1.views_per_scene=2",
)


def small_config(*overrides: str) -> ManyScenesConfig:
    return load_config(DEBUG, overrides=(*TINY, *overrides), of=ManyScenesConfig)


def write_data(folder: Path) -> Path:
    """`train/{a,b,c,d}`, `new/{x,y}` of 4 + 1 + 2 views, and `autoencoder`."""
    for name in ("train/a", "train/b", "train/c", "train/d", "new/x", "new/y"):
        write_blender_scene(folder / name, counts=(4, 1, 2))
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    return folder


def make_trainer(data: Path, output_dir: Path, overrides: Sequence[str] = ()) -> ManyScenesTrainer:
    source = AutoencoderConfig(name_or_path=str(data / "autoencoder"))
    return ManyScenesTrainer(small_config(*overrides), data / "train", None, source, output_dir, tensorboard=False)
