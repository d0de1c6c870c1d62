"""Masks, photos of several sizes and fisheyes through both phases and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import latent_config, look_at_origin
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image

from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline

HIDDEN = (slice(8, 30), slice(10, 40))


def write_capture(folder: Path, sizes: list[tuple[int, int]], hidden: int | None = None, **lens: float | str) -> Path:
    """Six photos of each size (W, H), with masks where something is `hidden` under them."""
    frames = []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(6 * len(sizes)):
        width, height = sizes[number % len(sizes)]
        picture = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        picture = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        frame = {"file_path": f"images/{number:02d}.png", "transform_matrix": look_at_origin(number, 0.3).tolist()}
        if hidden is not None:
            picture[HIDDEN] = hidden
            mask = np.full((height, width), 255, np.uint8)
            mask[HIDDEN] = 0
            frame["mask_path"] = f"masks/{number:02d}.png"
            Image.fromarray(mask).save(folder / frame["mask_path"])
        Image.fromarray(picture).save(folder / frame["file_path"])
        frame |= {"fl_x": 70.0, "fl_y": 70.0, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
        frames.append(frame)
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    return folder


def pipeline_of(folder: Path, autoencoder_dir: Path, out: Path, method: str = "tensorf", **options) -> LatentPipeline:
    torch.manual_seed(0)
    config = latent_config(method, folder, autoencoder_dir, out, latent_supervision_steps=4, rgb_alignment_steps=4)
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=folder, downscale_factor=1)
    for name, value in options.items():
        setattr(config.pipeline.datamanager, name, value)
    return config.pipeline.setup(device="cpu")


def losses(pipeline: LatentPipeline) -> list[float]:
    """Of four steps, two of each phase."""
    torch.manual_seed(1)
    return [float(sum(pipeline.get_train_loss_dict(step)[1].values())) for step in (0, 1, 4, 5)]


@pytest.mark.parametrize(
    ("method", "options"), [("vanilla_nerf", {}), ("tensorf", {"random_latent_rays": 50, "alignment_patch_size": 2})]
)
def test_what_is_masked_changes_nothing(method: str, options: dict, tmp_path: Path, autoencoder_dir: Path) -> None:
    found = []
    for hidden in (0, 200):
        scene = write_capture(tmp_path / str(hidden), [(64, 48)], hidden)
        pipeline = pipeline_of(scene, autoencoder_dir, tmp_path, method, **options)
        found.append((losses(pipeline), pipeline.get_average_eval_image_metrics(step=0)))
    assert found[0] == found[1]
    unmasked = pipeline_of(write_capture(tmp_path / "u", [(64, 48)]), autoencoder_dir, tmp_path, method, **options)
    assert losses(unmasked) != found[0][0]


def test_the_loss_of_a_masked_batch_is_the_mean_over_its_targets(tmp_path: Path, autoencoder_dir: Path) -> None:
    pipeline = pipeline_of(write_capture(tmp_path / "s", [(64, 48)], 0), autoencoder_dir, tmp_path).eval()
    rays, batch = pipeline.datamanager.next_train(4)
    rendered = pipeline.model.scene(rays.flatten())["latent"].view(batch["latent"].shape)
    decoded = pipeline.model.decode(rendered, size=(48, 64))
    targets = torch.ones(48, 64, dtype=torch.bool)
    targets[HIDDEN] = False
    expected = (decoded - batch["image"]).square()[:, targets].mean()
    torch.testing.assert_close(pipeline.get_train_loss_dict(4)[1]["rgb_alignment_loss"], expected)


def test_photos_of_several_sizes(tmp_path: Path, autoencoder_dir: Path) -> None:
    """Portrait and landscape, and a smaller camera."""
    scene = write_capture(tmp_path / "s", [(64, 48), (48, 64), (40, 40)])
    for options in ({}, {"random_latent_rays": 60, "alignment_patch_size": 2}):
        pipeline = pipeline_of(scene, autoencoder_dir, tmp_path, **options)
        assert np.isfinite(losses(pipeline)).all()
        shapes = {tuple(pipeline.datamanager.next_train(4 + step)[1]["image"].shape[1:3]) for step in range(12)}
        assert shapes == {(48, 64), (64, 48), (40, 40)} or options  # else windows of one size
        assert pipeline.get_average_eval_image_metrics(step=0)["psnr"] > 0


def test_fisheye_photos(tmp_path: Path, autoencoder_dir: Path) -> None:
    lens = {"camera_model": "OPENCV_FISHEYE", "k1": 0.01, "k2": 0.0, "fisheye_crop_radius": 23.0}
    pipeline = pipeline_of(write_capture(tmp_path / "s", [(48, 48)], **lens), autoencoder_dir, tmp_path)
    assert np.isfinite(losses(pipeline)).all()
    valid = pipeline.datamanager.next_train(4)[1]["valid_mask"][0, ..., 0]
    assert float(valid.mean()) == pytest.approx(np.pi * 23**2 / 48**2, rel=0.02)
    assert pipeline.get_average_eval_image_metrics(step=0)["psnr"] > 0
    view = pipeline.datamanager.train_dataset.cameras[0:1]
    assert pipeline.model.get_outputs_for_camera(view)["rgb"].shape == (48, 48, 3)
    # An exporter asks for the rays of a picture and gets those of a pinhole, from which a camera can be told.
    pipeline.datamanager.train_split = None
    rays, _ = pipeline.datamanager.next_train(0)
    assert pipeline.model(rays)["rgb"].shape == (48, 48, 3)
