"""How far a training is: the phase, the time left of it, and the last PSNR."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from igae_nerfstudio.console import CONSOLE, log
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule

LINES_PER_PHASE = 20
"""Where there is no terminal, a line is printed so many times in each phase."""


class PhaseProgress:
    """A progress bar for each phase in a terminal, a line now and then elsewhere.

    Args:
        schedule: the two phases.
        first_step: the first step of this run.
        last_step: its last one, counted from 0.
    """

    def __init__(self, schedule: TwoPhaseSchedule, first_step: int, last_step: int) -> None:
        self.psnr: float | None = None
        """Of the last evaluation image, in dB."""
        self._schedule = schedule
        left = TextColumn("{task.fields[psnr]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), left)
        self._bar = Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal)
        switch = schedule.latent_supervision_steps
        self._tasks: dict[Phase, Any] = {}
        for phase, begin, end in (
            (Phase.LATENT_SUPERVISION, 0, min(switch, last_step + 1)),
            (Phase.RGB_ALIGNMENT, switch, last_step + 1),
        ):
            if begin < end and first_step < end:
                done = max(0, first_step - begin)
                self._tasks[phase] = self._bar.add_task(
                    phase.value, total=end - begin, completed=done, start=False, psnr=""
                )

    def __enter__(self) -> PhaseProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def update(self, step: int) -> None:
        """Step `step` is done."""
        phase = self._schedule.phase(step)
        task = self._bar.tasks[self._tasks[phase]]
        if not task.started:
            self._bar.start_task(task.id)
        psnr = "" if self.psnr is None else f"PSNR {self.psnr:.2f} dB"
        self._bar.update(task.id, advance=1, psnr=psnr)
        done, total = int(task.completed), int(task.total or 0)
        if not CONSOLE.is_terminal and done * LINES_PER_PHASE // total > (done - 1) * LINES_PER_PHASE // total:
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            log(f"{phase.value} {done}/{total}{left}{psnr and f', {psnr}'}")
