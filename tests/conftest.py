"""A random autoencoder and a tiny scene: small enough that every method takes its steps in seconds on a CPU."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import lpips
import numpy as np
import pytest
import safetensors.torch  # noqa: F401  older diffusers use it without importing it
import torch
from command_server import without_weights
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))  # its list of fonts takes seconds
ROOT = Path(__file__).resolve().parents[1]
DEMO_SCENE = ROOT / "demo" / "lighthouse"
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Small tensors on few cores: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's latent cache is neither read nor written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are not part of the repository, and no test fetches them."""
    monkeypatch.setattr(lpips, "LPIPS", without_weights)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: a write that fails in its middle, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of at most 20 kB."""
    with files_up_to(20_000):
        yield


def tiny_autoencoder(latent_channels: int = 6, seed: int = 0) -> torch.nn.Module:
    """An untrained `AutoencoderTiny` with downscale 8."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


@pytest.fixture(scope="session")
def autoencoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with 6 latent channels."""
    folder = tmp_path_factory.mktemp("autoencoder") / "tiny"
    tiny_autoencoder().save_pretrained(folder)
    return folder


def look_at_origin(azimuth: float, elevation: float, radius: float = 2.1) -> np.ndarray:
    """Camera-to-world (4, 4), OpenGL axes, z up."""
    back = np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, radius * back], axis=-1)
    return pose


def write_blender_scene(folder: Path, size: tuple[int, int] = (48, 48), counts=(6, 2, 2)) -> Path:
    """A coloured ball before a transparent background, `size` = (height, width)."""
    height, width = size
    angle = 0.69
    for split, count in zip(("train", "val", "test"), counts):
        frames = []
        (folder / split).mkdir(parents=True)
        for i in range(count):
            pose = look_at_origin(azimuth=2 * math.pi * i / max(count, 1) + 0.3 * len(split), elevation=0.4)
            rows, columns = np.mgrid[0:height, 0:width] + 0.5
            inside = (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(size) / 4) ** 2
            image = np.zeros((height, width, 4), np.uint8)
            image[inside] = (200, 40 + 20 * (i % 6), 60, 255)
            Image.fromarray(image).save(folder / split / f"r_{i:03d}.png")
            frames.append({"file_path": f"./{split}/r_{i:03d}", "transform_matrix": pose.tolist()})
        meta = {"camera_angle_x": angle, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def blender_scene(tmp_path: Path) -> Path:
    """A Blender-format scene of 6 + 2 + 2 RGBA images, 48 x 48."""
    return write_blender_scene(tmp_path / "scene")


def write_srn_scene(folder: Path, blender: Path, made_for: int = 512) -> Path:
    """A square Blender scene's test views, and then its train views, as a ShapeNet-SRN scene.

    Args:
        folder: to write.
        blender: to read.
        made_for: the side of the pictures that intrinsics.txt speaks of, in pixels.
    """
    for part in ("rgb", "pose"):
        (folder / part).mkdir(parents=True)
    count = 0
    for split in ("test", "train"):
        meta = json.loads((blender / f"transforms_{split}.json").read_text())
        for frame in meta["frames"]:
            picture = blender / (frame["file_path"] + ".png")
            (folder / "rgb" / f"{count:06d}.png").write_bytes(picture.read_bytes())
            pose = np.array(frame["transform_matrix"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
            text = " ".join(f"{value:.8f}" for value in pose.flatten())
            (folder / "pose" / f"{count:06d}.txt").write_text(text + "\n")
            count += 1
    focal = 0.5 * made_for / math.tan(0.5 * meta["camera_angle_x"])
    lines = [f"{focal:f} {made_for / 2:f} {made_for / 2:f} 0.", "0. 0. 0.", "1.", f"{made_for} {made_for}"]
    (folder / "intrinsics.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_nerfstudio_scene(folder: Path, images: list[np.ndarray], **lens: float) -> Path:
    """A `transforms.json` scene; `lens` adds intrinsics such as `k1`."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.png")
        pose = look_at_origin(azimuth=0.5 * i, elevation=0.3).tolist()
        frames.append({"file_path": f"images/{i:04d}.png", "transform_matrix": pose})
    height, width = images[0].shape[:2]
    meta = {"fl_x": 60.0, "fl_y": 60.0, "cx": width / 2, "cy": height / 2, "w": width, "h": height, **lens}
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    return folder


SMALL = {
    "vanilla_nerf": {"num_coarse_samples": 8, "num_importance_samples": 8},
    "instant_ngp": {
        "grid_resolution": 16,
        "grid_levels": 1,
        "render_step_size": 0.1,
        "max_res": 64,
        "log2_hashmap_size": 10,
    },
    "tensorf": {"num_uniform_samples": 16, "num_samples": 8, "init_resolution": 16, "final_resolution": 24},
    "kplanes": {
        "grid_base_resolution": (8, 8, 8),
        "multiscale_factors": (1, 2),
        "grid_feature_dim": 4,
        "proposal_resolutions": (8,),
        "num_proposal_samples_per_ray": (16,),
        "num_nerf_samples_per_ray": 8,
    },
    "nerfacto": {
        "num_levels": 4,
        "max_res": 64,
        "log2_hashmap_size": 10,
        "num_nerf_samples_per_ray": 8,
        "num_proposal_samples_per_ray": (16, 8),
    },
    "splatfacto": {"num_gaussians": 150, "relocate_every": 2},
    "triplanes": {"resolution": 12, "features": 4, "hidden": 8, "samples": 8, "importance_samples": 8},
}
"""Settings that make each method small."""

LATENT_METHODS = tuple(SMALL)


def latent_config(method: str, scene: Path, autoencoder: Path, output_dir: Path, **pipeline):
    """A trainer config of `igae-METHOD` on a Blender scene, small and for the CPU."""
    from copy import deepcopy

    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    from igae_nerfstudio import method_configs

    config = deepcopy(getattr(method_configs, f"igae_{method}").config)
    config.machine.device_type = "cpu"
    config.vis = "tensorboard"
    config.output_dir = output_dir
    config.experiment_name = "test"
    config.timestamp = "now"
    config.pipeline.autoencoder.name_or_path = str(autoencoder)
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=scene)
    config.pipeline.datamanager.images_per_batch = 2
    for name, value in SMALL[method].items():
        assert hasattr(config.pipeline.model, name), name
        setattr(config.pipeline.model, name, value)
    for name, value in pipeline.items():
        assert hasattr(config.pipeline, name), name
        setattr(config.pipeline, name, value)
    return config


def run_in_processes(count: int, *words: object) -> None:
    """A script or `-m MODULE` with its arguments in so many CPU processes of Hugging Face accelerate."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", f"--num_processes={count}"]
    launch += [f"--main_process_port={port}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    result = subprocess.run(
        [str(word) for word in (*launch, *words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
