"""What users bring: every message names the true reason, and every remedy in one is followed and works."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
import tyro
from conftest import SHARED, look_at_origin, write_blender_scene, write_nerfstudio_scene
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image

from igae_nerfstudio.data.dataset_reader import DatasetReaderConfig, _say_once
from igae_nerfstudio.data.latent_datamanager import LatentDataManagerConfig
from igae_nerfstudio.errors import InputError

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers questions, and lines that are said once are said again."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    _say_once.cache_clear()


def read(data: Path, parser: str = "nerfstudio-data", **options: Any) -> dict[str, DataparserOutputs]:
    inner = deepcopy(all_dataparsers[parser])
    for name, value in options.items():
        assert hasattr(inner, name), name
        setattr(inner, name, value)
    reader = DatasetReaderConfig(data=data, inner=inner).setup()
    return {split: reader.get_dataparser_outputs(split) for split in SPLITS}


def refusal(data: Path, parser: str = "nerfstudio-data", **options: Any) -> str:
    with pytest.raises(InputError) as error:
        read(data, parser, **options)
    message = str(error.value)
    assert "\n" not in message and "igae-dataset-" not in message
    return message


def follow(message: str, data: Path) -> dict[str, DataparserOutputs]:
    """Read a dataset as a message says: with the last dataparser and options in back quotes."""
    words = shlex.split(re.findall(r"`([a-z-]+(?: [^`]*)?)`", message)[-1])
    options = {word[2:].replace("-", "_"): value for word, value in zip(words[1::2], words[2::2])}
    return read(data, words[0], **{k: Path(v) if k.endswith("path") else int(v) for k, v in options.items()})


def photos(count: int = 10, height: int = 32, width: int = 40) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 * i, np.uint8) for i in range(count)]


def scene(folder: Path, count: int = 10, **entries: Any) -> Path:
    return write_nerfstudio_scene(folder / "scene", photos(count), **entries)


def edit(data: Path, change: Callable[[dict], Any], name: str = "transforms.json") -> None:
    meta = json.loads((data / name).read_text())
    change(meta)
    (data / name).write_text(json.dumps(meta))


def colmap_scene(
    data: Path,
    model: str,
    count: int = 10,
    shape: tuple[int, int] = (32, 40),
    camera: str = "SIMPLE_PINHOLE",
    params: tuple[float, ...] = (50.0, 20.0, 16.0),
    binary: bool = False,
    shift: tuple[float, float, float] = (0, 0, 0),
) -> Path:
    (data / "images").mkdir(parents=True, exist_ok=True)
    (data / model).mkdir(parents=True, exist_ok=True)
    images = {}
    for i in range(count):
        Image.fromarray(photos(count, *shape)[i]).save(data / "images" / f"{i:03d}.png")
        pose = look_at_origin(0.5 * i, 0.3) @ np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] += shift
        world = np.linalg.inv(pose)
        images[i + 1] = colmap.Image(
            i + 1, colmap.rotmat2qvec(world[:3, :3]), world[:3, 3], 1, f"{i:03d}.png", np.zeros((0, 2)), np.zeros(0)
        )
    cameras = {1: colmap.Camera(1, camera, shape[1], shape[0], np.array(params))}
    ending = "bin" if binary else "txt"
    (colmap.write_cameras_binary if binary else colmap.write_cameras_text)(cameras, data / model / f"cameras.{ending}")
    (colmap.write_images_binary if binary else colmap.write_images_text)(images, data / model / f"images.{ending}")
    return data


# COLMAP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sparse/0", "sparse/1", "sparse/12", "sparse", "colmap", "colmap/sparse", "."])
@pytest.mark.parametrize("binary", [False, True])
def test_colmap_models_are_found_wherever_they_are(tmp_path: Path, model: str, binary: bool) -> None:
    data = colmap_scene(tmp_path / "scene", model, binary=binary)
    for parser in ("colmap", "nerfstudio-data", "blender-data"):
        message = refusal(data, parser)
        assert f"`colmap --colmap-path {model}`" in message and "10 images" in message
        assert len(follow(message, data)["train"].image_filenames) == 8


def test_the_largest_colmap_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = colmap_scene(tmp_path / "scene", "sparse/0", count=3)
    for model, count in (("sparse/1", 10), ("sparse/2", 4), ("sparse/10", 5)):
        colmap_scene(data, model, count)
    message = refusal(data, "colmap")
    assert "with 10 images in sparse/1 (the largest of 4)" in message
    assert len(follow(message, data)["train"].image_filenames) == 8
    assert "has 3 images" not in capsys.readouterr().out
    read(data, "colmap", colmap_path=Path("sparse/0"))
    line = capsys.readouterr().out
    assert "sparse/0 has 3 images, that in sparse/1 10: `colmap --colmap-path sparse/1`" in line

    colmap_scene(data, "colmap/sparse/0", count=2)  # the default is said to be small as well
    read(data, "colmap")
    assert "colmap/sparse/0 has 2 images, that in sparse/1 10" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["sparse/0", "colmap/sparse/0"])
def test_colmap_points_are_not_needed(tmp_path: Path, model: str) -> None:
    data = colmap_scene(tmp_path / "scene", model)
    found = read(data, "colmap", colmap_path=Path(model))
    (data / model / "points3D.txt").write_text("# no points\n")
    assert len(found["train"].image_filenames) == len(read(data, "colmap", colmap_path=Path(model))["train"].cameras)


def test_a_fisheye_of_colmap_keeps_its_k4(tmp_path: Path) -> None:
    lens = (0.03, -0.01, 0.002, -0.0005)
    data = colmap_scene(tmp_path / "scene", "sparse/0", camera="OPENCV_FISHEYE", params=(38.0, 38.0, 20.0, 16.0, *lens))
    for outputs in read(data, "colmap", colmap_path=Path("sparse/0")).values():
        expected = torch.tensor([*lens, 0.0, 0.0]).expand(len(outputs.image_filenames), 6)
        assert torch.allclose(outputs.cameras.distortion_params, expected)


def test_large_colmap_photos_without_small_ones(tmp_path: Path) -> None:
    data = colmap_scene(tmp_path / "scene", "sparse/0", shape=(20, 1640), params=(900.0, 820.0, 10.0))
    for factor, says in ((None, "more than 1600 pixels"), (4, "4 times smaller")):
        message = refusal(data, "colmap", colmap_path=Path("sparse/0"), downscale_factor=factor)
        assert says in message and "`--downscale-factor 1` after `colmap`" in message
    assert read(data, "colmap", colmap_path=Path("sparse/0"), downscale_factor=1)["train"].cameras.width[0] == 1640


def test_photos_and_split_of_colmap_that_are_not_where_they_are_looked_for(tmp_path: Path) -> None:
    data = colmap_scene(tmp_path / "scene", "sparse/0")
    message = refusal(data, "colmap", colmap_path=Path("sparse/0"), eval_mode="filename")
    assert "should contain train/eval" in message and "leave out `--eval-mode filename`" in message
    (data / "images").rename(data / "input")
    message = refusal(data, "colmap", colmap_path=Path("sparse/0"))
    assert "there is no" in message and "000.png; add `--images-path input` after `colmap`" in message
    read(data, "colmap", colmap_path=Path("sparse/0"), images_path=Path("input"))
    shutil.rmtree(data / "input")
    assert message.split(";")[0] == refusal(data, "colmap", colmap_path=Path("sparse/0"))


# Another format ------------------------------------------------------------------------------------------------


def test_another_dataparser_is_named(tmp_path: Path) -> None:
    blender = write_blender_scene(tmp_path / "blender")
    angle = scene(tmp_path, camera_angle_x=0.9)
    plain = write_nerfstudio_scene(tmp_path / "plain", photos())
    edit(angle, lambda meta: [meta.pop(name) for name in ("fl_x", "fl_y", "cx", "cy", "w", "h")])
    cases = [(blender, "nerfstudio-data", "blender-data"), (blender, "colmap", "blender-data")]
    cases += [(angle, "nerfstudio-data", "instant-ngp-data"), (angle, "blender-data", "instant-ngp-data")]
    cases += [(plain, "blender-data", "nerfstudio-data"), (plain, "colmap", "nerfstudio-data")]
    for data, wrong, right in cases:
        message = refusal(data, wrong)
        assert f"add `{right}` after the options" in message
        assert len(follow(message, data)["train"].image_filenames) >= 6
    (tmp_path / "outer").mkdir()
    plain.rename(tmp_path / "outer" / "plain")
    assert f"there is one in {tmp_path / 'outer' / 'plain'}: pass that to --data" in refusal(tmp_path / "outer")
    assert "there is no dataset" in refusal(plain)


def raw_export(kind: str, data: Path) -> None:
    """What the apps write, as far as Nerfstudio's converters read it."""
    where = {"polycam": "keyframes/corrected_images", "record3d": "rgb"}.get(kind, "images")
    (data / where).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    poses = [look_at_origin(0.3 * i, 0.3) for i in range(12)]
    for i in range(12):
        Image.fromarray(noise).save(data / where / f"{i}.jpg")
    if kind == "polycam":
        for folder in ("corrected_cameras", "depth"):
            (data / "keyframes" / folder).mkdir()
        for i, pose in enumerate(poses):
            camera = {"fx": 60, "fy": 60, "cx": 40, "cy": 32, "width": 80, "height": 64, "blur_score": 100}
            camera.update({f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)})
            (data / "keyframes" / "corrected_cameras" / f"{i}.json").write_text(json.dumps(camera))
    elif kind == "record3d":
        meta = {"poses": [[0, 0, 0, 1, *pose[:3, 3]] for pose in poses], "K": [60.0, 0, 0, 0, 60, 0, 40, 32, 1]}
        (data / "metadata.json").write_text(json.dumps({**meta, "w": 80, "h": 64}))
    elif kind == "metashape":
        cameras = "".join(
            f'<camera id="{i}" sensor_id="0" label="{i}" enabled="1"><transform>'
            f"{' '.join(map(str, pose.flatten()))}</transform></camera>"
            for i, pose in enumerate(poses)
        )
        sensor = '<sensor id="0" type="frame"><resolution width="80" height="64"/>'
        sensor += '<calibration type="frame" class="adjusted"><f>60</f><b1>0</b1></calibration></sensor>'
        text = f"<document><chunk><sensors>{sensor}</sensors><cameras>{cameras}</cameras></chunk></document>"
        (data / "cameras.xml").write_text(f'<?xml version="1.0"?>\n{text}')
    elif kind == "realitycapture":
        columns = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"
        rows = [f"{i}.jpg,{i},{i * i},1,{10 * i},60,0,30,0,0,0,0,0,0,0,0" for i in range(12)]
        (data / "poses.csv").write_text("\n".join([columns, *rows]))


