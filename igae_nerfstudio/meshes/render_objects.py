"""`igae render-objects`: a folder of meshes -> posed multi-view scenes, rendered with Blender's Cycles.

    igae render-objects --meshes DIR --output-dir OUT --views 300 --size 128

Each GLB, glTF and OBJ file becomes one folder in the Blender / NeRF-synthetic layout, which Nerfstudio's
``blender-data`` reads (PNG only)::

    OUT/NAME/transforms_{train,val,test}.json    camera_angle_x, and per frame a file path and a camera-to-world matrix
    OUT/NAME/{train,val,test}/r_000.png ...      RGBA, straight alpha
    OUT/NAME/depth/{train,val,test}/r_000.png    with --depth: 16 bits, depth along the optical axis; 0 is no surface
    OUT/NAME/render.json                         what it was made from: mesh, settings, normalisation

NAME is the mesh's file name without suffix, with its folder in front where two meshes share it.

World: z up, the object's bounding box centred at the origin. Cameras: OpenGL axes (x right, y up, looking along -z) on
a sphere, looking at the origin.

Every mesh is rendered by a Blender process of its own (`blender_worker.py`), so a crash costs that mesh only, into a
hidden folder, which is renamed at the end. The pictures follow from the mesh and the settings alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Literal, Sequence

import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igae_nerfstudio.config_files import differing
from igae_nerfstudio.console import CONSOLE, log, warn
from igae_nerfstudio.errors import InputError, one_line, reported_in_one_line
from igae_nerfstudio.files import job_folder

FORMAT = 1
"""Raised when the same settings give other pictures than before (light, cameras, normalisation)."""

SPLITS = ("train", "val", "test")
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
DEPTH_STEPS = 65535
SIDECAR = "render.json"
UNFINISHED = ".unfinished-scene"
MESHES = (".glb", ".gltf", ".obj")

WORKER = [sys.executable, "-m", "igae_nerfstudio.meshes.blender_worker"]
DEBIAN_PACKAGES = "libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1"

NOT_IN_THE_PICTURES = ("meshes", "output_dir", "limit", "processes", "timeout", "overwrite")
"""Options that do not change the pictures; a finished scene stays valid when they change."""


@dataclass
class RenderObjects:
    """Render every mesh of a folder into a scene of posed pictures."""

    meshes: Path
    """Folder with GLB, glTF and OBJ files; its subfolders are searched too."""
    output_dir: Path
    """Folder that receives one folder per mesh."""
    views: int = 300
    """Training views per scene."""
    val_views: int = 4
    """Validation views per scene."""
    test_views: int = 20
    """Test views per scene."""
    size: int = 128
    """Side of the square pictures in pixels: a multiple of 8, at least 32."""
    samples: int = 24
    """Cycles samples per pixel; the time grows with them and the noise falls with their square root."""
    denoise: bool = True
    """Denoise the pictures (about 0.15 s a view at 128 pixels): halves the error left at 24 samples."""
    format: Literal["png", "webp"] = "png"
    """Both lossless. WebP takes less space, but Nerfstudio's blender-data reads PNG only."""
    depth: bool = False
    """Also write depth pictures: 16-bit PNG, along the optical axis, in steps that the transforms files state."""
    seed: int = 0
    """Decides the cameras and the sampling noise of every scene, and which meshes --limit takes."""
    diagonal: float = 1.6
    """Length of the bounding box's diagonal after normalisation, in scene units."""
    radius: float = 2.1
    """Distance of the cameras from the origin, in scene units."""
    elevation: tuple[float, float] = (-70.0, 70.0)
    """Lowest and highest camera, in degrees above the horizon; the cameras are uniform over that part of the sphere."""
    camera_angle_x: float = 0.6911112
    """Horizontal field of view in radians."""
    limit: int | None = None
    """Render only this many meshes, chosen by the seed; a higher limit adds to the choice of a lower one."""
    processes: int | None = None
    """Blender processes at the same time, one thread and about 0.4 GB each; by default one per core."""
    timeout: float = 1800.0
    """Give a mesh up when no view of it was finished for so many seconds: on a busy machine a view takes long."""
    overwrite: bool = False
    """Render scenes again that were made from another version of the mesh or with other settings."""

    def check(self) -> None:
        """Raise `InputError` for values that make no scene."""
        counts = (self.views, self.val_views, self.test_views, self.samples, self.limit, self.processes)
        low, high = self.elevation
        if not all(count is None or count >= 1 for count in counts):
            raise InputError("numbers of views, samples, meshes (--limit) and processes must be at least 1")
        if self.size < 32 or self.size % 8:
            raise InputError(f"--size is {self.size}; it must be a multiple of 8 and at least 32")
        if not 0.0 < self.diagonal < 2.0 * self.radius < math.inf:
            raise InputError(
                f"--radius is {self.radius} and --diagonal {self.diagonal}; the radius must be more than half the "
                "diagonal, so that the cameras are outside the object"
            )
        if not -90.0 <= low <= high <= 90.0 or not 0.0 < self.camera_angle_x < math.pi:
            raise InputError(
                f"--elevation is {low} {high} and --camera-angle-x {self.camera_angle_x}; give two rising angles from "
                "-90 to 90 degrees, and one between 0 and pi radians"
            )

    def settings(self) -> dict[str, Any]:
        """What decides the pictures apart from the mesh, as JSON holds it."""
        values = {key: value for key, value in asdict(self).items() if key not in NOT_IN_THE_PICTURES}
        return json.loads(json.dumps({"format_version": FORMAT, **values}))

    def counts(self) -> dict[str, int]:
        """Number of views of each split."""
        return dict(zip(SPLITS, (self.views, self.val_views, self.test_views)))

    def depth_unit(self) -> float | None:
        """Scene units per step of the depth pictures, such that the farthest possible point has the last step."""
        return (self.radius + self.diagonal / 2) / DEPTH_STEPS if self.depth else None


