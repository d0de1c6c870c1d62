"""Photos as the autoencoder must see them: upright pinhole pictures, opaque, 8 bits, three channels.

Nerfstudio's `InputDataset` hands out what is in the file. An encoder needs more: lens distortion removed (a
latent pixel stands for an 8 x 8 square of a pinhole picture), transparency composited on the background that
the scene model renders, and grey, palette and 16-bit files turned into RGB. Everything that shows or compares
photos (training, evaluation, `ns-render dataset`, the viewer) reads them through this one class.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.images import composite, read_image

MIN_SIDE = 32
"""Smallest usable image side in pixels: below it a latent image has fewer than 4 x 4 pixels."""


class PhotoDataset(InputDataset):
    """Undistorted, composited photos and their pinhole cameras.

    Args:
        dataparser_outputs: what a Nerfstudio dataparser found.
        scale_factor: resizes photos and cameras.
        background_colour: (3,) in [0, 1], what shows through transparent pixels; a dataparser's own
            `alpha_color` wins.
        photos_missing: the files are known to be gone; grey pictures of their sizes stand in for them.
    """

    exclude_batch_keys_from_device = ["image"]

    def __init__(
        self,
        dataparser_outputs: DataparserOutputs,
        scale_factor: float = 1.0,
        background_colour: Tensor | None = None,
        photos_missing: bool = False,
    ) -> None:
        if dataparser_outputs.cameras.camera_to_worlds.shape[-2:] != (3, 4):
            raise InputError(
                "the dataparser has lost the camera's position in a split of one image (Nerfstudio's "
                "`instant-ngp-data` does); give each split two or more, for instance with --train-split-fraction 0.8 "
                "after `instant-ngp-data`"
            )
        # Shares nothing with the dataparser's own object, whose cameras stay distorted.
        super().__init__(replace(dataparser_outputs, mask_filenames=None), scale_factor)
        self.photos_missing = photos_missing
        colour = dataparser_outputs.alpha_color
        if colour is None:
            colour = torch.ones(3) if background_colour is None else background_colour
        self.background_colour: Tensor = torch.as_tensor(colour, dtype=torch.float32).cpu()
        if self.cameras.shape == ():
            self.cameras = self.cameras.reshape((1,))
        self._file_sizes = [(int(h), int(w)) for h, w in torch.cat([self.cameras.height, self.cameras.width], -1)]
        self._undistortions = [undistortion_of(self.cameras, i) for i in range(len(self))]
        self.cameras = pinhole_cameras(self.cameras, self._undistortions)
        # `ns-export tsdf` reads the cameras from here.
        self._dataparser_outputs = replace(self._dataparser_outputs, cameras=deepcopy(self.cameras))

    def get_numpy_image(self, image_idx: int) -> UInt8[np.ndarray, "height width 3"]:
        """The photo (H, W, 3), uint8, undistorted and composited.

        Raises:
            InputError: the file is missing or damaged, has another size than its camera, or is too small.
        """
        if self.photos_missing:
            height, width = int(self.cameras.height[image_idx]), int(self.cameras.width[image_idx])
            return np.full((height, width, 3), 128, dtype=np.uint8)
        path = self.image_filenames[image_idx]
        image = composite(read_image(path, self.scale_factor), self.background_colour.numpy())
        height, width = self._file_sizes[image_idx]
        if image.shape[:2] != (height, width):
            raise InputError(
                f"image {path} has {image.shape[1]} x {image.shape[0]} pixels, its camera {width} x {height}; give it "
                "the size of the others, or its own `w` and `h` and intrinsics in the transforms file"
            )
        undistortion = self._undistortions[image_idx]
        image = image if undistortion is None else undistortion.apply(image)
        if min(image.shape[:2]) < MIN_SIDE:
            raise InputError(
                f"image {path} has {image.shape[1]} x {image.shape[0]} pixels; latent NeRFs need {MIN_SIDE} x "
                f"{MIN_SIDE} or more"
            )
        return image

    def get_image_uint8(self, image_idx: int) -> UInt8[Tensor, "height width 3"]:
        return torch.from_numpy(self.get_numpy_image(image_idx))

    def get_image_float32(self, image_idx: int) -> Float[Tensor, "height width 3"]:
        return self.get_image_uint8(image_idx).float() / 255


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
        import cv2

        return cv2.remap(image, self.map_x, self.map_y, cv2.INTER_LINEAR)


_UNDISTORTIONS: dict[tuple, Undistortion] = {}
"""Most captures share one lens, so one table serves all their photos."""


def undistortion_of(cameras: Cameras, index: int) -> Undistortion | None:
    """The undistortion of one camera of a batch; None where the lens is a pinhole already.

    Raises:
        InputError: a lens model that cannot be undistorted.
    """
    camera = cameras[index]
    if camera.distortion_params is None or not bool((camera.distortion_params != 0).any()):
        return None
    kind = CameraType(int(camera.camera_type))
    params = [float(value) for value in camera.distortion_params.flatten()]
    size = (int(camera.width), int(camera.height))
    # OpenCV puts the centre of the first pixel at (0, 0).
    fx, fy, cx, cy = (float(v) for v in (camera.fx, camera.fy, camera.cx - 0.5, camera.cy - 0.5))
    key = (kind, size, fx, fy, cx, cy, *params)
    if key not in _UNDISTORTIONS:
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        if kind is CameraType.PERSPECTIVE:
            _UNDISTORTIONS[key] = _undistort_perspective(intrinsics, params, size)
        elif kind is CameraType.FISHEYE:
            _UNDISTORTIONS[key] = _undistort_fisheye(intrinsics, params, size)
        else:
            raise InputError(
                f"camera {index} is of type {kind.name} with lens distortion, which cannot be removed here; undistort "
                "the photos first (for instance with COLMAP's image_undistorter)"
            )
    return _UNDISTORTIONS[key]


def _undistort_perspective(intrinsics: np.ndarray, params: list[float], size: tuple[int, int]) -> Undistortion:
    import cv2

    k1, k2, k3, k4, p1, p2 = params
    if k4:
        raise InputError(
            "the lens model has a fourth radial coefficient (k4), which OpenCV's undistortion lacks; undistort the "
            "photos first or refit the lens with k1, k2, k3, p1, p2"
        )
    opencv_params = np.array([k1, k2, p1, p2, k3])
    # alpha = 0: the largest pinhole picture without empty pixels; the rectangle that is valid is cut out of it.
    pinhole, (x, y, width, height) = cv2.getOptimalNewCameraMatrix(intrinsics, opencv_params, size, 0)
    maps = cv2.initUndistortRectifyMap(intrinsics, opencv_params, np.eye(3), pinhole, size, cv2.CV_32FC1)
    map_x, map_y = (m[y : y + height, x : x + width].copy() for m in maps)
    centre = (float(pinhole[0, 2]) - x + 0.5, float(pinhole[1, 2]) - y + 0.5)
    return Undistortion(map_x, map_y, (float(pinhole[0, 0]), float(pinhole[1, 1]), *centre))


def _undistort_fisheye(intrinsics: np.ndarray, params: list[float], size: tuple[int, int]) -> Undistortion:
    import cv2

    opencv_params = np.array(params[:4])
    pinhole = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(
        intrinsics, opencv_params, size, np.eye(3), balance=0
    )
    map_x, map_y = cv2.fisheye.initUndistortRectifyMap(
        intrinsics, opencv_params, np.eye(3), pinhole, size, cv2.CV_32FC1
    )
    centre = (float(pinhole[0, 2]) + 0.5, float(pinhole[1, 2]) + 0.5)
    return Undistortion(map_x, map_y, (float(pinhole[0, 0]), float(pinhole[1, 1]), *centre))


def pinhole_cameras(cameras: Cameras, undistortions: list[Undistortion | None]) -> Cameras:
    """The cameras of the undistorted photos: same poses, pinhole intrinsics, no distortion."""
    cameras = deepcopy(cameras)
    for name in ("fx", "fy", "cx", "cy"):  # some dataparsers give float64, on which `ns-render spiral` fails
        setattr(cameras, name, getattr(cameras, name).float())
    for index, undistortion in enumerate(undistortions):
        if undistortion is None:
            continue
        for name, value in zip(("fx", "fy", "cx", "cy"), undistortion.intrinsics):
            getattr(cameras, name)[index] = value
        cameras.height[index], cameras.width[index] = undistortion.size
        cameras.camera_type[index] = CameraType.PERSPECTIVE.value
        assert cameras.distortion_params is not None  # else there would be nothing to undistort
        cameras.distortion_params[index] = 0
    if cameras.distortion_params is not None and not bool((cameras.distortion_params != 0).any()):
        cameras.distortion_params = None
    return cameras
