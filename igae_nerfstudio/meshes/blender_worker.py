"""Renders the views of one mesh and exits: a crash of Blender costs one mesh, and nothing is left from the one before.

`render_objects.py` starts it. Standard input holds the job, a JSON object:

    mesh          path of a GLB, glTF or OBJ file
    folder        existing folder that receives the pictures
    poses         name -> 4 x 4 camera to world (OpenGL axes, z up); the picture is FOLDER/NAME.png, its depth
                  FOLDER/depth/NAME.png
    seed          integer in [0, 2^31), for the sampling noise
    depth_unit    scene units per step of the 16-bit depth pictures, or null for none
    settings      size, samples, denoise, diagonal, camera_angle_x, format, as in `RenderObjects`

Standard output receives one JSON object a line: {} after each view, and at the end {"blender": version, "center":
[x, y, z], "scale": s}, or {"error": reason}, or {"no_blender": reason} where `bpy` cannot be imported.

The scene: p_scene = scale * (p_mesh - center), with the mesh's own up axis turned to z on import. Light is fixed in
the world and neutral, a uniform sky and two soft suns, so that one radiance field explains all pictures.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

SKY_STRENGTH = 0.7
# Direction to the light, strength (W/m^2 on a facing surface), angular diameter in degrees: soft shadows.
SUNS = (((0.45, -0.55, 0.70), 1.5, 30.0), ((-0.60, 0.50, 0.25), 0.5, 60.0))
BOUNCES = 2  # of diffuse and of glossy light
TRANSPARENT_BOUNCES = 16  # leaves and glass one behind the other
MAX_DEPTH_STEP = 65535


class MeshError(Exception):
    """The mesh cannot become a scene; the message is the reason."""


def main() -> None:
    """Render the job on standard input, then leave without Blender's own shutdown, which may crash."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # Blender prints to standard output
    try:
        try:
            import_blender()
        except Exception as error:
            answer: dict[str, Any] = {"no_blender": reason(error)}
        else:
            answer = render_job(json.load(sys.stdin), on_view=lambda: print("{}", file=answers))
    except Exception as error:
        answer = {"error": reason(error)}
    try:
        print(json.dumps(answer), file=answers)
    finally:
        os._exit(0)


def reason(error: Exception) -> str:
    """The last line of an error that says something; Blender's reports begin with "Error: "."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Location:" not in line]
    text = lines[-1].removeprefix("Error: ") if lines else ""
    return text if text and isinstance(error, (MeshError, RuntimeError)) else f"{type(error).__name__}: {text}"


def import_blender() -> None:
    """Import `bpy` without idle threads: tbb starts one per core, which wait by spinning while Cycles uses one."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {random.choice(list(cores))})
    import bpy  # noqa: F401

    if cores:
        os.sched_setaffinity(0, cores)


def render_job(job: dict[str, Any], on_view: Callable[[], None]) -> dict[str, Any]:
    """Render all views of a job.

    Returns:
        Version of Blender, center and scale of the normalisation.

    Raises:
        MeshError: the mesh holds nothing that can be rendered.
    """
    import bpy

    settings, folder = job["settings"], Path(job["folder"])
    bpy.ops.wm.read_factory_settings(use_empty=True)
    import_mesh = bpy.ops.wm.obj_import if job["mesh"].lower().endswith(".obj") else bpy.ops.import_scene.gltf
    try:
        import_mesh(filepath=job["mesh"])  # turns the mesh's up axis to z
    except Exception as error:  # the importers are Python programs of their own and raise anything
        raise MeshError(f"cannot be read: {reason(error)}") from error
    center, scale = normalize_scene(settings["diagonal"])
    check_textures()
    add_lights()
    camera = bpy.context.scene.camera = _add("camera", bpy.data.cameras.new("camera"))
    camera.data.sensor_fit, camera.data.angle = "HORIZONTAL", settings["camera_angle_x"]
    camera.data.clip_start, camera.data.clip_end = 1e-3, 1e3
    set_up_cycles(settings)
    scratch = folder / ".view.png"
    bpy.context.scene.render.filepath = str(scratch)
    for index, (name, pose) in enumerate(job["poses"].items()):
        camera.matrix_world = _matrix(pose)
        bpy.context.scene.cycles.seed = (job["seed"] + index) % 2**31  # else all views share one pattern of noise
        bpy.ops.render.render(write_still=True)
        with Image.open(scratch) as image:
            pixels = np.asarray(image.convert("RGBA"))
        # `exact` keeps the colour of clear pixels. Blender's file has the date in it, so only its pixels are kept.
        options: dict[str, Any] = {"lossless": True, "exact": True} if settings["format"] == "webp" else {}
        Image.fromarray(pixels).save(folder / f"{name}.{settings['format']}", **options)
        if job["depth_unit"] is not None:
            depth = depth_picture(np.array(pose), settings["camera_angle_x"], pixels[..., 3] > 0)
            steps = np.clip(np.rint(depth / job["depth_unit"]), 0, MAX_DEPTH_STEP).astype(np.uint16)
            Image.fromarray(steps).save(folder / "depth" / f"{name}.png")
        on_view()
    scratch.unlink()
    return {"blender": bpy.app.version_string, "center": center, "scale": scale}


# --- The object ---


