"""Marching and weights of packed samples, against slow references that are easy to believe."""

from __future__ import annotations

import math
from collections.abc import Callable

import nerfacc
import pytest
import torch
from torch import Tensor

from igae_nerfstudio.rendering.occupancy_marching import MarchedSamples, march_occupancy_grid, render_weights

STEP = 0.0371
"""Not commensurate with the cells below, so that no midpoint is on a face."""


# ---------------------------------------------------------------------------------------------------------
# The slow reference: one ray, one step and one level at a time, in Python floats
# ---------------------------------------------------------------------------------------------------------


class SlowGrid:
    """A grid in Python numbers, asked for one point at a time."""

    def __init__(self, grid: nerfacc.OccGridEstimator) -> None:
        self.boxes = grid.aabbs.tolist()
        self.resolution = grid.resolution.tolist()
        self.binaries = grid.binaries.tolist()
        self.mean_occupancy = float(grid.occs.mean())
        self.diagonal = math.dist(self.boxes[-1][:3], self.boxes[-1][3:])

    def is_occupied(self, point: list[float]) -> bool:
        for box, cells in zip(self.boxes, self.binaries, strict=True):  # finest level first
            if all(box[a] <= point[a] <= box[a + 3] for a in range(3)):
                x, y, z = (
                    min(int((point[a] - box[a]) / (box[a + 3] - box[a]) * many), many - 1)
                    for a, many in enumerate(self.resolution)
                )
                return cells[x][y][z]
        return False

    def entry_distance(self, origin: list[float], direction: list[float]) -> float:
        """Where the line enters the outermost box; infinity if it misses it."""
        box = self.boxes[-1]
        enter, leave = -math.inf, math.inf
        for a in range(3):
            if direction[a] == 0.0:
                if not box[a] <= origin[a] <= box[a + 3]:
                    return math.inf
                continue
            first, second = sorted((box[b] - origin[a]) / direction[a] for b in (a, a + 3))
            enter, leave = max(enter, first), min(leave, second)
        return enter if enter < leave else math.inf


def march_slowly(
    grid: nerfacc.OccGridEstimator,
    origins: Tensor,
    directions: Tensor,
    nears: list[float],
    fars: list[float],
    step: float,
    cone_angle: float,
    density: Callable[[list[float]], float] | None = None,
    alpha_thre: float = 0.0,
    early_stop_eps: float = 1e-4,
) -> list[tuple[int, float, float]]:
    """Walk each ray rung by rung; (ray, t_start, t_end) of each sample."""
    slow = SlowGrid(grid)
    samples = []
    for ray, (origin, direction) in enumerate(zip(origins.tolist(), directions.tolist(), strict=True)):
        entry = slow.entry_distance(origin, direction)
        if entry == math.inf:
            continue
        t, far = nears[ray], min(fars[ray], entry + slow.diagonal + step)
        first_dt = max(step, cone_angle * t)
        while t + first_dt / 2 < entry:
            t += first_dt
        transmittance = 1.0
        while t < far:
            dt = max(step, cone_angle * t)
            middle = t + dt / 2
            point = [o + middle * d for o, d in zip(origin, direction, strict=True)]
            if middle < far and slow.is_occupied(point):
                opacity = 0.0 if density is None else 1.0 - math.exp(-density(point) * dt)
                hidden = transmittance < early_stop_eps
                transparent = opacity < min(alpha_thre, slow.mean_occupancy)
                if density is None or not (hidden or transparent):
                    samples.append((ray, t, t + dt))
                transmittance *= 1.0 - opacity
            t += dt
    return samples


def assert_same_samples(marched: MarchedSamples, expected: list[tuple[int, float, float]], atol: float) -> None:
    rays, starts, ends = ([sample[column] for sample in expected] for column in range(3))
    assert marched.ray_indices.tolist() == rays
    for distances, right in ((marched.t_starts, starts), (marched.t_ends, ends)):
        right = torch.tensor(right, dtype=torch.float64)
        torch.testing.assert_close(distances.double(), right, atol=atol, rtol=0.0)


# ---------------------------------------------------------------------------------------------------------
# Scenes
# ---------------------------------------------------------------------------------------------------------

ROI = [-1.0, -0.8, -0.9, 1.0, 1.2, 0.7]


def make_grid(levels: int, fill: float, resolution: int | list[int] = 16, seed: int = 0) -> nerfacc.OccGridEstimator:
    """A grid in which each cell is occupied with probability ``fill``."""
    grid = nerfacc.OccGridEstimator(ROI, resolution, levels)
    generator = torch.Generator().manual_seed(seed)
    grid.binaries[:] = torch.rand(grid.binaries.shape, generator=generator) < fill
    grid.occs[:] = grid.binaries.flatten().float()
    return grid


