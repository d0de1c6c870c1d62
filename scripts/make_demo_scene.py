"""Make the small demo scene that the repository carries: a lighthouse on a rocky island.

The scene is written in the Blender / NeRF-synthetic layout: ``transforms_{train,val,test}.json`` and the
folders ``train``, ``val`` and ``test`` with RGBA pictures ``r_000.png``, ... (straight alpha). Everything is
made by this file alone: signed distance functions, sphere-traced with torch on the CPU, with procedural
colours and a light that is fixed in the world. Nothing depends on the view: one radiance field explains all
pictures.

World: z up; the object stands in a box of about 0.92 x 0.92 x 1.0 around the origin. Cameras: OpenGL
convention (x right, y up, looking along -z) on a sphere of radius 2.1, looking at the origin. Train cameras
are spread over the sphere above -10 degrees of elevation, test cameras go once around at 25 degrees.

Run it from the repository's root::

    python scripts/make_demo_scene.py --output-dir demo/lighthouse

The same ``--size``, ``--views`` and ``--seed`` give the same pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CAMERA_ANGLE_X = 0.6911112
CAMERA_RADIUS = 2.1
NUM_VAL = 4
NUM_TEST = 12
MIN_SIZE = 32
TRAIN_MIN_ELEVATION = -10.0
TEST_ELEVATION = 25.0
SUPERSAMPLES = 4  # along each side of a pixel
BOX_MIN = (-0.465, -0.465, -0.505)
BOX_MAX = (0.465, 0.465, 0.515)
HIT_DISTANCE = 2e-4
DTYPE = torch.float64  # so that rounding moves no sample over an edge from one machine to another

SUN = (0.52, -0.42, 0.74)
AMBIENT_UP, AMBIENT_DOWN, SUN_STRENGTH = 0.68, 0.50, 0.42

# Colours (display values, 0 to 1).
RED = (0.90, 0.13, 0.12)
WHITE = (0.97, 0.96, 0.93)
BLUE = (0.12, 0.28, 0.80)
NAVY = (0.09, 0.13, 0.33)
YELLOW = (1.00, 0.85, 0.22)
ORANGE = (0.95, 0.48, 0.10)
CREAM = (0.98, 0.88, 0.62)
WOOD = (0.45, 0.25, 0.12)
LEAF = (0.06, 0.47, 0.20)
GRASS = (0.45, 0.76, 0.20)
SAND = (0.95, 0.82, 0.52)
ROCK = (0.56, 0.46, 0.42)
SEA = (0.08, 0.52, 0.80)
SHALLOW = (0.35, 0.82, 0.86)
DEEP = (0.06, 0.30, 0.62)

# Where things stand: (x, y) of each, and heights.
SEA_TOP = -0.42
GROUND = -0.24
ISLAND = (-0.05, 0.04)
TOWER = (-0.05, 0.08)
HUT = (0.12, -0.06)
TREE = (-0.14, -0.14)
SMALL_TREE = (0.13, 0.17)
BOAT = (0.27, -0.29)
BOAT_ANGLE = math.radians(40.0)

# Points inside convex parts that little hides from above, and the part's colour: they can be looked up in the
# pictures.
LANDMARKS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "finial": ((TOWER[0], TOWER[1], 0.485), RED),
    "roof": ((TOWER[0], TOWER[1], 0.42), BLUE),
    "tree": ((TREE[0], TREE[1], 0.035), LEAF),
}

Sdf = Callable[[Tensor], Tensor]
Paint = Callable[[Tensor, Tensor], Tensor]


# --- Signed distances. Points are (3, N) tensors; each function gives the (N,) distances. ---


def _length(*components: Tensor) -> Tensor:
    """Euclidean length of a vector given by its components."""
    total = components[0] * components[0]
    for component in components[1:]:
        total = total + component * component
    return total.sqrt()


def sphere(p: Tensor, center: tuple[float, float, float], radius: float) -> Tensor:
    """Distance to a sphere."""
    return _length(p[0] - center[0], p[1] - center[1], p[2] - center[2]) - radius


def box(p: Tensor, center: tuple[float, float, float], half: tuple[float, float, float], angle: float = 0.0) -> Tensor:
    """Distance to a box that is turned by ``angle`` around the vertical."""
    q = to_local(p, center, angle)
    d = [q[i].abs() - half[i] for i in range(3)]
    outside = _length(*(v.clamp(min=0.0) for v in d))
    return outside + torch.maximum(torch.maximum(d[0], d[1]), d[2]).clamp(max=0.0)


def frustum(p: Tensor, xy: tuple[float, float], bottom: float, top: float, r_bottom: float, r_top: float) -> Tensor:
    """Distance to an upright cone frustum (cylinder, cone); exact."""
    half = 0.5 * (top - bottom)
    radial = _length(p[0] - xy[0], p[1] - xy[1])
    z = p[2] - 0.5 * (top + bottom)
    slope_r, slope_z = r_top - r_bottom, 2.0 * half
    cap_r = radial - torch.minimum(radial, r_top + (z < 0.0).to(radial.dtype) * (r_bottom - r_top))
    cap_z = z.abs() - half
    along = (((r_top - radial) * slope_r + (half - z) * slope_z) / (slope_r**2 + slope_z**2)).clamp(0.0, 1.0)
    side_r = radial - r_top + slope_r * along
    side_z = z - half + slope_z * along
    squared = torch.minimum(cap_r * cap_r + cap_z * cap_z, side_r * side_r + side_z * side_z)
    inside = (side_r < 0.0) & (cap_z < 0.0)
    return torch.where(inside, -squared.sqrt(), squared.sqrt())


def polyhedron(p: Tensor, center: tuple[float, float, float], normals: np.ndarray, offsets: np.ndarray) -> Tensor:
    """Lower bound of the distance to a convex polyhedron given by its planes."""
    n = torch.as_tensor(normals, dtype=p.dtype)
    shift = torch.as_tensor(offsets + normals @ np.asarray(center), dtype=p.dtype)
    return (n @ p - shift[:, None]).amax(dim=0)


def to_local(p: Tensor, center: tuple[float, float, float], angle: float) -> Tensor:
    """Points in a frame at ``center`` that is turned by ``angle`` around the vertical."""
    x, y, z = p[0] - center[0], p[1] - center[1], p[2] - center[2]
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        x, y = c * x + s * y, c * y - s * x
    return torch.stack((x, y, z))


def _rock_planes(radius: float, height: float, tilts: tuple[float, ...], turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Planes of a rock: one leaning side for each tilt (degrees) and a flat top; its bottom is open."""
    normals, offsets = [], []
    for i, tilt in enumerate(tilts):
        azimuth = turn + 2.0 * math.pi * (i + 0.18 * math.sin(5.0 * i)) / len(tilts)
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        normals.append((c * math.cos(azimuth), c * math.sin(azimuth), s))
        offsets.append(c * radius * (1.0 + 0.05 * math.sin(3.0 * i + 1.0)))
    normals.append((0.0, 0.0, 1.0))
    offsets.append(height)
    return np.array(normals), np.array(offsets)


