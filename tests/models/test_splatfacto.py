"""Gaussians of a scene: first places, moving dead ones, noise, one resumed run, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import latent_config, write_blender_scene
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.scene_box import OrientedBox, SceneBox

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.models import splatfacto
from igae_nerfstudio.models.splatfacto import (
    DEAD,
    LatentSplatfacto,
    LatentSplatfactoConfig,
    nearest_distances,
    shared_between,
)
from igae_nerfstudio.rendering.splatting import rasterize

BOX = SceneBox(torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 2.0]]))


def model(count: int = 50, seeds: torch.Tensor | None = None, **config: Any) -> LatentSplatfacto:
    torch.manual_seed(0)
    points = None if seeds is None else (seeds, torch.zeros(len(seeds), 3))
    settings = LatentSplatfactoConfig(num_gaussians=count, latent_channels=5, **config)
    return settings.setup(scene_box=BOX, num_train_data=3, seed_points=points)


def camera(**kwargs: Any) -> Cameras:
    pose = torch.eye(4)[None, :3].clone()
    pose[0, 2, 3] = 5
    return Cameras(pose, 20.0, 20.0, 6.0, 5.0, width=12, height=10, **kwargs)


def adam(scene: LatentSplatfacto) -> dict[str, torch.optim.Optimizer]:
    """Optimisers with moments that are not 0."""
    optimizers = {name: torch.optim.Adam(params) for name, params in scene.get_param_groups().items()}
    outputs = scene(camera())
    (outputs["latent"].square().sum() + sum(scene.get_regularizers(outputs, {}).values())).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return optimizers


def test_the_first_means_lie_in_the_scene_box() -> None:
    means = model(500).gauss_params["means"]
    assert bool(((means >= BOX.aabb[0]) & (means <= BOX.aabb[1])).all())
    assert float(means.amax() - means.amin()) > 2.5


@pytest.mark.parametrize("count", [20, 60])
def test_seeds_are_where_gaussians_begin(count: int) -> None:
    """Fewer Gaussians than seeds are some of these; more are all of these, and others beside them."""
    seeds = 10 + torch.rand(40, 3)
    scene = model(count, seeds)
    distances = (scene.gauss_params["means"].detach()[:, None] - seeds).norm(dim=-1)
    exact = distances.min(dim=1).values == 0
    assert int(exact.sum()) == min(count, 40) and len(distances.argmin(dim=1)[exact].unique()) == min(count, 40)
    assert float(distances.min(dim=1).values.max()) < 4 * float(nearest_distances(seeds).max())
    assert torch.allclose(
        scene.gauss_params["scales"][0].exp(), nearest_distances(scene.gauss_params["means"].detach())[:1]
    )


def test_copies_look_as_one_did() -> None:
    """In their middle n copies let as much through as one, and integrated over a line through it they have as much."""
    copies, opacity = torch.tensor([1, 2, 5, 60]), torch.full((4,), 0.7)
    shared, factor = shared_between(opacity, copies)
    torch.testing.assert_close((1 - shared) ** copies.clamp_max(51), torch.full((4,), 0.3))
    assert float(shared[0]) == pytest.approx(0.7) and float(factor[0]) == pytest.approx(1.0)
    line = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    for n, o, scale in zip(copies.clamp_max(51).tolist(), shared.double(), factor.double()):
        together = 1 - (1 - o * (-((line / scale) ** 2) / 2).exp()) ** n
        alone = 0.7 * (-(line**2) / 2).exp()
        assert float(together.sum()) == pytest.approx(float(alone.sum()), rel=1e-3)


def test_dead_gaussians_move_to_living_ones() -> None:
    scene = model(60, sh_degree=1)
    optimizers = adam(scene)
    parameters = scene.gauss_params
    parameters["opacities"].data[:20] = -9
    parameters["opacities"].data[20:] = 2
    parameters["scales"].data[20:] = -3.0
    before = {name: value.detach().clone() for name, value in parameters.items()}
    view = torch.cat([value.flatten() for value in rasterize(scene.gaussians(camera()), camera())])
    assert scene.relocate(optimizers, torch.Generator().manual_seed(1)) == 20
    places = (parameters["means"][:20].detach()[:, None] - before["means"][20:]).norm(dim=-1)
    targets = 20 + places.argmin(dim=1)
    assert not bool(places.min(dim=1).values.any())
    assert bool((parameters["opacities"].sigmoid() > DEAD).all())
    assert not torch.equal(parameters["opacities"][targets], before["opacities"][targets])
    untouched = [i for i in range(20, 60) if i not in targets.tolist()]
    for name, value in parameters.items():
        assert torch.equal(value[untouched], before[name][untouched])
        assert torch.equal(value[:20], value[targets])
        moments = optimizers[name].state[value]["exp_avg"]
        assert not bool(moments[targets].any())
    after = torch.cat([value.flatten() for value in rasterize(scene.gaussians(camera()), camera())])
    assert float((after - view).abs().mean()) < 0.05 * float(view.abs().mean())
    assert scene.relocate(optimizers, torch.Generator().manual_seed(2)) == 0


def test_all_are_dead() -> None:
    scene = model(10)
    scene.gauss_params["opacities"].data.fill_(-9)
    with pytest.raises(InputError, match="all Gaussians have lost their opacity; .*loss-coefficients"):
        scene.relocate({}, torch.Generator())


def test_only_faint_gaussians_wander() -> None:
    """By a multiple of their own covariance."""
    scene = model(40, noise=5e5)
    scene.gauss_params["opacities"].data[:20] = 3
    scene.gauss_params["opacities"].data[20:] = -9
    scene.gauss_params["scales"].data[:] = torch.tensor([-1.0, -9.0, -9.0])
    scene.gauss_params["quats"].data[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    before = scene.gauss_params["means"].detach().clone()
    scene.wander(1e-5, torch.Generator().manual_seed(0))
    moved = (scene.gauss_params["means"] - before).abs()
    assert float(moved[:20].max()) < 1e-6
    assert float(moved[20:, 0].min()) > 1e-3 and float(moved[20:, 1:].max()) < 1e-5


def test_a_box_cuts() -> None:
    """The viewer's crop: what lies outside is not seen."""
    scene = model(200)
    scene.gauss_params["opacities"].data.fill_(3)
    whole = scene.get_outputs_for_camera(camera())["accumulation"]
    right = OrientedBox(torch.eye(3), torch.tensor([10.0, 0.0, 0.0]), torch.tensor([20.0, 20.0, 20.0]))
    half = scene.get_outputs_for_camera(camera(), right)["accumulation"]
    assert float(half[:, 9:].mean()) > 0.8 * float(whole[:, 9:].mean())
    assert float(half[:, :3].mean()) < 0.2 * float(whole[:, :3].mean())


