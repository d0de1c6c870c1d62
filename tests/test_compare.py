"""`igae-compare` on real runs: what stands in the picture and in the film, and bad input."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, latent_config, tiny_autoencoder, write_blender_scene
from PIL import Image

from igae_nerfstudio.compare import CompareCommand
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines.finished_run import FinishedRun
from igae_nerfstudio.pipelines.pictures import LINE, sheet, to_uint8


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A latent and an RGB run of one scene, and a latent one of another scene; two steps each."""
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    from igae_nerfstudio import method_configs

    folder = tmp_path_factory.mktemp("runs")
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    scene = write_blender_scene(folder / "scene", counts=(4, 3, 3))
    other = write_blender_scene(folder / "other", counts=(4, 2, 2))
    phases = {"latent_supervision_steps": 1, "rgb_alignment_steps": 1}
    latent = latent_config("kplanes", scene, folder / "autoencoder", folder / "latent", **phases)
    elsewhere = latent_config("kplanes", other, folder / "autoencoder", folder / "elsewhere", **phases)
    rgb = deepcopy(method_configs.igae_kplanes_rgb.config)
    rgb.machine.device_type, rgb.vis, rgb.max_num_iterations = "cpu", "tensorboard", 2
    rgb.output_dir, rgb.experiment_name, rgb.timestamp = folder / "rgb", "test", "now"
    rgb.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=scene)
    rgb.pipeline.datamanager.train_num_rays_per_batch = rgb.pipeline.datamanager.eval_num_rays_per_batch = 64
    for name, value in SMALL["kplanes"].items():
        setattr(rgb.pipeline.model, name, value)
    for config in (latent, elsewhere, rgb):
        config.save_config()
        trainer = config.setup()
        trainer.setup()
        trainer.train()
    return {name: folder / name for name in ("latent", "elsewhere", "rgb")}


def test_a_picture_of_two_runs(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "out" / "comparison.png"
    CompareCommand((runs["latent"], runs["rgb"]), path, names=("latents", "colours"), views=2).run()
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == 3 * 48 and picture.shape[0] >= 2 * 48 + 3 * LINE
    for column, run in enumerate((runs["latent"], runs["rgb"])):
        run = FinishedRun(run)
        for row, view in enumerate((0, 1)):
            top, left = LINE + 48 * row, 48 * (column + 1)
            expected = to_uint8(run.render(run.dataset.cameras[view : view + 1]))
            assert np.array_equal(picture[top : top + 48, left : left + 48], expected)
            assert np.array_equal(picture[top : top + 48, :48], to_uint8(run.photo(view)))
    output = capsys.readouterr().out
    assert "latents: PSNR" in output and "colours: PSNR" in output and "mean of 2 views" in output


def test_a_film_of_two_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import cv2

    path = tmp_path / "comparison.mp4"
    CompareCommand((runs["latent"], runs["rgb"]), path, views=1, seconds=0.5, frame_rate=12).run()
    film, frames = cv2.VideoCapture(str(path)), []
    while (read := film.read())[0]:
        frames.append(read[1].astype(float))
    assert len(frames) == 6 and frames[0].shape[1] == 96 and frames[0].shape[0] >= 48 + LINE
    assert float(np.abs(frames[0] - frames[-1]).mean()) > 0  # the camera moves


def test_the_path_ends_where_the_cameras_are(runs: dict[str, Path]) -> None:
    run = FinishedRun(runs["latent"])
    path = run.path(20)
    assert len(path) == 20 and int(path.width[7]) == int(path.height[7]) == 48
    distances = torch.cdist(path.camera_to_worlds[:, :, 3], run.dataset.cameras.camera_to_worlds[:, :, 3])
    assert float(distances[0].min()) < 1e-4 and float(distances.amin(dim=1).max()) < 2.5


def test_captions_stand_below(tmp_path: Path) -> None:
    black = np.zeros((60, 60, 3), np.uint8)
    plain, captioned = (np.asarray(sheet({"a": [black]}, captions)) for captions in (None, {"a": "PSNR 1\nSSIM 2"}))
    assert captioned.shape[0] == plain.shape[0] + 2 * LINE
    for line in (0, 1):
        text = captioned[LINE + 60 + line * LINE : LINE + 60 + (line + 1) * LINE]
        assert text.min() < 128 < text.max()


def test_bad_input_is_named(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.yml").write_text("!!python/object:nowhere.Config {}\n")
    for arguments, message in (
        ({"runs": (empty,)}, "no run in .*empty"),
        ({"runs": (broken,)}, "broken/config.yml cannot be loaded"),
        ({"output_path": tmp_path / "a.gif"}, "must end in .png or .mp4"),
        ({"names": ("one", "two", "three")}, "3 --names for 1 runs"),
        ({"views": 0}, "positive --views"),
        ({"runs": (runs["latent"], runs["elsewhere"])}, "other evaluation cameras"),
    ):
        with pytest.raises(InputError, match=message):
            CompareCommand(**{"runs": (runs["latent"],), "output_path": tmp_path / "a.png", **arguments}).run()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="needs ffmpeg"):
        CompareCommand((runs["latent"],), tmp_path / "a.mp4").run()
