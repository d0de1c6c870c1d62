"""Tests of igae_nerfstudio.models.kplanes: what the pieces compute, not only their shapes."""

import copy
import math

import pytest
import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SceneContraction
from torch import Tensor, nn

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import ImageMetrics
from igae_nerfstudio.models.kplanes import (
    KPlanesDensityField,
    KPlanesField,
    KPlanesModel,
    KPlanesModelConfig,
    plane_total_variation,
    to_grid_coordinates,
)

AABB = torch.tensor([[-1.0, -2.0, -0.5], [1.0, 2.0, 1.5]])
CUBE = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
REGULARISERS = {"interlevel", "distortion", "plane_tv", "plane_tv_proposal"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small_config(**overrides) -> KPlanesModelConfig:
    """A model that trains a step in some milliseconds."""
    values = dict(
        grid_base_resolution=(16, 16, 16),
        multiscale_factors=(1, 2),
        grid_feature_dim=8,
        hidden_dim=32,
        proposal_resolutions=(12, 16),
        proposal_hidden_dim=16,
        num_proposal_samples_per_ray=(24, 16),
        num_nerf_samples_per_ray=16,
    )
    values.update(overrides)
    return KPlanesModelConfig(**values)


def make_model(config: KPlanesModelConfig) -> KPlanesModel:
    model = config.setup(scene_box=SceneBox(aabb=CUBE), num_train_data=2)
    assert isinstance(model, KPlanesModel)
    return model


def small_field(**overrides) -> KPlanesField:
    values = dict(grid_base_resolution=(4, 5, 6), multiscale_factors=(1, 2), grid_feature_dim=3, hidden_dim=8)
    return KPlanesField(AABB, KPlanesModelConfig(**{**values, **overrides}))


def samples_at(positions: Tensor) -> RaySamples:
    """Samples whose frustums have their middle at the positions, with random unit directions."""
    directions = nn.functional.normalize(torch.randn_like(positions), dim=-1)
    zeros = torch.zeros_like(positions[..., :1])
    return RaySamples(frustums=Frustums(positions, directions, zeros, zeros, torch.ones_like(zeros)))


def rays_to_the_centre(num_rays: int, spread: float = 0.6) -> RayBundle:
    """Rays from the sphere of radius 3 towards points near the centre."""
    origins = 3.0 * nn.functional.normalize(torch.randn(num_rays, 3), dim=-1)
    directions = nn.functional.normalize(spread * torch.randn(num_rays, 3) - origins, dim=-1)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.ones(num_rays, 1))


def ball_image(rays: RayBundle, radius: float = 0.5) -> Tensor:
    """What the rays see of a ball of one colour before white."""
    along = (rays.origins * rays.directions).sum(-1, keepdim=True)
    hit = (rays.origins - along * rays.directions).norm(dim=-1, keepdim=True) < radius
    return torch.where(hit, torch.tensor([0.8, 0.2, 0.1]), torch.ones(3))


def callbacks_of(model: KPlanesModel, where: TrainingCallbackLocation) -> list:
    attributes = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)
    return [c for c in model.get_training_callbacks(attributes) if where in c.where_to_run]


def total_loss(model: KPlanesModel, rays: RayBundle, image: Tensor) -> dict:
    outputs = model(copy.copy(rays))
    metrics = model.get_metrics_dict(outputs, {"image": image})
    return model.get_loss_dict(outputs, {"image": image}, metrics)


# ---------------------------------------------------------------- plane total variation


def test_plane_tv_equals_loops() -> None:
    planes = [torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(2, 6, 3, dtype=torch.float64)]
    per_plane = []
    for plane in planes:
        features, height, width = plane.shape
        down = right = 0.0
        for c in range(features):
            for i in range(height):
                for j in range(width):
                    if i > 0:
                        down += float(plane[c, i, j] - plane[c, i - 1, j]) ** 2
                    if j > 0:
                        right += float(plane[c, i, j] - plane[c, i, j - 1]) ** 2
        per_plane.append(down / (features * (height - 1) * width) + right / (features * height * (width - 1)))
    expected = sum(per_plane) / len(per_plane)
    assert float(plane_total_variation(planes)) == pytest.approx(expected, rel=1e-12)


