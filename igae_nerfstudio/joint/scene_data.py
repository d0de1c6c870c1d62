"""The scenes of a training: their views, codes, and latents that were encoded once; and real images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from igae_nerfstudio.console import progress_bar
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.model import Batch, JointModel
from igae_nerfstudio.scenes.plane_store import PlaneStore
from igae_nerfstudio.scenes.real_images import RealImages
from igae_nerfstudio.scenes.scene_views import SceneViews
from igae_nerfstudio.scenes.view_schedule import ViewGroup


class SceneData:
    """Makes batches of views.

    Args:
        model: makes planes of codes; on the device that batches go to.
        views: pictures and cameras.
        folder: for the codes with their optimiser, and for the latents.
        latents_name: changes with the encoder.
        real: real images.
    """

    def __init__(
        self, model: JointModel, views: SceneViews, folder: Path, latents_name: str, real: RealImages | None = None
    ) -> None:
        self.model, self.views, self.real = model, views, real
        self.codes = PlaneStore(folder / "planes", (views.num_scenes, model.shared.code_numbers))
        self.counts = [views.num_views(scene) for scene in range(views.num_scenes)]
        self.downscale = model.autoencoder.downscale
        self.device = model.normalizer.mean.device
        self._latents_path = folder / f"latents-{latents_name}-{views.fingerprint[:8]}.f16"
        self.latents = torch.empty(0)
        """z (V, c, h, w) of all views, float16, mapped from a file by `encode_views`."""

    @torch.no_grad()
    def encode_views(self, accelerator: Any, quiet: bool = False) -> None:
        """Encode all views, once a machine, unless it was done before."""
        if accelerator.is_local_main_process and not self._latents_path.exists():
            flat = [(scene, view) for scene, count in enumerate(self.counts) for view in range(count)]

            def write(file: Any) -> None:
                with progress_bar("Encoding views", quiet) as progress:
                    for start in progress.track(range(0, len(flat), 32)):
                        scenes, views = torch.tensor(flat[start : start + 32]).T
                        latents = self.model.encode(self.views.images(scenes, views).to(self.device))
                        file.write(latents.half().cpu().contiguous().numpy().tobytes())

            write_atomically(self._latents_path, write)
        accelerator.wait_for_everyone()
        h, w = self.views.height // self.downscale, self.views.width // self.downscale
        shape = (self.views.total_views, self.model.autoencoder.latent_channels, h, w)
        path, count = str(self._latents_path), math.prod(shape)
        self.latents = torch.from_file(path, shared=False, size=count, dtype=torch.float16).view(shape)

    def some_latents(self) -> Tensor:
        """z (n, h, w, c) of about 2,000 views, evenly spread."""
        return self.latents[:: max(1, len(self.latents) // 2000)].permute(0, 2, 3, 1).to(self.device).float()

    def some_real_images(self, seed: int, count: int = 200) -> Tensor | None:
        """About so many crops of real images (n, 3, H, W); None where there are none."""
        if self.real is None:
            return None
        size = min(10, len(self.real.train))
        return torch.cat([self.real.batch(step, size, seed) for step in range(-(-count // size))])

    def batch(
        self,
        groups: Sequence[ViewGroup],
        scenes: Sequence[int] | None = None,
        images: bool = False,
        rays_per_view: int | None = None,
    ) -> Batch:
        """A batch of views, with gradient to codes and what scenes share.

        Args:
            groups: the views, equally many of each scene.
            scenes: at least the scenes of `groups`; None: those.
            images: with pictures in place of the latents that were encoded before.
            rays_per_view: so many pixels of every view, the same random ones of each; None: all.
        """
        scenes = sorted({group.scene for group in groups}) if scenes is None else list(scenes)
        scene_of_view = torch.tensor([group.scene for group in groups for _ in group.views])
        views = torch.tensor([view for group in groups for view in group.views])
        flat = self.views.flat_index(scene_of_view, views)
        origins, directions = self.views.cameras(scene_of_view, views).latent_rays(self.downscale)
        sides = (origins.shape[1], origins.shape[2])
        origins, directions = origins.flatten(1, 2), directions.flatten(1, 2)
        latents = None if images else self.latents[flat].float()
        if rays_per_view is not None and rays_per_view < origins.shape[1]:
            pixels = torch.randperm(origins.shape[1])[:rays_per_view]
            origins, directions, sides = origins[:, pixels], directions[:, pixels], (rays_per_view, 1)
            latents = None if latents is None else latents.flatten(2)[:, :, pixels, None]
        codes = self.codes.load(scenes, self.device).requires_grad_(True)
        return Batch(
            scenes=scenes,
            codes=codes,
            planes=self.model.shared(codes),
            place=torch.tensor([scenes.index(group.scene) for group in groups], device=self.device),
            views=flat,
            origins=origins.reshape(len(groups), -1, 3).to(self.device),
            directions=directions.reshape(len(groups), -1, 3).to(self.device),
            sides=sides,
            latents=None if latents is None else latents.to(self.device),
            images=self.views.images(scene_of_view, views).to(self.device) if images else None,
        )