_ISLAND_PLANES = _rock_planes(0.335, GROUND - SEA_TOP, (16, 27, 12, 22, 30, 14, 20, 26, 13), 0.3)
_ROCK_PLANES = _rock_planes(0.075, 0.075, (25, 40, 30, 35, 22), 0.1)
_GABLE = np.array([(0, 0.75, 0.66), (0, -0.75, 0.66), (1, 0, 0), (-1, 0, 0), (0, 0, -1)], dtype=np.float64)
_GABLE[:2] /= np.linalg.norm(_GABLE[0])
_SAIL = np.array([(0.86, 0, 0.51), (-1, 0, 0), (0, 0, -1), (0, 1, 0), (0, -1, 0)], dtype=np.float64)
_SAIL[0] /= np.linalg.norm(_SAIL[0])


def island_sdf(p: Tensor) -> Tensor:
    """The island's rock, ended just under the sea's surface."""
    rock = polyhedron(p, (*ISLAND, SEA_TOP), *_ISLAND_PLANES)
    return torch.maximum(rock, SEA_TOP - 0.01 - p[2])


def small_rock_sdf(p: Tensor) -> Tensor:
    """A small rock in the sea."""
    rock = polyhedron(p, (-0.26, -0.29, SEA_TOP), *_ROCK_PLANES)
    return torch.maximum(rock, SEA_TOP - 0.01 - p[2])


def gable_sdf(p: Tensor) -> Tensor:
    """The hut's roof."""
    local = to_local(p, (*HUT, GROUND + 0.085), HUT_ANGLE)
    offsets = np.array([0.045, 0.045, 0.088, 0.088, 0.0])
    return polyhedron(local, (0.0, 0.0, 0.0), _GABLE, offsets)


