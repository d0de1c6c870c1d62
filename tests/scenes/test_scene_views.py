"""Scenes on disk: their pictures through the cache, their cameras against Nerfstudio's, and all that can be wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from conftest import look_at_origin, write_blender_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from PIL import Image

from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes import scene_views
from igae_nerfstudio.scenes.real_images import centre_crop
from igae_nerfstudio.scenes.scene_folders import Scene
from igae_nerfstudio.scenes.scene_views import SceneViews, ViewCameras, read_view

SIZE = 48


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Three scenes, `a` of 4 views, `b` of 3 and `c` of 5."""
    for name, count in (("b", 3), ("a", 4), ("c", 5)):
        write_blender_scene(tmp_path / "scenes" / name, (SIZE, SIZE), (count, 1, 2))
    return tmp_path / "scenes"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Fills with the pictures that are decoded."""
    paths: list[Path] = []
    original = scene_views.read_view

    def count(path: Path, *args: Any) -> np.ndarray:
        paths.append(path)
        return original(path, *args)

    monkeypatch.setattr(scene_views, "read_view", count)
    return paths


def open_views(scenes: Path, size: int = SIZE, **options: Any) -> SceneViews:
    return SceneViews.open(scenes, size, scenes.parent / "cache", **options)


def edit(scenes: Path, change: Callable[[dict[str, Any]], Any], scene: str = "a") -> None:
    path = scenes / scene / "transforms_train.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def message(call: Callable[[], Any]) -> str:
    """The one line of the `InputError` that a call raises."""
    with pytest.raises(InputError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Pictures


def test_views_are_the_pictures_on_the_background(scenes: Path) -> None:
    views = open_views(scenes, background=(0.0, 0.5, 1.0))
    assert views.names == ["a", "b", "c"]
    assert (views.num_scenes, views.total_views) == (3, 12)
    assert [views.num_views(scene) for scene in range(3)] == [4, 3, 5]
    images = views.images(torch.tensor([2, 0]), torch.tensor([3, 1]))
    assert images.shape == (2, 3, SIZE, SIZE) and images.dtype == torch.float32
    for image, (scene, view) in zip(images, (("c", 3), ("a", 1))):
        picture = np.asarray(Image.open(scenes / scene / "train" / f"r_{view:03d}.png"), dtype=np.float64) / 255
        colour = np.array([0.0, 0.5, 1.0])
        expected = picture[..., :3] * picture[..., 3:] + colour * (1 - picture[..., 3:])
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=0.51 / 255)


def ramp(mode: str) -> Image.Image:
    """A picture of 48 x 48 pixels with values from 0 to the largest that the mode holds."""
    values = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)
    if mode == "I;16":
        return Image.fromarray(np.rint(65535 * values**4).astype(np.uint16))  # many values below 256
    grey = np.rint(255 * values).astype(np.uint8)
    if mode in ("L", "P"):
        return Image.fromarray(grey).convert(mode)
    channels = [grey, grey.T, grey[::-1], np.ascontiguousarray(grey[:, ::-1])]
    return Image.merge(mode, [Image.fromarray(channel) for channel in channels[: len(mode)]])


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "png"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("RGBA", "png"),
        ("L", "png"),
        ("P", "png"),
        ("I;16", "png"),
        ("CMYK", "jpg"),
    ],
)
def test_all_readers_agree(tmp_path: Path, mode: str, suffix: str) -> None:
    """Views of objects, real images and the photos of a single scene, over kinds of files."""
    path = tmp_path / f"picture.{suffix}"
    ramp(mode).save(path)
    cameras = Cameras(torch.eye(4)[None, :3].repeat(2, 1, 1), 50.0, 50.0, SIZE / 2, SIZE / 2, SIZE, SIZE)
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    white = torch.ones(3)
    dataset = PhotoDataset(DataparserOutputs([path, path], cameras, scene_box=box, alpha_color=white))
    expected = dataset.get_numpy_image(0)
    np.testing.assert_array_equal(read_view(path, SIZE, (1.0, 1.0, 1.0)), expected)
    np.testing.assert_array_equal(centre_crop(path, SIZE), expected)
    assert expected.min() < 60 and expected.max() > 200


def test_16_bits_are_scaled_by_their_depth(tmp_path: Path) -> None:
    """A dark picture stays dark: 200 of 65,535 is 1 of 255."""
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    assert (read_view(tmp_path / "dark.png", 8, (1, 1, 1)) == 1).all()


def test_flat_index_counts_through_the_scenes(scenes: Path) -> None:
    views = open_views(scenes)
    flat = [int(views.flat_index(scene, view)) for scene in range(3) for view in range(views.num_views(scene))]
    assert flat == list(range(12))
    assert views.flat_index([1, 2], [2, 0]).tolist() == [6, 7]
    for scene, view in ((0, 4), (0, -1), (3, 0), (-1, 0)):
        with pytest.raises(IndexError):
            views.flat_index(scene, view)


def test_other_splits_and_limits(scenes: Path) -> None:
    assert open_views(scenes, split="test").total_views == 6
    few = open_views(scenes, limit_scenes=2, limit_views=2)
    assert few.names == ["a", "b"] and few.total_views == 4
    # One view from each half of the list, and the camera that belongs to it.
    assert [int(Path(file).stem[2:]) // 2 for file in few.files[:2]] == [0, 1]
    everything = open_views(scenes)
    rows = [everything.files.index(file) for file in few.files[:2]]
    expected = everything.cameras([0, 0], rows).camera_to_world
    torch.testing.assert_close(few.cameras([0, 0], [0, 1]).camera_to_world, expected)


@pytest.mark.parametrize("suffix_is", ["absent", "written", "named by the file"])
def test_webp(scenes: Path, suffix_is: str) -> None:
    expected = open_views(scenes).images([0], [2])
    for path in list((scenes / "a" / "train").iterdir()):
        Image.open(path).save(path.with_suffix(".webp"), lossless=True, exact=True)
        path.unlink()
    if suffix_is == "written":
        edit(scenes, lambda meta: [frame.update(file_path=frame["file_path"] + ".webp") for frame in meta["frames"]])
    elif suffix_is == "named by the file":
        edit(scenes, lambda meta: meta.update(image_suffix=".webp"))
    torch.testing.assert_close(open_views(scenes).images([0], [2]), expected)


# Cache


def test_a_second_open_decodes_nothing(scenes: Path, decoded: list[Path]) -> None:
    first = open_views(scenes)
    assert len(decoded) == 12
    decoded.clear()
    second = open_views(scenes)
    assert not decoded
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.fingerprint == second.fingerprint
    assert isinstance(second.pixels, np.memmap) and not second.pixels.flags.writeable
    assert sorted(path.name for path in (scenes.parent / "cache").iterdir()) == ["views.json", "views.u8"]


def test_whatever_decides_the_pixels_rebuilds(scenes: Path, decoded: list[Path]) -> None:
    fingerprints = {open_views(scenes).fingerprint}

    def rebuilt(**options: Any) -> bool:
        decoded.clear()
        fingerprints.add(open_views(scenes, **options).fingerprint)
        return bool(decoded)

    os.utime(scenes / "b" / "train" / "r_001.png", ns=(1, 1))
    assert rebuilt()
    assert rebuilt(background=(0, 0, 0))
    assert rebuilt(split="val")
    assert rebuilt(limit_views=2)
    assert rebuilt()
    (scenes / "a").rename(scenes / "d")
    assert rebuilt()
    assert not rebuilt()
    assert len(fingerprints) == 6


def test_a_corrected_pose_decodes_nothing(scenes: Path, decoded: list[Path]) -> None:
    open_views(scenes)
    decoded.clear()
    edit(scenes, lambda meta: meta["frames"][0].update(transform_matrix=look_at_origin(2.0, 0.1).tolist()))
    pose = open_views(scenes).cameras([0], [0]).camera_to_world[0]
    np.testing.assert_allclose(pose, look_at_origin(2.0, 0.1)[:3], atol=1e-6)
    assert not decoded


@pytest.mark.parametrize("damage", ["truncated", "gone", "no sidecar", "broken sidecar"])
def test_unfinished_files_are_made_anew(scenes: Path, decoded: list[Path], damage: str) -> None:
    expected = np.array(open_views(scenes).pixels)
    file, sidecar = (scenes.parent / "cache" / name for name in ("views.u8", "views.json"))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "no sidecar":
        file.write_bytes(bytes(file.stat().st_size))
        sidecar.unlink()
    else:
        sidecar.write_text(sidecar.read_text()[:20])
    decoded.clear()
    np.testing.assert_array_equal(open_views(scenes).pixels, expected)
    assert len(decoded) == 12


def test_a_build_that_stops_is_not_taken_for_finished(scenes: Path, decoded: list[Path]) -> None:
    bad = scenes / "c" / "train" / "r_002.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:60])
    message(lambda: open_views(scenes))
    bad.write_bytes(good)
    decoded.clear()
    views = open_views(scenes)
    assert len(decoded) == 12 == views.total_views


def test_memory_does_not_grow_with_what_was_read(tmp_path: Path) -> None:
    """A file of 48 MB, all of which is read by a process that must not keep it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from Linux's /proc")
    count, side = 1000, 128
    with (tmp_path / "views.u8").open("wb") as file:
        for _ in range(count):
            file.write(bytes(range(256)) * (side * side * 3 // 256))
    program = f"""
import numpy as np, re, sys, torch
from igae_nerfstudio.scenes.scene_folders import Scene
from igae_nerfstudio.scenes.scene_views import SceneViews
torch.set_num_threads(1)
def resident():
    return sum(int(v) for v in re.findall(r"Rss(?:Anon|File|Shmem):\\s+(\\d+) kB", open("/proc/self/status").read()))
pixels = np.memmap({str(tmp_path / "views.u8")!r}, np.uint8, "r", shape=({count}, {side}, {side}, 3))
scene = Scene("a", ["r.png"] * {count}, [], np.zeros(({count}, 3, 4)), np.ones(({count}, 4)), None)
views = SceneViews([scene], pixels, (1, 1, 1), "")
views.images([0] * 8, range(8))
before = resident()
for first in range(0, {count}, 8):
    images = views.images([0] * 8, range(first, first + 8))
print(resident() - before, float(images.max()))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    grown, largest = result.stdout.split()
    assert float(largest) == 1.0
    assert int(grown) < 16_000, f"{grown} kB more"


# Cameras


def test_cameras_are_those_of_nerfstudios_dataparser(scenes: Path) -> None:
    views = open_views(scenes)
    theirs = BlenderDataParserConfig(data=scenes / "a").setup().get_dataparser_outputs("train").cameras
    ours = views.cameras([0] * 4, range(4))
    torch.testing.assert_close(ours.camera_to_world, theirs.camera_to_worlds)
    intrinsics = torch.cat([theirs.fx, theirs.fy, theirs.cx, theirs.cy], dim=-1)
    torch.testing.assert_close(ours.intrinsics, intrinsics.float())
    assert (ours.height, ours.width) == (SIZE, SIZE)


@pytest.mark.parametrize("downscale", [1, 8, 16])
def test_latent_rays_are_nerfstudios(scenes: Path, downscale: int) -> None:
    lens = {"fl_x": 71.3, "fl_y": 66.1, "cx": 21.7, "cy": 25.2, "w": SIZE, "h": SIZE}
    edit(scenes, lambda meta: meta.update(lens))
    ours = open_views(scenes).cameras([0, 0, 1], [0, 3, 1])
    columns = [c[:, None] for c in ours.intrinsics.unbind(-1)]
    theirs = latent_cameras(Cameras(ours.camera_to_world, *columns, width=SIZE, height=SIZE), downscale)
    origins, directions = ours.latent_rays(downscale)
    assert directions.shape == (3, SIZE // downscale, SIZE // downscale, 3) == origins.shape
    for i in range(3):
        rays = theirs.generate_rays(camera_indices=i)
        torch.testing.assert_close(directions[i], rays.directions, atol=2e-6, rtol=0)
        torch.testing.assert_close(origins[i], rays.origins)
    torch.testing.assert_close(ours.intrinsics[0], torch.tensor([71.3, 66.1, 21.7, 25.2]))


def test_a_ray_in_closed_form() -> None:
    """fx = fy = 2, centre at (4, 4), camera axes = world axes: the latent pixel (0, 1) is seen at (6, 2)."""
    camera = ViewCameras(torch.eye(3, 4)[None], torch.tensor([[2.0, 2.0, 4.0, 4.0]]), 8, 8)
    origins, directions = camera.latent_rays(4)
    torch.testing.assert_close(directions[0, 0, 1], torch.tensor([1.0, 1.0, -1.0]) / math.sqrt(3))
    torch.testing.assert_close(origins, torch.zeros(1, 2, 2, 3))


def test_frames_may_have_their_own_intrinsics(scenes: Path) -> None:
    edit(scenes, lambda meta: meta["frames"][1].update(fl_x=50.0))
    cameras = open_views(scenes).cameras([0, 0], [0, 1])
    focal = 0.5 * SIZE / math.tan(0.5 * 0.69)
    torch.testing.assert_close(cameras.intrinsics[:, 0], torch.tensor([focal, 50.0]))


def views_from(position: tuple[float, float, float], back: tuple[float, float, float]) -> SceneViews:
    """One view: 60 pixels of focal length, 48 x 48 pixels, z up, or y where it looks along z."""
    axis = np.array(back) / np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0] if abs(axis[2]) < 0.9 else [0.0, 1.0, 0.0], axis)
    right /= np.linalg.norm(right)
    pose = np.stack([right, np.cross(axis, right), axis, np.array(position)], axis=-1)
    scene = Scene("a", ["r.png"], [], pose[None], np.array([[60.0, 60.0, 24.0, 24.0]]), None)
    return SceneViews([scene], np.zeros((1, 48, 48, 3), np.uint8), (1.0, 1.0, 1.0), "")


@pytest.mark.parametrize(
    "position, back, seen",
    [
        ((0, 0, 4), (0, 0, 1), True),
        ((0, 0, 4), (0, 0, -1), False),  # looks away: the cube is behind
        ((0, 0, 0.5), (0, 0, -1), True),  # from inside every direction sees it
        ((4, 0, 4), (0, 0, 1), False),  # parallel to the view that sees it, too far aside
        ((2.1, 0, 4), (0, 0, 1), True),  # an edge reaches into the picture
    ],
)
def test_whether_a_camera_sees_the_volume(position, back, seen: bool) -> None:
    views = views_from(position, back)
    if seen:
        views.check_cameras(1.0)
    else:
        assert "look past the volume [-1, 1]^3" in message(lambda: views.check_cameras(1.0))


def test_views_that_look_away_are_named(scenes: Path) -> None:
    open_views(scenes).check_cameras(1.0)
    away = look_at_origin(0.3, 0.2)
    away[:3, [0, 2]] *= -1
    edit(scenes, lambda meta: [meta["frames"][i].update(transform_matrix=away.tolist()) for i in (1, 2)], "b")
    text = message(lambda: open_views(scenes).check_cameras(1.0))
    assert "2 of the 3 views of scene b" in text and "view 1 (b/train/r_001.png)" in text


# What can be wrong


def test_missing_scenes(tmp_path: Path, scenes: Path) -> None:
    assert "does not exist; igae render-objects" in message(lambda: open_views(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "holds no scene" in message(lambda: open_views(tmp_path / "empty"))
    assert "pass the folder above it" in message(lambda: open_views(scenes / "a"))
    text = message(lambda: open_views(scenes, only=["b", "a"], split="night"))
    assert str(scenes / "b") in text and "transforms_night.json" in text


def test_folders_that_are_no_scenes_are_passed_over(scenes: Path, capsys: pytest.CaptureFixture) -> None:
    (scenes / "notes").mkdir()
    (scenes / "sketches").mkdir()
    (scenes / "c" / "transforms_train.json").unlink()
    (scenes / "a").rename(scenes / ".a.unfinished-scene")
    assert open_views(scenes).names == ["b"]
    warnings = [line for line in capsys.readouterr().out.splitlines() if "transforms" in line]
    assert len(warnings) == 1 and "c, notes, sketches" in warnings[0] and "unfinished" not in warnings[0]


def test_bad_pictures_are_named(scenes: Path) -> None:
    path = scenes / "b" / "train" / "r_002.png"
    content = path.read_bytes()
    for bad in (content[:100], b"", b"no picture"):
        path.write_bytes(bad)
        text = message(lambda: open_views(scenes))
        assert f"image {path} cannot be read" in text
    path.unlink()
    assert f"image {path} does not exist" in message(lambda: open_views(scenes))


def test_other_sizes_are_named(scenes: Path) -> None:
    text = message(lambda: open_views(scenes, size=64))
    assert "r_000.png has 48 x 48 pixels" in text and "--size 64" in text
    path = scenes / "c" / "train" / "r_004.png"
    Image.new("RGBA", (SIZE, 20)).save(path)
    assert f"{path} has 48 x 20 pixels" in message(lambda: open_views(scenes))


def test_intrinsics_may_be_for_another_size(scenes: Path) -> None:
    edit(scenes, lambda meta: meta.update(w=96, h=192, fl_x=100.0, fl_y=120.0, cx=40.0, cy=100.0))
    intrinsics = open_views(scenes).cameras([0], [0]).intrinsics[0]
    torch.testing.assert_close(intrinsics, torch.tensor([50.0, 30.0, 20.0, 25.0]))


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda meta: meta.update(frames=[]), "has no views"),
        (lambda meta: meta.pop("frames"), "frames"),
        (lambda meta: meta.pop("camera_angle_x"), "camera_angle_x"),
        (lambda meta: meta.update(camera_angle_x=0), "ZeroDivisionError"),
        (lambda meta: meta.update(camera_angle_x=-1.0), "impossible intrinsics"),
        (lambda meta: meta.update(fl_x=float("nan")), "impossible intrinsics"),
        (lambda meta: meta.update(k1=0.1), "lens distortion k1: undistort the pictures first"),
        (lambda meta: meta["frames"][2].pop("transform_matrix"), "transform_matrix"),
        (lambda meta: meta["frames"][2].update(transform_matrix=[[1, 0], [0, 1]]), "cannot be used"),
        (
            lambda meta: [f.update(transform_matrix=[[1.0, 0.0], [0.0, 1.0]]) for f in meta["frames"]],
            "4 x 4 transform_matrix",
        ),
        (lambda meta: meta["frames"][2]["transform_matrix"][0].__setitem__(3, float("nan")), "view 2 (./train/r_002)"),
        (lambda meta: meta["frames"][2].update(transform_matrix=np.diag([2.0, 2, 2, 1]).tolist()), "no rotation"),
        (lambda meta: meta["frames"][2].update(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), "mirroring"),
    ],
)
def test_bad_transforms_are_named(scenes: Path, change: Callable[[dict], Any], expected: str) -> None:
    edit(scenes, change)
    text = message(lambda: open_views(scenes))
    assert expected in text
    assert str(scenes / "a") in text


def test_transforms_that_are_not_json_are_named(scenes: Path) -> None:
    path = scenes / "a" / "transforms_train.json"
    path.write_text(path.read_text()[:100])
    assert f"{path.parent} cannot be used (JSONDecodeError" in message(lambda: open_views(scenes))
