"""A latent scene seen through a decoder: x~_p = D(F_theta(p)) (paper, equation 1).

This is the model that Nerfstudio's viewer, renderer, evaluator and exporters meet. Whatever camera they ask for,
they get pictures of its size: `rgb` (decoded), `depth`, `accumulation`, and `latent`, a preview in three colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.base_model import Model
from torch import Tensor
from torch.nn import Parameter

from igae_nerfstudio import __version__
from igae_nerfstudio.autoencoder.autoencoder import SEAMLESS, Decoder, decoder_margin, in_tiles
from igae_nerfstudio.autoencoder.normalization import LatentNormalizer
from igae_nerfstudio.autoencoder.preview import LatentPreview
from igae_nerfstudio.data.latent_cameras import latent_view, pinhole_camera_of
from igae_nerfstudio.data.lenses import pixels_per_radian
from igae_nerfstudio.errors import InputError


@dataclass
class RenderedView:
    """What one camera sees."""

    rgb: Tensor
    """(H, W, 3), colours in [0, 1]."""
    depth: Tensor
    """(H, W, 1), distance along the ray in scene units."""
    accumulation: Tensor
    """(H, W, 1), opacity in [0, 1]."""
    latent: Tensor | None = None
    """(h, w, c), what was decoded: normalised latents of the pixel size of training. None for RGB methods."""
    colour: Tensor | None = None
    """(H, W, 3) in [0, 1], the scene's own colours, averaged over latent pixels. None without a colour head."""


@dataclass
class ViewerState:
    """What the viewer has been told to show (`pipelines/viewer_panel.py`); training and metrics do not read it."""

    decoder: Callable[[Tensor], Tensor] | None = None
    """Latents (1, c, h, w) -> pictures (1, 3, H, W); None: the scene's own decoder."""
    channel: int | None = None
    """The latent channel to show in grey; None: the preview of all."""


SAME_SURFACE = 0.05
"""Relative difference of depths below which neighbouring latent pixels show one surface."""


def enlarged_geometry(depth: Tensor, accumulation: Tensor, factor: int) -> Tensor:
    """Depth and accumulation of latent pixels (h, w, 1) for the pixels that they cover, (1, 2, h l, w l).

    Between the pixels of a surface depth is interpolated; across the edge of one it jumps, as it does in the scene.
    Means of a surface and what lies behind it would be points in the air, which `ns-export` would keep.
    """
    depth, accumulation = (image.permute(2, 0, 1)[None] for image in (depth, accumulation))
    weighted = F.interpolate(
        torch.cat([depth * accumulation, accumulation], dim=1), scale_factor=factor, mode="bilinear"
    )
    smooth = weighted[:, :1] / weighted[:, 1:].clamp(min=1e-6)
    nearest = F.interpolate(depth, scale_factor=factor, mode="nearest")
    one_surface = (smooth - nearest).abs() < SAME_SURFACE * nearest
    return torch.cat([torch.where(one_surface, smooth, nearest), weighted[:, 1:]], dim=1)