def test_direction_changes_latents_with_harmonics_alone() -> None:
    for degree in (0, 1):
        scene = model(30, sh_degree=degree)
        assert ("features_rest" in scene.get_param_groups()) == bool(degree)
        if degree:
            scene.gauss_params["features_rest"].data.normal_()
        other = camera()
        other.camera_to_worlds[0, :, 3] = torch.tensor([3.0, 1.0, 4.0])
        differs = (scene.gaussians(camera()).features - scene.gaussians(other).features).abs().max()
        assert (float(differs) > 0.05) == bool(degree)


@pytest.mark.parametrize("method", ["fisheye", "k4"])
def test_bent_rays_are_refused(method: str) -> None:
    lens: Any = {"camera_type": CameraType.FISHEYE}
    if method == "k4":
        lens = {"distortion_params": torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.0, 0.0]])}
    with pytest.raises(InputError, match="take igae-nerfacto"):
        model(10).get_outputs_for_camera(camera(**lens))


def test_too_few() -> None:
    with pytest.raises(InputError, match="num-gaussians is 3"):
        model(3)


def test_a_resumed_run_is_the_same_run(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise and moves included: 8 steps, and 5 steps and then 3."""
    monkeypatch.setattr(splatfacto, "DEAD", 0.0975)
    moved = []
    relocate = LatentSplatfacto.relocate
    monkeypatch.setattr(LatentSplatfacto, "relocate", lambda *args: moved.append(relocate(*args)))

    def trained(name: str, steps: int, load: Path | None = None) -> Any:
        phases = {"latent_supervision_steps": 4, "rgb_alignment_steps": 4}
        config = latent_config("splatfacto", blender_scene, autoencoder_dir, tmp_path / name, **phases)
        config.optimizers["opacities"]["optimizer"].lr = 0.01
        config.max_num_iterations, config.load_dir = steps, load
        torch.manual_seed(0)
        trainer = config.setup()
        trainer.setup()
        trainer.train()
        return trainer

    whole, half = trained("whole", 8), trained("half", 5)
    rest = trained("rest", 8, half.checkpoint_dir)
    assert 0 < max(moved) < 150
    for one, other in zip(whole.pipeline.model.parameters(), rest.pipeline.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_windows_of_large_photos(autoencoder_dir: Path, tmp_path: Path) -> None:
    """Batches are cameras of windows, whose render is compared with the latents of the same place."""
    scene = write_blender_scene(tmp_path / "scene", size=(200, 160), counts=(3, 1, 1))
    config = latent_config("splatfacto", scene, autoencoder_dir, tmp_path).pipeline
    config.datamanager.images_per_batch = 3
    pipeline = config.setup(device="cpu")
    for step in (0, config.latent_supervision_steps):
        cameras, batch = pipeline.datamanager.next_train(step)
        assert isinstance(cameras, Cameras) and len(cameras) == 3
        height, width = batch["latent"].shape[1:3]
        assert int(cameras.height[0]) == height < 20 and int(cameras.width[0]) == width < 25
        split = pipeline.datamanager.train_split
        size = split.sizes[0]
        assert max(size) == 25 and min(size) == 20
        for index, window in enumerate(range(3)):
            image = int((split.cameras.camera_to_worlds == cameras.camera_to_worlds[window]).all(-1).all(-1).nonzero())
            left, top = (split.cameras.cx[image] - cameras.cx[window], split.cameras.cy[image] - cameras.cy[window])
            rows = split.latents[split._first[image] :][: 20 * 25].view(*size, -1)
            part = rows[int(top) : int(top) + height, int(left) : int(left) + width]
            assert torch.equal(batch["latent"][index], part.float())
        _, losses, _ = pipeline.get_train_loss_dict(step)
        assert all(bool(loss.isfinite()) for loss in losses.values())
