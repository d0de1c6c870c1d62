"""`igae render-objects`: cameras, failures and resuming with a fake Blender; pictures with the real one.

The tests at the end need bpy (``pip install -e '.[render]'``, Python 3.11) and are skipped without it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igae_nerfstudio.meshes import render_objects
from igae_nerfstudio.meshes.render_objects import (
    RenderObjects,
    main,
    mesh_hash,
    scene_poses,
    scene_seed,
    sphere_cameras,
    transforms,
)

needs_bpy = pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="needs bpy")

FAKE_WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from PIL import Image

job = json.load(sys.stdin)
with open(Path(__file__).with_suffix(".log"), "a") as log:
    log.write(f"{os.getpid()} {Path(job['mesh']).name}\\n")
name, folder, settings = Path(job["mesh"]).stem, Path(job["folder"]), job["settings"]
for number, view in enumerate(job["poses"]):
    if name == "broken":
        print(json.dumps({"error": "holds no faces"}), flush=True)
        sys.exit()
    if name == "no-blender":
        print(json.dumps({"no_blender": "ImportError: libXi.so.6: cannot open"}), flush=True)
        sys.exit()
    if number == 1 and name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 1 and name == "exit":
        sys.exit(3)
    if number == 1 and name == "slow" and not Path(__file__).with_name("hurry").exists():
        time.sleep(600)
    Image.new("RGBA", (settings["size"],) * 2).save(folder / f"{view}.{settings['format']}")
    if job["depth_unit"]:
        Image.new("I;16", (settings["size"],) * 2).save(folder / "depth" / f"{view}.png")
    print("{}", flush=True)
print(json.dumps({"blender": "none", "center": [0.0, 0.0, 0.0], "scale": 1.0}))
"""

FEW = ["--views", "3", "--val-views", "1", "--test-views", "2", "--size", "32", "--samples", "4", "--processes", "2"]


@pytest.fixture
def fake_blender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker that behaves as the mesh's name says; the returned log has a line for each start."""
    script = tmp_path / "fake_worker.py"
    script.write_text(FAKE_WORKER)
    monkeypatch.setattr(render_objects, "WORKER", [sys.executable, str(script)])
    return script.with_suffix(".log")


