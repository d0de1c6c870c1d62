"""The IG-AE step: which term teaches what, and a training that is stopped, resumed and shared."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, files_up_to, run_and_kill, run_in_processes, tiny_autoencoder, write_blender_scene
from emulated_cuda import emulated_cuda
from PIL import Image

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.engine.interruption import STATUS
from igae_nerfstudio.errors import DiskFull, InputError
from igae_nerfstudio.files import job_folder
from igae_nerfstudio.joint import trainer as module
from igae_nerfstudio.joint.config import IGAEConfig, load_config
from igae_nerfstudio.joint.trainer import IGAETrainer

TERMS = {  # the parameters that each term teaches (paper, equations 6, 7, 9, 10 and 14)
    "latent": {"encoder", "renderer", "planes"},
    "rgb": {"decoder", "renderer", "planes"},
    "scene_autoencoding": {"encoder", "decoder"},
    "plane_tv": {"planes"},
    "real_autoencoding": {"encoder", "decoder"},
    "real_latent_tv": {"encoder"},
    "real_latent_moments": {"encoder"},
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
    config.stage1.epochs, config.stage1.views_per_batch, config.stage1.views_per_scene = 2, 4, 2
    config.stage2.epochs, config.stage2.views_per_batch, config.stage2.views_per_scene = 2, 4, 2
    config.stage2.real_per_batch = 2
    config.stage2.encoder_lr = config.stage2.decoder_lr = 1e-3
    config.weights.real_perceptual = 0.0  # no test fetches AlexNet
    config.steps_per_log = 1
    for name, value in weights.items():
        setattr(config.weights, name, value)
    return config


def make_trainer(data: dict[str, Path], output_dir: Path, config: IGAEConfig | None = None) -> IGAETrainer:
    source = AutoencoderConfig(name_or_path=str(data["autoencoder"]))
    config = config or small_config()
    return IGAETrainer(config, data["scenes"], data["images"], source, output_dir, tensorboard=False)


def test_training_on_a_gpu(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages in mixed precision, on a GPU as far as there is none; a CPU goes on where it was stopped."""
    config = small_config(real_latent_moments=1.0)
    config.minutes_per_checkpoint, config.steps_per_figure, config.mixed_precision = 0, 2, True
    with emulated_cuda() as device:
        trainer = make_trainer(data, tmp_path, config)
        assert trainer.device.type == "cuda" and trainer.amp
        report, dtypes = trainer._report, set()
        convolution = next(m for m in trainer.autoencoder.modules() if isinstance(m, torch.nn.Conv2d))
        convolution.register_forward_hook(lambda module, args, result: dtypes.add(result.dtype))

        def checked(losses, progress):
            assert all(x.device == device and bool(x.isfinite()) for x in losses.values())
            report(losses, progress)

        monkeypatch.setattr(trainer, "_report", checked)
        run_and_kill(trainer, 2, 4, monkeypatch)
        assert torch.bfloat16 in dtypes
    folder = make_trainer(data, tmp_path, config).run()
    assert bool(weights_of(folder).isfinite().all())


def test_each_term_teaches_what_the_paper_says(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path, small_config(real_latent_moments=1.0))
    trainer._encode_all_views()
    trainer._begin()
    trainer.stage = 2
    for term, expected in TERMS.items():
        groups = trainer.schedule(2).groups(0)
        batch = trainer._scene_batch(groups, sorted({group.scene for group in groups}))
        trainer.autoencoder.zero_grad()
        trainer.renderer.zero_grad()
        losses = {**trainer.scene_losses(batch), **trainer.real_losses()}
        assert set(losses) == set(TERMS)
        losses[term].backward()
        taught = {
            "encoder": any_gradient(trainer.autoencoder.parameters_of("encoder")),
            "decoder": any_gradient(trainer.autoencoder.parameters_of("decoder")),
            "renderer": any_gradient(trainer.renderer.parameters()),
            "planes": any_gradient([batch.planes]),
        }
        assert {name for name, value in taught.items() if value} == expected, term


def any_gradient(parameters) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)


def test_every_parameter_of_the_autoencoder_is_in_one_half(data: dict[str, Path], tmp_path: Path) -> None:
    autoencoder = make_trainer(data, tmp_path).autoencoder
    halves = [id(p) for half in ("encoder", "decoder") for p in autoencoder.parameters_of(half)]
    assert sorted(halves) == sorted(id(p) for p in autoencoder.parameters())


def test_terms_switch_off(data: dict[str, Path], tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "igae" / "no_pr.yaml")
    assert config.weights.latent == 1 and config.weights.scene_autoencoding == config.weights.real_autoencoding == 0
    trainer = make_trainer(data, tmp_path, small_config(scene_autoencoding=0, real_autoencoding=0))
    trainer._encode_all_views()
    trainer._begin()
    trainer.stage = 2
    groups = trainer.schedule(2).groups(0)
    batch = trainer._scene_batch(groups, sorted({group.scene for group in groups}))
    assert set(trainer.scene_losses(batch)) == {"latent", "rgb", "plane_tv"} and trainer.real_losses() == {}


