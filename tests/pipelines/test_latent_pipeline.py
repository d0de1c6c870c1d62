"""Losses and gradients of the two phases, metrics, cameras of any size, and checkpoints of other latent spaces."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import LATENT_METHODS, latent_config, tiny_autoencoder, write_blender_scene

from igae_nerfstudio.data import latent_datamanager
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.phases import Phase
from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline

STEP = {Phase.LATENT_SUPERVISION: 3, Phase.RGB_ALIGNMENT: 10_003}
"""A step of each phase."""


@pytest.fixture
def pipeline(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> LatentPipeline:
    torch.manual_seed(0)
    return latent_config("vanilla_nerf", blender_scene, autoencoder_dir, tmp_path).pipeline.setup(device="cpu")


def gradient_names(pipeline: LatentPipeline, phase: Phase) -> set[str]:
    """Parts of the model that get a gradient in a step of a phase."""
    pipeline.zero_grad()
    _, losses, _ = pipeline.get_train_loss_dict(STEP[phase])
    sum(losses.values()).backward()
    named = pipeline.model.named_parameters()
    found = {name for name, p in named if p.grad is not None and bool((p.grad != 0).any())}
    return {".".join(name.split(".")[:2]) if name.startswith("scene") else name.split(".")[0] for name in found}


def test_each_phase_reaches_exactly_its_parameters(pipeline: LatentPipeline) -> None:
    scene = {"scene.field_coarse", "scene.field_fine"}
    assert gradient_names(pipeline, Phase.LATENT_SUPERVISION) == scene
    assert gradient_names(pipeline, Phase.RGB_ALIGNMENT) == {*scene, "decoder"}
    pipeline.config.regularize_alignment = False  # equation 3 as written: nothing reaches the coarse network
    assert gradient_names(pipeline, Phase.RGB_ALIGNMENT) == {"scene.field_fine", "decoder"}
    assert all(p.grad is None for p in pipeline.autoencoder.module.parameters())


def test_losses_are_the_papers(pipeline: LatentPipeline) -> None:
    """Both losses by hand, from the rendered latents that the pipeline returns."""
    for phase, step in STEP.items():
        _, batch = pipeline.datamanager.next_train(step)
        photos = batch["image"]
        encoded = pipeline.autoencoder.encode(photos.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(encoded, batch["latent"], rtol=1e-3, atol=1e-4)  # kept in half precision

        outputs, losses, _ = pipeline.get_train_loss_dict(step)
        target = pipeline.model.normalizer.normalize(batch["latent"]).view(-1, 6)
        by_hand = {
            f"latent_loss_{part}": (outputs[f"latent_{part}"] - target).square().mean() for part in ("coarse", "fine")
        }
        if phase is Phase.RGB_ALIGNMENT:
            latents = pipeline.model.normalizer.denormalize(outputs["latent_fine"]).view(2, 6, 6, 6)
            decoded = (pipeline.autoencoder.module.decode(latents.permute(0, 3, 1, 2)).sample + 1) / 2
            by_hand["rgb_alignment_loss"] = (decoded.permute(0, 2, 3, 1) - photos).square().mean()
            del by_hand["latent_loss_fine"]
        assert losses.keys() == by_hand.keys()
        for name, value in by_hand.items():
            torch.testing.assert_close(losses[name], value)


def test_rgb_alignment_compares_no_latents_but_those_of_regularisers(
    blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """Latents of a scene of the second phase may be missing: nothing there depends on them."""
    for method in ("tensorf", "kplanes", "nerfacto", "triplanes", "instant_ngp"):
        pipeline = latent_config(method, blender_scene, autoencoder_dir, tmp_path).pipeline.setup(device="cpu")
        rays, batch = pipeline.datamanager.next_train(STEP[Phase.RGB_ALIGNMENT])
        batch["latent"] = batch["latent"] * float("nan")
        _, losses, _ = pipeline._losses(STEP[Phase.RGB_ALIGNMENT], rays, batch)
        assert all(value.isfinite() for value in losses.values()), method
        assert "rgb_alignment_loss" in losses and not any(name.startswith("latent") for name in losses)


def test_every_image_is_visited_once_an_epoch_whatever_the_first_step(pipeline: LatentPipeline) -> None:
    visits = [i for step in range(3) for i in pipeline.datamanager.next_train(step)[1]["image_idx"].tolist()]
    assert sorted(visits) == list(range(6))
    again = latent_again(pipeline)
    assert again.datamanager.next_train(7)[1]["image_idx"].equal(pipeline.datamanager.next_train(7)[1]["image_idx"])


def latent_again(pipeline: LatentPipeline) -> LatentPipeline:
    """The same run, started once more."""
    return deepcopy(pipeline.config).setup(device="cpu")


def test_random_latent_rays_belong_to_their_latents(pipeline: LatentPipeline) -> None:
    """In latent supervision only: a decoder needs whole images."""
    config = deepcopy(pipeline.config)
    config.datamanager.random_latent_rays = 72
    pipeline = config.setup(device="cpu")
    split = pipeline.datamanager.train_split
    rays, batch = pipeline.datamanager.next_train(5)
    assert rays.shape == (2 * 6 * 6,) and batch["latent"].shape == (2 * 6 * 6, 6)
    views = [split.cameras.generate_rays(camera_indices=i, keep_shape=True).flatten() for i in range(6)]
    origins, directions = (torch.cat([getattr(view, name) for view in views]) for name in ("origins", "directions"))
    for i in range(0, len(rays), 7):
        (place,) = ((directions == rays.directions[i]) & (origins == rays.origins[i])).all(-1).nonzero()
        assert torch.equal(split.latents[place[0]].float(), batch["latent"][i])
        assert int(place[0]) // 36 == int(rays.camera_indices[i])
    again, other = pipeline.datamanager.next_train(5)[0], pipeline.datamanager.next_train(6)[0]
    assert torch.equal(again.directions, rays.directions) and not torch.equal(other.directions, rays.directions)
    assert len(set(rays.camera_indices.flatten().tolist())) == 6  # from all images
    assert "rgb_alignment_loss" in pipeline.get_train_loss_dict(STEP[Phase.RGB_ALIGNMENT])[1]


def test_patches_train_what_whole_images_train(pipeline: LatentPipeline) -> None:
    """A patch and its margin that hold the whole image give the loss of the whole image; smaller ones leave out what
    the decoder cannot know."""
    step = STEP[Phase.RGB_ALIGNMENT]
    pipeline.eval()  # samples at fixed places
    whole = pipeline.get_train_loss_dict(step)[1]["rgb_alignment_loss"]
    data = pipeline.datamanager
    data.patch_size, data.patch_margin = 6, 1
    torch.testing.assert_close(pipeline.get_train_loss_dict(step)[1]["rgb_alignment_loss"], whole)
    data.patch_size, data.patch_margin = 2, 1
    rays, batch = data.next_train(step)
    assert rays.shape == (2, 4, 4) and batch["image"].shape == (2, 32, 32, 3)
    # The decoder's own errors, pixel by pixel, where the mask is 1 and nowhere else.
    outputs, losses, _ = pipeline.get_train_loss_dict(step)
    decoded = pipeline.model.decode(outputs["latent_fine"].view(2, 4, 4, 6))
    valid = batch["valid_mask"].bool().expand(-1, -1, -1, 3)
    assert 0 < int(valid.sum()) < valid.numel()
    errors = (decoded - batch["image"]).square()[valid]
    torch.testing.assert_close(losses["rgb_alignment_loss"], errors.mean())


def test_a_step_does_not_grow_with_the_pictures(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> None:
    """Up to the rays of the paper's four images of 128 x 128 steps take whole images; of larger ones as many."""
    large = write_blender_scene(tmp_path / "large", size=(200, 264), counts=(3, 1, 1))  # 25 x 33 latent pixels

    def shapes(scene: Path, **data):
        config = latent_config("tensorf", scene, autoencoder_dir, tmp_path)
        for name, value in data.items():
            setattr(config.pipeline.datamanager, name, value)
        pipeline = config.pipeline.setup(device="cpu")
        got = []
        for step in STEP.values():
            for next_batch in (pipeline.datamanager.next_train, pipeline.datamanager.next_eval):
                got.append(next_batch(step)[0].shape)
                assert pipeline.datamanager.get_train_rays_per_batch() == got[-1].numel()
            # Both kinds of batches have losses, in training and in evaluation.
            assert all(loss.isfinite() for loss in pipeline.get_train_loss_dict(step)[1].values())
            assert all(loss.isfinite() for loss in pipeline.get_eval_loss_dict(step)[1].values())
        return got, pipeline.datamanager

    assert shapes(blender_scene)[0] == [(2, 6, 6)] * 4
    small, data = shapes(large)
    side = max(16, 8 + 2 * data.patch_margin)
    assert data.patch_margin > 0 and small == [(1024,)] * 2 + [(2, side, side)] * 2
    assert shapes(large, images_per_batch=1)[0] == [(1, 25, 33)] * 4  # 825
    assert shapes(large, random_latent_rays=0, alignment_patch_size=0)[0] == [(2, 25, 33)] * 4
    chosen, data = shapes(large, random_latent_rays=10, alignment_patch_size=3)
    assert chosen[::2] == [(10,), (2, 3 + 2 * data.patch_margin, 3 + 2 * data.patch_margin)]


