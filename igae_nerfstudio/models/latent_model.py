"""What makes a Nerfstudio model a latent scene model F_theta.

`LatentModel` is a mixin in front of a Nerfstudio model. Nerfstudio writes "rgb" for whatever a model renders; here
`rgb` only ever means decoded pixels, so the mixin is also where the names change:

    Nerfstudio's model          here
    outputs["rgb..."]           outputs["latent..."]
    batch["image"]              batch["latent"], normalised
    losses "rgb_loss..."        losses "latent_loss..."
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Iterator

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.field_components.mlp import MLP
from nerfstudio.models.base_model import Model
from torch import Tensor, nn
from typing_extensions import Annotated, Self
from tyro.conf import Suppress

from igae_nerfstudio.data.lenses import finite_rays
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.hash_encoding import use_fast_hash_encoding
from igae_nerfstudio.rendering.latent_renderer import LatentRenderer


@dataclass
class LatentModelConfig:
    """Mixed into the config of each scene model. A field of None is a preset's to fill: see `resolved`."""

    latent_channels: Annotated[int, Suppress] = 16
    """c; the pipeline takes it from the autoencoder."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "fast": {}}
    """Values of fields that are None by default. `paper`: Nerfstudio's own, as in the paper; `fast`: a model no larger
    than latents need (docs/performance.md)."""

    def resolved(self, preset: str, latent_channels: int) -> Self:
        """A copy that a model can be built from: each field that is None has the preset's value.

        Resolving it again changes nothing.

        Raises:
            InputError: there is no such preset.
        """
        if preset not in self.presets:
            raise InputError(f"there is no preset '{preset}'; choose one of {', '.join(self.presets)}")
        unset = {name: value for name, value in self.presets[preset].items() if getattr(self, name) is None}
        return replace(self, latent_channels=latent_channels, **unset)


if TYPE_CHECKING:
    _Mixed = Model  # a method's class has a Nerfstudio model behind this mixin
else:
    _Mixed = object


class LatentModel(_Mixed):
    """Mixin: renders `latent_channels` channels instead of colours, with the model's own loss on them.

    A method has two more functions: `adapt_field(latent_channels)` replaces the colour head (3 channels, sigmoid) by a
    linear one, and `get_regularizers(outputs, batch)` returns the terms of its `get_loss_dict` that stay in RGB
    alignment: all but the squared error of the decoded latents, in whose place equation 3 stands there.
    """

    config: Any
    field: Any
    renderer_rgb: Any
    renders_pictures: ClassVar[bool] = False
    """Whether a step takes latent cameras (B,) of whole pictures or windows of them, and not rays (R,)."""

    def populate_modules(self) -> None:
        with without_lpips():
            super().populate_modules()
        self._modules.pop("lpips", None)
        self.renderer_rgb = LatentRenderer(self.config.latent_channels)
        self.adapt_field(self.config.latent_channels)  # type: ignore[operator]
        use_fast_hash_encoding(self)

    def set_background(self, background: Tensor) -> None:
        """The latent (c,) behind the scene, normalised."""
        self.renderer_rgb.background.copy_(background)

    def set_training_cameras(self, cameras: Cameras) -> None:
        """Learn where the training cameras are, before the first step (Tri-Planes fit their cube to them)."""

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """`latent` (h, w, c), `depth` and `accumulation` (h, w, 1) of a latent camera of batch shape (1,)."""
        rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        return self.get_outputs_for_camera_ray_bundle(finite_rays(rays, camera))

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        outputs = super().get_outputs(ray_bundle)  # type: ignore[safe-super]  # of the model behind the mixin
        return rename(outputs, "rgb", "latent")

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().get_metrics_dict(rename(outputs, "latent", "rgb"), {"image": batch["latent"]})
        return rename(metrics, "psnr", "latent_psnr")

    def get_loss_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict=None) -> dict[str, Tensor]:
        target = {"image": batch["latent"]}
        rendered = rename(outputs, "latent", "rgb")
        losses = super().get_loss_dict(rendered, target, metrics_dict)  # type: ignore[safe-super]
        return rename(losses, "rgb", "latent")


def built_for_cuda(model: Model) -> bool:
    """Whether a model was built for a CUDA device (known before its parameters get there)."""
    return torch.device(model.kwargs.get("device") or "cpu").type == "cuda"


def linear_head(colours: Any, channels: int) -> MLP:
    """An `MLP` of the shape of a field's colour network, with linear outputs in place of 3 sigmoid ones."""
    return MLP(
        in_dim=colours.in_dim,
        num_layers=colours.num_layers,
        layer_width=colours.layer_width,
        out_dim=channels,
        activation=nn.ReLU(),
        out_activation=None,
        implementation="torch" if colours.tcnn_encoding is None else "tcnn",
    )


def rename(entries: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The dictionary with keys that begin with `old` beginning with `new`."""
    return {new + key[len(old) :] if key.startswith(old) else key: value for key, value in entries.items()}


@contextmanager
def without_lpips() -> Iterator[None]:
    """Build a Nerfstudio model without the LPIPS network, which would be downloaded and stored in each checkpoint.

    Evaluation has its own, loaded when it is first needed (`metrics.py`).
    """
    import torchmetrics.image.lpip

    module: Any = torchmetrics.image.lpip
    original = module.LearnedPerceptualImagePatchSimilarity
    module.LearnedPerceptualImagePatchSimilarity = lambda *args, **kwargs: nn.Identity()
    try:
        yield
    finally:
        module.LearnedPerceptualImagePatchSimilarity = original
