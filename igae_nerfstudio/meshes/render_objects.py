"""`igae-render-objects`: a folder of meshes -> posed multi-view scenes, rendered with Blender's Cycles.

    igae-render-objects --meshes DIR --output-dir OUT --views 300 --size 128

Each GLB, glTF and OBJ file becomes one folder in the Blender / NeRF-synthetic layout, which Nerfstudio's
``blender-data`` reads (PNG only)::

    OUT/NAME/transforms_{train,val,test}.json    camera_angle_x, and per frame a file path and a camera-to-world matrix
    OUT/NAME/{train,val,test}/r_000.png ...      RGBA, straight alpha
    OUT/NAME/depth/{train,val,test}/r_000.png    with --depth: 16 bits, depth along the optical axis; 0 is no surface
    OUT/NAME/render.json                         what it was made from: mesh, settings, normalisation

NAME is the mesh's file name without suffix, with its folder in front where two meshes share it.

World: z up, the object's bounding box centred at the origin. Cameras: OpenGL axes (x right, y up, looking along -z) on
a sphere, looking at the origin.

Every mesh has its own process with its own Blender (`blender_worker.py`), so a crash costs that mesh only. A scene is
made in a hidden folder and renamed when it is whole; scenes that are there already are passed over. The pictures
follow from the mesh and the settings alone: not from the number of processes, the other meshes or what was there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from igae_nerfstudio.console import CONSOLE, log, warn
from igae_nerfstudio.engine.interruption import stopped
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import job_folder

FORMAT = 1
"""Raised when the same settings give other pictures than before (light, cameras, normalisation)."""

SUFFIXES = (".glb", ".gltf", ".obj")
SPLITS = ("train", "val", "test")
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
DEPTH_STEPS = 65535
SIDECAR = "render.json"
PARTIAL = ".unfinished-scene"

WORKER = [sys.executable, "-m", "igae_nerfstudio.meshes.blender_worker"]
DEBIAN_PACKAGES = "libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1"

NOT_IN_THE_PICTURES = ("meshes", "output_dir", "limit", "processes", "timeout", "overwrite")
"""Options that leave the pictures as they are; a finished scene stays valid when they change."""


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
    limit: Optional[int] = None
    """Render only this many meshes, chosen by the seed; a higher limit adds to the choice of a lower one."""
    processes: Optional[int] = None
    """Blenders at the same time, one thread and about 0.4 GB each; by default one per core."""
    timeout: float = 1800.0
    """Give a mesh up when it has not got a view done for so many seconds: on a busy machine a view takes long."""
    overwrite: bool = False
    """Render scenes again that are there but were made from another mesh or with other settings."""

    def check(self) -> None:
        """Raise `InputError` for values that make no scene."""
        for name in ("views", "val_views", "test_views", "samples", "limit", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.size < 32 or self.size % 8:
            raise InputError(f"--size is {self.size}; it must be a multiple of 8 and at least 32")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must not be negative")
        if not 0.0 < self.diagonal < 2.0 * self.radius < math.inf:
            raise InputError(
                f"--radius is {self.radius} and --diagonal {self.diagonal}; the cameras must be outside the object: "
                "both positive, and the radius more than half the diagonal"
            )
        low, high = self.elevation
        if not -90.0 <= low <= high <= 90.0:
            raise InputError(f"--elevation is {low} {high}; it must be two rising angles between -90 and 90 degrees")
        if not 0.0 < self.camera_angle_x < math.pi:
            raise InputError(f"--camera-angle-x is {self.camera_angle_x}; it must be between 0 and pi")
        if not self.timeout > 0.0:
            raise InputError(f"--timeout is {self.timeout}; it must be positive")
        if not self.meshes.is_dir():
            raise InputError(f"--meshes {self.meshes} is not a folder")

    def settings(self) -> dict[str, Any]:
        """What decides the pictures apart from the mesh, as JSON has it."""
        values = {key: value for key, value in asdict(self).items() if key not in NOT_IN_THE_PICTURES}
        return json.loads(json.dumps({"format_version": FORMAT, **values}))

    def counts(self) -> dict[str, int]:
        """Views of each split."""
        return dict(zip(SPLITS, (self.views, self.val_views, self.test_views)))

    def depth_unit(self) -> Optional[float]:
        """Scene units per step of the depth pictures, such that the farthest possible point has the last step."""
        return (self.radius + self.diagonal / 2) / DEPTH_STEPS if self.depth else None


class SceneFailed(Exception):
    """A mesh did not become a scene; the message is the reason, in one line."""


@dataclass(frozen=True)
class Mesh:
    """One file to render."""

    path: Path
    name: str
    """Of the scene's folder."""
    relative: str
    """Path within the mesh folder, with slashes."""