class SceneFailed(Exception):
    """A mesh did not become a scene; the message is the reason."""


# --- Cameras ---


def sphere_cameras(count: int, radius: float, elevation: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Cameras that look at the origin, spread evenly over a zone of a sphere.

    A Fibonacci lattice: equal steps of height, which are equal areas, each turned by the golden angle from the one
    before. The generator draws where the first one is, in both directions.

    Args:
        count: n.
        radius: of the sphere, scene units.
        elevation: degrees of the zone's lower and upper edge.
        rng: two numbers are drawn.

    Returns:
        (n, 4, 4) camera to world, OpenGL axes, z up, from the top of the zone to its bottom.
    """
    phase, turn = rng.random(2)
    index = np.arange(count)
    low, high = np.sin(np.radians(elevation))
    z = high - (high - low) * (index + phase) / count
    azimuth = 2.0 * np.pi * (turn + GOLDEN * index)
    across = np.sqrt(np.clip(1.0 - z * z, 0.0, None))
    cosine, sine = np.cos(azimuth), np.sin(azimuth)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 0] = np.stack([-sine, cosine, np.zeros(count)], axis=-1)  # right
    poses[:, :3, 1] = np.stack([-z * cosine, -z * sine, across], axis=-1)  # up
    poses[:, :3, 2] = np.stack([across * cosine, across * sine, z], axis=-1)  # back
    poses[:, :3, 3] = radius * poses[:, :3, 2]
    return poses


def scene_seed(seed: int, mesh_sha256: str) -> int:
    """The seed of one scene, in [0, 2^31): from the mesh's content, not from its path."""
    return int(hashlib.sha256(f"{seed} {mesh_sha256}".encode()).hexdigest()[:8], 16) % 2**31


def scene_poses(config: RenderObjects, seed: int) -> dict[str, dict[str, list[list[float]]]]:
    """For each split, the camera-to-world matrix of each view by the view's name, such as `train/r_000`."""
    poses = {}
    for index, (split, count) in enumerate(config.counts().items()):
        matrices = sphere_cameras(count, config.radius, config.elevation, np.random.default_rng([seed, index]))
        poses[split] = {f"{split}/r_{i:03d}": matrix.tolist() for i, matrix in enumerate(matrices)}
    return poses


def transforms(config: RenderObjects, poses: dict[str, list[list[float]]]) -> dict[str, Any]:
    """The content of a split's transforms file."""
    meta: dict[str, Any] = {"camera_angle_x": config.camera_angle_x}
    if config.format != "png":  # paths have no suffix, and readers expect .png
        meta["image_suffix"] = f".{config.format}"
    if config.depth:
        meta["depth"] = (
            "16-bit PNG; value x depth_unit_scale_factor = depth along the optical axis of the surface behind the "
            "pixel's centre, in scene units; 0: no surface"
        )
        meta["depth_unit_scale_factor"] = config.depth_unit()
    meta["frames"] = [
        {"file_path": f"./{name}", "transform_matrix": pose}
        | ({"depth_file_path": f"./depth/{name}.png"} if config.depth else {})
        for name, pose in poses.items()
    ]
    return meta


# --- One scene ---


def is_rendered(name: str, mesh: Path, config: RenderObjects) -> bool:
    """Whether the scene `name` of a mesh is complete and made with these settings.

    Raises:
        InputError: its folder holds something else and may not be replaced.
    """
    folder = config.output_dir / name
    if not folder.exists():
        return False
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        other, made_from = differing(sidecar["settings"], config.settings()), sidecar["mesh_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no scene of igae render-objects (it has no readable {SIDECAR}); "
            "move it away or choose another --output-dir"
        ) from error
    if made_from != mesh_hash(mesh):
        other.append("mesh file")
    if other and not config.overwrite:
        raise InputError(
            f"{folder} was rendered with another {', '.join(other)}; give --overwrite to render such scenes again, "
            "or choose another --output-dir"
        )
    views = [view for split in scene_poses(config, 0).values() for view in split]
    files = [f"{view}.{config.format}" for view in views] + [f"depth/{view}.png" for view in views if config.depth]
    return not other and all((folder / file).is_file() for file in files)


async def render_scene(name: str, mesh: Path, config: RenderObjects, on_view: Callable[[], None]) -> None:
    """Render one mesh into the folder of its scene.

    Raises:
        SceneFailed: with the reason.
        InputError: Blender cannot be used at all.
    """
    unfinished = config.output_dir / f".{name}{UNFINISHED}"
    try:
        sha256 = mesh_hash(mesh)
        seed = scene_seed(config.seed, sha256)
        poses = scene_poses(config, seed)
        for split in SPLITS:
            for folder in (unfinished, unfinished / "depth") if config.depth else (unfinished,):
                (folder / split).mkdir(parents=True)
            _write_json(unfinished / f"transforms_{split}.json", transforms(config, poses[split]))
        job = {
            "mesh": str(mesh.resolve()),
            "folder": str(unfinished.resolve()),
            "poses": {view: pose for split in poses.values() for view, pose in split.items()},
            "seed": seed,
            "depth_unit": config.depth_unit(),
            "settings": config.settings(),
        }
        made = await run_worker(job, config.timeout, on_view)
        sidecar = {
            "mesh": mesh.relative_to(config.meshes).as_posix(),
            "mesh_sha256": sha256,
            "settings": config.settings(),
            "blender": made["blender"],
            "normalization": {
                "formula": "p_scene = scale * (p_mesh - center), p_mesh with z up as Blender imports it",
                "center": made["center"],
                "scale": made["scale"],
            },
        }
        _write_json(unfinished / SIDECAR, sidecar)
        scene = config.output_dir / name
        if scene.exists():
            shutil.rmtree(scene)  # `is_rendered` has allowed it
        unfinished.rename(scene)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


async def run_worker(job: dict[str, Any], timeout: float, on_view: Callable[[], None]) -> dict[str, Any]:
    """Render one scene in a process of its own, which is killed after `timeout` seconds without a finished view.

    `blender_worker.py` states the format of the job and the answer.

    Raises:
        SceneFailed: the worker says so, crashes, or hangs.
        InputError: Blender cannot be imported.
    """
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(*WORKER, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
    assert process.stdin is not None and process.stdout is not None
    answer: dict[str, Any] = {}
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        while line := await asyncio.wait_for(process.stdout.readline(), timeout):
            answer = json.loads(line)
            if not answer:
                on_view()
        code = await process.wait()
    except asyncio.TimeoutError:
        raise SceneFailed(f"Blender finished no view for {timeout:g} s") from None
    finally:  # also when the command is stopped
        if process.returncode is None:
            process.kill()
            await process.wait()
    if "no_blender" in answer:
        raise InputError(
            f"bpy, Blender as a Python package, cannot be imported ({answer['no_blender']}); it needs Python 3.11 "
            f"and igae-nerfstudio with its extra `render`; on Debian and Ubuntu also: apt-get install {DEBIAN_PACKAGES}"
        )
    if "error" in answer:
        raise SceneFailed(answer["error"])
    if not answer:
        raise SceneFailed(f"Blender crashed ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})")
    return answer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --- Meshes ---


def find_meshes(folder: Path) -> dict[str, Path]:
    """All meshes of a folder and its subfolders, sorted by path, under the names of their scenes.

    Hidden files and folders are passed over.

    Raises:
        InputError: there is none.
    """
    relatives = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in MESHES)
    shown = [path for path in relatives if not any(part.startswith(".") for part in path.parts)]
    meshes = [path.as_posix() for path in shown if (folder / path).is_file()]
    if not meshes:
        raise InputError(f"there is no GLB, glTF or OBJ file in {folder} or below it; pass a folder with meshes")
    return {name: folder / mesh for name, mesh in zip(scene_names(meshes), meshes)}


def scene_names(relatives: Sequence[str]) -> list[str]:
    """A folder name for each mesh: the file's stem, with more of its path where several have the same.

    The names differ even on file systems that ignore case.
    """
    choices = []
    for relative in relatives:
        stem, _, suffix = relative.rpartition(".")
        folders = stem.replace("/", "-")
        digest = hashlib.sha256(relative.encode()).hexdigest()[:12]
        choices.append((stem.rpartition("/")[2], folders, f"{folders}-{suffix}", f"{folders}-{suffix}-{digest}"))
    names = [choice[0] for choice in choices]
    for level in range(1, 4):
        count = Counter(name.casefold() for name in names)
        names = [choice[level] if count[name.casefold()] > 1 else name for name, choice in zip(names, choices)]
    return names


def mesh_hash(path: Path) -> str:
    """SHA-256 of a mesh and of the files that it refers to: buffers, materials and textures, where they exist.

    Raises:
        OSError: the mesh cannot be read.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content)
    for companion in _companions(path, content):
        if companion.is_file():
            digest.update(hashlib.sha256(companion.read_bytes()).digest())
    return digest.hexdigest()


def _companions(path: Path, content: bytes) -> list[Path]:
    if path.suffix.lower() == ".gltf":
        try:
            document = json.loads(content)
            uris = [entry.get("uri", "data:") for key in ("buffers", "images") for entry in document.get(key, [])]
            return [path.parent / uri for uri in uris if not uri.startswith("data:")]
        except (ValueError, AttributeError, TypeError):
            return []  # Blender will report what is wrong with it
    if path.suffix.lower() == ".obj":
        libraries = [path.parent / name for name in _obj_values(content, "mtllib")]
        found = [library for library in libraries if library.is_file()]
        return libraries + [path.parent / name for file in found for name in _obj_values(file.read_bytes(), "map_")]
    return []


def _obj_values(content: bytes, keyword: str) -> list[str]:
    """The last word of each line of an OBJ or MTL file that begins with `keyword`."""
    lines = (line.split() for line in content.decode("utf-8", "replace").splitlines() if line.startswith(keyword))
    return [words[-1] for words in lines if len(words) > 1]


# --- All scenes ---


def render_all(config: RenderObjects) -> None:
    """Render what is not there yet.

    Raises:
        InputError: the input cannot be used, or no mesh at all became a scene.
        KeyboardInterrupt: ctrl-C; finished scenes stay.
    """
    config.check()
    meshes = list(find_meshes(config.meshes).items())
    if config.limit is not None:
        random.Random(config.seed).shuffle(meshes)
        meshes = meshes[: config.limit]
    with job_folder(config.output_dir):
        for left in config.output_dir.glob(f".*{UNFINISHED}"):  # by a run that was killed
            shutil.rmtree(left)
        pending = [(name, mesh) for name, mesh in meshes if not is_rendered(name, mesh, config)]
        try:
            failed = asyncio.run(_render(pending, config))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; finished scenes are in {config.output_dir}, and the same command renders the others"
            ) from None
    for mesh, reason in sorted(failed.items()):
        warn(f"failed: {mesh.relative_to(config.meshes).as_posix()}: {reason}")
    rendered = len(pending) - len(failed)
    found = len(meshes) - len(pending)
    log(f"Scenes in {config.output_dir}: {rendered} rendered, {found} there already, {len(failed)} failed")
    if len(failed) == len(meshes):
        raise InputError(f"no mesh of {config.meshes} became a scene; the reasons are above")


async def _render(pending: Sequence[tuple[str, Path]], config: RenderObjects) -> dict[Path, str]:
    """Render meshes, by the names of their scenes, side by side; returns the reason of each that failed."""
    views = sum(config.counts().values())
    failed: dict[Path, str] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    slots = asyncio.Semaphore(config.processes or cores or 1)
    columns = (TextColumn("Views"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        task = progress.add_task("", total=views * len(pending))

        async def render(name: str, mesh: Path) -> None:
            async with slots:
                start = time.monotonic()
                try:
                    await render_scene(name, mesh, config, lambda: progress.advance(task))
                    log(f"{name}: {views} views in {time.monotonic() - start:.1f} s")
                except (SceneFailed, OSError) as error:
                    failed[mesh] = one_line(error)

        await asyncio.gather(*(render(*scene) for scene in pending))
    return failed


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command."""
    with reported_in_one_line():
        render_all(tyro.cli(RenderObjects, args=arguments, prog=prog))


if __name__ == "__main__":
    main()
