"""One mesh, one Blender: renders the views of one job and exits. The only file that imports `bpy`.

`render_objects.py` starts it as ``python -m igae_nerfstudio.meshes.blender_worker``, once per mesh. So nothing is left
over from the mesh before, a scene does not depend on what was rendered earlier, and a crash of Blender costs one mesh.

It reads one job from standard input, a JSON object with these keys:

    mesh            path of a GLB, glTF or OBJ file
    output_dir      an existing folder that receives the pictures
    size            side of the square pictures, pixels
    samples         Cycles samples per pixel
    denoise         whether Intel's denoiser follows
    seed            integer in [0, 2^31), for the sampling noise
    camera_angle_x  horizontal field of view, radians
    diagonal        of the bounding box after normalisation, scene units
    format          "png" or "webp", both lossless
    depth_unit      scene units per step of the 16-bit depth pictures, or null for none
    views           list of {"image": path, "depth": path or null, "pose": 4 x 4 camera to world, OpenGL axes, z up},
                    paths without suffix and relative to output_dir

and writes one event per line to what was standard output when it started: {"event": "view"} after each view, then
{"event": "done", "blender": version, "center": [x, y, z], "scale": s} or {"event": "failed", "reason": one line}.
A job of ``null`` only tells whether `bpy` can be imported. All that Blender prints goes to standard error.

The scene: p_scene = scale * (p_mesh - center), with the mesh's own up axis turned to z on import. Light is fixed in
the world and neutral: a uniform sky and two soft suns, so that one radiance field explains all pictures.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict

import numpy as np
from PIL import Image

SKY_STRENGTH = 0.7
# Direction to the light, strength (W/m^2 on a facing surface), angular diameter in degrees: soft shadows.
SUNS = (
    ((0.45, -0.55, 0.70), 1.5, 30.0),
    ((-0.60, 0.50, 0.25), 0.5, 60.0),
)
DIFFUSE_BOUNCES = 2
GLOSSY_BOUNCES = 2
TRANSPARENT_BOUNCES = 16  # leaves and glass one behind the other

MAX_DEPTH_STEP = 65535


class MeshError(Exception):
    """The mesh cannot become a scene; the message is the reason, in one line."""


def main() -> None:
    """Serve the one job on standard input, then leave without Blender's own shutdown, which may crash."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def send(event: str, **values: Any) -> None:
        events.write(json.dumps({"event": event, **values}) + "\n")
        events.flush()

    try:
        job = json.load(sys.stdin)
        bpy = import_blender()
        if job is not None:
            center, scale = render_job(job, on_view=lambda: send("view"))
            send("done", blender=bpy.app.version_string, center=center, scale=scale)
        else:
            send("done", blender=bpy.app.version_string)
    except Exception as error:
        with suppress(BrokenPipeError):  # when nobody listens any more
            send("failed", reason=_one_line(error))
    os._exit(0)


def import_blender() -> Any:
    """`bpy` without idle threads: tbb starts one per core, and they wait by spinning while Cycles has but one."""
    pinned = hasattr(os, "sched_setaffinity")  # Linux
    if pinned:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
    import bpy

    if pinned:
        os.sched_setaffinity(0, cores)
    return bpy


def render_job(job: dict[str, Any], on_view: Callable[[], None]) -> tuple[list[float], float]:
    """Render all views of a job.

    Returns:
        Center and scale of the normalisation.

    Raises:
        MeshError: the mesh holds nothing that can be rendered.
    """
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    import_mesh(Path(job["mesh"]))
    center, scale = normalize_scene(job["diagonal"])
    check_textures()
    add_lights()
    camera = add_camera(job["camera_angle_x"])
    set_up_cycles(job["size"], job["samples"], job["denoise"])

    folder = Path(job["output_dir"])
    surface = surface_tree() if job["depth_unit"] is not None else None
    scene = bpy.context.scene
    scratch = folder / ".view.png"
    scene.render.filepath = str(scratch)
    for index, view in enumerate(job["views"]):
        camera.matrix_world = _matrix(view["pose"])
        scene.cycles.seed = (job["seed"] + index) % 2**31  # otherwise all views share one pattern of noise
        bpy.ops.render.render(write_still=True)
        with Image.open(scratch) as image:
            pixels = np.asarray(image.convert("RGBA"))
        target = folder / f"{view['image']}.{job['format']}"
        # `exact` keeps the colour of clear pixels. Blender's file has the date in it: pixels only go on.
        options: Dict[str, Any] = {"lossless": True, "exact": True} if job["format"] == "webp" else {}
        Image.fromarray(pixels).save(target, **options)
        if surface is not None:
            depth = depth_picture(surface, np.array(view["pose"]), job["camera_angle_x"], pixels[..., 3] > 0)
            steps = np.clip(np.rint(depth / job["depth_unit"]), 0, MAX_DEPTH_STEP).astype(np.uint16)
            Image.fromarray(steps).save(folder / f"{view['depth']}.png")
        on_view()
    scratch.unlink(missing_ok=True)
    return center, scale


