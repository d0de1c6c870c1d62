"""`igae-scenes`: many scenes that share what is common, from views to finished scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, Optional, Tuple, Type

import tyro

from igae_nerfstudio.joint import command as igae_train

if TYPE_CHECKING:
    from igae_nerfstudio.joint.config import IGAEConfig
    from igae_nerfstudio.joint.trainer import IGAETrainer


@dataclass
class TrainCommand(igae_train.TrainCommand):
    """Train an autoencoder, shared planes and scenes together; run again, it goes on where it stopped."""

    config: Tuple[Path, ...]
    """YAML files such as configs/many_scenes/paper.yaml, later over earlier ones; the rest has the paper's values."""
    output_dir: Path
    """Where everything goes: checkpoints, metrics.jsonl, figures, autoencoder, what scenes share, and the scenes."""
    images: Optional[Path] = None
    """Folder of real images; only needed where weights.real_autoencoding is above 0."""
    autoencoder: str = "bundled"
    """What to start from: a folder in diffusers' format, a hub id, `bundled`, or `bundled-ae`."""
    set: Tuple[str, ...] = ()
    """Settings over those of the config, such as stage1.epochs=3 micro_macro.shared_planes=0."""

    NAME: ClassVar[str] = "igae-scenes train"

    def _settings_and_trainer(self) -> Tuple[Type[IGAEConfig], Type[IGAETrainer]]:
        from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
        from igae_nerfstudio.joint.many_scenes_trainer import ManyScenesTrainer

        return ManyScenesConfig, ManyScenesTrainer


@dataclass
class ExploitCommand:
    """Learn new scenes with what others share; run again, it goes on, and no finished scene is learnt twice."""

    scenes: Tuple[Path, ...]
    """Folders of scenes in Blender or ShapeNet-SRN format; their test views are held out and measured."""
    shared: Path
    """The --output-dir of a finished `igae-scenes train`."""
    output_dir: Path
    """Where everything goes: scenes/NAME/scene.pt and result.json."""
    config: Tuple[Path, ...] = ()
    """YAML files over the settings of the joint training."""
    set: Tuple[str, ...] = ()
    """Settings over those, such as exploit.fine_tuned_decoder=outer."""
    ray: bool = False
    """Learn scenes side by side on Ray, on this machine's cores or GPUs (pip install 'igae-nerfstudio[ray]')."""
    ray_address: Optional[str] = None
    """HOST:PORT of a Ray cluster's head, or auto; all of its machines must see the folders under the same paths."""
    ray_workers: Optional[int] = None
    """Scenes at a time, where Ray has this machine alone; by default one for each core, or for each GPU."""
    ray_gpus: Optional[float] = None
    """GPUs for a scene; below 1, scenes share one. By default 1 where there are GPUs."""

    def run(self) -> None:
        """Learn."""
        from igae_nerfstudio.engine.interruption import ends_in_one_line

        kept = f"while learning: finished scenes stay in {self.output_dir}; the same command goes on with the others"
        with ends_in_one_line(kept):
            self._run()

    def _run(self) -> None:
        from igae_nerfstudio.errors import InputError
        from igae_nerfstudio.joint.config import load_config, to_dict
        from igae_nerfstudio.joint.exploit import exploit, one_after_another, say_report
        from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
        from igae_nerfstudio.joint.results import SharedPart

        own = to_dict(SharedPart.load(self.shared).config)
        config = load_config(*self.config, overrides=self.set, of=ManyScenesConfig, base=own)
        run_all: Callable[..., Any] = one_after_another
        if self.ray or self.ray_address is not None:
            from igae_nerfstudio.joint.on_ray import RayOptions, on_ray

            if config.exploit.train_shared:
                raise InputError("exploit.train_shared learns all scenes in one training; leave --ray out")
            run_all = on_ray(RayOptions(self.ray_address, self.ray_workers, self.ray_gpus))
        report = exploit(self.scenes, self.shared, self.output_dir, config, run_all)
        say_report(report, self.output_dir)
        if report.failed:
            raise SystemExit(1)


@dataclass
class ExportCommand:
    """Make learnt scenes ordinary runs of the method igae-triplanes, for ns-viewer, ns-render and ns-eval."""

    learnt: Tuple[Path, ...]
    """Folders OUT/scenes/NAME, or OUT for all of its scenes."""
    scenes: Path
    """The folder of scenes that they were learnt from."""
    output_dir: Path = Path("outputs")
    """The runs are NAME/igae-triplanes/TIMESTAMP in it."""
    timestamp: Optional[str] = None
    """The last part of a run's folder; by default the time."""

    def run(self) -> None:
        """Write a run for each scene."""
        from igae_nerfstudio.console import log
        from igae_nerfstudio.engine.interruption import ends_in_one_line

        with ends_in_one_line(f"while writing runs: those that were named are whole, in {self.output_dir}"):
            from igae_nerfstudio.joint.scene_export import export_scene, find_learnt

            for folder in find_learnt(self.learnt):
                log(f"ns-viewer --load-config {export_scene(folder, self.scenes, self.output_dir, self.timestamp)}")


COMMANDS: Dict[str, Callable[..., Any]] = {"train": TrainCommand, "exploit": ExploitCommand, "export": ExportCommand}
"""The subcommands by name."""


def main() -> None:
    """The console script."""
    tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__).run()


if __name__ == "__main__":
    main()
