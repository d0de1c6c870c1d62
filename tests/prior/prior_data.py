"""A small prior that trains in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import ROOT, tiny_autoencoder, write_blender_scene

from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.joint.trainer import Trainer
from igae_nerfstudio.prior.config import PriorConfig
from igae_nerfstudio.prior.saved import SavedPrior
from igae_nerfstudio.prior.training import prior_trainer, train_prior

DEBUG = ROOT / "configs" / "prior" / "debug.yaml"
TINY: dict[str, Any] = {
    "data": {"view_size": 48},
    "triplanes": {"resolution": 8, "samples": 6, "importance_samples": 4},
}


def small_config(*settings: dict[str, Any]) -> PriorConfig:
    """configs/prior/debug.yaml, smaller, with nested settings over it."""
    config = PriorConfig()
    for entries in (read_yaml(DEBUG), TINY, *settings):
        config = with_settings(config, entries, "the test")
    return config


def write_data(folder: Path, names: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """`train/NAME` and `new` of 6 + 1 + 2 views, and `autoencoder`."""
    for name in [f"train/{name}" for name in names] + ["new"]:
        write_blender_scene(folder / name, counts=(6, 1, 2))
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    return folder


def make_trainer(data: Path, output_dir: Path, *settings: dict[str, Any]) -> Trainer:
    """The trainer of `train`, not yet run."""
    return prior_trainer(small_config(*settings), data / "train", output_dir, str(data / "autoencoder"))


def train(data: Path, output_dir: Path, *settings: dict[str, Any]) -> SavedPrior:
    """A finished training of `train`."""
    train_prior(small_config(*settings), data / "train", output_dir, str(data / "autoencoder"), tensorboard=False)
    return SavedPrior.load(output_dir)
