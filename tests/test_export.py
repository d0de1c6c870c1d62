"""`ns-export` on a ball of known place and colour: extents and colours of what trimesh reads back.

The commands are Nerfstudio's own; only the scene model is replaced, by one that renders the ball's latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import latent_config, write_blender_scene
from emulated_cuda import emulated_cuda

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline

RADIUS = 0.5
COLOUR = torch.tensor([0.75, 0.3, 0.2])


@pytest.fixture(scope="module", autouse=True)
def _open3d() -> Any:
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"open3d cannot be loaded ({error}); apt install libusb-1.0-0 libgl1 libgomp1")
    return open3d


def make_ball(folder: Path, device: str) -> LatentPipeline:
    """A finished run's pipeline whose scene is a ball around the origin."""
    scene = write_blender_scene(folder / "scene", size=(96, 96), counts=(12, 1, 1))
    config = latent_config("vanilla_nerf", scene, Path("bundled"), folder).pipeline
    config.datamanager.latent_cache_dir = folder / "latents"
    trained = config.setup(device=device)
    pipeline = config.setup(device=device, test_mode="test").eval()
    pipeline.load_pipeline(trained.state_dict(), 0)
    model = pipeline.model
    colour, background = (
        model.normalizer.normalize(pipeline.autoencoder.encode_colour(c)) for c in (COLOUR, torch.ones(3))
    )

    def render(rays) -> dict[str, torch.Tensor]:
        towards = (rays.origins * rays.directions).sum(-1, keepdim=True)
        inside = towards**2 - (rays.origins**2).sum(-1, keepdim=True) + RADIUS**2
        hit = inside > 0
        depth = torch.where(hit, -towards - inside.clamp(min=0).sqrt(), torch.full_like(towards, 4.0))
        return {"latent": torch.where(hit, colour, background), "depth": depth, "accumulation": hit.float()}

    model.scene.get_outputs_for_camera_ray_bundle = render
    model.scene.forward = render  # single rays
    assert float((model.preview(colour).cpu() - COLOUR).abs().max()) > 0.15  # latents would be seen
    return pipeline


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> LatentPipeline:
    return make_ball(tmp_path_factory.mktemp("ball"), "cpu")


@pytest.fixture(autouse=True)
def _the_ball_is_loaded(ball: LatentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerfstudio.scripts.exporter.eval_setup", lambda path, **_: (None, ball, path, 0))
    torch.manual_seed(0)


def check(path: Path, radius_error: float = 0.06) -> None:
    """A ball of the right size and place, in the right colour: its upper half, for all cameras look from above."""
    import trimesh

    shape = trimesh.load(path, process=False)
    points = np.asarray(shape.vertices)
    colours = np.asarray(shape.colors if hasattr(shape, "colors") else shape.visual.vertex_colors)[:, :3] / 255
    above = points[:, 2] > 0.1
    assert len(colours) == len(points) and above.sum() > 500
    points, colours = points[above], colours[above]
    assert np.median(np.linalg.norm(points, axis=1)) == pytest.approx(RADIUS, abs=0.03)
    low, high = np.quantile(points, 0.02, axis=0), np.quantile(points, 0.98, axis=0)
    np.testing.assert_allclose(high[:2], RADIUS, atol=radius_error)
    np.testing.assert_allclose(low[:2], -RADIUS, atol=radius_error)
    error = np.abs(colours - COLOUR.numpy()).max(axis=1)
    assert np.abs(np.median(colours, axis=0) - COLOUR.numpy()).max() < 0.06
    assert np.median(error) < 0.12


def export_point_cloud(folder: Path) -> Path:
    from nerfstudio.scripts.exporter import ExportPointCloud

    torch.manual_seed(0)
    ExportPointCloud(Path("run"), folder, num_points=15_000, normal_method="open3d").main()
    return folder / "point_cloud.ply"


def export_tsdf(folder: Path) -> Path:
    from nerfstudio.scripts.exporter import ExportTSDFMesh

    seen = {"bounding_box_min": (-0.65,) * 3, "bounding_box_max": (0.65,) * 3}  # what no camera sees counts as solid
    options = {"downscale_factor": 1, "resolution": [64] * 3, "texture_method": "tsdf", **seen}
    ExportTSDFMesh(Path("run"), folder, **options).main()
    return folder / "tsdf_mesh.ply"


def test_point_cloud(tmp_path: Path) -> None:
    check(export_point_cloud(tmp_path))


def test_tsdf(tmp_path: Path) -> None:
    check(export_tsdf(tmp_path))


def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as there is none."""
    with emulated_cuda():
        ball = make_ball(tmp_path, "cuda")
        monkeypatch.setattr("nerfstudio.scripts.exporter.eval_setup", lambda path, **_: (None, ball, path, 0))
        exported = (export_point_cloud(tmp_path), export_tsdf(tmp_path))
    for path in exported:
        check(path)


def test_poisson(tmp_path: Path) -> None:
    from nerfstudio.scripts.exporter import ExportPoissonMesh

    options = {"num_points": 15_000, "normal_method": "open3d", "texture_method": "point_cloud"}
    ExportPoissonMesh(Path("run"), tmp_path, **options).main()
    check(tmp_path / "poisson_mesh.ply")


def test_what_cannot_be_exported_says_so(tmp_path: Path) -> None:
    """Textures by single rays, and signed distances; the mesh made before the texture is kept."""
    from nerfstudio.scripts.exporter import ExportMarchingCubesMesh, ExportTSDFMesh

    with pytest.raises(AssertionError, match="SDF field"):  # Nerfstudio's own words
        ExportMarchingCubesMesh(Path("run"), tmp_path).main()
    small = {"resolution": [32] * 3, "target_num_faces": 200, "num_pixels_per_side": 64, "unwrap_method": "custom"}
    textured = ExportTSDFMesh(Path("run"), tmp_path, 2, texture_method="nerf", **small)
    with pytest.raises(InputError, match="--texture-method tsdf.*--texture-method point_cloud"):
        textured.main()
    assert (tmp_path / "tsdf_mesh.ply").stat().st_size > 1000