def hull_sdf(p: Tensor) -> Tensor:
    """The boat's hull: where two balls meet, cut flat above and below."""
    q = to_local(p, (*BOAT, SEA_TOP + 0.05), BOAT_ANGLE)
    balls = torch.maximum(sphere(q, (0.0, 0.095, 0.02), 0.142), sphere(q, (0.0, -0.095, 0.02), 0.142))
    return torch.maximum(balls, (q[2] + 0.01).abs() - 0.045)


def sail_sdf(p: Tensor) -> Tensor:
    """The boat's sail: a thin triangle."""
    q = to_local(p, (*BOAT, SEA_TOP + 0.105), BOAT_ANGLE)
    return polyhedron(q, (0.0, 0.0, 0.0), _SAIL, np.array([0.085, 0.012, 0.0, 0.008, 0.008]))


HUT_ANGLE = math.radians(-35.0)
TOWER_BOTTOM, TOWER_TOP = GROUND - 0.01, 0.20
DOOR_ANGLE = math.radians(-50.0)


# --- Colours. A paint takes points and normals, both (3, N), and gives (3, N) colours. ---


def plain(color: tuple[float, float, float]) -> Paint:
    """One colour everywhere."""

    def paint(p: Tensor, normal: Tensor) -> Tensor:
        return _solid(color, p)

    return paint


def _solid(color: tuple[float, float, float], p: Tensor) -> Tensor:
    """A (3, N) tensor of one colour."""
    return torch.tensor(color, dtype=p.dtype)[:, None].expand(3, p.shape[1])


def tower_paint(p: Tensor, normal: Tensor) -> Tensor:
    """Red and white bands."""
    band = torch.floor((p[2] - GROUND) / ((TOWER_TOP - GROUND) / 5.0))
    return torch.where(band.remainder(2.0) < 0.5, _solid(RED, p), _solid(WHITE, p))


def island_paint(p: Tensor, normal: Tensor) -> Tensor:
    """Rock, a beach at the water, grass on top and a path of sand from the tower's door to the hut."""
    color = torch.where(p[2] < SEA_TOP + 0.035, _solid(SAND, p), _solid(ROCK, p))
    color = torch.where(p[2] > GROUND - 0.035, _solid(GRASS, p), color)
    start = torch.tensor(TOWER, dtype=p.dtype)
    way = torch.tensor(HUT, dtype=p.dtype) - start
    along = (((p[:2] - start[:, None]) * way[:, None]).sum(0) / (way @ way)).clamp(0.0, 1.0)
    offset = p[:2] - start[:, None] - way[:, None] * along
    path = (_length(offset[0], offset[1]) < 0.035) & (p[2] > GROUND - 0.005)
    return torch.where(path, _solid(SAND, p), color)


def sea_paint(p: Tensor, normal: Tensor) -> Tensor:
    """Foam and shallow water near the rocks; a darker side and bottom."""
    shore = torch.minimum(island_sdf(p), small_rock_sdf(p) + 0.02)
    color = torch.where(shore < 0.075, _solid(SHALLOW, p), _solid(SEA, p))
    color = torch.where(shore < 0.028, _solid(WHITE, p), color)
    return torch.where(p[2] < SEA_TOP - 0.025, _solid(DEEP, p), color)


def lamp_paint(p: Tensor, normal: Tensor) -> Tensor:
    """Yellow panes between eight dark bars."""
    turn = torch.atan2(p[1] - TOWER[1], p[0] - TOWER[0]) / (2.0 * math.pi) * 8.0
    bar = (turn - turn.round()).abs() < 0.09
    return torch.where(bar, _solid(NAVY, p), _solid(YELLOW, p))


def hull_paint(p: Tensor, normal: Tensor) -> Tensor:
    """Orange with a white rim and a wooden deck."""
    color = torch.where(p[2] > SEA_TOP + 0.065, _solid(WHITE, p), _solid(ORANGE, p))
    return torch.where(normal[2] > 0.9, _solid(CREAM, p), color)


@dataclass(frozen=True)
class Part:
    """A part of the scene: its distance, its colour, and how much it shines by itself (0 to 1)."""

    sdf: Sdf
    paint: Paint
    glow: float = 0.0


