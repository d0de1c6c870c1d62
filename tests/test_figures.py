"""Contact sheets and films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import LINE, broken, sheet, write_film


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


def test_a_film_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mediapy = pytest.importorskip("mediapy")
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "a.mp4").write_text("before")

    def fails(path, images, fps):
        Path(path).write_text("half")
        raise RuntimeError("no codec")

    monkeypatch.setattr(mediapy, "write_video", fails)
    with pytest.raises(InputError, match="a.mp4 cannot be written: ffmpeg failed .no codec."):
        write_film(tmp_path / "a.mp4", [Image.new("RGB", (4, 4))], 24)
    assert [path.name for path in tmp_path.glob("*mp4")] == ["a.mp4"] and (tmp_path / "a.mp4").read_text() == "before"