def test_a_decoder_that_looks_at_everything_gets_whole_images(
    autoencoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = write_blender_scene(tmp_path / "large", size=(200, 264), counts=(3, 1, 1))
    monkeypatch.setattr(latent_datamanager, "decoder_margin", lambda decoder, latent_channels: None)
    config = latent_config("tensorf", large, autoencoder_dir, tmp_path)
    data = config.pipeline.setup(device="cpu").datamanager
    assert data.next_train(STEP[Phase.RGB_ALIGNMENT])[0].shape == (2, 25, 33)
    assert data.next_train(STEP[Phase.LATENT_SUPERVISION])[0].shape == (1024,)
    config.pipeline.datamanager.alignment_patch_size = 8
    with pytest.raises(InputError, match="looks at the whole picture.*leave out --pipeline.datamanager.alignment"):
        config.pipeline.setup(device="cpu")


@pytest.mark.parametrize("method", LATENT_METHODS)
def test_every_method_has_losses_in_evaluation(
    method: str, blender_scene: Path, autoencoder_dir: Path, tmp_path: Path
) -> None:
    """Nerfstudio asks for them every 500 steps where there is a logger."""
    pipeline = latent_config(method, blender_scene, autoencoder_dir, tmp_path).pipeline.setup(device="cpu")
    for phase, step in STEP.items():
        outputs, losses, metrics = pipeline.get_eval_loss_dict(step)
        assert all(loss.isfinite() and not loss.requires_grad for loss in losses.values())
        assert ("psnr" in metrics) == (phase is Phase.RGB_ALIGNMENT)
        assert pipeline.training


def test_a_camera_of_twice_the_size_gives_the_same_picture_enlarged(pipeline: LatentPipeline) -> None:
    model = pipeline.model.eval()
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    twice = deepcopy(camera)
    twice.rescale_output_resolution(2)
    small, large = model.get_outputs_for_camera(camera), model.get_outputs_for_camera(twice)
    assert large["rgb"].shape == (96, 96, 3)
    torch.testing.assert_close(model.render(twice).latent, model.render(camera).latent, atol=1e-4, rtol=1e-4)
    enlarged = torch.nn.functional.interpolate(
        small["rgb"].permute(2, 0, 1)[None], scale_factor=2, mode="bicubic", align_corners=False
    )[0].permute(1, 2, 0)
    assert float((large["rgb"] - enlarged.clamp(0, 1)).abs().max()) < 0.02
    assert torch.equal(large["latent"][::2, ::2], small["latent"])


@pytest.mark.parametrize(("width", "height", "zoom"), [(45, 70, 1.0), (37, 23, 0.31), (200, 150, 2.7)])
def test_pictures_of_any_size(pipeline: LatentPipeline, width: int, height: int, zoom: float) -> None:
    camera = deepcopy(pipeline.datamanager.eval_dataset.cameras[0:1])
    camera.fx, camera.fy = camera.fx * zoom, camera.fy * zoom
    camera.width, camera.height = torch.full_like(camera.width, width), torch.full_like(camera.height, height)
    outputs = pipeline.model.eval().get_outputs_for_camera(camera)
    for name, channels in (("rgb", 3), ("depth", 1), ("accumulation", 1), ("latent", 3)):
        assert outputs[name].shape == (height, width, channels)
        assert bool(outputs[name].isfinite().all())


def test_rays_of_a_picture_are_rendered_as_its_camera(pipeline: LatentPipeline) -> None:
    """What `ns-export tsdf` and `ns-export pointcloud` do."""
    model = pipeline.model.eval()
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    by_camera = model.get_outputs_for_camera(camera)
    by_rays = model(camera.generate_rays(camera_indices=0, keep_shape=True))
    assert float((by_camera["rgb"] - by_rays["rgb"]).abs().max()) < 2e-3
    single = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()[:5]
    assert set(model(single)) == {"depth", "accumulation"}
    with pytest.raises(InputError, match="texture-method tsdf"):
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        rays.origins = torch.rand_like(rays.origins)
        model.get_outputs_for_camera_ray_bundle(rays)


def test_evaluation_reports_render_latents_and_ceiling(pipeline: LatentPipeline) -> None:
    pipeline.image_metrics._lpips = {"alex": None, "vgg": None}  # its weights are not part of the repository
    result = pipeline.get_average_eval_image_metrics(get_std=True)
    names = {"psnr", "ssim", "latent_psnr", "autoencoder_psnr", "autoencoder_ssim"}
    assert names <= set(result) and {f"{name}_std" for name in names} <= set(result)
    assert "latent_ssim" not in result  # latent images of 6 x 6 pixels have no 11 x 11 window
    assert set(result["per_image"]) == {"r_000.png", "r_001.png"}
    for name in names:
        mean = sum(metrics[name] for metrics in result["per_image"].values()) / 2
        assert result[name] == pytest.approx(mean)
    camera, batch = next(iter(pipeline.datamanager.fixed_indices_eval_dataloader))
    photo = batch["image"]
    latents = pipeline.autoencoder.encode(photo.permute(2, 0, 1)[None])
    error = (pipeline.autoencoder.decode(latents, (48, 48))[0].permute(1, 2, 0) - photo).square().mean()
    first = result["per_image"]["r_000.png"]
    assert first["autoencoder_psnr"] == pytest.approx(float(-10 * torch.log10(error)), rel=1e-5)
    assert all(isinstance(v, float) for v in pipeline.get_average_eval_image_metrics(step=5).values())


def test_a_checkpoint_of_another_latent_space_is_refused(
    pipeline: LatentPipeline, blender_scene: Path, tmp_path: Path
) -> None:
    state = pipeline.state_dict()
    tiny_autoencoder(latent_channels=4).save_pretrained(tmp_path / "four")
    config = latent_config("vanilla_nerf", blender_scene, tmp_path / "four", tmp_path)
    other = config.pipeline.setup(device="cpu")
    with pytest.raises(InputError) as error:
        other.load_pipeline(state, 0)
    assert "6 latent channels" in str(error.value) and "four" in str(error.value)
    with pytest.raises(InputError, match="not one of a latent NeRF"):
        other.load_pipeline({"_model.field.weight": torch.zeros(1)}, 0)


def test_the_checkpoint_holds_neither_lpips_nor_the_original_autoencoder(pipeline: LatentPipeline) -> None:
    names = set(pipeline.state_dict())
    assert any(name.startswith("_model.decoder.") for name in names)
    assert not any("lpips" in name or "encoder.layers" in name.replace("decoder", "") for name in names)


def test_finished_runs_work_without_the_original_autoencoder(
    pipeline: LatentPipeline, blender_scene: Path, tmp_path: Path
) -> None:
    config = deepcopy(pipeline.config)
    config.autoencoder.name_or_path = str(tmp_path / "moved away")
    again = config.setup(device="cpu", test_mode="test")
    again.load_pipeline(pipeline.state_dict(), 0)
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    torch.testing.assert_close(again.eval().model.render(camera).rgb, pipeline.eval().model.render(camera).rgb)
    again.image_metrics._lpips = {"alex": None, "vgg": None}
    assert set(again.get_average_eval_image_metrics(step=1)) == {"psnr", "ssim"}
    with pytest.raises(InputError, match="does not exist"):
        config.setup(device="cpu", test_mode="val")  # training needs the encoder


@pytest.mark.parametrize("test_mode", ["val", "test", "inference"])
def test_the_viewer_can_look_into_the_pipeline(pipeline: LatentPipeline, test_mode: str) -> None:
    """Nerfstudio's viewer reads every attribute and property that it reaches; none may fail or start work."""
    from nerfstudio.viewer.utils import parse_object
    from nerfstudio.viewer.viewer_elements import ViewerElement

    finished = deepcopy(pipeline.config).setup(device="cpu", test_mode=test_mode)
    parse_object(finished, ViewerElement, "Custom Elements")
    assert finished.datamanager._eval_split is None


def test_depth_jumps_at_edges_and_is_smooth_on_surfaces() -> None:
    from igae_nerfstudio.pipelines.decoded_scene import enlarged_geometry

    slant = torch.linspace(1.0, 1.1, 6).expand(4, 6)
    depth = torch.where(torch.arange(6) < 3, slant, torch.full_like(slant, 4.0))[..., None]
    for behind in (0.0, 1.0):  # nothing, or a wall
        opacity = torch.where(torch.arange(6) < 3, 1.0, behind).expand(4, 6)[..., None]
        enlarged, accumulation = enlarged_geometry(depth, opacity, 8)[0]
        assert enlarged.shape == (32, 48)
        assert float(enlarged[:, :24].max()) < 1.1 and float(enlarged[:, 24:].min()) > 3.8  # none in between
        steps = enlarged[:, 4:20].diff(dim=1)
        torch.testing.assert_close(steps, torch.full_like(steps, 0.02 / 8))
        assert float((accumulation[:, 23] > 0.5).float().mean()) == 1
