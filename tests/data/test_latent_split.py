"""What a step takes: rays, latents and pixels belong together, every pixel has its turn, and sizes do not mix."""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras

from igae_nerfstudio.data.latent_cache import compact
from igae_nerfstudio.data.latent_datamanager import _permutation
from igae_nerfstudio.data.latent_split import LatentSplit, Photos, batches_of_one_size

H, W, DOWNSCALE = 60, 45, 8  # latents 8 x 6, the last of them beyond the photo's edge
SIZES = [(H, W), (H, W), (40, 70)]


def numbered_split(sizes=SIZES[:2], masks=(None, None, None), weights: torch.Tensor | None = None) -> LatentSplit:
    """A latent pixel holds its image, row and column, a photo's pixel row, column and image; cameras are pinholes with
    a focal length of 10 latent pixels and the principal point in the corner."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        y, x = np.mgrid[0 : sizes[index][0], 0 : sizes[index][1]]
        return np.stack([y, x, np.full_like(y, index)], axis=-1).astype(np.uint8), masks[index]

    latents = []
    for i, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(-(-height // 8)), torch.arange(-(-width // 8)), indexing="ij")
        latents.append(torch.stack([torch.full_like(y, i), y, x], dim=-1).flatten(0, 1).float())
    cameras = Cameras(
        torch.eye(4)[None, :3].repeat(len(sizes), 1, 1),
        *torch.tensor([10.0, 10.0, 0.0, 0.0])[:, None, None].expand(4, len(sizes), 1),
        width=torch.tensor([[-(-size[1] // 8)] for size in sizes]),
        height=torch.tensor([[-(-size[0] // 8)] for size in sizes]),
    )
    return LatentSplit(Photos(read, len(sizes), 2**20), torch.cat(latents), cameras, DOWNSCALE, weights=weights)


def pixels_of(rays) -> torch.Tensor:
    """(..., 3): image, row and column that rays belong to."""
    x, y, z = rays.directions.unbind(-1)
    return torch.stack([rays.camera_indices[..., 0].float(), 10 * y / z - 0.5, -10 * x / z - 0.5], dim=-1)


def test_windows_are_whole_in_rays_latents_and_pixels() -> None:
    split, seen = numbered_split(), torch.zeros(2, H, W)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rays, batch = split.patches([1, 0], 2, 1, generator, "cpu")
        torch.testing.assert_close(pixels_of(rays), batch["latent"], atol=1e-4, rtol=0)
        assert batch["latent"].shape == (2, 4, 4, 3)
        assert batch["latent"][:, 0, 0, 0].tolist() == [1, 0]
        for latent, image, mask in zip(batch["latent"], batch["image"], batch["valid_mask"][..., 0]):
            number, top, left = (int(value) for value in latent[0, 0])
            y, x = (255 * image[..., 0]).round().long(), (255 * image[..., 1]).round().long()
            good = mask.bool()
            assert torch.equal(y[good], (top * DOWNSCALE + torch.arange(32)[:, None]).expand(32, 32)[good])
            assert torch.equal(x[good], (left * DOWNSCALE + torch.arange(32)).expand(32, 32)[good])
            # Outside of the margin, or at the image's own edge.
            for line, first, end, sides in ((good.any(1), top, top + 4, 8), (good.any(0), left, left + 4, 6)):
                length = H if sides == 8 else W
                begin = 0 if first == 0 else DOWNSCALE
                stop = min(32, length - first * DOWNSCALE) if end == sides else 32 - DOWNSCALE
                assert line.nonzero().flatten().tolist() == list(range(begin, stop))
            seen[number, y[good], x[good]] += 1
    assert bool((seen > 0).all())
    assert 0.2 < float(seen.min() / seen.max())  # no pixel is left out for long


def test_a_window_larger_than_the_image_is_the_image() -> None:
    split = numbered_split()
    _, batch = split.patches([0], 8, 5, torch.Generator(), "cpu")
    assert torch.equal(batch["latent"][0], split.latents[:48].view(8, 6, 3))
    valid = batch["valid_mask"][0, ..., 0].bool()
    assert valid.sum() == H * W and bool(valid[:H, :W].all())


def test_images_of_several_sizes() -> None:
    split = numbered_split(SIZES)
    assert split.groups == [[0, 1], [2]]
    for group, (height, width) in (([0, 1], (8, 6)), ([2], (5, 9))):
        rays, batch = split.images(group, "cpu")
        assert batch["latent"].shape == (len(group), height, width, 3) and "valid_mask" not in batch
        torch.testing.assert_close(pixels_of(rays), batch["latent"], atol=1e-4, rtol=0)
        assert torch.equal((255 * batch["image"][:, 0, 0, 2]).long(), torch.tensor(group))
    rays, batch = split.random_rays(300, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixels_of(rays), batch["latent"], atol=1e-4, rtol=0)
    assert set(batch["latent"][:, 0].tolist()) == {0, 1, 2}


def test_masked_pixels_are_no_targets() -> None:
    """In images, windows and random rays."""
    mask = np.ones((H, W), bool)
    mask[:16, :24] = False
    weights = torch.rand(2 * 48, generator=torch.Generator().manual_seed(1))
    weights[:20] = 0
    split = numbered_split(masks=(mask, None), weights=weights)
    _, batch = split.images([0, 1], "cpu")
    assert np.array_equal(batch["valid_mask"][0, ..., 0].numpy(), mask) and bool(batch["valid_mask"][1].all())
    assert torch.equal(batch["latent_weight"].flatten(), weights)
    _, batch = split.patches([0], 8, 5, torch.Generator(), "cpu")
    assert np.array_equal(batch["valid_mask"][0, :H, :W, 0].numpy(), mask)
    _, batch = split.random_rays(500, torch.Generator().manual_seed(0))
    place = (48 * batch["latent"][:, 0] + 6 * batch["latent"][:, 1] + batch["latent"][:, 2]).long()
    assert int(place.min()) >= 20 and torch.equal(batch["latent_weight"][:, 0], weights[place])
    assert len(split.sample()[0]) == int((weights > 0).sum()) and len(split.sample(most=30)[0]) <= 30


@pytest.mark.parametrize("sizes", [[7], [5, 3, 1], [4, 4]])
def test_every_image_has_its_turn_in_batches_of_one_size(sizes: list[int]) -> None:
    starts = np.cumsum([0, *sizes])
    groups = [list(range(first, first + size)) for first, size in zip(starts, sizes)]
    order = partial(_permutation, 42)
    seen = Counter()
    for step in range(420):
        images = batches_of_one_size(groups, 2, step, order)
        assert len(images) == 2 and any(set(images) <= set(group) for group in groups)
        assert images == batches_of_one_size(groups, 2, step, order)
        seen.update(images)
    counts = [seen[image] for image in range(sum(sizes))]
    assert max(counts) <= 2 * min(counts)  # a group whose last batch is not full is seen more often
    if len(sizes) == 1:  # as Nerfstudio orders pixels: each image once before any is seen again
        row = [image for step in range(7) for image in batches_of_one_size(groups, 2, step, order)]
        assert sorted(row[:7]) == sorted(row[7:]) == list(range(7))


def test_photos_that_do_not_fit_are_read_again() -> None:
    reads: Counter[int] = Counter()
    lock = threading.Lock()

    def read(index: int) -> tuple[np.ndarray, None]:
        with lock:
            reads[index] += 1
        return np.full((10, 10, 3), index, np.uint8), None

    photos = Photos(read, 20, bytes_in_memory=5 * 300)
    for _ in range(2):
        assert [int(photo[0, 0, 0]) for photo, _ in photos] == list(range(20))
    assert [reads[index] for index in range(20)] == [1] * 5 + [2] * 15
    photos.expect([19, 3])
    assert int(photos[19][0][0, 0, 0]) == 19 and reads[19] == 3 and reads[3] == 1


def test_latents_are_kept_in_half_precision_unless_that_changes_them() -> None:
    latents = 3 * torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(0))
    assert compact(latents).dtype == torch.float16
    for lost in (1e5 * latents, 1e-7 * latents, 1000 + latents):  # too large, too small, too far from 0
        assert torch.equal(compact(lost), lost)
