"""The Tri-Planes of all scenes, or whatever they are made of, on disk.

Hundreds of scenes times 3 K^2 F numbers, and twice as many for Adam, do not belong in memory when a step touches a
handful of scenes. They lie in three memory-mapped files; a step copies the planes of its scenes to the device,
and writes them back after an Adam step of their own. Scenes that are not in the batch cost nothing: neither
gradient nor optimiser work ("lazy" Adam: a scene's moments decay only when it is visited).
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from igae_nerfstudio.errors import InputError

FILES = ("planes", "first_moment", "second_moment")


class PlaneStore:
    """Planes (N, 3, F, K, K) and their Adam state in `folder`.

    Args:
        folder: holds the files; made where it is missing.
        shape: (N, 3, F, K, K); what each scene has of its own may have any other shape as well.
        betas: Adam's.
        eps: Adam's.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
    ) -> None:
        self.folder, self.shape, self.betas, self.eps = folder, tuple(shape), betas, eps
        folder.mkdir(parents=True, exist_ok=True)
        count = math.prod(shape)
        self._maps: dict[str, Tensor] = {}
        for name in FILES:
            path = folder / f"{name}.f32"
            with path.open("ab") as file:
                file.truncate(4 * count)
            self._maps[name] = torch.from_file(str(path), shared=True, size=count).view(self.shape)
        self.visits = torch.zeros(shape[0], dtype=torch.int64)
        """How many steps each scene has had (Adam's t)."""

    def __len__(self) -> int:
        return self.shape[0]

    def fill(self, scene: int, planes: Tensor) -> None:
        """Set the planes (3, F, K, K) of a scene and forget its optimiser state."""
        self._maps["planes"][scene] = planes
        self._maps["first_moment"][scene] = self._maps["second_moment"][scene] = self.visits[scene] = 0

    def load(self, scenes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """A copy (S, 3, F, K, K) of the planes of some scenes, which can carry gradient."""
        return self._maps["planes"][torch.as_tensor(scenes)].to(device)

    @torch.no_grad()
    def step(self, scenes: Sequence[int], planes: Tensor, gradient: Tensor, lr: float | Tensor) -> None:
        """One Adam step for S distinct scenes, on the planes (S, 3, F, K, K) that `load` returned and their gradient; a
        learning rate for all numbers of a scene or one for each."""
        index = torch.as_tensor(scenes)
        beta1, beta2 = self.betas
        device = planes.device
        self.visits[index] += 1
        visits = self.visits[index].view(-1, *[1] * (len(self.shape) - 1)).to(device, torch.float32)
        first = self._maps["first_moment"][index].to(device).lerp_(gradient, 1 - beta1)
        second = self._maps["second_moment"][index].to(device).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / (1 - beta1**visits)) / ((second / (1 - beta2**visits)).sqrt_().add_(self.eps))
        for name, value in (("planes", planes - lr * update), ("first_moment", first), ("second_moment", second)):
            self._maps[name][index] = value.detach().cpu()

    def save(self, folder: Path) -> None:
        """Copy the files to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(self.folder / f"{name}.f32", folder / f"{name}.f32")

    def restore(self, folder: Path, visits: Tensor) -> None:
        """Take the files of a folder that `save` wrote.

        Raises:
            InputError: they are of another size.
        """
        count = self._maps["planes"].numel()
        for name in FILES:
            path = folder / f"{name}.f32"
            if not path.exists() or path.stat().st_size != 4 * count:
                raise InputError(f"{path} is not of shape {self.shape}; resume with the run's own configuration")
            self._maps[name].copy_(torch.from_file(str(path), shared=False, size=count).view(self.shape))
        self.visits = visits.clone()
