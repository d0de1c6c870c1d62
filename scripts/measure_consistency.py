"""How consistent the latents of autoencoders are in 3D, without a NeRF: the reprojection error between views.

    igae render-objects --meshes MESHES --output-dir SCENES --depth
    python scripts/measure_consistency.py --scenes SCENES --autoencoders standard=bundled-ae ig-ae=bundled

It is a warping error with an occlusion mask, as videos' temporal consistency is measured (Lai et al. 2018), with true
depth and cameras in the place of optical flow: the centre of each latent pixel of one view is a point on a surface,
and where another view sees that point, its latents are looked up there and compared. Divided by twice the variance of
the latents it is 1 minus their correlation: 0 is the same latents for one surface point in two views, 1 is no
correlation. Views far apart see a surface from other sides, so pairs are limited to an angle between their optical
axes. The row `averaged pixels` averages photos over the pixels of a latent: it is as consistent as light and sampling
allow.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import load_autoencoder
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes.scene_folders import find_scenes, read_scene
from igae_nerfstudio.scenes.scene_views import ViewCameras, read_view, to_images

DEPTH_TOLERANCE = 0.02
"""Depths that differ by less, as a share of the depth, are of the same surface."""


@dataclass
class DepthViews:
    """n views of one object with their depth."""

    images: Tensor
    """(n, 3, H, W) in [0, 1]."""
    depth: Tensor
    """(n, H, W) along the optical axis, scene units; 0 is no surface."""
    cameras: ViewCameras


def read_depth_views(
    folder: Path, size: int, split: str = "test", background: Sequence[float] = (1, 1, 1)
) -> DepthViews:
    """Views of a scene that `igae render-objects --depth` made.

    Raises:
        InputError: the scene has no depth, or cannot be read.
    """
    scene = read_scene(folder, split, size)
    depth_files = [folder / "depth" / split / f"{Path(file).stem}.png" for file in scene.files]
    if scene.depth_unit is None or not all(path.is_file() for path in depth_files):
        raise InputError(f"scene {folder} has no depth; render it with igae render-objects --depth")
    steps = np.stack([np.asarray(Image.open(path), dtype=np.float32) for path in depth_files])
    pixels = np.stack([read_view(folder / file, size, background) for file in scene.files])
    poses, intrinsics = (torch.from_numpy(array).float() for array in (scene.poses, scene.intrinsics))
    cameras = ViewCameras(poses, intrinsics, size, size)
    return DepthViews(to_images(pixels), torch.from_numpy(steps * scene.depth_unit), cameras)


def reprojection_error(features: Tensor, views: DepthViews, max_angle: float = 30.0) -> float:
    """How much the latents f_i(p) and f_j(p) of one surface point p in two views differ.

    Args:
        features: (n, c, h, w) of the views: latents, or anything else with square pixels that divide the picture.
        views: the views.
        max_angle: between two optical axes, degrees.

    Returns:
        The mean over channels of E |f_i(p) - f_j(p)|^2 / (2 Var f), with the variance over all latent pixels on the
        object: 0 is the same latents, 1 is no correlation. NaN where no point is seen twice.
    """
    size, side = views.images.shape[-1], features.shape[-1]
    surface = latent_surface(views, size // side)  # (n, h w, 3), NaN off the object
    axes = -views.cameras.camera_to_world[:, :, 2]
    near = (axes @ axes.T > math.cos(math.radians(max_angle))) & ~torch.eye(len(axes), dtype=torch.bool)
    flat = features.flatten(2).transpose(1, 2)  # (n, h w, c)
    differences: list[Tensor] = []
    for i, j in near.nonzero().tolist():
        seen, place = visible(surface[j], views, i)
        found = F.grid_sample(features[i : i + 1], place[None, None], align_corners=False, padding_mode="border")
        differences.append((found[0, :, 0].T - flat[j])[seen].square())
    variance = flat[~surface[..., 0].isnan()].var(dim=0)
    if not differences:
        return math.nan
    return float((torch.cat(differences).mean(dim=0) / (2 * variance)).mean())


def latent_surface(views: DepthViews, downscale: int) -> Tensor:
    """The surface points (n, h w, 3) behind the centres of latent pixels; NaN where there is none or an edge."""
    n, size = len(views.depth), views.depth.shape[-1]
    centres = torch.arange(downscale // 2, size, downscale)
    # A centre lies on the corner of four pixels (of one pixel, where the downscale is odd).
    corners = [
        views.depth[:, centres - a][:, :, centres - b] for a in (0, 1 - downscale % 2) for b in (0, 1 - downscale % 2)
    ]
    around = torch.stack(corners)
    depth = around.mean(dim=0)
    edge = (around.amin(dim=0) == 0) | (around.amax(dim=0) - around.amin(dim=0) > DEPTH_TOLERANCE * depth)
    depth = depth.masked_fill(edge, math.nan).view(n, -1)
    origins, directions = (rays.flatten(1, 2) for rays in views.cameras.latent_rays(downscale))
    axes = -views.cameras.camera_to_world[:, None, :, 2]
    return origins + directions * (depth / (directions * axes).sum(dim=-1))[..., None]


def visible(points: Tensor, views: DepthViews, view: int) -> tuple[Tensor, Tensor]:
    """Which points (P, 3) a view sees (P,), and where in it (P, 2), x and y from -1 to 1 over the picture."""
    size = views.depth.shape[-1]
    pose, (fx, fy, cx, cy) = views.cameras.camera_to_world[view], views.cameras.intrinsics[view]
    local = (points - pose[:, 3]) @ pose[:, :3]
    distance = -local[:, 2]
    x, y = fx * local[:, 0] / distance + cx, cy - fy * local[:, 1] / distance
    inside = (distance > 0) & (x >= 0) & (x < size) & (y >= 0) & (y < size)  # False for NaN
    column, row = (torch.where(inside, value, torch.zeros_like(value)).long() for value in (x, y))
    there = views.depth[view, row, column]
    seen = inside & ((there - distance).abs() < DEPTH_TOLERANCE * distance)
    place = torch.stack([x, y], dim=-1) / size * 2 - 1
    return seen, torch.where(seen[:, None], place, torch.zeros_like(place))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes with depth")
    parser.add_argument("--autoencoders", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures (default: %(default)s)")
    parser.add_argument(
        "--max-angle", type=float, default=30.0, help="between optical axes, degrees (default: %(default)s)"
    )
    arguments = parser.parse_args()
    folders = find_scenes(arguments.scenes, arguments.split)
    scenes = [read_depth_views(folder, arguments.size, arguments.split) for folder in folders]
    rows, downscale = {}, 1
    for name, source in (item.split("=", 1) for item in arguments.autoencoders):
        autoencoder = load_autoencoder(source)
        downscale = max(downscale, autoencoder.downscale)
        latents = [torch.cat([autoencoder.encode(part) for part in scene.images.split(20)]) for scene in scenes]
        rows[name] = [reprojection_error(*pair, arguments.max_angle) for pair in zip(latents, scenes)]
    rows["averaged pixels"] = [
        reprojection_error(F.avg_pool2d(scene.images, downscale), scene, arguments.max_angle) for scene in scenes
    ]
    print(f"| | {' | '.join(folder.name for folder in folders)} | mean |\n|---|{'---|' * (len(folders) + 1)}")
    for name, errors in rows.items():
        print(f"| {name} | {' | '.join(f'{error:.3f}' for error in errors)} | {sum(errors) / len(errors):.3f} |")


if __name__ == "__main__":
    main()
