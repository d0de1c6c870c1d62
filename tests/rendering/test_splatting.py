"""The rasteriser against a slow one in double precision, and what the formula says of simple scenes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.rendering import splatting
from igae_nerfstudio.rendering.splatting import Gaussians, project, rasterize, rotation_matrices, world_to_camera

WIDTH, HEIGHT = 13, 10


def camera(width: int = WIDTH, height: int = HEIGHT, pose: Tensor | None = None) -> Cameras:
    """Looks along -z from (0.2, -0.1, 3), not quite straight, with another focal length down than across."""
    if pose is None:
        turn = rotation_matrices(torch.tensor([1.0, 0.05, -0.03, 0.1]))
        pose = torch.cat([turn, torch.tensor([[0.2], [-0.1], [3.0]])], dim=-1)
    return Cameras(pose[None], 14.0, 12.0, 6.1, 5.2, width=width, height=height)


def some(count: int = 40, channels: int = 3, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return Gaussians(
        2 * random(count, 3) - 1,
        0.05 + 0.3 * random(count, 3),
        torch.randn(count, 4, generator=generator),
        0.05 + 0.9 * random(count),
        torch.randn(count, channels, generator=generator),
    )


def slowly(gaussians: Gaussians, view: Cameras, blur: float) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the module's docstring, pixel by pixel, with a numerical Jacobian of the projection."""
    rotation, translation = (part.double() for part in world_to_camera(view))
    fx, fy, cx, cy = (float(value) for value in (view.fx, view.fy, view.cx, view.cy))

    def seen_at(point: Tensor) -> Tensor:
        x, y, z = rotation @ point + translation
        return torch.stack([fx * x / z + cx, fy * y / z + cy])

    splats = []
    for mean, scale, quat, opacity, feature in zip(*(part.double() for part in vars(gaussians).values())):
        depth = (rotation @ mean + translation)[2]
        if depth <= splatting.NEAR:
            continue
        jacobian = torch.autograd.functional.jacobian(seen_at, mean)
        turned = rotation_matrices(quat)
        covariance = jacobian @ turned @ torch.diag(scale.square()) @ turned.T @ jacobian.T
        wide = covariance + blur * torch.eye(2)
        opacity = opacity * (torch.linalg.det(covariance) / torch.linalg.det(wide)).sqrt()
        distance = (mean - view.camera_to_worlds[0, :, 3]).norm()
        splats.append((distance, seen_at(mean), torch.linalg.inv(wide), opacity, feature))
    splats.sort(key=lambda splat: float(splat[0]))
    picture = torch.zeros(int(view.height), int(view.width), gaussians.features.shape[-1]).double()
    depth = torch.zeros(*picture.shape[:2], 1).double()
    accumulation = torch.zeros_like(depth)
    for row in range(picture.shape[0]):
        for column in range(picture.shape[1]):
            passes = 1.0
            for distance, mean, inverse, opacity, feature in splats:
                offset = torch.tensor([column + 0.5, row + 0.5]).double() - mean
                alpha = min(float(opacity * (-offset @ inverse @ offset / 2).exp()), splatting.MOST_ALPHA)
                if alpha < splatting.LEAST_ALPHA:
                    continue
                picture[row, column] += passes * alpha * feature
                depth[row, column] += passes * alpha * distance
                accumulation[row, column] += passes * alpha
                passes *= 1 - alpha
    return picture, depth / accumulation.clamp_min(1e-6), accumulation


def near(gaussians: Gaussians, view: Cameras) -> Gaussians:
    """Those whose means are not outside the picture, where the projection is linearised elsewhere."""
    at = project(gaussians, view).means
    inside = ((at > -0.5) & (at < torch.tensor([int(view.width), int(view.height)]) + 0.5)).all(dim=-1)
    assert int(inside.sum()) > 8
    return Gaussians(*(part[inside] for part in vars(gaussians).values()))


def test_is_the_slow_one() -> None:
    """Features, depth and accumulation."""
    view = camera()
    gaussians = near(some(), view)
    for fast, slow in zip(rasterize(gaussians, view), slowly(gaussians, view, splatting.BLUR)):
        assert torch.allclose(fast.double(), slow, atol=2e-5)


def test_gradients_are_finite_differences() -> None:
    """Of features, depth and accumulation to everything that is learnt."""
    view = camera(5, 4).to("cpu")
    for name in ("camera_to_worlds", "fx", "fy", "cx", "cy"):
        setattr(view, name, getattr(view, name).double())
    parts = [part.double().requires_grad_() for part in vars(some(6, seed=3)).values()]

    def flat(*parts: Tensor) -> Tensor:
        return torch.cat([output.flatten() for output in rasterize(Gaussians(*parts), view)])

    # Pixels at the edge of a splat come and go with it, by 1 / 255: steps are too small to meet one.
    assert torch.autograd.gradcheck(flat, parts, eps=1e-7, atol=1e-5)


