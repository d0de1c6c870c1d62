"""The two phases of latent NeRF training (paper, section 3.2) as functions of the step number.

Nothing here has a memory: phase and learning rates at a step follow from the step alone, so a resumed run is in
the right phase with the right rates, and no optimiser state is reset at the switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nerfstudio.engine.optimizers import Optimizers
from torch.optim.lr_scheduler import LambdaLR

from igae_nerfstudio.errors import InputError


class Phase(Enum):
    """What a training step minimises."""

    LATENT_SUPERVISION = "latent supervision"
    """Equation 2: the method's own loss between rendered and encoded latents; the decoder rests."""
    RGB_ALIGNMENT = "RGB alignment"
    """Equation 3: squared error between decoded renders and photos, for scene and decoder."""

    @property
    def number(self) -> int:
        """1 or 2: the phase as a curve."""
        return list(Phase).index(self) + 1


@dataclass(frozen=True)
class TwoPhaseSchedule:
    """When the phases change, and with what rates.

    Raises:
        InputError: a phase of no steps, or a factor or decay that is not positive.
    """

    latent_supervision_steps: int
    rgb_alignment_steps: int
    latent_supervision_lr_factor: float = 1.0
    """xi_LS of table 11: multiplies the scene's learning rates during latent supervision."""
    rgb_alignment_lr_factor: float = 1.0
    """xi_align of table 11: multiplies the scene's learning rates during RGB alignment."""
    decoder_lr_decay: float = 0.9996
    """Factor on the decoder's learning rate per step of RGB alignment (table 11)."""

    def __post_init__(self) -> None:
        for name in ("latent_supervision_steps", "rgb_alignment_steps"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"--pipeline.{name.replace('_', '-')} is {getattr(self, name)}; each phase needs 1 step or more "
                    "(to stop before the second phase, set --max-num-iterations to the length of the first)"
                )
        for name in ("latent_supervision_lr_factor", "rgb_alignment_lr_factor", "decoder_lr_decay"):
            if not getattr(self, name) > 0:
                raise InputError(f"--pipeline.{name.replace('_', '-')} is {getattr(self, name)}; it must be positive")

    @property
    def total_steps(self) -> int:
        return self.latent_supervision_steps + self.rgb_alignment_steps

    def phase(self, step: int) -> Phase:
        """The phase of step `step`, counted from 0."""
        return Phase.LATENT_SUPERVISION if step < self.latent_supervision_steps else Phase.RGB_ALIGNMENT

    def lr_factor(self, group: str, step: int) -> float:
        """What the scheduled learning rate of a parameter group is multiplied with at a step."""
        aligning = self.phase(step) is Phase.RGB_ALIGNMENT
        if group == "decoder":
            return self.decoder_lr_decay ** (step - self.latent_supervision_steps) if aligning else 0.0
        return self.rgb_alignment_lr_factor if aligning else self.latent_supervision_lr_factor

    def set_learning_rates(self, optimizers: Optimizers, step: int) -> dict[str, float]:
        """Set every optimiser's rates for a step: the method's own schedule times the phase's factor.

        A `LambdaLR` computes its rate from the initial one at every step, so that the factor written here never
        accumulates. All schedulers of Nerfstudio's methods are of this kind but `MultiStepSchedulerConfig`.

        Returns:
            The rate of each group.

        Raises:
            InputError: a group has a scheduler of another kind.
        """
        rates = {}
        for group, optimizer in optimizers.optimizers.items():
            scheduler = optimizers.schedulers.get(group)
            if scheduler is not None and not isinstance(scheduler, LambdaLR):
                raise InputError(
                    f"the optimizer group '{group}' has a {type(scheduler).__name__}; the two phases need "
                    "ExponentialDecaySchedulerConfig, CosineDecaySchedulerConfig or no scheduler"
                )
            initial = optimizers.config[group]["optimizer"].lr
            scheduled = initial if scheduler is None else scheduler.get_last_lr()[0]
            rates[group] = float(scheduled) * self.lr_factor(group, step)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rates[group]
        return rates
