"""Lenses: which distortions are removed from photos, and which pixels of the others have a direction."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle

PERSPECTIVE, FISHEYE = CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value


@dataclass(frozen=True)
class Undistortion:
    """A lookup table from a pinhole picture to the distorted photo, and the pinhole's intrinsics."""

    map_x: np.ndarray
    map_y: np.ndarray
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels, Nerfstudio's convention: the centre of the first pixel is (0.5, 0.5)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pinhole picture."""
        return self.map_x.shape[0], self.map_x.shape[1]

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The pinhole picture (H, W, ...) of a photo."""
        import cv2

        return cv2.remap(image, self.map_x, self.map_y, cv2.INTER_LINEAR)


def undistortion_of(camera: Cameras) -> Undistortion | None:
    """How a camera (batch shape ()) becomes a pinhole; None where it is one, or keeps its rays.

    OpenCV removes the distortion of perspective lenses with k1, k2, k3, p1 and p2. Nerfstudio's k4 has no counterpart
    there, and a pinhole picture of a wide fisheye or a panorama would lose what makes it one: their rays are bent
    instead, as everywhere in Nerfstudio.
    """
    params = _distortion(camera)
    if int(camera.camera_type) != PERSPECTIVE or params is None or params[3] != 0:
        return None
    size = (int(camera.width), int(camera.height))
    return _undistort_perspective(float(camera.fx), float(camera.fy), float(camera.cx), float(camera.cy), params, size)


@lru_cache(maxsize=64)
def _undistort_perspective(
    fx: float, fy: float, cx: float, cy: float, params: tuple[float, ...], size: tuple[int, int]
) -> Undistortion:
    import cv2

    k1, k2, k3, _, p1, p2 = params
    # OpenCV puts the centre of the first pixel at (0, 0).
    intrinsics = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    opencv_params = np.array([k1, k2, p1, p2, k3])
    # alpha = 0: the largest pinhole picture without empty pixels; the rectangle that is valid is cut out of it.
    pinhole, (x, y, width, height) = cv2.getOptimalNewCameraMatrix(intrinsics, opencv_params, size, 0)
    maps = cv2.initUndistortRectifyMap(intrinsics, opencv_params, np.eye(3), pinhole, size, cv2.CV_32FC1)
    map_x, map_y = (m[y : y + height, x : x + width].copy() for m in maps)
    centre = (float(pinhole[0, 2]) - x + 0.5, float(pinhole[1, 2]) - y + 0.5)
    return Undistortion(map_x, map_y, (float(pinhole[0, 0]), float(pinhole[1, 1]), *centre))


def pinhole_cameras(cameras: Cameras, undistortions: list[Undistortion | None]) -> Cameras:
    """The cameras of the undistorted photos: same poses, pinhole intrinsics, no distortion; others as they are."""
    cameras = deepcopy(cameras)
    for index, undistortion in enumerate(undistortions):
        if undistortion is None:
            continue
        for name, value in zip(("fx", "fy", "cx", "cy"), undistortion.intrinsics):
            getattr(cameras, name)[index] = value
        cameras.height[index], cameras.width[index] = undistortion.size
        assert cameras.distortion_params is not None  # else there would be nothing to undistort
        cameras.distortion_params[index] = 0
    if cameras.distortion_params is not None and not bool((cameras.distortion_params != 0).any()):
        cameras.distortion_params = None
    return cameras


def covered_pixels(camera: Cameras, crop_radius: float | None = None) -> Bool[np.ndarray, "height width"] | None:
    """Which pixels of a camera (batch shape ()) see something; None: all do.

    Args:
        camera: a polynomial lens bends rays only up to the radius at which its polynomial turns back, and a fisheye's
            by less than 180 degrees.
        crop_radius: of a fisheye's image circle around the principal point, in pixels.
    """
    params = _distortion(camera) or (0.0,) * 6
    kind = int(camera.camera_type)
    limit = math.inf
    if kind in (PERSPECTIVE, FISHEYE):
        limit = _largest_radius(params[:4], kind == FISHEYE)
    if crop_radius is None and limit == math.inf:
        return None
    x = np.arange(int(camera.width), dtype=np.float32) + 0.5 - float(camera.cx)
    y = np.arange(int(camera.height), dtype=np.float32)[:, None] + 0.5 - float(camera.cy)
    fx, fy = float(camera.fx), float(camera.fy)
    covered = np.hypot(x / fx, y / fy) < limit - 1 / min(fx, fy)  # a resampled pixel mixes its neighbours
    return covered if crop_radius is None else covered & (np.hypot(x, y) < crop_radius)


def _largest_radius(radial: tuple[float, ...], fisheye: bool) -> float:
    """The distorted radius, a tangent or a fisheye's angle, up to which r (1 + k1 r^2 + ...) grows; inf: for ever.

    Args:
        radial: k1 to k4.
        fisheye: r is an angle, of no more than pi.
    """
    r = np.linspace(0, math.pi if fisheye else 10.0, 4001)
    distorted = r * (1 + sum(k * r ** (2 * i + 2) for i, k in enumerate(radial)))
    grows = np.diff(distorted) > 0
    if grows.all():
        return float(distorted[-1]) if fisheye else math.inf
    return float(distorted[int(np.argmin(grows))])


def finite_rays(rays: RayBundle, cameras: Cameras) -> RayBundle:
    """Rays of cameras (batch shape (N,)), of which none is NaN.

    Nerfstudio divides a fisheye's directions by their angle, which is 0 in the middle: there they look straight ahead.
    """
    assert rays.camera_indices is not None  # rays of cameras have them
    ahead = -cameras.camera_to_worlds[..., 2][rays.camera_indices[..., 0]]
    rays.directions = torch.where(rays.directions.isfinite().all(dim=-1, keepdim=True), rays.directions, ahead)
    rays.pixel_area = rays.pixel_area.nan_to_num(0.0)
    rays.metadata["directions_norm"] = rays.metadata["directions_norm"].nan_to_num(1.0)
    return rays


def without_distortion(camera: Cameras) -> Cameras:
    """A pinhole of the same pose, size and pixels per radian in its middle."""
    camera = deepcopy(camera)
    radians = pixels_per_radian(camera)
    camera.fx, camera.fy = radians[..., :1], radians[..., 1:]
    camera.camera_type = torch.full_like(camera.camera_type, PERSPECTIVE)
    camera.distortion_params = None
    return camera


def pixels_per_radian(cameras: Cameras) -> torch.Tensor:
    """(..., 2), across and down, in the middle of the picture; a pinhole's or a fisheye's focal lengths.

    What Nerfstudio calls the focal length of a panorama is pi times as much (half as much again for VR180's width).
    """
    kind = cameras.camera_type
    panorama = {CameraType.EQUIRECTANGULAR, CameraType.OMNIDIRECTIONALSTEREO_L, CameraType.OMNIDIRECTIONALSTEREO_R}
    vr180 = {CameraType.VR180_L, CameraType.VR180_R}
    across, down = torch.ones_like(cameras.fx), torch.ones_like(cameras.fy)
    for member in panorama | vr180:
        across[kind == member.value] = math.pi / (2 if member in vr180 else 1)
        down[kind == member.value] = math.pi
    return torch.cat([cameras.fx / across, cameras.fy / down], dim=-1)


def _distortion(camera: Cameras) -> tuple[float, ...] | None:
    if camera.distortion_params is None or not bool((camera.distortion_params != 0).any()):
        return None
    return tuple(float(value) for value in camera.distortion_params.flatten())
