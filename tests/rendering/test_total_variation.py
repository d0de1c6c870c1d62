"""Total variation with its gradient, against automatic differentiation and Nerfstudio's own."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.model_components.losses import tv_loss

from igae_nerfstudio.rendering.total_variation import mean_squared_variation, squared_variation


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 2), (2, 3, 4, 6)])
def test_value_and_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    grids = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: squared_variation(values, 0.3, 1.7), grids)
    down = (grids[..., 1:, :] - grids[..., :-1, :]).square()
    across = (grids[..., :, 1:] - grids[..., :, :-1]).square()
    torch.testing.assert_close(squared_variation(grids, 0.3, 1.7), 0.3 * down.sum() + 1.7 * across.sum())
    torch.testing.assert_close(mean_squared_variation(grids), down.mean() + across.mean())


def test_it_is_half_of_tensorfs() -> None:
    grids = torch.randn(3, 4, 9, 8)
    torch.testing.assert_close(2 * mean_squared_variation(grids), tv_loss(grids))


def test_a_grid_that_needs_no_gradient_and_one_that_is_used_twice() -> None:
    grids = torch.randn(2, 5, 5)
    assert not mean_squared_variation(grids).requires_grad
    grids.requires_grad_(True)
    loss = 3 * mean_squared_variation(grids) + mean_squared_variation(grids)
    loss.backward(retain_graph=True)
    first = grids.grad.clone()
    loss.backward()
    torch.testing.assert_close(grids.grad, 2 * first)
    grids.grad = None
    mean_squared_variation(grids).backward()
    torch.testing.assert_close(first, 4 * grids.grad)
