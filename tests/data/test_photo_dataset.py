"""Photos of every kind, and photos that are none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import look_at_origin, write_nerfstudio_scene
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import _undistort_image
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import ExifTags, Image

from igae_nerfstudio.data.photo_dataset import PhotoDataset, read_image
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.images import turned

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


# EXIF ------------------------------------------------------------------------------------------------------------


def save_turned(picture: np.ndarray, orientation: int, path: Path) -> None:
    """A file that shows `picture` to whoever obeys its EXIF orientation."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned(Image.fromarray(picture), inverse).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_obeyed_where_only_that_fits_the_camera(orientation: int, tmp_path: Path) -> None:
    picture = smooth_picture(40, 56, 3)
    save_turned(picture, orientation, tmp_path / "p.png")
    stored = np.asarray(Image.open(tmp_path / "p.png"))
    for name, wanted in (("upright", picture), ("stored", stored)):
        height, width = wanted.shape[:2]
        photo = PhotoDataset(outputs_of(tmp_path / "p.png", width, height)).get_numpy_image(0)
        # Mirrored and upside down look alike to a camera: those are left as they are stored.
        assert np.array_equal(photo, wanted if orientation >= 5 else stored), name


def test_square_photos_are_read_as_stored_unless_a_setting_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = smooth_picture(40, 40, 3)
    save_turned(picture, 6, tmp_path / "p.png")
    stored = np.asarray(Image.open(tmp_path / "p.png"))
    outputs = outputs_of(tmp_path / "p.png", 40, 40)
    assert np.array_equal(PhotoDataset(outputs).get_numpy_image(0), stored)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "1 photos have an EXIF orientation" in said and "exif-orientation obey" in said
    assert np.array_equal(PhotoDataset(outputs, exif_orientation="obey").get_numpy_image(0), picture)
    assert np.array_equal(PhotoDataset(outputs, exif_orientation="ignore").get_numpy_image(0), stored)
    assert capsys.readouterr().out == ""


def test_a_photo_that_fits_neither_way_is_named_with_its_orientation(tmp_path: Path) -> None:
    save_turned(smooth_picture(40, 56, 3), 6, tmp_path / "p.png")
    with pytest.raises(
        InputError, match=r"p.png has 40 x 56 pixels as stored \(EXIF orientation 6\), its camera 64 x 48"
    ):
        PhotoDataset(outputs_of(tmp_path / "p.png", 64, 48)).get_numpy_image(0)


# Masks -----------------------------------------------------------------------------------------------------------


def masked(tmp_path: Path, mask: Image.Image, name: str = "mask.png", **metadata) -> PhotoDataset:
    picture = smooth_picture(48, 64, 3).copy()
    picture[10:20, 30:50] = (255, 0, 255)
    Image.fromarray(picture).save(tmp_path / "p.png")
    mask.save(tmp_path / name)
    outputs = outputs_of(tmp_path / "p.png", 64, 48)
    outputs.mask_filenames, outputs.metadata = [tmp_path / name], metadata
    return PhotoDataset(outputs)


def hole(value: int = 255) -> np.ndarray:
    mask = np.full((48, 64), value, np.uint8)
    mask[10:20, 30:50] = 0
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(hole()),
        Image.fromarray(hole(1)),
        Image.fromarray(hole()).convert("1"),
        Image.fromarray(hole()).convert("RGB"),
        Image.fromarray(hole()).convert("P"),
        Image.fromarray(np.dstack([np.full((48, 64, 3), 255, np.uint8), hole()])),
        Image.fromarray(np.repeat(np.repeat(hole(), 2, 0), 2, 1)),  # of the photo before it was made smaller
    ],
    ids=["grey", "0 and 1", "1 bit", "RGB", "palette", "alpha", "twice the size"],
)
def test_masks_of_every_kind(mask: Image.Image, tmp_path: Path) -> None:
    dataset = masked(tmp_path, mask)
    photo, targets = dataset.photo_and_mask(0)
    inside = hole() == 0
    assert not targets[inside].any() and targets[~inside].mean() > 0.97  # a resampled edge counts as masked
    stored = np.asarray(Image.open(tmp_path / "p.png"))
    assert np.array_equal(photo[targets], stored[targets])
    # Filled with colours beside them, of which none is the distractor's.
    assert np.abs(photo[inside].astype(int) - (255, 0, 255)).sum(-1).min() > 30
    assert set(map(tuple, photo[inside])) <= set(map(tuple, stored[targets]))
    data = dataset[0]
    assert torch.equal(data["mask"][..., 0], torch.from_numpy(targets)) and data["image"].shape == (48, 64, 3)


