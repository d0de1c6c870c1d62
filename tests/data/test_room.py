"""Photos and rays of every camera agree: a room is photographed whose colour along any ray is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import latent_config, look_at_origin
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from room import colours, photo

from igae_nerfstudio.data.latent_cameras import latent_cameras
from igae_nerfstudio.data.latent_split import LatentSplit, Photos
from igae_nerfstudio.data.lenses import finite_rays
from igae_nerfstudio.data.photo_dataset import PhotoDataset

PERSPECTIVE, FISHEYE = CameraType.PERSPECTIVE, CameraType.FISHEYE
NO_LENS = (0.0,) * 6
CAMERAS: dict[str, tuple[CameraType, tuple[int, int], tuple[float, float], tuple[float, float], tuple[float, ...]]] = {
    # kind, (W, H), (fx, fy), (cx, cy), (k1, k2, k3, k4, p1, p2)
    "pinhole": (PERSPECTIVE, (64, 64), (60, 60), (32, 32), NO_LENS),
    "pinhole, odd latents, off centre": (PERSPECTIVE, (72, 56), (70, 64), (41.3, 22.8), NO_LENS),
    "pinhole, no multiples of 8": (PERSPECTIVE, (75, 61), (70, 64), (37.5, 30.5), NO_LENS),
    "k1": (PERSPECTIVE, (80, 64), (60, 60), (40, 32), (0.1, 0, 0, 0, 0, 0)),
    "k1, barrel": (PERSPECTIVE, (80, 64), (60, 60), (40, 32), (-0.15, 0.02, 0, 0, 0, 0)),
    "k1 k2 k3 p1 p2": (PERSPECTIVE, (80, 64), (60, 62), (43, 30), (0.06, -0.08, 0.01, 0, 1e-3, -2e-3)),
    "k1 to k4 p1 p2": (PERSPECTIVE, (80, 64), (60, 62), (43, 30), (0.06, -0.05, 0.01, 0.02, 1e-3, -2e-3)),
    "equidistant, 120 degrees": (FISHEYE, (80, 64), (38, 38), (40, 32), NO_LENS),
    "equidistant, 200 degrees": (FISHEYE, (72, 72), (20.6, 20.6), (36, 36), NO_LENS),
    "fisheye, 120 degrees": (FISHEYE, (96, 72), (46, 46), (47, 37), (0.05, -0.02, 0.01, 0.003, 0, 0)),
    "fisheye, 190 degrees": (FISHEYE, (72, 72), (24.4, 24.4), (36, 36), (-0.03, 0.01, -0.004, 0.0005, 0, 0)),
    "fisheye, 200 degrees": (FISHEYE, (80, 80), (21, 21), (39.2, 40.9), (0.03, -0.01, 0.002, -0.0001, 0, 0)),
    "fisheye that turns back": (FISHEYE, (72, 72), (24, 24), (36, 36), (-0.1, 0, 0, 0, 0, 0)),
    "fisheye with p1 p2": (FISHEYE, (72, 72), (30, 31), (35, 36), (0.03, -0.01, 0, 0, 2e-3, -1e-3)),
    "equirectangular": (CameraType.EQUIRECTANGULAR, (128, 64), (64, 64), (64, 32), NO_LENS),
    "orthophoto": (CameraType.ORTHOPHOTO, (64, 64), (40, 40), (32, 32), NO_LENS),
}
EXACT = 0.6
"""Mean difference of photo and rays in 255ths; rounding alone makes 0.25, resampling some more."""


def pose_of(number: int) -> np.ndarray:
    return look_at_origin(azimuth=0.9 * number + 0.3, elevation=0.3, radius=0.7)


def outputs(folder: Path, names: list[str], **more: Any) -> DataparserOutputs:
    """A rig: the named cameras, one photo each."""
    parts = [CAMERAS[name] for name in names]
    files = []
    for number, part in enumerate(parts):
        files.append(folder / f"{number}.png")
        Image.fromarray(photo(*part, pose_of(number))).save(files[-1])
    kinds, sizes, focals, centres, lenses = zip(*parts)
    cameras = Cameras(
        torch.tensor(np.stack([pose_of(number)[:3] for number in range(len(names))]), dtype=torch.float32),
        *(torch.tensor([f[i] for f in focals], dtype=torch.float32)[:, None] for i in (0, 1)),
        *(torch.tensor([c[i] for c in centres], dtype=torch.float32)[:, None] for i in (0, 1)),
        width=torch.tensor([size[0] for size in sizes])[:, None],
        height=torch.tensor([size[1] for size in sizes])[:, None],
        distortion_params=torch.tensor(lenses),
        camera_type=torch.tensor([kind.value for kind in kinds])[:, None],
    )
    return DataparserOutputs(image_filenames=files, cameras=cameras, **more)


def difference(dataset: PhotoDataset, number: int) -> float:
    """Of a photo and the rays of its camera, over all targets, in 255ths."""
    picture, mask = dataset.photo_and_mask(number)
    camera = dataset.cameras[number : number + 1]
    rays = finite_rays(camera.generate_rays(camera_indices=0, keep_shape=True), camera)
    assert bool(rays.directions.isfinite().all()) and picture.shape[:2] == tuple(rays.shape)
    known = 255 * colours(rays.origins.double().numpy(), rays.directions.double().numpy())
    mask = np.ones(picture.shape[:2], bool) if mask is None else mask
    assert mask.mean() > 0.4
    return float(np.abs(picture - known)[mask].mean())


def latent_difference(dataset: PhotoDataset, downscale: int = 8) -> float:
    """Of the photos in the middle of each latent pixel's square and the rays of the latent pixels; the worst photo."""
    photos = Photos(dataset.photo_and_mask, len(dataset), 2**20)
    cameras = latent_cameras(dataset.cameras, downscale)
    count = int((cameras.height * cameras.width).sum())
    split = LatentSplit(photos, torch.zeros(count, 1), cameras, downscale)
    worst = 0.0
    for number, (picture, mask) in enumerate(photos):
        rays, _ = split.images([number], "cpu")
        assert bool(rays.directions.isfinite().all())
        known = 255 * colours(rays.origins[0].double().numpy(), rays.directions[0].double().numpy())
        height, width = (side // downscale for side in picture.shape[:2])  # the others reach into the padding
        corner = downscale // 2
        rows, columns = corner + downscale * np.arange(height), corner + downscale * np.arange(width)
        around = [picture.numpy()[rows + i][:, columns + j].astype(float) for i in (-1, 0) for j in (-1, 0)]
        error = np.abs(np.mean(around, axis=0) - known[:height, :width])
        if mask is not None:
            around = [mask.numpy()[rows + i][:, columns + j] for i in (-1, 0) for j in (-1, 0)]
            error = error[np.all(around, axis=0)]
        worst = max(worst, float(error.mean()))
    return worst


@pytest.mark.parametrize("name", CAMERAS)
def test_photo_and_rays_agree(name: str, tmp_path: Path) -> None:
    dataset = PhotoDataset(outputs(tmp_path, [name]))
    assert difference(dataset, 0) < EXACT
    assert latent_difference(dataset) < 2.5  # walls meet in edges between four pixels


def test_only_what_opencv_can_undistort_becomes_a_pinhole(tmp_path: Path) -> None:
    """Wide lenses keep their pictures: what is 1 degree wide in the photo stays as wide."""
    names = ["k1", "fisheye, 190 degrees", "k1 to k4 p1 p2", "equirectangular"]
    dataset = PhotoDataset(outputs(tmp_path, names))
    for number, name in enumerate(names[1:], start=1):
        assert int(dataset.cameras.camera_type[number]) == CAMERAS[name][0].value
        stored = np.asarray(Image.open(tmp_path / f"{number}.png"))
        picture, mask = dataset.photo_and_mask(number)
        stored = stored[: picture.shape[0], : picture.shape[1]]  # cropped to the size that the first has left
        assert np.array_equal(picture if mask is None else picture[mask], stored if mask is None else stored[mask])
    assert not bool(dataset.cameras.distortion_params[0].any())


def test_a_rig_of_all_lenses(tmp_path: Path) -> None:
    names = [name for name in CAMERAS if name != "orthophoto"]  # Nerfstudio mixes its rays with no others
    dataset = PhotoDataset(outputs(tmp_path, names))
    for number, name in enumerate(names):
        assert difference(dataset, number) < EXACT, name
    assert latent_difference(dataset) < 2.5


def test_a_rig_with_one_distorted_lens_is_cropped_to_one_size(tmp_path: Path) -> None:
    CAMERAS["straight"] = (PERSPECTIVE, (80, 64), (60, 60), (40, 32), NO_LENS)
    try:
        dataset = PhotoDataset(outputs(tmp_path, ["straight", "k1, barrel", "k1"]))
    finally:
        del CAMERAS["straight"]
    assert len({dataset.get_numpy_image(i).shape for i in range(3)}) == 1
    assert all(difference(dataset, i) < EXACT for i in range(3))


@pytest.mark.parametrize(
    "size, factor", [((161, 123), 0.35), ((161, 123), 0.65), ((200, 180), 0.35), ((200, 180), 0.5)]
)
def test_scaled_photos_and_cameras_agree(factor: float, size: tuple[int, int], tmp_path: Path) -> None:
    """`camera-res-scale-factor` rounds sides down, and the cameras follow the rounding: by little, by almost a pixel,
    where 180 x 0.35 is just below 63, and not at all."""
    for name, (kind, _, focal, centre, lens) in list(CAMERAS.items()):
        if kind is CameraType.ORTHOPHOTO:
            continue
        old = CAMERAS[name]
        across, down = size[0] / old[1][0], size[1] / old[1][1]
        CAMERAS[name] = (
            kind,
            size,
            (focal[0] * across, focal[1] * down),
            (centre[0] * across, centre[1] * down),
            lens,
        )
        try:
            dataset = PhotoDataset(outputs(tmp_path, [name]), scale_factor=factor)
        finally:
            CAMERAS[name] = old
        assert difference(dataset, 0) < (1.5 if "turns back" in name else 1.0), name


@pytest.mark.parametrize("rounding", [np.floor, np.ceil])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("with_original", [True, False])
def test_downscaled_folders_rounded_either_way(rounding: Any, factor: int, with_original: bool, tmp_path: Path) -> None:
    """As `images_2` of Mip-NeRF 360, whose sides are rounded up, and of ns-process-data, which rounds down."""
    size, focal, centre = (165 * 2 - 1, 123 * 2 - 1), (300.0, 290.0), (165.0, 122.0)
    small = (int(rounding(size[0] / factor)), int(rounding(size[1] / factor)))
    frames = []
    for name in ("images", f"images_{factor}"):
        (tmp_path / name).mkdir()
    for number in range(3):
        picture = Image.fromarray(photo(PERSPECTIVE, size, focal, centre, NO_LENS, pose_of(number)))
        picture.resize(small, Image.Resampling.BOX).save(tmp_path / f"images_{factor}" / f"{number}.png")
        if with_original:
            picture.save(tmp_path / "images" / f"{number}.png")
        frames.append({"file_path": f"images/{number}.png", "transform_matrix": pose_of(number).tolist()})
    meta = {"w": size[0], "h": size[1], "fl_x": focal[0], "fl_y": focal[1], "cx": centre[0], "cy": centre[1]}
    (tmp_path / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    parser = NerfstudioDataParserConfig(
        data=tmp_path,
        downscale_factor=factor,
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        eval_mode="all",
    ).setup()
    found = parser.get_dataparser_outputs("train")
    found.metadata["downscale_factor"] = factor
    dataset = PhotoDataset(found)
    if with_original or (rounding is np.ceil and factor == 2):
        assert max(difference(dataset, number) for number in range(3)) < 1.0
    assert dataset.get_numpy_image(0).shape[:2] == small[::-1]


def test_the_crop_radius_of_a_fisheye(tmp_path: Path) -> None:
    found = outputs(tmp_path, ["fisheye, 190 degrees"])
    found.cameras.metadata = {"fisheye_crop_radius": 33.0}
    dataset = PhotoDataset(found)
    _, mask = dataset.photo_and_mask(0)
    assert mask.mean() == pytest.approx(np.pi * 33**2 / 72**2, rel=0.01)
    assert difference(dataset, 0) < EXACT
    half = PhotoDataset(found, scale_factor=0.5).photo_and_mask(0)[1]
    assert half.mean() == pytest.approx(mask.mean(), rel=0.03)


def test_pixels_per_radian(tmp_path: Path) -> None:
    """A fisheye scene is rendered through a pinhole at as many as its photos have; a panorama counts otherwise."""
    from igae_nerfstudio.data.latent_cameras import latent_view
    from igae_nerfstudio.data.lenses import pixels_per_radian, without_distortion

    dataset = PhotoDataset(outputs(tmp_path, ["fisheye, 190 degrees", "equirectangular"]))
    resolution = pixels_per_radian(dataset.cameras)
    assert resolution[0].tolist() == pytest.approx([24.4, 24.4])
    assert resolution[1].tolist() == pytest.approx([128 / (2 * np.pi), 64 / np.pi])
    pinhole = without_distortion(dataset.cameras[0:1])
    assert latent_view(pinhole, 8, (20.0, 24.4)).scale == (1.0, 1.0)


def fisheye_capture(folder: Path, count: int = 48, size: int = 128) -> Path:
    """Photos of 190 degrees from inside the room, looking everywhere."""
    (folder / "images").mkdir(parents=True)
    focal, lens = size / 2 / np.radians(95), (0.01, -0.002, 0.0, 0.0, 0.0, 0.0)
    frames = []
    for number in range(count):
        pose = inside(number / count)
        picture = photo(FISHEYE, (size, size), (focal, focal), (size / 2, size / 2), lens, pose)
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.png")
        frames.append({"file_path": f"images/{number:03d}.png", "transform_matrix": pose.tolist()})
    meta = {"camera_model": "OPENCV_FISHEYE", "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2}
    meta |= {"w": size, "h": size, "k1": lens[0], "k2": lens[1], "fisheye_crop_radius": size / 2 - 1}
    (folder / "transforms.json").write_text(json.dumps({**meta, "frames": frames}))
    return folder


def inside(turn: float) -> np.ndarray:
    """A pose in the middle of the room, looking around once over a turn of 1."""
    pose = look_at_origin(azimuth=2 * np.pi * turn, elevation=0.25 * np.sin(14 * turn), radius=1.0)
    pose[:3, 3] = 0.8 * pose[:3, 0]  # aside, so that there is parallax
    return pose


@pytest.mark.slow
def test_a_perspective_render_of_a_fisheye_scene(tmp_path: Path) -> None:
    """Trained on photos of 190 degrees, rendered through a pinhole of 70 degrees that no photo has."""
    config = latent_config("tensorf", tmp_path, Path("bundled"), tmp_path)
    config.pipeline.latent_supervision_steps, config.pipeline.rgb_alignment_steps = 250, 250
    config.pipeline.latent_supervision_lr_factor = config.pipeline.rgb_alignment_lr_factor = 1.0
    config.optimizers["decoder"]["optimizer"].lr = 1e-3
    model = config.pipeline.model
    model.num_uniform_samples, model.num_samples, model.init_resolution, model.final_resolution = 40, 20, 48, 48
    config.pipeline.datamanager.images_per_batch = 4
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(
        data=fisheye_capture(tmp_path / "capture"),
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        scene_scale=2.2,
        eval_mode="interval",
    )
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    model = trainer.pipeline.eval().model
    errors = []
    for number in range(8):
        pose, focal, size = inside((number + 0.4) / 8), (68.0, 68.0), (96, 96)
        truth = photo(PERSPECTIVE, size, focal, (48.0, 48.0), NO_LENS, pose)
        camera = Cameras(torch.tensor(pose[None, :3], dtype=torch.float32), *focal, 48.0, 48.0, *size)
        rendered = model.get_outputs_for_camera(camera)["rgb"].numpy()
        Image.fromarray(np.hstack([truth, np.rint(255 * rendered).astype(np.uint8)])).save(tmp_path / f"{number}.png")
        errors.append(float(np.square(rendered - truth / 255).mean()))
    fisheye = trainer.pipeline.get_average_eval_image_metrics(step=0)["psnr"]
    perspective = -10 * np.log10(np.mean(errors))
    print(f"fisheye {fisheye:.2f} dB, perspective {perspective:.2f} dB, pictures in {tmp_path}")
    assert perspective > fisheye - 3