def make_rays(count: int, levels: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rays from in- and outside of the boxes, most towards them, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 2.0 ** (levels - 1) * 1.5
    targets = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 0.6
    origins, targets = origins.to(dtype), targets.to(dtype)
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def march(grid: nerfacc.OccGridEstimator, origins: Tensor, directions: Tensor, **changes) -> MarchedSamples:
    options = {
        "density_fn": None,
        "near_plane": 0.05,
        "far_plane": 1e3,
        "render_step_size": STEP,
        "cone_angle": 0.0,
        "alpha_thre": 0.0,
        "stratified": False,
    }
    return march_occupancy_grid(grid, origins, directions, **{**options, **changes})


# ---------------------------------------------------------------------------------------------------------
# Marching
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0.02, 0.4])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("cone_angle", [0.0, 0.004, 0.05])
@pytest.mark.parametrize("levels", [1, 3])
def test_march_equals_slow_reference(levels: int, cone_angle: float, stratified: bool, fill: float) -> None:
    """0.004 leaves most steps constant, 0.05 makes most of them grow, some from the first on."""
    grid = make_grid(levels, fill)
    origins, directions = make_rays(64, levels, torch.float64)
    marched = march(
        grid,
        origins,
        directions,
        cone_angle=cone_angle,
        stratified=stratified,
        generator=torch.Generator().manual_seed(5),
    )
    offsets = torch.rand(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * STEP
    nears = [0.05 + (float(offset) if stratified else 0.0) for offset in offsets]
    expected = march_slowly(grid, origins, directions, nears, [1e3] * 64, STEP, cone_angle)
    assert len(expected) > 10
    assert_same_samples(marched, expected, atol=1e-10)


@pytest.mark.parametrize("cone_angle", [0.0, 0.004])
def test_march_in_single_precision(cone_angle: float) -> None:
    grid = make_grid(3, 0.1)
    origins, directions = make_rays(24, 3, torch.float32)
    marched = march(grid, origins, directions, cone_angle=cone_angle)
    assert marched.t_starts.dtype == torch.float32
    expected = march_slowly(grid, origins, directions, [0.05] * 24, [1e3] * 24, STEP, cone_angle)
    assert_same_samples(marched, expected, atol=2e-6)


@pytest.mark.parametrize("step", [0.004, 0.05, 0.3])
def test_march_with_steps_much_smaller_and_larger_than_a_cell(step: float) -> None:
    """Long runs within one block of cells, and runs too long for the coarse grid to judge."""
    grid = make_grid(2, 0.003, resolution=[40, 65, 48])  # one is not a multiple of the block
    origins, directions = make_rays(48, 2, torch.float64)
    marched = march(grid, origins, directions, render_step_size=step)
    expected = march_slowly(grid, origins, directions, [0.05] * 48, [1e3] * 48, step, 0.0)
    assert len(expected) > 0
    assert_same_samples(marched, expected, atol=1e-10)


@pytest.mark.parametrize("step", [0.01, 0.05])
@pytest.mark.parametrize("corner", [0, 28, 33, 60])
def test_a_small_blob_is_found_by_every_ray_through_it(corner: int, step: float) -> None:
    """All else is empty, so nothing but the blob itself may keep a run from being skipped."""
    grid = make_grid(2, 0.0, resolution=64)
    grid.binaries[0, corner : corner + 4, 60 - corner : 64 - corner, corner : corner + 4] = True
    box = grid.aabbs[0].double()
    center = box[:3] + torch.tensor([corner + 2, 62 - corner, corner + 2]) / 64 * (box[3:] - box[:3])
    generator = torch.Generator().manual_seed(6)
    away = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator).double(), dim=-1)
    origins = center + torch.linspace(30.0, 32.0, 50).double()[:, None] * away
    marched = march(grid, origins, -away, render_step_size=step)
    assert marched.ray_indices.unique().tolist() == list(range(50))
    expected = march_slowly(grid, origins, -away, [0.05] * 50, [1e3] * 50, step, 0.0)
    assert_same_samples(marched, expected, atol=1e-10)


