"""The RGB twins of the benchmark: Nerfstudio's models, the same to the last weight, computed faster."""

from __future__ import annotations

import copy

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.tensorf import TensoRFModelConfig
from torch import Tensor
from torch.nn.functional import normalize

from igae_nerfstudio.models.instant_ngp import MarchedNGPConfig, RGBInstantNGPConfig
from igae_nerfstudio.models.latent_model import without_lpips
from igae_nerfstudio.models.tensorf import RGBTensoRFConfig
from igae_nerfstudio.rendering.hash_encoding import FastHashEncoding

SMALL_TENSORF = {"num_uniform_samples": 24, "num_samples": 12, "init_resolution": 16, "final_resolution": 24}
SMALL_NGP = {"grid_resolution": 16, "grid_levels": 2, "render_step_size": 0.1, "max_res": 64, "log2_hashmap_size": 10}


def build(config):
    with without_lpips():
        return config.setup(scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=2)


def rays(count: int = 96) -> RayBundle:
    """From the sphere of radius 2.5 towards the box, some of them past it."""
    generator = torch.Generator().manual_seed(3)
    origins = 2.5 * normalize(torch.randn(count, 3, generator=generator), dim=-1)
    directions = normalize(torch.randn(count, 3, generator=generator) - origins, dim=-1)
    return RayBundle(origins, directions, torch.ones(count, 1), camera_indices=torch.zeros(count, 1).long())


def step(model, training: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, losses and gradients of a step with jitter of a fixed seed."""
    model.train(training)
    torch.manual_seed(1)
    outputs = model(copy.copy(rays()))
    target = torch.rand(96, 4, generator=torch.Generator().manual_seed(2))
    losses = model.get_loss_dict(outputs, {"image": target}, {})
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, losses, gradients


def assert_same(stock, twin, training: bool) -> None:
    twin.load_state_dict(stock.state_dict())
    for expected, found in zip(step(stock, training), step(twin, training)):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            scale = float(value.float().abs().max())
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("background", ["white", "random"])
@pytest.mark.parametrize("regularization", ["tv", "l1"])
def test_tensorf_leaves_out_colours_that_change_nothing(background: str, regularization: str, training: bool) -> None:
    settings = {**SMALL_TENSORF, "background_color": background, "regularization": regularization}
    twin = build(RGBTensoRFConfig(**settings))
    camera_optimizer = twin.config.camera_optimizer
    stock = build(TensoRFModelConfig(**settings, camera_optimizer=camera_optimizer))
    evaluated = []
    for model in (twin, stock):
        get_outputs = model.field.get_outputs

        def counted(samples, *rest, get_outputs=get_outputs):
            evaluated.append(samples.size)
            return get_outputs(samples, *rest)

        model.field.get_outputs = counted
    assert_same(stock, twin, training)
    assert evaluated[1] < 0.8 * evaluated[0]  # the stock model went first


@pytest.mark.parametrize("training", [True, False])
def test_instant_ngp_hashes_faster(training: bool) -> None:
    torch.manual_seed(0)
    # Nerfstudio's setting says the opposite of what it does: these two have the same field, without an embedding.
    stock = build(MarchedNGPConfig(**SMALL_NGP, use_appearance_embedding=True, background_color="white"))
    twin = build(RGBInstantNGPConfig(**SMALL_NGP, background_color="white"))
    assert not any(isinstance(part, FastHashEncoding) for part in stock.modules())
    assert any(isinstance(part, FastHashEncoding) for part in twin.modules())
    stock.occupancy_grid.binaries[:, 4:12, 4:12, 4:12] = True
    assert_same(stock, twin, training)
    assert float(step(twin)[0]["accumulation"].mean()) > 0.01


def test_configs_stay_as_they_are() -> None:
    """Nerfstudio's Instant-NGP writes the step size that it chooses into its config."""
    config = RGBInstantNGPConfig(**{**SMALL_NGP, "render_step_size": None})
    before = copy.deepcopy(config)
    model = build(config)
    assert config == before and model.config.render_step_size == pytest.approx(2 * 3**0.5 / 1000)
