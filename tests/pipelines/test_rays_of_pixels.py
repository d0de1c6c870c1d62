"""Colour rays through photo pixels: where they go, and what they train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LATENT_METHODS, latent_config, write_blender_scene
from room import colours

from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.latent_split import LatentSplit, Photos
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline

sys.path.append(str(Path(__file__).parents[1] / "data"))
from test_kinds_of_photos import pipeline_of, write_capture
from test_room import outputs

LENSES = ["pinhole, no multiples of 8", "k1 to k4 p1 p2", "fisheye, 190 degrees", "equirectangular"]


def build(method: str, scene: Path, autoencoder: Path, out: Path, **options: Any) -> LatentPipeline:
    torch.manual_seed(0)
    steps = {"latent_supervision_steps": 3, "rgb_alignment_steps": 3}
    return latent_config(method, scene, autoencoder, out, **steps, **options).pipeline.setup(device="cpu")


def split_of(dataset: PhotoDataset, **options: Any) -> LatentSplit:
    cameras = latent_cameras(dataset.cameras, 8)
    count = int((cameras.height * cameras.width).sum())
    photos = Photos(dataset.photo_and_mask, len(dataset), 2**20)
    return LatentSplit(photos, torch.arange(count)[:, None].float(), cameras, 8, **options)


def room_of(rays) -> np.ndarray:
    """What rays see of the room, in 255ths."""
    return 255 * colours(rays.origins.double().numpy(), rays.directions.double().numpy())


# Colour rays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LENSES, "orthophoto"])
def test_colour_rays_see_what_their_pixels_show(name: str, tmp_path: Path) -> None:
    """At the photo's own resolution, through its lens, and only where it is a target."""
    dataset = PhotoDataset(outputs(tmp_path, [name]))
    split = split_of(dataset)
    rays, colour = split.photo_pixels([0], 3000, torch.Generator().manual_seed(0))
    assert colour.shape == (3000, 3) and 0 <= float(colour.min()) and float(colour.max()) <= 1
    assert np.abs(255 * colour.numpy() - room_of(rays)).mean() < 0.6  # the photo's rounding makes 0.25
    picture, mask = dataset.photo_and_mask(0)
    camera = dataset.cameras[0:1]
    own = camera.generate_rays(camera_indices=0, keep_shape=True).directions.nan_to_num(2).flatten(0, 1)
    nearest = torch.cdist(rays.directions[:200], own).min(dim=1)
    if name != "orthophoto":  # all of its rays are parallel
        assert float(nearest.values.max()) < 1e-3  # the cdist of float32
        assert mask is None or mask.reshape(-1)[nearest.indices].all()


def test_colour_rays_of_masks_and_several_photos(tmp_path: Path) -> None:
    dataset = PhotoDataset(outputs(tmp_path, [LENSES[0], LENSES[2]]))
    split = split_of(dataset)
    rays, colour = split.photo_pixels([1, 0], 101, torch.Generator().manual_seed(0))
    assert torch.bincount(rays.camera_indices[:, 0]).tolist() == [50, 51]  # as many of each
    assert np.abs(255 * colour.numpy() - room_of(rays)).mean() < 0.6
    again = split.photo_pixels([1, 0], 101, torch.Generator().manual_seed(0))
    assert torch.equal(again[0].directions, rays.directions) and torch.equal(again[1], colour)
    read = split.photos.read

    def all_masked(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        photo, mask = read(index)
        return photo, (np.zeros(photo.shape[:2], bool) if index == 1 else mask)

    split.photos = Photos(all_masked, 2, 0)
    rays, colour = split.photo_pixels([1, 0], 100, torch.Generator())
    assert rays.camera_indices.unique().tolist() == [0] and len(colour) == 50
    assert len(split.photo_pixels([1], 100, torch.Generator())[1]) == 0


@pytest.mark.parametrize("options", [{}, {"random_latent_rays": 50, "alignment_patch_size": 2}], ids=["whole", "parts"])
def test_what_is_masked_sends_no_colour_rays(options: dict, tmp_path: Path, autoencoder_dir: Path) -> None:
    found = []
    for hidden in (0, 200):
        scene = write_capture(tmp_path / str(hidden), [(64, 48)], hidden)
        pipeline = pipeline_of(scene, autoencoder_dir, tmp_path, **options)
        config = pipeline.config
        config.colour_head, config.colour_rays = True, 300
        torch.manual_seed(0)
        pipeline = config.setup(device="cpu")
        torch.manual_seed(1)
        found.append([pipeline.get_train_loss_dict(step)[1] for step in (0, 5)])
    for step, (first, second) in enumerate(zip(*found)):
        assert ("pixel_loss" in first) == (step == 0)
        assert all(torch.equal(first[name], second[name]) for name in first)
    pipeline.datamanager.train_split.photos._kept.clear()
    pipeline.datamanager.train_split.photos.read = lambda i: (np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), bool))
    rays, batch = pipeline.datamanager.next_train(0)  # nothing is a target: no colour rays, and no loss of none
    assert "pixel_colour" not in batch and "pixel_loss" not in pipeline._losses(0, rays, batch)[1]