@pytest.mark.parametrize("kind", ["polycam", "record3d", "metashape", "realitycapture"])
def test_raw_exports_are_converted_by_the_line_that_is_given(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nerfstudio.scripts.process_data import Commands

    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    data = tmp_path / "my scan"
    raw_export(kind, data)
    message = refusal(data)
    (command, target) = re.findall(r"run `(ns-process-data .*?)` and pass (.*) to --data$", message)[0]
    words = shlex.split(command)
    assert words[1] == kind and Path(words[words.index("--output-dir") + 1]) == Path(target)
    tyro.cli(Commands, args=words[1:]).main()
    found = read(Path(target), downscale_factor=1)
    assert len(found["train"].image_filenames) >= 10


def test_photos_without_poses_and_other_raw_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.scripts.process_data import Commands

    for name in ("ffmpeg", "colmap"):  # which ns-process-data looks for
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    (tmp_path / "trip").mkdir()
    Image.fromarray(photos(1)[0]).save(tmp_path / "trip" / "a.jpg")
    message = refusal(tmp_path / "trip")
    assert "no camera poses" in message and f"ns-process-data images --data {tmp_path / 'trip'}" in message
    raw_export("polycam", tmp_path / "scan")
    (tmp_path / "scan" / "keyframes" / "depth").rmdir()
    assert refusal(tmp_path / "scan").endswith("wants a folder keyframes/depth, even an empty one")
    (tmp_path / "film.mp4").write_bytes(b"")
    assert f"ns-process-data video --data {tmp_path / 'film.mp4'}" in refusal(tmp_path / "film.mp4")
    (tmp_path / "scan.r3d").write_bytes(b"")
    assert "export it there as EXR + RGB" in refusal(tmp_path / "scan.r3d")
    shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "scan")
    assert f"ns-process-data polycam --data {tmp_path / 'scan.zip'}" in refusal(tmp_path / "scan.zip")
    (tmp_path / "drone" / "opensfm").mkdir(parents=True)
    (tmp_path / "drone" / "odm_report").mkdir()
    (tmp_path / "drone" / "odm_report" / "shots.geojson").write_text("{}")
    for name in ("trip", "film.mp4", "drone", "scan.zip"):  # commands that ns-process-data takes
        (command,) = re.findall(r"`ns-process-data ([^`]*)`", refusal(tmp_path / name))
        assert tyro.cli(Commands, args=shlex.split(command)).data.exists()
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == f"`nerfstudio-data` finds no transforms.json in {tmp_path / 'empty'}"


