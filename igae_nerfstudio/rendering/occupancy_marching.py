"""March rays through a `nerfacc.OccGridEstimator` in plain torch, on any device.

Instant-NGP (Müller et al. 2022, appendix E, "Accelerated NeRF Ray Marching") keeps a cascade of boolean grids that say
where density may be, steps along each ray with a step size that grows with distance, and spends samples only in
occupied cells. nerfacc 0.5.2 offers that march (`OccGridEstimator.sampling`), but only as CUDA kernels compiled on
first use. The grid itself, its storage and its updates are plain torch, so this module replaces only the march, and
with it the volume-rendering weights of the packed samples that a march returns.

Symbols:
    R: number of rays. Ray r is the half line o + t d with d of unit length, so t is a distance in scene units.
    level: the grids are nested boxes of equal resolution. Level 0 is the region of interest; each further box has the
        same centre and twice the side. A point is looked up in the finest level whose box contains it; outside the
        last box space is empty.
    dt: step length, dt(t) = max(render_step_size, cone_angle * t).
    ladder: t_0, t_1, ... with t_{k+1} = t_k + dt(t_k). Sample k is the interval [t_k, t_{k+1}]; it is kept if its
        midpoint lies in an occupied cell and between near and far.

The ladder has a closed form: it climbs in equal steps until rung k_lin, where cone_angle * t overtakes
render_step_size, and by the factor 1 + cone_angle from there on. So the rungs inside a given stretch of t are known
without walking to it, and a ray is never walked at all:

1. cut each ray at the faces of the nested boxes (at most 2 levels - 1 segments, one level each) and at k_lin; in each
   piece that results, rungs follow one law and cells belong to one level, and the cell coordinate of the m-th midpoint
   is a multiply-add, base + slope * offset(m);
2. chop the pieces into runs of RUN rungs and discard those that no occupied cell is near, by a lookup of their middle
   in a coarse grid of BLOCK-cell blocks;
3. look the remaining runs up in the boolean grid and pack what is occupied;
4. drop the samples that are transparent or hidden, judged by the density.

The samples are nerfacc's: the ladder starts at max(near_plane, nears), plus one stratified offset of a ray, uniform in
[0, render_step_size); up to the outermost box the step stays at dt(start); ranges are half-open (a midpoint at near
counts, one at far does not, and t_end may pass far by up to half a step); both visibility filters and their thresholds
are the same. The differences:

- `cone_angle` > 0, after an empty stretch: nerfacc holds dt while it crosses an empty cell, this ladder updates it, as
  Instant-NGP does. A stretch of samples is shifted by less than one dt and may hold one sample more or less.
- Rounding: nerfacc adds up t in float32, here it is computed from k in float64. Over a thousand steps the two part by
  some 1e-6 relative, at worst 1e-4; midpoints that close to a face can fall on either side.
- A ray in a face plane of a box divides 0 by 0 in nerfacc; here boxes are closed in directions it does not move in.

Step 1 and the distances of the samples that are kept use float64; large arrays have the dtype of the rays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import nerfacc

RUN = 32
"""Rungs per run. Longer runs waste more lookups at the end of each piece, shorter ones need more set-up."""

BLOCK = 8
"""Cells per side of a block of the coarse grid."""

CPU_BATCH = 2**15
"""Lookups per batch on the CPU: small enough to stay in cache and below torch's threading threshold."""

DEVICE_BATCH = 2**22
"""Lookups per batch on other devices, where few large launches are cheaper."""


@dataclass
class MarchedSamples:
    """n samples of many rays, packed into flat arrays, sorted by ray and then by distance."""

    ray_indices: Tensor
    """(n,) int64, the ray of each sample, in [0, R)."""
    t_starts: Tensor
    """(n,) distance at which the sample's interval starts, scene units."""
    t_ends: Tensor
    """(n,) distance at which it ends; to the bit the start of the next where both are neighbours on the ladder."""