# --- The object ---


def import_mesh(path: Path) -> None:
    """Read a file into the empty scene, its up axis turned to z."""
    import bpy

    try:
        if path.suffix.lower() == ".obj":
            bpy.ops.wm.obj_import(filepath=str(path))
        else:
            bpy.ops.import_scene.gltf(filepath=str(path))
    except Exception as error:  # the importers are Python programs of their own and raise anything
        raise MeshError(f"cannot be read: {_one_line(error)}") from error


def normalize_scene(diagonal: float) -> tuple[list[float], float]:
    """Replace all that is in the scene by its visible surfaces, centred and scaled.

    Instances, modifiers and armatures are evaluated; cameras, lights and helper objects of the file go.

    Args:
        diagonal: of the bounding box afterwards; its centre is then the origin.

    Returns:
        Center and scale with p_scene = scale * (p_mesh - center).

    Raises:
        MeshError: there is no face, or the faces have no size, or coordinates are not finite.
    """
    import bpy

    depsgraph = bpy.context.evaluated_depsgraph_get()
    surfaces = []
    for instance in depsgraph.object_instances:
        if instance.object.type in {"MESH", "CURVE", "SURFACE", "META", "FONT"}:
            mesh = bpy.data.meshes.new_from_object(instance.object, preserve_all_data_layers=True, depsgraph=depsgraph)
            if mesh is not None and len(mesh.polygons):
                surfaces.append((mesh, instance.matrix_world.copy()))
    if not surfaces:
        raise MeshError("holds no faces")
    for thing in list(bpy.data.objects):
        bpy.data.objects.remove(thing)

    corners = np.concatenate([_face_corners(mesh, matrix) for mesh, matrix in surfaces])
    if not np.isfinite(corners).all():
        raise MeshError("has coordinates that are not finite")
    low, high = corners.min(axis=0), corners.max(axis=0)
    length = float(np.linalg.norm(high - low))
    if not 0.0 < length < math.inf:
        raise MeshError("has no size")
    center, scale = (low + high) / 2, diagonal / length
    normalize = np.diag([scale, scale, scale, 1.0])
    normalize[:3, 3] = -scale * center
    for mesh, matrix in surfaces:
        thing = bpy.data.objects.new("surface", mesh)
        thing.matrix_world = _matrix(normalize @ np.array(matrix))
        bpy.context.scene.collection.objects.link(thing)
    return center.tolist(), scale


def check_textures() -> None:
    """Blender paints missing textures magenta, which nobody wants to train on.

    Raises:
        MeshError: a texture of the mesh cannot be read.
    """
    import bpy

    for image in bpy.data.images:
        if image.source == "FILE" and image.users and not (image.size[0] and image.size[1]):
            raise MeshError(f"its texture {Path(image.filepath).name or image.name} cannot be read")


def surface_tree() -> Any:
    """The scene's triangles as a `mathutils.bvhtree.BVHTree`, in scene coordinates."""
    import bpy
    from mathutils.bvhtree import BVHTree

    bpy.context.view_layer.update()
    points: list[np.ndarray] = []
    triangles: list[np.ndarray] = []
    count = 0
    for thing in _surfaces():
        mesh = thing.data
        mesh.calc_loop_triangles()
        indices = np.empty(3 * len(mesh.loop_triangles), np.int32)
        mesh.loop_triangles.foreach_get("vertices", indices)
        points.append(_points(mesh, thing.matrix_world))
        triangles.append(indices.reshape(-1, 3) + count)
        count += len(mesh.vertices)
    return BVHTree.FromPolygons(np.concatenate(points).tolist(), np.concatenate(triangles).tolist(), all_triangles=True)


def depth_picture(surface: Any, pose: np.ndarray, camera_angle_x: float, where: np.ndarray) -> np.ndarray:
    """Depth along the optical axis of the first surface behind each pixel's centre.

    Rays are cast, rather than Cycles' depth pass read, because that holds one random point of a pixel. Surfaces count
    as opaque.

    Args:
        surface: from `surface_tree`.
        pose: (4, 4) camera to world.
        camera_angle_x: radians.
        where: (H, W) bool, the pixels to look at.

    Returns:
        (H, W) float, in scene units; 0 where there is no surface.
    """
    from mathutils import Vector

    height, width = where.shape
    focal = 0.5 * width / math.tan(0.5 * camera_angle_x)
    rows, columns = np.nonzero(where)
    local = np.stack(
        [(columns + 0.5 - width / 2) / focal, (height / 2 - rows - 0.5) / focal, -np.ones(len(rows))], axis=-1
    )
    lengths = np.linalg.norm(local, axis=-1)  # of rays that reach depth 1
    directions = (local / lengths[:, None]) @ pose[:3, :3].T
    origin = Vector(pose[:3, 3])
    distances = [surface.ray_cast(origin, Vector(direction))[3] for direction in directions.tolist()]
    depth = np.zeros(where.shape)
    depth[rows, columns] = [0.0 if t is None else t / length for t, length in zip(distances, lengths.tolist())]
    return depth


