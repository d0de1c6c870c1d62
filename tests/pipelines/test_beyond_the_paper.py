"""The colour head and the perceptual term: what is trained, rendered, kept and refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import LATENT_METHODS, latent_config

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines import latent_pipeline
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline, squared_error


def build(method: str, scene: Path, autoencoder: Path, out: Path, **options: Any) -> LatentPipeline:
    torch.manual_seed(0)
    steps = {"latent_supervision_steps": 3, "rgb_alignment_steps": 3}
    return latent_config(method, scene, autoencoder, out, **steps, **options).pipeline.setup(device="cpu")


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_the_scene_renders_averaged_colours(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    pipeline = build(method, blender_scene, autoencoder_dir, tmp_path, colour_head=True)
    model = pipeline.model
    for step in (0, 4):
        _, batch = pipeline.datamanager.next_train(step)
        colour = F.avg_pool2d(batch["image"].permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1)
        torch.testing.assert_close(batch["colour"], colour, atol=1e-3, rtol=0)
        outputs, losses, _ = pipeline.get_train_loss_dict(step)
        assert outputs["latent"].shape[-1] == 9 and ("colour_loss" in losses) == (step == 4)
        sum(losses.values()).backward()
    view = pipeline.eval().model.get_outputs_for_camera(pipeline.datamanager.train_dataset.cameras[0:1])
    assert view["rgb"].shape == view["rgb_coarse"].shape == (48, 48, 3)
    # Where the scene is empty both backgrounds are white: the latents' and the colours'.
    background = model.scene.renderer_rgb.background if hasattr(model.scene, "renderer_rgb") else None
    if background is not None:
        torch.testing.assert_close(model.colour_normalizer.denormalize(background[6:]), torch.ones(3))


def test_weights_of_colours_and_masks(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    """In latent supervision a colour channel counts four times, a ray as its weight says."""
    pipeline = build("tensorf", blender_scene, autoencoder_dir, tmp_path, colour_head=True).eval()
    pipeline.config.colour_weight = 4.0
    rays, batch = pipeline.datamanager.next_train(0)
    batch["latent_weight"] = torch.rand(*rays.shape, 1, generator=torch.Generator().manual_seed(0))
    target = pipeline.model.targets(batch["latent"], batch["colour"]).flatten(0, -2)
    error = (pipeline.model.scene(rays.flatten())["latent"] - target).square()
    error[:, 6:] *= 4
    weight = batch["latent_weight"].view(-1, 1)
    expected = (error * weight / weight.mean()).mean()
    losses = pipeline._losses(0, rays, batch)[1]
    torch.testing.assert_close(losses["latent_loss"], expected)


def test_a_colour_head_travels_in_the_checkpoint(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    plain = build("tensorf", blender_scene, autoencoder_dir, tmp_path)
    coloured = build("tensorf", blender_scene, autoencoder_dir, tmp_path, colour_head=True)
    again = build("tensorf", blender_scene, autoencoder_dir, tmp_path, colour_head=True)
    again.model.colour_normalizer.mean.zero_()
    again.load_pipeline(deepcopy(coloured.state_dict()), 1)
    assert torch.equal(again.model.colour_normalizer.mean, coloured.model.colour_normalizer.mean)
    with pytest.raises(InputError, match="trained with a colour head; set --pipeline.colour-head True"):
        plain.load_pipeline(coloured.state_dict(), 1)
    with pytest.raises(InputError, match="trained without a colour head; set --pipeline.colour-head False"):
        coloured.load_pipeline(plain.state_dict(), 1)
    older = plain.state_dict()  # of a version that knew no colour heads
    del older["_model._extra_state"]["colour_head"]
    build("tensorf", blender_scene, autoencoder_dir, tmp_path).load_pipeline(older, 1)


def test_the_perceptual_term(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a third of RGB alignment, on what is a target, and in no checkpoint."""

    built = []

    class Distance(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            built.append(self)

        def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            assert images.shape[1] == 3
            return (images - targets).abs().mean()

    monkeypatch.setattr(latent_pipeline, "PerceptualLoss", Distance)
    build("tensorf", blender_scene, autoencoder_dir, tmp_path)
    assert not built  # of a term without weight nothing is loaded
    pipeline = build("tensorf", blender_scene, autoencoder_dir, tmp_path, perceptual_weight=0.5).eval()
    assert len(built) == 1
    for step, there in ((2, False), (3, False), (4, True)):
        rays, batch = pipeline.datamanager.next_train(step)
        losses = pipeline._losses(step, rays, batch)[1]
        assert ("perceptual_loss" in losses) == there
    batch["valid_mask"] = torch.zeros(2, 48, 48, 1)
    assert float(pipeline._losses(4, rays, batch)[1]["perceptual_loss"]) == 0
    assert not [name for name in pipeline.state_dict() if "perceptual" in name or "lpips" in name]


def test_missing_weights_of_the_perceptual_term_cost_only_that(
    blender_scene: Path,
    autoencoder_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> None:
        raise InputError("its weights cannot be had")

    monkeypatch.setattr(latent_pipeline, "PerceptualLoss", missing)
    pipeline = build("tensorf", blender_scene, autoencoder_dir, tmp_path, perceptual_weight=0.5)
    message = "--pipeline.perceptual-weight 0.5 has no effect: its weights cannot be had"
    assert capsys.readouterr().out.count(message) == 1
    assert "perceptual_loss" not in pipeline.get_train_loss_dict(5)[1]


@pytest.mark.parametrize("name", ["colour_weight", "alignment_colour_weight", "perceptual_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_make_no_sense(
    name: str, value: float, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--pipeline.{name.replace('_', '-')} is .*; it must be 0 or a positive"):
        build("tensorf", blender_scene, autoencoder_dir, tmp_path, **{name: value})


def test_the_mean_of_a_masked_error() -> None:
    error = squared_error(torch.ones(1, 2, 2, 3), torch.zeros(1, 2, 2, 3), torch.tensor([[[[1.0], [0]], [[0], [0]]]]))
    assert float(error) == 1