@torch.no_grad()
def march_occupancy_grid(
    grid: nerfacc.OccGridEstimator,
    origins: Tensor,
    directions: Tensor,
    density_fn: Callable[[Tensor], Tensor] | None,
    near_plane: float,
    far_plane: float,
    render_step_size: float,
    cone_angle: float,
    alpha_thre: float,
    early_stop_eps: float = 1e-4,
    *,
    stratified: bool,
    generator: torch.Generator | None = None,
    nears: Tensor | None = None,
    fars: Tensor | None = None,
) -> MarchedSamples:
    """Place samples along rays where the grid is occupied and, by `density_fn`, visible.

    Nothing here carries gradient: a march chooses where to sample, and the caller evaluates its field there again, with
    gradients, to render.

    Args:
        grid: reads `binaries` (levels, nx, ny, nz), `aabbs` (levels, 6) and, for the cap on `alpha_thre`, `occs`.
        origins: (R, 3), scene units, inside or outside the boxes.
        directions: (R, 3) of unit length. Zero components are fine.
        density_fn: positions (n, 3) to densities (n, 1) or (n,), non-negative, per scene unit; it is not called without
            candidates. None keeps every sample in occupied cells.
        near_plane: distance before which no sample starts.
        far_plane: distance before which the midpoint of each sample lies.
        render_step_size: smallest step, scene units, positive.
        cone_angle: growth of the step with distance; 0 for constant steps.
        alpha_thre: samples of lower opacity are dropped. Never more than the mean of `grid.occs` is used, so that a
            young, faint field is not dropped altogether.
        early_stop_eps: samples to which less than this transmittance is left are dropped.
        stratified: shift the start of each ray by a uniform draw from [0, render_step_size).
        generator: source of that draw, which is `torch.rand(R)` in the rays' dtype.
        nears: (R,) or (R, 1); the larger of it and `near_plane` holds.
        fars: (R,) or (R, 1); the smaller of it and `far_plane` holds.

    Returns:
        The samples, distances in the dtype of `origins`.
    """
    if render_step_size <= 0.0 or cone_angle < 0.0:
        raise ValueError(f"need render_step_size > 0 and cone_angle >= 0, got {render_step_size} and {cone_angle}")
    near, far = _near_and_far(origins, near_plane, far_plane, nears, fars, render_step_size, stratified, generator)
    cuts, levels = _cut_at_boxes(origins.double(), directions.double(), grid.aabbs.double(), near, far)
    ladder = _Ladder.from_entry(near, cuts[:, 0], render_step_size, cone_angle)
    pieces = _Pieces.from_segments(ladder, cuts, levels)
    ray, rung = _occupied_rungs(grid, origins, directions, ladder, pieces)
    samples = MarchedSamples(ray, ladder.t(ray, rung).to(origins.dtype), ladder.t(ray, rung + 1).to(origins.dtype))
    if density_fn is not None and (alpha_thre > 0.0 or early_stop_eps > 0.0) and ray.numel() > 0:
        alpha_thre = min(alpha_thre, grid.occs.mean().item())
        samples = _drop_invisible(samples, origins, directions, density_fn, alpha_thre, early_stop_eps)
    return samples


# Step 1: where the ladder of each ray starts, and which of its rungs lie in which level


