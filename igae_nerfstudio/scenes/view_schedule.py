"""Which views a step sees: a function of the step alone, so that a resumed run goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Sequence

import torch

from igae_nerfstudio.errors import InputError


@dataclass
class ViewGroup:
    """Views of one scene in one step."""

    scene: int
    views: tuple[int, ...]


class ViewSchedule:
    """Endless epochs over all views of all scenes, in batches of groups of one scene.

    Each epoch visits every view of every scene once, in a seeded random order; a scene whose number of views is no
    multiple of the group's repeats a few, and the last batch of an epoch repeats the epoch's first groups.

    Args:
        counts: number of views of each scene.
        views_per_batch: views of a step.
        views_per_scene: views of a group; divides `views_per_batch`.
        seed: of the orders.
    """

    def __init__(self, counts: Sequence[int], views_per_batch: int, views_per_scene: int, seed: int) -> None:
        self.counts, self.seed = list(counts), seed
        self.views_per_scene = views_per_scene
        self.groups_per_batch = views_per_batch // views_per_scene
        groups = sum(-(-count // views_per_scene) for count in self.counts)
        self.steps_per_epoch = -(-groups // self.groups_per_batch)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> list[ViewGroup]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        groups: list[ViewGroup] = []
        for scene, count in enumerate(self.counts):
            order = torch.randperm(count, generator=generator).tolist()
            size = self.views_per_scene
            for start in range(0, count, size):
                groups.append(ViewGroup(scene, tuple(order[(start + i) % count] for i in range(size))))
        shuffled = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
        missing = self.steps_per_epoch * self.groups_per_batch - len(shuffled)
        return shuffled + [shuffled[i % len(shuffled)] for i in range(missing)]

    def groups(self, step: int, rank: int = 0, world: int = 1) -> list[ViewGroup]:
        """The groups of a step that process `rank` of `world` works on; equally many for each process.

        Raises:
            InputError: the groups of a batch cannot be shared equally.
        """
        if self.groups_per_batch % world:
            raise InputError(
                f"{self.groups_per_batch} groups of {self.views_per_scene} views cannot be shared equally by {world} "
                "processes; change views_per_batch or views_per_scene"
            )
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.groups_per_batch
        return self._epoch(epoch)[start : start + self.groups_per_batch][rank::world]