def test_plane_tv_of_constant_planes_is_zero_and_of_one_step_is_not() -> None:
    constant = torch.randn(4, 1, 1).expand(4, 7, 9)
    assert float(plane_total_variation([constant, constant])) == 0.0
    # Squared, not absolute: doubling a step makes it four times as large.
    step = torch.zeros(1, 2, 8)
    step[:, :, 4:] = 1.0
    one, two = plane_total_variation([step]), plane_total_variation([2.0 * step])
    assert float(one) == pytest.approx(1.0 / 7.0)
    assert float(two) == pytest.approx(4.0 / 7.0)


def test_plane_tv_covers_every_plane_of_field_and_proposals() -> None:
    model = make_model(small_config())
    loss = total_loss(model, rays_to_the_centre(8), torch.rand(8, 3))
    for key, planes, count in (
        ("plane_tv", model.field.planes(), 6),
        ("plane_tv_proposal", [p for n in model.proposal_networks for p in n.planes()], 6),
    ):
        gradients = torch.autograd.grad(loss[key], planes)
        assert len(gradients) == count
        assert all(float(g.abs().max()) > 0 for g in gradients)


# ---------------------------------------------------------------- field


def test_features_at_grid_points_are_the_product_of_the_three_plane_entries() -> None:
    nx, ny, nz = 4, 5, 6
    field = small_field(grid_base_resolution=(nx, ny, nz), multiscale_factors=(1,))
    xy, xz, yz = field.planes()
    for i, j, k in ((0, 0, 0), (3, 4, 5), (1, 3, 2), (2, 0, 5)):
        unit = torch.tensor([[i / (nx - 1), j / (ny - 1), k / (nz - 1)]])
        world = AABB[0] + unit * (AABB[1] - AABB[0])
        coordinates, inside = to_grid_coordinates(world, field.aabb)
        expected = xy[:, j, i] * xz[:, k, i] * yz[:, k, j]
        torch.testing.assert_close(field.plane_features(coordinates)[0], expected, rtol=1e-4, atol=1e-6)
        assert bool(inside.all())


def test_features_of_separable_planes_follow_the_closed_form_at_every_scale() -> None:
    field = small_field(multiscale_factors=(1, 2), grid_feature_dim=1)
    with torch.no_grad():
        for plane in field.planes():
            # Linear in the first axis of the plane, so bilinear interpolation is exact at any resolution.
            plane.copy_(torch.linspace(1.0, 3.0, plane.shape[2]).expand_as(plane))
    coordinates = torch.rand(50, 3) * 2 - 1
    x, y = coordinates[:, 0], coordinates[:, 1]
    expected = (2.0 + x) ** 2 * (2.0 + y)  # xy and xz carry 2 + x, yz carries 2 + y.
    features = field.plane_features(coordinates)
    assert features.shape == (50, 2)
    for scale in range(2):
        torch.testing.assert_close(features[:, scale], expected, rtol=1e-5, atol=1e-5)


def test_constant_planes_give_the_same_density_everywhere_inside_and_zero_outside() -> None:
    field = small_field()
    with torch.no_grad():
        for plane in field.planes():
            plane.fill_(0.5)
    inside = AABB[0] + torch.rand(20, 3) * (AABB[1] - AABB[0])
    raw = field.sigma_net(torch.full((1, 6), 0.125))[0, 0]
    density, _ = field.get_density(samples_at(inside))
    torch.testing.assert_close(density, torch.exp(raw - 1.0).expand_as(density))
    outside = torch.tensor([[1.01, 0.0, 0.0], [0.0, -2.5, 0.0], [0.0, 0.0, 1e6]])
    assert float(field.get_density(samples_at(outside))[0].abs().max()) == 0.0


def test_colour_depends_on_the_direction_but_density_does_not() -> None:
    field = small_field()
    positions = torch.zeros(2, 3)
    samples = samples_at(positions)
    samples.frustums.directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    outputs = field(samples)
    rgb, density = outputs[FieldHeadNames.RGB], outputs[FieldHeadNames.DENSITY]
    assert float((rgb[0] - rgb[1]).abs().max()) > 1e-3
    assert float(density[0]) == float(density[1])
    assert 0.0 < float(rgb.min()) and float(rgb.max()) < 1.0


def test_contraction_keeps_positions_in_range_and_in_order() -> None:
    contraction = SceneContraction(order=float("inf"))
    scale = torch.logspace(-3, 8, 200)[:, None]
    positions = scale * torch.tensor([[0.3, -1.0, 0.7]])
    coordinates, inside = to_grid_coordinates(positions, AABB, contraction)
    assert bool(inside.all())
    assert float(coordinates.abs().max()) <= 1.0
    # Half of the grid is for the unit cube, and farther points are never nearer to the centre of the grid.
    torch.testing.assert_close(coordinates[scale[:, 0] < 1], positions[scale[:, 0] < 1] / 2)
    assert bool((coordinates[1:, 1] <= coordinates[:-1, 1]).all())
    random = torch.randn(1000, 3) * 50
    assert float(to_grid_coordinates(random, AABB, contraction)[0].abs().max()) <= 1.0