def _on_tower(angle: float, z: float) -> tuple[float, float, float]:
    """A point on the tower's wall."""
    radius = 0.112 + (0.074 - 0.112) * (z - TOWER_BOTTOM) / (TOWER_TOP - TOWER_BOTTOM)
    return (TOWER[0] + radius * math.cos(angle), TOWER[1] + radius * math.sin(angle), z)


def _hut_point(x: float, y: float, z: float) -> tuple[float, float, float]:
    """A point given in the hut's own frame, ``z`` above the ground."""
    c, s = math.cos(HUT_ANGLE), math.sin(HUT_ANGLE)
    return (HUT[0] + c * x - s * y, HUT[1] + s * x + c * y, GROUND + z)


def _boxed(center: tuple[float, float, float], half: tuple[float, float, float], angle: float) -> Sdf:
    """A box's distance as a function of the points alone."""
    return lambda p: box(p, center, half, angle)


def _coned(xy: tuple[float, float], bottom: float, top: float, r_bottom: float, r_top: float) -> Sdf:
    """A frustum's distance as a function of the points alone."""
    return lambda p: frustum(p, xy, bottom, top, r_bottom, r_top)


def _balled(center: tuple[float, float, float], radius: float) -> Sdf:
    """A sphere's distance as a function of the points alone."""
    return lambda p: sphere(p, center, radius)


def build_parts() -> list[Part]:
    """All parts of the scene."""
    window_angles = ((DOOR_ANGLE, 0.075), (DOOR_ANGLE + math.pi, -0.04), (DOOR_ANGLE + math.pi, 0.13))
    parts = [
        Part(_coned((0.0, 0.0), -0.5, SEA_TOP, 0.44, 0.46), sea_paint),
        Part(island_sdf, island_paint),
        Part(small_rock_sdf, plain(ROCK)),
        # The lighthouse.
        Part(_coned(TOWER, TOWER_BOTTOM, TOWER_TOP, 0.112, 0.074), tower_paint),
        Part(_boxed(_on_tower(DOOR_ANGLE, GROUND + 0.045), (0.012, 0.032, 0.055), DOOR_ANGLE), plain(NAVY)),
        Part(_coned(TOWER, TOWER_TOP, TOWER_TOP + 0.03, 0.115, 0.115), plain(NAVY)),
        Part(_coned(TOWER, TOWER_TOP + 0.03, 0.335, 0.07, 0.07), lamp_paint, glow=0.8),
        Part(_coned(TOWER, 0.325, 0.475, 0.115, 0.0), plain(BLUE)),
        Part(_balled((*TOWER, 0.485), 0.024), plain(RED)),
        # The hut.
        Part(_boxed((*HUT, GROUND + 0.04), (0.075, 0.055, 0.05), HUT_ANGLE), plain(CREAM)),
        Part(gable_sdf, plain(ORANGE)),
        Part(_boxed(_hut_point(0.0, -0.055, 0.03), (0.02, 0.006, 0.035), HUT_ANGLE), plain(BLUE)),
        Part(_boxed(_hut_point(0.04, 0.025, 0.135), (0.015, 0.015, 0.03), HUT_ANGLE), plain(RED)),
        # The trees.
        Part(_coned(TREE, GROUND - 0.01, GROUND + 0.07, 0.02, 0.02), plain(WOOD)),
        Part(_coned(TREE, GROUND + 0.05, GROUND + 0.20, 0.095, 0.02), plain(LEAF)),
        Part(_coned(TREE, GROUND + 0.15, 0.07, 0.075, 0.0), plain(LEAF)),
        Part(_coned(SMALL_TREE, GROUND - 0.01, GROUND + 0.04, 0.014, 0.014), plain(WOOD)),
        Part(_balled((*SMALL_TREE, GROUND + 0.085), 0.065), plain(LEAF)),
        # The boat.
        Part(hull_sdf, hull_paint),
        Part(sail_sdf, plain(WHITE)),
        Part(_coned(BOAT, SEA_TOP + 0.08, SEA_TOP + 0.29, 0.008, 0.008), plain(WOOD)),
    ]
    for angle, z in window_angles:
        parts.append(Part(_boxed(_on_tower(angle, z), (0.012, 0.02, 0.026), angle), plain(NAVY)))
    return parts


PARTS = build_parts()


GRID_SIZE = 64
GRID_MARGIN = 0.04


