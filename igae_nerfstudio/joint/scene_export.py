"""A learnt scene as an ordinary run of Nerfstudio: what `ns-viewer`, `ns-render` and `ns-eval` open.

The run's method is `igae-triplanes`. Its checkpoint holds the scene's fused planes (own and shared ones together), the
renderer, the normalisation and the scene's decoder, so that it needs neither the basis nor the autoencoder.
"""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any, Sequence

import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from igae_nerfstudio import method_configs
from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.console import log
from igae_nerfstudio.data.scene_record import SceneRecordConfig, save_scene_record
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.fit import HELD_OUT, PHASES
from igae_nerfstudio.joint.results import (
    RESULT_FILE,
    SCENE_FILE,
    LearntScene,
    SharedBasis,
    load_scene,
    read_checkpoint,
    shared_of,
)
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene
from igae_nerfstudio.scenes.scene_folders import is_srn_scene, read_scene

RECORD_FILE = "scene.pt"
"""In the run's folder: the cameras, as every latent run keeps them (`data/scene_record.py`)."""


def export_scenes(
    learnt: tuple[Path, ...], scenes: Path, output_dir: Path = Path("outputs"), timestamp: str | None = None
) -> None:
    """Make learnt scenes ordinary runs of the method igae-triplanes, for ns-viewer, ns-render and ns-eval.

    Args:
        learnt: Folders OUT/scenes/NAME, or OUT for all of its scenes.
        scenes: The folder of scenes that they were learnt from.
        output_dir: The runs are NAME/igae-triplanes/TIMESTAMP in it.
        timestamp: The last part of a run's folder; by default the time.
    """
    for folder in find_learnt(learnt):
        log(f"ns-viewer --load-config {export_scene(folder, scenes, output_dir, timestamp)}")


def export_scene(learnt_dir: Path, data: Path, output_dir: Path, timestamp: str | None = None) -> Path:
    """Write the run of one scene, as `export_scenes` does; `data` may be the scene's own folder of views.

    Returns:
        The run's `config.yml`.

    Raises:
        InputError: the scene cannot be read or has no latents, or the run exists already.
    """
    state = read_checkpoint(learnt_dir / SCENE_FILE, "pass a folder OUT/scenes/NAME of `igae-scenes`")
    basis = SharedBasis.load(shared_of(learnt_dir, state))
    if basis.config.space == "rgb":
        raise InputError(f"scene {learnt_dir} is one of colours (space: rgb); export scenes of a latent space")
    learnt = load_scene(learnt_dir, basis)
    data = views_of(learnt.name, data).resolve()
    splits = read_splits(basis.config, data, basis.background)
    return write_run(learnt, basis, splits, data, output_dir, timestamp, steps_of(learnt_dir / RESULT_FILE))


def write_run(
    learnt: LearntScene,
    basis: SharedBasis,
    splits: dict[str, DataparserOutputs],
    data: Path,
    output_dir: Path,
    timestamp: str | None = None,
    steps: tuple[int, int] | None = None,
) -> Path:
    """Write a scene as the run NAME/igae-triplanes/TIMESTAMP in `output_dir`.

    Args:
        learnt: the scene.
        basis: what it came from.
        splits: cameras and photos of `train`, `val` and `test`.
        data: the dataset's folder.
        output_dir: of runs.
        timestamp: by default the time.
        steps: taken in latent supervision and in RGB alignment; None: those of the method's settings.

    Returns:
        The run's `config.yml`.

    Raises:
        InputError: the run exists already.
    """
    autoencoder = Autoencoder(learnt.model.autoencoder.module)
    timestamp = timestamp or datetime.now().strftime("%Y-%m-%d_%H%M%S")
    config = run_config(learnt, basis, steps, data, output_dir, timestamp)
    config.pipeline.autoencoder.architecture = autoencoder.architecture
    step, run = config.pipeline.schedule().total_steps - 1, config.get_base_dir()
    if run.exists():
        raise InputError(f"{run} exists already; choose another --timestamp")
    run.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, under a hidden name: a process that dies leaves nothing that passes for a run.
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=f".{run.name}.") as folder:
        new = Path(folder) / run.name
        models = new / config.relative_model_dir
        models.mkdir(parents=True)
        content: dict[str, Any] = {"optimizers": {}, "schedulers": {}, "scalers": {}}
        content |= {"step": step, "pipeline": pipeline_state(learnt, config, autoencoder, splits["train"])}
        torch.save(content, models / f"step-{step:09d}.ckpt")
        save_scene_record(new / RECORD_FILE, data, splits)
        splits["train"].save_dataparser_transform(new / "dataparser_transforms.json")
        (new / "config.yml").write_text(yaml.dump(config), encoding="utf-8")
        os.replace(new, run)
    return run / "config.yml"


