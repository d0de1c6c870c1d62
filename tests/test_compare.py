"""`igae-compare` on real runs: what stands in the picture and in the film, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import make_runs

from igae_nerfstudio.compare import CompareCommand, flight, main
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import LINE, to_uint8
from igae_nerfstudio.runs import Run, load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def test_a_picture_of_two_runs(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "out" / "comparison.png"
    CompareCommand((runs["latent"], runs["rgb"]), path, names=("latents", "colours"), views=2).run()
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == 3 * 48 and picture.shape[0] >= 2 * 48 + 3 * LINE
    for column, run in enumerate((runs["latent"], runs["rgb"])):
        run = load_run(run)
        for row, view in enumerate((0, 1)):
            top, left = LINE + 48 * row, 48 * (column + 1)
            expected = to_uint8(run.render(run.cameras[view]).rgb)
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
    cameras = load_run(runs["latent"]).cameras
    path = flight(cameras, 20)
    assert len(path) == 20 and int(path.width[7]) == int(path.height[7]) == 48
    distances = torch.cdist(path.camera_to_worlds[:, :, 3], cameras.camera_to_worlds[:, :, 3])
    assert float(distances[0].min()) < 1e-4 and float(distances.amin(dim=1).max()) < 2.5


def test_ctrl_c_ends_in_one_line(runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(self, camera):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "render", interrupted)
    with pytest.raises(SystemExit) as end:
        main([str(runs["latent"]), "--output-path", str(tmp_path / "a.png"), "--views", "1"])
    assert end.value.code == 130 and not (tmp_path / "a.png").exists()
    assert "stopped by ctrl-C" in capsys.readouterr().err


def test_bad_input_is_named(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        ({"output_path": tmp_path / "a.gif"}, "must end in .png or .mp4"),
        ({"names": ("one", "two", "three")}, "3 --names for 1 runs"),
        ({"views": 0}, "positive --views"),
        ({"runs": (runs["latent"], runs["elsewhere"])}, "different evaluation cameras"),
    ):
        with pytest.raises(InputError, match=message):
            CompareCommand(**{"runs": (runs["latent"],), "output_path": tmp_path / "a.png", **arguments}).run()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="needs ffmpeg"):
        CompareCommand((runs["latent"],), tmp_path / "a.mp4").run()