def _near_and_far(
    origins: Tensor,
    near_plane: float,
    far_plane: float,
    nears: Tensor | None,
    fars: Tensor | None,
    render_step_size: float,
    stratified: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Start (with the stratified offset) and end of each ray's march, two (R,) float64 tensors."""
    n_rays = origins.shape[0]
    near = torch.full((n_rays,), near_plane, dtype=torch.float64, device=origins.device)
    far = torch.full((n_rays,), far_plane, dtype=torch.float64, device=origins.device)
    if nears is not None:
        near = torch.maximum(near, nears.reshape(n_rays).double())
    if fars is not None:
        far = torch.minimum(far, fars.reshape(n_rays).double())
    if stratified:
        uniform = torch.rand(n_rays, dtype=origins.dtype, device=origins.device, generator=generator)
        near = near + uniform.double() * render_step_size
    return near, far


def _cut_at_boxes(
    origins: Tensor, directions: Tensor, aabbs: Tensor, near: Tensor, far: Tensor
) -> tuple[Tensor, list[int]]:
    """Cut each ray at the faces of the nested boxes.

    A ray enters the boxes from the outermost to level 0 and leaves them in reverse, so with L levels the 2 L distances
    of entry and exit, in that order, ascend, and between neighbours the finest level that contains the ray is fixed:
    L - 1, ..., 1, 0, 1, ..., L - 1. A box that is missed gets a segment of no length at the entry of the next larger
    one. Unlike `ray_sampling.box_interval`, boxes are closed in directions the ray does not move in, as cells are.

    Args:
        origins, directions: (R, 3) float64.
        aabbs: (L, 6) float64, lower corner and upper corner of each level, nested.
        near, far: (R,) float64.

    Returns:
        The cuts (R, 2 L), ascending and clipped to [near, far] (all equal on a ray with nothing to march), and the
        level of each of the 2 L - 1 segments between them.
    """
    lower = (aabbs[None, :, :3] - origins[:, None]) / directions[:, None]  # (R, L, 3)
    upper = (aabbs[None, :, 3:] - origins[:, None]) / directions[:, None]
    enter, leave = torch.minimum(lower, upper), torch.maximum(lower, upper)

    # Between two planes that it runs parallel to, a ray is either always or never.
    parallel = (directions == 0.0)[:, None]
    between = (origins[:, None] >= aabbs[None, :, :3]) & (origins[:, None] <= aabbs[None, :, 3:])
    enter = torch.where(parallel, torch.where(between, -math.inf, math.inf), enter).amax(dim=-1)  # (R, L)
    leave = torch.where(parallel, torch.where(between, math.inf, -math.inf), leave).amin(dim=-1)

    entries: list[Tensor] = []  # outermost first
    exits: list[Tensor] = []
    outer = near
    for level in reversed(range(aabbs.shape[0])):
        hit = leave[:, level] > enter[:, level]
        entries.append(torch.where(hit, enter[:, level], outer))
        exits.append(torch.where(hit, leave[:, level], outer))
        outer = entries[-1]

    cuts = torch.stack(entries + exits[::-1], dim=-1)
    cuts = torch.minimum(torch.maximum(cuts, near[:, None]), far[:, None])
    outside_in = list(reversed(range(aabbs.shape[0])))
    return cuts, outside_in + outside_in[-2::-1]


@dataclass
class _Ladder:
    """The distances at which the samples of each ray may start.

    Rung k of a ray is at `t0 + k step` up to rung `k_lin` and at `t_lin (1 + cone)^(k - k_lin)` from there on, where
    `t_lin` is the distance of rung `k_lin`. Tensors are (R,), float64 but for `k_lin`, which is int64.
    """

    t0: Tensor
    k_lin: Tensor
    t_lin: Tensor
    step: float
    cone: float

    @classmethod
    def from_entry(cls, near: Tensor, entry: Tensor, step: float, cone: float) -> _Ladder:
        """Ladder from the first of the steps `dt(near)` from `near` whose midpoint reaches `entry`."""
        dt = (near * cone).clamp(min=step)
        t0 = near + ((entry - near) / dt - 0.5).ceil().clamp(min=0.0) * dt
        if cone == 0.0:
            k_lin = torch.full_like(t0, 2**62, dtype=torch.int64)
        else:
            k_lin = ((step / cone - t0) / step).ceil().clamp(min=0.0, max=2**62).long()
        return cls(t0, k_lin, t0 + k_lin.double() * step, step, cone)

    def t(self, ray: Tensor, rung: Tensor) -> Tensor:
        """Distance (n,) float64 of the given rungs (n,) of the given rays (n,)."""
        k_lin = self.k_lin[ray]
        linear = self.t0[ray] + rung.double() * self.step
        if self.cone == 0.0:
            return linear
        growth = torch.exp((rung - k_lin).clamp(min=0).double() * math.log1p(self.cone))
        return torch.where(rung <= k_lin, linear, self.t_lin[ray] * growth)

    def count_midpoints_before(self, distances: Tensor) -> Tensor:
        """How many midpoints of each ray lie before the given distances, (R, m) to (R, m) int64."""
        linear = ((distances - self.t0[:, None]) / self.step - 0.5).ceil().clamp(min=0.0)
        linear = torch.minimum(linear, self.k_lin[:, None].double()).long()
        if self.cone == 0.0:
            return linear
        first = self.t_lin[:, None] * (1.0 + 0.5 * self.cone)  # midpoint of sample k_lin
        ratio = (distances / first).clamp(min=1.0)  # at most 1 where no growing sample comes before
        return linear + (ratio.log() / math.log1p(self.cone)).ceil().long()


@dataclass
class _Pieces:
    """Stretches of neighbouring rungs of one ray, in one level, with one law of growth.

    All (n_pieces,) and int64, sorted by ray and then by rung: the ray, the level, the first rung, the number of rungs
    (positive), and whether the steps grow (1) or are constant (0).
    """

    ray: Tensor
    level: Tensor
    first: Tensor
    count: Tensor
    growing: Tensor

    @classmethod
    def from_segments(cls, ladder: _Ladder, cuts: Tensor, levels: list[int]) -> _Pieces:
        """Cover, once each, the rungs with midpoints between the cuts (R, m + 1) of m segments with these levels."""
        bounds = ladder.count_midpoints_before(cuts)
        first, last = bounds[:, :-1], bounds[:, 1:]  # (R, m), half-open ranges of rungs
        n_laws = 1 if ladder.cone == 0.0 else 2
        if n_laws == 2:  # (R, m, 2): the part of a segment below k_lin, and the part from there on
            middle = torch.minimum(torch.maximum(ladder.k_lin[:, None], first), last)
            first, last = torch.stack([first, middle], dim=-1), torch.stack([middle, last], dim=-1)
        first, count = first.reshape(-1), (last - first).reshape(-1)

        kept = count.nonzero().squeeze(-1)
        segment = kept // n_laws
        return cls(
            ray=segment // len(levels),
            level=torch.tensor(levels, device=cuts.device)[segment % len(levels)],
            first=first[kept],
            count=count[kept],
            growing=kept % n_laws,
        )


# Steps 2 and 3: look the rungs up


def _occupied_rungs(
    grid: nerfacc.OccGridEstimator, origins: Tensor, directions: Tensor, ladder: _Ladder, pieces: _Pieces
) -> tuple[Tensor, Tensor]:
    """Ray and rung, two (n_samples,) int64 tensors, of the samples whose midpoint is in an occupied cell.

    In a piece with constant steps, midpoint m is `middle + m step`; with growing steps it is
    `middle growth^m = middle + middle (growth^m - 1)`, with `growth = 1 + cone`. Cell coordinates, affine in the
    midpoint, are thus `base + slope offset(m)` with an `offset` that only depends on the law. The run that begins at m
    obeys the same law with `base + slope offset(m)` for its base and, as growth multiplies, `slope growth^m` for its
    slope.
    """
    dtype, device = origins.dtype, origins.device
    base, slope = _cell_coordinates(grid, origins, directions, ladder, pieces)

    # The runs: the piece of each, and how many runs of that piece come before it.
    n_runs = (pieces.count + RUN - 1) // RUN
    piece = torch.repeat_interleave(n_runs)
    order = torch.arange(piece.numel(), device=device) - (n_runs.cumsum(0) - n_runs).index_select(0, piece)

    # Offset and growth of the law at the start of the 1st, 2nd, ... run of a piece: a row for each law.
    longest = int(n_runs.max()) if n_runs.numel() > 0 else 0
    begin = torch.arange(longest, dtype=torch.float64, device=device) * RUN
    log_growth = math.log1p(ladder.cone)
    law = torch.stack([begin, torch.expm1(begin * log_growth)]).to(dtype).reshape(-1)
    growth = torch.stack([torch.ones_like(begin), torch.exp(begin * log_growth)]).to(dtype).reshape(-1)
    entry = pieces.growing.index_select(0, piece) * longest + order
    slope = slope.index_select(0, piece)  # (n_runs, 3)
    base = base.index_select(0, piece) + slope * law.index_select(0, entry)[:, None]
    slope = slope * growth.index_select(0, entry)[:, None]

    inside = torch.arange(RUN, dtype=torch.float64, device=device)
    offsets = torch.stack([inside, torch.expm1(inside * log_growth)]).to(dtype)  # (2, RUN)

    level = pieces.level.index_select(0, piece)
    reach = 0.5 * offsets[:, -1].index_select(0, pieces.growing).index_select(0, piece)
    near_occupied = _runs_near_occupied_cells(grid, base, slope, reach, level).nonzero().squeeze(-1)
    piece, order = piece.index_select(0, near_occupied), order.index_select(0, near_occupied)
    base, slope = base.index_select(0, near_occupied), slope.index_select(0, near_occupied)
    run, j = _occupied_in_runs(grid, base, slope, offsets, pieces.level[piece], pieces.growing[piece])

    piece, m = piece.index_select(0, run), order.index_select(0, run) * RUN + j
    # The last run of a piece was looked up in full, but goes on only as far as the piece.
    exists = (m < pieces.count.index_select(0, piece)).nonzero().squeeze(-1)
    piece, m = piece.index_select(0, exists), m.index_select(0, exists)
    return pieces.ray.index_select(0, piece), pieces.first.index_select(0, piece) + m


def _cell_coordinates(
    grid: nerfacc.OccGridEstimator, origins: Tensor, directions: Tensor, ladder: _Ladder, pieces: _Pieces
) -> tuple[Tensor, Tensor]:
    """Base and slope, two (n_pieces, 3) tensors, of the cell coordinates of each piece.

    A cell coordinate runs from 0 to the resolution across the box of the piece's level. It is a small difference
    between the origin of a far camera and the way to the box, hence float64 until it is taken.
    """
    resolution = torch.tensor(grid.binaries.shape[1:], dtype=torch.float64, device=origins.device)
    lower, upper = grid.aabbs.double()[pieces.level].split(3, dim=-1)
    cells_per_unit = resolution / (upper - lower)
    start = ladder.t(pieces.ray, pieces.first)
    is_growing = pieces.growing == 1
    middle = torch.where(is_growing, start * (1.0 + 0.5 * ladder.cone), start + 0.5 * ladder.step)[:, None]
    scale = torch.where(is_growing[:, None], middle, ladder.step)
    direction = directions.double()[pieces.ray]
    base = (origins.double()[pieces.ray] + middle * direction - lower) * cells_per_unit
    slope = scale * direction * cells_per_unit
    return base.to(origins.dtype), slope.to(origins.dtype)


def _runs_near_occupied_cells(
    grid: nerfacc.OccGridEstimator, base: Tensor, slope: Tensor, reach: Tensor, level: Tensor
) -> Tensor:
    """Whether a run may meet an occupied cell, (n_runs,) bool; false only if it certainly does not.

    Blocks of BLOCK^3 cells count as occupied if any of their cells, or of their 26 neighbours', is. A run that reaches
    at most one block's side from a point along each axis stays in the neighbourhood of that point's block. Clamping the
    point into the grid takes it no farther from the part of the run inside.

    Args:
        grid: the occupancy grid.
        base: (n_runs, 3) cell coordinates of the first midpoint of each run.
        slope: (n_runs, 3) cell coordinates per unit of offset.
        reach: (n_runs,) half the offset of the last rung of a full run.
        level: (n_runs,) int64.
    """
    shape = grid.binaries.shape[1:]
    coarse = [-(-cells // BLOCK) for cells in shape]
    blocks = grid.binaries.contiguous().view(torch.uint8)
    padding = [BLOCK * many - cells for many, cells in zip(coarse, shape, strict=True)]
    if any(padding):
        blocks = torch.nn.functional.pad(blocks, [0, padding[2], 0, padding[1], 0, padding[0]])
    n_levels = blocks.shape[0]
    blocks = blocks.reshape(n_levels * coarse[0], BLOCK, -1).amax(dim=1)  # one axis at a time, which is fast
    blocks = blocks.reshape(n_levels * coarse[0] * coarse[1], BLOCK, -1).amax(dim=1)
    blocks = blocks.reshape(n_levels, 1, *coarse, BLOCK).amax(dim=-1)
    occupied = torch.nn.functional.max_pool3d(blocks.float(), 3, stride=1, padding=1).reshape(-1) > 0.0

    margin = BLOCK - 0.01  # far above the rounding of a coordinate
    block = level
    for axis, many in enumerate(coarse):
        point = (base[:, axis] + reach * slope[:, axis]).clamp_(0, shape[axis] - 1)
        block = block * many + point.to(torch.int64) // BLOCK
    return occupied.index_select(0, block) | (slope.abs().amax(dim=-1) * reach > margin)


def _occupied_in_runs(
    grid: nerfacc.OccGridEstimator, base: Tensor, slope: Tensor, offsets: Tensor, level: Tensor, growing: Tensor
) -> tuple[Tensor, Tensor]:
    """Look up all RUN rungs of each run; return run and position in it, int64, of the occupied ones.

    Args:
        grid, base, slope, level: as of `_runs_near_occupied_cells`.
        offsets: (2, RUN) offsets of constant and of growing steps.
        growing: (n_runs,) int64, row of `offsets` that holds for the run.
    """
    occupied = grid.binaries.reshape(-1)
    index_dtype = torch.int32 if occupied.numel() < 2**31 else torch.int64
    resolution = grid.binaries.shape[1:]
    level = level.to(index_dtype)[:, None]

    batch = (CPU_BATCH if base.device.type == "cpu" else DEVICE_BATCH) // RUN
    found = [torch.empty(0, 2, dtype=torch.int64, device=base.device)]
    for begin in range(0, base.shape[0], batch):
        these = slice(begin, begin + batch)
        offset = offsets.index_select(0, growing[these])  # (batch, RUN)
        cell = level[these]
        for axis, cells in enumerate(resolution):
            coordinate = (offset * slope[these, axis, None]).add_(base[these, axis, None])
            coordinate = coordinate.clamp_(0, cells - 1).to(index_dtype)  # truncation is floor from 0 up
            cell = coordinate.add_(cell * cells)
        where = occupied.index_select(0, cell.view(-1)).view_as(cell).nonzero()
        where[:, 0] += begin
        found.append(where)
    run, j = torch.cat(found).unbind(dim=-1)
    return run, j


# Step 4: visibility, and rendering of packed samples


def _drop_invisible(
    samples: MarchedSamples,
    origins: Tensor,
    directions: Tensor,
    density_fn: Callable[[Tensor], Tensor],
    alpha_thre: float,
    early_stop_eps: float,
) -> MarchedSamples:
    """Keep the samples with opacity at least `alpha_thre` and transmittance at least `early_stop_eps`.

    The transmittance in front of a sample counts all samples before it, also those dropped as transparent.
    """
    ray, t_starts, t_ends = samples.ray_indices, samples.t_starts, samples.t_ends
    positions = origins[ray] + directions[ray] * ((t_starts + t_ends) * 0.5)[:, None]
    optical_depth = density_fn(positions).reshape(t_starts.shape).to(t_starts.dtype) * (t_ends - t_starts)
    depth_in_front = _exclusive_sum_along_rays(optical_depth, ray, origins.shape[0])
    visible = torch.exp(-depth_in_front) >= early_stop_eps
    if alpha_thre > 0.0:
        visible &= -torch.expm1(-optical_depth) >= alpha_thre
    return MarchedSamples(ray[visible], t_starts[visible], t_ends[visible])


def _exclusive_sum_along_rays(values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Sum (n,), for each packed sample, of the values (n,) of the samples before it on its own ray; differentiable.

    The samples are laid out in a (n_rays, longest + 1) table, one place to the right, and summed along rows, so that
    neither rounding nor an infinite value reaches another ray, and no difference of large sums is taken.
    """
    if values.numel() == 0:
        return values
    bounds = torch.searchsorted(ray_indices, torch.arange(n_rays + 1, device=ray_indices.device))
    longest = int((bounds[1:] - bounds[:-1]).max())
    place = torch.arange(values.numel(), device=values.device) - bounds[ray_indices]
    slot = ray_indices * (longest + 1) + place
    table = values.new_zeros(n_rays * (longest + 1)).index_put((slot + 1,), values)
    return table.view(n_rays, longest + 1).cumsum(dim=-1).view(-1)[slot]


def render_weights(sigmas: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Volume-rendering weight of each packed sample: `w = T (1 - exp(-sigma dt))`.

    `T = exp(-sum of sigma dt)` over the samples before it on the same ray is the light that reaches the sample; the
    weights of a ray sum to its opacity, in [0, 1].

    Args:
        sigmas: (n,) densities per scene unit, non-negative.
        t_starts, t_ends: (n,) interval bounds, scene units.
        ray_indices: (n,) int64, ascending, in [0, n_rays).
        n_rays: number of rays, also those without samples.

    Returns:
        (n,) weights in [0, 1], differentiable in `sigmas` (and in the distances, if they carry gradient).
    """
    optical_depth = sigmas * (t_ends - t_starts)
    transmittance = torch.exp(-_exclusive_sum_along_rays(optical_depth, ray_indices, n_rays))
    return transmittance * -torch.expm1(-optical_depth)
