"""Scenes in the layout of ShapeNet-SRN against the same scenes in Blender's, and what can be wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
import torch
from conftest import write_blender_scene, write_srn_scene

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes.scene_views import SceneViews

SIZE = 48


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """One scene twice: `blender` and `srn`, of 4 training and 10 test views."""
    write_blender_scene(tmp_path / "scenes" / "blender", (SIZE, SIZE), (4, 1, 10))
    write_srn_scene(tmp_path / "scenes" / "srn", tmp_path / "scenes" / "blender")
    return tmp_path / "scenes"


def open_views(scenes: Path, split: str = "train", **options: int) -> SceneViews:
    return SceneViews.open(scenes, SIZE, scenes.parent / f"cache-{split}", split=split, **options)


@pytest.mark.parametrize("split, count", [("train", 4), ("test", 10)])
def test_rays_and_pictures_are_those_of_the_blender_layout(scenes: Path, split: str, count: int) -> None:
    views = open_views(scenes, split)
    assert views.names == ["blender", "srn"] and [views.num_views(0), views.num_views(1)] == [count, count]
    numbers = list(range(count))
    for ours, theirs in zip(views.cameras([1], numbers).latent_rays(8), views.cameras([0], numbers).latent_rays(8)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(views.images([1], numbers), views.images([0], numbers))
    views.check_cameras(1.0)


def test_a_limit_spreads_over_the_views_of_the_split(scenes: Path) -> None:
    few = open_views(scenes, limit_views=2)
    assert few.num_views(1) == 2
    numbers = [int(Path(file).stem) for file in few.files if file.startswith("srn")]
    assert 10 <= numbers[0] < 12 <= numbers[1] < 14


def test_intrinsics_of_the_pictures_own_size(scenes: Path, tmp_path: Path) -> None:
    write_srn_scene(tmp_path / "other" / "srn", scenes / "blender", made_for=SIZE)
    found = open_views(tmp_path / "other").cameras([0], [0]).intrinsics
    torch.testing.assert_close(found, open_views(scenes).cameras([1], [0]).intrinsics, atol=1e-4, rtol=0)


def test_a_matrix_may_have_four_lines(scenes: Path) -> None:
    expected = open_views(scenes).cameras([1], [2]).camera_to_world
    path = scenes / "srn" / "pose" / "000012.txt"
    numbers = path.read_text().split()
    path.write_text("\n".join(" ".join(numbers[row : row + 4]) for row in range(0, 16, 4)))
    torch.testing.assert_close(open_views(scenes).cameras([1], [2]).camera_to_world, expected)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda srn: [path.unlink() for path in (srn / "rgb").iterdir()], "the split 'train' has no views"),
        (lambda srn: [path.unlink() for path in sorted((srn / "rgb").iterdir())[:4]], "the split 'train' has no views"),
        (lambda srn: (srn / "pose" / "000011.txt").unlink(), "cannot be used (FileNotFoundError"),
        (lambda srn: (srn / "pose" / "000011.txt").write_text("1 0 0"), "with the 16 numbers"),
        (lambda srn: (srn / "pose" / "000011.txt").write_text("2 " * 16), "(rgb/000011.png)"),
        (lambda srn: (srn / "intrinsics.txt").write_text(""), "IndexError"),
        (lambda srn: (srn / "intrinsics.txt").write_text("50 24 24 0\n48 40\n"), "pictures of 40 x 48 pixels"),
        (lambda srn: (srn / "intrinsics.txt").write_text("-5 24 24 0\n48 48\n"), "impossible intrinsics"),
        (lambda srn: (srn / "rgb" / "000012.png").write_bytes(b"no picture"), "000012.png cannot be read"),
    ],
)
def test_bad_scenes_are_named(scenes: Path, change: Callable[[Path], object], expected: str) -> None:
    change(scenes / "srn")
    with pytest.raises(InputError) as raised:
        open_views(scenes)
    text = str(raised.value)
    assert expected in text and str(scenes / "srn") in text and "\n" not in text


def test_the_folder_of_one_scene(scenes: Path) -> None:
    with pytest.raises(InputError, match="pass the folder above it"):
        open_views(scenes / "srn")
