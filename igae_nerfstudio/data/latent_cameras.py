"""Cameras of latent images.

A latent pixel covers l x l pixels, so a latent camera is the photo's camera with its intrinsics divided by l:
a point at pixel coordinate u (the centre of the first pixel is 0.5) is seen at latent coordinate u / l, exactly
and without rounding. Only the picture's size is rounded, up, to the whole latent pixels of the padded photo.

A decoder is right only at the latent pixel size that it was trained at. A camera with another focal length
(the viewer's changing sizes, a render scale) is therefore first brought to the training focal length.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from igae_nerfstudio.data.lenses import pixels_per_radian

SAME_FOCAL = 1e-3
"""Relative difference of focal lengths below which a picture is not resampled."""


def latent_cameras(cameras: Cameras, downscale: int) -> Cameras:
    """The cameras of the padded, encoded photos: intrinsics / l, size ceil(H / l) x ceil(W / l)."""
    cameras = deepcopy(cameras)
    cameras.rescale_output_resolution(1 / downscale, scale_rounding_mode="ceil")
    return cameras


@dataclass
class LatentView:
    """How to render one camera through the decoder: latent camera, then crop and resample."""

    camera: Cameras
    """Latent camera, batch shape (1,)."""
    scale: tuple[float, float]
    """Decoded pixels per requested pixel, down and across."""
    size: tuple[int, int]
    """Requested (H, W)."""

    def resample(self, image: Tensor) -> Tensor:
        """Cut and resample a decoded picture (1, C, h l, w l) to the requested (1, C, H, W).

        Output pixel i has its centre at (i + 1/2) * scale in the decoded picture. Where the decoded picture is
        finer, every output pixel is the mean of a k x k grid of bilinear samples inside it, so nothing aliases.
        """
        if self.scale == (1.0, 1.0):
            return image[..., : self.size[0], : self.size[1]]
        samples = [max(1, math.ceil(s)) for s in self.scale]
        rows, columns = (
            (torch.arange(n * k, device=image.device) + 0.5) * (s / k) * (2 / side) - 1
            for n, k, s, side in zip(self.size, samples, self.scale, image.shape[-2:])
        )
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
        mode = "bicubic" if max(self.scale) < 1 else "bilinear"
        image = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
        return F.avg_pool2d(image, kernel_size=samples)


def latent_view(camera: Cameras, downscale: int, focal_range: tuple[float, float]) -> LatentView:
    """Plan the render of a camera (batch shape () or (1,)) through a decoder trained at `focal_range` pixels.

    Args:
        camera: any size, any focal length.
        downscale: l.
        focal_range: smallest and largest `pixels_per_radian` of the training cameras.
    """
    camera = deepcopy(camera).reshape((1,))
    size = (int(camera.height), int(camera.width))
    across_and_down = pixels_per_radian(camera)[0].tolist()
    scale = (_scale_to_range(across_and_down[1], focal_range), _scale_to_range(across_and_down[0], focal_range))
    down, across = (s / downscale for s in scale)
    camera.fy, camera.cy = camera.fy * down, camera.cy * down
    camera.fx, camera.cx = camera.fx * across, camera.cx * across
    # A hair is taken off before rounding up, so that 128 * (1 / 8) never asks for a 17th latent pixel.
    camera.height = torch.full_like(camera.height, max(1, math.ceil(size[0] * down - 1e-4)))
    camera.width = torch.full_like(camera.width, max(1, math.ceil(size[1] * across - 1e-4)))
    return LatentView(camera, scale, size)


def _scale_to_range(focal: float, focal_range: tuple[float, float]) -> float:
    target = min(max(focal, focal_range[0]), focal_range[1])
    return 1.0 if abs(target / focal - 1) < SAME_FOCAL else target / focal


def pinhole_camera_of(rays: RayBundle) -> Cameras | None:
    """Recover the pinhole camera from the rays of a whole picture, shape (H, W); None where there is none.

    Some of Nerfstudio's exporters hand a model rays instead of a camera. The rays' directions before they were
    normalised are affine in the pixel coordinates, which gives the camera back exactly.
    """
    if len(rays.shape) != 2 or min(rays.shape) < 2 or "directions_norm" not in rays.metadata:
        return None
    origin = rays.origins[0, 0]
    directions = rays.directions * rays.metadata["directions_norm"]
    across = directions[0, 1] - directions[0, 0]
    down = directions[1, 0] - directions[0, 0]
    height, width = rays.shape
    corner = directions[0, 0] + across * (width - 1) + down * (height - 1)
    straight = torch.allclose(corner, directions[-1, -1], atol=1e-3 * float(corner.norm()))
    if not straight or not torch.allclose(rays.origins[-1, -1], origin, atol=1e-4):
        return None
    fx, fy = 1 / float(across.norm()), 1 / float(down.norm())
    right, up = across * fx, -down * fy
    backward = torch.linalg.cross(right, up)
    # directions[0, 0] = right * (0.5 - cx) / fx - up * (0.5 - cy) / fy - backward
    first = directions[0, 0]
    cx, cy = 0.5 - fx * float(first @ right), 0.5 + fy * float(first @ up)
    pose = torch.stack([right, up, backward, origin], dim=-1)[None]
    return Cameras(pose, fx, fy, cx, cy, width=width, height=height, camera_type=CameraType.PERSPECTIVE).to(
        rays.origins.device
    )
