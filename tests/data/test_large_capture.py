"""A capture of 4K photos fits into 8 GiB: read, encoded, two steps of each phase, and one evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import look_at_origin, tiny_autoencoder
from PIL import Image

TRAIN = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import latent_config
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

folder = Path({folder!r})
config = latent_config("tensorf", folder, {autoencoder!r}, folder, latent_supervision_steps=2, rgb_alignment_steps=2)
config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=folder, downscale_factor=1)
config.pipeline.datamanager.latent_cache_dir = folder / "latents"
start = time.process_time()
pipeline = config.pipeline.setup(device="cpu")
print("ENCODED", len(pipeline.datamanager.train_dataset), "photos in", time.process_time() - start, "CPU s")
for step in range(4):
    sum(pipeline.get_train_loss_dict(step)[1].values()).backward()
print("STEPS", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
pipeline.get_eval_image_metrics_and_images(3)
print("EVALUATED", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_capture(folder: Path, count: int, size: tuple[int, int] = (3840, 2160)) -> None:
    """`count` different photos of `size` = (width, height) as JPEG."""
    (folder / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (27, 48, 3), np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    frames = []
    for i in range(count):
        Image.fromarray(np.roll(picture, 11 * i, axis=1)).save(folder / "images" / f"{i:04d}.jpg", quality=90)
        pose = look_at_origin(azimuth=0.1 * i, elevation=0.3).tolist()
        frames.append({"file_path": f"images/{i:04d}.jpg", "transform_matrix": pose})
    width, height = size
    meta = {"fl_x": width, "fl_y": width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_300_photos_in_8_gib(tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", 300)
    tiny_autoencoder(latent_channels=16).save_pretrained(tmp_path / "autoencoder")
    code = TRAIN.format(
        tests=str(Path(__file__).parents[1]),
        folder=str(tmp_path / "capture"),
        autoencoder=str(tmp_path / "autoencoder"),
    )
    terminal = {**os.environ, "FORCE_COLOR": "1"}  # the progress bar is for terminals
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=terminal, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    print(result.stdout)
    peak = {
        line.split()[0]: int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith(("ST", "EV"))
    }
    assert peak["EVALUATED"] < 8 * 2**20  # kB
    assert "Reading and encoding training images" in result.stdout
