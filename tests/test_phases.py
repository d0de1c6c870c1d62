"""Phase and rates at their exact steps."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig, MultiStepSchedulerConfig

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule

SCHEDULE = TwoPhaseSchedule(3, 4, latent_supervision_lr_factor=0.1, rgb_alignment_lr_factor=0.5, decoder_lr_decay=0.9)


def optimizers() -> Optimizers:
    decay = ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=10)
    config = {
        "fields": {"optimizer": AdamOptimizerConfig(lr=1e-2), "scheduler": decay},
        "plain": {"optimizer": AdamOptimizerConfig(lr=1e-3), "scheduler": None},
        "decoder": {"optimizer": AdamOptimizerConfig(lr=1e-4), "scheduler": None},
    }
    return Optimizers(config, {name: [torch.nn.Parameter(torch.ones(2))] for name in config})


def test_the_switch_is_at_its_step() -> None:
    assert [SCHEDULE.phase(step) for step in range(7)] == [Phase.LATENT_SUPERVISION] * 3 + [Phase.RGB_ALIGNMENT] * 4
    assert SCHEDULE.total_steps == 7


def test_rates_are_the_methods_schedule_times_the_factor_of_the_phase() -> None:
    opts = optimizers()
    for step in range(7):
        rates = SCHEDULE.set_learning_rates(opts, step)
        factor = 0.1 if step < 3 else 0.5
        expected = {
            "fields": 1e-2 * (1e-4 / 1e-2) ** (step / 10) * factor,  # nerfstudio's exponential decay
            "plain": 1e-3 * factor,
            "decoder": 0.0 if step < 3 else 1e-4 * 0.9 ** (step - 3),
        }
        for name, rate in expected.items():
            assert rates[name] == pytest.approx(rate, rel=1e-6), (step, name)
            assert opts.optimizers[name].param_groups[0]["lr"] == rates[name]
        opts.optimizer_step("fields")
        opts.scheduler_step_all(step)


def test_a_resumed_run_has_the_same_rates() -> None:
    straight, resumed = optimizers(), optimizers()
    for step in range(5):
        SCHEDULE.set_learning_rates(straight, step)
        straight.scheduler_step_all(step)
    resumed.load_optimizers({name: opt.state_dict() for name, opt in straight.optimizers.items()})
    resumed.load_schedulers({name: sched.state_dict() for name, sched in straight.schedulers.items()})
    assert SCHEDULE.set_learning_rates(resumed, 5) == SCHEDULE.set_learning_rates(straight, 5)


def test_the_switch_keeps_the_moments_of_the_optimisers() -> None:
    opts = optimizers()
    parameter = opts.parameters["fields"][0]
    for step in range(3):
        SCHEDULE.set_learning_rates(opts, step)
        parameter.grad = torch.tensor([1.0, -2.0])
        opts.optimizer_step("fields")
    before = opts.optimizers["fields"].state[parameter]["exp_avg"].clone()
    SCHEDULE.set_learning_rates(opts, 3)
    assert torch.equal(opts.optimizers["fields"].state[parameter]["exp_avg"], before)
    assert opts.optimizers["fields"].state[parameter]["step"] == 3


@pytest.mark.parametrize("steps", [(0, 5), (5, 0), (-1, 5)])
def test_phases_need_steps(steps: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="-steps is"):
        TwoPhaseSchedule(*steps)


def test_factors_must_be_positive() -> None:
    with pytest.raises(InputError, match="--pipeline.rgb-alignment-lr-factor is 0"):
        TwoPhaseSchedule(1, 1, rgb_alignment_lr_factor=0)


def test_schedulers_that_would_accumulate_the_factor_are_refused() -> None:
    config = {"fields": {"optimizer": AdamOptimizerConfig(lr=1e-2), "scheduler": MultiStepSchedulerConfig()}}
    opts = Optimizers(config, {"fields": [torch.nn.Parameter(torch.ones(2))]})
    with pytest.raises(InputError, match="MultiStepLR"):
        SCHEDULE.set_learning_rates(opts, 0)
