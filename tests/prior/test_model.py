"""The posterior, the ELBO and the networks, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from prior_data import small_config
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from igae_nerfstudio.prior.elbo import gaussian_nll, kl_cost, turned
from igae_nerfstudio.prior.model import LOOK_UP, Posterior, SceneFunction, ScenePrior, grid_points
from igae_nerfstudio.rendering.triplanes import TriPlaneRenderer


def test_the_kl_is_that_of_gaussians() -> None:
    torch.manual_seed(0)
    mean, log_deviation = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = kl_divergence(Normal(mean, log_deviation.exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Posterior(mean, log_deviation).kl(), expected)
    assert float(Posterior(torch.zeros(1), torch.zeros(1)).kl()) == 0


def test_free_nats_are_a_floor_for_each_number() -> None:
    kl = torch.tensor([[[0.0, 3.0]], [[0.2, 1.0]]])
    assert float(kl_cost(kl, 0.0)) == pytest.approx(0.1 + 2.0)
    assert float(kl_cost(kl, 0.5)) == pytest.approx(0.5 + 2.0)


def test_the_elbo_of_a_linear_model_is_its_evidence_at_the_exact_posterior_and_less_elsewhere() -> None:
    """y = W z + noise with orthogonal columns: the posterior is Gaussian with a diagonal covariance, as `Posterior`."""
    torch.manual_seed(0)
    deviation, size = 0.3, torch.tensor([0.7, 1.5])
    w = torch.linalg.qr(torch.randn(5, 2))[0] * size
    y = w @ torch.randn(2) + deviation * torch.randn(5)
    evidence = MultivariateNormal(torch.zeros(5), w @ w.T + deviation**2 * torch.eye(5)).log_prob(y)
    variance = 1 / (1 + size.square() / deviation**2)
    exact = Posterior(variance * (w.T @ y) / deviation**2, variance.log() / 2)

    def negative_elbo(posterior: Posterior, draws: int = 200_000) -> float:
        many = Posterior(*(value.expand(draws, 2) for value in (posterior.mean, posterior.log_deviation)))
        error = many.sample() @ w.T - y
        likelihood = gaussian_nll(error, torch.full((5,), math.log(deviation))).sum(dim=1).mean()
        return float(likelihood + posterior.kl().sum())

    assert negative_elbo(exact) == pytest.approx(-float(evidence), abs=0.01)
    assert negative_elbo(Posterior(exact.mean + 0.2, exact.log_deviation)) > -float(evidence) + 0.05
    assert negative_elbo(Posterior(exact.mean, exact.log_deviation + 0.5)) > -float(evidence) + 0.05


def photos(scenes: int, count: int, channels: int = 6, side: int = 6) -> tuple[torch.Tensor, ...]:
    """Latents, ray origins and directions of cameras that look at the origin."""
    positions = 2.1 * F.normalize(torch.randn(scenes, count, 1, 1, 3), dim=-1)
    directions = F.normalize(0.3 * torch.randn(scenes, count, side, side, 3) - positions, dim=-1)
    return torch.rand(scenes, count, side, side, channels), positions.expand_as(directions), directions


@pytest.mark.parametrize("lift", [True, False])
def test_the_order_of_photos_does_not_matter_and_they_do(lift: bool) -> None:
    torch.manual_seed(0)
    encoder = ScenePrior(small_config({"network": {"lift": lift}}), 6).encoder
    values = photos(2, 4)
    order = torch.tensor([2, 0, 3, 1])
    one, other = encoder(*values), encoder(*(value[:, order] for value in values))
    torch.testing.assert_close(one.mean, other.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.log_deviation, other.log_deviation, atol=1e-5, rtol=0)
    shuffled = encoder(values[0][:, order], *values[1:])  # with each other's cameras
    assert float((one.mean - shuffled.mean).abs().max()) > 1e-3


def test_any_number_and_shape_of_photos() -> None:
    encoder = ScenePrior(small_config(), 6).encoder
    for count, side in ((1, 6), (3, 5), (8, 9)):
        posterior = encoder(*photos(1, count, side=side))
        assert posterior.mean.shape == posterior.log_deviation.shape == (1, 8, 4)


def test_a_place_sees_what_photos_show_where_it_is() -> None:
    """Each of a photo's pixels has a mark of its own: a point finds it by its distance from the pixel's ray."""
    torch.manual_seed(0)
    encoder = ScenePrior(small_config(), 6).encoder
    _, origins, directions = photos(1, 1)
    latents = torch.eye(36).view(1, 1, 6, 6, 36)
    rays = torch.cat([directions, torch.linalg.cross(origins, directions)], dim=-1)
    found = encoder.looked_up(latents, rays).view(*encoder.points.shape[:2], 3, 36)
    aside = torch.linalg.cross(encoder.points[:, :, None] - origins[0, 0, 0, 0], directions.view(1, 1, 36, 3))
    expected = torch.softmax(-aside.square().sum(-1) / (2 * LOOK_UP**2), dim=-1)
    for number in range(3):  # the mean, the least and the most of one photo
        torch.testing.assert_close(found[:, :, number], expected, atol=1e-4, rtol=0)


def test_training_starts_at_the_mean_scene() -> None:
    prior = ScenePrior(small_config(), 6)
    scenes = prior.scene(torch.randn(2, 8, 4))
    assert torch.equal(scenes, prior(torch.zeros(2, 1))) and float(scenes.std()) > 0


def test_planes_begin_with_the_z_above_and_below_them() -> None:
    """A change of z at one place changes the tokens of each plane at its own two coordinates most."""
    prior = ScenePrior(small_config({"network": {"decoder_layers": 0, "plane_tokens": 2}}), 6)
    decoder = prior.decoder
    assert decoder is not None
    torch.nn.init.normal_(decoder.last.weight)
    z = torch.zeros(2, 8, 4)
    z[1, 4 * 1 + 2 * 0 + 1] = 3  # x = 1, y = 0, z = 1
    first, second = decoder(z)
    changed = (second - first).abs().amax(dim=1).unflatten(-1, (2, -1)).unflatten(1, (2, -1)).amax(dim=(2, 4))
    for plane, place in enumerate(((0, 1), (1, 1), (1, 0))):  # row, column of XY, XZ and YZ
        assert float(changed[plane][place]) > 0.1
        rest = changed[plane].clone()
        rest[place] = 0
        assert float(rest.max()) < 1e-5


@pytest.mark.parametrize("conditioning", ["planes", "attention", "vector"])
def test_z_decides_what_a_scene_looks_like(conditioning: str) -> None:
    torch.manual_seed(0)
    config = small_config({"network": {"conditioning": conditioning}})
    prior = ScenePrior(config, 6)
    if prior.decoder is not None:
        torch.nn.init.normal_(prior.decoder.last.weight)
    kind = TriPlaneRenderer if conditioning == "planes" else None
    renderer = kind(config.triplanes, 6) if kind else SceneFunction(config.network, config.triplanes, 6)
    _, o, d = (value.flatten(1, 3) for value in photos(1, 1))
    z = torch.randn(1, 8, 4, requires_grad=True)
    renderer.eval()(prior.scene(z), o, d).latents.square().sum().backward()
    assert z.grad is not None and bool((z.grad != 0).all())


def test_turning_is_about_the_vertical_axis() -> None:
    vectors = torch.tensor([[[1.0, 0, 2]], [[1.0, 0, 2]]])
    expected = torch.tensor([[[1.0, 0, 2]], [[0.0, 1, 2]]])
    torch.testing.assert_close(turned(vectors, torch.tensor([0, math.pi / 2])), expected)


def test_the_grid_is_indexed_by_x_y_and_z() -> None:
    points = grid_points(2, 1.0)
    assert points[1, 0, 1].tolist() == [0.5, -0.5, 0.5]
