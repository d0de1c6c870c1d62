"""Samples along rays, in plain torch: where a ray meets a box, stratified and importance samples, their weights.

A ray o + t d, with d of unit length, is cut at boundaries near = b_0 < b_1 < ... < b_n = far. Sample i stands for
the interval [b_i, b_{i+1}] of length delta_i and lies inside it; with densities sigma_i its weight is

    w_i = exp(-sum_{j<i} sigma_j delta_j) (1 - exp(-sigma_i delta_i)).

The intervals fill [near, far] without gaps, so the weights of a constant density sum to 1 - exp(-sigma (far - near))
whatever the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_interval(origins: Tensor, directions: Tensor, half_extent: float) -> tuple[Tensor, Tensor]:
    """Where rays are inside the cube [-half_extent, half_extent]^3.

    Args:
        origins: (..., 3), scene units.
        directions: (..., 3), of unit length.
        half_extent: half the side of the cube.

    Returns:
        near and far (...,), finite, 0 <= near <= far; equal where the ray misses the cube or leaves it behind itself.
    """
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    first, second = (-half_extent - origins) / safe, (half_extent - origins) / safe
    near = torch.minimum(first, second).amax(dim=-1).clamp(min=0)
    far = torch.maximum(first, second).amin(dim=-1)
    return near, torch.maximum(near, far)


def stratified_samples(near: Tensor, far: Tensor, count: int, jitter: bool) -> tuple[Tensor, Tensor]:
    """One sample in each of `count` intervals of equal length.

    Args:
        near, far: (...,) start and end of the rays.
        count: n.
        jitter: uniformly inside the interval, for training; else its middle.

    Returns:
        Samples t (..., n) and boundaries (..., n + 1), both ascending.
    """
    steps = torch.linspace(0, 1, count + 1, device=near.device, dtype=near.dtype)
    boundaries = near[..., None] + (far - near)[..., None] * steps
    offset = torch.rand(*near.shape, count, device=near.device, dtype=near.dtype) if jitter else 0.5
    return boundaries[..., :-1] + offset * boundaries.diff(dim=-1), boundaries


def importance_samples(boundaries: Tensor, weights: Tensor, count: int, jitter: bool, padding: float = 0.01) -> Tensor:
    """Samples distributed like the weights of a first pass (Mildenhall et al. 2020, section 5.2); no gradient.

    Args:
        boundaries: (..., n + 1), ascending.
        weights: (..., n), not negative.
        count: m.
        jitter: stratified random quantiles; else the middle ones.
        padding: share of the probability spread evenly, so that no part of the ray is left out.

    Returns:
        t (..., m), ascending.
    """
    with torch.no_grad():
        n = weights.shape[-1]
        total = weights.sum(dim=-1, keepdim=True)
        even = torch.full_like(weights, 1 / n)
        probability = torch.where(total > 1e-8, weights / total.clamp(min=1e-8), even)
        probability = (1 - padding) * probability + padding * even
        cdf = torch.cat([torch.zeros_like(total), probability.cumsum(dim=-1)], dim=-1)
        cdf = cdf / cdf[..., -1:]
        offset = torch.rand(*weights.shape[:-1], count, device=cdf.device, dtype=cdf.dtype) if jitter else 0.5
        quantiles = ((torch.arange(count, device=cdf.device) + offset) / count).to(cdf.dtype)
        quantiles = quantiles.expand(*weights.shape[:-1], count).contiguous()
        upper = torch.searchsorted(cdf.contiguous(), quantiles, right=True).clamp(1, n)
        low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
        start, end = boundaries.gather(-1, upper - 1), boundaries.gather(-1, upper)
        return start + (end - start) * ((quantiles - low) / (high - low).clamp(min=1e-10)).clamp(0, 1)


def intervals_around(samples: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Lengths delta (..., n) of the intervals around samples t (..., n), ascending within [near, far], each (...,).

    They are cut midway between neighbours, so they sum to far - near.
    """
    middles = (samples[..., 1:] + samples[..., :-1]) / 2
    return torch.cat([near[..., None], middles, far[..., None]], dim=-1).diff(dim=-1)


def volume_weights(densities: Tensor, deltas: Tensor) -> Tensor:
    """The weights w_i (..., n) of densities (..., n) over intervals (..., n); differentiable in the densities."""
    depth = densities * deltas
    transmittance = torch.exp(-(depth.cumsum(dim=-1) - depth))
    return transmittance * -torch.expm1(-depth)


def expected_depth(weights: Tensor, samples: Tensor, far: Tensor) -> Tensor:
    """Mean t (...,) of what a ray meets; the light that passes through counts as `far` (...,)."""
    return (weights * samples).sum(dim=-1) + (1 - weights.sum(dim=-1)) * far
