"""Gaussian splatting of c-channel features: 3D Gaussians -> the picture of a pinhole camera (Kerbl et al. 2023).

With the Gaussians in order of distance, a pixel at u is

    y(u) = sum_i w_i f_i,    w_i = a_i prod_{j<i} (1 - a_j),    a_i = o_i exp(-(u - m_i)^T S_i^-1 (u - m_i) / 2),

where m_i is the projected mean and S_i the projected covariance J W Sigma_i W^T J^T, widened by a blur of variance
`BLUR` and its opacity o_i lowered so that the splat's sum stays what it was ("antialiased" in gsplat; Mip-Splatting,
Yu et al. 2024). A contribution below 1 / 255 is none.

On CUDA gsplat's kernels do this. Elsewhere it is plain torch, which lists the pairs of a Gaussian and a pixel that it
reaches: a latent picture has 1 / 64 of the photo's pixels, so these are few.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Callable

import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from igae_nerfstudio.console import warn
from igae_nerfstudio.errors import InputError, one_line

BLUR = 0.3
"""Variance that each splat is widened by, in square pixels."""
LEAST_ALPHA = 1 / 255
MOST_ALPHA = 0.999
NEAR = 0.01
"""Gaussians nearer to the camera's plane are not seen, in scene units."""
MOST_PAIRS = 50_000_000
"""Pairs of a Gaussian and a pixel in one picture."""
GSPLAT_CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32)
"""Channels for which all versions of gsplat have kernels; more are rendered 32 at a time."""
BEYOND_EDGE = 0.3
"""The projection is linearised at a point no further outside the picture than so much of half its size."""


@dataclass
class Gaussians:
    """N Gaussians."""

    means: Tensor
    """(N, 3), world space."""
    scales: Tensor
    """(N, 3), standard deviations along their axes, positive."""
    quats: Tensor
    """(N, 4), rotations (w, x, y, z) of any length but 0."""
    opacities: Tensor
    """(N,) in [0, 1]."""
    features: Tensor
    """(N, c)."""


def covariance_roots(quats: Tensor, scales: Tensor) -> Tensor:
    """(N, 3, 3): R diag(scales), whose product with its transpose is the covariance."""
    return rotation_matrices(quats) * scales[:, None, :]


@dataclass
class Splats:
    """Gaussians as a camera sees them."""

    means: Tensor
    """(N, 2), pixels right and down of the picture's corner."""
    covariances: Tensor
    """(N, 3): xx, xy and yy in square pixels, blurred."""
    opacities: Tensor
    """(N,), those of the blurred splats; 0 for Gaussians that are not seen."""
    distances: Tensor
    """(N,) from the camera, in scene units."""


