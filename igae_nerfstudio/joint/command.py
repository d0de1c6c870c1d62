"""`igae-train`: from scenes, real images and an autoencoder to an inverse graphics autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Sequence

import tyro

from igae_nerfstudio.config_files import parse_command
from igae_nerfstudio.errors import reported_in_one_line
from igae_nerfstudio.joint.config import IGAEConfig


@dataclass
class TrainCommand:
    """Train an inverse graphics autoencoder; run again with the same folders, it goes on where it stopped."""

    scenes: Path
    """Folder of scenes in Blender format, as `igae-render-objects` makes them, or in that of ShapeNet-SRN."""
    output_dir: Path
    """Where everything goes: checkpoints, metrics.jsonl, figures and the result."""
    settings: Annotated[IGAEConfig, tyro.conf.arg(name="")]
    images: Path | None = None
    """Folder of real images; not needed where weights.real_autoencoding is 0."""
    autoencoder: str = "bundled-ae"
    """What to start from: a folder in diffusers' format, a hub id, `bundled-ae`, or `bundled`."""
    config: tuple[Path, ...] = ()
    """YAML files of settings such as configs/igae/cpu.yaml, later over earlier ones, command line over all."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Log to Weights & Biases; WANDB_MODE=offline needs no network."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command; arguments and name are by default those of the process."""
    with reported_in_one_line():
        default = TrainCommand(tyro.MISSING, tyro.MISSING, IGAEConfig())
        own = parse_command(TrainCommand, default, arguments, prog)
        from igae_nerfstudio.joint.compositions import train_igae

        train_igae(own.settings, own.scenes, own.images, own.output_dir, own.autoencoder, own.tensorboard, own.wandb)


if __name__ == "__main__":
    main()