def normalize_scene(diagonal: float) -> tuple[list[float], float]:
    """Replace all that is in the scene by its visible surfaces, centred and scaled.

    Instances, modifiers and armatures are evaluated; cameras, lights and helper objects of the file go. Then the
    bounding box has this diagonal, and its centre is the origin.

    Returns:
        Center and scale with p_scene = scale * (p_mesh - center).

    Raises:
        MeshError: there is no face, or the faces have no finite size.
    """
    import bpy

    depsgraph = bpy.context.evaluated_depsgraph_get()
    surfaces = []
    for instance in depsgraph.object_instances:
        if instance.object.type in {"MESH", "CURVE", "SURFACE", "META", "FONT"}:
            mesh = bpy.data.meshes.new_from_object(instance.object, preserve_all_data_layers=True, depsgraph=depsgraph)
            if mesh is not None and len(mesh.polygons):
                surfaces.append((mesh, np.array(instance.matrix_world)))
    if not surfaces:
        raise MeshError("holds no faces")
    for thing in list(bpy.data.objects):
        bpy.data.objects.remove(thing)

    corners = np.concatenate([_face_corners(mesh, matrix) for mesh, matrix in surfaces])
    low, high = corners.min(axis=0), corners.max(axis=0)
    length = float(np.linalg.norm(high - low))
    if not 0.0 < length < math.inf:
        raise MeshError(f"has no finite size: its corners are {low.tolist()} and {high.tolist()}")
    center, scale = (low + high) / 2, diagonal / length
    normalize = np.diag([scale, scale, scale, 1.0])
    normalize[:3, 3] = -scale * center
    for mesh, matrix in surfaces:
        _add("surface", mesh).matrix_world = _matrix(normalize @ matrix)
    return center.tolist(), scale


def _face_corners(mesh: Any, matrix: np.ndarray) -> np.ndarray:
    """(N, 3) vertices that belong to a face, moved: loose points and edges are not rendered and do not count."""
    points, used = np.empty(3 * len(mesh.vertices), np.float32), np.empty(len(mesh.loops), np.int32)
    mesh.vertices.foreach_get("co", points)
    mesh.loops.foreach_get("vertex_index", used)
    return points.reshape(-1, 3)[np.unique(used)].astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def check_textures() -> None:
    """Raise `MeshError` for a texture that cannot be read: Blender would paint it magenta."""
    import bpy

    for image in bpy.data.images:
        if image.source == "FILE" and image.users and not (image.size[0] and image.size[1]):
            raise MeshError(f"its texture {Path(image.filepath).name or image.name} cannot be read")


def depth_picture(pose: np.ndarray, camera_angle_x: float, where: np.ndarray) -> np.ndarray:
    """Depth along the optical axis of the first surface behind each pixel's centre.

    Rays are cast, rather than Cycles' depth pass read, because that holds one random point of a pixel. Surfaces count
    as opaque.

    Returns:
        (H, W) float, in scene units; 0 where there is no surface, and outside of `where` (H, W).
    """
    import bpy

    height, width = where.shape
    focal = 0.5 * width / math.tan(0.5 * camera_angle_x)
    rows, columns = np.nonzero(where)
    local = np.stack([columns + 0.5 - width / 2, height / 2 - rows - 0.5, np.full(len(rows), -focal)], axis=-1)
    directions = local / np.linalg.norm(local, axis=-1, keepdims=True) @ pose[:3, :3].T
    cast, graph = bpy.context.scene.ray_cast, bpy.context.evaluated_depsgraph_get()
    depth = np.zeros(where.shape)
    for row, column, direction in zip(rows, columns, directions.tolist()):
        hit, point, *_ = cast(graph, pose[:3, 3], direction)
        if hit:
            depth[row, column] = (pose[:3, 3] - point) @ pose[:3, 2]
    return depth


# --- Light and renderer ---


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
        light.energy, light.angle = strength, math.radians(angle)
        sun = _add("sun", light)
        sun.rotation_mode = "QUATERNION"
        sun.rotation_quaternion = Vector(direction).to_track_quat("Z", "Y")  # suns shine along -z


def set_up_cycles(settings: dict[str, Any]) -> None:
    """Cycles on one thread of the CPU, a clear background, plain sRGB, and nothing that varies between runs."""
    import bpy

    scene = bpy.context.scene
    render, cycles, view = scene.render, scene.cycles, scene.view_settings
    render.engine, cycles.device = "CYCLES", "CPU"
    render.threads_mode, render.threads = "FIXED", 1
    render.resolution_x = render.resolution_y = settings["size"]
    render.film_transparent = True
    render.use_persistent_data = True
    render.dither_intensity = 0.0
    render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGBA"
    render.image_settings.compression = 0
    view.view_transform, view.look = "Standard", "None"
    cycles.samples = settings["samples"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = settings["denoise"]
    cycles.denoiser, cycles.denoising_use_gpu = "OPENIMAGEDENOISE", False
    cycles.denoising_prefilter = "NONE"  # the guiding colours and normals have little noise, and this saves time
    cycles.max_bounces = BOUNCES + 2
    cycles.diffuse_bounces = cycles.glossy_bounces = BOUNCES
    cycles.transparent_max_bounces = TRANSPARENT_BOUNCES
    cycles.caustics_reflective = cycles.caustics_refractive = False


def _add(name: str, data: Any) -> Any:
    """A new object in the scene."""
    import bpy

    thing = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(thing)
    return thing


def _matrix(values: Any) -> Any:
    from mathutils import Matrix

    return Matrix(np.asarray(values, dtype=float).tolist())


if __name__ == "__main__":
    main()