def make_meshes(folder: Path, *names: str) -> Path:
    """Files that are meshes by their names only; no two are alike."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}")
    return folder


def words(meshes: Path, out: Path, *more: str) -> list[str]:
    return ["--meshes", str(meshes), "--output-dir", str(out), *FEW, *more]


def renders(log: Path) -> list[str]:
    """The meshes that workers were started for, since the last call."""
    names = sorted(line.split()[1] for line in log.read_text().splitlines()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def one_line_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- Cameras ---


@pytest.mark.parametrize("elevation", [(-70.0, 70.0), (-90.0, 90.0), (10.0, 40.0), (90.0, 90.0)])
def test_cameras_look_at_the_origin_from_the_zone(elevation: tuple[float, float]) -> None:
    poses = sphere_cameras(50, 2.1, elevation, np.random.default_rng(0))
    rotations, positions = poses[:, :3, :3], poses[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(positions, axis=-1), 2.1)
    np.testing.assert_allclose(rotations.transpose(0, 2, 1) @ rotations, np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_allclose(-rotations[:, :, 2], -positions / 2.1, atol=1e-12)  # looks along -z
    assert (rotations[:, 2, 1] >= -1e-12).all()  # right side up
    np.testing.assert_allclose(rotations[:, 2, 0], 0.0, atol=1e-12)  # no roll
    heights = np.degrees(np.arcsin(np.clip(positions[:, 2] / 2.1, -1, 1)))
    assert heights.min() >= elevation[0] - 1e-6 and heights.max() <= elevation[1] + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_cameras_are_spread_evenly(seed: int) -> None:
    """Equal areas for each, and nobody near another: on a square lattice the gap would be sqrt(area)."""
    count = 200
    poses = sphere_cameras(count, 1.0, (-70.0, 70.0), np.random.default_rng(seed))
    positions = poses[:, :3, 3]
    gaps = np.arccos(np.clip(positions @ positions.T - 2.0 * np.eye(count), -1.0, 1.0)).min(axis=1)
    area = 4.0 * math.pi * math.sin(math.radians(70.0)) / count
    assert gaps.min() > 0.6 * math.sqrt(area) and gaps.max() < 1.3 * math.sqrt(area)
    np.testing.assert_allclose(np.histogram(positions[:, 2], bins=5)[0], count / 5, atol=2)
    azimuths = np.arctan2(positions[:, 1], positions[:, 0])
    np.testing.assert_allclose(np.histogram(azimuths, bins=8, range=(-math.pi, math.pi))[0], count / 8, atol=3)


def test_the_seed_and_the_mesh_decide_the_cameras() -> None:
    """The numbers are those of version 0.1.0: scenes that are rendered again keep their cameras."""
    config = RenderObjects(Path("a"), Path("b"), views=3, val_views=1, test_views=2)
    assert scene_seed(0, "cd" * 32) == 2000734394
    poses = {name: np.array(pose) for split in scene_poses(config, 2000734394).values() for name, pose in split.items()}
    positions = {
        "train/r_000": [0.982349, 0.522966, 1.78087],
        "train/r_001": [-0.682849, -1.930599, 0.4653],
        "train/r_002": [-0.75069, 1.767344, -0.850269],
        "val/r_000": [-1.259397, 1.372881, 0.969081],
        "test/r_000": [1.062568, 1.64265, 0.763315],
        "test/r_001": [0.286082, -1.692324, -1.210039],
    }
    assert list(poses) == list(positions)
    np.testing.assert_allclose([pose[:3, 3] for pose in poses.values()], list(positions.values()), atol=1e-6)
    np.testing.assert_allclose(poses["test/r_001"][:3, 1], [0.096044, -0.568148, 0.817302], atol=1e-6)
    seeds = {scene_seed(seed, mesh * 32) for seed in (0, 1) for mesh in ("cd", "ef")}
    assert len(seeds) == 4


def test_transforms_hold_what_main_wrote_at_version_0_1_0() -> None:
    """Byte for byte, for one view with depth."""
    config = RenderObjects(Path("a"), Path("b"), format="webp", depth=True)
    identity = np.eye(4).tolist()
    assert transforms(config, {"val/r_000": identity}) == {
        "camera_angle_x": 0.6911112,
        "image_suffix": ".webp",
        "depth": "16-bit PNG; value x depth_unit_scale_factor = depth along the optical axis of the surface behind "
        "the pixel's centre, in scene units; 0: no surface",
        "depth_unit_scale_factor": 2.9000000000000004 / 65535,
        "frames": [
            {
                "file_path": "./val/r_000",
                "transform_matrix": identity,
                "depth_file_path": "./depth/val/r_000.png",
            }
        ],
    }


# --- What a command does ---


def test_limit_is_a_seeded_choice_that_grows(tmp_path: Path, fake_blender: Path) -> None:
    meshes = make_meshes(tmp_path / "meshes", *(f"m{i}.glb" for i in range(9)))
    chosen = {}
    for seed, limit in ((0, 2), (0, 4), (1, 4)):
        out = tmp_path / f"{seed}-{limit}"
        main(words(meshes, out, "--limit", str(limit), "--seed", str(seed)))
        chosen[seed, limit] = set(renders(fake_blender))
        assert len(chosen[seed, limit]) == limit
    assert chosen[0, 2] < chosen[0, 4] != chosen[1, 4]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--size", ["100"], "--size is 100; it must be a multiple of 8"),
        ("--views", ["0"], "must be at least 1"),
        ("--radius", ["0.8"], "--radius is 0.8"),
        ("--diagonal", ["nan"], "--diagonal nan"),
        ("--elevation", ["30", "10"], "--elevation is 30.0 10.0"),
        ("--camera-angle-x", ["4"], "--camera-angle-x 4"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, option: str, value: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_meshes(tmp_path, "a.glb")
    assert expected in one_line_of([*words(tmp_path, tmp_path / "out"), option, *value], capsys)
    assert not (tmp_path / "out").exists()


def test_no_blender_is_one_line(tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And ends the command, with the reason of the system, before all the other meshes fail for it too."""
    meshes = make_meshes(tmp_path / "meshes", "no-blender.glb", "slow.glb", *(f"{i}.glb" for i in range(9)))
    line = one_line_of([*words(meshes, tmp_path / "out"), "--processes", "11"], capsys)
    assert "bpy, Blender as a Python package, cannot be imported (ImportError: libXi.so.6: cannot open)" in line
    assert "Python 3.11" in line and "libxi6" in line
    assert not list((tmp_path / "out").glob(".*unfinished*"))