@dataclass
class Report:
    """What happened to the meshes of one run."""

    rendered: int = 0
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Reason for each relative path."""
    views: int = 0
    seconds: float = 0.0
    """Spent in all processes on the views counted above."""

    def __str__(self) -> str:
        text = f"Scenes: {self.rendered} rendered, {self.found} there already, {len(self.failed)} failed"
        return f"{text}; {self.seconds / self.views:.2f} s a view in each process" if self.views else text


# --- Meshes ---


def find_meshes(folder: Path) -> list[Mesh]:
    """All meshes of a folder and its subfolders, sorted by path; hidden files and folders are left alone.

    Raises:
        InputError: there is none.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not paths:
        raise InputError(f"there is no GLB, glTF or OBJ file in {folder} or below it")
    relatives = [path.relative_to(folder).as_posix() for path in paths]
    return [Mesh(path, name, relative) for path, name, relative in zip(paths, scene_names(relatives), relatives)]


def scene_names(relatives: Sequence[str]) -> list[str]:
    """A folder name for each mesh, from its path: the stem, and more of the path where others have the same.

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
    """SHA-256 of a mesh and of the files that it names: buffers, materials, textures (those that are there).

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
            return []  # Blender will say what is wrong with it
    if path.suffix.lower() == ".obj":
        libraries = [path.parent / name for name in _obj_values(content, "mtllib")]
        found = [library for library in libraries if library.is_file()]
        return libraries + [path.parent / name for file in found for name in _obj_values(file.read_bytes(), "map_")]
    return []


def _obj_values(content: bytes, keyword: str) -> list[str]:
    """The last word of each line of an OBJ or MTL file that begins with `keyword`."""
    lines = (line.split() for line in content.decode("utf-8", "replace").splitlines() if line.startswith(keyword))
    return [words[-1] for words in lines if len(words) > 1]


# --- Cameras ---