@pytest.mark.parametrize("cone_angle", [0.0, 0.004])
def test_alpha_threshold_and_early_stop_equal_slow_reference(cone_angle: float) -> None:
    grid = make_grid(3, 0.5)

    def density(point: list[float]) -> float:
        return 2.0 + 2.0 * math.sin(7.0 * point[0]) + 8.0 * (point[1] > 0.3)

    def density_fn(positions: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return (2.0 + 2.0 * torch.sin(7.0 * positions[:, :1])) + 8.0 * (positions[:, 1:2] > 0.3)

    origins, directions = make_rays(16, 3, torch.float64)
    common = (grid, origins, directions, [0.05] * 16, [1e3] * 16, STEP, cone_angle)
    filtered = march_slowly(*common, density, 0.06, 0.1)
    assert 0 < len(filtered) < len(march_slowly(*common, density, 0.0, 0.1)) < len(march_slowly(*common))
    options = {"cone_angle": cone_angle, "alpha_thre": 0.06, "early_stop_eps": 0.1}
    assert_same_samples(march(grid, origins, directions, density_fn=density_fn, **options), filtered, 1e-10)
    flat = march(grid, origins, directions, density_fn=lambda x: density_fn(x).squeeze(-1), **options)
    assert_same_samples(flat, filtered, 1e-10)


def test_alpha_threshold_is_capped_by_mean_occupancy() -> None:
    """A field too faint for the threshold keeps its samples while the grid is faint too."""
    grid = make_grid(1, 1.0)
    origins, directions = make_rays(8, 1, torch.float64)

    def faint(positions: Tensor) -> Tensor:
        return torch.full_like(positions[:, 0], 0.01 / STEP)

    unfiltered = march(grid, origins, directions)
    grid.occs[:] = 0.009
    kept = march(grid, origins, directions, density_fn=faint, alpha_thre=0.5)
    assert kept.t_starts.shape == unfiltered.t_starts.shape
    grid.occs[:] = 1.0
    assert march(grid, origins, directions, density_fn=faint, alpha_thre=0.5).t_starts.numel() == 0


def test_filters_off_do_not_call_density() -> None:
    grid = make_grid(1, 1.0)
    origins, directions = make_rays(4, 1, torch.float64)

    def never(positions: Tensor) -> Tensor:
        raise AssertionError("density was asked for")

    assert march(grid, origins, directions, density_fn=never, early_stop_eps=0.0).t_starts.numel() > 0


def test_full_grid_has_closed_form_count() -> None:
    """Straight through a full box of side 2 from 3 away: midpoints 0.05 + (k + 1/2) step in [3, 5)."""
    grid = nerfacc.OccGridEstimator([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], 8, 1)
    grid.binaries[:] = True
    marched = march(grid, torch.tensor([[-4.0, 0.1, 0.2]]), torch.tensor([[1.0, 0.0, 0.0]]))
    first = math.ceil((3.0 - 0.05) / STEP - 0.5)
    last = math.ceil((5.0 - 0.05) / STEP - 0.5)
    assert marched.t_starts.numel() == last - first
    torch.testing.assert_close(marched.t_starts[0].item(), 0.05 + first * STEP, atol=1e-6, rtol=0.0)
    assert torch.equal(marched.t_ends[:-1], marched.t_starts[1:]), "neighbours share their bound to the bit"


def test_full_grid_with_growing_steps_has_closed_form_count() -> None:
    """From near = 1 every step grows by 1 + cone; midpoints (1 + cone)^k (1 + cone / 2) < 9."""
    grid = nerfacc.OccGridEstimator([-10.0, -10.0, -10.0, 10.0, 10.0, 10.0], 8, 1)
    grid.binaries[:] = True
    marched = march(
        grid,
        torch.tensor([[-1.0, 0.1, 0.2]]).double(),
        torch.tensor([[1.0, 0.0, 0.0]]).double(),
        near_plane=1.0,
        far_plane=9.0,
        cone_angle=0.05,
    )
    assert marched.t_starts.numel() == math.ceil(math.log(9.0 / 1.025) / math.log(1.05))
    torch.testing.assert_close(marched.t_ends / marched.t_starts, torch.full_like(marched.t_ends, 1.05))


def test_empty_grid_gives_nothing_and_renders_zero() -> None:
    grid = make_grid(3, 0.0)
    origins, directions = make_rays(6, 3, torch.float32)
    marched = march(grid, origins, directions, density_fn=lambda x: x[:, 0])
    assert marched.ray_indices.shape == marched.t_starts.shape == marched.t_ends.shape == (0,)
    assert marched.ray_indices.dtype == torch.int64
    sigmas = torch.zeros(0, requires_grad=True)
    weights = render_weights(sigmas, marched.t_starts, marched.t_ends, marched.ray_indices, 6)
    weights.sum().backward()  # a training step on an empty batch must not fail


def test_no_rays() -> None:
    assert march(make_grid(2, 1.0), torch.zeros(0, 3), torch.zeros(0, 3)).t_starts.shape == (0,)


def test_rays_that_miss_the_box() -> None:
    grid = make_grid(1, 1.0)
    origins = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 5.0, 0.0], [3.0, 0.0, 0.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    marched = march(grid, origins, directions)
    assert marched.ray_indices.unique().tolist() == [3], "away, past, parallel beside; only the last one hits"


@pytest.mark.parametrize("cone_angle", [0.0, 0.05])
def test_axis_parallel_rays_and_origins_inside(cone_angle: float) -> None:
    grid = make_grid(3, 0.5)
    axes = torch.eye(3, dtype=torch.float64)
    directions = torch.cat([axes, -axes, axes, -axes])
    directions[6:] *= 1.0 + 0.0 * directions[6:]  # a mix of 0.0 and -0.0 components
    inside = torch.tensor([0.11, -0.23, 0.07]).double().expand(6, 3)
    outside = inside - 9.0 * directions[6:]
    origins = torch.cat([inside, outside])
    marched = march(grid, origins, directions, cone_angle=cone_angle)
    expected = march_slowly(grid, origins, directions, [0.05] * 12, [1e3] * 12, STEP, cone_angle)
    assert set(marched.ray_indices.tolist()) == set(range(12))
    assert_same_samples(marched, expected, atol=1e-10)


@pytest.mark.parametrize("cone_angle", [0.0, 0.05])
def test_near_and_far_per_ray(cone_angle: float) -> None:
    grid = make_grid(2, 1.0)
    origins, directions = make_rays(16, 2, torch.float64)
    nears = torch.linspace(0.0, 4.0, 16).double()
    fars = nears + torch.linspace(-1.0, 6.0, 16).double()  # the first are empty
    marched = march(
        grid, origins, directions, near_plane=0.5, far_plane=7.0, nears=nears[:, None], fars=fars,
        cone_angle=cone_angle,
    )  # fmt: skip
    nears, fars = nears.clamp(min=0.5), fars.clamp(max=7.0)
    middle = (marched.t_starts + marched.t_ends) / 2
    assert bool((marched.t_starts >= nears[marched.ray_indices]).all())
    assert bool((middle < fars[marched.ray_indices]).all())
    expected = march_slowly(grid, origins, directions, nears.tolist(), fars.tolist(), STEP, cone_angle)
    assert_same_samples(marched, expected, atol=1e-10)


def test_march_carries_no_gradient() -> None:
    grid = make_grid(1, 1.0)
    origins, directions = make_rays(4, 1, torch.float32)
    scale = torch.tensor(1.0, requires_grad=True)
    marched = march(grid, origins.requires_grad_(), directions, density_fn=lambda x: scale.expand(len(x)))
    assert not marched.t_starts.requires_grad and not marched.t_ends.requires_grad


def test_marching_a_grid_that_was_updated_on_the_cpu() -> None:
    """nerfacc's own update, in and after its warm-up, runs without CUDA and leaves what the march reads."""
    torch.manual_seed(0)
    grid = nerfacc.OccGridEstimator([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], 16, 2)
    grid.train()
    for step in (0, 16, 512):
        grid.update_every_n_steps(step, lambda x: (x.norm(dim=-1, keepdim=True) < 0.5).float(), occ_thre=0.01)
    origins = torch.tensor([[-3.0, 0.02, 0.01], [-3.0, 1.5, 0.01]])
    marched = march(grid, origins, torch.tensor([[1.0, 0.0, 0.0]]).expand(2, 3))
    assert marched.ray_indices.unique().tolist() == [0]
    assert 2.5 - 0.125 <= float(marched.t_starts.min()) + STEP
    assert float(marched.t_ends.max()) - STEP <= 3.5 + 0.125


@pytest.mark.parametrize("bad", [{"render_step_size": 0.0}, {"cone_angle": -0.1}])
def test_senseless_steps_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="render_step_size"):
        march(make_grid(1, 1.0), torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), **bad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nerfacc marches on CUDA only")