@cache
def _grid() -> tuple[Tensor, Tensor, Tensor]:
    """The grid's lower corner, its cells' sizes, and each cell's bits of the parts that may be nearest in it.

    Distances change by no more than a point moves: a part that at the cell's centre is farther than the
    nearest one by more than the cell's diagonal is the nearest nowhere in that cell and is left out.
    """
    low = torch.tensor(BOX_MIN, dtype=DTYPE)[:, None] - GRID_MARGIN
    step = (torch.tensor(BOX_MAX, dtype=DTYPE)[:, None] + GRID_MARGIN - low) / GRID_SIZE
    axis = torch.arange(GRID_SIZE, dtype=DTYPE) + 0.5
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1) * step + low
    distances = torch.stack([part.sdf(centers) for part in PARTS])
    candidates = distances <= distances.amin(dim=0) + 1.01 * step.norm()
    bits = 2 ** torch.arange(len(PARTS), dtype=torch.int64)
    return low, step, (candidates * bits[:, None]).sum(dim=0)


def _candidates(p: Tensor) -> Iterator[tuple[int, Part, Tensor]]:
    """Each part with the indices of the points that it may be nearest to."""
    low, step, bits = _grid()
    cell = ((p - low) / step).floor().clamp(0, GRID_SIZE - 1).to(torch.int64)
    mask = bits[(cell[0] * GRID_SIZE + cell[1]) * GRID_SIZE + cell[2]]
    for index, part in enumerate(PARTS):
        where = (mask & (1 << index)).nonzero().squeeze(1)
        if where.numel():
            yield index, part, where


def scene_sdf(p: Tensor) -> Tensor:
    """Distance to the nearest part (a lower bound of it); outside the grid it may be too large."""
    nearest = torch.full_like(p[0], math.inf)
    for _, part, where in _candidates(p):
        nearest[where] = torch.minimum(nearest[where], part.sdf(p[:, where]))
    return nearest


def _owners(p: Tensor) -> Tensor:
    """Index of the part nearest to each point."""
    nearest = torch.full_like(p[0], math.inf)
    owner = torch.zeros_like(nearest, dtype=torch.int64)
    for index, part, where in _candidates(p):
        distance = part.sdf(p[:, where])
        closer = distance < nearest[where]
        nearest[where[closer]] = distance[closer]
        owner[where[closer]] = index
    return owner


# --- Light. ---


def _normals(sdf: Sdf, p: Tensor) -> Tensor:
    """Unit normals from the distance's differences at a tetrahedron's corners."""
    h = 5e-4
    total = torch.zeros_like(p)
    for corner in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        k = torch.tensor(corner, dtype=p.dtype)[:, None]
        total = total + k * sdf(p + h * k)
    return total / _length(*total).clamp(min=1e-12)


def _sun_visibility(p: Tensor, sun: Tensor) -> Tensor:
    """How much of the sun a point sees, 0 to 1, with soft edges."""
    t = torch.full_like(p[0], 0.012)
    visible = torch.ones_like(t)
    for _ in range(14):
        d = scene_sdf(p + sun[:, None] * t)
        visible = torch.minimum(visible, (10.0 * d / t).clamp(0.0, 1.0))
        t = t + d.clamp(0.012, 0.12)
    return visible * visible * (3.0 - 2.0 * visible)


def _openness(p: Tensor, normal: Tensor) -> Tensor:
    """A cheap ambient occlusion, 0 (in a corner) to 1 (open)."""
    blocked = torch.zeros_like(p[0])
    for step, weight in ((0.02, 1.0), (0.05, 0.6), (0.10, 0.35)):
        blocked = blocked + weight * (1.0 - (scene_sdf(p + normal * step) / step)).clamp(0.0, 1.0)
    return 1.0 - 0.5 * blocked / 1.95


def shade(p: Tensor) -> Tensor:
    """Colours (3, N) of surface points (3, N): they depend on the point alone, never on the camera."""
    owner = _owners(p)
    sun = torch.tensor(SUN, dtype=p.dtype)
    sun = sun / sun.norm()
    normal = torch.zeros_like(p)
    albedo = torch.zeros_like(p)
    glow = torch.zeros_like(p[0])
    for index, part in enumerate(PARTS):
        where = (owner == index).nonzero().squeeze(1)
        if where.numel() == 0:
            continue
        points = p[:, where]
        n = _normals(part.sdf, points)
        normal[:, where] = n
        albedo[:, where] = part.paint(points, n)
        glow[where] = part.glow
    outside = p + normal * 0.004
    facing = (normal * sun[:, None]).sum(0)
    direct = torch.zeros_like(glow)
    lit = (facing > 0.0).nonzero().squeeze(1)
    direct[lit] = facing[lit] * _sun_visibility(outside[:, lit], sun)
    ambient = AMBIENT_DOWN + (AMBIENT_UP - AMBIENT_DOWN) * (0.5 + 0.5 * normal[2])
    light = ambient * _openness(outside, normal) + SUN_STRENGTH * direct
    light = light + glow * (1.0 - light)
    return (albedo * light).clamp(0.0, 1.0)


