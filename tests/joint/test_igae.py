"""The IG-AE step: which term teaches what, and a training that is stopped, resumed and shared."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run_in_processes, tiny_autoencoder, write_blender_scene
from emulated_cuda import emulated_cuda
from many_scenes_data import Killed, any_gradient, kill_at, started
from PIL import Image

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.autoencoder.equivariance import Transforms, known, moved
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint.compositions import begin, joint_trainer, train_igae
from igae_nerfstudio.joint.config import IGAEConfig
from igae_nerfstudio.joint.trainer import Trainer
from igae_nerfstudio.joint.validation import validate

TERMS = {  # the parameters that each term teaches (paper, equations 6, 7, 9, 10 and 14)
    "latent": {"encoder", "renderer", "codes"},
    "rgb": {"decoder", "renderer", "codes"},
    "scene_autoencoding": {"encoder", "decoder"},
    "plane_tv": {"codes"},
    "real_autoencoding": {"encoder", "decoder"},
    "real_latent_tv": {"encoder"},
    "real_latent_moments": {"encoder"},
    "equivariance_picture": {"encoder", "decoder"},  # not in the paper
    "equivariance_latent": {"encoder"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three scenes of four views, 25 noisy pictures and an autoencoder."""
    folder = tmp_path_factory.mktemp("igae")
    for name in ("a", "b", "c"):
        write_blender_scene(folder / "scenes" / name, counts=(4, 1, 1))
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(25):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / "images" / f"{i:02d}.png")
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    return {name: folder / name for name in ("scenes", "images", "autoencoder")}


def small_config(**weights: float) -> IGAEConfig:
    config = IGAEConfig()
    config.data.view_size = 48
    config.triplanes.resolution, config.triplanes.features, config.triplanes.hidden = 8, 4, 8
    config.triplanes.samples = config.triplanes.importance_samples = 6
    for stage in (config.stage1, config.stage2):
        stage.epochs, stage.views_per_batch, stage.views_per_scene = 2, 4, 2
    config.stage2.real_per_batch = 2
    config.stage2.encoder_lr = config.stage2.decoder_lr = 1e-3
    config.weights.real_perceptual = 0.0  # no test fetches AlexNet
    config.steps_per_log = 1
    for name, value in weights.items():
        setattr(config.weights, name, value)
    return config


def make_trainer(data: dict[str, Path], output_dir: Path, config: IGAEConfig | None = None) -> Trainer:
    config = config or small_config()
    return joint_trainer(config, data["scenes"], data["images"], output_dir, str(data["autoencoder"]))


def train(data: dict[str, Path], output_dir: Path, config: IGAEConfig | None = None) -> Path:
    source = AutoencoderConfig(name_or_path=str(data["autoencoder"]))
    return train_igae(config or small_config(), data["scenes"], data["images"], output_dir, source, tensorboard=False)


def weights_of(folder: Path) -> torch.Tensor:
    module = load_autoencoder(AutoencoderConfig(name_or_path=str(folder))).module
    return torch.cat([p.flatten() for p in module.state_dict().values()])