# --- Light, camera, renderer ---


def add_lights() -> None:
    """A uniform white sky and two soft suns."""
    import bpy
    from mathutils import Vector

    world = bpy.data.worlds.new("sky")
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (1.0, 1.0, 1.0, 1.0)
    background.inputs["Strength"].default_value = SKY_STRENGTH
    bpy.context.scene.world = world
    for direction, strength, angle in SUNS:
        light = bpy.data.lights.new("sun", "SUN")
        light.energy = strength
        light.angle = math.radians(angle)
        sun = bpy.data.objects.new("sun", light)
        sun.rotation_mode = "QUATERNION"
        sun.rotation_quaternion = Vector(direction).to_track_quat("Z", "Y")  # suns shine along -z
        bpy.context.scene.collection.objects.link(sun)


def add_camera(camera_angle_x: float) -> Any:
    """The scene's camera; Blender's camera axes are OpenGL's."""
    import bpy

    data = bpy.data.cameras.new("camera")
    data.sensor_fit = "HORIZONTAL"
    data.angle = camera_angle_x
    data.clip_start, data.clip_end = 1e-3, 1e3
    camera = bpy.data.objects.new("camera", data)
    bpy.context.scene.collection.objects.link(camera)
    bpy.context.scene.camera = camera
    return camera


def set_up_cycles(size: int, samples: int, denoise: bool) -> None:
    """Cycles on one thread of the CPU, a clear background, plain sRGB, and nothing that varies between runs."""
    import bpy

    scene = bpy.context.scene
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    cycles.device = "CPU"
    render.threads_mode, render.threads = "FIXED", 1
    render.resolution_x = render.resolution_y = size
    render.resolution_percentage = 100
    render.film_transparent = True
    render.use_persistent_data = True
    render.use_compositing = render.use_sequencer = False
    render.dither_intensity = 0.0
    render.image_settings.file_format = "PNG"
    render.image_settings.color_mode, render.image_settings.color_depth = "RGBA", "8"
    render.image_settings.compression = 0
    scene.display_settings.display_device = "sRGB"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.view_settings.exposure, scene.view_settings.gamma = 0.0, 1.0
    cycles.samples = samples
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = denoise
    cycles.denoiser, cycles.denoising_use_gpu = "OPENIMAGEDENOISE", False
    cycles.denoising_prefilter = "NONE"  # the guiding colours and normals have little noise, and this saves time
    cycles.max_bounces = max(DIFFUSE_BOUNCES, GLOSSY_BOUNCES) + 2
    cycles.diffuse_bounces, cycles.glossy_bounces = DIFFUSE_BOUNCES, GLOSSY_BOUNCES
    cycles.transparent_max_bounces = TRANSPARENT_BOUNCES
    cycles.caustics_reflective = cycles.caustics_refractive = False


# --- Small things ---


def _surfaces() -> Iterator[Any]:
    import bpy

    return (thing for thing in bpy.context.scene.objects if thing.type == "MESH")


def _points(mesh: Any, matrix: Any) -> np.ndarray:
    """(V, 3) vertices of a mesh, moved by a 4 x 4 matrix."""
    points = np.empty(3 * len(mesh.vertices), np.float32)
    mesh.vertices.foreach_get("co", points)
    affine = np.array(matrix)
    return points.reshape(-1, 3).astype(np.float64) @ affine[:3, :3].T + affine[:3, 3]


def _face_corners(mesh: Any, matrix: Any) -> np.ndarray:
    """(N, 3) vertices that belong to a face, moved: loose points and edges are not rendered and do not count."""
    used = np.empty(len(mesh.loops), np.int32)
    mesh.loops.foreach_get("vertex_index", used)
    return _points(mesh, matrix)[np.unique(used)]


def _matrix(values: Any) -> Any:
    from mathutils import Matrix

    return Matrix(np.asarray(values, dtype=float).tolist())


def _one_line(error: BaseException) -> str:
    """The last line of an error that says something; Blender's reports begin with "Error: "."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Location:" not in line]
    text = lines[-1].removeprefix("Error: ") if lines else ""
    if isinstance(error, MeshError):
        return text
    return f"{type(error).__name__}: {text}" if text and not isinstance(error, RuntimeError) else text or repr(error)


if __name__ == "__main__":
    main()
