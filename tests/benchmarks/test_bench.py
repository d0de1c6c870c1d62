"""Stock RGB, its faster twin and latents: what is compared, one real small run of each, and the arithmetic."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from conftest import SMALL

from benchmarks import baselines, measure, report
from benchmarks.bench import BASELINES, OVER_TIME, BenchCommand, Cell, main
from igae_nerfstudio.config_files import read_yaml, to_plain
from igae_nerfstudio.engine.optimizers import FusedAdamOptimizerConfig
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.presets import QUICK

MEASURED = [(method, baseline) for method in ("tensorf", "instant-ngp") for baseline in BASELINES[method]]


def cell(scene: Path, folder: Path, method: Any = "tensorf", baseline: Any = "twin", **settings: Any) -> Cell:
    return Cell(**{"data": scene, "output_dir": folder, "method": method, "baseline": baseline, "size": 48, **settings})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, autoencoder_dir: Path) -> None:
    """Tiny models and batches."""
    original = baselines.trainer_config

    def config(cell: Cell):
        config = original(cell)
        for name, value in SMALL[cell.method.replace("-", "_")].items():
            setattr(config.pipeline.model, name, value)
        if cell.baseline == "latent":
            config.pipeline.autoencoder.name_or_path = str(autoencoder_dir)
        else:
            config.pipeline.datamanager.train_num_rays_per_batch = 64
        return config

    monkeypatch.setattr(measure, "trainer_config", config)


@pytest.mark.parametrize("method", BASELINES)
def test_the_twin_has_the_latent_methods_parts(method: str, blender_scene: Path, tmp_path: Path) -> None:
    twin, latent = (
        baselines.trainer_config(cell(blender_scene, tmp_path, method, name)) for name in ("twin", "latent")
    )
    splats = method == "splatfacto"
    assert getattr(twin.pipeline.model, "latent_channels", None) == (3 if splats else None)
    for name, group in twin.optimizers.items():
        assert group == latent.optimizers[name]
        assert method == "vanilla-nerf" or isinstance(group["optimizer"], FusedAdamOptimizerConfig)
    targets = latent.pipeline.model._target, twin.pipeline.model._target
    assert issubclass(*(reversed(targets) if splats else targets))  # one is the other with another head
    for config in (twin, latent):
        data = config.pipeline.datamanager
        assert type(data.dataparser).__name__ == "BlenderDataParserConfig" and data.dataparser.data == blender_scene


def test_all_baselines_of_two_methods_are_measured(small: None, blender_scene: Path, tmp_path: Path) -> None:
    cells = [measure.measure(cell(blender_scene, tmp_path, *which, seconds=0.01)) for which in MEASURED]
    for (_, baseline), found in zip(MEASURED, cells):
        phases = {"latent supervision", "RGB alignment"} if baseline == "latent" else {"training"}
        assert set(found["rays"]) == phases and set(found["rays"].values()) == {4 * 6 * 6 if len(phases) > 1 else 64}
        assert {"picture", *phases} <= set(found["seconds"])
        assert min(found["seconds"].values()) > 0
        assert found["parameters"] > 1000 and min(found["bytes"].values()) > 10_000
    report.write_report(tmp_path, json.loads(json.dumps(cells)))
    ratios = json.loads((tmp_path / "bench.json").read_text())["ratios"]
    assert len(ratios) == 2 * 2 * 3  # methods, step and picture, pairs of baselines
    assert {ratio["is"] for ratio in ratios} == set(report.BUYS.values())
    assert "| twin / latent | stock / twin | stock / latent |" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize("baseline", ["twin", "latent"])
def test_quality_over_time(
    baseline: str, small: None, blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "POINTS", 2)
    found = measure.measure(cell(blender_scene, tmp_path, "tensorf", baseline, over_time=True, quality=0.02))
    assert sum(found["steps"]) == 12 and len(found["steps"]) == (2 if baseline == "latent" else 1)
    (first, _), (last, psnr) = found["curve"]
    assert 0 < first < last
    assert found["metrics"]["psnr"] == pytest.approx(psnr, abs=1e-4)  # both of both test views
    report.write_report(tmp_path, json.loads(json.dumps([found])))
    assert (tmp_path / "psnr_over_time.png").stat().st_size > 5000


def test_settings_over_time_are_those_of_the_file(blender_scene: Path, tmp_path: Path) -> None:
    for method, learners in read_yaml(OVER_TIME).items():
        for baseline in ("latent", "twin"):
            config = baselines.trainer_config(
                cell(blender_scene, tmp_path, method, baseline, over_time=True, quality=2.0)
            )
            quick = read_yaml(QUICK)[f"igae-{method}"]["pipeline"]
            of_phases = [quick["latent_supervision_steps"], quick["rgb_alignment_steps"]]
            steps = 2 * sum(of_phases if baseline == "latent" else learners["twin"]["steps"])
            for group in config.optimizers.values():
                assert group["scheduler"] is None or group["scheduler"].max_steps == steps
            if baseline == "latent":
                decay = config.pipeline.decoder_lr_decay**config.pipeline.rgb_alignment_steps
                assert decay == pytest.approx(0.26) and config.pipeline.schedule().total_steps == steps
            else:
                settings = learners[baseline]["pipeline"]
                if method == "splatfacto":
                    assert config.pipeline.model.num_gaussians == settings["model"]["num_gaussians"]
                else:
                    rays = settings["datamanager"]["train_num_rays_per_batch"]
                    assert config.pipeline.datamanager.train_num_rays_per_batch == rays
    for size, base in ((128, 32), (256, 64)):
        config = baselines.trainer_config(cell(blender_scene, tmp_path, "kplanes", over_time=True, size=size))
        assert config.pipeline.model.grid_base_resolution == (base,) * 3


def measured(baseline: str, **seconds: float) -> dict[str, Any]:
    """A speed measurement of TensoRF."""
    return {
        "cell": {"method": "tensorf", "size": 128, "baseline": baseline, "data": "scene", "preset": "paper"},
        "machine": {},
        "seconds": {name.replace("_", " "): value for name, value in seconds.items()},
        "rays": {},
        "parameters": 1,
        "bytes": {},
    }


def test_ratios_say_what_they_compare() -> None:
    """A mean latent step is 0.4 x 0.1 + 0.6 x 0.2 = 0.16 s."""
    cells = [
        measured("stock", training=2.4, picture=6.0),
        measured("twin", training=0.8, picture=1.5),
        measured("latent", latent_supervision=0.1, RGB_alignment=0.2, picture=0.05, decode=0.01),
    ]
    found = {(r["metric"], r["of"], r["over"]): (r["ratio"], r["is"]) for r in report.ratios(cells)}
    expected = {("twin", "latent"): (5.0, 30.0), ("stock", "twin"): (3.0, 4.0), ("stock", "latent"): (15.0, 120.0)}
    for pair, values in expected.items():
        for metric, value in zip(("training step", "picture"), values):
            assert found[(metric, *pair)] == (pytest.approx(value), report.BUYS[pair])
    assert {ratio["of"] for ratio in report.ratios(cells[1:])} == {"twin"}  # as of K-Planes, which has no stock


def test_psnr_at_equal_seconds(tmp_path: Path) -> None:
    """One ends at 20 s and 18 dB, where the other's line from (10, 16) to (30, 22) is at 19 dB."""
    curves = []
    for baseline, curve in (("twin", [[10, 16], [30, 22]]), ("latent", [[10, 17], [20, 18]])):
        what = {"method": "tensorf", "size": 128, "baseline": baseline, "data": "scene", "preset": "paper"}
        found = {"cell": what, "machine": {}, "curve": curve, "steps": [1], "metrics": {"psnr": 18.5, "ssim": 0.5}}
        curves.append({**found, "seconds": {"picture": 0.02}})
    report.write_report(tmp_path, curves)
    rows = [line for line in (tmp_path / "bench.md").read_text().splitlines() if line.startswith("| tensorf")]
    assert ["19.00 after 20 s" in rows[0], "18.00 after 20 s" in rows[1]] == [True, True]


