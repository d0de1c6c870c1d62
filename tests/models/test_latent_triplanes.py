"""Tri-Planes as a Nerfstudio model: the renders of the IG-AE flow, the cube, and what a checkpoint says of both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import latent_config, write_nerfstudio_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models.triplanes import radius_seen
from igae_nerfstudio.scenes.scene_views import SceneViews


def make_pipeline(scene: Path, autoencoder: Path, folder: Path, **model):
    config = latent_config("triplanes", scene, autoencoder, folder)
    for name, value in model.items():
        setattr(config.pipeline.model, name, value)
    return config.pipeline.setup(device="cpu")


def test_renders_are_those_of_the_igae_flow(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    """The same planes and renderer, once through Nerfstudio's cameras and once through those of `SceneViews`."""
    model = make_pipeline(blender_scene, autoencoder_dir, tmp_path).eval().model
    model.scene.planes.data.mul_(30)
    views = SceneViews.open(blender_scene.parent, 48, tmp_path / "cache", split="val")
    origins, directions = (rays.view(2, -1, 3) for rays in views.cameras([0, 0], [0, 1]).latent_rays(8))
    planes = model.scene.planes[None].expand(2, -1, -1, -1, -1)
    expected = model.scene.renderer(planes, origins, directions).latents.view(2, 6, 6, 6)
    pipeline_cameras = make_pipeline(blender_scene, autoencoder_dir, tmp_path).datamanager.eval_dataset.cameras
    for view in range(2):
        found = model.render(pipeline_cameras[view : view + 1]).latent
        torch.testing.assert_close(found, expected[view], atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.01


def test_crop_of_the_viewer(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    from nerfstudio.data.scene_box import OrientedBox

    pipeline = make_pipeline(blender_scene, autoencoder_dir, tmp_path)
    model, camera = pipeline.eval().model, pipeline.datamanager.eval_dataset.cameras[0:1]
    away = OrientedBox.from_params((50.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    all_around = OrientedBox.from_params((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (8.0, 8.0, 8.0))
    assert float(model.render(camera, away).accumulation.max()) == 0
    torch.testing.assert_close(model.render(camera, all_around).latent, model.render(camera).latent)


# The cube


def camera(position: tuple[float, float, float], aside: float = 0.0) -> Cameras:
    """90 degrees wide and high, looking along -z, or turned aside by some radians."""
    pose = torch.eye(3, 4)
    cos, sin = math.cos(aside), math.sin(aside)
    pose[:, :3] = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    pose[:, 3] = torch.tensor(position)
    return Cameras(pose[None], 10.0, 10.0, 10.0, 10.0, width=20, height=20)


def test_the_ball_that_cameras_see() -> None:
    corner = math.sin(math.atan(math.sqrt(2)))
    assert radius_seen(camera((0, 0, 2.0))) == pytest.approx(2 * corner)
    assert radius_seen(camera((0, 0, 2.0), aside=0.01)) == pytest.approx(2 * corner, rel=1e-5)
    assert radius_seen(camera((0, 0, 2.0), aside=0.1)) is None
    assert radius_seen(camera((0, 0, -2.0))) is None  # looks away


def test_the_cube_of_rendered_objects_of_captures_and_as_asked_for(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    angle = math.atan(math.sqrt(2) * math.tan(0.69 / 2))
    rendered = make_pipeline(blender_scene, autoencoder_dir, tmp_path).model.scene
    assert rendered.renderer.config.half_extent == pytest.approx(2.1 * math.sin(angle), rel=1e-4)
    asked = make_pipeline(blender_scene, autoencoder_dir, tmp_path, half_extent=0.5).model.scene
    assert asked.renderer.config.half_extent == 0.5
    with pytest.raises(InputError, match="half-extent is -1"):
        make_pipeline(blender_scene, autoencoder_dir, tmp_path, half_extent=-1.0)

    photos = [torch.full((48, 64, 3), 90 + i, dtype=torch.uint8).numpy() for i in range(12)]
    capture = write_nerfstudio_scene(tmp_path / "capture", photos)
    config = latent_config("triplanes", capture, autoencoder_dir, tmp_path)
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=capture)
    assert config.pipeline.setup(device="cpu").model.scene.renderer.config.half_extent == 1.0


def test_a_checkpoint_carries_the_cube(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    saved = make_pipeline(blender_scene, autoencoder_dir, tmp_path, half_extent=0.6).state_dict()
    pipeline = make_pipeline(blender_scene, autoencoder_dir, tmp_path)
    pipeline.load_pipeline(saved, 3)
    assert pipeline.model.scene.renderer.config.half_extent == 0.6


@pytest.mark.parametrize("name, value", [("resolution", 16), ("features", 5), ("hidden", 9)])
def test_a_checkpoint_of_other_planes_is_refused(
    name: str, value: int, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    saved = make_pipeline(blender_scene, autoencoder_dir, tmp_path, **{name: value}).state_dict()
    pipeline = make_pipeline(blender_scene, autoencoder_dir, tmp_path)
    with pytest.raises(InputError, match=rf"{name} {value}.*set --pipeline.model.{name} {value}"):
        pipeline.load_pipeline(saved, 3)


def test_planes_learn_a_scene(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    """Sixty steps bring the latent error of training views below half of what the background alone leaves."""
    torch.manual_seed(0)
    pipeline = make_pipeline(blender_scene, autoencoder_dir, tmp_path, samples=16, importance_samples=8)
    pipeline.train()
    groups = pipeline.get_param_groups()
    optimizer = torch.optim.Adam([*groups["planes"], *groups["fields"]], lr=2e-2)
    errors, empty = [], []
    for step in range(60):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        errors.append(float(losses["latent_loss"]))
        target = pipeline.model.normalizer.normalize(pipeline.datamanager.next_train(step)[1]["latent"])
        empty.append(float((target - pipeline.model.scene.renderer.composite.background).square().mean()))
    assert sum(errors[-6:]) < 0.5 * sum(empty[-6:]), (sum(errors[-6:]), sum(empty[-6:]))
    assert json.dumps(pipeline.model.scene.get_extra_state())
