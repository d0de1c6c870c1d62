"""What a new user passes to --data ends in a line that says what it is and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import latent_config, write_blender_scene, write_nerfstudio_scene
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from igae_nerfstudio.data.dataset_hints import hint
from igae_nerfstudio.errors import InputError

NAMES = (
    "missing empty photos photos-below one-photo video folder-of-a-video zip folder-of-a-zip text other-format "
    "folder-above colmap one-split"
).split()


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)


def wrong_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """By name: what is passed, and what the line must say."""
    (folder / "empty").mkdir()
    photo(folder / "photos" / "a.jpg")
    photo(folder / "nested" / "images" / "a.png")
    photo(folder / "one.png")
    for name in ("film.mp4", "films/film.MOV", "scene.zip", "zips/scene.tar.gz", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    write_blender_scene(folder / "blender", counts=(1, 1, 1))
    write_blender_scene(folder / "above" / "scene", counts=(1, 1, 1))
    (folder / "sparse" / "sparse" / "0").mkdir(parents=True)
    (folder / "sparse" / "sparse" / "0" / "cameras.bin").touch()
    photo(folder / "sparse" / "images" / "a.png")
    return {
        "missing": (folder / "no" / "such", rf"there is no .*such; {folder} exists\. Pass the folder of a dataset"),
        "empty": (folder / "empty", "is empty"),
        "photos": (folder / "photos", "no camera poses.*ns-process-data images --data .*photos --output-dir"),
        "photos-below": (folder / "nested", "no camera poses.*ns-process-data images"),
        "one-photo": (folder / "one.png", "is one photo"),
        "video": (folder / "film.mp4", "ns-process-data video --data .*film.mp4"),
        "folder-of-a-video": (folder / "films", "ns-process-data video --data .*film.MOV"),
        "zip": (folder / "scene.zip", "is an archive. Unpack it"),
        "folder-of-a-zip": (folder / "zips", "is an archive. Unpack it"),
        "text": (folder / "notes.txt", "is a file"),
        "other-format": (folder / "blender", "Add `blender-data` after the options"),
        "folder-above": (folder / "above", "above.scene is one"),
        "one-split": (
            folder / "blender" / "transforms_train.json",
            "one split of .* --data .*blender and add `blender",
        ),
        "colmap": (folder / "sparse", "Add `colmap --colmap-path sparse/0` after"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_wrong_data_is_recognised(name: str, tmp_path: Path, autoencoder_dir: Path) -> None:
    """Through the pipeline, as `ns-train --data X` goes."""
    inputs = wrong_inputs(tmp_path)
    assert set(inputs) == set(NAMES)
    data, expected = inputs[name]
    config = latent_config("tensorf", data, autoencoder_dir, tmp_path)
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    config.pipeline.datamanager.data = data
    with pytest.raises(InputError, match=expected) as error:
        config.pipeline.setup(device="cpu")
    assert "\n" not in str(error.value)


def test_without_data_it_is_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"without --data the working folder is the dataset; {tmp_path} is empty" in (
        hint(Path(), "Nerfstudio") or ""
    )
    photo(tmp_path / "a.jpg")
    assert f"ns-process-data images --data {tmp_path} " in (hint(Path(), "Nerfstudio") or "")
    (tmp_path / "cameras.json").touch()
    assert "Pass the folder of a dataset with --data" in (hint(Path(), "Nerfstudio") or "")


def test_other_dataparsers(tmp_path: Path) -> None:
    scene = write_nerfstudio_scene(tmp_path / "s", [np.zeros((40, 40, 3), np.uint8)])
    assert "nerfstudio-data" in (hint(scene, "Blender") or "")
    assert hint(scene, "Nerfstudio") is None  # its own words are better: the format is right
    (tmp_path / "c" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "c" / "sparse" / "0" / "cameras.txt").touch()
    assert "--colmap-path sparse/0" in (hint(tmp_path / "c", "ColmapDataParser") or "")
