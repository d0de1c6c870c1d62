"""Planes on disk, and an Adam that touches only what is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.scenes.plane_store import PlaneStore
from igae_nerfstudio.scenes.view_schedule import ViewSchedule

SHAPE = (5, 3, 2, 4, 4)


def filled(folder: Path) -> PlaneStore:
    store = PlaneStore(folder, SHAPE)
    torch.manual_seed(0)
    for scene in range(5):
        store.fill(scene, torch.randn(SHAPE[1:]))
    return store


def test_steps_are_those_of_torch_adam(tmp_path: Path) -> None:
    store = filled(tmp_path)
    reference = store.load([1, 3]).requires_grad_(True)
    adam = torch.optim.Adam([reference], lr=0.05, betas=store.betas, eps=store.eps)
    others = store.load([0, 2, 4])
    for _ in range(7):
        gradient = torch.randn(2, *SHAPE[1:])
        reference.grad = gradient.clone()
        adam.step()
        store.step([1, 3], store.load([1, 3]), gradient, lr=0.05)
        torch.testing.assert_close(store.load([1, 3]), reference.detach(), atol=1e-6, rtol=1e-5)
    assert torch.equal(store.load([0, 2, 4]), others)
    assert store.visits.tolist() == [0, 7, 0, 7, 0]


def test_planes_are_on_disk_and_come_back(tmp_path: Path) -> None:
    store = filled(tmp_path / "a")
    store.step([2], store.load([2]), torch.ones(1, *SHAPE[1:]), lr=0.1)
    again = PlaneStore(tmp_path / "a", SHAPE)
    assert torch.equal(again.load(range(5)), store.load(range(5)))
    store.save(tmp_path / "saved")
    kept, visits = store.load(range(5)), store.visits.clone()
    store.step([2], store.load([2]), torch.ones(1, *SHAPE[1:]), lr=0.1)
    assert not torch.equal(store.load([2])[0], kept[2])
    store.restore(tmp_path / "saved", visits)
    assert torch.equal(store.load(range(5)), kept) and torch.equal(store.visits, visits)
    with pytest.raises(InputError, match="not of shape"):
        PlaneStore(tmp_path / "b", (4, *SHAPE[1:])).restore(tmp_path / "saved", visits[:4])


def test_every_view_once_an_epoch_and_shares_add_up() -> None:
    counts = [7, 3, 8]
    schedule = ViewSchedule(counts, views_per_batch=8, views_per_scene=2, seed=3)
    assert schedule.steps_per_epoch == -(-(4 + 2 + 4) // 4)
    seen = [g for step in range(schedule.steps_per_epoch) for g in schedule.groups(step)]
    visited = {(g.scene, view) for g in seen for view in g.views}
    assert visited == {(scene, view) for scene, count in enumerate(counts) for view in range(count)}
    other = [g for step in range(3, 6) for g in schedule.groups(step)]
    assert other != seen  # the second epoch has its own order
    again = ViewSchedule(counts, views_per_batch=8, views_per_scene=2, seed=3)
    assert again.groups(4) == schedule.groups(4)
    halves = [schedule.groups(1, rank, 2) for rank in range(2)]
    assert sorted(map(str, halves[0] + halves[1])) == sorted(map(str, schedule.groups(1)))
    with pytest.raises(InputError, match="3 processes"):
        schedule.groups(0, 0, 3)
