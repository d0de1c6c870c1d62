"""How a scene's Tri-Planes are made of what is its own: a row of L numbers, its *code*.

    plain          the code is the planes T_s (3, F, K, K)
    micro/macro    T_s = [ T_s^mic , sum_m w_sm B_m + b_s ],    F = F_mic + F_mac features

Micro/macro planes ("Exploring 3D-aware Latent Spaces for Efficiently Learning Numerous Scenes", Schnepf et al. 2024)
are a scene's own ones beside a weighted sum of M planes that all scenes share, the shared basis: T_s^mic (3, F_mic, K,
K), the weights w_s (M,) and the bias b_s are its code; the basis B (M, 3, F_mac, K, K) is paid for once.

Codes lie on disk with an Adam of their own (`scenes/plane_store.py`); what a module here has as parameters is shared by
all scenes. Planes that a network makes of codes are one more subclass of `SceneParameters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig

if TYPE_CHECKING:
    from igae_nerfstudio.joint.config import Stage1Config, Stage2Config

SCALE = 0.1
"""Standard deviation of new planes' features, own or shared."""


@dataclass
class MicroMacroConfig:
    """What scenes have of their own, and what they share."""

    micro_features: int = 10
    """F_mic, features of a scene's own planes."""
    macro_features: int = 22
    """F_mac, features that are a weighted sum of shared planes."""
    shared_planes: int = 50
    """M, shared Tri-Planes; 0: plain Tri-Planes, all of triplanes.features a scene's own."""

    def check(self, triplanes: TriPlaneConfig) -> None:
        """Raises InputError for values that do not fit together."""
        if self.shared_planes < 0:
            raise InputError(f"micro_macro.shared_planes is {self.shared_planes}; it must be 0 or more")
        if not self.shared_planes:
            return
        total = self.micro_features + self.macro_features
        if total != triplanes.features or self.micro_features < 1 or self.macro_features < 1:
            raise InputError(
                f"micro_macro.micro_features and macro_features are {self.micro_features} + {self.macro_features} = "
                f"{total}, but triplanes.features is {triplanes.features}; make them the same, with 1 or more of each"
            )


class SceneParameters(nn.Module):
    """Planes from codes; its own parameters are shared by all scenes."""

    code_numbers: int
    """L."""
    plane_numbers: int
    """How many numbers of a code are planes; they come first."""

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (S, L) to planes (S, 3, F, K, K), differentiable in codes and parameters."""
        raise NotImplementedError

    def initial_code(self, generator: torch.Generator) -> Tensor:
        """The code (L,) of a new scene: noise."""
        raise NotImplementedError

    def code_rates(self, stage: Stage1Config | Stage2Config) -> float | Tensor:
        """Adam's rate for codes: one, or one for each number (L,)."""
        return stage.planes_lr

    def groups(self, stage: Any) -> list[dict[str, Any]]:
        """Parameter groups (name, params, lr) of what the scenes share."""
        return []


class PlainPlanes(SceneParameters):
    """Each scene has planes of its own, and nothing is shared.

    Args:
        triplanes: F and K.
    """

    def __init__(self, triplanes: TriPlaneConfig) -> None:
        super().__init__()
        self.shape = (3, triplanes.features, triplanes.resolution, triplanes.resolution)
        self.code_numbers = self.plane_numbers = math.prod(self.shape)

    def forward(self, codes: Tensor) -> Tensor:
        return codes.unflatten(1, self.shape)

    def initial_code(self, generator: torch.Generator) -> Tensor:
        return SCALE * torch.randn(self.code_numbers, generator=generator)


class MicroMacroPlanes(SceneParameters):
    """The shared basis, and planes of a scene's own beside a weighted sum of it.

    Args:
        triplanes: F and K.
        config: F_mic, F_mac and M, 1 or more.
        seed: of a new basis, which is noise.
    """

    def __init__(self, triplanes: TriPlaneConfig, config: MicroMacroConfig, seed: int = 0) -> None:
        super().__init__()
        config.check(triplanes)
        self.count, side = config.shared_planes, triplanes.resolution
        self.own_shape = (3, config.micro_features, side, side)
        self.plane_numbers = math.prod(self.own_shape)
        self.code_numbers = self.plane_numbers + self.count + 1
        generator = torch.Generator().manual_seed(seed)
        self.shared = nn.Parameter(
            SCALE * torch.randn(self.count, 3, config.macro_features, side, side, generator=generator)
        )
        """B (M, 3, F_mac, K, K)."""

    def split(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(S, L) to own planes (S, 3, F_mic, K, K), weights (S, M) and bias (S, 1)."""
        planes, weights, bias = codes.split([self.plane_numbers, self.count, 1], dim=1)
        return planes.unflatten(1, self.own_shape), weights, bias

    def forward(self, codes: Tensor) -> Tensor:
        own, weights, bias = self.split(codes)
        macro = torch.addmm(bias, weights, self.shared.flatten(1))
        return torch.cat([own, macro.unflatten(1, self.shared.shape[1:])], dim=2)

    def initial_code(self, generator: torch.Generator) -> Tensor:
        """Noise (L,), of a size at which the weighted sum is as large as the scene's own planes."""
        code = torch.randn(self.code_numbers, generator=generator)
        code[: self.plane_numbers] *= SCALE
        code[self.plane_numbers :] /= math.sqrt(self.count)
        code[-1] = 0
        return code

    def code_rates(self, stage: Any) -> Tensor:
        """(L,): the rate of planes, and that of weights and bias."""
        rates = torch.full((self.code_numbers,), float(stage.planes_lr), device=self.shared.device)
        rates[self.plane_numbers :] = stage.weights_lr
        return rates

    def groups(self, stage: Any) -> list[dict[str, Any]]:
        return [{"name": "shared", "params": [self.shared], "lr": stage.shared_lr}] if self.shared.requires_grad else []


def scene_parameters(triplanes: TriPlaneConfig, micro_macro: MicroMacroConfig, seed: int = 0) -> SceneParameters:
    """Micro/macro planes, or plain ones where nothing is shared."""
    if micro_macro.shared_planes:
        return MicroMacroPlanes(triplanes, micro_macro, seed)
    return PlainPlanes(triplanes)