# transforms.json ------------------------------------------------------------------------------------------------


def test_what_a_transforms_json_lacks(tmp_path: Path) -> None:
    data = scene(tmp_path)
    whole = (data / "transforms.json").read_text()

    def broken(change: Callable[[dict], Any], *says: str) -> None:
        (data / "transforms.json").write_text(whole)
        edit(data, change)
        for parser in ("nerfstudio-data", "instant-ngp-data"):
            message = refusal(data, parser)
            assert all(text in message for text in says), message

    broken(lambda meta: meta["frames"].clear(), "has no frames", "write them into 'frames'")
    broken(lambda meta: meta["frames"][3].pop("transform_matrix"), "images/0003.png has no 'transform_matrix'")
    edit(data, lambda meta: meta["frames"].pop(3))  # remove the frame
    read(data)
    broken(lambda meta: meta["frames"][3].pop("file_path"), "the frame number 4 has no 'file_path'")

    (data / "transforms.json").write_text(whole)
    edit(data, lambda meta: meta.update(camera_model="THIN_PRISM_FISHEYE"))
    assert "unknown camera_model 'THIN_PRISM_FISHEYE'; undistort the photos" in refusal(data)
    edit(data, lambda meta: meta.update(camera_model="OPENCV"))
    read(data)
    edit(data, lambda meta: meta.pop("cx"))
    assert "has no 'cx', as in the format of instant-ngp; add `instant-ngp-data`" in refusal(data)
    read(data, "instant-ngp-data")
    edit(data, lambda meta: meta.update(cx=20.0) or meta.pop("h"))
    assert "has no 'h', nor has its frame images/0000.png; write it to either" in refusal(data)
    edit(data, lambda meta: [frame.update(fl_x=60.0, h=32) for frame in meta["frames"]] and meta.pop("fl_x"))
    edit(data, lambda meta: meta["frames"][2].pop("h"))
    assert "has no 'h', nor has its frame images/0002.png; write it to either" in refusal(data)
    edit(data, lambda meta: meta.update(h=32))
    read(data)
    (data / "transforms.json").write_text(whole[:-20])
    assert "is no readable JSON" in refusal(data)
    (data / "transforms.json").write_text(whole)
    (data / "images" / "0000.png").unlink()
    assert f"there is no {data / 'images' / '0000.png'}" in refusal(data)


