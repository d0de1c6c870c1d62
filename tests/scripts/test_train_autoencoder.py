"""The standard autoencoder's training: its first weights, and a minute of it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderDC
from PIL import Image

from igae_nerfstudio.autoencoder.autoencoder import load_autoencoder
from igae_nerfstudio.metrics import psnr

spec = importlib.util.spec_from_file_location("train_autoencoder", ROOT / "scripts" / "train_autoencoder.py")
script = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = script  # its dataclasses look themselves up
spec.loader.exec_module(script)


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
    mean_psnr = float(psnr((decoded + 1) / 2, (pictures + 1) / 2).mean())
    assert mean_psnr == pytest.approx(float(linear), abs=0.5)
    # Latents are centred and of unit size, channel by channel.
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(16), atol=0.01, rtol=0)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=0.01, rtol=0)


def test_a_short_training_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for folder, size, channels in (("photos", 70, 3), ("scenes/ball/train", 64, 4)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(100 if channels == 3 else 2):
            small = generator.integers(0, 256, (9, 9, channels), dtype=np.uint8)
            Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(
                tmp_path / folder / f"{i:03d}.png"
            )
    where = {"images": tmp_path / "photos", "scenes": tmp_path / "scenes", "work_dir": tmp_path / "work"}
    for seconds, resume in ((2, False), (4, True)):
        script.train(
            script.Settings(**where, output_dir=tmp_path / "out", minutes=seconds / 60, threads=1, resume=resume)
        )
    steps = [int(step) for step in re.findall(r"step (\d+)", capsys.readouterr().out, flags=re.IGNORECASE)]
    assert 0 < steps[0] == steps[1] < steps[2]  # the end of the first, where the second begins, and its end
    assert load_autoencoder(tmp_path / "out").latent_channels == 16
    assert "95 photographs, 2 views" in (tmp_path / "out" / "README.md").read_text()
