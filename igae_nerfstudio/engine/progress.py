"""How far a training is: the phase, the time left of it and of the whole run, and the last PSNR."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, Optional

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from igae_nerfstudio.console import CONSOLE, log
from igae_nerfstudio.engine.phases import Phase, TwoPhaseSchedule

SHARE = 20
"""Where there is no terminal, a line is printed at so many places of each phase."""
SECONDS = 60.0
"""And once in so many seconds."""


class PhaseProgress:
    """A progress bar in a terminal, a line now and then elsewhere.

    Args:
        schedule: the two phases.
        last_step: the last step of this run, counted from 0.
        clock: seconds.
        terminal: whether to draw a bar; None finds out.
    """

    def __init__(
        self,
        schedule: TwoPhaseSchedule,
        last_step: int,
        clock: Callable[[], float] = time.monotonic,
        terminal: Optional[bool] = None,
    ) -> None:
        self.schedule, self.last_step, self.clock = schedule, last_step, clock
        self.psnr: Optional[float] = None
        """Of the last evaluation image, in dB."""
        self._terminal = CONSOLE.is_terminal if terminal is None else terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=CONSOLE, disable=not self._terminal)
        self._task: Any = None
        self._phase: Optional[Phase] = None
        self._spent: Dict[Phase, float] = {}
        self._taken: Dict[Phase, int] = {}
        self._before = self._line_at = 0.0

    def __enter__(self) -> PhaseProgress:
        self._bar.start()
        self._before = self._line_at = self.clock()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def update(self, step: int) -> None:
        """Step `step` is done."""
        phase, now = self.schedule.phase(step), self.clock()
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._before
        self._taken[phase] = self._taken.get(phase, 0) + 1
        self._before = now
        first, end = self._span(phase)
        done, total = step + 1 - first, end - first
        if phase is not self._phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(phase.value, total=total, left="")
            self._phase = phase
        left = self._left(step)
        self._bar.update(self._task, completed=done, left=left)
        share = done * SHARE // total > (done - 1) * SHARE // total
        if not self._terminal and (share or now - self._line_at >= SECONDS):
            self._line_at = now
            log(f"{phase.value} {done}/{total}, {left}")

    def _span(self, phase: Phase) -> tuple[int, int]:
        """First step of a phase in this run, and the one after its last."""
        switch = self.schedule.latent_supervision_steps
        first, end = (0, switch) if phase is Phase.LATENT_SUPERVISION else (switch, self.schedule.total_steps)
        return first, min(end, self.last_step + 1)

    def _left(self, step: int) -> str:
        current = self.schedule.phase(step)
        pace = self._spent[current] / self._taken[current]
        of_phase = (self._span(current)[1] - step - 1) * pace
        rest = 0.0
        if current is Phase.LATENT_SUPERVISION:  # the second phase costs at least as much a step
            first, end = self._span(Phase.RGB_ALIGNMENT)
            rest = max(0, end - first) * pace
        text = f"{duration(of_phase)} left of the phase, {duration(of_phase + rest)} of the run"
        return text if self.psnr is None else f"{text}, PSNR {self.psnr:.2f} dB"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 75 is `1:15`, 3675 is `1:01:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
