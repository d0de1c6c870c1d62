"""A learnt scene as an ordinary run of Nerfstudio: what `ns-viewer`, `ns-render` and `ns-eval` open.

The run's method is `igae-triplanes`. Its checkpoint holds the scene's fused planes (own and shared part together), the
renderer, the normalisation and the scene's decoder, so that it needs neither the shared part nor the autoencoder. The
one module here that imports Nerfstudio.
"""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from igae_nerfstudio.data.scene_record import SceneRecordConfig, save_scene_record
from igae_nerfstudio.engine.trainer import LatentTrainerConfig
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.exploit import HELD_OUT, PHASES
from igae_nerfstudio.joint.results import (
    RESULT_FILE,
    SCENE_FILE,
    LearntScene,
    SharedPart,
    load_scene,
    read_checkpoint,
)
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene
from igae_nerfstudio.scenes.scene_views import is_srn_scene, read_scene

RECORD_FILE = "scene.pt"
"""In the run's folder: the cameras, as every latent run keeps them (`data/scene_record.py`)."""


def export_scene(learnt_dir: Path, data: Path, output_dir: Path, timestamp: Optional[str] = None) -> Path:
    """Write the run of a learnt scene, whole or not at all.

    Args:
        learnt_dir: `OUT/scenes/NAME` of `igae-scenes train` or `exploit`.
        data: the folder of the scene's views, or one in which it has a folder of its name.
        output_dir: of Nerfstudio; the run is `NAME/igae-triplanes/TIMESTAMP` in it.
        timestamp: the last part; None: now.

    Returns:
        The run's `config.yml`.

    Raises:
        InputError: the scene cannot be read or has no latents, or the run cannot be written.
    """
    state = read_checkpoint(learnt_dir / SCENE_FILE, "pass a folder OUT/scenes/NAME of `igae-scenes`")
    shared = SharedPart.load(Path(os.path.normpath(learnt_dir.resolve() / state["shared"])))
    learnt = load_scene(learnt_dir, shared=shared)
    if learnt.autoencoder is None:
        raise InputError(
            f"scene {learnt_dir} is one of colours (space: rgb), and igae-triplanes renders latents; export those that "
            "were learnt in a latent space"
        )
    data = views_of(learnt.name, data).resolve()
    splits = read_splits(learnt, data)
    timestamp = timestamp or datetime.now().strftime("%Y-%m-%d_%H%M%S")
    config: Any = run_config(learnt, learnt_dir, data, output_dir, timestamp)
    config.pipeline.autoencoder.name_or_path = str((shared.folder / "autoencoder").resolve())
    step = config.pipeline.schedule().total_steps - 1
    run = config.get_base_dir()
    if run.exists():
        raise InputError(f"{run} exists already; choose another --timestamp")
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, under a hidden name: a process that dies leaves nothing that passes for a run.
        with tempfile.TemporaryDirectory(dir=run.parent, prefix=f".{run.name}.") as folder:
            new = Path(folder) / run.name
            models = new / config.relative_model_dir
            models.mkdir(parents=True)
            state = {"step": step, "pipeline": pipeline_state(learnt, config, splits["train"])}
            nothing: Dict[str, Any] = {"optimizers": {}, "schedulers": {}, "scalers": {}}
            torch.save({**state, **nothing}, models / f"step-{step:09d}.ckpt")
            save_scene_record(new / RECORD_FILE, data, splits)
            splits["train"].save_dataparser_transform(new / "dataparser_transforms.json")
            (new / "config.yml").write_text(yaml.dump(config), encoding="utf-8")
            os.replace(new, run)
    except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the run of scene {learnt.name} cannot be written to {run} ({reason}); nothing of it is left: free some "
            "space, or choose another --output-dir"
        ) from error
    return run / "config.yml"


