"""`igae-scenes`: many scenes that share what is common, from views to finished scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Tuple, Union

import tyro


@dataclass
class TrainCommand:
    """Train an autoencoder, shared planes and scenes together; run again, it goes on where it stopped."""

    config: Tuple[Path, ...]
    """YAML files such as configs/many_scenes/paper.yaml, later over earlier ones; the rest has the paper's values."""
    scenes: Path
    """Folder of scenes in Blender format, as `igae-render-objects` makes them."""
    output_dir: Path
    """Where everything goes: checkpoints, metrics.jsonl, figures, the autoencoder, what scenes share, and the scenes."""
    autoencoder: str = "bundled"
    """What to start from: a folder in diffusers' format, a hub id, `bundled`, or `bundled-ae`."""
    images: Union[Path, None] = None
    """Folder of real images; only needed where weights.real_autoencoding is above 0."""
    set: Tuple[str, ...] = ()
    """Settings over those of the config, such as stage1.epochs=3 micro_macro.shared_planes=0."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Log to Weights & Biases; WANDB_MODE=offline needs no network."""

    def run(self) -> None:
        """Train."""
        from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig
        from igae_nerfstudio.igae.config import load_config
        from igae_nerfstudio.many_scenes.config import ManyScenesConfig
        from igae_nerfstudio.many_scenes.training import ManyScenesTrainer

        ManyScenesTrainer(
            load_config(*self.config, overrides=self.set, of=ManyScenesConfig),
            self.scenes,
            self.images,
            AutoencoderConfig(name_or_path=self.autoencoder),
            self.output_dir,
            tensorboard=self.tensorboard,
            wandb=self.wandb,
        ).run()


@dataclass
class ExploitCommand:
    """Learn new scenes with what others share; run again, it goes on, and no finished scene is learnt twice."""

    scenes: Tuple[Path, ...]
    """Folders of scenes in Blender format; their test views are held out and measured."""
    shared: Path
    """The --output-dir of a finished `igae-scenes train`."""
    output_dir: Path
    """Where everything goes: scenes/NAME/scene.pt and result.json."""
    config: Tuple[Path, ...] = ()
    """YAML files over the settings of the joint training."""
    set: Tuple[str, ...] = ()
    """Settings over those, such as exploit.fine_tuned_decoder=outer."""

    def run(self) -> None:
        """Learn."""
        from igae_nerfstudio.igae.config import load_config, to_dict
        from igae_nerfstudio.many_scenes.config import ManyScenesConfig
        from igae_nerfstudio.many_scenes.exploit import exploit, one_after_another, say_report
        from igae_nerfstudio.many_scenes.results import SharedPart

        own = to_dict(SharedPart.load(self.shared).config)
        config = load_config(*self.config, overrides=self.set, of=ManyScenesConfig, base=own)
        report = exploit(self.scenes, self.shared, self.output_dir, config, one_after_another)
        say_report(report, self.output_dir)
        if report.failed:
            raise SystemExit(1)


COMMANDS = {"train": TrainCommand, "exploit": ExploitCommand}
"""The subcommands by name."""


def main() -> None:
    """The console script."""
    tyro.extras.subcommand_cli_from_dict(
        {name: command for name, command in COMMANDS.items()}, description=__doc__
    ).run()


if __name__ == "__main__":
    main()