def test_blender_scenes(tmp_path: Path) -> None:
    data = write_blender_scene(tmp_path / "scene")
    expected = read(data, "blender-data")["train"]
    for ending in (".png", ".jpg", ".webp"):
        for path in sorted((data / "train").iterdir()):
            Image.open(path).convert("RGB").save(path.with_suffix(ending))
            if ending != path.suffix:
                path.unlink()

        def with_ending(meta: dict, ending: str = ending) -> None:
            for frame in meta["frames"]:
                frame["file_path"] = frame["file_path"].split(".")[0] + "." + frame["file_path"].split(".")[1] + ending

        edit(data, with_ending, "transforms_train.json")
        found = read(data, "blender-data")["train"]
        assert found.image_filenames == [path.with_suffix(ending) for path in expected.image_filenames]
        assert torch.equal(found.cameras.camera_to_worlds, expected.cameras.camera_to_worlds)
        assert torch.equal(found.cameras.fx, expected.cameras.fx)

    edit(data, lambda meta: meta.pop("camera_angle_x"), "transforms_train.json")
    assert "has no 'camera_angle_x'; write the horizontal field of view there, in radians" in refusal(
        data, "blender-data"
    )
    edit(data, lambda meta: meta.update(fl_x=60.0, w=48), "transforms_train.json")
    value = float(refusal(data, "blender-data").rsplit(" ", 1)[1])
    edit(data, lambda meta: meta.update(camera_angle_x=value), "transforms_train.json")
    assert read(data, "blender-data")["train"].cameras.fx[0].item() == pytest.approx(60)
    (data / "train" / "r_000.webp").unlink()
    assert "r_000" in refusal(data, "blender-data")


@pytest.mark.parametrize("parser", ["nerfstudio-data", "instant-ngp-data", "blender-data"])
@pytest.mark.parametrize("drive", ["", "C:\\scans\\"])
def test_paths_of_windows(tmp_path: Path, parser: str, drive: str) -> None:
    if parser == "blender-data":
        data = write_blender_scene(tmp_path / "scene")
        name = "transforms_train.json"
    else:
        data, name = scene(tmp_path), "transforms.json"
        (data / "masks").mkdir()
        for path in (data / "images").iterdir():
            shutil.copy(path, data / "masks")
        lists = {"train_filenames": [f"images/{i:04d}.png" for i in range(8)], "val_filenames": ["images/0009.png"]}
        edit(data, lambda meta: meta.update(lists if parser == "nerfstudio-data" else {}))
        edit(data, lambda meta: [f.update(mask_path=f["file_path"].replace("im", "m", 1)) for f in meta["frames"]])
        edit(data, lambda meta: [f.update(mask_path="masks/" + Path(f["file_path"]).name) for f in meta["frames"]])
        if parser == "nerfstudio-data":
            edit(data, lambda meta: [f.update(depth_file_path=f["mask_path"]) for f in meta["frames"]])
    expected = read(data, parser)
    before = sorted(path.relative_to(data) for path in data.rglob("*"))

    def backslashes(entry: dict) -> None:
        for key, value in entry.items():
            if key.endswith("_path"):
                entry[key] = drive + value.removeprefix("./").replace("/", "\\")
            elif key.endswith("_filenames"):
                entry[key] = [drive + path.replace("/", "\\") for path in value]

    edit(data, lambda meta: [backslashes(entry) for entry in (meta, *meta["frames"])], name)
    found = read(data, parser)
    for split in SPLITS:
        assert found[split].image_filenames == expected[split].image_filenames
        assert found[split].mask_filenames == expected[split].mask_filenames
        assert found[split].metadata == expected[split].metadata
        assert torch.equal(found[split].cameras.camera_to_worlds, expected[split].cameras.camera_to_worlds)
    assert sorted(path.relative_to(data) for path in data.rglob("*")) == before


def test_photos_elsewhere_and_smaller_ones_in_a_corrected_copy(tmp_path: Path) -> None:
    """The copy of a corrected transforms.json finds images_2, absolute paths, and paths that leave the folder."""
    data = scene(tmp_path)

    def move(folder: Path | str) -> None:
        edit(data, lambda meta: [f.update(file_path=f"{folder}/{Path(f['file_path']).name}") for f in meta["frames"]])

    (data / "images_2").mkdir()
    for path in (data / "images").iterdir():
        Image.open(path).resize((20, 16)).save(data / "images_2" / path.name)
    expected = read(data, downscale_factor=2)["train"]
    edit(data, lambda meta: [frame["transform_matrix"].pop() for frame in meta["frames"]])
    found = read(data, downscale_factor=2)["train"]
    assert found.image_filenames == expected.image_filenames and found.image_filenames[0].parent.name == "images_2"
    assert torch.equal(found.cameras.camera_to_worlds, expected.cameras.camera_to_worlds)
    (data / "images").rename(tmp_path / "photos")
    for prefix in ("../photos", str(tmp_path / "photos")):
        move(prefix)
        for path in (data, data / "transforms.json"):
            names = read(path)["train"].image_filenames
            assert all(name.exists() for name in names) and len(names) == 9