def run_config(
    learnt: LearntScene, learnt_dir: Path, data: Path, output_dir: Path, timestamp: str
) -> LatentTrainerConfig:
    """The settings with which `ns-train igae-triplanes` would have come to this scene, as near as can be said."""
    from igae_nerfstudio import method_configs

    assert learnt.autoencoder is not None
    config: Any = deepcopy(method_configs.igae_triplanes.config)
    config.output_dir, config.experiment_name, config.timestamp = output_dir, learnt.name, timestamp
    config.data = data

    pipeline = config.pipeline
    pipeline.autoencoder.architecture = learnt.autoencoder.architecture
    pipeline.latent_normalization = learnt.config.latent_normalization
    result = learnt_dir / RESULT_FILE
    if result.exists():
        figures = json.loads(result.read_text(encoding="utf-8"))
        steps = [max(1, int(figures.get(phase, {}).get("steps", 1))) for phase in PHASES.values()]
        pipeline.latent_supervision_steps, pipeline.rgb_alignment_steps = steps

    record = config.get_base_dir() / RECORD_FILE
    pipeline.datamanager.data = data
    pipeline.datamanager.dataparser = SceneRecordConfig(data=data, record=record)
    pipeline.datamanager.scene_record = record

    triplanes, model = learnt.renderer.config, pipeline.model
    for name in ("resolution", "features", "hidden", "half_extent", "samples", "importance_samples"):
        setattr(model, name, getattr(triplanes, name))
    model.latent_channels = learnt.renderer.latent_channels
    return config


def read_splits(learnt: LearntScene, data: Path) -> Dict[str, DataparserOutputs]:
    """The cameras and photos of each split, as the scene was learnt and measured."""
    settings = learnt.config.data
    found = {
        "train": read_scene(data, "train", settings.view_size, settings.max_views),
        "test": read_scene(data, HELD_OUT, settings.view_size),
    }
    has_val = (data / "transforms_val.json").is_file() and not is_srn_scene(data)
    found["val"] = read_scene(data, "val", settings.view_size) if has_val else found["test"]
    extent = learnt.renderer.config.half_extent
    splits = {}
    for split, scene in found.items():
        fx, fy, cx, cy = torch.from_numpy(scene.intrinsics).float()[..., None].unbind(1)
        poses, size = torch.from_numpy(scene.poses).float(), settings.view_size
        splits[split] = DataparserOutputs(
            image_filenames=[data / file for file in scene.files],
            cameras=Cameras(poses, fx, fy, cx, cy, width=size, height=size),
            alpha_color=torch.tensor(learnt.background),
            scene_box=SceneBox(aabb=torch.tensor([[-extent] * 3, [extent] * 3])),
        )
    return splits


def pipeline_state(learnt: LearntScene, config: LatentTrainerConfig, train: DataparserOutputs) -> Dict[str, Any]:
    """What a trained `LatentPipeline` would have in its checkpoint."""
    assert learnt.autoencoder is not None
    scene = config.pipeline.model.setup(scene_box=train.scene_box, num_train_data=len(train.image_filenames))
    with torch.no_grad():
        scene.planes.copy_(learnt.planes)
    scene.renderer.load_state_dict(learnt.renderer.state_dict())
    model = DecodedScene(
        scene=scene,
        decoder=learnt.autoencoder.make_decoder(),
        normalizer=learnt.normalizer,
        architecture=learnt.autoencoder.architecture,
        downscale=learnt.downscale,
    )
    model.preview.load_state_dict(learnt.preview.state_dict())
    model.set_training_cameras(train.cameras)
    state = model.cpu().state_dict()
    return {f"_model.{name}": value for name, value in state.items()}


def find_learnt(folders: Sequence[Path]) -> List[Path]:
    """The folders of learnt scenes among these or in their `scenes/`, by name.

    Raises:
        InputError: one holds none, or two scenes have one name.
    """
    found: Dict[str, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / SCENE_FILE).is_file() else sorted((folder / "scenes").glob(f"*/{SCENE_FILE}"))
        if not inside:
            raise InputError(
                f"{folder} holds no learnt scene; pass the --output-dir of igae-scenes, or OUT/scenes/NAME"
            )
        for path in inside:
            scene = path if path.is_dir() else path.parent
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
