"""Windows of images for RGB alignment: rays, latents and pixels belong together, and every pixel has its turn."""

from __future__ import annotations

import torch
from nerfstudio.cameras.rays import RayBundle

from igae_nerfstudio.data.latent_split import LatentSplit, compact

H, W, DOWNSCALE = 60, 45, 8  # latents 8 x 6, the last of them beyond the photo's edge


def numbered_split() -> LatentSplit:
    """Two images; a latent pixel holds its image, row and column, a ray the same, a photo's pixel row and column."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    latents = torch.stack([torch.stack([torch.full((8, 6), float(i)), rows, columns], dim=-1) for i in range(2)])
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    photos = torch.stack([torch.stack([y, x, torch.full((H, W), i)], dim=-1) for i in range(2)]).to(torch.uint8)
    index = latents[..., :1].long()
    rays = RayBundle(origins=latents, directions=latents, pixel_area=latents[..., :1], camera_indices=index)
    return LatentSplit(photos, latents, rays, DOWNSCALE)


def test_windows_are_whole_in_rays_latents_and_pixels() -> None:
    split, seen = numbered_split(), torch.zeros(2, H, W)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        rays, batch = split.patches([1, 0], 2, 1, generator, "cpu")
        assert torch.equal(rays.origins, batch["latent"]) and batch["latent"].shape == (2, 4, 4, 3)
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
    assert torch.equal(batch["latent"][0], split.latents[0])
    valid = batch["valid_mask"][0, ..., 0].bool()
    assert valid.sum() == H * W and bool(valid[:H, :W].all())


def test_latents_are_kept_in_half_precision_unless_that_changes_them() -> None:
    latents = 3 * torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(0))
    assert compact(latents).dtype == torch.float16
    for lost in (1e5 * latents, 1e-7 * latents, 1000 + latents):  # too large, too small, too far from 0
        assert torch.equal(compact(lost), lost)
