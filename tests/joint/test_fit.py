"""New scenes: what learns and what rests, jobs that are stopped and go on, and the files that come out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_cuda import emulated_cuda
from many_scenes_data import DEBUG, RGB, TINY, Killed, make_trainer, small_config, train, write_data
from test_many_scenes import words

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.config_files import read_yaml, to_plain, with_settings
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.joint import fit as module
from igae_nerfstudio.joint import scenes_command as command
from igae_nerfstudio.joint.fit import SceneFit, find_tasks, fine_tuned_weights, fit_scene, fit_scenes, measure
from igae_nerfstudio.joint.results import SharedBasis, load_scene
from igae_nerfstudio.joint.trainer import Trainer, make_optimizers
from igae_nerfstudio.scenes.view_schedule import ViewGroup

SHARED_RATES = {"latent_supervision": {"shared_lr": 0.01}, "rgb_alignment": {"shared_lr": 0.01}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and `shared`: a finished joint training."""
    folder = write_data(tmp_path_factory.mktemp("fit"))
    train(folder, folder / "shared")
    return folder


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fetches AlexNet."""
    monkeypatch.setattr(module.ImageMetrics, "_load_lpips", lambda *arguments: None)


def of_fit(**settings: Any) -> dict[str, Any]:
    return {"fit": settings}


def scene_fit(data: Path, folder: Path, **settings: Any) -> SceneFit:
    """Of scene x, with every view encoded."""
    basis = SharedBasis.load(data / "shared")
    fit = SceneFit(small_config(of_fit(**settings)), basis, data / "new", ["x"], folder)
    fit.data.encode_views(fit.trainer.accelerator, quiet=True)
    return fit


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("decoder", ["all", "outer", "none"])
def test_what_learns_in_which_phase(data: Path, tmp_path: Path, decoder: str) -> None:
    fit = scene_fit(data, tmp_path, fine_tuned_decoder=decoder)
    trainer, model = fit.trainer, fit.model
    trainer.fill_codes(fit.start_code)
    frozen = model.shared.shared.clone()
    for stage in trainer.stages:
        trainer.optimizers = make_optimizers(model, stage.settings)
        before = {name: value.clone() for name, value in model.autoencoder.module.state_dict().items()}
        renderer = {name: value.clone() for name, value in model.renderer.state_dict().items()}
        code = fit.data.codes.load([0])
        trainer.train_step(stage, 0)
        learnt = changed(before, model.autoencoder.module.state_dict())
        assert learnt <= (fit.fine_tuned if stage.number == 2 else set())
        assert bool(learnt) == (stage.number == 2 and decoder != "none")
        assert "composite.background" not in changed(renderer, model.renderer.state_dict())
        assert not torch.equal(code, fit.data.codes.load([0]))
        assert model.shared.shared.grad is None and torch.equal(model.shared.shared, frozen)


def test_on_a_gpu(data: Path, tmp_path: Path) -> None:
    """As far as there is none: a scene alone, two together, and what a CPU then reads."""
    alone = small_config({"mixed_precision": True, "data": {"max_scenes": 1}})
    together = small_config({"mixed_precision": True}, of_fit(train_shared=True, **SHARED_RATES))
    with emulated_cuda() as device:
        train(data, tmp_path / "shared", {"mixed_precision": True})
        basis = SharedBasis.load(tmp_path / "shared")
        assert SceneFit(alone, basis, data / "new", ["x"], tmp_path / "x").trainer.device.type == device.type
        reports = [
            fit_scenes([data / "new"], tmp_path / "shared", tmp_path / "alone", alone),
            fit_scenes([data / "new"], tmp_path / "shared", tmp_path / "together", together),
        ]
    assert [report.learnt for report in reports] == [["x"], ["x", "y"]] and not any(r.failed for r in reports)
    for out in ("alone", "together"):
        assert bool(load_scene(tmp_path / out / "scenes" / "x").planes.isfinite().all())


def test_layers_that_are_fine_tuned() -> None:
    autoencoder = TrainableAutoencoder(load_autoencoder(AutoencoderConfig()))
    every, outer = (fine_tuned_weights(autoencoder, which) for which in ("all", "outer"))
    sizes = {name: weight.numel() for name, weight in autoencoder.module.named_parameters()}
    assert outer < every and all(name.startswith("decoder.") for name in every)
    assert "decoder.conv_out.conv.weight" in outer and "decoder.conv_in.weight" not in outer
    assert sum(sizes[name] for name in outer) < 0.01 * sum(sizes[name] for name in every)


def test_a_scene_starts_at_the_mean_of_the_training_scenes(data: Path, tmp_path: Path) -> None:
    codes = make_trainer(data, data / "shared").data.codes.load(range(4))
    torch.testing.assert_close(scene_fit(data, tmp_path).start_code(0), codes.mean(dim=0), atol=1e-3, rtol=1e-3)


def test_a_scene_starts_at_the_nearest_training_scene(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new scene's latents are renders of the second of three codes."""
    fit = scene_fit(data, tmp_path, start="nearest")
    model = fit.model
    assert len(list(fit.basis.training_codes(100))) == 4 and len(list(fit.basis.training_codes(2))) == 2
    codes = [3 * model.shared.initial_code(torch.Generator().manual_seed(seed)) for seed in range(3)]
    batch = fit.data.batch([ViewGroup(0, (0, 1, 2, 3))])
    model.renderer.eval()
    with torch.no_grad():
        batch.planes = model.shared(codes[1][None])
        latents = model.normalizer.denormalize(model.render(batch))
    fit.data.latents = latents.permute(0, 3, 1, 2).half()
    monkeypatch.setattr(SharedBasis, "training_codes", lambda self, limit: iter(codes))
    assert torch.equal(fit.start_code(0), codes[1])


