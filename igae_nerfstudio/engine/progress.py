"""How far a training is: the phase, the time left of it, and the last PSNR."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from igae_nerfstudio.console import CONSOLE, log
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule

LINES_PER_PHASE = 20
"""Where there is no terminal, a line is printed so many times in each phase."""


class PhaseProgress(Progress):
    """A progress bar for each phase in a terminal, a line now and then elsewhere.

    Args:
        schedule: the two phases.
        last_step: the last step of this run, counted from 0.
    """

    def __init__(self, schedule: TwoPhaseSchedule, last_step: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[psnr]}"))
        super().__init__("{task.description}", *columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
        self.schedule, self.last_step = schedule, last_step
        self.psnr = ""
        """Of the last evaluation image."""
        self._bars: dict[Phase, Any] = {}

    def step_done(self, step: int) -> None:
        """Step `step` is done."""
        phase, switch = self.schedule.phase(step), self.schedule.latent_supervision_steps
        first, end = (0, switch) if phase is Phase.LATENT_SUPERVISION else (switch, self.schedule.total_steps)
        done, total = step + 1 - first, min(end, self.last_step + 1) - first
        if phase not in self._bars:
            self._bars[phase] = self.add_task(phase.value, total=total, completed=done - 1, psnr="")
        self.update(self._bars[phase], completed=done, psnr=self.psnr)
        if not CONSOLE.is_terminal and done * LINES_PER_PHASE // total > (done - 1) * LINES_PER_PHASE // total:
            left = self.tasks[self._bars[phase]].time_remaining
            log(", ".join(filter(None, [f"{phase.value} {done}/{total}", left and f"{left:.0f} s left", self.psnr])))
