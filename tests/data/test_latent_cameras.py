"""A point in space must be seen at the same place by a photo's camera, a latent camera and a resampled render."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import look_at_origin
from nerfstudio.cameras.cameras import Cameras

from igae_nerfstudio.data.latent_cameras import latent_cameras, latent_view, pinhole_camera_of


def camera(width: int = 100, height: int = 75, fx: float = 175.84, fy: float = 170.3, **kwargs) -> Cameras:
    pose = torch.tensor(look_at_origin(0.7, 0.5)[None, :3], dtype=torch.float32)
    return Cameras(pose, fx, fy, kwargs.pop("cx", 47.3), kwargs.pop("cy", 40.9), width=width, height=height, **kwargs)


def project(cameras: Cameras, point: torch.Tensor) -> torch.Tensor:
    """Image coordinates (x, y) of a world point, from the camera's definition alone."""
    pose = cameras.camera_to_worlds[0].double()
    x, y, z = pose[:, :3].T @ (point.double() - pose[:, 3])
    return torch.stack([cameras.fx[0, 0] * x / -z + cameras.cx[0, 0], -cameras.fy[0, 0] * y / -z + cameras.cy[0, 0]])


def test_intrinsics_scale_exactly() -> None:
    small = latent_cameras(camera(), 8)
    assert (small.fx.item(), small.cx.item()) == (
        pytest.approx(175.84 / 8, rel=1e-7),
        pytest.approx(47.3 / 8, rel=1e-6),
    )
    assert (small.height.item(), small.width.item()) == (10, 13)  # 75 / 8 and 100 / 8, rounded up


def test_a_known_point_is_seen_by_both_cameras() -> None:
    photo, point = camera(), torch.tensor([0.11, -0.07, 0.05])
    small = latent_cameras(photo, 8)
    torch.testing.assert_close(project(small, point), project(photo, point) / 8)
    # Rays through the projected coordinates of either camera pass through the point.
    for cameras in (photo, small):
        x, y = project(cameras, point)
        ray = cameras.generate_rays(camera_indices=0, coords=torch.tensor([[y, x]], dtype=torch.float32))
        towards = torch.nn.functional.normalize(point - ray.origins[0], dim=0)
        torch.testing.assert_close(ray.directions[0], towards, atol=1e-6, rtol=0)


def test_the_ray_of_a_latent_pixel_runs_through_the_middle_of_its_square() -> None:
    photo = camera(width=64, height=64)
    rays = photo.generate_rays(camera_indices=0)
    small = latent_cameras(photo, 8).generate_rays(camera_indices=0)
    unnormalised = rays.directions * rays.metadata["directions_norm"]
    middle = unnormalised.view(8, 8, 8, 8, 3).mean(dim=(1, 3))  # the mean of the 8 x 8 pixels' rays
    torch.testing.assert_close(small.directions * small.metadata["directions_norm"], middle, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zoom", [0.5, 2.0, 0.37])
def test_other_sizes_are_rendered_at_the_training_scale_and_resampled(zoom: float) -> None:
    """A picture whose brightness is a known function of the viewing direction stays that function at every size."""
    base = camera(width=128, height=96, cx=64.0, cy=48.0)
    zoomed = camera(
        width=round(128 * zoom),
        height=round(96 * zoom),
        fx=175.84 * zoom,
        fy=170.3 * zoom,
        cx=64 * zoom,
        cy=48 * zoom,
    )

    def brightness(cameras: Cameras) -> torch.Tensor:
        rays = cameras.generate_rays(camera_indices=0)
        local = (rays.directions * rays.metadata["directions_norm"]) @ cameras.camera_to_worlds[0, :, :3]
        return torch.sin(9 * local[..., 0]) + torch.cos(7 * local[..., 1])

    view = latent_view(zoomed, 8, (170.3, 175.84))
    assert view.camera.fx.item() * 8 == pytest.approx(175.84, rel=0.04)  # within the range of training focals
    decoded_camera = latent_cameras(view.camera, 1)
    decoded_camera.rescale_output_resolution(8)
    decoded = brightness(decoded_camera)[None, None]
    resampled = view.resample(decoded)[0, 0]
    assert resampled.shape == (round(96 * zoom), round(128 * zoom))
    inner = (slice(3, -3), slice(3, -3))
    error = (resampled - brightness(zoomed))[inner].abs()
    assert float(error.max()) < (5e-3 if zoom > 1 else 3e-2)  # smaller pictures are box means of the function
    assert latent_view(base, 8, (170.3, 175.84)).scale == (1.0, 1.0)


def test_no_resampling_at_the_training_scale() -> None:
    view = latent_view(camera(), 8, (170.3, 175.84))
    image = torch.rand(1, 3, 80, 104)
    assert torch.equal(view.resample(image), image[..., :75, :100])


def test_the_camera_comes_back_from_its_rays() -> None:
    photo = camera()
    found = pinhole_camera_of(photo.generate_rays(camera_indices=0))
    for name in ("fx", "fy", "cx", "cy"):
        assert getattr(found, name).item() == pytest.approx(getattr(photo, name).item(), rel=1e-3)
    torch.testing.assert_close(found.camera_to_worlds, photo.camera_to_worlds, atol=1e-4, rtol=0)


def test_rays_of_no_picture_have_no_camera() -> None:
    rays = camera().generate_rays(camera_indices=0)
    rays.origins = rays.origins + torch.rand_like(rays.origins)
    assert pinhole_camera_of(rays) is None
    assert pinhole_camera_of(camera().generate_rays(camera_indices=0)[:1, :1]) is None
    assert math.prod(rays.shape) == 7500