def test_what_is_stored_is_what_was_measured(data: Path, tmp_path: Path) -> None:
    (task, _) = find_tasks([data / "new"], data / "shared", tmp_path, small_config(of_fit(steps_per_validation=2)))
    fit_scene(task)
    result = json.loads(task.result_path.read_text())
    scene = load_scene(tmp_path / "scenes" / "x")
    views = scene_fit(data, tmp_path / "again").held_out
    for name, value in measure(scene, views, 0).items():
        assert result["rgb_alignment"][name] == pytest.approx(value, abs=1e-4)
    state = torch.load(tmp_path / "scenes" / "x" / "scene.pt", weights_only=True)
    assert state["planes"].dtype == torch.half
    assert result["bytes"]["planes"] == 2 * 3 * 3 * 8**2 and result["bytes"]["weights"] == 2 * 5
    assert result["bytes"]["total"] < result["bytes_on_disk"] < result["bytes"]["total"] + 30_000
    assert result["seconds"] > 0 and not (tmp_path / "work" / "x").exists()
    assert all({"seconds", "held_out_psnr"} <= set(line) for line in result["curve"]) and result["curve"]


def test_colours_need_no_autoencoder(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "rgb", RGB)
    assert fit_scenes([data / "new"], tmp_path / "rgb", tmp_path / "out").learnt == ["x", "y"]
    result = json.loads((tmp_path / "out" / "scenes" / "x" / "result.json").read_text())
    assert "rgb_alignment" not in result and result["bytes"]["decoder"] == 0
    scene = load_scene(tmp_path / "out" / "scenes" / "x")
    views = scene_fit(data, tmp_path / "again").held_out
    assert scene.images(views.cameras([0], [0])).shape == (1, 3, 48, 48)