def test_latents_and_background_are_the_encoders_own(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    trainer._encode_all_views()
    trainer._begin()
    reference = load_autoencoder(AutoencoderConfig(name_or_path=str(data["autoencoder"])))
    images = trainer.views.images(torch.tensor([1]), torch.tensor([2]))
    cached = trainer._latents[trainer.views.flat_index(torch.tensor([1]), torch.tensor([2]))].float()
    torch.testing.assert_close(cached, reference.encode(images), atol=2e-3, rtol=2e-3)
    background = trainer.normalizer.normalize(reference.encode_colour(torch.ones(3)))
    torch.testing.assert_close(trainer.renderer.composite.background, background, atol=1e-4, rtol=1e-4)


def weights_of(folder: Path) -> torch.Tensor:
    module = load_autoencoder(AutoencoderConfig(name_or_path=str(folder))).module
    return torch.cat([p.flatten() for p in module.state_dict().values()])


@pytest.mark.parametrize(
    ("stop_at", "convolutions_lr"), [((1, 1), None), ((1, 5), None), ((2, 3), None), ((2, 3), 1e-3)]
)
def test_a_stopped_training_ends_where_the_uninterrupted_one_does(
    data: dict[str, Path],
    tmp_path: Path,
    stop_at: tuple[int, int],
    convolutions_lr: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints after every step."""
    config = small_config()
    config.stage2.convolutions_lr = convolutions_lr
    whole = make_trainer(data, tmp_path / "whole", config).run()
    config.minutes_per_checkpoint = 0
    run_and_kill(make_trainer(data, tmp_path / "stopped", config), *stop_at, monkeypatch)
    again = make_trainer(data, tmp_path / "stopped", config)
    folder = again.run()
    assert torch.equal(weights_of(folder), weights_of(whole))
    lines = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["step"]) for line in lines if "total" in line]
    assert steps == [(1, i) for i in range(1, 7)] + [(2, i) for i in range(1, 7)]


@pytest.mark.parametrize("stage, step", [(1, 2), (2, 3)])
def test_ctrl_c_keeps_the_step_and_names_it(
    data: dict[str, Path],
    tmp_path: Path,
    stage: int,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    whole = make_trainer(data, tmp_path / "whole").run()
    trainer = make_trainer(data, tmp_path / "stopped")
    losses = trainer.stage1_losses if stage == 1 else trainer.scene_losses

    def interrupted(batch):
        if (trainer.stage, trainer.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGINT)
        return losses(batch)

    monkeypatch.setattr(trainer, losses.__name__, interrupted)
    with pytest.raises(SystemExit) as end:
        trainer.run()
    assert end.value.code == STATUS
    kept = tmp_path / "stopped" / "checkpoint"
    said = capsys.readouterr().out
    assert f"the state after step {step + 1} of stage {stage} is kept in {kept}; the same command goes on" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    folder = make_trainer(data, tmp_path / "stopped").run()
    assert f"Going on with stage {stage} after step {step + 1}" in capsys.readouterr().out
    assert torch.equal(weights_of(folder), weights_of(whole))


def test_ctrl_c_twice_in_a_step_keeps_the_state_before(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a step is not a state: the planes may be written and the renderer not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = make_trainer(data, tmp_path)
    losses = trainer.scene_losses

    def interrupted(batch):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return losses(batch)

    monkeypatch.setattr(trainer, "scene_losses", interrupted)
    with pytest.raises(SystemExit):
        trainer.run()
    assert "in stage 2 at step 2: the state after step 0 of stage 2 is kept" in capsys.readouterr().out
    state = torch.load(tmp_path / "checkpoint" / "state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (2, 0)


def test_ctrl_c_while_views_are_encoded(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer = make_trainer(data, tmp_path)
    monkeypatch.setattr(trainer.autoencoder, "encode", lambda images: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        trainer.run()
    assert end.value.code == STATUS and not (tmp_path / "checkpoint").exists()
    assert f"before the first checkpoint of {tmp_path}; the same command starts again" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named(data: dict[str, Path], tmp_path: Path) -> None:
    make_trainer(data, tmp_path).run()
    path = tmp_path / "checkpoint" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{path.parent} cannot be read .*; move it away to train from the start"):
        make_trainer(data, tmp_path).run()


def test_the_result_is_an_autoencoder_that_has_changed(data: dict[str, Path], tmp_path: Path) -> None:
    folder = make_trainer(data, tmp_path).run()
    assert {p.name for p in folder.iterdir()} >= {"config.json", "README.md", "training.json"}
    assert not torch.equal(weights_of(folder), weights_of(data["autoencoder"]))
    facts = json.loads((folder / "training.json").read_text())
    assert facts["scenes"] == ["a", "b", "c"] and facts["config"]["stage2"]["epochs"] == 2
    assert set(facts["psnr"]) == {"real_psnr", "view_psnr", "render_psnr", "latent_psnr"}


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]) / "tests")); sys.path.insert(0, str(Path(sys.argv[1]) / "tests" / "igae"))
from test_training import make_trainer, small_config
scenes, images, autoencoder, out = map(Path, sys.argv[2:6])
config = small_config()
config.triplanes.jitter = False
make_trainer({"scenes": scenes, "images": images, "autoencoder": autoencoder}, out, config).run()
"""


def test_two_processes_do_what_one_does(data: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    for count in (1, 2):
        run_in_processes(
            count, script, ROOT, data["scenes"], data["images"], data["autoencoder"], tmp_path / str(count)
        )
    one, two = (weights_of(tmp_path / str(count) / "autoencoder") for count in (1, 2))
    start = weights_of(data["autoencoder"])
    assert float((one - start).abs().max()) > 1e-3
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_nan_stops_and_names_the_term(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    config.minutes_per_checkpoint = 0
    trainer = make_trainer(data, tmp_path, config)
    original = trainer.scene_losses

    def poisoned(batch):
        losses = original(batch)
        return {**losses, "rgb": losses["rgb"] * float("nan")} if trainer.step == 2 else losses

    monkeypatch.setattr(trainer, "scene_losses", poisoned)
    with pytest.raises(InputError, match=r"stage 2 at step 2 \(rgb\); the last good state is kept in .*checkpoint"):
        trainer.run()
    state = torch.load(tmp_path / "checkpoint" / "state.pt", weights_only=True)
    assert (state["stage"], state["step"]) == (2, 2)


def test_a_checkpoint_of_another_configuration_is_refused(data: dict[str, Path], tmp_path: Path) -> None:
    make_trainer(data, tmp_path).run()
    with pytest.raises(InputError, match=r"other settings \(weights.rgb\)"):
        make_trainer(data, tmp_path, small_config(rgb=0.5)).run()


def test_bad_input(data: dict[str, Path], tmp_path: Path) -> None:
    config = small_config()
    config.data.view_size = 44
    with pytest.raises(InputError, match="downscale 8 does not divide data.view_size 44"):
        make_trainer(data, tmp_path, config)
    config = small_config()
    config.stage2.real_per_batch = 400
    with pytest.raises(InputError, match=r"fewer real images \(23\) than a batch \(400\)"):
        make_trainer(data, tmp_path, config)
    with pytest.raises(InputError, match="--images is missing"):
        make_trainer({**data, "images": None}, tmp_path)


# Full disks


def test_latents_without_room_are_one_line(data: dict[str, Path], tmp_path: Path) -> None:
    trainer = make_trainer(data, tmp_path)
    with files_up_to(1000), pytest.raises(DiskFull, match=r"the latents of all views take 5.2 kB and .* left"):
        trainer.run()
    assert not list((tmp_path / "cache").glob("latents-*"))


def test_checkpoints_without_room_are_one_line_before_anything_is_learnt(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(data, tmp_path).run()
    trainer = make_trainer(data, tmp_path)
    one = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    assert 0 <= one - trainer.checkpoint_bytes() < 100_000  # the rest is names
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0.1 * one}))
    with pytest.raises(DiskFull, match=r"the checkpoints of this training take [0-9.]+ kB and .* left; free some"):
        trainer.run()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1.5 * one}))
    trainer.run()  # beside the one that is there already
    with pytest.raises(DiskFull):
        make_trainer(data, tmp_path / "new").run()


def test_a_training_on_a_full_disk_ends_in_one_line_and_goes_on(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from the second stage on; what the last checkpoint has is not lost."""
    config = small_config()
    whole = make_trainer(data, tmp_path / "whole", config).run()
    config.minutes_per_checkpoint = 0
    trainer = make_trainer(data, tmp_path / "full", config)
    report = trainer._report

    def fill_up(losses, progress):
        if trainer.stage == 2:
            stack.enter_context(files_up_to(2000))
        report(losses, progress)

    monkeypatch.setattr(trainer, "_report", fill_up)
    with ExitStack() as stack, pytest.raises(DiskFull) as raised, job_folder(tmp_path / "full", "igae-train"):
        trainer.run()
    assert "cannot take more" in str(raised.value) and "run the same command again" in str(raised.value)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"No checkpoint at step 1 of stage 2 in {tmp_path / 'full'} (a file" in shown or "(file too large)" in shown
    assert not (tmp_path / "full" / "checkpoint.new").exists()
    again = make_trainer(data, tmp_path / "full", config)
    assert torch.equal(weights_of(again.run()), weights_of(whole))
    assert "Going on with stage 2 after step 0" in capsys.readouterr().out