# --- Cameras and pictures. ---


def look_at_origin(azimuth: float, elevation: float) -> np.ndarray:
    """Camera-to-world matrix (OpenGL convention) of a camera on the sphere; angles in degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, np.cross(back, right), back
    matrix[:3, 3] = CAMERA_RADIUS * back
    return matrix


def train_cameras(count: int, seed: int) -> list[np.ndarray]:
    """Cameras on a jittered Fibonacci spiral above ``TRAIN_MIN_ELEVATION``."""
    rng = np.random.default_rng(seed)
    lowest = math.sin(math.radians(TRAIN_MIN_ELEVATION))
    cameras = []
    for i in range(count):
        height = lowest + (0.985 - lowest) * (i + rng.uniform(0.1, 0.9)) / count
        azimuth = math.degrees(i * math.pi * (3.0 - math.sqrt(5.0))) + rng.uniform(-8.0, 8.0)
        cameras.append(look_at_origin(azimuth, math.degrees(math.asin(height))))
    return cameras


def val_cameras() -> list[np.ndarray]:
    """Four cameras around the object at different elevations."""
    return [look_at_origin(20.0 + 360.0 * i / NUM_VAL, (10.0, 35.0, 20.0, 50.0)[i]) for i in range(NUM_VAL)]


def test_cameras() -> list[np.ndarray]:
    """Once around the object, in order, for a video."""
    return [look_at_origin(-60.0 + 360.0 * i / NUM_TEST, TEST_ELEVATION) for i in range(NUM_TEST)]


def project(point: tuple[float, float, float], matrix: np.ndarray, size: int) -> tuple[float, float]:
    """Pixel coordinates (x right, y down, pixel centres at .5) at which a camera sees a world point."""
    local = np.linalg.inv(matrix) @ np.array([*point, 1.0])
    focal = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE_X)
    return (0.5 * size + focal * local[0] / -local[2], 0.5 * size - focal * local[1] / -local[2])


def _rays(x: Tensor, y: Tensor, matrix: np.ndarray, size: int) -> Tensor:
    """Unit directions (3, N) in the world of rays through the given pixel coordinates."""
    focal = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE_X)
    local = torch.stack(((x - 0.5 * size) / focal, (0.5 * size - y) / focal, -torch.ones_like(x)))
    local = local / _length(*local)
    rotation = torch.as_tensor(matrix[:3, :3], dtype=DTYPE)
    return rotation @ local


def _box_span(origin: Tensor, direction: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the scene's box, widened by ``margin``; enter > leave: they miss."""
    low = torch.tensor(BOX_MIN, dtype=DTYPE)[:, None] - margin
    high = torch.tensor(BOX_MAX, dtype=DTYPE)[:, None] + margin
    safe = torch.where(direction.abs() < 1e-12, 1e-12, direction)
    a, b = (low - origin) / safe, (high - origin) / safe
    return torch.minimum(a, b).amax(dim=0), torch.maximum(a, b).amin(dim=0)