# Poses ----------------------------------------------------------------------------------------------------------


def with_poses(
    tmp_path: Path, kind: str, change: Callable[[int, np.ndarray], Any], splits: tuple[str, ...] = ("train",)
) -> Path:
    """A dataset whose matrices (4, 4), one by one, are replaced."""
    if kind == "blender-data":
        data = write_blender_scene(tmp_path / "scene")
        names = [f"transforms_{split}.json" for split in splits]
    else:
        data, names = scene(tmp_path, camera_angle_x=0.6), ["transforms.json"]

    def all_frames(meta: dict) -> None:
        for i, frame in enumerate(meta["frames"]):
            changed = change(i, np.array(frame["transform_matrix"]))
            frame["transform_matrix"] = changed.tolist() if isinstance(changed, np.ndarray) else changed

    for name in names:
        edit(data, all_frames, name)
    return data


def third(change: Callable[[np.ndarray], Any]) -> Callable[[int, np.ndarray], Any]:
    return lambda i, pose: change(pose) if i == 3 else pose


def scaled(pose: np.ndarray, *factors: float) -> np.ndarray:
    return pose @ np.diag([*factors, 1.0])


def sheared(pose: np.ndarray) -> np.ndarray:
    shear = np.eye(4)
    shear[0, 1] = 0.05
    return pose @ shear


