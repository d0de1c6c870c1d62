"""What makes a Nerfstudio model a latent scene model F_theta.

`LatentModel` is a mixin in front of a Nerfstudio model. Nerfstudio writes "rgb" for whatever a model renders;
here `rgb` only ever means decoded pixels, so the mixin is also the border where the names change:

    Nerfstudio's model          here
    outputs["rgb..."]           outputs["latent..."]
    batch["image"]              batch["latent"], normalised
    losses "rgb_loss..."        losses "latent_loss..."
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Dict, Iterator

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from torch import Tensor, nn
from typing_extensions import Annotated
from tyro.conf import Suppress

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.hash_encoding import use_fast_hash_encoding
from igae_nerfstudio.rendering.latent_renderer import LatentRenderer


@dataclass
class LatentModelConfig:
    """Mixed into the config of each scene model."""

    latent_channels: Annotated[int, Suppress] = 16
    """c; the pipeline sets it from the autoencoder."""

    fast: ClassVar[Dict[str, Any]] = {}
    """Settings of `--pipeline.preset fast`: a model no larger than latents need."""

    @property
    def sdf_field(self) -> None:
        """What `ns-export marching-cubes` looks for before anything else; it ends in an assertion without."""
        raise InputError(
            "marching cubes need a surface model, and these scenes have densities but no signed distances; use "
            "`ns-export tsdf --texture-method tsdf` or `ns-export poisson`"
        )


if TYPE_CHECKING:
    _Mixed = Model  # a method's class has a Nerfstudio model behind this mixin
else:
    _Mixed = object


class LatentModel(_Mixed):
    """Mixin: renders `latent_channels` channels instead of colours, with the model's own loss on them."""

    config: Any
    field: Any
    renderer_rgb: Any

    latent_output: ClassVar[str] = "latent"
    """The output that is decoded (vanilla NeRF renders a coarse one as well)."""

    reconstruction_loss: ClassVar[str] = "latent_loss"
    """The loss between the decoded output and encoded photos; RGB alignment puts equation 3 in its place and
    keeps every other term."""

    def populate_modules(self) -> None:
        with without_lpips():
            super().populate_modules()
        self._modules.pop("lpips", None)
        self.renderer_rgb = LatentRenderer(self.config.latent_channels)
        self.adapt_field(self.config.latent_channels)
        use_fast_hash_encoding(self)

    def adapt_field(self, latent_channels: int) -> None:
        """Replace the field's colour head (3 channels, sigmoid) by a linear one of `latent_channels`."""
        raise TypeError(f"{type(self).__name__} must say how its colour head becomes a latent head")

    def set_background(self, background: Tensor) -> None:
        """The latent (c,) behind the scene, normalised."""
        self.renderer_rgb.background.copy_(background)

    def set_training_cameras(self, cameras: Cameras) -> None:
        """Learn where the training cameras are, before the first step; of no concern to most models."""

    def get_outputs(self, ray_bundle: RayBundle) -> Dict[str, Any]:
        outputs = super().get_outputs(ray_bundle)  # type: ignore[safe-super]  # of the model behind the mixin
        return rename(outputs, "rgb", "latent")

    def get_metrics_dict(self, outputs: Dict[str, Any], batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        metrics = super().get_metrics_dict(rename(outputs, "latent", "rgb"), {"image": batch["latent"]})
        return rename(metrics, "psnr", "latent_psnr")

    def get_loss_dict(self, outputs: Dict[str, Any], batch: Dict[str, Tensor], metrics_dict=None) -> Dict[str, Tensor]:
        target = {"image": batch["latent"]}
        rendered = rename(outputs, "latent", "rgb")
        losses = super().get_loss_dict(rendered, target, metrics_dict)  # type: ignore[safe-super]
        return rename(losses, "rgb", "latent")


def built_for_cuda(model: Model) -> bool:
    """Whether a model was built for a CUDA device (known before its parameters get there)."""
    return torch.device(model.kwargs.get("device") or "cpu").type == "cuda"


def rename(entries: Dict[str, Any], old: str, new: str) -> Dict[str, Any]:
    """The dictionary with keys that begin with `old` beginning with `new`."""
    return {new + key[len(old) :] if key.startswith(old) else key: value for key, value in entries.items()}


@contextmanager
def without_lpips() -> Iterator[None]:
    """Build a Nerfstudio model without its LPIPS network.

    Every stock model builds one, which downloads AlexNet and stores it in each checkpoint. Evaluation has its
    own, loaded when it is first needed (`metrics.py`).
    """
    import torchmetrics.image.lpip

    module: Any = torchmetrics.image.lpip
    original = module.LearnedPerceptualImagePatchSimilarity
    module.LearnedPerceptualImagePatchSimilarity = lambda *args, **kwargs: nn.Identity()
    try:
        yield
    finally:
        module.LearnedPerceptualImagePatchSimilarity = original
