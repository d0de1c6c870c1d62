"""Micro/macro Tri-Planes: scenes that share most of their features ("Exploring 3D-aware Latent Spaces for Efficiently
Learning Numerous Scenes", Schnepf et al. 2024).

The planes of a scene s are its own ones beside a weighted sum of M planes that all scenes share:

    T_s = [ T_s^mic , sum_m w_sm B_m + b_s ]        F = F_mic + F_mac features

T_s^mic (3, F_mic, K, K), the weights w_s (M,) and the bias b_s are all that a scene has of its own; here they are one
row of numbers, its *record*. The shared planes B (M, 3, F_mac, K, K) are paid for once. With M = 0 a record is the
plain Tri-Planes (3, F, K, K), so that one code serves both. `rendering/triplanes.py` renders the planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import List, Tuple

import torch
from torch import Tensor, nn

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering.triplanes import TriPlaneConfig

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
        for name in ("micro_features", "macro_features"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"micro_macro.{name} is {getattr(self, name)}; it must be 1 or more "
                    "(micro_macro.shared_planes=0 makes plain Tri-Planes)"
                )
        total = self.micro_features + self.macro_features
        if total != triplanes.features:
            raise InputError(
                f"micro_macro.micro_features and macro_features are {self.micro_features} + {self.macro_features} = "
                f"{total}, but triplanes.features is {triplanes.features}; make them the same"
            )


class MicroMacroPlanes(nn.Module):
    """The shared planes, and the planes (S, 3, F, K, K) of scenes from their records (S, L).

    Args:
        triplanes: F and K.
        config: F_mic, F_mac and M.
    """

    def __init__(self, triplanes: TriPlaneConfig, config: MicroMacroConfig) -> None:
        super().__init__()
        config.check(triplanes)
        self.config, side = config, triplanes.resolution
        self.count = config.shared_planes
        own = config.micro_features if self.count else triplanes.features
        self.own_planes_shape = (3, own, side, side)
        """Of the planes in a record."""
        shape = (self.count, 3, config.macro_features if self.count else 0, side, side)
        self.shared = nn.Parameter(torch.zeros(shape))
        """B (M, 3, F_mac, K, K); of no numbers where M = 0."""

    @property
    def plane_numbers(self) -> int:
        """How many numbers of a record are planes; they come first."""
        return math.prod(self.own_planes_shape)

    @property
    def record_numbers(self) -> int:
        """L: planes, then M weights and one bias where planes are shared."""
        return self.plane_numbers + (self.count + 1 if self.count else 0)

    @property
    def shared_numbers(self) -> int:
        """Numbers in the shared planes."""
        return self.shared.numel()

    def split(self, records: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(S, L) -> own planes (S, 3, F_mic, K, K), weights (S, M), bias (S, 1); of no numbers where M = 0."""
        planes, weights, bias = records.split([self.plane_numbers, self.count, min(1, self.count)], dim=1)
        return planes.unflatten(1, self.own_planes_shape), weights, bias

    def forward(self, records: Tensor) -> Tensor:
        """The fused planes, differentiable in records and shared planes.

        Args:
            records: (S, L).

        Returns:
            (S, 3, F, K, K).
        """
        own, weights, bias = self.split(records)
        if not self.count:
            return own
        macro = torch.addmm(bias, weights, self.shared.flatten(1))
        return torch.cat([own, macro.unflatten(1, self.shared.shape[1:])], dim=2)

    @torch.no_grad()
    def reset_shared(self, generator: torch.Generator) -> None:
        """New shared planes: noise."""
        self.shared.copy_(SCALE * torch.randn(self.shared.shape, generator=generator))

    def initial_record(self, generator: torch.Generator) -> Tensor:
        """The record (L,) of a new scene: noise, of a size at which the weighted sum is as large as its own planes."""
        record = torch.randn(self.record_numbers, generator=generator)
        record[: self.plane_numbers] *= SCALE
        if self.count:
            record[self.plane_numbers :] /= math.sqrt(self.count)
            record[-1] = 0
        return record

    def rates(self, planes: float, weights: float) -> Tensor:
        """Adam's rate for each number of a record (L,): that of planes, or that of weights and bias."""
        rates = torch.full((self.record_numbers,), float(planes))
        rates[self.plane_numbers :] = weights
        return rates


def same_shapes(one: Tuple[TriPlaneConfig, MicroMacroConfig], other: Tuple[TriPlaneConfig, MicroMacroConfig]) -> str:
    """What differs between the shapes of two trainings: "" or, for instance, "M is 50 and 16"."""
    (triplanes, config), (triplanes2, config2) = one, other
    values: List[Tuple[str, float, float]] = [
        ("K", triplanes.resolution, triplanes2.resolution),
        ("F", triplanes.features, triplanes2.features),
        ("M", config.shared_planes, config2.shared_planes),
    ]
    if config.shared_planes and config2.shared_planes:
        values.append(("F_mic", config.micro_features, config2.micro_features))
    values.append(("the hidden width", triplanes.hidden, triplanes2.hidden))
    values.append(("half_extent", triplanes.half_extent, triplanes2.half_extent))
    return ", ".join(f"{name} is {a} and {b}" for name, a, b in values if a != b)
