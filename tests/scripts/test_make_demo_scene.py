"""Tests of ``scripts/make_demo_scene.py`` and of the scene that the repository carries."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "demo" / "lighthouse"
COUNTS = {"train": 100, "val": 4, "test": 12}


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The script as a module, loaded by its path."""
    spec = importlib.util.spec_from_file_location("make_demo_scene", ROOT / "scripts" / "make_demo_scene.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _frames(split: str) -> list[tuple[np.ndarray, Path]]:
    """Camera matrix and picture path of each frame of a split."""
    meta = json.loads((SCENE / f"transforms_{split}.json").read_text(encoding="utf-8"))
    assert meta["camera_angle_x"] == pytest.approx(0.6911112)
    return [(np.array(f["transform_matrix"]), SCENE / (f["file_path"] + ".png")) for f in meta["frames"]]


def _picture(path: Path) -> np.ndarray:
    """A picture's pixels as they are stored."""
    with Image.open(path) as image:
        return np.asarray(image)


def test_carried_scene_is_complete_and_small() -> None:
    for split, count in COUNTS.items():
        frames = _frames(split)
        assert len(frames) == count
        for _, path in frames:
            assert _picture(path).shape == (128, 128, 4)
    assert sum(path.stat().st_size for path in SCENE.rglob("*") if path.is_file()) <= 1_500_000


@pytest.mark.parametrize(("split", "index"), [("train", 7), ("test", 3)])
def test_script_renders_the_carried_pictures(demo: ModuleType, split: str, index: int) -> None:
    matrix, path = _frames(split)[index]
    difference = np.abs(demo.render(matrix, 128).astype(int) - _picture(path).astype(int))
    assert difference.max() <= 2


def test_carried_cameras_are_the_scripts(demo: ModuleType) -> None:
    cameras = {"train": demo.train_cameras(100, 0), "val": demo.val_cameras(), "test": demo.test_cameras()}
    for split, matrices in cameras.items():
        stored = np.stack([matrix for matrix, _ in _frames(split)])
        np.testing.assert_allclose(stored, np.stack(matrices), atol=1e-6)


@pytest.mark.parametrize("split", sorted(COUNTS))
def test_cameras_look_at_the_origin_from_radius(split: str) -> None:
    for matrix, _ in _frames(split):
        rotation, position = matrix[:3, :3], matrix[:3, 3]
        assert np.linalg.norm(position) == pytest.approx(2.1, abs=1e-6)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(-rotation[:, 2], -position / 2.1, atol=1e-6)
        assert rotation[2, 1] > 0.0  # right side up


@pytest.mark.parametrize(("split", "index"), [("test", 0), ("test", 2), ("test", 8), ("test", 10)])
@pytest.mark.parametrize("name", ["finial", "roof", "tree"])
def test_landmarks_are_where_they_project(demo: ModuleType, split: str, index: int, name: str) -> None:
    """The pixel under a landmark has its part's hue, whatever the light there."""
    point, color = demo.LANDMARKS[name]
    matrix, path = _frames(split)[index]
    # Projected by hand, not by the script, from what the JSON says.
    local = (np.array(point) - matrix[:3, 3]) @ matrix[:3, :3]
    focal = 64.0 / np.tan(0.5 * 0.6911112)
    x, y = 64.0 + focal * local[0] / -local[2], 64.0 - focal * local[1] / -local[2]
    assert demo.project(point, matrix, 128) == pytest.approx((x, y))
    pixel = _picture(path)[int(y), int(x)].astype(float)
    assert pixel[3] == 255
    seen, expected = pixel[:3] / np.linalg.norm(pixel[:3]), np.array(color) / np.linalg.norm(color)
    assert seen @ expected > 0.99


@pytest.mark.parametrize("split", sorted(COUNTS))
def test_alpha_is_clear_in_corners_and_solid_in_the_island(demo: ModuleType, split: str) -> None:
    """The tower stands beside the axis, so the very middle may show sky: the rock's inside never does."""
    for matrix, path in _frames(split):
        alpha = _picture(path)[..., 3]
        assert alpha[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
        x, y = demo.project((0.0, 0.0, -0.35), matrix, 128)
        assert alpha[int(y), int(x)] == 255


def test_too_small_a_size_is_one_clear_line(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--output-dir", str(tmp_path / "scene"), "--size", "31"]) != 0
    error = capsys.readouterr().err.strip()
    assert "--size" in error and "32" in error and "\n" not in error
    assert not (tmp_path / "scene").exists()


def test_script_writes_a_scene(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("val_cameras", "test_cameras"):  # a picture takes a second
        monkeypatch.setattr(demo, name, lambda cameras=getattr(demo, name): cameras()[:1])
    assert demo.main(["--output-dir", str(tmp_path), "--size", "32", "--views", "2", "--seed", "1"]) == 0
    meta = json.loads((tmp_path / "transforms_train.json").read_text(encoding="utf-8"))
    assert [frame["file_path"] for frame in meta["frames"]] == ["./train/r_000", "./train/r_001"]
    assert _picture(tmp_path / "test" / "r_000.png").shape == (32, 32, 4)