@pytest.mark.parametrize("cone_angle", [0.0, 0.004])
@pytest.mark.parametrize("levels", [1, 4])
def test_march_agrees_with_nerfacc(levels: int, cone_angle: float) -> None:
    """Constant steps: the same samples, but for midpoints within rounding of a face, of which there are few.

    Growing steps: a stretch after empty cells may be shifted by less than a step, so the number of samples
    of a ray may differ by one for each stretch, while totals and the length in occupied space agree closely.
    """
    if pytest.importorskip("nerfacc.cuda._backend")._C is None:
        pytest.skip("nerfacc's kernels are not built here")
    # Blobs of cells, so that a ray meets a handful of stretches.
    noise = torch.rand(levels, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    grid = nerfacc.OccGridEstimator(ROI, 32, levels)
    grid.binaries[:] = torch.nn.functional.interpolate(noise, size=32, mode="nearest").squeeze(1) < 0.3
    grid = grid.cuda()
    origins, directions = (x.cuda() for x in make_rays(512, levels, torch.float32))
    step = 0.0071
    theirs = grid.sampling(
        origins, directions, near_plane=0.05, far_plane=1e3, render_step_size=step, cone_angle=cone_angle
    )
    ours = march(grid, origins, directions, render_step_size=step, cone_angle=cone_angle)

    our_counts = torch.bincount(ours.ray_indices, minlength=512)
    their_counts = torch.bincount(theirs[0], minlength=512)
    if cone_angle == 0.0:
        assert float((our_counts != their_counts).float().mean()) < 0.05
        assert int((our_counts - their_counts).abs().max()) <= 3
        same = our_counts == their_counts
        our_starts, their_starts = ours.t_starts[same[ours.ray_indices]], theirs[1][same[theirs[0]]]
        assert float(((our_starts - their_starts).abs() > 1e-3).float().mean()) < 0.01
    else:
        our_length, their_length = ours.t_ends - ours.t_starts, theirs[2] - theirs[1]
        assert abs(int(our_counts.sum()) - int(their_counts.sum())) < 0.02 * int(their_counts.sum())
        torch.testing.assert_close(our_length.sum(), their_length.sum(), rtol=0.02, atol=0.0)


# ---------------------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------------------


def ragged_samples(seed: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Packed (sigmas, t_starts, t_ends, ray_indices), float64, of rays with 5, 0, 9, 1 and 0 samples."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([5, 0, 9, 1, 0])
    ray_indices = torch.repeat_interleave(counts)
    n = int(counts.sum())
    sigmas = torch.rand(n, generator=generator, dtype=torch.float64) * 4.0
    t_starts = torch.cumsum(torch.rand(n, generator=generator, dtype=torch.float64), dim=0)
    return sigmas, t_starts, t_starts + 0.3, ray_indices, len(counts)


def test_weights_equal_nerfacc_dense() -> None:
    """nerfacc's own formula on (R, S) tensors is plain torch; absent samples have density zero."""
    sigmas, t_starts, t_ends, ray_indices, n_rays = ragged_samples()
    weights = render_weights(sigmas, t_starts, t_ends, ray_indices, n_rays)
    for ray in range(n_rays):
        own = ray_indices == ray
        dense, _, _ = nerfacc.render_weight_from_density(t_starts[own][None], t_ends[own][None], sigmas[own][None])
        torch.testing.assert_close(weights[own], dense[0])


def test_weights_have_the_right_gradient() -> None:
    sigmas, t_starts, t_ends, ray_indices, n_rays = ragged_samples()
    assert torch.autograd.gradcheck(
        lambda s: render_weights(s, t_starts, t_ends, ray_indices, n_rays), (sigmas.requires_grad_(),)
    )


def test_weights_of_a_ray_do_not_feel_other_rays() -> None:
    """A thin ray packed behind a dense one: a running sum over both would swamp it in float32."""
    thin = torch.full((50,), 1e-3)
    wall = torch.full((200,), 1e6)
    ray_indices = torch.repeat_interleave(torch.tensor([200, 50]))
    t_starts = torch.cat([torch.arange(200.0), torch.arange(50.0)])
    together = render_weights(torch.cat([wall, thin]), t_starts, t_starts + 1.0, ray_indices, 2)
    alone = render_weights(thin, t_starts[200:], t_starts[200:] + 1.0, torch.zeros(50, dtype=torch.int64), 1)
    assert torch.equal(together[200:], alone)
    torch.testing.assert_close(float(alone.double().sum()), 1.0 - math.exp(-0.05), rtol=1e-6, atol=0.0)

    infinite = render_weights(torch.cat([wall * math.inf, thin]), t_starts, t_starts + 1.0, ray_indices, 2)
    assert torch.equal(infinite[200:], alone) and float(infinite[0]) == 1.0
