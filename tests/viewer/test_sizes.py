"""A decoded picture stays a picture at every size that a viewer asks for."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import DEMO_SCENE, latent_config

from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LatentPipeline:
    """Three photos of the carried scene in the carried autoencoder; the scene renders the first photo's latents."""
    folder = tmp_path_factory.mktemp("sizes")
    for split in ("train", "val", "test"):
        meta = json.loads((DEMO_SCENE / "transforms_train.json").read_text())
        meta["frames"] = meta["frames"][:3]
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
        for frame in meta["frames"]:
            name = Path(frame["file_path"]).with_suffix(".png")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DEMO_SCENE / name, folder / name)
    config = latent_config("vanilla_nerf", folder, Path("bundled"), folder).pipeline
    config.datamanager.latent_cache_dir = folder / "latents"
    pipeline = config.setup(device="cpu").eval()
    split, model = pipeline.datamanager.train_split, pipeline.model
    latents = model.normalizer.normalize(split.images([0], "cpu")[1]["latent"]).permute(0, 3, 1, 2)
    camera = pipeline.datamanager.train_dataset.cameras[0]
    pose, focal, side = camera.camera_to_worlds, float(camera.fx), float(camera.width)

    def encoded_photo_along(rays) -> dict[str, torch.Tensor]:
        x, y, z = (rays.directions @ pose[:, :3]).unbind(-1)
        grid = torch.stack([-x / z, y / z], dim=-1)[None] * focal * 2 / side
        latent = F.grid_sample(latents, grid, mode="bilinear", padding_mode="border", align_corners=False)
        ones = torch.ones_like(x)[..., None]
        return {"latent": latent[0].permute(1, 2, 0), "depth": ones, "accumulation": ones}

    model.scene.get_outputs_for_camera_ray_bundle = encoded_photo_along
    return pipeline


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean().clamp(min=1e-10)))


def resized(image: torch.Tensor, side: int) -> torch.Tensor:
    """What a picture of another size shows: means over pixels where it is smaller, interpolated where larger."""
    how = {"mode": "bilinear" if side <= len(image) else "bicubic", "antialias": True}
    return F.interpolate(image.permute(2, 0, 1)[None], size=(side, side), **how)[0].permute(1, 2, 0).clamp(0, 1)


@pytest.mark.parametrize("side", [8, 13, 30, 31, 64, 97, 120, 128, 131, 300, 512])
def test_small_and_large_pictures_are_the_same_picture(pipeline: LatentPipeline, side: int) -> None:
    model, dataset = pipeline.model, pipeline.datamanager.train_dataset
    camera, photo = dataset.cameras[0:1], dataset.get_image_float32(0)
    asked = deepcopy(camera)
    asked.rescale_output_resolution(side / 128)
    asked.height[:], asked.width[:] = side, side
    shown = model.get_outputs_for_camera(asked)["rgb"]
    assert shown.shape == (side, side, 3)
    same, real = psnr(shown, resized(model.render(camera).rgb, side)), psnr(shown, resized(photo, side))
    assert same > (32 if side > 12 else 26), f"{same:.1f} dB"  # of few pixels, any two filters make two pictures
    assert real > 27, f"{real:.1f} dB"


def test_coarser_latents_would_be_no_picture(pipeline: LatentPipeline) -> None:
    """Why the size of latent pixels is kept: the same decoder on half as many of them."""
    model, camera = pipeline.model, deepcopy(pipeline.datamanager.train_dataset.cameras[0:1])
    whole = model.render(camera).rgb
    camera.rescale_output_resolution(0.5)
    kept = model.focal_range.clone()
    good = model.render(camera).rgb
    model.focal_range.div_(2)
    coarse = model.render(camera).rgb
    model.focal_range.copy_(kept)
    small = resized(whole, 64)
    assert psnr(good, small) > 32 and psnr(coarse, small) < 25
