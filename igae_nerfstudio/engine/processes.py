"""Training in several processes: each takes its share of a step's images, and gradients are averaged.

Nerfstudio wraps models in DistributedDataParallel, which averages what passes through the model's `forward`. Here the
decoder and the regularisers work outside of it, so gradients are averaged where all of them are: before the optimisers'
steps.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterable, Iterator

import torch
import torch.distributed as dist
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils import comms
from torch import Tensor


class AveragedOptimizers(Optimizers):
    """Optimisers that step along the mean of all processes' gradients."""

    def optimizer_scaler_step_some(self, grad_scaler: Any, param_groups: list[str]) -> None:
        average_gradients(p for name in param_groups for g in self.optimizers[name].param_groups for p in g["params"])
        super().optimizer_scaler_step_some(grad_scaler, param_groups)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over all processes, in two messages.

    A parameter without gradient in some processes counts as zero there; one without gradient in all keeps none, so that
    its optimiser passes over it as in a single process.
    """
    parameters = list(parameters)
    if not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    dist.all_reduce(present)
    taught = [p for p, count in zip(parameters, present.tolist()) if count]
    if not taught:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in taught])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, mean in zip(taught, flat.split([p.numel() for p in taught])):
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(mean.view(p.shape))  # its order in memory stays the parameter's, as fused Adam needs it


def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values."""
    for tensor in tensors:
        dist.broadcast(tensor, src=0)


@contextmanager
def first_process_first() -> Iterator[None]:
    """One process of each machine does something, such as filling a cache, before the others find it done."""
    several, first = comms.get_world_size() > 1, comms.get_local_rank() == 0
    if several and not first:
        comms.synchronize()
    yield
    if several and first:
        comms.synchronize()
