"""Planes from own and shared ones, against a slow reference."""

from __future__ import annotations

import pytest
import torch

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.accounting import micro_macro_numbers, triplane_numbers
from igae_nerfstudio.joint.many_scenes_config import ManyScenesConfig
from igae_nerfstudio.joint.micro_macro import MicroMacroConfig, MicroMacroPlanes, same_shapes
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig, TriPlaneRenderer, initial_planes

TRIPLANES = TriPlaneConfig(resolution=5, features=7, hidden=8, samples=6, importance_samples=6)


def make_planes(count: int = 4) -> MicroMacroPlanes:
    planes = MicroMacroPlanes(TRIPLANES, MicroMacroConfig(micro_features=3, macro_features=4, shared_planes=count))
    planes.reset_shared(torch.Generator().manual_seed(0))
    return planes


def records_of(planes: MicroMacroPlanes, scenes: int = 2) -> torch.Tensor:
    records = torch.stack([planes.initial_record(torch.Generator().manual_seed(i)) for i in range(scenes)])
    records[:, -1] = torch.linspace(0.3, -0.5, scenes)  # a bias that shows
    return records


def test_fusing_against_a_slow_reference() -> None:
    planes = make_planes()
    records = records_of(planes)
    fused = planes(records)
    assert fused.shape == (2, 3, 7, 5, 5)
    for s in range(2):
        numbers = iter(records[s].tolist())
        own = [[[[next(numbers) for _ in range(5)] for _ in range(5)] for _ in range(3)] for _ in range(3)]
        weights, bias = [next(numbers) for _ in range(4)], next(numbers)
        for plane in range(3):
            torch.testing.assert_close(fused[s, plane, :3], torch.tensor(own[plane]))
            for feature in range(4):
                macro = bias + sum(weights[m] * planes.shared[m, plane, feature] for m in range(4))
                torch.testing.assert_close(fused[s, plane, 3 + feature], macro)
        assert next(numbers, None) is None


def test_without_shared_planes_they_are_plain_triplanes() -> None:
    plain = make_planes(0)
    planes = torch.stack([initial_planes(TRIPLANES, torch.Generator().manual_seed(i)) for i in range(2)])
    assert torch.equal(plain(planes.flatten(1)), planes)
    assert plain.shared_numbers == 0 and plain.record_numbers == triplane_numbers(7, 5)
    renderer = TriPlaneRenderer(TRIPLANES, 2).eval()
    origins, directions = torch.tensor([[[0.0, 0.0, 2.0]]]).expand(2, 3, 3), torch.zeros(2, 3, 3)
    directions[..., 2] = -1
    one, other = (renderer(p, origins, directions).latents for p in (planes, plain(planes.flatten(1))))
    assert torch.equal(one, other)


def test_gradients_reach_records_and_shared_planes_and_nothing_that_is_frozen() -> None:
    planes = make_planes()
    records = records_of(planes).requires_grad_(True)
    probe = torch.randn(2, 3, 7, 5, 5)
    (planes(records) * probe).sum().backward()
    _, weights, bias = planes.split(records.grad)
    macro = probe[:, :, 3:]
    torch.testing.assert_close(bias[:, 0], macro.sum(dim=(1, 2, 3, 4)))
    torch.testing.assert_close(weights, torch.einsum("spfhw,mpfhw->sm", macro, planes.shared.detach()))
    expected = torch.einsum("sm,spfhw->mpfhw", planes.split(records.detach())[1], macro)
    torch.testing.assert_close(planes.shared.grad, expected)
    planes.requires_grad_(False)
    planes.shared.grad = None
    (planes(records_of(planes).requires_grad_(True)) * probe).sum().backward()
    assert planes.shared.grad is None


def test_new_scenes_are_as_large_in_shared_features_as_in_their_own() -> None:
    planes = MicroMacroPlanes(TriPlaneConfig(features=32), MicroMacroConfig())
    planes.reset_shared(torch.Generator().manual_seed(0))
    fused = planes(planes.initial_record(torch.Generator().manual_seed(1))[None])
    assert float(fused[:, :, :10].std()) == pytest.approx(0.1, rel=0.05)
    assert float(fused[:, :, 10:].std()) == pytest.approx(0.1, rel=0.4)


def test_sizes_are_those_of_the_accounting() -> None:
    planes = MicroMacroPlanes(TriPlaneConfig(), MicroMacroConfig())
    cost = micro_macro_numbers(10, 22, 50, 64)
    assert (planes.record_numbers, planes.shared_numbers) == (cost.own, cost.shared) == (122_931, 13_516_800)


def test_rates_are_of_planes_or_of_weights() -> None:
    planes = make_planes()
    rates = planes.rates(0.1, 0.2)
    assert rates.shape == (planes.record_numbers,)
    assert rates[: planes.plane_numbers].unique().tolist() == pytest.approx([0.1])
    assert rates[planes.plane_numbers :].tolist() == pytest.approx([0.2] * 5)


def test_settings_that_do_not_fit_together() -> None:
    with pytest.raises(InputError, match="10 . 22 = 32, but triplanes.features is 7"):
        MicroMacroConfig().check(TRIPLANES)
    MicroMacroConfig(shared_planes=0).check(TRIPLANES)
    with pytest.raises(InputError, match="micro_features is 0"):
        MicroMacroConfig(micro_features=0).check(TRIPLANES)
    with pytest.raises(InputError, match="shared_planes is -1"):
        MicroMacroConfig(shared_planes=-1).check(TRIPLANES)
    default = ManyScenesConfig()
    other = MicroMacroConfig(shared_planes=16)
    assert same_shapes((default.triplanes, default.micro_macro), (default.triplanes, other)) == "M is 50 and 16"
    assert same_shapes((default.triplanes, other), (default.triplanes, other)) == ""