@pytest.fixture(scope="module")
def whole(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted training with `small_config`; its folder is for copies."""
    return train(data, tmp_path_factory.mktemp("whole"))


def interrupt_at(trainer: Trainer, stage: int, step: int, times: int = 1) -> None:
    """Ctrl-C in the middle of a step, which has that number."""
    seed = trainer._seed

    def interrupted(at: Any, number: int) -> None:
        seed(at, number)
        if (at.number, number) == (stage, step):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    trainer._seed = interrupted


def test_each_term_teaches_what_the_paper_says(data: dict[str, Path], tmp_path: Path) -> None:
    ours = {"real_latent_moments": 1.0, "equivariance_picture": 1.0, "equivariance_latent": 1.0}
    trainer = started(make_trainer(data, tmp_path, small_config(**ours)))
    stage, model = trainer.stages[1], trainer.model
    for term, expected in TERMS.items():
        model.zero_grad()
        batch = trainer.batch(stage, 0)
        losses = stage.objective(model, batch)
        assert set(losses) == set(TERMS) and stage.objective.weights[term] > 0
        losses[term].backward()
        taught = {
            "encoder": any_gradient(model.autoencoder.parameters_of("encoder")),
            "decoder": any_gradient(model.autoencoder.parameters_of("decoder")),
            "renderer": any_gradient(model.renderer.parameters()),
            "codes": any_gradient([batch.codes]),
        }
        assert {name for name, value in taught.items() if value} == expected, term


def test_stage_1_leaves_the_autoencoder_alone(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path))
    stage, model = trainer.stages[0], trainer.model
    before, codes = [p.clone() for p in model.autoencoder.parameters()], trainer.data.codes.load([0, 1, 2])
    trainer.train_step(stage, 0)
    assert all(torch.equal(one, other) for one, other in zip(before, model.autoencoder.parameters()))
    assert any_gradient(model.renderer.parameters()) and not any_gradient(model.autoencoder.parameters())
    assert not torch.equal(trainer.data.codes.load([0, 1, 2]), codes)


def test_every_parameter_of_the_autoencoder_is_in_one_half(data: dict[str, Path], tmp_path: Path) -> None:
    autoencoder = make_trainer(data, tmp_path).model.autoencoder
    halves = [id(p) for half in ("encoder", "decoder") for p in autoencoder.parameters_of(half)]
    assert sorted(halves) == sorted(id(p) for p in autoencoder.parameters())


def test_terms_switch_off(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path, small_config(scene_autoencoding=0, real_autoencoding=0)))
    stage = trainer.stages[1]
    batch = trainer.batch(stage, 0)
    assert batch.real is None and set(stage.objective(trainer.model, batch)) == {"latent", "rgb", "plane_tv"}


def test_equivariance_over_views_and_real_images(data: dict[str, Path], tmp_path: Path) -> None:
    """Both terms against the definition, one picture at a time."""
    trainer = started(make_trainer(data, tmp_path, small_config(equivariance_picture=1.0, equivariance_latent=1.0)))
    stage, model = trainer.stages[1], trainer.model
    batch = trainer.batch(stage, 0)
    torch.manual_seed(5)
    transforms = Transforms().draw(6, 6)
    torch.manual_seed(5)
    with torch.no_grad():
        encoded = (model.encode(batch.images), model.encode(batch.real))
        losses = stage.objective.equivariance_losses(model, (batch.images, batch.real), encoded)
        expected: dict[str, list[float]] = {"equivariance_picture": [], "equivariance_latent": []}
        for picture, matrix in zip(torch.cat([batch.images, batch.real]).split(1), transforms.split(1)):
            target = moved(picture, matrix).clamp(0, 1)
            latents = moved(model.encode(picture), matrix)
            error = (model.decode(latents) - target).square().mean(dim=1)
            expected["equivariance_picture"].append(float(error[known(matrix, 48, 6)[:, 0] > 0].mean()))
            error = (model.normalized(model.encode(target)) - model.normalized(latents)).square().mean(dim=-1)
            expected["equivariance_latent"].append(float(error[known(matrix, 6, 6)[:, 0] > 0].mean()))
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        {name: sum(values) / 6 for name, values in expected.items()}, rel=1e-4
    )


def test_latents_and_background_are_the_encoders_own(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = started(make_trainer(data, tmp_path))
    reference = load_autoencoder(AutoencoderConfig(name_or_path=str(data["autoencoder"])))
    images = trainer.data.views.images(torch.tensor([1]), torch.tensor([2]))
    cached = trainer.data.latents[trainer.data.views.flat_index(torch.tensor([1]), torch.tensor([2]))].float()
    torch.testing.assert_close(cached, reference.encode(images), atol=2e-3, rtol=2e-3)
    background = trainer.model.normalizer.normalize(reference.encode_colour(torch.ones(3)))
    torch.testing.assert_close(trainer.model.renderer.composite.background, background, atol=1e-4, rtol=1e-4)


def test_a_small_training_learns(tmp_path: Path) -> None:
    """The bundled standard autoencoder on 8 views of the demo scene: decoded renders start at 11.3 dB, and are at 16.4
    after 60 steps of stage 1."""
    config = with_settings(IGAEConfig(), read_yaml(ROOT / "configs" / "igae" / "debug.yaml"), "debug")
    config.data.max_views = 8
    config.stage1.epochs, config.stage1.planes_lr, config.stage1.renderer_lr = 60, 5e-2, 2e-2
    config.weights.real_autoencoding = 0.0
    config.steps_per_figure = 2
    start = validate(started(joint_trainer(config, ROOT / "demo", None, tmp_path / "start", "bundled-ae")).data)
    train_igae(config, ROOT / "demo", None, tmp_path, tensorboard=False)
    end = json.loads((tmp_path / "autoencoder" / "training.json").read_text())["psnr"]
    assert start["render_psnr"] < 12.5 and end["render_psnr"] > 14.5
    assert end["latent_psnr"] > start["latent_psnr"] + 0.5 and end["view_psnr"] > 25
    assert (tmp_path / "figures" / "stage2_0000002.png").exists()


def test_training_on_a_gpu(data: dict[str, Path], tmp_path: Path) -> None:
    """Both stages in mixed precision, on a GPU as far as there is none; a CPU goes on where it was stopped."""
    config = small_config(real_latent_moments=1.0)
    config.minutes_per_checkpoint, config.mixed_precision = 0, True
    with emulated_cuda() as device:
        trainer = make_trainer(data, tmp_path, config)
        assert trainer.device.type == "cuda" and trainer.amp
        step, dtypes = trainer.train_step, set()
        convolution = next(m for m in trainer.model.autoencoder.modules() if isinstance(m, torch.nn.Conv2d))
        convolution.register_forward_hook(lambda module, args, result: dtypes.add(result.dtype))

        def checked(*arguments: Any) -> dict[str, torch.Tensor]:
            losses = step(*arguments)
            assert all(x.device == device and bool(x.isfinite()) for x in losses.values())
            return losses

        trainer.train_step = checked
        kill_at(trainer, 2, 4)
        with pytest.raises(Killed):
            trainer.run(begin)
        assert torch.bfloat16 in dtypes
    assert bool(weights_of(train(data, tmp_path, config)).isfinite().all())


@pytest.mark.parametrize(("stop_at", "convolutions_lr"), [((1, 5), None), ((2, 3), None), ((2, 3), 1e-3)])
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    data: dict[str, Path], whole: Path, tmp_path: Path, stop_at: tuple[int, int], convolutions_lr: float | None
) -> None:
    """Checkpoints after every step."""
    config = small_config()
    if convolutions_lr is not None:
        config.stage2.convolutions_lr = convolutions_lr
        whole = train(data, tmp_path / "whole", config)
    config.minutes_per_checkpoint = 0
    trainer = make_trainer(data, tmp_path / "stopped", config)
    kill_at(trainer, *stop_at)
    with pytest.raises(Killed):
        trainer.run(begin)
    folder = train(data, tmp_path / "stopped", config)
    assert torch.equal(weights_of(folder), weights_of(whole))
    lines = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "total" in line]
    assert steps == [(1, i) for i in range(1, 7)] + [(2, i) for i in range(1, 7)]


def test_ctrl_c_keeps_the_step(data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = make_trainer(data, tmp_path / "stopped")
    interrupt_at(trainer, 2, 3)
    with pytest.raises(KeyboardInterrupt, match="after step 4 of stage 2.* goes on from there"):
        trainer.run(begin)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = torch.load(tmp_path / "stopped" / "checkpoint" / "state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (2, 4)
    assert torch.equal(weights_of(train(data, tmp_path / "stopped")), weights_of(whole))


def test_ctrl_c_twice_in_a_step_keeps_the_state_before(data: dict[str, Path], tmp_path: Path) -> None:
    """Half a step is not a state: the codes may be written and the renderer not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = make_trainer(data, tmp_path)
    interrupt_at(trainer, 2, 2, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(begin)
    state = torch.load(tmp_path / "checkpoint" / "state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (2, 0)


def test_a_damaged_checkpoint_is_named(data: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole.parent, tmp_path / "damaged") / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{path.parent} cannot be read .*; move it away"):
        train(data, tmp_path / "damaged")


def test_the_result_is_an_autoencoder_that_has_changed(data: dict[str, Path], whole: Path) -> None:
    assert {p.name for p in whole.iterdir()} >= {"config.json", "README.md", "training.json"}
    assert not torch.equal(weights_of(whole), weights_of(data["autoencoder"]))
    facts = json.loads((whole / "training.json").read_text())
    assert facts["scenes"] == ["a", "b", "c"] and facts["config"]["stage2"]["epochs"] == 2
    assert set(facts["psnr"]) == {"real_psnr", "warp_psnr", "view_psnr", "render_psnr", "latent_psnr"}


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = [str(Path(sys.argv[1]) / "tests"), str(Path(sys.argv[1]) / "tests" / "joint")]
from test_igae import small_config, train
scenes, images, autoencoder, out = map(Path, sys.argv[2:6])
config = small_config()
config.triplanes.jitter = False
train({"scenes": scenes, "images": images, "autoencoder": autoencoder}, out, config)
"""


def test_two_processes_do_what_one_does(data: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    run_in_processes(2, script, ROOT, *data.values(), tmp_path / "two")
    config = small_config()
    config.triplanes.jitter = False
    one, two = weights_of(train(data, tmp_path / "one", config)), weights_of(tmp_path / "two" / "autoencoder")
    start = weights_of(data["autoencoder"])
    assert float((one - start).abs().max()) > 1e-3
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_nan_stops_and_names_the_term(data: dict[str, Path], tmp_path: Path) -> None:
    config = small_config()
    config.minutes_per_checkpoint = 0
    trainer = make_trainer(data, tmp_path, config)
    stage = trainer.stages[1]

    class Poisoned:
        weights, losses = stage.objective.weights, stage.objective

        def __call__(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
            losses = self.losses(model, batch)
            return {**losses, "rgb": losses["rgb"] * float("nan")} if trainer.step == 2 else losses

    stage.objective = Poisoned()
    with pytest.raises(InputError, match=r"stage 2 at step 2 \(rgb\); the last good state is kept in .*checkpoint"):
        trainer.run(begin)
    state = torch.load(tmp_path / "checkpoint" / "state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (2, 2)


def test_a_checkpoint_of_another_configuration_is_refused(data: dict[str, Path], whole: Path) -> None:
    with pytest.raises(InputError, match=r"other settings \(weights.rgb\)"):
        train(data, whole.parent, small_config(rgb=0.5))


def test_a_setting_that_is_newer_than_the_checkpoint_counts_as_its_default(
    data: dict[str, Path], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group, and a setting of a group, that the version which wrote the file did not have."""
    path = shutil.copytree(whole.parent, tmp_path / "older") / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["config"]["transforms"], state["config"]["weights"]["equivariance_latent"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"other settings \(weights.equivariance_latent\)"):
        train(data, tmp_path / "older", small_config(equivariance_latent=1.0))
    train(data, tmp_path / "older")
    assert "Going on with stage 2 after step 6" in capsys.readouterr().out


def test_bad_input(data: dict[str, Path], tmp_path: Path) -> None:
    config = small_config()
    config.data.view_size = 44
    with pytest.raises(InputError, match="downscale 8 does not divide data.view_size 44"):
        make_trainer(data, tmp_path, config)
    config = small_config()
    config.weights.equivariance_latent, config.transforms.shift = 1.0, 4.0
    with pytest.raises(InputError, match="transforms.shift is 4.0 latent pixels; it must be from 0 to 1.5"):
        make_trainer(data, tmp_path, config)
    config = small_config()
    config.stage2.real_per_batch = 400
    with pytest.raises(InputError, match="real_per_batch is 400, and .* has 23 real images"):
        make_trainer(data, tmp_path, config)
    with pytest.raises(InputError, match="--images is missing"):
        make_trainer({**data, "images": None}, tmp_path)
