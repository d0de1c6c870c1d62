"""What a log without a terminal says."""

from __future__ import annotations

import pytest

from igae_nerfstudio.engine.progress import PhaseProgress
from igae_nerfstudio.phases import TwoPhaseSchedule


def run(capsys: pytest.CaptureFixture, first: int, last: int) -> list[str]:
    with PhaseProgress(TwoPhaseSchedule(40, 60), last) as progress:
        for step in range(first, last + 1):
            progress.psnr = "PSNR 21.50 dB" if step >= 50 else ""
            progress.step_done(step)
    return capsys.readouterr().out.splitlines()


def test_each_phase_is_counted(capsys: pytest.CaptureFixture) -> None:
    lines = run(capsys, 0, 99)
    assert len(lines) == 40
    assert lines[0].startswith("latent supervision 2/40") and lines[20].startswith("RGB alignment 3/60")
    assert lines[-1].startswith("RGB alignment 60/60") and lines[-1].endswith("PSNR 21.50 dB")


def test_a_resumed_run_counts_from_where_it_is(capsys: pytest.CaptureFixture) -> None:
    lines = [line.split(",")[0] for line in run(capsys, 38, 41)]  # the last step that --max-num-iterations leaves
    assert lines == ["latent supervision 40/40", "RGB alignment 1/2", "RGB alignment 2/2"]
    assert run(capsys, 41, 42)[0].startswith("RGB alignment 2/3")
