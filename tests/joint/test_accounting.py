"""Cost per scene, and the reference's 44 %."""

from __future__ import annotations

import pytest

from igae_nerfstudio.joint.accounting import Cost, micro_macro_numbers, triplane_numbers

FULL_VAE = 83_653_863
"""Parameters of Stable Diffusion 1.5's autoencoder."""


def test_the_references_44_percent() -> None:
    """3Da-AE: F = 32 = 10 + 22, M = 50, K = 64, with the whole autoencoder spread over 1,000 scenes."""
    plain = Cost(triplane_numbers(32, 64))
    shared = micro_macro_numbers(micro=10, macro=22, shared_planes=50, resolution=64, autoencoder=FULL_VAE)
    assert plain.own == 393_216
    assert shared.own == 122_880 + 51
    assert shared.shared == 13_516_800 + FULL_VAE
    assert round(100 * shared.saving(plain, scenes=1000), 1) == 44.0
    assert shared.saving(plain, scenes=100) < 0 < shared.saving(plain, scenes=1000)


def test_effective_cost_falls_to_the_own_part() -> None:
    cost = Cost(own=3, shared=12)
    assert [cost.effective(n) for n in (1, 4, 12)] == [15, 6, 4]
    assert cost.effective(10**9) == pytest.approx(3)


@pytest.mark.parametrize("own, shared, other", [(3, 12, 5), (3, 13, 5), (1, 0, 2), (2.5, 100, 3)])
def test_break_even_is_the_first_number_that_costs_less(own: float, shared: float, other: float) -> None:
    cost, plain = Cost(own, shared), Cost(other)
    first = cost.break_even(plain)
    assert cost.effective(first) < plain.effective(first)
    assert first == 1 or cost.effective(first - 1) >= plain.effective(first - 1)
    assert plain.break_even(Cost(own, 0)) is None
