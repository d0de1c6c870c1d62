"""Crops of photos: which, from where, again the same, and photos that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from PIL import Image

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes import real_images
from igae_nerfstudio.scenes.real_images import RealImages, random_crop

SIZE = 32


def write_flat(folder: Path, count: int, size: tuple[int, int] = (40, 48)) -> Path:
    """Photo i is of one grey value, 10 i: a crop tells which photo it is from."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (10 * i,) * 3).save(folder / f"{i:03d}.png")
    return folder


def which(batch: torch.Tensor) -> list[int]:
    """The photos of a batch of crops of `write_flat`'s."""
    assert float((batch - batch[:, :1, :1, :1]).abs().max()) == 0.0
    return (batch[:, 0, 0, 0] * 25.5).round().int().tolist()


def message(call: Callable[[], Any]) -> str:
    """The one line of the `InputError` that a call raises."""
    with pytest.raises(InputError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Eight photos of noise, of several sizes, two of them in a subfolder."""
    rng = np.random.default_rng(0)
    for i in range(8):
        folder = tmp_path / "noise" / ("more" if i > 5 else "")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (60 + 10 * i, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    return tmp_path / "noise"


def test_files_are_found_sorted_and_split(tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "photos", 24)
    (folder / "005.png").rename(folder / "005.PNG")
    write_flat(folder / "zoo", 1)
    write_flat(folder / ".hidden", 1)
    (folder / ".000.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no photo")
    images = RealImages.open(folder, SIZE)
    everything = sorted(
        [folder / f"{i:03d}.{'PNG' if i == 5 else 'png'}" for i in range(24)] + [folder / "zoo/000.png"]
    )
    assert images.validation == [everything[0], everything[20]]
    assert images.train == [path for path in everything if path not in images.validation]
    assert RealImages.open(folder, SIZE, hold_out_every=None).train == everything
    assert RealImages.open(folder, SIZE, hold_out_every=None).validation == []


def test_every_epoch_shows_every_photo_once_in_another_order(tmp_path: Path) -> None:
    images = RealImages.open(write_flat(tmp_path, 10), SIZE, hold_out_every=None)
    seen = [photo for step in range(10) for photo in which(images.batch(step, 4, seed=3))]
    epochs = [seen[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert which(images.batch(0, 4, seed=4)) != seen[:4]


def test_a_batch_follows_from_seed_and_step_alone(noise: Path) -> None:
    one = RealImages.open(noise, SIZE, hold_out_every=None)
    batches = [one.batch(step, 3, seed=1) for step in range(6)]
    assert batches[0].shape == (3, 3, SIZE, SIZE) and batches[0].dtype == torch.float32
    assert 0.0 <= float(batches[0].min()) and float(batches[0].max()) <= 1.0
    fresh = RealImages.open(noise, SIZE, hold_out_every=None)
    for step in (5, 0, 3):  # in any order, as after a resume
        torch.testing.assert_close(fresh.batch(step, 3, seed=1), batches[step], rtol=0, atol=0)
    torch.testing.assert_close(one.batch(2, 3, seed=1), batches[2], rtol=0, atol=0)
    assert not torch.equal(fresh.batch(0, 3, seed=2), batches[0])
    # A photo is cropped in another way in the next epoch.
    assert not any(torch.equal(a, b) for a in fresh.batch(0, 8, seed=1) for b in fresh.batch(1, 8, seed=1))


def test_only_the_next_batch_is_decoded_ahead(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[tuple[int, ...]] = []
    original = real_images.random_crop

    def count(path: Path, size: int, seed: tuple[int, ...]) -> np.ndarray:
        seeds.append(seed)
        return original(path, size, seed)

    monkeypatch.setattr(real_images, "random_crop", count)
    images = RealImages.open(noise, SIZE, hold_out_every=None)
    for step in (0, 1, 2, 50):
        images.batch(step, 3, seed=0)
    images.batch(51, 3, seed=0)
    images._pool.shutdown()  # ends what is decoded ahead
    steps = [position // 3 for _, _, position in seeds]
    assert sorted(set(steps)) == [0, 1, 2, 3, 50, 51, 52]
    assert len(seeds) == len(set(seeds))  # nothing twice


def ramp(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom: a crop tells its place and scale."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.rint(255 * np.stack([x, y, 0 * x], axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_crops_have_the_place_scale_and_mirroring_they_should(tmp_path: Path, suffix: str) -> None:
    """Against the ramp in closed form: the place and side that the photo shows, over many crops. The JPEG, eight
    times as large as the crops or more, is decoded at a part of its size."""
    width, height, size = 480, 320, 16
    path = tmp_path / f"ramp.{suffix}"
    ramp(width, height).save(path, quality=95)
    sides, lefts, mirrored = [], [], []
    for i in range(200):
        crop = random_crop(path, size, (1, 0, i)).astype(np.float64) / 255
        across = (crop[:, -4, 0] - crop[:, 3, 0]).mean() / (size - 7) * size * width
        down = (crop[-4, :, 1] - crop[3, :, 1]).mean() / (size - 7) * size * height
        assert abs(across) == pytest.approx(down, abs=6)  # square
        mirrored.append(across < 0)
        sides.append(down)
        lefts.append((crop[:, :, 0].mean() * width - down / 2) / max(width - down, 1))
    assert min(sides) > size - 6 and max(sides) < height + 6
    # Half of them 320, half log-uniform between 16 and 320: the mean of the logarithms, and an eighth below 33.8.
    assert np.log(np.clip(sides, 1, None)).mean() == pytest.approx(np.log(16) / 4 + np.log(320) * 3 / 4, abs=0.15)
    assert 12 < sum(side < 33.8 for side in sides) < 40
    assert 70 < sum(mirrored) < 130
    assert np.mean(lefts) == pytest.approx(0.5, abs=0.06) and min(lefts) < 0.06 and max(lefts) > 0.94


def test_large_jpegs_are_decoded_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever part of its size a JPEG is decoded: the crop differs little from the one of the whole picture."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture.resize((1200, 900), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    loaded = []
    original = Image.Image.resize

    def resize(image: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        loaded.append(image.size)
        return original(image, *args, **kwargs)

    seeds = [(1, 0, i) for i in range(20)]
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        small = [random_crop(tmp_path / "large.jpg", SIZE, seed) for seed in seeds]
    assert {(1200, 900), (600, 450), (300, 225), (150, 113)} == set(loaded)
    Image.open(tmp_path / "large.jpg").save(tmp_path / "large.png")
    for seed, crop in zip(seeds, small):
        whole = random_crop(tmp_path / "large.png", SIZE, seed)
        assert np.abs(whole.astype(float) - crop).mean() < 3


def test_small_photos_are_scaled_up(tmp_path: Path) -> None:
    folder = write_flat(tmp_path, 2, size=(20, 17))
    ramp(24, 20).save(folder / "ramp.png")
    images = RealImages.open(folder, SIZE, hold_out_every=None)
    assert images.batch(0, 3, seed=0).shape == (3, 3, SIZE, SIZE)
    crop = random_crop(folder / "ramp.png", SIZE, (0,)).astype(float)
    assert crop[0, :, 1].mean() < 12 and crop[-1, :, 1].mean() > 243  # the whole height


def test_validation_is_the_centre_square(tmp_path: Path) -> None:
    image = ramp(100, 60)
    for i in range(4):
        image.save(tmp_path / f"{i}.png")
    images = RealImages.open(tmp_path, SIZE, hold_out_every=2)
    batch = images.validation_batch()
    assert batch.shape == (2, 3, SIZE, SIZE)
    square = image.crop((20, 0, 80, 60)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(batch[1].permute(1, 2, 0), np.asarray(square) / 255, atol=1e-6)
    assert images.validation_batch(limit=1).shape[0] == 1
    assert RealImages.open(tmp_path, SIZE, hold_out_every=None).validation_batch().shape == (0, 3, SIZE, SIZE)


def test_bad_folders(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        assert f"{folder} has 0 real images" in message(lambda folder=folder: RealImages.open(folder, SIZE))
    assert "6 of them held out" in message(lambda: RealImages.open(write_flat(tmp_path, 6), SIZE, hold_out_every=1))


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "gone"])
def test_bad_photos_are_named_when_they_are_needed(noise: Path, kind: str) -> None:
    images = RealImages.open(noise, SIZE, hold_out_every=2)
    for bad in (images.train[2], images.validation[1]):
        if kind == "cut":
            bad.write_bytes(bad.read_bytes()[:1000])
        elif kind == "gone":
            bad.unlink()
        else:
            bad.write_bytes(b"" if kind == "empty" else b"no photo")
    expected = "does not exist" if kind == "gone" else "cannot be read"
    text = message(lambda: [images.batch(step, 1, seed=0) for step in range(4)])
    assert f"image {images.train[2]} {expected}" in text
    assert f"image {images.validation[1]} {expected}" in message(images.validation_batch)
