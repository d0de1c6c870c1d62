"""What `ns-export gaussian-splat` meets: latent Gaussians with colours looked up in decoded training views.

The PLY file shows the scene roughly in any viewer of splats. Full quality needs the decoder, so it needs `ns-render` or
`ns-viewer`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.splatfacto import RGB2SH, SplatfactoModel
from torch import Tensor, nn

from igae_nerfstudio.console import log
from igae_nerfstudio.pipelines.decoded_scene import DecodedScene
from igae_nerfstudio.rendering.splatting import project, rasterize

MOST_VIEWS = 50
"""Training views that colours are looked up in, evenly spread over all of them."""


class ExportedSplats(DecodedScene, SplatfactoModel):  # type: ignore[misc]  # the exporter asks for the second's class
    """A decoded scene of Gaussians, with the attributes of a splatfacto that Nerfstudio's exporter reads.

    Args:
        cameras: (V,), where the training photos were taken.
        *args, **kwargs: of `DecodedScene`.
    """

    load_state_dict = nn.Module.load_state_dict  # type: ignore[assignment]  # the number of Gaussians is known

    def __init__(self, cameras: Cameras, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._views = cameras[torch.arange(0, len(cameras), -(-len(cameras) // MOST_VIEWS))]

    @property
    def gauss_params(self) -> nn.ParameterDict:
        return self.scene.gauss_params

    @property
    def colors(self) -> Tensor:
        """(N, 3) in [0, 1]."""
        return self._colours

    @property
    def shs_0(self) -> Tensor:
        """(N, 3): the colours as coefficients of the constant harmonic."""
        return RGB2SH(self._colours)

    @property
    def shs_rest(self) -> Tensor:
        """(N, 3, 3): none."""
        return self._colours.new_zeros(len(self._colours), 3, 3)

    @cached_property
    def _colours(self) -> Tensor:
        """(N, 3) in [0, 1]: each Gaussian's decoded colour in the view in which most of it is seen; grey if in none."""
        means = self.means.detach()
        colours, most_seen = torch.full_like(means, 0.5), torch.zeros_like(means[:, 0])
        for index in range(len(self._views)):
            camera = self._views[index : index + 1].to(self.device)
            picture = self.render(camera).rgb
            gaussians = self.scene.gaussians(camera)
            seen = torch.zeros_like(means[:, :1], requires_grad=True)
            with torch.enable_grad():  # the gradient of a picture's sum is what each Gaussian has of it
                features, _, _ = rasterize(replace(gaussians, features=seen), camera)
                (seen,) = torch.autograd.grad(features.sum(), seen)
            size = means.new_tensor([picture.shape[1], picture.shape[0]])
            places = 2 * project(gaussians, camera).means / size - 1
            found = F.grid_sample(
                picture.permute(2, 0, 1)[None], places[None, None], padding_mode="border", align_corners=False
            )[0, :, 0].T
            better = seen[:, 0] > most_seen
            colours[better], most_seen[better] = found[better], seen[better, 0]
        log(f"Colours of {len(means):,} Gaussians come from {len(self._views)} decoded views: the scene, roughly.")
        return colours