def sphere_cameras(count: int, radius: float, elevation: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Cameras that look at the origin, spread evenly over a zone of a sphere.

    A Fibonacci lattice: equal steps of height, which are equal areas, each turned by the golden angle from the one
    before. The generator draws where the first one is, in both directions.

    Args:
        count: n.
        radius: of the sphere.
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
    """The seed of one scene, in [0, 2^31): from what the mesh is, not from where it lies."""
    return int(hashlib.sha256(f"{seed} {mesh_sha256}".encode()).hexdigest()[:8], 16) % 2**31


def scene_views(config: RenderObjects, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The views of each split, as `blender_worker.py` takes them."""
    views = {}
    for index, (split, count) in enumerate(config.counts().items()):
        poses = sphere_cameras(count, config.radius, config.elevation, np.random.default_rng([seed, index]))
        views[split] = [
            {
                "image": f"{split}/r_{i:03d}",
                "depth": f"depth/{split}/r_{i:03d}" if config.depth else None,
                "pose": pose.tolist(),
            }
            for i, pose in enumerate(poses)
        ]
    return views


def transforms(config: RenderObjects, views: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a transforms file."""
    meta: dict[str, Any] = {"camera_angle_x": config.camera_angle_x}
    if config.format != "png":  # paths have no suffix and readers take .png for granted
        meta["image_suffix"] = f".{config.format}"
    if config.depth:
        meta["depth"] = (
            "16-bit PNG; value x depth_unit_scale_factor = depth along the optical axis of the surface behind the "
            "pixel's centre, in scene units; 0: no surface"
        )
        meta["depth_unit_scale_factor"] = config.depth_unit()
    meta["frames"] = []
    for view in views:
        frame = {"file_path": f"./{view['image']}", "transform_matrix": view["pose"]}
        if view["depth"] is not None:
            frame["depth_file_path"] = f"./{view['depth']}.png"
        meta["frames"].append(frame)
    return meta


# --- What is there already ---


def is_rendered(mesh: Mesh, config: RenderObjects) -> bool:
    """Whether a mesh's scene is there, whole, and made with these settings.

    Raises:
        InputError: its folder holds something else and may not be replaced.
        OSError: the mesh cannot be read.
    """
    folder = config.output_dir / mesh.name
    if not folder.exists():
        return False
    try:
        sidecar = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        made_with, made_from = dict(sidecar["settings"]), sidecar["mesh_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is no scene of igae-render-objects (it has no readable {SIDECAR}); "
            "move it away or choose another --output-dir"
        ) from error
    difference = _difference(made_with, config.settings())
    if not difference and made_from != mesh_hash(mesh.path):
        difference = f"another version of {mesh.relative}"
    if difference and not config.overwrite:
        raise InputError(
            f"{folder} was rendered from or with {difference}; give --overwrite to render such scenes again, "
            "or choose another --output-dir"
        )
    return not difference and _is_whole(folder, config)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that a scene was made with, where they differ from those now."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key.replace('_', '-')} {before.get(key)} (now {now.get(key)})" for key in keys)


def _is_whole(folder: Path, config: RenderObjects) -> bool:
    """Whether all of a scene's files are there."""
    for split, count in config.counts().items():
        folders = [(folder / split, config.format)] + [(folder / "depth" / split, "png")] * config.depth
        for place, suffix in folders:
            files = set(os.listdir(place)) if place.is_dir() else set()
            if not {f"r_{i:03d}.{suffix}" for i in range(count)} <= files:
                return False
        if not (folder / f"transforms_{split}.json").is_file():
            return False
    return True


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """The folder for this process alone, without what a killed run left unfinished.

    Raises:
        InputError: it cannot be made or written, or another process renders into it.
    """
    with job_folder(folder, "igae-render-objects"):
        for left in folder.glob(f".*{PARTIAL}"):
            shutil.rmtree(left, ignore_errors=True)
        yield


# --- Rendering ---


class Workers:
    """Starts Blender processes, listens to them, and can stop them all from another thread."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds without an event after which a process is killed."""
        self.timeout = timeout
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, job: Optional[dict[str, Any]], on_view: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """One job in a process of its own, whose format and events `blender_worker.py` states.

        Returns:
            The last event.

        Raises:
            SceneFailed: the worker says so, crashes, or falls silent.
        """
        with tempfile.TemporaryFile() as log, self._start(job, log) as process:
            expired = threading.Event()

            def kill() -> None:
                expired.set()
                process.kill()

            assert process.stdout is not None
            last: dict[str, Any] = {}
            watchdog = threading.Timer(self.timeout, kill)
            watchdog.start()
            try:
                for line in process.stdout:
                    watchdog.cancel()
                    try:
                        last = json.loads(line)
                    except ValueError:  # it died within the line
                        last = {}
                    if last.get("event") == "view":
                        on_view()
                    watchdog = threading.Timer(self.timeout, kill)
                    watchdog.start()
                code = process.wait()
            finally:
                watchdog.cancel()
                process.kill()
                with self._lock:
                    self._running.discard(process)
            if last.get("event") == "done":
                return last
            if last.get("event") == "failed":
                raise SceneFailed(last["reason"])
            if expired.is_set():
                raise SceneFailed(f"Blender was silent for {self.timeout:g} s")
            raise SceneFailed(_how_it_ended(code, log))

    def _start(self, job: Optional[dict[str, Any]], log: Any) -> subprocess.Popen:
        with tempfile.TemporaryFile() as request, self._lock:
            request.write(json.dumps(job).encode())
            request.seek(0)
            if self._stopped:
                raise SceneFailed("stopped")
            process = subprocess.Popen(
                WORKER,
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # ctrl-C reaches this process only, which then stops them
            )
            self._running.add(process)
            return process

    def stop(self) -> None:
        """Kill all processes and start none any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()


def _how_it_ended(code: int, log: Any) -> str:
    """One line about a process that ended without a word."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"Blender crashed ({name})"
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f"Blender ended with exit status {code}" + (f": {lines[-1]}" if lines else "")


def bpy_is_installed() -> bool:
    """Without importing it: that takes seconds and prints."""
    return importlib.util.find_spec("bpy") is not None


def check_blender(workers: Workers) -> None:
    """Raise `InputError` unless `bpy` is installed and starts."""
    if not bpy_is_installed():
        raise InputError(
            "bpy, Blender as a Python package, is not installed: pip install 'igae-nerfstudio[render]' "
            f"under Python 3.11 (this is {sys.version_info.major}.{sys.version_info.minor})"
        )
    try:
        workers.run(None)
    except SceneFailed as error:
        raise InputError(
            f"bpy, Blender as a Python package, does not start: {error}; "
            f"on Debian and Ubuntu it needs: apt-get install {DEBIAN_PACKAGES}"
        ) from error


def render_scene(mesh: Mesh, config: RenderObjects, workers: Workers, on_view: Callable[[], None]) -> float:
    """Render one mesh into its folder, which appears complete or not at all.

    Returns:
        Seconds that it took.

    Raises:
        SceneFailed: with the reason.
    """
    start = time.monotonic()
    partial = config.output_dir / f".{mesh.name}.{os.getpid()}{PARTIAL}"
    try:
        sha256 = mesh_hash(mesh.path)
        seed = scene_seed(config.seed, sha256)
        views = scene_views(config, seed)
        for split in SPLITS:
            (partial / split).mkdir(parents=True)
            if config.depth:
                (partial / "depth" / split).mkdir(parents=True)
            _write_json(partial / f"transforms_{split}.json", transforms(config, views[split]))
        job = {
            "mesh": str(mesh.path.resolve()),
            "output_dir": str(partial.resolve()),
            "size": config.size,
            "samples": config.samples,
            "denoise": config.denoise,
            "seed": seed,
            "camera_angle_x": config.camera_angle_x,
            "diagonal": config.diagonal,
            "format": config.format,
            "depth_unit": config.depth_unit(),
            "views": [view for split in SPLITS for view in views[split]],
        }
        done = workers.run(job, on_view)
        sidecar = {
            "mesh": mesh.relative,
            "mesh_sha256": sha256,
            "settings": config.settings(),
            "blender": done["blender"],
            "normalization": {
                "formula": "p_scene = scale * (p_mesh - center), p_mesh with z up as Blender imports it",
                "center": done["center"],
                "scale": done["scale"],
            },
        }
        _write_json(partial / SIDECAR, sidecar)
        if not _is_whole(partial, config):
            raise SceneFailed("Blender left pictures out")
        folder = config.output_dir / mesh.name
        if folder.exists():
            shutil.rmtree(folder)  # `is_rendered` has allowed it
        partial.rename(folder)
    except OSError as error:
        raise SceneFailed(f"{error.strerror or error} ({error.filename or mesh.path})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return time.monotonic() - start


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def render_all(config: RenderObjects) -> Report:
    """Render what is not there yet.

    Raises:
        InputError: the input cannot be used; nothing has been rendered then.
        KeyboardInterrupt: no half scene is left.
    """
    config.check()
    meshes = find_meshes(config.meshes)
    if config.limit is not None:
        random.Random(config.seed).shuffle(meshes)
        meshes = meshes[: config.limit]
    report = Report()
    with output_folder(config.output_dir):
        pending = []
        for mesh in meshes:
            try:
                if is_rendered(mesh, config):
                    report.found += 1
                else:
                    pending.append(mesh)
            except OSError as error:
                report.failed[mesh.relative] = f"cannot be read: {error.strerror or error}"
        if pending:
            workers = Workers(config.timeout)
            check_blender(workers)
            _render(pending, config, workers, report)
    return report


def _render(pending: Sequence[Mesh], config: RenderObjects, workers: Workers, report: Report) -> None:
    """Render meshes side by side, with a progress bar over the views, and add to the report."""
    views = sum(config.counts().values())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("views"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    # A log gets a line per scene in the place of the bar.
    progress = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal, speed_estimate_period=300)
    task = progress.add_task(f"0 of {len(pending)} scenes", total=views * len(pending))
    total, seen = views * len(pending), Counter[str]()

    def render(mesh: Mesh) -> float:
        def on_view() -> None:
            seen[mesh.name] += 1
            progress.advance(task)

        return render_scene(mesh, config, workers, on_view)

    with progress, ThreadPoolExecutor(min(config.processes or _cores(), len(pending))) as pool:
        futures = {pool.submit(render, mesh): mesh for mesh in pending}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                mesh = futures[future]
                try:
                    seconds = future.result()
                    report.rendered += 1
                    report.views += views
                    report.seconds += seconds
                    outcome = f"{views} views in {seconds:.1f} s"
                except SceneFailed as error:
                    report.failed[mesh.relative] = str(error)
                    total -= views
                    progress.update(task, total=total, advance=-seen[mesh.name])
                    outcome = f"failed: {error}"
                progress.update(task, description=f"{number} of {len(pending)} scenes")
                if not CONSOLE.is_terminal:
                    log(f"{number} of {len(pending)}, {mesh.name}: {outcome}")
        except BaseException:
            workers.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command.

    Returns:
        Exit status: 0 when at least one of the scenes asked for is there, 1 when none is.

    Raises:
        SystemExit: ctrl-C; finished scenes stay.
    """
    config = tyro.cli(RenderObjects, args=arguments)
    start = time.monotonic()
    try:
        report = render_all(config)
    except KeyboardInterrupt:
        raise stopped(
            f"while rendering: finished scenes stay in {config.output_dir}; the same command goes on with the others"
        ) from None
    for relative, reason in sorted(report.failed.items()):
        warn(f"failed: {relative}: {reason}")
    log(f"{report}; {time.monotonic() - start:.0f} s in all, into {config.output_dir}")
    return 0 if report.rendered + report.found else 1


if __name__ == "__main__":
    sys.exit(main())
