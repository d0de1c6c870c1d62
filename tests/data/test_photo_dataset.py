"""Photos of every kind, and photos that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import look_at_origin, write_nerfstudio_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from igae_nerfstudio.data.photo_dataset import PhotoDataset, read_image
from igae_nerfstudio.errors import InputError

RNG = np.random.default_rng(0)


def outputs_of(path: Path, width: int, height: int, **camera) -> DataparserOutputs:
    pose = torch.tensor(look_at_origin(0.1, 0.2)[None, :3], dtype=torch.float32)
    cameras = Cameras(pose, 60.0, 61.0, width / 2, height / 2, width=width, height=height, **camera)
    return DataparserOutputs(image_filenames=[path], cameras=cameras)


def smooth_picture(height: int, width: int, channels: int) -> np.ndarray:
    small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return picture if channels == 3 else picture[..., 0]


def test_grey_palette_and_16_bit_files_become_rgb(tmp_path: Path) -> None:
    grey = smooth_picture(40, 48, 1)
    files = {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": Image.fromarray(grey).convert("RGB").quantize(256),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.shape == (40, 48, 3) and read.dtype == np.uint8
        assert np.abs(read.astype(int) - grey[..., None]).max() <= (0 if name != "palette.png" else 3), name


def test_alpha_is_composited_on_the_background(tmp_path: Path) -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[..., 3] = np.linspace(0, 255, 32).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    dataset = PhotoDataset(outputs_of(tmp_path / "a.png", 32, 32), background_colour=torch.tensor([1.0, 0.5, 0.0]))
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + np.array([255, 127.5, 0]) * (1 - alpha)
    assert np.abs(dataset.get_numpy_image(0) - expected).max() <= 0.5 + 1e-6
    assert dataset[0]["image"].shape == (32, 32, 3)


def test_undistortion_agrees_with_nerfstudio(tmp_path: Path) -> None:
    """Photo and camera equal those of Nerfstudio's `FullImageDatamanager`, which undistorts for splatting."""
    picture = smooth_picture(60, 80, 3)
    Image.fromarray(picture).save(tmp_path / "p.png")
    params = torch.tensor([0.06, -0.08, 0.01, 0.0, 1e-3, -2e-3])
    outputs = outputs_of(tmp_path / "p.png", 80, 60, distortion_params=params[None])
    dataset = PhotoDataset(outputs)
    camera = outputs.cameras[0]
    intrinsics, image, _ = _undistort_image(
        camera,
        params.numpy(),
        {},
        picture.copy(),
        camera.get_intrinsics_matrices().numpy().astype(np.float64),
    )
    mine, photo = dataset.cameras[0], dataset.get_numpy_image(0)
    assert photo.shape == image.shape == (int(mine.height), int(mine.width), 3)
    assert np.abs(photo.astype(int) - image).max() <= 2  # remap's fixed-point tables differ in the last bit
    for name, value in zip(("fx", "fy", "cx", "cy"), intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]):
        assert getattr(mine, name).item() == pytest.approx(value, abs=2e-3), name
    assert dataset.cameras.distortion_params is None
    assert outputs.cameras.distortion_params is not None  # the dataparser's own object is untouched


def test_unusable_images_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(smooth_picture(48, 48, 3)).save(good)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-400])
    text = tmp_path / "text.png"
    text.write_text("not an image")
    small = tmp_path / "small.png"
    Image.fromarray(smooth_picture(48, 24, 3)).save(small)
    cases = [
        (tmp_path / "gone.png", 48, 48, "does not exist"),
        (cut, 48, 48, "cannot be read"),
        (text, 48, 48, "cannot be read"),
        (good, 64, 48, "its camera 64 x 48"),
        (small, 24, 48, "32 x 32 or more"),
    ]
    for path, width, height, says in cases:
        with pytest.raises(InputError) as error:
            PhotoDataset(outputs_of(path, width, height)).get_image_uint8(0)
        assert path.name in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_nerfstudio_data_is_undistorted_on_the_way(tmp_path: Path) -> None:
    scene = write_nerfstudio_scene(tmp_path / "s", [smooth_picture(48, 64, 3) for _ in range(4)], k1=0.1, k2=0.0)
    outputs = NerfstudioDataParserConfig(data=scene, downscale_factor=1).setup().get_dataparser_outputs("train")
    dataset = PhotoDataset(outputs)
    photo = dataset.get_numpy_image(0)
    assert photo.shape[:2] == (int(dataset.cameras.height[0]), int(dataset.cameras.width[0]))


@pytest.mark.parametrize("parser", ["nerfstudio", "instant-ngp", "blender"])
def test_dataparsers_of_every_kind_give_batches(parser: str, tmp_path: Path, autoencoder_dir: Path) -> None:
    """One training step on distorted photos whose sides are no multiples of 8, through three dataparsers."""
    from conftest import latent_config, write_blender_scene
    from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig

    if parser == "blender":
        scene = write_blender_scene(tmp_path / "s", size=(44, 52))
    else:
        pictures = [smooth_picture(45, 70, 3) for _ in range(20)]  # `instant-ngp-data` errs where a split has one
        lens = {"k1": 0.05, "k2": -0.02, "p1": 1e-3, "p2": 0.0, "aabb_scale": 2, "camera_angle_x": 1.0}
        scene = write_nerfstudio_scene(tmp_path / "s", pictures, **lens)
    config = latent_config("tensorf", scene, autoencoder_dir, tmp_path)
    if parser == "nerfstudio":
        config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=scene, downscale_factor=1)
    elif parser == "instant-ngp":
        config.pipeline.datamanager.dataparser = InstantNGPDataParserConfig(data=scene)
    pipeline = config.pipeline.setup(device="cpu")
    step = pipeline.schedule.latent_supervision_steps
    rays, batch = pipeline.datamanager.next_train(step)
    height, width = batch["image"].shape[1:3]
    assert rays.shape == batch["latent"].shape[:3] == (2, -(-height // 8), -(-width // 8))
    _, losses, _ = pipeline.get_train_loss_dict(step)
    assert bool(sum(losses.values()).isfinite())


def test_a_pose_that_instant_ngp_data_has_lost_is_named(tmp_path: Path) -> None:
    """Nerfstudio indexes poses with a tensor of one element, and a column of the matrix is taken for a camera."""
    from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig

    scene = write_nerfstudio_scene(tmp_path / "s", [smooth_picture(48, 48, 3) for _ in range(10)], camera_angle_x=1.0)
    outputs = InstantNGPDataParserConfig(data=scene).setup().get_dataparser_outputs("val")
    with pytest.raises(InputError, match="split of one image .*--train-split-fraction"):
        PhotoDataset(outputs)