def nearest_rotation(pose: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = u @ v
    return pose


def divided(pose: np.ndarray) -> np.ndarray:
    pose[:3, :3] /= np.linalg.norm(pose[:3, :3], axis=0)
    return pose


FAULTS: dict[str, tuple[Callable, str, str, Callable]] = {
    "nan": (lambda p: p * [1, 1, 1, math.nan], "holds NaN", "finite numbers", lambda p: look_at_origin(1.5, 0.3)),
    "infinite": (lambda p: p + math.inf, "is infinite", "finite numbers", lambda p: look_at_origin(1.5, 0.3)),
    "mirrored": (lambda p: scaled(p, -1, 1, 1), "mirrored", "negate the axis", lambda p: scaled(p, -1, 1, 1)),
    "scaled": (lambda p: scaled(p, 2, 2, 2), "columns of length 2 instead of 1", "divide each by its length", divided),
    "stretched": (lambda p: scaled(p, 1, 1.02, 1), "length 1 and 1.02", "divide each by its length", divided),
    "sheared": (sheared, "not perpendicular", "nearest rotation", nearest_rotation),
    "transposed": (lambda p: p.T, "last row other than 0 0 0 1", "transpose it", lambda p: p.T),
    "3x3": (lambda p: p[:3, :3], "has 3 x 3 numbers", "four rows of four", lambda p: look_at_origin(1.5, 0.3)),
    "words": (lambda p: [["a"] * 4] * 4, "no matrix of numbers", "four rows", lambda p: look_at_origin(1.5, 0.3)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("parser", ["nerfstudio-data", "instant-ngp-data", "blender-data"])
def test_poses_that_cannot_be_used_are_named(tmp_path: Path, parser: str, fault: str) -> None:
    spoil, reason, remedy, mend = FAULTS[fault]
    data = with_poses(tmp_path, parser, third(spoil))
    message = refusal(data, parser)
    name = "train/r_003" if parser == "blender-data" else "images/0003.png"
    assert f"{name} in {data}/transforms" in message and reason in message
    assert remedy in message and message.endswith(", or remove the frame")
    meta_name = "transforms_train.json" if parser == "blender-data" else "transforms.json"
    spoiled = (data / meta_name).read_text()
    edit(data, lambda meta: meta["frames"].pop(3), meta_name)
    read(data, parser)
    (data / meta_name).write_text(spoiled)

    def repair(meta: dict) -> None:
        matrix = meta["frames"][3]["transform_matrix"]
        meta["frames"][3]["transform_matrix"] = mend(np.array(matrix)).tolist()

    edit(data, repair, meta_name)
    read(data, parser)


def test_all_poses_wrong(tmp_path: Path) -> None:
    message = refusal(with_poses(tmp_path, "nerfstudio-data", lambda i, pose: scaled(pose, 1, 1, -1)))
    assert "9 more frames of 10 cannot be used either; negate the axis" in message and "remove" not in message
    edit(
        tmp_path / "scene",
        lambda meta: [f.update(transform_matrix=look_at_origin(i, 0.3).tolist()) for i, f in enumerate(meta["frames"])],
    )
    read(tmp_path / "scene")


def test_small_errors_of_rotations_are_no_fault(tmp_path: Path) -> None:
    read(with_poses(tmp_path, "nerfstudio-data", lambda i, pose: scaled(pose, 1.005, 0.995, 1)))


@pytest.mark.parametrize("parser", ["nerfstudio-data", "instant-ngp-data", "blender-data"])
def test_matrices_of_three_rows(tmp_path: Path, parser: str, capsys: pytest.CaptureFixture) -> None:
    expected = read(with_poses(tmp_path / "4", parser, lambda i, pose: pose), parser)["train"]
    found = read(with_poses(tmp_path / "3", parser, lambda i, pose: pose[:3]), parser)["train"]
    assert torch.equal(found.cameras.camera_to_worlds, expected.cameras.camera_to_worlds)
    assert capsys.readouterr().out.count("0 0 0 1 is taken for the fourth") == 1


@pytest.mark.parametrize("parser", ["nerfstudio-data", "instant-ngp-data", "blender-data"])
@pytest.mark.parametrize("where", [0.0, 0.7, 5e5])
def test_all_cameras_at_one_point(tmp_path: Path, parser: str, where: float) -> None:
    def there(i: int, pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] = where
        return pose

    data = with_poses(tmp_path, parser, there)
    assert "at one point" in refusal(data, parser) and "take photos from several places" in refusal(data, parser)


def test_colmap_poses(tmp_path: Path) -> None:
    data = colmap_scene(tmp_path / "scene", "sparse/0")
    path = data / "sparse/0/images.txt"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if line.endswith(" 003.png\n"))
    words = lines[number].split()
    spoils = {"NaN": ["4", *words[1:5], "nan", *words[6:]], "rotation": ["4", *["0.9"] * 4, *words[5:]]}
    for reason, spoiled in spoils.items():
        path.write_text("".join([*lines[:number], " ".join(spoiled) + "\n", *lines[number + 1 :]]))
        message = refusal(data, "colmap", colmap_path=Path("sparse/0"))
        assert "the pose of 003.png" in message and reason in message and "delete that line and the next" in message
    path.write_text("".join([*lines[:number], *lines[number + 2 :]]))
    assert sum(len(read(data, "colmap", colmap_path=Path("sparse/0"))[s].cameras) for s in ("train", "val")) == 9
    one = [" ".join([*w[:5], "0", "0", "0", *w[8:]]) + "\n" if len(w := line.split()) == 10 else line for line in lines]
    path.write_text("".join(one))
    assert "all 10 cameras" in refusal(data, "colmap", colmap_path=Path("sparse/0"))


UTM = np.array([4.5e5, 5.4e6, 300.0])


@pytest.mark.parametrize(
    ("parser", "applied"),  # the two others' formats have no applied_transform
    [
        ("nerfstudio-data", False),
        ("nerfstudio-data", True),
        ("colmap", False),
        ("colmap", True),
        ("instant-ngp-data", False),
        ("blender-data", False),
    ],
)
def test_coordinates_of_maps(tmp_path: Path, parser: str, applied: bool, capsys: pytest.CaptureFixture) -> None:
    """Poses are those of the same scene at the origin, and exports come back to the centimetre."""
    if parser == "colmap":
        options = {"colmap_path": Path("sparse/0"), "assume_colmap_world_coordinate_convention": applied}
        near = read(colmap_scene(tmp_path / "near", "sparse/0"), parser, **options)
        far = read(colmap_scene(tmp_path / "far", "sparse/0", shift=tuple(UTM)), parser, **options)
    else:
        swap = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]) if applied else np.eye(4)

        def moved(i: int, pose: np.ndarray) -> np.ndarray:
            pose[:3, 3] += UTM
            return swap @ pose

        near_data = with_poses(tmp_path / "near", parser, lambda i, pose: swap @ pose)
        far_data = with_poses(tmp_path / "far", parser, moved, SPLITS)
        if applied:
            for data in (near_data, far_data):
                edit(data, lambda meta: meta.update(applied_transform=swap[:3].tolist()))
        near, far = read(near_data, parser), read(far_data, parser)
    assert capsys.readouterr().out.count("they are moved to the origin") == 1
    for split in SPLITS:
        mine, expected = far[split].cameras.camera_to_worlds, near[split].cameras.camera_to_worlds
        if parser in ("instant-ngp-data", "blender-data"):  # which do not centre
            offset = (mine - expected)[:, :, 3].mean(dim=0)
            expected = expected.clone()
            expected[:, :, 3] += offset
        assert (mine - expected).abs().max() < 1e-5
        back = far[split].transform_poses_to_original_space(mine, "opengl")[:, :, 3].double()
        truth = near[split].transform_poses_to_original_space(near[split].cameras.camera_to_worlds, "opengl")
        assert (back - torch.tensor(UTM) - truth[:, :, 3]).abs().max() < 1e-3


# Splits ---------------------------------------------------------------------------------------------------------


def counts(found: dict[str, DataparserOutputs]) -> tuple[int, ...]:
    return tuple(len(found[split].image_filenames) for split in SPLITS)