def test_gradients_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where torch has no product of a sparse pattern."""

    def gradients() -> list[Tensor]:
        parts = [part.requires_grad_() for part in vars(some()).values()]
        features, depth, _ = rasterize(Gaussians(*parts), camera())
        return list(torch.autograd.grad(features.square().mean() + depth.mean(), parts))

    with_mkl = gradients()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    for one, other in zip(with_mkl, gradients()):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_round_gaussian_ahead() -> None:
    """Its splat has the variance (f s / d)^2 + blur, and keeps its sum: the opacity falls as the area grows."""
    view = Cameras(torch.eye(4)[None, :3], 20.0, 20.0, 8.0, 8.0, width=16, height=16)
    one = Gaussians(
        torch.tensor([[0.0, 0.0, -4.0]]),
        torch.full((1, 3), 0.2),
        torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        torch.tensor([0.8]),
        torch.tensor([[5.0]]),
    )
    splats = project(one, view)
    assert torch.allclose(splats.covariances, torch.tensor([[1.0 + splatting.BLUR, 0.0, 1.0 + splatting.BLUR]]))
    assert math.isclose(float(splats.opacities), 0.8 / (1 + splatting.BLUR), rel_tol=1e-5)
    features, depth, accumulation = rasterize(one, view)
    assert math.isclose(float(accumulation.sum()), 0.8 * 2 * math.pi, rel_tol=0.03)
    assert torch.allclose(features, 5 * accumulation)
    assert torch.allclose(depth[7:9, 7:9], torch.tensor(4.0))


def test_nearer_ones_cover_others() -> None:
    """An opaque Gaussian in front hides one behind it, in whatever order they are stored."""
    view = camera()
    pose = view.camera_to_worlds[0]
    ahead = pose[:, 3] - torch.tensor([[1.0], [2.0]]) * pose[:, 2]
    both = Gaussians(ahead, torch.full((2, 3), 5.0), torch.randn(2, 4), torch.ones(2), torch.tensor([[1.0], [-1.0]]))
    turned = Gaussians(*(part.flip(0) for part in vars(both).values()))
    for gaussians in (both, turned):
        features, depth, _ = rasterize(gaussians, view)
        assert float(features[5, 6]) > 0.99
        assert math.isclose(float(depth[5, 6]), 1.0, rel_tol=0.01)


def test_a_window_is_a_part_of_the_picture() -> None:
    """A camera whose principal point is moved sees the window."""
    whole, window = camera(), camera(6, 5)
    window.cx, window.cy = window.cx - 4, window.cy - 3
    gaussians = near(some(), window)
    for part, picture in zip(rasterize(gaussians, window), rasterize(gaussians, whole)):
        assert torch.allclose(part, picture[3:8, 4:10], atol=1e-5)


def test_gaussians_that_are_not_seen() -> None:
    """Behind the camera, around it, of no opacity, NaN: none of them makes a pixel or its gradient NaN."""
    view = camera()
    place = view.camera_to_worlds[0, :, 3]
    gaussians = some(5)
    gaussians.means[0] = place + view.camera_to_worlds[0, :, 2]
    gaussians.means[1] = place - 0.02 * view.camera_to_worlds[0, :, 2]
    gaussians.opacities[2] = 0
    parts = [part.requires_grad_() for part in vars(gaussians).values()]
    outputs = rasterize(gaussians, view)
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), parts)
    assert all(bool(value.isfinite().all()) for value in (*outputs, *gradients))
    empty = rasterize(Gaussians(*(part[:1] for part in parts)), view)
    assert all(float(output.abs().max()) == 0 for output in empty)


def test_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splatting, "MOST_PAIRS", 100)
    with pytest.raises(InputError, match="lower --pipeline.model.num-gaussians"):
        rasterize(some(), camera())


@pytest.mark.parametrize("channels", [3, 16, 19, 40])
def test_gsplat_is_asked_for_what_it_has(channels: int) -> None:
    """Channels are padded to a number that gsplat has, and camera and Gaussians are those of its convention."""
    asked: dict[str, Any] = {}

    def rasterization(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, dict]:
        names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height")
        asked.update(zip(names, args), **kwargs)
        size = (1, asked["height"], asked["width"])
        return torch.arange(float(asked["colors"].shape[-1])).expand(*size, -1), torch.ones(*size, 1), {}

    gaussians, view = some(channels=channels), camera()
    picture, accumulation = splatting._with_gsplat(rasterization, gaussians, view, 0.3)
    assert picture.shape == (HEIGHT, WIDTH, channels) and accumulation.shape == (HEIGHT, WIDTH, 1)
    assert asked["colors"].shape[-1] in (3, 16, 32, 64)
    assert torch.equal(asked["colors"][:, :channels], gaussians.features)
    homogeneous = torch.cat([gaussians.means, torch.ones(len(gaussians.means), 1)], dim=-1)
    x, y, z = (asked["viewmats"][0] @ homogeneous.T)[:3]
    u, v, w = asked["Ks"][0] @ torch.stack([x, y, z])
    assert torch.allclose(torch.stack([u / w, v / w], dim=-1), project(gaussians, view).means, atol=1e-4)
    assert asked["rasterize_mode"] == "antialiased" and asked["eps2d"] == 0.3


def test_gsplat_that_does_not_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and PyTorch's code takes over."""
    import sys

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("nvcc is not\nthere")

    splatting.gsplat_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(rasterization=broken))
    assert splatting.gsplat_kernels() is None
    splatting.gsplat_kernels.cache_clear()
    assert "gsplat's kernels do not work here" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gsplat_agrees() -> None:
    """On a GPU: pictures and gradients of gsplat and of PyTorch."""
    if splatting.gsplat_kernels() is None:
        pytest.skip("gsplat's kernels cannot be compiled here")
    results = []
    for device in ("cpu", "cuda"):
        parts = [part.to(device).requires_grad_() for part in vars(some(200, 16)).values()]
        outputs = rasterize(Gaussians(*parts), camera(40, 30).to(device))
        results.append([*outputs, *torch.autograd.grad(sum(o.square().mean() for o in outputs), parts)])
    for slow, fast in zip(*results):
        assert torch.allclose(slow, fast.cpu(), atol=2e-3, rtol=1e-2)
