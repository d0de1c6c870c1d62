"""The start of the standard autoencoder's training."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderDC

spec = importlib.util.spec_from_file_location("train_autoencoder", ROOT / "scripts" / "train_autoencoder.py")
script = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = script  # its dataclasses look themselves up
spec.loader.exec_module(script)


def psnr(pictures: torch.Tensor, reference: torch.Tensor) -> float:
    return float(script.psnr(pictures, reference).mean())


def test_the_first_weights_are_the_principal_components() -> None:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(96, 3, 20, 20, generator=generator)
    pictures = torch.nn.functional.interpolate(small, size=(64, 64), mode="bicubic").clamp(0, 1) * 2 - 1
    model = AutoencoderDC(**script.ARCHITECTURE)
    script.start_from_principal_components(model, pictures)
    with torch.no_grad():
        latents = model.encode(pictures).latent
        decoded = model.decode(latents).sample
    patches = script.patches_as_channels(pictures)
    flat = patches.movedim(1, -1).reshape(-1, script.PATCH)
    _, _, directions = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    kept = directions[:16].T @ directions[:16]
    best = (flat - flat.mean(dim=0)) @ kept + flat.mean(dim=0)
    linear = -10 * torch.log10((best - flat).square().mean() / 4)
    assert psnr(decoded, pictures) == pytest.approx(float(linear), abs=0.5)
    # Latents are centred and of unit size, channel by channel.
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(16), atol=0.01, rtol=0)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=0.01, rtol=0)
