"""One reader for all pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.images import composite, read_image


@pytest.mark.parametrize("value", [0, 200, 257, 65535])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_by_its_depth_and_not_by_its_largest_value(
    value: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(np.full((4, 5), value, np.uint16)).save(path)
    assert np.array_equal(read_image(path), np.full((4, 5, 3), round(value / 257), np.uint8))


def test_floating_point_values_are_in_0_1(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 0.4, np.float32)).save(tmp_path / "grey.tiff")
    assert np.array_equal(read_image(tmp_path / "grey.tiff"), np.full((4, 5, 3), 102, np.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "1"])
def test_opaque_files_are_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tiff"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    assert read_image(path).shape == (4, 5, 3) and read_image(path).min() == 255


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 1), (200, 100, 0, 51)).save(tmp_path / "picture.png")
    picture = composite(read_image(tmp_path / "picture.png"), np.array([0.0, 1.0, 1.0]))
    assert picture[0, 0].tolist() == [40, 224, 204]  # a fifth of the colour, four fifths of the background


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="picture.png cannot be read"):
        read_image(tmp_path / "picture.png")
    with pytest.raises(InputError, match="missing.png does not exist"):
        read_image(tmp_path / "missing.png")
