"""Tri-Planes against slow look-ups and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from igae_nerfstudio.joint.objectives import moment_shift
from igae_nerfstudio.rendering.total_variation import plane_variation, total_variation
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig, TriPlaneRenderer, initial_planes

CONFIG = TriPlaneConfig(resolution=5, features=4, hidden=8, half_extent=1.5, samples=16, importance_samples=16)


def make_renderer(latent_channels: int = 3) -> TriPlaneRenderer:
    torch.manual_seed(0)
    return TriPlaneRenderer(CONFIG, latent_channels)


def looked_up(plane: torch.Tensor, u: float, v: float) -> torch.Tensor:
    """Bilinear look-up by hand: (F, K, K), u along the width, in [-1, 1], grid points on the border."""
    k = plane.shape[-1]
    x, y = (min(max((value + 1) / 2 * (k - 1), 0), k - 1) for value in (u, v))
    x0, y0 = min(int(x), k - 2), min(int(y), k - 2)
    fx, fy = x - x0, y - y0
    top = (1 - fx) * plane[:, y0, x0] + fx * plane[:, y0, x0 + 1]
    bottom = (1 - fx) * plane[:, y0 + 1, x0] + fx * plane[:, y0 + 1, x0 + 1]
    return (1 - fy) * top + fy * bottom


def test_features_are_the_sum_of_three_look_ups() -> None:
    renderer, planes = make_renderer(), torch.randn(2, 3, 4, 5, 5)
    points = 3.2 * torch.rand(2, 7, 3) - 1.6  # some outside the cube of 1.5
    found = renderer.features(planes, points)
    for scene in range(2):
        for i in range(7):
            x, y, z = (float(value) / 1.5 for value in points[scene, i])
            expected = looked_up(planes[scene, 0], x, y) + looked_up(planes[scene, 1], x, z)
            expected = expected + looked_up(planes[scene, 2], y, z)
            torch.testing.assert_close(found[scene, i], expected, atol=1e-5, rtol=1e-5)


def test_scenes_of_a_batch_do_not_mix() -> None:
    renderer = make_renderer().eval()
    planes = torch.randn(3, 3, 4, 5, 5)
    origins = torch.tensor([0.0, 0.0, 4.0]).expand(3, 6, 3)
    directions = torch.nn.functional.normalize(torch.randn(3, 6, 3) * 0.2 - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    together = renderer(planes, origins, directions)
    for scene in range(3):
        alone = renderer(planes[scene : scene + 1], origins[:1], directions[scene : scene + 1])
        torch.testing.assert_close(together.latents[scene], alone.latents[0])
        torch.testing.assert_close(together.depth[scene], alone.depth[0])


def test_a_constant_field_renders_in_closed_form() -> None:
    """All planes zero: constant density sigma and latent f, so a ray of length l in the cube sees
    a (1/2 + f) + (1 - a) b with a = 1 - exp(-sigma l)."""
    renderer = make_renderer().eval()
    renderer.set_background(torch.tensor([2.0, -1.0, 0.25]))
    planes = torch.zeros(1, 3, 4, 5, 5)
    origins = torch.tensor([[[0.0, 0.0, 4.0], [9.0, 9.0, 9.0]]])
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]])
    density, heads = renderer.field(planes, torch.zeros(1, 1, 3))
    a = 1 - math.exp(-3.0 * float(density))
    expected = a * (0.5 + heads[0, 0]) + (1 - a) * torch.tensor([2.0, -1.0, 0.25])
    render = renderer(planes, origins, directions)
    torch.testing.assert_close(render.latents[0, 0], expected)
    torch.testing.assert_close(render.accumulation[0], torch.tensor([a, 0.0]))
    torch.testing.assert_close(render.latents[0, 1], torch.tensor([2.0, -1.0, 0.25]))  # beside the cube


def test_limits_cut_a_ray() -> None:
    """In a constant field half the way through the cube is half the optical depth."""
    renderer = make_renderer().eval()
    renderer.set_background(torch.zeros(3))
    planes = torch.zeros(1, 3, 4, 5, 5)
    origins = torch.tensor([0.0, 0.0, 4.0]).expand(1, 3, 3)
    directions = torch.tensor([0.0, 0.0, -1.0]).expand(1, 3, 3)  # inside from 2.5 to 5.5
    limits = (torch.tensor([[0.0, 4.0, 1e10]]), torch.tensor([[9.0, 9.0, 1e10]]))  # all, the second half, nothing
    render = renderer(planes, origins, directions, limits)
    density = float(renderer.field(planes, torch.zeros(1, 1, 3))[0])
    expected = torch.tensor([1 - math.exp(-3 * density), 1 - math.exp(-1.5 * density), 0.0])
    torch.testing.assert_close(render.accumulation[0], expected)
    assert float(render.depth.max()) <= 5.5


def test_samples_are_random_in_training_and_fixed_in_evaluation() -> None:
    renderer = make_renderer()
    planes = initial_planes(CONFIG, torch.Generator().manual_seed(0))[None] * 30
    origins = torch.tensor([0.0, 0.0, 4.0]).expand(1, 8, 3)
    directions = torch.nn.functional.normalize(0.2 * torch.randn(1, 8, 3) - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    a, b = (renderer.train()(planes, origins, directions).latents for _ in range(2))
    assert not torch.equal(a, b)
    a, b = (renderer.eval()(planes, origins, directions).latents for _ in range(2))
    assert torch.equal(a, b)


def test_planes_learn_a_view() -> None:
    renderer = make_renderer()
    planes = initial_planes(CONFIG, torch.Generator().manual_seed(0))[None].requires_grad_(True)
    side = torch.linspace(-1, 1, 8)
    y, x = torch.meshgrid(side, side, indexing="ij")
    origins = torch.stack([x, y, torch.full_like(x, 4.0)], dim=-1).view(1, -1, 3)
    directions = torch.tensor([0.0, 0.0, -1.0]).expand_as(origins)
    target = torch.stack([x > 0, y > 0, x * y > 0], dim=-1).float().view(1, -1, 3)
    optimizer = torch.optim.Adam([planes, *renderer.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (renderer(planes, origins, directions).latents - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("p, q", [(1, 1), (2, 1), (2, 2)])
def test_total_variation_against_loops(p: int, q: int) -> None:
    image = torch.randn(2, 3, 5, 6)
    expected = 0.0
    for b in range(2):
        for i in range(5):
            for j in range(6):
                if i:
                    expected += float(torch.linalg.vector_norm(image[b, :, i, j] - image[b, :, i - 1, j], ord=p)) ** q
                if j:
                    expected += float(torch.linalg.vector_norm(image[b, :, i, j] - image[b, :, i, j - 1], ord=p)) ** q
    assert float(total_variation(image, p, q)) == pytest.approx(expected / (5 * 6) / 2, rel=1e-5)


def test_total_variation_of_a_flat_picture_has_a_finite_gradient() -> None:
    flat = torch.ones(1, 3, 4, 4, requires_grad=True)
    total_variation(flat, 2, 1).backward()
    assert torch.equal(flat.grad, torch.zeros_like(flat))


def test_plane_variation_sums_planes_and_averages_scenes() -> None:
    planes = torch.randn(2, 3, 4, 5, 5)
    expected = sum(float(total_variation(planes[s, c], 2, 2)) for s in range(2) for c in range(3)) / 2
    assert float(plane_variation(planes)) == pytest.approx(expected, rel=1e-5)


def test_moment_shift_is_zero_where_latents_are_normalised_and_grows_as_they_shrink() -> None:
    latents = 0.5 + 0.25 * torch.randn(50, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    assert float(moment_shift(latents)) < 1e-4
    assert float(moment_shift(0.5 + (latents - 0.5) / 2)) == pytest.approx(0.25, abs=0.02)
    assert float(moment_shift(latents + 0.25)) == pytest.approx(1, abs=0.03)
