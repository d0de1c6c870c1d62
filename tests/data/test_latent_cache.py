"""What identifies an entry, and what happens to entries that are damaged or cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_autoencoder

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.data import latent_cache
from igae_nerfstudio.data.latent_cache import LatentCache
from igae_nerfstudio.files import write_atomically

IMAGES = [
    torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)) for i in range(3)
]
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def cache(tmp_path: Path) -> LatentCache:
    return LatentCache(tmp_path / "latents", Autoencoder(tiny_autoencoder()))


def test_the_second_time_nothing_is_encoded(cache: LatentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first, report = cache.latents(IMAGES, NAMES)
    assert (report.found, report.encoded) == (0, 3)
    expected = cache.autoencoder.encode(IMAGES[1].permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    torch.testing.assert_close(first[1].float(), expected, atol=1e-3 * float(expected.std()), rtol=1e-3)

    again = LatentCache(cache.directory, Autoencoder(tiny_autoencoder()))
    monkeypatch.setattr(again.autoencoder, "encode", lambda images: pytest.fail("encoded again"))
    second, report = again.latents(IMAGES, NAMES)
    assert (report.found, report.encoded) == (3, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_photos_of_one_size_are_encoded_together(cache: LatentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; some of them are in the cache already."""
    images = [IMAGES[0], IMAGES[1], IMAGES[2][:32], IMAGES[1] // 2, IMAGES[0] // 2, IMAGES[0] // 3, IMAGES[1] // 3]
    names = [str(number) for number in range(len(images))]
    cache.latents([images[3]], ["3"])
    expected, _ = LatentCache(cache.directory / "one", cache.autoencoder).latents(images, names)
    sizes, encode = [], cache.autoencoder.encode
    monkeypatch.setattr(cache.autoencoder, "encode", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(cache, "_together", lambda image: 2)
    latents, report = cache.latents(iter(images), names)
    assert sizes == [2, 1, 2, 1] and (report.found, report.encoded) == (1, 6)
    for latent, one in zip(latents, expected):
        torch.testing.assert_close(latent, one, atol=1e-2, rtol=1e-2)


def test_the_key_holds_all_that_decides_the_latents(cache: LatentCache) -> None:
    image = IMAGES[0]
    one_bit = image.clone()
    one_bit[3, 5, 1] ^= 1
    other_encoder = LatentCache(cache.directory, Autoencoder(tiny_autoencoder(seed=1)))
    other_precision = LatentCache(cache.directory, Autoencoder(tiny_autoencoder(), precision="bfloat16"))
    keys = [
        cache.key(image),
        cache.key(one_bit),
        cache.key(image.reshape(48, 40, 3)),  # the same bytes, another size
        other_encoder.key(image),
        other_precision.key(image),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key(image.clone()) == keys[0]


def test_the_sidecar_can_be_read_by_a_person(cache: LatentCache) -> None:
    cache.latents(IMAGES[:1], NAMES[:1])
    sidecar = json.loads((cache.directory / f"{cache.key(IMAGES[0])}.json").read_text())
    assert sidecar["image"] == "a.png"
    assert sidecar["latent_size"] == [5, 6, 6]
    assert sidecar["encoder_sha256"] == cache.autoencoder.encoder_hash
    assert not list(cache.directory.glob("*.part"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "sidecar"])
def test_damage_is_noticed_and_repaired(cache: LatentCache, damage: str) -> None:
    good, _ = cache.latents(IMAGES, NAMES)
    entry = cache.directory / f"{cache.key(IMAGES[1])}.npy"
    if damage == "truncated":
        entry.write_bytes(entry.read_bytes()[:-100])
    elif damage == "flipped":
        array = np.load(entry)
        array[0, 0, 0] += 1
        np.save(entry, array)
    elif damage == "missing":
        entry.unlink()
    else:
        entry.with_suffix(".json").write_text("{")
    repaired, report = cache.latents(IMAGES, NAMES)
    assert (report.found, report.encoded, report.damaged) == (2, 1, ["b.png"])
    assert torch.equal(repaired[1], good[1])
    assert cache.latents(IMAGES, NAMES)[1].found == 3


def test_a_full_disk_costs_only_the_cache(cache: LatentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path, write, scratch=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latent_cache, "write_atomically", full)
    latents, report = cache.latents(IMAGES, NAMES)
    assert len(latents) == 3 and report.encoded == 3
    assert "No space left on device" in report.unwritable and str(cache.directory) in report.unwritable


def test_a_process_that_dies_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def die(file):
        file.write(b"new, but only ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, die)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
