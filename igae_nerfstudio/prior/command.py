"""`igae prior`: scenes from a few photos, and new ones, by what many scenes have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Sequence

import tyro

from igae_nerfstudio.config_files import parse_command, run_subcommand
from igae_nerfstudio.prior.config import PriorConfig


@dataclass
class TrainCommand:
    """Train a prior over scenes; run again with the same folders, it goes on where it stopped."""

    scenes: Path
    """Folder of scenes in Blender format, as `igae render-objects` makes them, or in that of ShapeNet-SRN."""
    output_dir: Path
    """Where everything goes: checkpoints, metrics.jsonl, figures and the result."""
    settings: Annotated[PriorConfig, tyro.conf.arg(name="")]
    autoencoder: str = "bundled"
    """A folder in diffusers' format, a hub id, `bundled` or `bundled-ae`; it stays as it is."""
    config: tuple[Path, ...] = ()
    """YAML files of settings such as configs/prior/cpu.yaml, later over earlier ones, command line over all."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Log to Weights & Biases; WANDB_MODE=offline needs no network."""


def train(arguments: Sequence[str], prog: str) -> None:
    """`igae prior train`."""
    default = TrainCommand(tyro.MISSING, tyro.MISSING, PriorConfig())
    own = parse_command(TrainCommand, default, arguments, prog)
    from igae_nerfstudio.prior.training import train_prior

    train_prior(own.settings, own.scenes, own.output_dir, own.autoencoder, own.tensorboard, own.wandb)


def of_module(name: str):
    """A subcommand that is a function of `prior/inference.py`, whose arguments are its options."""

    def run(arguments: Sequence[str], prog: str) -> None:
        from igae_nerfstudio.prior import inference  # imports Nerfstudio

        tyro.cli(getattr(inference, name), args=arguments, prog=prog)

    return run


COMMANDS = {"train": train, **{name: of_module(name) for name in ("reconstruct", "sample", "interpolate")}}
"""The subcommands by name."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command; arguments and name are by default those of the process."""
    run_subcommand(COMMANDS, arguments, prog or "igae-prior", __doc__)


if __name__ == "__main__":
    main()