def test_occupancy_of_a_ball(small: None, blender_scene: Path, tmp_path: Path) -> None:
    training = measure.Training(measure.trainer_config(cell(blender_scene, tmp_path, "instant-ngp")))
    measure.occupy_ball(training.scene.occupancy_grid)
    share = float(training.scene.occupancy_grid.binaries[0].float().mean())
    assert share == pytest.approx(4 / 3 * math.pi / 64, rel=0.1)
    before = training.scene.occupancy_grid.binaries.clone()
    training.steps([measure.RGB_PHASES["training"]] * 3)
    assert torch.equal(training.scene.occupancy_grid.binaries, before)


class Ended:
    """A process that ran."""

    def __init__(self, returncode: int = 0) -> None:
        self.returncode = returncode


def test_a_stopped_comparison_goes_on(tmp_path: Path, blender_scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command measures what is missing; other settings measure again."""
    ran: list[str] = []
    stop_at = 2

    def run(command: list[str], **kwargs: Any) -> Ended:
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        which = tyro.cli(Cell, args=command[3:])
        ran.append(which.baseline)
        steps = {"latent_supervision": 1.0, "RGB_alignment": 1.0} if which.baseline == "latent" else {"training": 1.0}
        found = measured(which.baseline, picture=1.0, **steps)
        which.path.write_text(json.dumps({**found, "cell": to_plain(which)}))
        return Ended()

    monkeypatch.setattr(subprocess, "run", run)
    words = [
        "--data",
        blender_scene,
        "--output-dir",
        tmp_path,
        "--methods",
        "tensorf",
        "--sizes",
        "48",
        "--quality",
        "0",
    ]
    words = [str(word) for word in words]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 130 and ran == ["stock", "twin"]
    stop_at = 100
    main(words)
    assert ran == ["stock", "twin", "latent"] and (tmp_path / "bench.md").exists()
    main([*words, "--seconds", "1"])
    assert ran == 2 * ["stock", "twin", "latent"]


def test_bad_input_is_named(blender_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        BenchCommand(data=tmp_path / "nowhere", output_dir=tmp_path).run()
    with pytest.raises(InputError, match="no dataparser 'blender'"):
        baselines.trainer_config(cell(blender_scene, tmp_path, dataparser="blender"))

    def fails(command: list[str], stdout: Any, **kwargs: Any) -> Ended:
        stdout.write("a traceback\nValueError: no images\n")
        return Ended(1)

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(InputError, match="tensorf-twin-48-speed: ValueError: no images .log: .*speed.log"):
        cell(blender_scene, tmp_path).result()
