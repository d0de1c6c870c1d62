"""What the terminal says about the time left."""

from __future__ import annotations

import pytest

from igae_nerfstudio.engine import progress
from igae_nerfstudio.engine.phases import TwoPhaseSchedule
from igae_nerfstudio.engine.progress import PhaseProgress, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    return said


def run(first: int, last: int, seconds, psnr: dict[int, float] | None = None) -> None:
    clock = Clock()
    with PhaseProgress(TwoPhaseSchedule(40, 60), 99, clock, terminal=False) as shown:
        for step in range(first, last + 1):
            clock.now += seconds(step)
            shown.psnr = (psnr or {}).get(step, shown.psnr)
            shown.update(step)


def test_time_left_of_phase_and_run(lines: list[str]) -> None:
    run(0, 99, lambda step: 1.0 if step < 40 else 3.0, psnr={50: 21.5})
    assert lines[0] == "latent supervision 2/40, 0:38 left of the phase, 1:38 of the run"
    assert lines[19] == "latent supervision 40/40, 0:00 left of the phase, 1:00 of the run"
    # The second phase is timed by its own steps.
    assert lines[20] == "RGB alignment 3/60, 2:51 left of the phase, 2:51 of the run"
    assert lines[-1] == "RGB alignment 60/60, 0:00 left of the phase, 0:00 of the run, PSNR 21.50 dB"
    assert len(lines) == 40


def test_a_resumed_run_counts_from_where_it_is(lines: list[str]) -> None:
    run(38, 41, lambda step: 2.0)
    assert lines == ["latent supervision 40/40, 0:00 left of the phase, 2:00 of the run"]


def test_slow_steps_are_reported_once_a_minute(lines: list[str]) -> None:
    run(0, 2, lambda step: 61.0)
    assert [line.split(",")[0] for line in lines] == [f"latent supervision {i}/40" for i in (1, 2, 3)]
    assert lines[0].endswith("39:39 left of the phase, 1:40:39 of the run")


def test_a_bar_in_a_terminal(lines: list[str]) -> None:
    with PhaseProgress(TwoPhaseSchedule(2, 2), 3, terminal=True) as shown:
        for step in range(4):
            shown.update(step)
        (task,) = shown._bar.tasks
        assert (task.description, task.completed, task.total) == ("RGB alignment", 2, 2)
    assert not lines


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (75, "1:15"), (3675, "1:01:15")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
