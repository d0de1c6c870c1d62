"""Planes from own and shared ones, against a slow reference."""

from __future__ import annotations

import pytest
import torch

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.config import SharedStage1Config
from igae_nerfstudio.joint.scene_parameters import MicroMacroConfig, MicroMacroPlanes, PlainPlanes, scene_parameters
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig, initial_planes

TRIPLANES = TriPlaneConfig(resolution=5, features=7, hidden=8, samples=6, importance_samples=6)


def make_planes(count: int = 4) -> MicroMacroPlanes:
    return MicroMacroPlanes(TRIPLANES, MicroMacroConfig(micro_features=3, macro_features=4, shared_planes=count))


def codes_of(planes: MicroMacroPlanes, scenes: int = 2) -> torch.Tensor:
    codes = torch.stack([planes.initial_code(torch.Generator().manual_seed(i)) for i in range(scenes)])
    codes[:, -1] = torch.linspace(0.3, -0.5, scenes)  # a bias that shows
    return codes


def test_fusing_against_a_slow_reference() -> None:
    planes = make_planes()
    codes = codes_of(planes)
    fused = planes(codes)
    assert fused.shape == (2, 3, 7, 5, 5)
    for s in range(2):
        numbers = iter(codes[s].tolist())
        own = [[[[next(numbers) for _ in range(5)] for _ in range(5)] for _ in range(3)] for _ in range(3)]
        weights, bias = [next(numbers) for _ in range(4)], next(numbers)
        for plane in range(3):
            torch.testing.assert_close(fused[s, plane, :3], torch.tensor(own[plane]))
            for feature in range(4):
                macro = bias + sum(weights[m] * planes.shared[m, plane, feature] for m in range(4))
                torch.testing.assert_close(fused[s, plane, 3 + feature], macro)
        assert next(numbers, None) is None


def test_plain_planes_are_their_codes() -> None:
    plain = scene_parameters(TRIPLANES, MicroMacroConfig(shared_planes=0))
    assert isinstance(plain, PlainPlanes) and not list(plain.parameters())
    planes = torch.stack([initial_planes(TRIPLANES, torch.Generator().manual_seed(i)) for i in range(2)])
    assert torch.equal(plain(planes.flatten(1)), planes)
    assert torch.equal(plain.initial_code(torch.Generator().manual_seed(1)), planes[1].flatten())
    assert plain.code_numbers == plain.plane_numbers == 3 * 7 * 5**2


def test_gradients_reach_codes_and_shared_planes_and_nothing_that_is_frozen() -> None:
    planes = make_planes()
    codes = codes_of(planes).requires_grad_(True)
    probe = torch.randn(2, 3, 7, 5, 5)
    (planes(codes) * probe).sum().backward()
    _, weights, bias = planes.split(codes.grad)
    macro = probe[:, :, 3:]
    torch.testing.assert_close(bias[:, 0], macro.sum(dim=(1, 2, 3, 4)))
    torch.testing.assert_close(weights, torch.einsum("spfhw,mpfhw->sm", macro, planes.shared.detach()))
    expected = torch.einsum("sm,spfhw->mpfhw", planes.split(codes.detach())[1], macro)
    torch.testing.assert_close(planes.shared.grad, expected)
    planes.requires_grad_(False)
    planes.shared.grad = None
    (planes(codes_of(planes).requires_grad_(True)) * probe).sum().backward()
    assert planes.shared.grad is None


def test_new_scenes_are_as_large_in_shared_features_as_in_their_own() -> None:
    planes = MicroMacroPlanes(TriPlaneConfig(features=32), MicroMacroConfig())
    fused = planes(planes.initial_code(torch.Generator().manual_seed(1))[None])
    assert float(fused[:, :, :10].std()) == pytest.approx(0.1, rel=0.05)
    assert float(fused[:, :, 10:].std()) == pytest.approx(0.1, rel=0.4)


def test_the_references_44_percent() -> None:
    """3Da-AE: F = 32 = 10 + 22, M = 50, K = 64, with the whole autoencoder spread over N = 1,000 scenes:

    cost per scene (N) = own + shared / N
    """
    planes = MicroMacroPlanes(TriPlaneConfig(), MicroMacroConfig())
    autoencoder, plain = 83_653_863, PlainPlanes(TriPlaneConfig()).code_numbers  # Stable Diffusion 1.5's
    assert (planes.code_numbers, planes.shared.numel(), plain) == (122_880 + 51, 13_516_800, 393_216)
    cost = planes.code_numbers + (planes.shared.numel() + autoencoder) / 1000
    assert round(100 * (1 - cost / plain), 1) == 44.0


def test_rates_are_of_planes_or_of_weights() -> None:
    planes = make_planes()
    rates = planes.code_rates(SharedStage1Config(planes_lr=0.1, weights_lr=0.2))
    assert rates.shape == (planes.code_numbers,)
    assert rates[: planes.plane_numbers].unique().tolist() == pytest.approx([0.1])
    assert rates[planes.plane_numbers :].tolist() == pytest.approx([0.2] * 5)


def test_settings_that_do_not_fit_together() -> None:
    with pytest.raises(InputError, match="10 . 22 = 32, but triplanes.features is 7"):
        MicroMacroConfig().check(TRIPLANES)
    MicroMacroConfig(shared_planes=0).check(TRIPLANES)
    with pytest.raises(InputError, match="0 . 7 = 7.* with 1 or more of each"):
        MicroMacroConfig(micro_features=0, macro_features=7).check(TRIPLANES)
    with pytest.raises(InputError, match="shared_planes is -1"):
        MicroMacroConfig(shared_planes=-1).check(TRIPLANES)