def test_two_commands_cannot_share_a_folder(
    tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    meshes, out = make_meshes(tmp_path / "meshes", "a.glb"), tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process works in" in one_line_of(words(meshes, out), capsys)


# --- Failures and resuming ---


def test_scenes_are_read_by_blender_data(tmp_path: Path, fake_blender: Path) -> None:
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    out = tmp_path / "out"
    main(words(make_meshes(tmp_path / "meshes", "a.glb"), out, "--depth"))
    parser = BlenderDataParserConfig(data=out / "a").setup()
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        outputs = parser.get_dataparser_outputs(split)
        meta = json.loads((out / "a" / f"transforms_{split}.json").read_text())
        assert len(meta["frames"]) == len(outputs.image_filenames) == count
        assert all(path.is_file() for path in outputs.image_filenames)
        assert all((out / "a" / frame["depth_file_path"]).is_file() for frame in meta["frames"])
        stored = np.array([frame["transform_matrix"] for frame in meta["frames"]])
        np.testing.assert_allclose(outputs.cameras.camera_to_worlds.numpy(), stored[:, :3], atol=1e-6)
        assert float(outputs.cameras.fx[0]) == pytest.approx(16.0 / math.tan(0.5 * 0.6911112))
    assert meta["depth_unit_scale_factor"] * 65535 == pytest.approx(2.1 + 0.8)
    sidecar = json.loads((out / "a" / "render.json").read_text())
    assert sidecar["mesh"] == "a.glb" and sidecar["settings"]["size"] == 32


def test_a_mesh_that_fails_costs_that_mesh_only(
    tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["good.glb", "x/good.glb", "broken.glb", "crash.glb", "exit.obj", "slow.gltf"]
    meshes, out = make_meshes(tmp_path / "meshes", *names), tmp_path / "out"
    main(words(meshes, out, "--timeout", "5"))
    lines = capsys.readouterr().out.splitlines()
    assert "failed: broken.glb: holds no faces" in lines
    assert "failed: crash.glb: Blender crashed (SIGSEGV)" in lines
    assert "failed: exit.obj: Blender crashed (exit status 3)" in lines
    assert "failed: slow.gltf: Blender finished no view for 5 s" in lines
    assert lines[-1].endswith("2 rendered, 0 there already, 4 failed")
    assert sorted(path.name for path in out.iterdir()) == [".lock", "good", "x-good"]
    assert renders(fake_blender).count("good.glb") == 2

    (tmp_path / "hurry").touch()
    main(words(meshes, out))  # tries the failed ones again, and no others
    assert renders(fake_blender) == ["broken.glb", "crash.glb", "exit.obj", "slow.gltf"]
    assert capsys.readouterr().out.endswith("1 rendered, 2 there already, 3 failed\n")
    assert (out / "slow" / "render.json").exists()


def test_no_scene_at_all_is_an_error(tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meshes = make_meshes(tmp_path / "meshes", "broken.glb")
    assert "no mesh of" in one_line_of(words(meshes, tmp_path / "out"), capsys)
    assert "no GLB, glTF or OBJ file in" in one_line_of(words(tmp_path / "none", tmp_path / "out"), capsys)


def test_finished_scenes_are_passed_over(tmp_path: Path, fake_blender: Path) -> None:
    meshes, out = make_meshes(tmp_path / "meshes", "a.glb", "b.glb"), tmp_path / "out"
    (out / ".c.1.unfinished-scene").mkdir(parents=True)  # left by a run that was killed
    main(words(meshes, out))
    assert renders(fake_blender) == ["a.glb", "b.glb"]
    assert not (out / ".c.1.unfinished-scene").exists()

    make_meshes(meshes, "c.glb")
    (out / "a" / "test" / "r_001.png").unlink()
    main(words(meshes, out, "--processes", "1"))
    assert renders(fake_blender) == ["a.glb", "c.glb"]  # a had lost a picture
    assert (out / "a" / "test" / "r_001.png").exists()


def test_other_settings_need_overwrite(tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meshes, out = make_meshes(tmp_path / "meshes", "a.glb", "b.glb"), tmp_path / "out"
    main(words(meshes, out))
    renders(fake_blender)
    line = one_line_of(words(meshes, out, "--seed", "1", "--format", "webp"), capsys)
    assert "a was rendered with another format, seed; give --overwrite" in line
    (meshes / "b.glb").write_text("another")
    assert "b was rendered with another mesh file" in one_line_of(words(meshes, out), capsys)
    assert renders(fake_blender) == []

    main(words(meshes, out, "--overwrite"))
    assert renders(fake_blender) == ["b.glb"]
    main(words(meshes, out, "--format", "webp", "--overwrite"))
    assert renders(fake_blender) == ["a.glb", "b.glb"]
    assert sorted(path.name for path in (out / "a" / "test").iterdir()) == ["r_000.webp", "r_001.webp"]
    assert json.loads((out / "a" / "transforms_test.json").read_text())["image_suffix"] == ".webp"


def test_a_folder_that_is_no_scene_is_never_replaced(
    tmp_path: Path, fake_blender: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meshes, out = make_meshes(tmp_path / "meshes", "a.glb"), tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "thesis.txt").write_text("")
    assert "is no scene of igae render-objects" in one_line_of(words(meshes, out, "--overwrite"), capsys)
    assert (out / "a" / "thesis.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_leaves_no_half_scene(tmp_path: Path, fake_blender: Path) -> None:
    meshes, out = make_meshes(tmp_path / "meshes", "a.glb", "slow.glb"), tmp_path / "out"
    code = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
        from igae_nerfstudio.meshes import render_objects
        render_objects.WORKER = {render_objects.WORKER!r}
        render_objects.main({words(meshes, out)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 300
    while time.time() < deadline and not ((out / "a").exists() and list(out.glob(".slow.*/train/r_000.png"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.count("\n") == 1 and "the same command renders the others" in errors
    assert sorted(path.name for path in out.iterdir()) == [".lock", "a"]
    for line in fake_blender.read_text().splitlines():
        with pytest.raises(ProcessLookupError):
            os.kill(int(line.split()[0]), 0)
    (tmp_path / "hurry").touch()
    main(words(meshes, out))
    assert (out / "slow" / "render.json").exists()


# --- With Blender ---

BOXES = (((0.0, 0.0, 0.0), (3.0, 1.0, 2.0)), ((0.0, 1.0, 0.0), (1.0, 2.5, 0.75)))
"""Low and high corners of two boxes with y up, as in the files: a low block with a tower on one corner, so that no
rotation or mirroring maps the object onto itself."""


def box_corners(low: tuple[float, ...], high: tuple[float, ...]) -> np.ndarray:
    """(8, 3), the x of the corner changing slowest."""
    return np.stack(np.meshgrid(*zip(low, high), indexing="ij"), axis=-1).reshape(-1, 3)


def write_boxes(path: Path) -> Path:
    """The two boxes as OBJ or GLB."""
    import trimesh

    path.parent.mkdir(parents=True, exist_ok=True)
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    points = np.concatenate([box_corners(*box) for box in BOXES])
    quads = np.concatenate([np.array(faces) + 8 * i for i in range(len(BOXES))])
    if path.suffix == ".obj":
        lines = [f"v {x} {y} {z}" for x, y, z in points] + [f"f {a} {b} {c} {d}" for a, b, c, d in quads + 1]
        path.write_text("\n".join(lines) + "\n")
    else:
        triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
        trimesh.Trimesh(points, triangles, process=False).export(path)
    return path


def scene_boxes() -> np.ndarray:
    """(2, 2, 3) corners of the boxes in the scene: y up to z up, centred, diagonal 1.6. By hand, from the issue."""
    corners = np.array([[(x, -z, y) for x, y, z in box] for box in BOXES])
    corners = np.sort(corners, axis=1)
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    return (corners - (low + high) / 2) * 1.6 / np.linalg.norm(high - low)


def frames(scene: Path, split: str) -> list[tuple[np.ndarray, Path, Path]]:
    """Pose, picture and depth picture of each frame."""
    meta = json.loads((scene / f"transforms_{split}.json").read_text())
    return [
        (np.array(frame["transform_matrix"]), scene / f"{frame['file_path']}.png", scene / frame["depth_file_path"])
        for frame in meta["frames"]
    ]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of both formats, rendered by two processes together with files that are no meshes."""
    folder = tmp_path_factory.mktemp("rendered")
    meshes = folder / "meshes"
    write_boxes(meshes / "boxes.obj")
    content = write_boxes(meshes / "binary.glb").read_bytes()
    (meshes / "broken.glb").write_bytes(content[:-40])
    (meshes / "empty.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (meshes / "flat.obj").write_text("v 1 1 1\nf 1 1 1\n")
    (meshes / "textured.obj").write_text("mtllib textured.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (meshes / "textured.mtl").write_text("newmtl m\nmap_Kd nowhere.png\n")
    command = [sys.executable, "-m", "igae_nerfstudio.meshes.render_objects"]
    result = subprocess.run(
        [*command, *words(meshes, folder / "out", "--depth", "--size", "48")], capture_output=True, text=True
    )
    (folder / "output.txt").write_text(result.stdout + result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@needs_bpy
def test_blender_names_what_it_cannot_render(rendered: Path) -> None:
    lines = (rendered / "output.txt").read_text().splitlines()
    assert any(line.startswith("failed: broken.glb: cannot be read: ") for line in lines)
    assert "failed: empty.obj: holds no faces" in lines
    assert any(line.startswith("failed: flat.obj: ") for line in lines)
    assert "failed: textured.obj: its texture nowhere.png cannot be read" in lines
    assert lines[-1].endswith("2 rendered, 0 there already, 4 failed")
    assert len(lines) == 2 + 4 + 1  # nothing of what Blender prints
    names = sorted(path.name for path in (rendered / "out").iterdir())
    assert names == [".lock", "binary", "boxes"]


@needs_bpy
@pytest.mark.parametrize("name", ["boxes", "binary"])
def test_silhouettes_are_where_the_vertices_project(rendered: Path, name: str) -> None:
    points = np.concatenate([box_corners(*box) for box in scene_boxes()])
    focal = 24.0 / math.tan(0.5 * 0.6911112)
    for split in ("train", "val", "test"):
        for pose, picture, _ in frames(rendered / "out" / name, split):
            local = (points - pose[:3, 3]) @ pose[:3, :3]
            columns, rows = 24.0 + focal * local[:, 0] / -local[:, 2], 24.0 - focal * local[:, 1] / -local[:, 2]
            image = np.asarray(Image.open(picture))
            assert image.shape == (48, 48, 4)
            seen_rows, seen_columns = np.nonzero(image[..., 3] >= 64)
            expected = np.clip([columns.min(), columns.max(), rows.min(), rows.max()], 0, 48)
            seen = [seen_columns.min(), seen_columns.max() + 1, seen_rows.min(), seen_rows.max() + 1]
            np.testing.assert_allclose(seen, expected, atol=1.5)
            assert image[image[..., 3] == 255][:, :3].mean() > 50  # there is light


@needs_bpy
@pytest.mark.parametrize("name", ["boxes", "binary"])
def test_depth_is_where_the_rays_meet_the_boxes(rendered: Path, name: str) -> None:
    unit = json.loads((rendered / "out" / name / "transforms_train.json").read_text())["depth_unit_scale_factor"]
    focal = 24.0 / math.tan(0.5 * 0.6911112)
    rows, columns = np.mgrid[0:48, 0:48] + 0.5
    local = np.stack([(columns - 24.0) / focal, (24.0 - rows) / focal, -np.ones((48, 48))], axis=-1)
    for pose, picture, path in frames(rendered / "out" / name, "train"):
        directions = local @ pose[:3, :3].T  # of length 1 along the optical axis, so the ray's parameter is the depth
        expected = np.full((48, 48), np.inf)
        for low, high in scene_boxes():
            near, far = (low - pose[:3, 3]) / directions, (high - pose[:3, 3]) / directions
            enter, leave = np.minimum(near, far).max(axis=-1), np.maximum(near, far).min(axis=-1)
            expected = np.where(enter < leave, np.minimum(expected, enter), expected)
        depth = np.asarray(Image.open(path)).astype(float) * unit
        hit = np.isfinite(expected)
        assert ((depth > 0) != hit).mean() < 2e-3  # rays along an edge
        both = hit & (depth > 0)
        assert both.sum() > 100
        np.testing.assert_allclose(depth[both], expected[both], atol=unit)
        alpha = np.asarray(Image.open(picture))[..., 3]
        assert (depth[alpha == 0] == 0).all() and (depth[alpha == 255] > 0).all()


@needs_bpy
def test_the_same_seed_gives_the_same_pictures(rendered: Path, tmp_path: Path) -> None:
    """One process, another folder, no other meshes, another file name: every picture has the same bytes."""
    mesh = write_boxes(tmp_path / "meshes" / "sub" / "renamed.obj")
    assert mesh_hash(mesh) == mesh_hash(rendered / "meshes" / "boxes.obj")
    options = ["--depth", "--size", "48", "--processes", "1"]
    main(words(tmp_path / "meshes", tmp_path / "out", *options))
    before, after = rendered / "out" / "boxes", tmp_path / "out" / "renamed"
    pictures = sorted(path.relative_to(before) for path in before.rglob("*.png"))
    assert len(pictures) == 2 * 6
    for name in [*pictures, *(Path(f"transforms_{split}.json") for split in ("train", "val", "test"))]:
        assert (before / name).read_bytes() == (after / name).read_bytes(), name

    main(words(tmp_path / "meshes", tmp_path / "webp", "--size", "48", "--format", "webp"))
    for name in (name for name in pictures if name.parts[0] != "depth"):
        lossless = np.asarray(Image.open((tmp_path / "webp" / "renamed" / name).with_suffix(".webp")).convert("RGBA"))
        assert (lossless == np.asarray(Image.open(before / name))).all(), name

    main(words(tmp_path / "meshes", tmp_path / "seed", "--size", "48", "--seed", "1"))
    other = tmp_path / "seed" / "renamed"
    assert (other / pictures[-1]).read_bytes() != (before / pictures[-1]).read_bytes()
