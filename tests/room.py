"""A room whose colour along any ray is a closed formula, and its photos through every lens.

The directions of a lens's pixels are computed here in double precision, by other means than Nerfstudio's.
"""

from __future__ import annotations

import numpy as np
from nerfstudio.cameras.cameras import CameraType

HALF = 2.0
"""Half the side of the room, a box around the origin."""


def colours(origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(..., 3) in [0, 1]: three sines of the point in which a ray from inside the room meets a wall."""
    directions = np.where(directions == 0, 1e-12, directions)
    distance = ((HALF * np.sign(directions) - origins) / directions).min(axis=-1, keepdims=True)
    x, y, z = np.moveaxis(origins + distance * directions, -1, 0)
    return 0.5 + 0.4 * np.stack([np.sin(2 * x + y), np.sin(1.7 * y - z + 1), np.sin(1.3 * z + 0.6 * x + 2)], axis=-1)


def photo(
    kind: CameraType,
    size: tuple[int, int],
    focal: tuple[float, float],
    centre: tuple[float, float],
    lens: tuple[float, ...],
    pose: np.ndarray,
) -> np.ndarray:
    """A photo (H, W, 3), uint8; black where the lens gives no direction.

    Args:
        kind: of camera.
        size: (W, H).
        focal: fx, fy.
        centre: cx, cy.
        lens: k1, k2, k3, k4, p1, p2, or the 12 of FISHEYE624.
        pose: camera to world (4, 4) or (3, 4), OpenGL axes.
    """
    y, x = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5, indexing="ij")
    origins, directions = rays(kind, x, y, focal, centre, lens, pose)
    known = np.isfinite(directions).all(axis=-1, keepdims=True)
    seen = colours(origins, np.where(known, directions, 1.0))
    return np.rint(255 * np.where(known, seen, 0)).astype(np.uint8)


def rays(kind, x, y, focal, centre, lens, pose) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions (..., 3) through pixel coordinates; NaN where the lens gives none."""
    u, v = (x - centre[0]) / focal[0], (y - centre[1]) / focal[1]
    rotation, position = np.asarray(pose)[:3, :3], np.asarray(pose)[:3, 3]
    origins = np.broadcast_to(position, (*u.shape, 3))
    if kind is CameraType.ORTHOPHOTO:
        local = np.broadcast_to([0.0, 0.0, -1.0], (*u.shape, 3))
        origins = origins + np.stack([u, -v, 0 * u], axis=-1) @ rotation.T
    elif kind is CameraType.EQUIRECTANGULAR:
        theta, phi = -np.pi * u, np.pi * (0.5 + v)
        local = np.stack([-np.sin(theta) * np.sin(phi), np.cos(phi), -np.cos(theta) * np.sin(phi)], axis=-1)
    else:
        u, v = undistorted(u, v, lens[:4], lens[4:6])
        if kind is CameraType.PERSPECTIVE:
            local = np.stack([u, -v, -np.ones_like(u)], axis=-1)
        else:
            angle = np.hypot(u, v)
            sine = np.sinc(angle / np.pi)  # sin(angle) / angle
            local = np.stack([u * sine, -v * sine, -np.cos(angle)], axis=-1)
            local[angle > np.pi] = np.nan
    local = local / np.linalg.norm(local, axis=-1, keepdims=True)
    return origins, local @ rotation.T


def undistorted(u: np.ndarray, v: np.ndarray, radial, tangential) -> tuple[np.ndarray, np.ndarray]:
    """Solves the lens equation: the radial part from a fine table of it, up to where it turns back, the tangential part
    by iteration."""
    p1, p2 = tangential
    table = np.linspace(0, 4, 400_001)
    distorted = table * (1 + sum(k * table ** (2 * i + 2) for i, k in enumerate(radial)))
    end = int(np.argmax(np.diff(distorted) <= 0)) or len(table)
    x, y = u, v
    for _ in range(25 if p1 or p2 else 1):
        r2 = x * x + y * y
        goal_u = u - 2 * p1 * x * y - p2 * (r2 + 2 * x * x)
        goal_v = v - 2 * p2 * x * y - p1 * (r2 + 2 * y * y)
        goal = np.hypot(goal_u, goal_v)
        radius = np.interp(goal, distorted[:end], table[:end], right=np.nan)
        factor = np.where(goal > 0, radius / np.where(goal > 0, goal, 1), 1.0)
        x, y = goal_u * factor, goal_v * factor
    return x, y
