"""`igae-compare` on real runs: what stands in the picture and in the film, and bad input."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, latent_config, tiny_autoencoder, write_blender_scene
from PIL import Image, ImageDraw

from igae_nerfstudio.compare import CompareCommand
from igae_nerfstudio.engine.interruption import STATUS
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import LINE, broken, sheet, to_uint8, write_film
from igae_nerfstudio.pipelines.finished_run import FinishedRun, config_of


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


def test_names_that_are_too_long_are_broken() -> None:
    """Nothing is cut off, and nothing reaches into the next column."""
    name, measure = "igae-kplanes-rgb lighthouse (2)", ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    for width in (30, 60, 100, 200):
        lines = broken(name, width)
        assert "".join(lines).replace(" ", "") == name.replace(" ", "")
        assert all(measure(line) <= width for line in lines)
    assert broken(name, 100) == ["igae-kplanes-rgb", "lighthouse (2)"] and broken(name, 400) == [name]
    black = [np.zeros((60, 60, 3), np.uint8)]
    one, two = (np.asarray(sheet({"photo": black, title: black})) for title in ("render", "render of a run"))
    assert two.shape[0] == one.shape[0] + LINE
    assert two[:LINE].min() < 128 and two[LINE : 2 * LINE, 60:].min() < 128 and two[LINE : 2 * LINE, :60].min() == 255
    assert (two[2 * LINE : 2 * LINE + 60] == 0).all()


@pytest.mark.parametrize("too", ["ffmpeg too", "this alone"])
def test_ctrl_c_while_a_film_is_written(too: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half film; where ffmpeg gets it as well, as from a terminal, mediapy fails in its own words."""
    mediapy = pytest.importorskip("mediapy")
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "a.mp4").write_text("before")

    def interrupted(path, images, fps):
        Path(path).write_text("half")
        try:
            raise KeyboardInterrupt
        finally:
            if too == "ffmpeg too":
                raise RuntimeError(f"Error writing '{path}'")

    monkeypatch.setattr(mediapy, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_film(tmp_path / "a.mp4", [Image.new("RGB", (4, 4))], 24)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_text() == "before"


def test_ctrl_c_ends_in_one_line(runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(self, camera):
        raise KeyboardInterrupt

    monkeypatch.setattr(FinishedRun, "render", interrupted)
    with pytest.raises(SystemExit) as end:
        CompareCommand((runs["latent"],), tmp_path / "a.png", views=1).run()
    assert end.value.code == STATUS and not (tmp_path / "a.png").exists()
    assert f"Stopped by ctrl-C while comparing: {tmp_path / 'a.png'} was not written" in capsys.readouterr().out


def test_bad_input_is_named(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "broken"
    damaged.mkdir()
    (damaged / "config.yml").write_text("!!python/object:nowhere.Config {vis: viewer}\n")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.yml").write_text(config_of(runs["latent"]).read_text().partition("pipeline:")[0])
    for arguments, message in (
        ({"runs": (empty,)}, "no run in .*empty"),
        ({"runs": (cut,)}, "config.yml cannot be read: it is cut short.*cut/config.yml"),
        ({"runs": (damaged,)}, "broken/config.yml cannot be read: cannot find module 'nowhere'"),
        ({"output_path": tmp_path / "a.gif"}, "must end in .png or .mp4"),
        ({"names": ("one", "two", "three")}, "3 --names for 1 runs"),
        ({"views": 0}, "positive --views"),
        ({"runs": (runs["latent"], runs["elsewhere"])}, "other evaluation cameras"),
    ):
        with pytest.raises(InputError, match=message):
            CompareCommand(**{"runs": (runs["latent"],), "output_path": tmp_path / "a.png", **arguments}).run()
    (checkpoint,) = runs["elsewhere"].glob("**/*.ckpt")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=f"{checkpoint} is damaged; train again"):
        CompareCommand((runs["elsewhere"],), tmp_path / "a.png").run()
    checkpoint.write_bytes(whole)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="needs ffmpeg"):
        CompareCommand((runs["latent"],), tmp_path / "a.mp4").run()
