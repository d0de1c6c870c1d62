"""What a scene costs when N scenes share a part of the cost.

    effective cost per scene (N) = own + shared / N

`own` is what every scene has for itself, `shared` what is paid for once: in bytes or in numbers, or in seconds (the
time that learns a scene, and the joint training before it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Cost:
    """Of scenes of one kind, in any unit."""

    own: float
    """Of one scene alone."""
    shared: float = 0.0
    """Of everything that is there once, however many scenes there are."""

    def effective(self, scenes: int) -> float:
        """Per scene, where there are so many."""
        return self.own + self.shared / scenes

    def saving(self, other: Cost, scenes: int) -> float:
        """The share of the other's cost per scene that this one saves; negative where it costs more."""
        return 1 - self.effective(scenes) / other.effective(scenes)

    def break_even(self, other: Cost) -> Optional[int]:
        """The smallest number of scenes from which on this costs less than the other; None where there is none."""
        if self.own >= other.own:
            return 1 if self.own == other.own and self.shared < other.shared else None
        return max(1, math.floor((self.shared - other.shared) / (other.own - self.own)) + 1)


def triplane_numbers(features: int, resolution: int) -> int:
    """In plain Tri-Planes (3, F, K, K)."""
    return 3 * features * resolution**2


def micro_macro_numbers(micro: int, macro: int, shared_planes: int, resolution: int, autoencoder: int = 0) -> Cost:
    """Numbers in micro/macro Tri-Planes: own planes, weights and bias; shared planes and, if given, an autoencoder."""
    own = triplane_numbers(micro, resolution) + shared_planes + 1
    return Cost(own, shared_planes * triplane_numbers(macro, resolution) + autoencoder)