def test_a_mask_as_jpeg_with_its_noise(tmp_path: Path) -> None:
    _, targets = masked(tmp_path, Image.fromarray(hole()), "mask.jpg").photo_and_mask(0)
    assert (targets == (hole() > 0)).mean() > 0.98


def test_mask_color_paints_what_is_masked(tmp_path: Path) -> None:
    photo, targets = masked(tmp_path, Image.fromarray(hole()), mask_color=(0.0, 0.5, 0.0)).photo_and_mask(0)
    assert (photo[hole() == 0] == (0, 128, 0)).all() and not targets[hole() == 0].any()


def test_a_photo_that_is_masked_altogether_is_background(tmp_path: Path) -> None:
    photo, targets = masked(tmp_path, Image.fromarray(np.zeros((48, 64), np.uint8))).photo_and_mask(0)
    assert not targets.any() and (photo == 255).all()


def test_a_mask_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mask.png has 48 x 48 pixels, its photo 64 x 48; give it the photo's shape"):
        masked(tmp_path, Image.fromarray(np.zeros((48, 48), np.uint8))).photo_and_mask(0)


def test_masks_go_with_their_photos_through_lens_and_orientation(tmp_path: Path) -> None:
    """A white square in a black photo, and a mask that leaves nothing but the square."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[12:30, 8:20] = 255
    save_turned(picture, 6, tmp_path / "p.png")
    mask = turned(Image.fromarray(picture[..., 0]), 8)  # as the file is stored
    mask.save(tmp_path / "m.png")
    lens = torch.tensor([[0.1, -0.05, 0, 0, 0, 0]])
    outputs = outputs_of(tmp_path / "p.png", 64, 48, distortion_params=lens)
    outputs.mask_filenames = [tmp_path / "m.png"]
    photo, targets = PhotoDataset(outputs, scale_factor=0.75).photo_and_mask(0)
    assert (photo[targets] > 250).all() and 0.5 * 12 * 18 * 0.75**2 < targets.sum()


# Files that Pillow does not know ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix, package", [(".heic", "pillow-heif"), (".dng", "rawpy")])
def test_the_package_that_a_file_needs_is_named(
    suffix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (tmp_path / "p").with_suffix(suffix)
    Image.fromarray(smooth_picture(48, 48, 3)).save(path, format="TIFF")  # Pillow would read a raw file's thumbnail
    monkeypatch.setitem(sys.modules, package.replace("pillow-", "pillow_"), None)
    with pytest.raises(InputError, match=f"{path.name} can be read with the package {package} only; `pip install"):
        PhotoDataset(outputs_of(path, 48, 48)).get_numpy_image(0)


def test_heic(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = smooth_picture(48, 64, 3)
    pillow_heif.from_pillow(Image.fromarray(picture)).save(tmp_path / "p.heic", quality=100, chroma=444)
    photo = PhotoDataset(outputs_of(tmp_path / "p.heic", 64, 48)).get_numpy_image(0)
    assert np.abs(photo.astype(int) - picture).mean() < 3


@pytest.mark.parametrize("values", ["float32", "uint16"])
def test_deep_tiff(values: str, tmp_path: Path) -> None:
    import cv2

    picture = smooth_picture(48, 64, 3)
    deep = (picture / 255).astype(np.float32) if values == "float32" else picture.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "p.tif"), deep[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    photo = PhotoDataset(outputs_of(tmp_path / "p.tif", 64, 48)).get_numpy_image(0)
    assert np.array_equal(photo, picture)
