"""Moved pictures and latents against rotations and shifts that need no interpolation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from igae_nerfstudio.autoencoder.equivariance import MARGIN, Transforms, known, masked_error, moved, warp_psnr
from igae_nerfstudio.errors import InputError


def transform(linear: list[list[float]], shift: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    return torch.cat([torch.tensor(linear), torch.tensor(shift)[:, None]], dim=1)[None]


def test_pictures_move_as_the_transform_says() -> None:
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    identity = [[1.0, 0.0], [0.0, 1.0]]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(moved(picture, transform(identity)), picture, **close)
    quarter = moved(picture, transform([[0.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(quarter, picture.rot90(1, (2, 3)), **close)
    shifted = moved(picture, transform(identity, (2 * 3 / 16, 0.0)))  # looks 3 pixels to the right
    torch.testing.assert_close(shifted[..., :13], picture[..., 3:], **close)
    seen = known(transform(identity, (2 * 3 / 16, 0.0)), 16, side=16)[0, 0]  # and a pixel of margin on each side
    assert MARGIN == 1 and seen[1:15, 0:12].all() and seen.sum() == 14 * 12


def test_random_transforms_stay_in_their_ranges() -> None:
    settings = Transforms(rotation=25, scale=1.3, anisotropy=1.15, shift=1.5)
    torch.manual_seed(0)
    drawn = settings.draw(2000, side=16)
    torch.manual_seed(0)
    assert torch.equal(drawn, settings.draw(2000, side=16))
    left, sizes, right = torch.linalg.svd(drawn[:, :, :2])
    ratio, size = sizes[:, 0] / sizes[:, 1], sizes.prod(dim=1).sqrt()
    assert 1.14 < ratio.max() < 1.15 + 1e-4 and 1.29 < size.max() < 1.3 + 1e-4 and 1 / 1.3 - 1e-4 < size.min() < 0.78
    turned = left @ right
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]) * 180 / math.pi
    assert 24 < angle.abs().max() < 25 + 1e-3 and angle.min() < -24 and abs(float(angle.mean())) < 1
    shift = drawn[:, :, 2] * 16 / 2
    assert 1.45 < shift.abs().max() <= 1.5


def test_warp_psnr_is_that_of_the_decoder() -> None:
    """Nothing is lost where latents are the picture; with patches as latents, blocks turn as blocks."""
    smooth = F.interpolate(torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=32, mode="bicubic")
    pictures = smooth.clamp(0, 1)
    assert warp_psnr(pictures, pictures, lambda z: z).min() > 100
    patches = warp_psnr(pictures, F.pixel_unshuffle(pictures, 8), lambda z: F.pixel_shuffle(z, 8))
    means = warp_psnr(pictures, F.avg_pool2d(pictures, 8), lambda z: F.interpolate(z, scale_factor=8.0))
    assert patches.shape == (2,) and patches.max() < 40 and means.max() < 40


def test_the_error_counts_what_is_known() -> None:
    one, other = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    other[..., 0] = 2
    mask = torch.ones(2, 1, 4, 4)
    mask[1, ..., 0] = 0
    assert masked_error(one, other, mask).tolist() == [1.0, 0.0]
    assert masked_error(one, other, torch.zeros(2, 1, 4, 4)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"shift": 5.0}, "transforms.shift is 5.0 latent pixels; it must be from 0 to 4, a quarter of the picture"),
        ({"scale": 0.5}, "scale 0.5 .* the factors from 1 to 2"),
        ({"rotation": float("nan")}, "rotation nan"),
    ],
)
def test_bad_transforms_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transforms(**settings).check(side=16)
