"""Tiny scenes, a tiny autoencoder and settings that finish in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable

import torch
from conftest import ROOT, tiny_autoencoder, write_blender_scene, write_srn_scene

from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.joint.compositions import begin, joint_trainer, train_scenes
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.trainer import Stage, Trainer

DEBUG = ROOT / "configs" / "many_scenes" / "debug.yaml"
TINY: dict[str, Any] = {
    "data": {"view_size": 48, "max_views": 4},
    "triplanes": {"resolution": 8, "samples": 6, "importance_samples": 6},
    "stage1": {"views_per_batch": 4, "views_per_scene": 2},
}
RGB: dict[str, Any] = {
    "space": "rgb",
    "latent_normalization": "none",
    "micro_macro": {"shared_planes": 0},
    "stage1": {"rays_per_view": 16},
    "stage2": {"epochs": 0},
    "fit": {"latent_supervision": {"rays_per_view": 16}},
}


def small_config(*settings: dict[str, Any]) -> ManyScenesConfig:
    """configs/many_scenes/debug.yaml, smaller, with nested settings over it."""
    config = ManyScenesConfig()
    for entries in (read_yaml(DEBUG), TINY, *settings):
        config = with_settings(config, entries, "the test")
    return config


def write_data(folder: Path) -> Path:
    """`train/{a,b,c,d}`, `new/{x,y}` of 4 + 1 + 2 views, and `autoencoder`."""
    for name in ("train/a", "train/b", "train/c", "train/d", "new/x", "new/y"):
        write_blender_scene(folder / name, counts=(4, 1, 2))
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    return folder


def make_trainer(data: Path, output_dir: Path, *settings: dict[str, Any]) -> Trainer:
    """The trainer of `train`, not yet run."""
    return joint_trainer(small_config(*settings), data / "train", None, output_dir, str(data / "autoencoder"))


def train(data: Path, output_dir: Path, *settings: dict[str, Any]) -> Path:
    """A finished joint training of `train`."""
    config = small_config(*settings)
    return train_scenes(config, data / "train", None, output_dir, str(data / "autoencoder"), tensorboard=False)


def write_scenes(folder: Path, names: tuple[str, ...], size: int = 48) -> Path:
    """Scenes of 8 training and 10 test views; those whose name begins with `srn` in the layout of ShapeNet-SRN."""
    for name in names:
        blender = folder / ".blender" if name.startswith("srn") else folder / name
        if not blender.exists():
            write_blender_scene(blender, (size, size), (8, 1, 10))
        if name.startswith("srn"):
            write_srn_scene(folder / name, blender)
    return folder


# --- Trainings that are looked at in their middle ---


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def kill_at(trainer: Trainer, stage: int, step: int) -> None:
    """Make a training die after the optimisers of a step and before its checkpoint."""

    def killed(trainer: Trainer, at: Stage, done: int) -> None:
        if (at.number, done) == (stage, step):
            raise Killed

    trainer.observe = killed


def started(trainer: Trainer) -> Trainer:
    """Ready for its first step, with every view encoded."""
    trainer.data.encode_views(trainer.accelerator, quiet=True)
    begin(trainer)
    return trainer


def any_gradient(parameters: Iterable[torch.Tensor]) -> bool:
    """Whether a gradient reached any of them."""
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)
