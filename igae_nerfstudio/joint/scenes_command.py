"""`igae-scenes`: many scenes that share a basis, from views to runs of Nerfstudio."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Sequence

import tyro

from igae_nerfstudio.config_files import parse_command, run_subcommand
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint import command
from igae_nerfstudio.joint.config import ManyScenesConfig

Settings = Annotated[ManyScenesConfig, tyro.conf.arg(name="")]


@dataclass
class TrainCommand(command.TrainCommand):
    """Train an autoencoder, a shared basis and scenes together; run again, it goes on where it stopped."""

    settings: Settings


@dataclass
class FitCommand:
    """Fit new scenes beside a shared basis; run again, it goes on, and no finished scene is fitted twice."""

    scenes: tuple[Path, ...]
    """Folders of scenes in Blender or ShapeNet-SRN format; their test views are held out and measured."""
    shared: Path
    """The --output-dir of a finished `igae-scenes train`, whose settings are the defaults here."""
    output_dir: Path
    """Where everything goes: scenes/NAME/scene.pt and result.json."""
    settings: Settings
    config: tuple[Path, ...] = ()
    """YAML files over the settings of the joint training."""
    ray: bool = False
    """Fit scenes side by side on Ray, on this machine's cores or GPUs (pip install 'ray>=2.48')."""
    ray_address: str | None = None
    """HOST:PORT of a Ray cluster's head, or auto; all of its machines must see the folders under the same paths."""
    ray_workers: int | None = None
    """Scenes at a time, where Ray has this machine alone; by default one for each core."""
    ray_gpus: float | None = None
    """GPUs for a scene; below 1, scenes share one. By default 1 where there are GPUs."""


def train(arguments: Sequence[str], prog: str) -> None:
    """`igae-scenes train`."""
    default = TrainCommand(tyro.MISSING, tyro.MISSING, ManyScenesConfig(), autoencoder="bundled")
    own = parse_command(TrainCommand, default, arguments, prog)
    from igae_nerfstudio.joint.compositions import train_scenes

    train_scenes(own.settings, own.scenes, own.images, own.output_dir, own.autoencoder, own.tensorboard, own.wandb)


def fit(arguments: Sequence[str], prog: str) -> None:
    """`igae-scenes fit`."""
    from igae_nerfstudio.joint.fit import RunAll, fit_scenes, log_report, one_after_another
    from igae_nerfstudio.joint.results import SharedBasis

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--shared", type=Path)
    shared = finder.parse_known_args(arguments)[0].shared
    settings = ManyScenesConfig() if shared is None else SharedBasis.load(shared).config
    default = FitCommand(tyro.MISSING, tyro.MISSING, tyro.MISSING, settings)
    own = parse_command(FitCommand, default, arguments, prog)
    run_all: RunAll = one_after_another
    if own.ray or own.ray_address is not None:
        from igae_nerfstudio.joint.on_ray import RayOptions, on_ray

        if own.settings.fit.train_shared:
            raise InputError("fit.train_shared fits all scenes in one training; leave --ray out")
        run_all = on_ray(RayOptions(own.ray_address, own.ray_workers, own.ray_gpus))
    report = fit_scenes(own.scenes, own.shared, own.output_dir, own.settings, run_all)
    log_report(report, own.output_dir)
    if report.failed:
        sys.exit(1)


def export(arguments: Sequence[str], prog: str) -> None:
    """`igae-scenes export`."""
    from igae_nerfstudio.joint.scene_export import export_scenes  # imports Nerfstudio

    tyro.cli(export_scenes, args=arguments, prog=prog)


COMMANDS = {"train": train, "fit": fit, "exploit": fit, "export": export}
"""The subcommands by name; `exploit` is the paper's word for fitting new scenes."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command; arguments and name are by default those of the process."""
    run_subcommand(COMMANDS, arguments, prog or "igae-scenes", __doc__, "; exploit is fit")


if __name__ == "__main__":
    main()
