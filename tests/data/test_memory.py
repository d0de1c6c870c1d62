"""What does not fit into memory is refused before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import latent_config
from torch import nn

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.data import memory
from igae_nerfstudio.data.memory import PeakMemory, kept_bytes
from igae_nerfstudio.errors import InputError


def test_kept_bytes_of_known_layers() -> None:
    """sigmoid keeps its output and a linear layer its input: 10 x 4 and 10 x 3 floats; parameters do not count."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid())
    rows = torch.zeros(10, 3)
    assert kept_bytes(network, lambda: network(rows)) == 10 * (4 + 3) * 4


def test_peak_of_known_layers() -> None:
    """A layer's input and output live at the same time, and no more; in place there is one of them; views are free."""
    rows = torch.zeros(10, 4)
    for layers, expected in (
        ([nn.Sigmoid()], 1),
        ([nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()], 2),
        ([nn.Sigmoid(), nn.ReLU(inplace=True), nn.Flatten(0)], 1),
        ([nn.Upsample(scale_factor=3), nn.Sigmoid(), nn.AvgPool1d(3)], 6),
    ):
        with torch.no_grad(), PeakMemory() as peak:
            nn.Sequential(*layers)(rows[None])
        assert peak.bytes == expected * 10 * 4 * 4, layers


def test_the_encoders_peak_is_told_from_a_small_photo(monkeypatch) -> None:
    """What is said of a photo of 512 x 384 is what encoding it takes."""
    autoencoder, told = load_autoencoder(AutoencoderConfig()), []
    monkeypatch.setattr(memory, "LARGE_SPLIT", 1)
    monkeypatch.setattr(memory, "check_fits", lambda needed, device, what: told.append(needed))
    memory.check_split_fits(1, (384, 512), autoencoder, "cpu")
    with torch.no_grad(), PeakMemory() as peak:
        autoencoder.encode(torch.zeros(1, 3, 384, 512, dtype=torch.uint8).float() / 255)
    kept = 384 * 512 * 3 + 2 * (384 // 8) * (512 // 8) * (16 + 11) * 4
    assert told == [pytest.approx(kept + peak.bytes, rel=0.02)]


def test_a_split_that_does_not_fit(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LARGE_SPLIT", 1)
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path)
    with pytest.raises(InputError, match="6 photos of 48 x 48 .* more than the 0.0 GB .*camera-res-scale-factor 0.5"):
        config.pipeline.setup(device="cpu")


def test_a_step_that_does_not_fit(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch) -> None:
    from igae_nerfstudio.pipelines import latent_pipeline

    monkeypatch.setattr(latent_pipeline, "LARGE_STEP", 1)
    monkeypatch.setattr(latent_pipeline, "SHARE", 4)
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path)
    config.pipeline.setup(device="cpu")  # fits
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000)
    with pytest.raises(InputError, match="steps of 72 latent rays need .*images-per-batch"):
        config.pipeline.setup(device="cpu")


def test_the_scale_that_is_named_makes_it_fit(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="factor 0.25"):
        memory.check_fits(10_000, "cpu", "things")
    memory.check_fits(10_000 * 0.25**2, "cpu", "things")
