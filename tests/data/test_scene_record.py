"""A finished run without its dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_blender_scene, write_nerfstudio_scene
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from igae_nerfstudio.data.latent_datamanager import LatentDataManagerConfig
from igae_nerfstudio.data.scene_record import CAMERA_FIELDS, SceneRecordConfig, save_scene_record
from igae_nerfstudio.errors import InputError


@pytest.mark.parametrize("kind", ["blender", "nerfstudio"])
def test_a_record_gives_back_what_the_dataparser_found(tmp_path: Path, kind: str) -> None:
    if kind == "blender":
        parser = BlenderDataParserConfig(data=write_blender_scene(tmp_path / "scene")).setup()
    else:
        images = [np.full((40, 48, 3), 60 * i, np.uint8) for i in range(4)]
        parser = NerfstudioDataParserConfig(data=write_nerfstudio_scene(tmp_path / "scene", images, k1=0.1)).setup()
    found = {split: parser.get_dataparser_outputs(split) for split in ("train", "test")}
    save_scene_record(tmp_path / "scene.pt", tmp_path / "scene", found)
    record = SceneRecordConfig(record=tmp_path / "scene.pt").setup()
    for split, outputs in found.items():
        again = record.get_dataparser_outputs(split)
        for name in CAMERA_FIELDS:
            mine, theirs = getattr(again.cameras, name), getattr(outputs.cameras, name)
            assert (mine is None and theirs is None) or torch.equal(mine, theirs), name
        assert again.image_filenames == outputs.image_filenames
        assert torch.equal(again.scene_box.aabb, outputs.scene_box.aabb)
        assert again.dataparser_scale == outputs.dataparser_scale
        assert torch.equal(again.dataparser_transform, outputs.dataparser_transform)
    with pytest.raises(InputError, match="no split 'val'"):
        record.get_dataparser_outputs("val")


def test_the_record_steps_in_only_for_its_own_dataset(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scene = write_blender_scene(tmp_path / "scene", counts=(3, 1, 2))
    config = LatentDataManagerConfig(
        data=scene, dataparser=BlenderDataParserConfig(), scene_record=tmp_path / "scene.pt"
    )
    trained = config.setup(device="cpu", test_mode="val")
    trained.save_scene_record()
    cameras = trained.train_dataset.cameras

    finished = config.setup(device="cpu", test_mode="test")
    assert not finished.photos_missing and "grey pictures" not in capsys.readouterr().out

    scene.rename(tmp_path / "moved")
    finished = config.setup(device="cpu", test_mode="test")
    assert capsys.readouterr().out.count("grey pictures stand in") == 1
    assert torch.equal(finished.train_dataset.cameras.camera_to_worlds, cameras.camera_to_worlds)
    assert len(finished.eval_dataset) == 2
    assert (finished.eval_dataset.get_numpy_image(0) == 128).all()
    assert finished.eval_dataset.get_numpy_image(0).shape == (48, 48, 3)

    with pytest.raises(InputError, match="there is no dataset .*scene"):  # training needs them
        config.setup(device="cpu", test_mode="val")
    config.data = tmp_path / "another"
    with pytest.raises(InputError, match="another"):
        config.setup(device="cpu", test_mode="test")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    scene = write_blender_scene(tmp_path / "scene", counts=(3, 1, 2))
    config = LatentDataManagerConfig(
        data=scene, dataparser=BlenderDataParserConfig(), scene_record=tmp_path / "scene.pt"
    )
    config.setup(device="cpu", test_mode="val").save_scene_record()
    scene.rename(tmp_path / "moved")
    (tmp_path / "scene.pt").write_bytes((tmp_path / "scene.pt").read_bytes()[:100])
    with pytest.raises(InputError, match="scene.pt cannot be read .*; put the dataset back"):
        config.setup(device="cpu", test_mode="test")
