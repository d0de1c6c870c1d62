"""Samples along rays, against closed forms and slow references."""

from __future__ import annotations

import math

import torch

from igae_nerfstudio.rendering.ray_sampling import (
    box_interval,
    expected_depth,
    importance_samples,
    intervals_around,
    stratified_samples,
    volume_weights,
)


def rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return 2 * torch.randn(count, 3), directions


def test_box_interval_against_dense_points() -> None:
    origins, directions = rays(200)
    near, far = box_interval(origins, directions, 1.0)
    t = torch.linspace(0, 12, 24001)
    inside = ((origins[:, None] + t[:, None] * directions[:, None]).abs() <= 1).all(dim=-1)
    for ray in range(200):
        hits = t[inside[ray]]
        if len(hits):
            assert abs(float(near[ray] - hits[0])) < 1e-3 and abs(float(far[ray] - hits[-1])) < 1e-3
        else:
            assert float(far[ray] - near[ray]) < 1e-3
    assert inside.any(dim=1).sum() > 20 and not inside.any(dim=1).all()


def test_box_interval_of_rays_along_axes_and_behind() -> None:
    origins = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    near, far = box_interval(origins, directions, 1.0)
    torch.testing.assert_close(near[[0, 3]], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(far[[0, 3]], torch.tensor([4.0, 1.0]))
    assert float(far[1] - near[1]) == 0 and float(far[2] - near[2]) == 0


def test_weights_against_a_loop_and_a_constant_density() -> None:
    near, far = torch.tensor([0.5, 1.0]), torch.tensor([2.0, 4.0])
    samples, boundaries = stratified_samples(near, far, 9, jitter=True)
    assert (samples >= boundaries[:, :-1]).all() and (samples <= boundaries[:, 1:]).all()
    deltas = intervals_around(samples, near, far)
    torch.testing.assert_close(deltas.sum(dim=-1), far - near)
    densities = 3 * torch.rand(2, 9)
    weights = volume_weights(densities, deltas)
    for ray in range(2):
        light = 1.0
        for i in range(9):
            alpha = 1 - math.exp(-float(densities[ray, i] * deltas[ray, i]))
            assert abs(float(weights[ray, i]) - light * alpha) < 1e-6
            light *= 1 - alpha
    constant = volume_weights(torch.full((2, 9), 0.7), deltas).sum(dim=-1)
    torch.testing.assert_close(constant, 1 - torch.exp(-0.7 * (far - near)))


def test_expected_depth_of_a_wall_and_of_nothing() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    depth = expected_depth(weights, torch.tensor([1.0, 2.0, 3.0]).expand(3, 3), torch.tensor([5.0, 5.0, 5.0]))
    assert depth.tolist() == [2, 5, 3.5]


def test_importance_samples_follow_the_weights() -> None:
    boundaries = torch.linspace(0, 4, 5).expand(20_000, 5)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0]).expand(20_000, 4)
    torch.manual_seed(0)
    samples = importance_samples(boundaries, weights, 8, jitter=True, padding=0.0)
    assert (samples.diff(dim=-1) >= 0).all()
    shares = torch.histc(samples, bins=4, min=0, max=4) / samples.numel()
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.75, 0.0, 0.25]), atol=5e-3, rtol=0)
    within = samples[(samples > 1) & (samples < 2)] - 1
    assert abs(float(within.mean()) - 0.5) < 5e-3  # evenly inside an interval
    fixed = importance_samples(boundaries[:1], weights[:1], 4, jitter=False, padding=0.0)
    torch.testing.assert_close(fixed, torch.tensor([[1 + 1 / 6, 1.5, 1 + 5 / 6, 3.5]]))


def test_importance_samples_of_an_empty_ray_are_even_and_stay_inside() -> None:
    boundaries = torch.linspace(1, 3, 9)[None]
    samples = importance_samples(boundaries, torch.zeros(1, 8), 16, jitter=False)
    torch.testing.assert_close(samples, 1 + 2 * (torch.arange(16) + 0.5)[None] / 16)
    flat = importance_samples(torch.full((1, 9), 2.0), torch.zeros(1, 8), 4, jitter=True)  # a ray beside the box
    assert torch.equal(flat, torch.full((1, 4), 2.0))


def test_gradients_are_finite_where_densities_are_huge_or_zero() -> None:
    densities = torch.tensor([[0.0, 1e6, 0.0, 1e-12]], requires_grad=True)
    weights = volume_weights(densities, torch.tensor([[0.5, 0.5, 0.5, 0.0]]))
    weights.square().sum().backward()
    assert bool(densities.grad.isfinite().all()) and bool(weights.isfinite().all())
