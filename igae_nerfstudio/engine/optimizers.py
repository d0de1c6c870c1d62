"""Adam in one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from nerfstudio.engine.optimizers import AdamOptimizerConfig


@dataclass
class FusedAdamOptimizerConfig(AdamOptimizerConfig):
    """Nerfstudio's Adam, every parameter read and written once a step instead of ten times."""

    fused: bool = True
    """Use torch's fused kernel, on GPUs and CPUs; the numbers are the same."""