def steps_of(result: Path) -> tuple[int, int] | None:
    """Steps that a scene took in each phase, of its `result.json`."""
    if not result.exists():
        return None
    numbers = json.loads(result.read_text(encoding="utf-8"))
    first, second = (max(1, int(numbers.get(phase, {}).get("steps", 1))) for phase in PHASES.values())
    return first, second


def run_config(
    learnt: LearntScene,
    basis: SharedBasis,
    steps: tuple[int, int] | None,
    data: Path,
    output_dir: Path,
    timestamp: str,
) -> Any:
    """The settings with which `ns-train igae-triplanes` would have come to this scene, as near as can be said."""
    config: Any = deepcopy(method_configs.igae_triplanes.config)
    config.output_dir, config.experiment_name, config.timestamp = output_dir, learnt.name, timestamp
    config.data = data
    pipeline, model, triplanes = config.pipeline, config.pipeline.model, basis.config.triplanes
    pipeline.autoencoder.name_or_path = basis.autoencoder_source
    pipeline.latent_normalization = basis.config.latent_normalization
    if steps is not None:
        pipeline.latent_supervision_steps, pipeline.rgb_alignment_steps = steps
    record = config.get_base_dir() / RECORD_FILE
    pipeline.datamanager.data = data
    pipeline.datamanager.dataparser = SceneRecordConfig(data=data, record=record)
    pipeline.datamanager.scene_record = record
    for name in ("resolution", "features", "hidden", "half_extent", "samples", "importance_samples"):
        setattr(model, name, getattr(triplanes, name))
    model.latent_channels = basis.latent_channels
    return config


def read_splits(config: ManyScenesConfig, data: Path, background: Sequence[float]) -> dict[str, DataparserOutputs]:
    """The cameras and photos of each split, as the scene was learnt and measured."""
    size, extent = config.data.view_size, config.triplanes.half_extent
    found = {
        "train": read_scene(data, "train", size, config.data.max_views),
        "test": read_scene(data, HELD_OUT, size),
    }
    has_val = (data / "transforms_val.json").is_file() and not is_srn_scene(data)
    found["val"] = read_scene(data, "val", size) if has_val else found["test"]
    splits = {}
    for split, scene in found.items():
        fx, fy, cx, cy = torch.from_numpy(scene.intrinsics).float()[..., None].unbind(1)
        poses = torch.from_numpy(scene.poses).float()
        splits[split] = DataparserOutputs(
            image_filenames=[data / file for file in scene.files],
            cameras=Cameras(poses, fx, fy, cx, cy, width=size, height=size),
            alpha_color=torch.tensor(background),
            scene_box=SceneBox(aabb=torch.tensor([[-extent] * 3, [extent] * 3])),
        )
    return splits


def pipeline_state(learnt: LearntScene, config: Any, autoencoder: Autoencoder, train: DataparserOutputs) -> Any:
    """What a trained `LatentPipeline` would have in its checkpoint."""
    scene = config.pipeline.model.setup(scene_box=train.scene_box, num_train_data=len(train.image_filenames))
    with torch.no_grad():
        scene.planes.copy_(learnt.planes)
    scene.renderer.load_state_dict(learnt.model.renderer.state_dict())
    model = DecodedScene(  # type: ignore[abstract]  # Nerfstudio's losses and metrics are the pipeline's
        scene=scene,
        decoder=autoencoder.make_decoder(),
        normalizer=learnt.model.normalizer,
        architecture=autoencoder.architecture,
        downscale=autoencoder.downscale,
    )
    model.preview.load_state_dict(learnt.model.preview.state_dict())
    model.set_training_cameras(train.cameras)
    return {f"_model.{name}": value for name, value in model.cpu().state_dict().items()}


def find_learnt(folders: Sequence[Path]) -> list[Path]:
    """The folders of learnt scenes among these or in their `scenes/`.

    Raises:
        InputError: one holds none, or two scenes have one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        scenes = [path.parent for path in sorted((folder / "scenes").glob(f"*/{SCENE_FILE}"))]
        scenes = [folder] if (folder / SCENE_FILE).is_file() else scenes
        if not scenes:
            raise InputError(
                f"{folder} holds no learnt scene; pass the --output-dir of igae-scenes, or OUT/scenes/NAME"
            )
        for scene in scenes:
            if scene.name in found:
                raise InputError(f"two scenes have the name '{scene.name}': {found[scene.name]} and {scene}; pass one")
            found[scene.name] = scene
    return list(found.values())


def views_of(name: str, data: Path) -> Path:
    """The folder of a scene's views: `data` itself, or the one of this name in it.

    Raises:
        InputError: neither holds views.
    """
    for folder in (data / name, data):
        if (folder / "transforms_train.json").is_file() or is_srn_scene(folder):
            return folder
    raise InputError(f"the views of scene {name} are not in {data}; pass the folder of scenes that it was learnt from")
