"""Colour rays through photo pixels, and several rays through a latent pixel: where they go, and what they train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LATENT_METHODS, latent_config, write_blender_scene
from room import colours

from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.latent_split import LatentSplit, Photos
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline, of_latent_pixels

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


@pytest.mark.parametrize("method", LATENT_METHODS)
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


# Several rays through a latent pixel -------------------------------------------------------------------------


@pytest.mark.parametrize("each", [4, 9, 16])
@pytest.mark.parametrize("name", LENSES)
def test_rays_of_a_latent_pixel_are_spread_over_its_square(name: str, each: int, tmp_path: Path) -> None:
    """In the middle of each cell, through the camera's own lens: they see what the photo shows there."""
    dataset = PhotoDataset(outputs(tmp_path, [name]))
    (one, _), (many, batch) = (split_of(dataset, rays_per_pixel=k).images([0], "cpu") for k in (1, each))
    assert many.shape == (*one.shape, each) and batch["latent"].shape == (*one.shape, 1)
    side, (picture, mask) = int(each**0.5), dataset.photo_and_mask(0)
    mask = np.ones(picture.shape[:2], bool) if mask is None else mask
    shown = torch.from_numpy(np.dstack([picture, 255 * mask])).float().permute(2, 0, 1)[None]
    height, width = (8 * length for length in one.shape[1:])
    rows, columns = ((torch.arange(n // 8 * side) + 0.5) * 8 / side for n in (height, width))
    y, x = torch.meshgrid(2 * rows / picture.shape[0] - 1, 2 * columns / picture.shape[1] - 1, indexing="ij")
    shown = F.grid_sample(shown, torch.stack([x, y], dim=-1)[None], align_corners=False)[0]  # 0 outside of the photo
    seen = (
        torch.from_numpy(room_of(many)[0]).unflatten(2, (side, side)).permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
    )
    valid = shown[3] == 255
    assert float(valid.float().mean()) > 0.4
    assert float((shown[:3] - seen).abs()[:, valid].mean()) < 1.5  # walls meet in edges between pixels


@pytest.mark.parametrize("kind", ["random", "patches"])
def test_rays_of_random_latent_pixels_and_patches(kind: str, tmp_path: Path) -> None:
    dataset = PhotoDataset(outputs(tmp_path, LENSES[1:3]))
    draw = {
        "random": lambda split: split.random_rays(40, torch.Generator().manual_seed(0)),
        "patches": lambda split: split.patches([1], 3, 1, torch.Generator().manual_seed(0), "cpu"),
    }[kind]
    whole = [split_of(dataset, rays_per_pixel=4).images([number], "cpu") for number in (0, 1)]
    known = torch.cat([rays.directions.flatten(0, 2) for rays, _ in whole])
    rays, batch = draw(split_of(dataset, rays_per_pixel=4))
    assert torch.equal(rays.directions, known[batch["latent"][..., 0].long()])


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_latents_are_means_over_rays_in_training_and_renders(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    options = {"colour_head": True, "rays_per_latent_pixel": 4, "colour_rays": 5}
    pipeline = build(method, blender_scene, autoencoder_dir, tmp_path, **options)
    for step in (0, 4):
        rays, batch = pipeline.datamanager.next_train(step)
        assert rays.size == 4 * 72 + (5 if step == 0 else 0) and batch["latent"].shape == (2, 6, 6, 6)
        outputs, losses, _ = pipeline._losses(step, rays, batch)
        assert outputs["latent"].shape == (72, 9)
        sum(losses.values()).backward()
    model, camera = pipeline.eval().model, pipeline.datamanager.train_dataset.cameras[0:1]
    torch.manual_seed(0)
    view = model.render(camera)
    split = pipeline.datamanager.train_split
    with torch.no_grad():
        torch.manual_seed(0)
        rendered = model.scene(split.images([0], "cpu")[0].flatten())["latent"].view(6, 6, 4, 9).mean(dim=2)
    torch.testing.assert_close(view.latent, rendered[..., :6], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.decode(view.latent[None])[0].clamp(0, 1), view.rgb, atol=1e-5, rtol=1e-4)
    assert view.rgb.shape == view.colour.shape == (48, 48, 3) and view.depth.shape == (48, 48, 1)


def test_renders_stay_in_chunks(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    pipeline = build("tensorf", blender_scene, autoencoder_dir, tmp_path, rays_per_latent_pixel=16).eval()
    model, sizes = pipeline.model, []
    camera = pipeline.datamanager.train_dataset.cameras[0:1]
    whole = model.render(camera)
    model.scene.config.eval_num_rays_per_chunk = 100
    outputs_of = model.scene.get_outputs
    model.scene.get_outputs = lambda rays: sizes.append(len(rays)) or outputs_of(rays)
    view = model.render(camera)
    assert sizes == [100] * 5 + [76]
    torch.testing.assert_close(view.rgb, whole.rgb)


def test_rays_of_a_picture_are_rendered_with_as_many(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """What the viewer asks for, a picture of another size, and what exporters ask for, rays."""
    pipeline = build("tensorf", blender_scene, autoencoder_dir, tmp_path, rays_per_latent_pixel=9).eval()
    model, camera = pipeline.model, pipeline.datamanager.train_dataset.cameras[0:1]
    by_camera = model.get_outputs_for_camera(camera)
    by_rays = model(camera.generate_rays(camera_indices=0, keep_shape=True))
    assert by_camera["rgb"].shape == (48, 48, 3)
    assert float((by_camera["rgb"] - by_rays["rgb"]).abs().max()) < 2e-3


def test_one_ray_is_the_paper_and_a_checkpoint_fits_any_number(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    one = build("tensorf", blender_scene, autoencoder_dir, tmp_path)
    four = build("tensorf", blender_scene, autoencoder_dir, tmp_path, rays_per_latent_pixel=4)
    assert set(one.state_dict()) == set(four.state_dict())
    four.load_pipeline(one.state_dict(), 1)
    rays, _ = one.datamanager.next_train(0)
    assert rays.shape == (2, 6, 6)
    value = torch.randn(5, 3)
    assert torch.equal(of_latent_pixels({"latent": value}, 5, 1)["latent"], value)


@pytest.mark.parametrize("each", [0, -4, 2, 8, 25])
def test_numbers_of_rays_that_are_no_grid(
    each: int, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--pipeline.rays-per-latent-pixel is {each}; choose 1, 4, 9 or 16"):
        build("tensorf", blender_scene, autoencoder_dir, tmp_path, rays_per_latent_pixel=each)