@pytest.mark.parametrize("contracted", [False, True])
@pytest.mark.parametrize("kind", ["field", "proposal"])
def test_finite_values_and_gradients_at_borders_and_outside(contracted: bool, kind: str) -> None:
    corners = torch.tensor([[x, y, z] for x in AABB[:, 0] for y in AABB[:, 1] for z in AABB[:, 2]])
    faces = torch.tensor([[1.0, 0.3, 0.2], [-1.0, 0.3, 0.2], [0.2, 2.0, 0.1], [0.2, 0.1, 1.5]])
    outside = torch.tensor([[1.0001, 0.0, 0.1], [5.0, -7.0, 3.0], [1e4, 1e4, -1e4], [0.1, 0.0, 1e6]])
    positions = torch.cat([corners, faces, outside]).requires_grad_(True)
    if kind == "field":
        field = small_field(bounded=not contracted)
        outputs = field(samples_at(positions))
        values = list(outputs.values())
        density = outputs[FieldHeadNames.DENSITY]
    else:
        field = KPlanesDensityField(AABB, KPlanesModelConfig(bounded=not contracted), resolution=5)
        density = field.density_fn(positions)
        values = [density]
    assert all(bool(v.isfinite().all()) for v in values)
    # The border belongs to the scene; what is outside does not, unless all of space is contracted.
    assert float(density[:12].min()) > 0.0
    assert bool((density[12:] > 0).all()) == contracted
    sum(v.sum() for v in values).backward()
    assert bool(positions.grad.isfinite().all())
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_overflowing_density_outside_the_box_is_zero_with_finite_gradient() -> None:
    field = KPlanesDensityField(AABB, KPlanesModelConfig(), resolution=4)
    with torch.no_grad():
        field.sigma_net.layers[-1].bias.fill_(200.0)  # exp(199) is inf in float32
    density = field.density_fn(torch.full((3, 3), 9.0))
    density.sum().backward()
    assert float(density.abs().max()) == 0.0
    assert all(bool(p.grad.isfinite().all()) for p in field.parameters())


# ---------------------------------------------------------------- model


@pytest.mark.parametrize("bounded", [True, False])
def test_two_steps_reach_every_parameter(bounded: bool) -> None:
    model = make_model(small_config(bounded=bounded)).train()
    groups = model.get_param_groups()
    grouped = {id(p) for parameters in groups.values() for p in parameters}
    names = {name for name, p in model.named_parameters() if id(p) in grouped}
    assert {n for n, _ in model.named_parameters()} - names == {"device_indicator_param"}
    with torch.no_grad():
        # A field denser than the proposals: while a proposal already bounds the field's weights, as at the
        # start, the interlevel loss and its gradient are zero.
        model.field.sigma_net.layers[-1].bias[0] += 4.0
    optimizer = torch.optim.Adam([{"params": p} for p in groups.values()], lr=1e-2)
    for step in range(2):
        for callback in callbacks_of(model, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION):
            callback.run_callback(step)
        loss = total_loss(model, rays_to_the_centre(64), torch.rand(64, 3))
        assert set(loss) == REGULARISERS | {"rgb_loss"}
        assert all(bool(v.isfinite()) and float(v) >= 0 for v in loss.values())
        optimizer.zero_grad()
        # Without the TV terms, which reach planes that no ray sees.
        (loss["rgb_loss"] + loss["interlevel"] + loss["distortion"]).backward()
        without = {n for n, p in model.named_parameters() if n in names and not bool(p.grad.abs().max() > 0)}
        assert without == set()
        optimizer.step()
        for callback in callbacks_of(model, TrainingCallbackLocation.AFTER_TRAIN_ITERATION):
            callback.run_callback(step)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_proposals_learn_from_the_interlevel_loss_only_and_the_field_not_from_it() -> None:
    model = make_model(small_config())
    loss = total_loss(model, rays_to_the_centre(32), torch.rand(32, 3))
    field, proposals = list(model.field.parameters()), list(model.proposal_networks.parameters())
    kwargs = {"allow_unused": True, "retain_graph": True}
    assert all(g is None for g in torch.autograd.grad(loss["interlevel"], field, **kwargs))
    assert all(g is not None for g in torch.autograd.grad(loss["interlevel"], proposals, **kwargs))
    assert all(g is None for g in torch.autograd.grad(loss["rgb_loss"], proposals, **kwargs))


