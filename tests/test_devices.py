"""Everything runs on a GPU, as far as that can be seen without one: on `emulated_cuda`, which is as strict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import LATENT_METHODS, latent_config, write_blender_scene
from emulated_cuda import CudaTensor, emulated_cuda
from torch import nn

from igae_nerfstudio.models.latent_model import LatentModel
from igae_nerfstudio.rendering import splatting
from igae_nerfstudio.rendering.occupancy_marching import render_weights


def test_the_emulation_is_strict() -> None:
    with emulated_cuda() as device:
        values = torch.ones(4, 3, device=device)
        on_cpu = torch.ones(3)
        assert values.device == device and values.is_cuda and (values + 1).is_cuda and not on_cpu.is_cuda
        for meeting in (lambda: values + on_cpu, lambda: torch.cat([values[0], on_cpu]), lambda: on_cpu.mul_(values)):
            with pytest.raises(RuntimeError, match="on the CPU"):
                meeting()
        with pytest.raises(RuntimeError, match="on the CPU"):
            on_cpu[torch.tensor([0], device=device)]
        with pytest.raises(TypeError, match="numpy"):
            values.numpy()
        # As on a GPU: numbers and indices may come from the CPU, and everything can be moved.
        assert float((values * torch.tensor(2.0))[torch.tensor([1])].sum()) == 6
        assert float((values[0] + on_cpu.to(values)).sum()) == 6
        assert (values.cpu()[0] + on_cpu).tolist() == [2, 2, 2]
        layer = nn.Linear(3, 2)
        assert not isinstance(layer.weight, CudaTensor)
        layer.to(device)
        assert isinstance(layer.weight, nn.Parameter) and isinstance(layer.weight, CudaTensor)
        assert not isinstance(layer.cpu().weight, CudaTensor)


def test_the_emulation_computes_and_learns() -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(3, 2), torch.randn(4, 3)
    expected = layer(values).square().mean()
    expected.backward()
    gradient = layer.weight.grad.clone()
    layer.zero_grad()
    with emulated_cuda() as device:
        layer, values = layer.to(device), values.to(device)
        loss = layer(values).square().mean()
        loss.backward()
        assert float(loss) == float(expected) and layer.weight.grad.cpu().equal(gradient)
        view = values[1]
        view += 1
        assert values.cpu()[1].equal(view.cpu())
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
        before = layer.weight.detach().cpu()
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
        with torch.autocast("cuda"):
            result = layer(values)
            loss = nn.functional.mse_loss(result, torch.zeros_like(result))
        assert result.dtype == torch.float16 and loss.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        torch.testing.assert_close((layer.weight.detach().cpu() - before).abs(), torch.full((2, 3), 0.1))


def emulated_rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **settings):
    """gsplat's `rasterization` for round Gaussians: its kernels are not emulated."""
    points = means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    order = points[:, 2].argsort()
    u, v, depth = (points @ Ks[0].T)[order].unbind(-1)
    variance = (scales.mean(dim=-1)[order] * Ks[0, 0, 0] / depth).square() + settings["eps2d"]
    rows, columns = torch.arange(height, device=u.device) + 0.5, torch.arange(width, device=u.device) + 0.5
    squares = (rows[:, None, None] - v / depth).square() + (columns[None, :, None] - u / depth).square()
    alpha = opacities[order] * (-squares / variance / 2).exp() * (depth > settings["near_plane"])
    weights = alpha * torch.cat([torch.ones_like(alpha[..., :1]), (1 - alpha)[..., :-1]], dim=-1).cumprod(dim=-1)
    return (weights @ colors[order])[None], weights.sum(dim=-1, keepdim=True)[None], {}


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_training_evaluation_and_checkpoints(
    method: str, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases with the method's mixed precision; a CPU continues and renders what the GPU left."""
    monkeypatch.setattr(splatting, "gsplat_kernels", lambda: emulated_rasterization)
    scene = write_blender_scene(tmp_path / "scene", counts=(4, 1, 1))
    steps = {"latent_supervision_steps": 2, "rgb_alignment_steps": 2}
    config = latent_config(method, scene, autoencoder_dir, tmp_path, **steps)
    config.machine.device_type = "cuda"
    config.steps_per_eval_image, config.steps_per_eval_all_images, config.steps_per_save = 2, 3, 2
    with emulated_cuda() as device:
        trainer = config.setup()
        trainer.setup()
        losses = []
        step_of = trainer.train_iteration
        trainer.train_iteration = lambda step: losses.append(step_of(step)[1]) or (0.0, losses[-1], {})
        trainer.train()
        pipeline = trainer.pipeline.eval()
        tensors = [*pipeline.parameters(), *pipeline.buffers()]
        assert all(tensor.device == device for tensor in tensors)
        assert len(losses) == 4 and all(bool(x.isfinite()) for terms in losses for x in terms.values())
        camera = pipeline.datamanager.eval_dataset.cameras[0:1].to(device)
        picture = pipeline.model.get_outputs_for_camera(camera)
        assert all(value.device == device and value.dtype == torch.float32 for value in picture.values())
        metrics = pipeline.get_average_eval_image_metrics()
        assert metrics["psnr"] > 0 and metrics["autoencoder_psnr"] > 0
        expected = picture["rgb"].cpu()
    resumed = latent_config(method, scene, autoencoder_dir, tmp_path, **steps)
    resumed.load_dir = trainer.checkpoint_dir
    resumed.mixed_precision = False
    trainer = resumed.setup()
    trainer.setup()
    assert trainer._start_step == 4
    model: LatentModel = trainer.pipeline.model.eval()
    torch.testing.assert_close(model.get_outputs_for_camera(camera.to("cpu"))["rgb"], expected, atol=1e-4, rtol=1e-3)


def test_finished_runs(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ns-eval and ns-render on a GPU, of a run that a CPU has trained."""
    from nerfstudio.scripts.eval import ComputePSNR
    from nerfstudio.scripts.render import DatasetRender, RenderInterpolated

    steps = {"latent_supervision_steps": 2, "rgb_alignment_steps": 2}
    config = latent_config("tensorf", blender_scene, autoencoder_dir, tmp_path, **steps)
    config.save_config()
    torch.manual_seed(0)
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    expected = trainer.pipeline.get_average_eval_image_metrics()
    run = trainer.base_dir / "config.yml"
    monkeypatch.setattr("nerfstudio.utils.install_checks.check_ffmpeg_installed", lambda: None)  # single pictures
    with emulated_cuda():
        ComputePSNR(run, tmp_path / "eval.json").main()
        DatasetRender(run, tmp_path / "dataset", split="test", rendered_output_names=["rgb", "depth", "latent"]).main()
        pictures = {"output_format": "images", "interpolation_steps": 1, "pose_source": "eval"}
        RenderInterpolated(run, tmp_path / "path", **pictures).main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] == pytest.approx(expected["psnr"], abs=1e-4)
    assert results["latent_psnr"] == pytest.approx(expected["latent_psnr"], abs=5e-2)  # encoded in half precision
    assert len(list((tmp_path / "dataset" / "test").glob("*/*"))) == 6 and any((tmp_path / "path").iterdir())


def test_instant_ngp_with_compiled_kernels(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nerfstudio's own code renders what ours does; in the place of nerfacc's kernels stands their plain torch."""
    import nerfacc

    def weights(t_starts, t_ends, sigmas, packed_info):
        rays = torch.arange(len(packed_info), device=packed_info.device).repeat_interleave(packed_info[:, 1])
        return (render_weights(sigmas, t_starts, t_ends, rays, len(packed_info)),)

    monkeypatch.setattr("igae_nerfstudio.models.instant_ngp.kernels_work", lambda: True)
    monkeypatch.setattr(nerfacc, "render_weight_from_density", weights)
    config = latent_config("instant_ngp", blender_scene, autoencoder_dir, tmp_path).pipeline
    with emulated_cuda() as device:
        pipeline = config.setup(device="cuda")
        scene = pipeline.model.scene
        assert scene.compiled
        scene.occupancy_grid.binaries.fill_(True)
        scene.sampler.forward = lambda ray_bundle, **_: scene._samples(ray_bundle)
        rays = pipeline.datamanager.next_train(0)[0].flatten()
        with torch.no_grad():
            compiled = scene.eval()(rays)
            scene.compiled = False
            plain = scene(rays)
        assert set(compiled) == set(plain) and float(plain["accumulation"].mean()) > 0.01
        assert all(value.device == device for value in compiled.values())
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name].cpu(), value.cpu(), msg=name)
