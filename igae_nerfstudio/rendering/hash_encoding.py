"""Nerfstudio's multi-resolution hash encoding in plain torch, several times faster, for where tinycudann is not there.

Nerfstudio hashes each of a cell's eight corners by itself and looks each up with a kernel for general indexing. Here a
corner's hash comes from six products, one kernel looks up and sums all eight, and one scatters their gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

PRIMES = (1, 2_654_435_761 - 2**32, 805_459_861)
"""Mueller et al. 2022, equation 4, as 32-bit numbers: of products, only the low bits count."""


class FastHashEncoding(HashEncoding):
    """Nerfstudio's encoding; values, parameters and checkpoints are the same."""

    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """Features (..., L F) at points (..., 3) in [0, 1]."""
        indices, weights = self._corners(in_tensor)
        return _WeightedLookup.apply(self.hash_table, indices, weights).flatten(-2)

    def _corners(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table and linear weights (..., L, 8) of the corners around points (..., 3)."""
        scaled = points[..., None, :] * self.scalings.view(-1, 1).to(points.device)  # (..., L, 3)
        low, high = scaled.floor(), scaled.ceil()
        primes = torch.tensor(PRIMES, device=points.device, dtype=torch.int32)
        x, y, z = torch.stack([low.int() * primes, high.int() * primes], dim=-1).unbind(-2)  # each (..., L, 2)
        hashed = x[..., :, None, None] ^ y[..., None, :, None] ^ z[..., None, None, :]
        rows = (hashed & (self.hash_table_size - 1)).flatten(-3)
        rows = rows + self.hash_offset[:, None].to(rows)  # of all levels, fewer than 2^31
        share = scaled - low.detach()
        x, y, z = torch.stack([1 - share, share], dim=-1).unbind(-2)
        return rows, (x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]).flatten(-3)


class _WeightedLookup(torch.autograd.Function):
    """Sums of rows (T, F) with weights: (..., 8) indices and weights to (..., F)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, indices, weights)
        corners = indices.shape[-1]
        summed = F.embedding_bag(
            indices.reshape(-1, corners), table, per_sample_weights=weights.reshape(-1, corners), mode="sum"
        )
        return summed.view(*indices.shape[:-1], table.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None, Any]:
        table, indices, weights = ctx.saved_tensors
        of_table = of_weights = None
        if ctx.needs_input_grad[0]:
            of_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
            features = table.shape[1]
            places = features * indices[..., None] + torch.arange(features, device=table.device)
            values = weights[..., None] * gradient[..., None, :]
            of_table.view(-1).scatter_add_(0, places.flatten(), values.to(table.dtype).flatten())
        if ctx.needs_input_grad[2]:
            found = table.index_select(0, indices.flatten()).view(*indices.shape, -1)
            of_weights = (found * gradient[..., None, :]).sum(dim=-1)
        return of_table, None, of_weights


def use_fast_hash_encoding(module: nn.Module) -> None:
    """Let every torch hash encoding in a module be a `FastHashEncoding`, with the parameters that it has."""
    for part in module.modules():
        if type(part) is HashEncoding and part.tcnn_encoding is None:
            part.__class__ = FastHashEncoding
