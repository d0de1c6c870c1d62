"""The figure of an evaluation image: what is where."""

from __future__ import annotations

import torch

from igae_nerfstudio.figures import ERROR_RANGE, evaluation_figure


def test_pictures_and_channels_are_where_they_belong() -> None:
    torch.manual_seed(0)
    photo, rgb, autoencoded = torch.rand(3, 32, 40, 3)
    rgb[:16] = photo[:16]
    latent, encoded = torch.rand(2, 4, 5, 16)
    figure = evaluation_figure(photo, rgb, autoencoded, latent, encoded)
    factor = 160 // (16 * 5)
    assert figure.shape == (32 + 2 * 4 * factor, 160, 3)
    for column, picture in enumerate((photo, rgb, autoencoded)):
        assert torch.equal(figure[:32, 40 * column : 40 * (column + 1)], picture)
    error = figure[:32, 120:]
    assert float(error[:16].std(dim=(0, 1)).max()) == 0  # no error above, some below
    assert float(error[16:].std(dim=(0, 1)).max()) > 0
    for row, values in enumerate((latent, encoded)):
        top = 32 + 4 * factor * row
        for channel in (0, 7, 15):
            tile = figure[
                top : top + 4 * factor : factor, 5 * factor * channel : 5 * factor * (channel + 1) : factor, 0
            ]
            assert torch.equal(tile, values[..., channel])
    assert ERROR_RANGE > 0


def test_without_the_autoencoder() -> None:
    photo, rgb, latent = torch.rand(32, 32, 3), torch.rand(32, 32, 3), torch.rand(4, 4, 3)
    figure = evaluation_figure(photo, rgb, None, latent, None)
    assert figure.shape == (32 + 4 * (128 // 12), 128, 3)
    assert float(figure[:32, 64:96].min()) == 1
    assert float(figure[32:, 12 * (128 // 12) :].min()) == 1  # filled up with white