def _pixel_starts(matrix: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """March one cone for each pixel: pixels that may show the scene, and a distance up to which all is free.

    Returns columns, rows, start distances and the distances at which rays leave the scene's box.
    """
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    columns, rows = columns.reshape(-1), rows.reshape(-1)
    direction = _rays(columns.to(DTYPE) + 0.5, rows.to(DTYPE) + 0.5, matrix, size)
    origin = torch.as_tensor(matrix[:3, 3], dtype=DTYPE)[:, None]
    # Half a pixel's diagonal at distance 1.
    spread = math.tan(0.5 * CAMERA_ANGLE_X) / size * math.sqrt(2.0) * 1.02
    t, leave = _box_span(origin, direction, margin=2.0 * spread * CAMERA_RADIUS)
    maybe = t < leave
    active = maybe.nonzero().squeeze(1)
    for _ in range(48):
        distance = scene_sdf(origin + direction[:, active] * t[active])
        radius = spread * t[active]
        going = distance > 2.0 * radius
        active = active[going]
        t[active] = t[active] + 0.97 * (distance - radius)[going]
        out = t[active] > leave[active]
        maybe[active[out]] = False
        active = active[~out]
        if active.numel() == 0:
            break
    return columns[maybe], rows[maybe], t[maybe], leave[maybe]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are small: on a shared machine torch's threads cost far more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def render(matrix: np.ndarray, size: int) -> np.ndarray:
    """Picture of the scene: (size, size, 4) uint8, straight alpha, colours averaged over samples that hit."""
    with _one_thread():
        return _render(matrix, size)


def _render(matrix: np.ndarray, size: int) -> np.ndarray:
    """The work of :func:`render`."""
    n = SUPERSAMPLES * SUPERSAMPLES
    columns, rows, start, leave = _pixel_starts(matrix, size)
    sub = (torch.arange(SUPERSAMPLES, dtype=DTYPE) + 0.5) / SUPERSAMPLES
    x = (columns.to(DTYPE)[:, None] + sub.repeat(SUPERSAMPLES)[None, :]).reshape(-1)
    y = (rows.to(DTYPE)[:, None] + sub.repeat_interleave(SUPERSAMPLES)[None, :]).reshape(-1)
    origin = torch.as_tensor(matrix[:3, 3], dtype=DTYPE)[:, None]
    direction = _rays(x, y, matrix, size)
    t = start.repeat_interleave(n)
    end = leave.repeat_interleave(n)
    hit = torch.zeros(t.shape, dtype=torch.bool)
    active = torch.arange(t.numel())
    for _ in range(96):
        distance = scene_sdf(origin + direction[:, active] * t[active])
        near = distance < HIT_DISTANCE
        hit[active[near]] = True
        t[active] = t[active] + torch.where(near, 0.0, distance)
        active = active[~near & (t[active] < end[active])]
        if active.numel() == 0:
            break
    colors = torch.zeros((t.numel(), 3), dtype=DTYPE)
    where = hit.nonzero().squeeze(1)
    colors[where] = shade(origin + direction[:, where] * t[where]).T
    count = hit.reshape(-1, n).sum(dim=1).to(DTYPE)
    mean = colors.reshape(-1, n, 3).sum(dim=1) / count.clamp(min=1.0)[:, None]
    picture = np.zeros((size, size, 4), dtype=np.uint8)
    rgba = torch.cat((mean, (count / n)[:, None]), dim=1)
    picture[rows.numpy(), columns.numpy()] = (rgba * 255.0 + 0.5).floor().to(torch.uint8).numpy()
    return picture


def write_split(directory: Path, name: str, cameras: list[np.ndarray], size: int) -> None:
    """Render one split's pictures and write its transforms file."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    frames = []
    for i, matrix in enumerate(cameras):
        matrix = np.round(matrix, 8)  # what the file says is what is rendered
        Image.fromarray(render(matrix, size)).save(directory / name / f"r_{i:03d}.png", optimize=True)
        frames.append({"file_path": f"./{name}/r_{i:03d}", "transform_matrix": matrix.tolist()})
    text = json.dumps({"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}, indent=1)
    (directory / f"transforms_{name}.json").write_text(text + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Write the scene; returns the exit status."""
    parser = argparse.ArgumentParser(description="Render the lighthouse demo scene (NeRF-synthetic format).")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write: demo/lighthouse")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels (default 128)")
    parser.add_argument("--views", type=int, default=100, help="number of train pictures (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the train cameras' jitter (default 0)")
    args = parser.parse_args(argv)
    if args.size < MIN_SIZE:
        print(f"error: --size must be at least {MIN_SIZE}, not {args.size}", file=sys.stderr)
        return 2
    if args.views < 1:
        print(f"error: --views must be at least 1, not {args.views}", file=sys.stderr)
        return 2
    began = time.perf_counter()
    splits = {"train": train_cameras(args.views, args.seed), "val": val_cameras(), "test": test_cameras()}
    for name, cameras in splits.items():
        write_split(args.output_dir, name, cameras, args.size)
    total = sum(path.stat().st_size for path in args.output_dir.rglob("*") if path.is_file())
    views = sum(len(cameras) for cameras in splits.values())
    print(f"{views} views, {total} bytes, {time.perf_counter() - began:.1f} s: {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
