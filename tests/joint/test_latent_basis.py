"""The change of basis before stage 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_autoencoder, write_blender_scene
from diffusers import AutoencoderDC
from many_scenes_data import started

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.compositions import joint_trainer
from igae_nerfstudio.joint.config import IGAEConfig
from igae_nerfstudio.joint.latent_basis import consistent_basis, explained_shares, rescale_latents, spreading_rotation
from igae_nerfstudio.scenes.view_schedule import ViewGroup


def small_dc() -> AutoencoderDC:
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=6,
        encoder_block_out_channels=(4, 4, 8, 16),
        decoder_block_out_channels=(4, 4, 8, 16),
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    ).eval()


def test_what_renders_explain_is_found_and_kept_large() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20_000, 4, generator=generator)
    mix = torch.randn(4, 4, generator=generator)
    known = hidden * torch.tensor([1.0, 0.5**0.5, 0.0, 0.0])  # all, half and nothing of the variance of a direction
    latents, rendered = hidden @ mix.T, (known * torch.tensor([1.0, 0.5**0.5, 0, 0])) @ mix.T
    shares, directions = explained_shares(latents, rendered)
    assert shares.tolist() == pytest.approx([1.0, 0.75, 0.0, 0.0], abs=0.02)
    coordinates = latents.double() @ directions.T
    torch.testing.assert_close(torch.cov(coordinates.T), torch.eye(4, dtype=torch.float64), atol=1e-4, rtol=0)
    matrix = consistent_basis(*explained_shares(latents, rendered), smallest=0.1)
    spread = torch.linalg.svdvals(torch.cov((latents.double() @ matrix.T).T))
    assert spread.sqrt().tolist() == pytest.approx([1.0, 0.75, 0.1, 0.1], abs=0.02)


@pytest.mark.parametrize("size", [3, 16])
def test_the_rotation_spreads(size: int) -> None:
    rotation = spreading_rotation(size)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(rotation[:, 0], torch.full((size,), size**-0.5, dtype=torch.float64))


def test_an_autoencoder_is_as_good_in_another_basis() -> None:
    autoencoder = TrainableAutoencoder(Autoencoder(small_dc()))
    images, matrix = torch.rand(2, 3, 32, 48), torch.randn(6, 6) + 3 * torch.eye(6)
    with torch.no_grad():
        latents = autoencoder.encode(images)
        decoded = autoencoder.decode(latents)
        autoencoder.change_basis(matrix)
        changed = autoencoder.encode(images)
    torch.testing.assert_close(changed, torch.einsum("ij,bjhw->bihw", matrix, latents), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(autoencoder.decode(changed), decoded, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="AutoencoderTiny cannot be rescaled"):
        TrainableAutoencoder(Autoencoder(tiny_autoencoder())).change_basis(torch.eye(6))


def test_renders_and_pictures_stay_what_they_were(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_blender_scene(tmp_path / "scenes" / name, counts=(4, 1, 1))
    small_dc().save_pretrained(tmp_path / "autoencoder")
    config = IGAEConfig()
    config.data.view_size = 48
    config.triplanes.resolution, config.triplanes.features, config.triplanes.hidden = 8, 4, 8
    config.stage1.epochs, config.stage1.views_per_batch, config.stage1.views_per_scene = 60, 4, 2
    config.stage1.planes_lr, config.stage1.renderer_lr = 3e-2, 1e-2
    config.weights.real_autoencoding = 0.0
    trainer = started(joint_trainer(config, tmp_path / "scenes", None, tmp_path / "out", str(tmp_path / "autoencoder")))
    stage, model = trainer.stages[0], trainer.model
    for step in range(stage.steps):
        trainer.train_step(stage, step)

    def look() -> tuple[torch.Tensor, ...]:
        model.renderer.eval()
        with torch.no_grad():
            batch = trainer.data.batch([ViewGroup(1, (0, 2))], images=True)
            latents, rendered = model.encode(batch.images), model.render(batch)
            error = (rendered - model.normalized(latents)).square().mean()
            return model.decode_render(rendered), model.decode(latents), error

    before = look()
    rescale_latents(trainer, 0.1)
    after = look()
    torch.testing.assert_close(after[0], before[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after[1], before[1], atol=1e-3, rtol=1e-3)
    assert after[2] < before[2]