def test_overfits_a_ball() -> None:
    model = make_model(small_config()).train()
    rays = rays_to_the_centre(128)
    image = ball_image(rays)
    share = float((image[:, 1] < 0.5).float().mean())
    assert 0.2 < share < 0.8
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    history = []
    for step in range(60):
        model.proposal_sampler.set_anneal(model.proposal_anneal(step * 20))
        loss = total_loss(model, rays, image)
        history.append(float(loss["rgb_loss"]))
        optimizer.zero_grad()
        sum(loss.values()).backward()
        optimizer.step()
        model.proposal_sampler.step_cb(step)
    assert sum(history[-5:]) / 5 < history[0] / 5
    # It learnt a ball and not a backdrop: opaque in the middle, transparent beside it, depth at the surface.
    model.eval()
    origins = torch.tensor([[0.0, 0.0, 3.0], [0.85, 0.0, 3.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    with torch.no_grad():
        outputs = model(RayBundle(origins=origins, directions=directions, pixel_area=torch.ones(2, 1)))
    assert float(outputs["accumulation"][0]) > 0.8 > 0.4 > float(outputs["accumulation"][1])
    assert 2.0 < float(outputs["depth"][0]) < 3.2


@pytest.mark.parametrize("bounded", [True, False])
def test_eval_outputs_are_floating_point_images(bounded: bool) -> None:
    model = make_model(small_config(bounded=bounded)).eval()
    height, width = 6, 7
    flat = rays_to_the_centre(height * width)
    bundle = RayBundle(
        origins=flat.origins.view(height, width, 3),
        directions=flat.directions.view(height, width, 3),
        pixel_area=flat.pixel_area.view(height, width, 1),
        camera_indices=torch.zeros(height, width, 1, dtype=torch.long),
    )
    model.config.eval_num_rays_per_chunk = 16
    outputs = model.get_outputs_for_camera_ray_bundle(bundle)
    assert set(outputs) == {"rgb", "accumulation", "depth", "prop_depth_0", "prop_depth_1"}
    for name, value in outputs.items():
        assert value.is_floating_point(), name
        assert value.shape == (height, width, 3 if name == "rgb" else 1), name
        assert bool(value.isfinite().all()), name
    # Evaluation is deterministic: no jitter.
    again = model.get_outputs_for_camera_ray_bundle(bundle)
    assert all(torch.equal(outputs[name], again[name]) for name in outputs)


def test_a_ray_past_the_box_shows_the_background() -> None:
    model = make_model(small_config()).eval()
    rays = RayBundle(
        origins=torch.tensor([[0.0, 5.0, 3.0]]),
        directions=torch.tensor([[0.0, 0.0, -1.0]]),
        pixel_area=torch.ones(1, 1),
    )
    outputs = model(rays)
    assert float(outputs["accumulation"].abs().max()) < 1e-4
    torch.testing.assert_close(outputs["rgb"], torch.ones(1, 3), atol=1e-3, rtol=0)


def test_loss_in_eval_has_no_regularisers_and_training_outputs_have_lists() -> None:
    model = make_model(small_config())
    assert {"weights_list", "ray_samples_list"} <= set(model.train()(rays_to_the_centre(4)))
    loss = total_loss(model.eval(), rays_to_the_centre(4), torch.rand(4, 3))
    assert set(loss) == {"rgb_loss"}


def test_loss_coefficients_scale_drop_and_are_required() -> None:
    ones = dict.fromkeys(REGULARISERS | {"rgb_loss"}, 1.0)
    twos = dict.fromkeys(ones, 2.0)
    model = make_model(small_config(loss_coefficients=ones))
    rays, image = rays_to_the_centre(16), torch.rand(16, 3)
    outputs = model(rays)
    single = model.get_loss_dict(outputs, {"image": image})
    model.config.loss_coefficients = twos
    double = model.get_loss_dict(outputs, {"image": image})
    for name in ones:
        assert float(double[name]) == pytest.approx(2.0 * float(single[name])), name
    model.config.loss_coefficients = {**twos, "plane_tv": 0.0}
    assert "plane_tv" not in model.get_loss_dict(outputs, {"image": image})
    model.config.loss_coefficients = {"rgb_loss": 1.0}
    with pytest.raises(KeyError, match="interlevel"):
        model.get_loss_dict(outputs, {"image": image})


def test_rgba_ground_truth_is_blended_with_the_background() -> None:
    model = make_model(small_config(background_color="white"))
    rays = rays_to_the_centre(16)
    rgb, alpha = torch.rand(16, 3), torch.rand(16, 1)
    outputs = model(rays)
    rgba_loss = model.get_loss_dict(outputs, {"image": torch.cat([rgb, alpha], dim=-1)})
    expected = ((outputs["rgb"] - (rgb * alpha + 1.0 - alpha)) ** 2).mean()
    torch.testing.assert_close(rgba_loss["rgb_loss"], expected)


def test_schedules_are_plain_numbers_within_their_ranges() -> None:
    model = make_model(small_config(proposal_warmup=100, proposal_update_every=5))
    intervals = [model.proposal_update_interval(step) for step in (0, 10, 20, 50, 100, 10**6)]
    assert intervals == pytest.approx([1.0, 1.0, 1.0, 2.5, 5.0, 5.0])
    anneals = [model.proposal_anneal(step) for step in (0, 1, 500, 1000, 10**6)]
    assert anneals == pytest.approx([0.0, 0.01 / 1.009, 5.0 / 5.5, 1.0, 1.0])
    assert {type(v) for v in intervals + anneals} == {float}
    model.config.proposal_warmup = 0
    assert model.proposal_update_interval(0) == 5.0


def test_callbacks_anneal_before_and_count_after_the_step() -> None:
    model = make_model(small_config())
    (before,) = callbacks_of(model, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
    (after,) = callbacks_of(model, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    before.run_callback(0)
    assert model.proposal_sampler._anneal == 0.0
    before.run_callback(1000)
    assert model.proposal_sampler._anneal == 1.0
    after.run_callback(7)
    assert (model.proposal_sampler._step, model.proposal_sampler._steps_since_update) == (7, 1)
    model.config.use_proposal_weight_anneal = False
    assert callbacks_of(model, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION) == []
    assert len(callbacks_of(model, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)) == 1


def test_proposal_counts_must_agree() -> None:
    with pytest.raises(InputError, match="same length"):
        make_model(small_config(num_proposal_samples_per_ray=(8,)))


def test_autocast_step_is_finite_and_outputs_stay_float32() -> None:
    model = make_model(small_config()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total_loss(model, rays_to_the_centre(32), torch.rand(32, 3))
        samples = samples_at(torch.rand(5, 3))
        outputs = model.field(samples)
    assert {v.dtype for v in outputs.values()} == {torch.float32}
    sum(loss.values()).backward()
    for name, parameter in model.named_parameters():
        if name != "device_indicator_param":
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_step_is_finite(autocast: bool) -> None:
    model = make_model(small_config()).train().cuda()
    rays = rays_to_the_centre(32).to("cuda")
    with torch.autocast("cuda", enabled=autocast):
        loss = total_loss(model, rays, torch.rand(32, 3))
    sum(loss.values()).backward()
    for name, parameter in model.named_parameters():
        if name != "device_indicator_param":
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_metrics_and_pictures_of_an_evaluation_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageMetrics, "_load_lpips", lambda *arguments: None)  # loads weights
    model = make_model(small_config()).eval()
    outputs = {name: torch.rand(16, 12, 1) + 1 for name in ("depth", "prop_depth_0", "prop_depth_1")}
    outputs |= {"rgb": torch.rand(16, 12, 3), "accumulation": torch.rand(16, 12, 1)}
    image = torch.rand(16, 12, 3)
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": image})
    assert metrics["psnr"] == pytest.approx(-10 * math.log10(float((outputs["rgb"] - image).square().mean())), rel=1e-4)
    assert set(metrics) == {"psnr", "ssim"}
    assert set(images) == {"img", "accumulation", "depth", "prop_depth_0", "prop_depth_1"}
    torch.testing.assert_close(images["img"], torch.cat([image, outputs["rgb"]], dim=1))


def test_state_dict_round_trip_gives_the_same_image() -> None:
    first, second = make_model(small_config()).eval(), make_model(small_config()).eval()
    rays = rays_to_the_centre(8)
    assert not torch.equal(first(copy.copy(rays))["rgb"], second(copy.copy(rays))["rgb"])
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(copy.copy(rays))["rgb"], second(copy.copy(rays))["rgb"])
