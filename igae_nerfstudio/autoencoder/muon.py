"""Muon: momentum with orthogonalised updates (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from typing import Any, Iterable

import torch
from torch import Tensor, nn
from torch.nn import Parameter


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update of each weight is a nearly orthogonal matrix: every direction of the weight learns
    at the same speed. With little time for steps it gets much further than Adam.

    `torch.optim.Muon` (torch 2.9 and newer) takes matrices only. This one takes convolutions, (C_out, C_in, k, k) as
    matrices (C_out, C_in k k), and orthogonalises all weights of one shape in one batch.

    Args:
        params: weights of two dimensions or more.
        lr: the singular values of an update, times sqrt(rows / columns) for matrices with more rows.
        momentum: share of the past.
    """

    def __init__(self, params: Iterable[Parameter], lr: float, momentum: float = 0.95) -> None:
        params = list(params)
        shapes = sorted({weight.shape for weight in params})
        groups = [{"params": [weight for weight in params if weight.shape == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            updates = []
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["moment"] = torch.zeros_like(weight)
                state["moment"].lerp_(weight.grad, 1 - group["momentum"])
                updates.append(torch.lerp(weight.grad, state["moment"], group["momentum"]).flatten(1))
            rows, columns = updates[0].shape
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for weight, update in zip(weights, newton_schulz(torch.stack(updates))):
                weight.sub_(update.reshape(weight.shape), alpha=rate)


def newton_schulz(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of `matrices` (N, rows, columns) near one.

    An odd polynomial of a matrix acts on its singular values alone. Muon's rises steeply at 0, so that five iterations
    do, at the price of singular values that end between about 0.7 and 1.2, which is exact enough for an update.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return newton_schulz(matrices.mT, iterations).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(iterations):
        square = matrices @ matrices.mT
        matrices = a * matrices + (b * square + c * square @ square) @ matrices
    return matrices


def inner_convolutions(autoencoder: Any) -> list[Parameter]:
    """The convolution weights of a diffusers autoencoder, but for the one that reads and the one that writes images."""

    def convolutions(module: nn.Module) -> list[Any]:
        return [part for part in module.modules() if isinstance(part, nn.Conv2d)]

    outer = (convolutions(autoencoder.encoder)[0], convolutions(autoencoder.decoder)[-1])
    return [conv.weight for conv in convolutions(autoencoder) if conv not in outer]