@pytest.mark.parametrize("missing", [("val",), ("test",), ("val", "test")])
@pytest.mark.parametrize("kind", ["blender-data", "nerfstudio-data", "colmap"])
def test_a_missing_split(tmp_path: Path, kind: str, missing: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    options = {}
    if kind == "blender-data":
        data = write_blender_scene(tmp_path / "scene", counts=(6, 2, 3))
        for split in missing:
            (data / f"transforms_{split}.json").unlink()
    else:
        names = {"train": range(6), "val": range(6, 8), "test": range(7, 10)}
        given = {split: names[split] for split in SPLITS if split not in missing}
        if kind == "colmap":
            data, options = colmap_scene(tmp_path / "scene", "sparse/0"), {"colmap_path": Path("sparse/0")}
            files = {"train": "train_list.txt", "val": "val_list.txt", "test": "test_list.txt"}
            (data / "validation_list.txt").write_text("")  # how Nerfstudio knows that there are lists
            for split, numbers in given.items():
                (data / files[split]).write_text("\n".join(f"{i:03d}.png" for i in numbers))
        else:
            lists = {f"{split}_filenames": [f"images/{i:04d}.png" for i in numbers] for split, numbers in given.items()}
            data = scene(tmp_path, **lists)
    found = read(data, kind, **options)
    assert counts(found) == {("val",): (6, 3, 3), ("test",): (6, 2, 2)}.get(missing, (6, 6, 6))
    places = " and ".join(f"'{split}'" for split in missing)
    line = capsys.readouterr().out
    assert line.count("takes the place of") == 1 and f"takes the place of {places}" in line


@pytest.mark.parametrize("count", [1, 2, 8, 9])
@pytest.mark.parametrize("parser", ["nerfstudio-data", "instant-ngp-data", "colmap"])
def test_few_photos(tmp_path: Path, parser: str, count: int, capsys: pytest.CaptureFixture) -> None:
    options = {}
    if parser == "colmap":
        data, options = colmap_scene(tmp_path / "scene", "sparse/0", count), {"colmap_path": Path("sparse/0")}
        options["eval_mode"] = "fraction" if count > 1 else "interval"  # of one photo, interval leaves none to train on
    else:
        data = scene(tmp_path, count, camera_angle_x=0.6)
    found = read(data, parser, **options)
    assert counts(found) == (count,) * 3
    assert capsys.readouterr().out.count(f"({count} photo{'s' * (count > 1)}) takes the place of") == 1
    poses = found["train"].cameras.camera_to_worlds
    assert poses.shape == (count, 3, 4) and bool(poses.isfinite().all())


def test_no_photo_at_all_for_training(tmp_path: Path) -> None:
    data = write_blender_scene(tmp_path / "scene")
    (data / "transforms_train.json").unlink()
    assert "finds no transforms_train.json" in refusal(data, "blender-data")


def test_instant_ngp_data_keeps_the_pose_of_a_split_of_one_photo(tmp_path: Path) -> None:
    """Nerfstudio indexes poses with a tensor of one element, and loses it."""
    data = scene(tmp_path, 10, camera_angle_x=0.6, k1=0.01)
    found, everything = read(data, "instant-ngp-data"), read(data, "instant-ngp-data", eval_mode="all")
    (photo,) = found["val"].image_filenames
    index = everything["train"].image_filenames.index(photo)
    mine, whole = found["val"].cameras, everything["train"].cameras
    for name in ("camera_to_worlds", "fx", "cy", "width", "distortion_params", "camera_type"):
        assert torch.equal(getattr(mine, name), getattr(whole, name)[index : index + 1]), name


def test_the_scene_record_has_every_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_blender_scene(tmp_path / "scene", counts=(4, 2, 0))
    (data / "transforms_test.json").unlink()
    config = LatentDataManagerConfig(
        data=data, dataparser=deepcopy(all_dataparsers["blender-data"]), scene_record=tmp_path / "scene.pt"
    )
    config.setup(device="cpu", test_mode="val").save_scene_record()
    assert type(config.dataparser) is type(all_dataparsers["blender-data"])  # config.yml keeps the user's
    assert capsys.readouterr().out.count("'val' (2 photos) takes the place of 'test'") == 1
    for mode in ("test", "inference"):
        assert len(config.setup(device="cpu", test_mode=mode).eval_dataset) == 2
    data.rename(tmp_path / "moved")
    for mode in ("test", "inference"):
        assert len(config.setup(device="cpu", test_mode=mode).eval_dataset) == 2
    record = torch.load(tmp_path / "scene.pt", weights_only=True)
    assert set(record["splits"]) == set(SPLITS)
    del record["splits"]["test"]  # as earlier versions wrote it
    torch.save(record, tmp_path / "scene.pt")
    assert len(config.setup(device="cpu", test_mode="test").eval_dataset) == 2


def test_a_film_of_one_photo_stands_still(tmp_path: Path) -> None:
    from nerfstudio.cameras.camera_paths import get_interpolated_camera_path

    config = LatentDataManagerConfig(data=scene(tmp_path, 1), dataparser=deepcopy(all_dataparsers["nerfstudio-data"]))
    manager = config.setup(device="cpu", test_mode="test")
    poses = get_interpolated_camera_path(manager.eval_dataset.cameras, 3, False).camera_to_worlds
    assert torch.allclose(poses, manager.train_dataset.cameras.camera_to_worlds.expand(3, 3, 4), atol=1e-6)
    assert len(manager.fixed_indices_eval_dataloader.input_dataset) == 1


# The reports ----------------------------------------------------------------------------------------------------

REPORTS: list[tuple[str, str, dict[str, Any], str | tuple[int, int, int]]] = [
    ("01-fisheye-wide/07-fisheye-190deg", "nerfstudio-data", {}, (9, 1, 1)),
    ("03-nan-pose/13-nan-pose", "nerfstudio-data", {}, r"images/frame_00004.png .* holds NaN"),
    ("04-colmap-reasons-hidden/21-colmap-no-points", "colmap", {}, r"`colmap --colmap-path sparse/0`"),
    ("04-colmap-reasons-hidden/21-colmap-no-points", "colmap", {"colmap_path": "sparse/0"}, (8, 2, 2)),
    ("04-colmap-reasons-hidden/21b-colmap-empty-points", "colmap", {"colmap_path": "sparse/0"}, (8, 2, 2)),
    ("04-colmap-reasons-hidden/21e-colmap-opencv-fisheye", "colmap", {"colmap_path": "sparse/0"}, (8, 2, 2)),
    ("04-colmap-reasons-hidden/21f-colmap-big", "colmap", {"colmap_path": "sparse/0"}, r"`--downscale-factor 1`"),
    ("04-colmap-reasons-hidden/21j-colmap-colmapsparse0-nopoints", "colmap", {}, (8, 2, 2)),
    ("04-colmap-reasons-hidden/21k-colmap-colmapsparse0-fisheye", "colmap", {}, (8, 2, 2)),
    ("04-colmap-reasons-hidden/21l-colmap-colmapsparse0-big", "colmap", {"downscale_factor": 1}, (7, 2, 2)),
    ("04-colmap-reasons-hidden/21m-colmap-colmapsparse0-empty", "colmap", {}, (8, 2, 2)),
    ("05-mask-color/09-mask", "nerfstudio-data", {"mask_color": (0, 0, 0)}, (9, 1, 1)),
    ("06-no-test-split/12-no-test-filenames", "nerfstudio-data", {}, (8, 2, 2)),
    ("06-no-test-split/20c-blender-no-test", "blender-data", {}, (6, 6, 6)),
    ("08-colmap-two-models/21c-colmap-two-models", "colmap", {}, r"10 images in sparse/1 .*--colmap-path sparse/1`"),
    ("08-colmap-two-models/21g-colmap-only-sparse1", "nerfstudio-data", {}, r"`colmap --colmap-path sparse/1`"),
    ("11-exif-rotated/10-exif-upright-camera", "nerfstudio-data", {}, (9, 1, 1)),
    ("12-remedies-untrue/11-backslash", "nerfstudio-data", {}, (9, 1, 1)),
    ("12-remedies-untrue/14-one-point", "nerfstudio-data", {}, r"all 10 cameras .* at one point"),
    ("12-remedies-untrue/15-eight-photos", "nerfstudio-data", {}, (8, 8, 8)),
    ("12-remedies-untrue/16-one-photo", "nerfstudio-data", {}, (1, 1, 1)),
    ("12-remedies-untrue/17-angle-only", "nerfstudio-data", {}, r"add `instant-ngp-data`"),
    ("12-remedies-untrue/17-angle-only", "instant-ngp-data", {}, (9, 1, 1)),
    ("12-remedies-untrue/20-blender-png-png", "blender-data", {}, (6, 6, 6)),
    ("12-remedies-untrue/20b-blender-no-val", "blender-data", {}, (6, 6, 6)),
    ("12-remedies-untrue/20d-blender-no-angle", "blender-data", {}, r"has no 'camera_angle_x'; write"),
    ("12-remedies-untrue/22g-heic", "nerfstudio-data", {}, (9, 1, 1)),
    ("12-remedies-untrue/25-no-matrix", "nerfstudio-data", {}, r"images/frame_00005.png has no 'transform_matrix'"),
    ("12-remedies-untrue/25d-empty-frames", "nerfstudio-data", {}, r"has no frames"),
    ("12-remedies-untrue/27c-unknown-model", "nerfstudio-data", {}, r"unknown camera_model 'THIN_PRISM_FISHEYE'"),
    ("12-remedies-untrue/28-3x4-matrices", "nerfstudio-data", {}, (9, 1, 1)),
    ("12-remedies-untrue/30-polycam-raw", "nerfstudio-data", {}, r"`ns-process-data polycam --data "),
    ("12-remedies-untrue/31-record3d", "nerfstudio-data", {}, r"`ns-process-data record3d --data "),
    ("12-remedies-untrue/32-metashape", "nerfstudio-data", {}, r"`ns-process-data metashape --data .*/images --xml "),
    ("12-remedies-untrue/35-colmap-text-root", "nerfstudio-data", {}, r"`colmap --colmap-path \.`"),
    ("13-images_2-rounded-up/18-images_2-rounded-up", "nerfstudio-data", {"downscale_factor": 2}, (9, 1, 1)),
]


@pytest.mark.skipif(not (SHARED / "reports").is_dir(), reason="the reports are not part of the repository")
@pytest.mark.parametrize("folder, parser, options, expected", REPORTS, ids=[case[0] for case in REPORTS])
def test_the_reports(folder: str, parser: str, options: dict, expected: str | tuple[int, int, int]) -> None:
    options = {name: Path(value) if name == "colmap_path" else value for name, value in options.items()}
    data = SHARED / "reports" / folder
    if isinstance(expected, str):
        assert re.search(expected, refusal(data, parser, **options))
    else:
        found = read(data, parser, **options)
        assert counts(found) == expected
        assert all(path.is_file() for outputs in found.values() for path in outputs.image_filenames)
