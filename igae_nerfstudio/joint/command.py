"""`igae-train`: from scenes, real images and an autoencoder to an inverse graphics autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Optional, Tuple, Type

import tyro

if TYPE_CHECKING:
    from igae_nerfstudio.joint.config import IGAEConfig
    from igae_nerfstudio.joint.trainer import IGAETrainer


@dataclass
class TrainCommand:
    """Train an inverse graphics autoencoder; run again with the same folders, it goes on where it stopped."""

    config: Tuple[Path, ...]
    """YAML files such as configs/igae/paper.yaml, later over earlier ones; the rest has the paper's values."""
    scenes: Path
    """Folder of scenes in Blender format, as `igae-render-objects` makes them, or in that of ShapeNet-SRN."""
    output_dir: Path
    """Where everything goes: checkpoints, metrics.jsonl, figures and the autoencoder."""
    images: Optional[Path] = None
    """Folder of real images; not needed where weights.real_autoencoding is 0."""
    autoencoder: str = "bundled-ae"
    """What to start from: a folder in diffusers' format, a hub id, `bundled-ae`, or `bundled`."""
    set: Tuple[str, ...] = ()
    """Settings over those of the config, such as stage2.epochs=3 weights.latent=0.5."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb: bool = False
    """Log to Weights & Biases; WANDB_MODE=offline needs no network."""

    NAME: ClassVar[str] = "igae-train"

    def run(self) -> None:
        """Train."""
        from igae_nerfstudio.engine.interruption import ends_in_one_line

        with ends_in_one_line(f"before the first step; the same command starts again, into {self.output_dir}"):
            self._run()

    def _run(self) -> None:
        from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig
        from igae_nerfstudio.files import job_folder
        from igae_nerfstudio.joint.config import load_config

        settings, trainer = self._settings_and_trainer()
        config = load_config(*self.config, overrides=self.set, of=settings)
        with job_folder(self.output_dir, self.NAME):
            trainer(
                config,
                self.scenes,
                self.images,
                AutoencoderConfig(name_or_path=self.autoencoder),
                self.output_dir,
                tensorboard=self.tensorboard,
                wandb=self.wandb,
            ).run()

    def _settings_and_trainer(self) -> Tuple[Type[IGAEConfig], Type[IGAETrainer]]:
        from igae_nerfstudio.joint.config import IGAEConfig
        from igae_nerfstudio.joint.trainer import IGAETrainer

        return IGAEConfig, IGAETrainer


def main() -> None:
    """The console script."""
    tyro.cli(TrainCommand, description=TrainCommand.__doc__).run()


if __name__ == "__main__":
    main()