@pytest.mark.parametrize("method", [method for method in LATENT_METHODS if method != "splatfacto"])
def test_colour_rays_train_density_and_colours_alone(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """The loss by hand; no gradient to the latents of these rays. RGB alignment has none."""
    pipeline = build(method, blender_scene, autoencoder_dir, tmp_path, colour_head=True, colour_rays=400)
    pipeline.config.colour_weight = 3.0
    rays, batch = pipeline.datamanager.next_train(0)
    assert rays.shape == (2 * 6 * 6 + 400,) and batch["latent"].shape == (2, 6, 6, 6)
    kept: dict[str, Any] = {}
    scene = pipeline.model.scene
    if method == "instant_ngp":
        scene.occupancy_grid.binaries.fill_(True)  # as after its first steps
    scene.register_forward_hook(lambda *call: kept.update(call[2]))
    outputs, losses, metrics = pipeline._losses(0, rays, batch)
    assert outputs["latent"].shape == (72, 9)
    rendered = kept["latent"]
    rendered.retain_grad()
    target = pipeline.model.colour_normalizer.normalize(batch["pixel_colour"])
    torch.testing.assert_close(losses["pixel_loss"], 3.0 * (rendered[72:, 6:] - target).square().sum() / (400 * 9))
    if "latent_psnr" in metrics:  # of the latent pixels
        error = (rendered[:72] - pipeline.model.targets(batch["latent"], batch["colour"]).flatten(0, 2)).square()
        torch.testing.assert_close(metrics["latent_psnr"], -10 * error.mean().log10())
    losses["pixel_loss"].backward()
    assert not bool(rendered.grad[:72].any()) and not bool(rendered.grad[:, :6].any())
    assert bool(rendered.grad[72:, 6:].any())
    part = {"vanilla_nerf": "field_fine.field_output_density", "tensorf": "density", "kplanes": "sigma_net"}
    named = part.get(method, "planes" if method == "triplanes" else "mlp_base")
    grads = [p.grad for name, p in scene.named_parameters() if named in name and p.grad is not None]
    assert any(bool(grad.any()) for grad in grads)
    assert pipeline.datamanager.next_train(4)[0].shape == (2, 6, 6)
    assert "pixel_loss" not in pipeline.get_train_loss_dict(4)[1]


def test_colour_rays_follow_from_the_step(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    """A resumed run draws the pixels of an uninterrupted one; another process and another step draw others."""
    options = {"colour_head": True, "colour_rays": 30}
    whole, resumed, other = (build("tensorf", blender_scene, autoencoder_dir, tmp_path, **options) for _ in range(3))
    for step in range(4):
        whole.datamanager.next_train(step)
    other.datamanager.rank = 1

    def drawn(pipeline: LatentPipeline, step: int) -> torch.Tensor:
        rays, batch = pipeline.datamanager.next_train(step)
        return torch.cat([rays.directions[-30:], batch["pixel_colour"]], dim=-1)

    for step in (1, 2):
        assert torch.equal(drawn(whole, step), drawn(resumed, step))
    assert not torch.equal(drawn(whole, 1), drawn(whole, 2))
    assert not torch.equal(other.datamanager._generator(1).get_state(), whole.datamanager._generator(1).get_state())


def test_a_step_reads_no_more_photos_than_it_has_images(autoencoder_dir: Path, tmp_path: Path) -> None:
    scene = write_blender_scene(tmp_path / "large", size=(200, 264), counts=(12, 1, 1))
    config = latent_config("tensorf", scene, autoencoder_dir, tmp_path, colour_head=True, colour_rays=1024)
    config.pipeline.datamanager.photos_in_memory = 0.0
    pipeline = config.pipeline.setup(device="cpu")
    photos, read = pipeline.datamanager.train_split.photos, []
    photos.read = lambda index, of=photos.read: read.append(index) or of(index)
    for step in range(3):
        rays, batch = pipeline.datamanager.next_train(step)
        assert rays.shape == (1024 + 1024,) and batch["pixel_colour"].shape == (1024, 3)
        assert len(rays.camera_indices[1024:].unique()) == 2
    photos._threads.shutdown()
    assert len(read) == 2 * 4  # of three steps, and ahead for the fourth


def test_colour_rays_need_the_colour_head(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    for options in ({"colour_rays": 10}, {"colour_rays": -1, "colour_head": True}):
        with pytest.raises(InputError, match="--pipeline.colour-rays is .*; it must be 0 or, with .*colour-head True"):
            build("tensorf", blender_scene, autoencoder_dir, tmp_path, **options)