def test_a_job_goes_on_where_it_was_killed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second phase of the first scene; the result is that of an undisturbed job."""
    config = small_config({"minutes_per_checkpoint": 0}, of_fit(rgb_alignment={"epochs": 2}))
    whole, out, steps = tmp_path / "whole", tmp_path / "out", []
    fit_scenes([data / "new"], data / "shared", whole, config)
    save, step = Trainer._save_in_time, Trainer.train_step

    def kill(self: Trainer, interrupted: bool) -> None:
        save(self, interrupted)
        if (self.data.views.names, self.number, self.step) == (["x"], 2, 1):
            raise Killed

    def count(self: Trainer, stage: Any, number: int) -> Any:
        steps.append((self.data.views.names[0], stage.number, number))
        return step(self, stage, number)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_save_in_time", kill)
        fit_scenes([data / "new"], data / "shared", out, config)
    assert not (out / "scenes" / "x" / "result.json").exists() and (out / "work" / "x" / "checkpoint").exists()
    monkeypatch.setattr(Trainer, "train_step", count)
    report = fit_scenes([data / "new"], data / "shared", out, config)
    assert (report.learnt, report.found, report.failed) == (["x", "y"], [], {})
    assert [step for step in steps if step[0] == "x"] == [("x", 2, 1)]
    for name in ("x", "y"):
        one, other = (torch.load(f / "scenes" / name / "scene.pt", weights_only=True) for f in (whole, out))
        assert torch.equal(one["planes"], other["planes"]) and torch.equal(one["weights"], other["weights"])
    steps.clear()
    report = fit_scenes([data / "new"], data / "shared", out, config)
    assert (report.learnt, report.found, steps) == ([], ["x", "y"], [])


def test_ctrl_c_keeps_the_scene_that_is_fitted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    original = Trainer.train_step

    def interrupted(self: Trainer, stage: Any, step: int) -> Any:
        if (self.data.views.names, stage.number, step) == (["y"], 1, 1):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, stage, step)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    config = small_config(of_fit(latent_supervision={"epochs": 4}))
    with pytest.raises(KeyboardInterrupt, match="after step 2 of stage 1, which is kept in .*work/y/checkpoint"):
        fit_scenes([data / "new"], data / "shared", tmp_path, config)
    assert (tmp_path / "scenes" / "x" / "result.json").exists()
    assert torch.load(tmp_path / "work" / "y" / "checkpoint" / "state.pt", weights_only=True)["step"] == 2


def test_a_scene_that_fails_stops_no_other(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = tmp_path / "new"
    shutil.copytree(data / "new", scenes)
    shutil.copytree(scenes / "x", scenes / "empty")
    meta = json.loads((scenes / "empty" / "transforms_train.json").read_text())
    (scenes / "empty" / "transforms_train.json").write_text(json.dumps({**meta, "frames": []}))
    report = fit_scenes([scenes], data / "shared", tmp_path / "out", small_config())
    assert report.learnt == ["x", "y"]
    assert "has no views" in report.failed["empty"]
    module.log_report(report, tmp_path / "out")
    assert "failed: empty: scene " in capsys.readouterr().out
    (scenes / "empty" / "transforms_train.json").write_text(json.dumps(meta))
    report = fit_scenes([scenes], data / "shared", tmp_path / "out", small_config())
    assert (report.learnt, report.found, report.failed) == (["empty"], ["x", "y"], {})


@pytest.mark.slow  # tests/test_files.py has the lock alone
def test_two_jobs_in_one_folder(data: Path, tmp_path: Path) -> None:
    """As processes: the second ends at once in one line; the first, killed, leaves no lock."""
    out = tmp_path / "out"
    script = [sys.executable, "-m", "igae_nerfstudio.joint.scenes_command", "exploit", "--scenes", data / "new"]
    script += ["--shared", data / "shared", "--output-dir", out, "--fit.latent-supervision.epochs", "100000"]
    line = [str(word) for word in script]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            while not (out / "work" / "x" / "cache").exists():
                assert first.poll() is None
                time.sleep(0.1)
            second = subprocess.run(line, capture_output=True, text=True)
            assert second.returncode == 1 and "Traceback" not in second.stderr
            assert f"another process works in {out}" in second.stderr and first.poll() is None
        finally:
            first.kill()
    with module.job_folder(out):
        pass


def test_the_basis_can_be_trained_on(data: Path, tmp_path: Path) -> None:
    config = small_config(of_fit(train_shared=True, **SHARED_RATES))
    assert fit_scenes([data / "new"], data / "shared", tmp_path, config).learnt == ["x", "y"]
    before, after = SharedBasis.load(data / "shared"), SharedBasis.load(tmp_path)
    assert not torch.equal(before.planes["shared"], after.planes["shared"])
    scene = load_scene(tmp_path / "scenes" / "y")
    views = SceneFit(small_config(), before, data / "new", ["x", "y"], tmp_path / "again").held_out
    result = json.loads((tmp_path / "scenes" / "y" / "result.json").read_text())
    assert measure(scene, views, 1)["psnr"] == pytest.approx(result["rgb_alignment"]["psnr"], abs=0.05)
    assert result["bytes"]["decoder"] == result["bytes"]["renderer"] == 0
    assert fit_scenes([data / "new"], data / "shared", tmp_path, config).found == ["x", "y"]


def test_a_basis_that_cannot_learn_is_named() -> None:
    with pytest.raises(InputError, match="the shared planes' rates are 0; set fit.latent_supervision.shared_lr"):
        small_config(of_fit(train_shared=True)).check()
    together = with_settings(small_config(), read_yaml(DEBUG.with_name("together.yaml")), "together").fit
    assert together.train_shared and together.latent_supervision.shared_lr > 0


def test_bad_input(data: Path, tmp_path: Path) -> None:
    new, shared = data / "new", data / "shared"
    with pytest.raises(InputError, match="two scenes are named 'x'"):
        shutil.copytree(new / "x", tmp_path / "twice" / "x")
        fit_scenes([new, tmp_path / "twice"], shared, tmp_path / "out")
    with pytest.raises(InputError, match="shared.pt does not exist; pass the --output-dir"):
        fit_scenes([new], data / "new", tmp_path / "out")
    report = fit_scenes([new], shared, tmp_path / "out", small_config({"micro_macro": {"shared_planes": 3}}))
    assert "does not fit the settings of triplanes, micro_macro or space" in report.failed["x"]
    fit_scenes([new], shared, tmp_path / "done", small_config({"data": {"max_scenes": 1}}))
    with pytest.raises(InputError, match=r"other settings \(fit.start\)"):
        fit_scenes([new], shared, tmp_path / "done", small_config(of_fit(start="noise")))
    train(data, tmp_path / "other", {"stage1": {"epochs": 0}, "stage2": {"epochs": 0}})
    with pytest.raises(InputError, match="was learnt with another shared basis than"):
        load_scene(tmp_path / "done" / "scenes" / "x", SharedBasis.load(tmp_path / "other"))
    (tmp_path / "done" / "scenes" / "x" / "scene.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="scene.pt cannot be read"):
        load_scene(tmp_path / "done" / "scenes" / "x")


def test_damaged_files_are_named(data: Path, tmp_path: Path) -> None:
    shared = shutil.copytree(data / "shared", tmp_path / "shared")
    content = torch.load(shared / "shared.pt", weights_only=True)
    torch.save({**content, "planes": {"shared": torch.zeros(3)}}, shared / "shared.pt")
    with pytest.raises(InputError, match="shared.pt does not fit the settings"):
        SharedBasis.load(shared).make_model()
    shutil.copy(data / "shared" / "scenes" / "a" / "scene.pt", shared / "shared.pt")
    with pytest.raises(InputError, match=r"shared.pt holds no shared basis \('config'\); pass the"):
        SharedBasis.load(shared)
    shutil.copy(data / "shared" / "shared.pt", shared / "shared.pt")
    (shared / "autoencoder").rename(shared / "elsewhere")
    with pytest.raises(InputError, match="autoencoder is missing; pass the --output-dir"):
        SharedBasis.load(shared).make_model()


def test_files_of_earlier_versions(data: Path, tmp_path: Path) -> None:
    """`fit` was `exploit`, plain planes had an entry of shared ones without numbers, and there were fewer settings."""
    shared = train(data, tmp_path / "shared", {"micro_macro": {"shared_planes": 0}})
    content = torch.load(shared / "shared.pt", weights_only=True)
    content["config"]["exploit"] = content["config"].pop("fit")
    torch.save({**content, "planes": {"shared": torch.zeros(0, 3, 0, 8, 8)}}, shared / "shared.pt")
    assert SharedBasis.load(shared).config.fit == small_config().fit
    assert load_scene(shared / "scenes" / "a").planes.shape == (3, 8, 8, 8)
    basis, settings = SharedBasis.load(shared), to_plain(small_config())
    del settings["transforms"]
    (tmp_path / "job.json").write_text(json.dumps({"shared_sha256": basis.sha256, "settings": settings}))
    module._check_same_job(tmp_path, small_config(), basis)
    with pytest.raises(InputError, match=r"other settings \(transforms.shift\)"):
        module._check_same_job(tmp_path, small_config({"transforms": {"shift": 0.5}}), basis)


def test_the_command_from_end_to_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--scenes", data / "train", "--autoencoder", data / "autoencoder", "--output-dir", tmp_path / "shared"]
    line = ["train", *folders, "--no-tensorboard", "--config", DEBUG, *words(TINY)]
    command.main([str(word) for word in line], "igae scenes")
    line = ["fit", "--scenes", data / "new", "--shared", tmp_path / "shared", "--output-dir", tmp_path / "out"]
    command.main([str(word) for word in (*line, "--fit.start", "noise")])
    assert "Scenes: 2 learnt, 0 there already, 0 failed" in capsys.readouterr().out
    assert load_scene(tmp_path / "out" / "scenes" / "y").planes.shape == (3, 8, 8, 8)
    assert json.loads((tmp_path / "out" / "job.json").read_text())["settings"]["fit"]["start"] == "noise"
    with pytest.raises(SystemExit) as end:
        command.main([str(word) for word in line])
    assert "fitted with other settings (fit.start)" in str(end.value)