class DecodedScene(Model):
    """A scene model, the affine map of its latents, and the decoder.

    Args:
        scene: renders normalised latents; does not know what they are for.
        decoder: D; fine-tuned with the scene.
        normalizer: y <-> z.
        architecture: the autoencoder's diffusers config as JSON, stored in the checkpoint.
        downscale: l.
        colour_head: the scene renders three more channels, averaged colours.
    """

    focal_range: Tensor
    """(2,): smallest and largest `pixels_per_radian` of the training cameras, a pinhole's focal lengths."""

    def __init__(
        self,
        scene: Any,
        decoder: Decoder,
        normalizer: LatentNormalizer,
        architecture: str,
        downscale: int,
        colour_head: bool = False,
    ) -> None:
        super().__init__(scene.config, scene.scene_box, scene.num_train_data)
        self.scene: Any = scene  # Nerfstudio's model under a `LatentModel`
        # channels_last: a quarter faster on CPUs, and on tensor cores
        self.decoder: Decoder = decoder.to(memory_format=torch.channels_last)
        self.normalizer = normalizer
        self.colour_normalizer = LatentNormalizer(3) if colour_head else None
        self.latent_channels = len(normalizer.mean)
        self.preview = LatentPreview(self.latent_channels)
        self.architecture = architecture
        self.downscale = downscale
        self.viewer_state = ViewerState()
        self.register_buffer("focal_range", torch.ones(2))

    def populate_modules(self) -> None:
        """The modules are handed over ready-made."""

    # What is in a checkpoint beside the weights ---------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "autoencoder": self.architecture,
            "downscale": self.downscale,
            "latent_channels": self.latent_channels,
            "colour_head": self.colour_normalizer is not None,
            "version": __version__,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Checked by the pipeline before loading."""

    # Rendering -----------------------------------------------------------------------------------------------

    def set_training_cameras(self, cameras: Cameras) -> None:
        """Remember the pixel sizes at which the decoder is trained."""
        focals = pixels_per_radian(cameras).float()
        self.focal_range.copy_(torch.stack([focals.min(), focals.max()]))

    def targets(self, latents: Tensor, colours: Tensor | None = None) -> Tensor:
        """What the scene is to render, (..., c) or (..., c + 3): normalised latents (..., c) and colours (..., 3)."""
        if self.colour_normalizer is None:
            return self.normalizer.normalize(latents)
        assert colours is not None
        return torch.cat([self.normalizer.normalize(latents), self.colour_normalizer.normalize(colours)], dim=-1)

    def decode(
        self,
        latents: Tensor,
        size: tuple[int, int] | None = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """x~ = D(z~): normalised latents (B, h, w, c) -> images (B, H, W, 3), not clamped, with gradient.

        Args:
            latents: rendered, normalised.
            size: (H, W) to crop to; None keeps the whole (h l, w l).
            decoder: (B, c, h, w) -> (B, 3, H, W); None: the scene's own.
        """
        latents = self.normalizer.denormalize(latents).permute(0, 3, 1, 2)
        if decoder is not None:
            images = decoder(latents)
        elif torch.is_grad_enabled():
            images = self.decoder(latents)
        else:
            images = in_tiles(self.decoder, latents, 1, self.downscale, lambda: self._decoder_margin)
        images = images.permute(0, 2, 3, 1)
        return images if size is None else images[:, : size[0], : size[1]]

    @cached_property
    def _decoder_margin(self) -> int | None:
        return decoder_margin(self.decoder, self.latent_channels, SEAMLESS)

    @torch.no_grad()
    def render(
        self,
        camera: Cameras,
        obb_box: OrientedBox | None = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
    ) -> RenderedView:
        """Render one camera of any size and focal length, batch shape () or (1,); `decoder` as in `decode`."""
        low, high = self.focal_range.tolist()
        view = latent_view(camera.to(self.device), self.downscale, (low, high))
        outputs = self.scene.get_outputs_for_camera(view.camera, obb_box)
        geometry = enlarged_geometry(outputs["depth"], outputs["accumulation"], self.downscale)
        latent, colour = outputs["latent"][..., : self.latent_channels], outputs["latent"][..., self.latent_channels :]
        rgb = self.decode(latent[None], decoder=decoder).permute(0, 3, 1, 2).float().clamp(0, 1)
        if self.colour_normalizer is not None:
            coarse = self.colour_normalizer.denormalize(colour).permute(2, 0, 1)[None]
            rgb = torch.cat([rgb, F.interpolate(coarse, scale_factor=self.downscale, mode="bilinear")], dim=1)
        rgb, geometry = (view.resample(image)[0].permute(1, 2, 0) for image in (rgb, geometry))
        return RenderedView(
            rgb[..., :3].clamp(0, 1),
            geometry[..., :1],
            geometry[..., 1:].clamp(0, 1),
            latent,
            None if self.colour_normalizer is None else rgb[..., 3:].clamp(0, 1),
        )

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """`rgb` (H, W, 3), `depth` (H, W, 1), `accumulation` (H, W, 1) and `latent` (H, W, 3) of a camera; with a
        colour head also `rgb_coarse` (H, W, 3)."""
        shown = self.viewer_state
        view = self.render(camera, obb_box, shown.decoder)
        assert view.latent is not None
        height, width = view.rgb.shape[:2]
        if shown.channel is None:
            preview = self.preview(view.latent)
        else:
            preview = view.latent[..., shown.channel, None].clamp(0, 1).expand(-1, -1, 3)
        preview = preview.permute(2, 0, 1)[None]
        rows, columns = (
            ((torch.arange(n, device=preview.device) + 0.5) * (m / n)).long().clamp(max=m - 1)
            for n, m in zip((height, width), preview.shape[-2:])
        )
        outputs = {
            "rgb": view.rgb,
            "depth": view.depth,
            "accumulation": view.accumulation,
            "latent": preview[0][:, rows][:, :, columns].permute(1, 2, 0),
        }
        return outputs if view.colour is None else {**outputs, "rgb_coarse": view.colour}

    @torch.no_grad()
    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """As `get_outputs_for_camera`, for the rays (H, W) of a pinhole picture.

        Raises:
            InputError: the rays are those of no picture, which a decoder cannot colour.
        """
        camera = pinhole_camera_of(camera_ray_bundle)
        if camera is None:
            raise InputError(
                "colours are asked for along single rays, but a latent scene has colours only in whole decoded "
                "pictures; `ns-export tsdf --texture-method tsdf` and `ns-export poisson --texture-method point_cloud` "
                "colour vertices instead"
            )
        return self.get_outputs_for_camera(camera)

    def forward(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Rays (H, W) of a picture: the decoded outputs. Single rays (R,): depth and accumulation only."""
        if len(ray_bundle.shape) == 2:
            return self.get_outputs_for_camera_ray_bundle(ray_bundle)
        return self.get_outputs(ray_bundle)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        outputs = self.scene(ray_bundle)
        return {name: outputs[name] for name in ("depth", "accumulation")}

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """(H, W, 4): a three-channel output with the accumulation as its alpha."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], dim=-1)

    # What Nerfstudio asks of a model ---------------------------------------------------------------------------

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The scene model's groups, and `decoder`."""
        return {**self.scene.get_param_groups(), "decoder": list(self.decoder.parameters())}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        return self.scene.get_training_callbacks(attributes)

    def update_to_step(self, step: int) -> None:
        self.scene.update_to_step(step)
