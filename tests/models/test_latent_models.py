"""Every method takes two steps in both phases, and its render is volume rendering of latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import LATENT_METHODS, latent_config

from igae_nerfstudio.rendering import latent_renderer
from igae_nerfstudio.rendering.latent_renderer import LatentRenderer

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", LATENT_METHODS)
def test_two_steps_of_both_phases(
    method: str, device: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """The real trainer runs two steps of each phase; scene parameters move in both, the decoder in the second."""
    config = latent_config(
        method,
        blender_scene,
        autoencoder_dir,
        tmp_path,
        latent_supervision_steps=2,
        rgb_alignment_steps=2,
        latent_supervision_lr_factor=1.0,
        rgb_alignment_lr_factor=1.0,
    )
    config.machine.device_type = device
    config.mixed_precision = config.mixed_precision and device == "cuda"
    torch.manual_seed(0)
    trainer = config.setup()
    trainer.setup()
    model = trainer.pipeline.model
    snapshots = []

    def snapshot() -> dict:
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    original = trainer.train_iteration

    def record(step: int):
        snapshots.append(snapshot())
        result = original(step)
        assert all(bool(value.isfinite()) for value in result[1].values())
        return result

    trainer.train_iteration = record
    trainer.train()
    snapshots.append(snapshot())
    assert len(snapshots) == 5 and trainer.step == 3

    def moved(first: int, last: int, prefix: str) -> bool:
        names = [n for n in snapshots[first] if n.startswith(prefix) and snapshots[first][n].numel()]
        return any(not torch.equal(snapshots[first][n], snapshots[last][n]) for n in names)

    assert moved(0, 2, "scene.") and not moved(0, 2, "decoder.")
    assert moved(2, 4, "scene.") and moved(2, 4, "decoder.")
    camera = trainer.pipeline.datamanager.eval_dataset.cameras[0:1]
    outputs = trainer.pipeline.model.eval().get_outputs_for_camera(camera)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "rgb": (48, 48, 3),
        "depth": (48, 48, 1),
        "accumulation": (48, 48, 1),
        "latent": (48, 48, 3),
    }
    assert all(value.is_floating_point() and bool(value.isfinite().all()) for value in outputs.values())


def test_latents_are_composited_on_the_background_without_clamping() -> None:
    renderer = LatentRenderer(5).eval()
    renderer.background.copy_(torch.tensor([2.0, -3.0, 0.0, 0.5, 1.0]))
    heads, weights = 4 * torch.randn(7, 9, 5), 0.1 * torch.rand(7, 9, 1)
    expected = torch.zeros(7, 5)
    for ray in range(7):
        for sample in range(9):
            expected[ray] += weights[ray, sample] * (0.5 + heads[ray, sample])
        expected[ray] += (1 - weights[ray].sum()) * renderer.background
    torch.testing.assert_close(renderer(heads, weights), expected)
    assert renderer(heads, weights).min() < 0
    packed = renderer(
        heads.view(-1, 5), weights.view(-1, 1), ray_indices=torch.arange(7).repeat_interleave(9), num_rays=7
    )
    torch.testing.assert_close(packed, expected)


@pytest.mark.parametrize("middle", [0.5, 0.0])
def test_heads_that_start_in_the_middle_keep_space_full(
    middle: float, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that start at 0, far from the latents, let vanilla NeRF empty its space: the background is nearer."""
    monkeypatch.setattr(latent_renderer, "MIDDLE", middle)
    config = latent_config("vanilla_nerf", blender_scene, autoencoder_dir, tmp_path)
    model = config.pipeline.model
    model.num_coarse_samples, model.num_importance_samples, model.layer_width = 12, 4, 64
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu")
    pipeline.train()
    optimizer = torch.optim.Adam(pipeline.get_param_groups()["fields"], lr=2e-3)
    for step in range(25):
        outputs, losses, _ = pipeline.get_train_loss_dict(step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    accumulation = float(outputs["accumulation_fine"].mean())
    assert accumulation > 0.8 if middle else accumulation < 0.05


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_empty_space_renders_the_latent_background(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """With all density taken away, every latent pixel is the encoder's own latent of the background colour."""
    config = latent_config(method, blender_scene, autoencoder_dir, tmp_path)
    pipeline = config.pipeline.setup(device="cpu")
    scene = pipeline.model.eval().scene
    if method == "splatfacto":
        scene.gauss_params["opacities"].data.fill_(-100)
    elif method == "instant_ngp":
        scene.occupancy_grid.binaries.zero_()
    elif method == "triplanes":
        last = scene.renderer.decoder[-1]
        last.weight.data[0], last.bias.data[0] = 0, -1000
    else:
        for name in ("field", "field_coarse", "field_fine"):
            if hasattr(scene, name):
                field = getattr(scene, name)
                get_density = field.get_density

                def no_density(samples, get_density=get_density):
                    found = get_density(samples)
                    return (0 * found[0], *found[1:]) if isinstance(found, tuple) else 0 * found

                field.get_density = no_density
    view = pipeline.model.render(pipeline.datamanager.eval_dataset.cameras[0:1])
    background = pipeline.autoencoder.encode_colour(torch.ones(3))
    expected = pipeline.model.normalizer.normalize(background).expand_as(view.latent)
    torch.testing.assert_close(view.latent, expected, atol=1e-5, rtol=1e-5)
    assert float(view.accumulation.max()) == pytest.approx(0, abs=1e-6)