def rotation_matrices(quats: Tensor) -> Tensor:
    """(..., 3, 3) of quaternions (..., 4), (w, x, y, z), which need not have length 1."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def world_to_camera(camera: Cameras) -> tuple[Tensor, Tensor]:
    """R (3, 3) and t (3,) with R p + t right, down and ahead of a camera of batch shape (1,)."""
    pose = camera.camera_to_worlds[0]
    rotation = torch.stack([pose[:, 0], -pose[:, 1], -pose[:, 2]])  # Nerfstudio's cameras look along -z, with y up
    return rotation, -rotation @ pose[:, 3]


def project(gaussians: Gaussians, camera: Cameras, blur: float = BLUR) -> Splats:
    """The splats of N Gaussians in a pinhole camera of batch shape (1,)."""
    rotation, translation = world_to_camera(camera)
    points = gaussians.means @ rotation.T + translation
    seen = points[:, 2] > NEAR
    x, y, z = points.where(seen[:, None], torch.ones_like(points)).unbind(-1)
    fx, fy, cx, cy = (value.item() for value in (camera.fx, camera.fy, camera.cx, camera.cy))
    width, height = int(camera.width), int(camera.height)
    margin_x, margin_y = BEYOND_EDGE * width / 2, BEYOND_EDGE * height / 2
    at_x = (x / z).clamp(-(cx + margin_x) / fx, (width - cx + margin_x) / fx)
    at_y = (y / z).clamp(-(cy + margin_y) / fy, (height - cy + margin_y) / fy)

    roots = rotation @ covariance_roots(gaussians.quats, gaussians.scales)  # (N, 3, 3)
    across = (roots[:, 0] - at_x[:, None] * roots[:, 2]) * (fx / z)[:, None]  # rows of J W R S
    down = (roots[:, 1] - at_y[:, None] * roots[:, 2]) * (fy / z)[:, None]
    xx, xy, yy = (across * across).sum(-1), (across * down).sum(-1), (down * down).sum(-1)
    sharp = xx * yy - xy * xy
    xx, yy = xx + blur, yy + blur
    kept = (sharp.clamp_min(0) / (xx * yy - xy * xy) + 1e-12).sqrt()  # a square root at 0 has no gradient
    return Splats(
        torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1),
        torch.stack([xx, xy, yy], dim=-1),
        gaussians.opacities * kept * seen,
        points.norm(dim=-1),
    )


def composite(splats: Splats, features: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Front to back: features (h, w, c) and accumulation (h, w, 1) of splats with features (N, c)."""
    limit = 2 * (splats.opacities.detach() / LEAST_ALPHA).clamp_min(1e-9).log()  # of the squared deviations
    order = splats.distances.detach().argsort()
    order = order[limit[order] > 0]
    xx, xy, yy = splats.covariances[order].unbind(-1)
    conics = torch.stack([yy, -xy, xx], dim=-1) / (xx * yy - xy * xy)[:, None]
    means, opacities = splats.means[order], splats.opacities[order]
    values = torch.cat([features, torch.ones_like(features[:, :1])], dim=-1)[order]
    reach = (limit[order, None] * splats.covariances.detach()[order][:, [0, 2]]).sqrt()
    pairs = reached_pixels(means.detach(), conics.detach(), limit[order], reach, width, height)
    picture = _Composite.apply(means, conics, opacities, values, pairs).view(height, width, -1)
    return picture[..., :-1], picture[..., -1:]


