"""Momentum with orthogonalised updates."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_autoencoder

from igae_nerfstudio.autoencoder.muon import Muon, inner_convolutions, newton_schulz


@pytest.mark.parametrize("shape", [(4, 16, 48), (1, 60, 12), (2, 8, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = newton_schulz(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape and float(values.min()) > 0.5 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert float(((u @ v) * result).sum() / ((u @ v).norm() * result.norm())) > 0.95


def test_it_minimises_whatever_the_scale_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1.0, 1e4):
        weights = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((6, 4, 3, 3), (8, 6))]
        optimizer = Muon(weights, lr=0.02)
        start = [float(weight.norm()) for weight in weights]
        for _ in range(300):
            optimizer.zero_grad()
            (scale * sum(weight.square().sum() for weight in weights)).backward()
            optimizer.step()
        assert all(float(weight.norm()) < 0.2 * before for weight, before in zip(weights, start))


def test_inner_convolutions_leave_out_those_at_pictures() -> None:
    module = tiny_autoencoder()
    inner = {id(weight) for weight in inner_convolutions(module)}
    names = [name for name, weight in module.named_parameters() if id(weight) in inner]
    assert names and all(name.endswith("weight") for name in names)
    assert id(module.encoder.layers[0].weight) not in inner and id(module.decoder.layers[-1].weight) not in inner
