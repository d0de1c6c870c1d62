"""The change of variables between latents and what a scene renders."""

from __future__ import annotations

import pytest
import torch

from igae_nerfstudio.autoencoder.normalization import LatentNormalizer


@pytest.mark.parametrize("kind", ["standardize", "tanh", "none"])
def test_round_trip(kind: str) -> None:
    normalizer = LatentNormalizer(4, kind).double()
    latents = 3 * torch.randn(50, 4, dtype=torch.float64) + torch.tensor([0.0, 5.0, -2.0, 1.0])
    normalizer.fit(latents)
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(latents)), latents)


def test_standardized_latents_have_the_range_of_colours() -> None:
    normalizer = LatentNormalizer(3)
    latents = torch.randn(10_000, 3) * torch.tensor([0.1, 1.0, 30.0]) + torch.tensor([0.0, -4.0, 100.0])
    normalizer.fit(latents)
    values = normalizer.normalize(latents)
    torch.testing.assert_close(values.mean(0), torch.full((3,), 0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0), torch.full((3,), 0.25), atol=1e-4, rtol=0)


def test_a_constant_channel_stays_finite() -> None:
    normalizer = LatentNormalizer(2)
    latents = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    normalizer.fit(latents)
    assert normalizer.normalize(latents).isfinite().all()
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(latents)), latents)


def test_the_authors_squashing_shrinks_the_loss_ten_thousandfold() -> None:
    """d tanh(0.02 z) / 2 at 0 is 0.01, so the squared error of small latents is divided by 10^4."""
    z, target = torch.tensor([[0.1]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    squash = LatentNormalizer(1, "tanh").double().normalize
    ratio = (squash(z) - squash(target)).square() / (z - target).square()
    assert float(ratio) == pytest.approx(1e-4, rel=1e-4)