@dataclass
class Pairs:
    """P pairs of a splat and a pixel that it reaches, by pixel and, of each pixel, in the order of the splats.

    As a sparse matrix, pixels x splats, it composites: torch multiplies such a matrix ten times as fast as it gathers
    and scatters its entries.
    """

    splat: Tensor
    """(P,)."""
    pixel: Tensor
    """(P,): row times width plus column."""
    by_splat: Tensor
    """(P,): numbers of the pairs, grouped by splat."""
    splats: int
    """K."""
    width: int
    height: int

    def __post_init__(self) -> None:
        self.pixel_starts = row_starts(self.pixel, self.width * self.height)
        self.splat_starts = row_starts(self.splat, self.splats)

    def offsets(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """(P,), (P,): from the splats' means (K, 2) to the pixels' centres."""
        x, y = self.pixel % self.width + 0.5, self.pixel // self.width + 0.5
        return x - of_pairs(means[:, 0], self.splat), y - of_pairs(means[:, 1], self.splat)

    def to_pixels(self, weights: Tensor, values: Tensor) -> Tensor:
        """(h w, c): sums over the pairs of each pixel of weights (P,) times the splats' values (K, c)."""
        return sparse(self.pixel_starts, self.splat, weights, len(values)) @ values

    def to_splats(self, weights: Tensor, values: Tensor) -> Tensor:
        """(K, c): sums over the pairs of each splat of weights (P,) times the pixels' values (h w, c)."""
        columns, weights = of_pairs(self.pixel, self.by_splat), of_pairs(weights, self.by_splat)
        return sparse(self.splat_starts, columns, weights, len(values)) @ values

    def per_splat(self, values: Tensor) -> Tensor:
        """(K, c): sums of the pairs' values (P, c)."""
        return sparse(self.splat_starts, self.by_splat, torch.ones_like(values[:, 0]), len(values)) @ values

    def products(self, of_pixels: Tensor, of_splats: Tensor) -> Tensor:
        """(P,): each pair's product of a pixel's vector (h w, c) and a splat's (K, c)."""
        if of_pixels.is_cuda or torch.backends.mkl.is_available():
            nothing = sparse(self.pixel_starts, self.splat, of_pixels.new_zeros(len(self.splat)), len(of_splats))
            return torch.sparse.sampled_addmm(nothing, of_pixels, of_splats.T, beta=0.0).values()
        return (of_pixels.index_select(0, self.pixel) * of_splats.index_select(0, self.splat)).sum(dim=-1)


def row_starts(rows: Tensor, count: int) -> Tensor:
    """(count + 1,): where each row begins in entries that are grouped by row (P,)."""
    return F.pad(rows.bincount(minlength=count).cumsum(0), (1, 0))


def sparse(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """A sparse matrix of so many columns, whose row i has the entries from starts[i] to starts[i + 1]."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # "support is in beta state", "invariant checks"
        return torch.sparse_csr_tensor(starts, columns, values, (len(starts) - 1, width), check_invariants=False)


def of_pairs(values: Tensor, splat: Tensor) -> Tensor:
    """(P,): each pair's entry of (K,)."""
    return values.contiguous().index_select(0, splat)


@torch.no_grad()
def reached_pixels(means: Tensor, conics: Tensor, limits: Tensor, reach: Tensor, width: int, height: int) -> Pairs:
    """The pixels in whose centres K splats (K, 2), (K, 3) have a squared deviation of at most `limits` (K,).

    None is further from a mean than `reach` (K, 2), across and down.
    """
    size = torch.tensor([width, height], device=means.device)
    first = (means - reach - 0.5).ceil().clamp_min(0).minimum(size).long()
    last = (means + reach - 0.5).floor().clamp_min(-1).minimum(size - 1).long()
    columns, rows = (last - first + 1).clamp_min(0).unbind(-1)
    counts = columns * rows
    if (pairs := int(counts.sum())) > MOST_PAIRS:
        raise InputError(
            f"{len(means):,} Gaussians and {width} x {height} latent pixels make {pairs:,} pairs, more than memory is "
            f"planned for ({MOST_PAIRS:,}); lower --pipeline.model.num-gaussians or take smaller photos"
        )
    splat = torch.arange(len(means), device=means.device).repeat_interleave(counts)
    place = torch.arange(len(splat), device=means.device) - of_pairs(counts.cumsum(0) - counts, splat)
    across = of_pairs(columns, splat)
    down = place // across
    column, row = of_pairs(first[:, 0], splat) + place - down * across, of_pairs(first[:, 1], splat) + down
    dx, dy = (at + 0.5 - of_pairs(means[:, i], splat) for i, at in enumerate((column, row)))
    inside = squared_deviations(dx, dy, conics, splat) <= of_pairs(limits, splat)
    splat, (pixel, sorting) = splat[inside], (row * width + column)[inside].int().sort(stable=True)
    by_splat = torch.empty_like(sorting)
    by_splat[sorting] = torch.arange(len(sorting), device=means.device)
    return Pairs(splat.index_select(0, sorting), pixel.long(), by_splat, len(means), width, height)


def squared_deviations(dx: Tensor, dy: Tensor, conics: Tensor, splat: Tensor) -> Tensor:
    """(P,): d^T S^-1 d of offsets d = (dx, dy), (P,) each."""
    a, b, c = (of_pairs(conics[:, i], splat) for i in range(3))
    return a * dx * dx + 2 * b * dx * dy + c * dy * dy


class _Composite(torch.autograd.Function):
    """Means (K, 2), inverse covariances (K, 3), opacities (K,) and values (K, c) -> sums over splats (h w, c).

    Written out, as autograd would keep several numbers for every pair and channel.
    """

    @staticmethod
    def forward(ctx: Any, means: Tensor, conics: Tensor, opacities: Tensor, values: Tensor, pairs: Pairs) -> Tensor:
        deviations = squared_deviations(*pairs.offsets(means), conics, pairs.splat)
        alpha = (of_pairs(opacities, pairs.splat) * (-deviations / 2).exp()).clamp_max(MOST_ALPHA)
        # What passes the nearer splats of a pixel: a running product, as a sum of logarithms over all pairs.
        logs = torch.log1p(-alpha.double())
        passed = logs.cumsum(0) - logs
        passed = (passed - of_pairs(passed, pairs.pixel_starts[pairs.pixel])).exp().to(alpha.dtype)
        ctx.save_for_backward(means, conics, opacities, values, alpha, passed)
        ctx.pairs = pairs
        return pairs.to_pixels(alpha * passed, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        means, conics, opacities, values, alpha, passed = ctx.saved_tensors
        pairs, gradient = ctx.pairs, gradients[0].contiguous()
        weights = alpha * passed
        of_weights = pairs.products(gradient, values)
        # A splat's alpha also dims all that lies behind it.
        behind = (of_weights * weights).double()
        behind = of_pairs(F.pad(behind.cumsum(0), (1, 0)), pairs.pixel_starts[pairs.pixel + 1]) - behind.cumsum(0)
        of_alpha = of_weights * passed - behind.to(alpha.dtype) / (1 - alpha)
        of_exponent = (of_alpha * alpha).where(alpha < MOST_ALPHA, torch.zeros_like(alpha))
        dx, dy = pairs.offsets(means)
        moments = [torch.ones_like(dx), dx, dy, dx * dx, dx * dy, dy * dy]
        sums = pairs.per_splat(of_exponent[:, None] * torch.stack(moments, dim=-1))
        a, b, c = conics.unbind(-1)
        return (
            torch.stack([a * sums[:, 1] + b * sums[:, 2], b * sums[:, 1] + c * sums[:, 2]], dim=-1),
            torch.stack([-sums[:, 3] / 2, -sums[:, 4], -sums[:, 5] / 2], dim=-1),
            sums[:, 0] / opacities,
            pairs.to_splats(weights, gradient),
            None,
        )


def rasterize(gaussians: Gaussians, camera: Cameras, blur: float = BLUR) -> tuple[Tensor, Tensor, Tensor]:
    """Features (h, w, c), depth (h, w, 1) and accumulation (h, w, 1) of a pinhole camera of batch shape (1,).

    Features are those of the Gaussians alone, with nothing behind them; depth is the mean distance of what is seen,
    in scene units.

    Raises:
        InputError: the Gaussians reach so many pixels that memory would end.
    """
    width, height = int(camera.width), int(camera.height)
    if gaussians.means.is_cuda and (kernels := gsplat_kernels()) is not None:
        distances = (gaussians.means - camera.camera_to_worlds[0, :, 3]).norm(dim=-1)
        values = torch.cat([gaussians.features, distances[:, None]], dim=-1)
        picture, accumulation = _with_gsplat(kernels, replace(gaussians, features=values), camera, blur)
    else:
        splats = project(gaussians, camera, blur)
        values = torch.cat([gaussians.features, splats.distances[:, None]], dim=-1)
        picture, accumulation = composite(splats, values, width, height)
    return picture[..., :-1], picture[..., -1:] / accumulation.clamp_min(1e-6), accumulation


@lru_cache(maxsize=1)
def gsplat_kernels() -> Callable[..., Any] | None:
    """gsplat's `rasterization`, tried on one Gaussian, as it is compiled when it is first used; None: not here."""
    try:
        from gsplat import rasterization

        one, device = torch.ones(1, 3, device="cuda"), torch.device("cuda")
        camera = Cameras(torch.eye(4)[None, :3], 4.0, 4.0, 2.0, 2.0, width=4, height=4).to(device)
        ahead = Gaussians(-one, one, torch.ones(1, 4, device=device), one[0, :1], one)
        _with_gsplat(rasterization, ahead, camera, BLUR)
    except Exception as error:
        warn(f"gsplat's kernels do not work here ({one_line(error)[:200]}); slower PyTorch code takes their place.")
        return None
    return rasterization


def _with_gsplat(
    rasterization: Callable[..., Any], gaussians: Gaussians, camera: Cameras, blur: float
) -> tuple[Tensor, Tensor]:
    """As `composite`, for gsplat 1.4.0 to 1.5.3."""
    rotation, translation = world_to_camera(camera)
    view, intrinsics = torch.eye(4).to(rotation), torch.eye(3).to(rotation)
    view[:3, :3], view[:3, 3] = rotation, translation
    intrinsics[0, 0], intrinsics[1, 1] = camera.fx[0, 0], camera.fy[0, 0]
    intrinsics[0, 2], intrinsics[1, 2] = camera.cx[0, 0], camera.cy[0, 0]
    channels = gaussians.features.shape[-1]
    width = next((size for size in GSPLAT_CHANNELS if size >= channels), -(-channels // 32) * 32)
    picture, accumulation, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        F.pad(gaussians.features, (0, width - channels)),
        view[None],
        intrinsics[None],
        int(camera.width),
        int(camera.height),
        near_plane=NEAR,
        eps2d=blur,
        rasterize_mode="antialiased",
    )
    return picture[0, ..., :channels], accumulation[0]
