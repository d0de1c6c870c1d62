"""Reprojection between views with depth."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, look_at_origin, write_blender_scene

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes.scene_views import ViewCameras

sys.path.insert(0, str(ROOT / "scripts"))
from measure_consistency import DepthViews, latent_surface, read_depth_views, reprojection_error, visible

SIZE, FOCAL = 64, 80.0


@pytest.fixture
def ground() -> DepthViews:
    """Cameras that look at the plane z = 0 from above."""
    poses = [look_at_origin(azimuth, elevation) for azimuth in (0.0, 0.3, 0.6) for elevation in (1.0, 1.2)]
    c2w = torch.tensor(np.stack(poses)[:, :3], dtype=torch.float32)
    intrinsics = torch.tensor([[FOCAL, FOCAL, SIZE / 2, SIZE / 2]]).expand(len(poses), 4)
    cameras = ViewCameras(c2w, intrinsics, SIZE, SIZE)
    origins, directions = cameras.latent_rays(1)
    distance = -origins[..., 2] / directions[..., 2]
    depth = distance * -(directions * c2w[:, None, None, :, 2]).sum(dim=-1)
    return DepthViews(torch.zeros(len(poses), 3, SIZE, SIZE), depth, cameras)


@pytest.mark.parametrize("downscale", [1, 8])
def test_latent_pixels_lie_on_the_surface(ground: DepthViews, downscale: int) -> None:
    points = latent_surface(ground, downscale)
    assert points.shape == (len(ground.depth), (SIZE // downscale) ** 2, 3)
    assert float(points[..., 2].abs().max()) < 5e-3
    ground.depth[:, :, : SIZE // 2] = 0
    assert latent_surface(ground, downscale)[..., 0].isnan().float().mean() == pytest.approx(0.5, abs=0.13)


def test_a_point_is_found_where_the_camera_sees_it(ground: DepthViews) -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -0.5], [50.0, 0.0, 0.0], [math.nan] * 3])
    seen, place = visible(points, ground, 2)
    assert seen.tolist() == [True, False, False, False]  # the second is under the plane, the third outside the picture
    torch.testing.assert_close(place[0], torch.zeros(2), atol=1e-5, rtol=0)


def test_fields_of_space_agree_and_noise_does_not(ground: DepthViews) -> None:
    points = latent_surface(ground, 8).view(-1, 8, 8, 3)
    field = torch.stack([torch.sin(2 * points[..., 0]), torch.cos(3 * points[..., 1])], dim=1)
    assert reprojection_error(field, ground) < 0.02
    noise = torch.randn(field.shape, generator=torch.Generator().manual_seed(0))
    # Looking noise up between pixels smooths it, which brings it nearer to everything.
    assert 0.6 < reprojection_error(noise, ground) < 1.1
    swapped = field[torch.arange(len(field)).roll(1)]
    assert reprojection_error(swapped, ground) > 5 * reprojection_error(field, ground)
    assert math.isnan(reprojection_error(field, ground, max_angle=0.01))


def test_scenes_without_depth_are_named(tmp_path: Path) -> None:
    write_blender_scene(tmp_path / "scene")
    path = tmp_path / "scene" / "transforms_train.json"
    for unit in ({}, {"depth_unit_scale_factor": 1e-4}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **unit}))
        with pytest.raises(InputError, match="no depth.*--depth"):
            read_depth_views(tmp_path / "scene", 32, "train")


def test_the_error_is_one_minus_the_correlation(ground: DepthViews) -> None:
    """Latents that are a field of space plus noise of the same variance in every view: their correlation is a half."""
    generator = torch.Generator().manual_seed(0)
    points = latent_surface(ground, 1).view(-1, SIZE, SIZE, 3)
    field = torch.sin(3 * points[..., :1]).permute(0, 3, 1, 2)
    noise = field.std() * torch.randn(field.shape, generator=generator)
    views = DepthViews(ground.images, ground.depth, ground.cameras)
    # Looking noise up between pixels smooths it to four ninths of its variance: (4/9 + 1) / 2 / (1 + 1).
    assert reprojection_error(field + noise, views) == pytest.approx(13 / 36, abs=0.04)
