"""Settings compared: equal seconds, one process a run, a table and a sheet of what is there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import ROOT
from PIL import Image

from benchmarks.baselines import with_steps
from igae_nerfstudio.errors import InputError

SCRIPT = ROOT / "scripts" / "compare_settings.py"
SMALL = {"num_uniform_samples": 8, "num_samples": 4, "init_resolution": 8, "final_resolution": 8}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_settings", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_settings"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def comparison(blender_scene: Path, autoencoder_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Runs as short as can be."""
    return {
        "scenes": {"box": {"data": str(blender_scene)}},
        "variants": {
            "RGB": {"baseline": "twin", "pipeline": {"datamanager": {"train_num_rays_per_batch": 64}, "model": SMALL}},
            "colour head": {
                "autoencoder": str(autoencoder_dir),
                "pipeline": {"colour_head": True},
                "methods": {"tensorf": {"model": SMALL}},
                "optimizers": {"decoder": {"optimizer": {"lr": 0.01}}},
            },
        },
        "cpu_seconds": 0.1,
    }


def written(folder: Path, comparison: dict[str, Any]) -> Path:
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(comparison))
    return path


def test_two_variants_of_a_scene(script: ModuleType, comparison: dict[str, Any], tmp_path: Path) -> None:
    settings = script.Comparison.read(written(tmp_path, comparison))
    (tmp_path / "runs").mkdir()
    for run in settings.runs():
        assert not (tmp_path / "sheet.png").exists()
        script.train_and_evaluate(settings, run, tmp_path)
        table = script.report(settings, tmp_path)
    latent = json.loads((tmp_path / "runs" / "box-tensorf-colour_head-0.json").read_text())
    twin = json.loads((tmp_path / "runs" / "box-tensorf-RGB-0.json").read_text())
    assert latent["steps"] == [2, 2] and len(latent["metrics"]) == 2 and twin["steps"] == [2]
    assert latent["cpu_seconds"] > 0 and twin["picture_seconds"] > 0 and latent["metrics"][0] != latent["metrics"][1]
    psnr = f"{latent['metrics'][1]['psnr']:.2f}"
    assert "| box | tensorf | colour head | 2 + 2 |" in table and f"| tensorf | colour head | 1 | {psnr}" in table
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 256  # photo, RGB, colour head


def test_settings_of_a_variant_arrive(script: ModuleType, comparison: dict[str, Any], tmp_path: Path) -> None:
    settings = script.Comparison.read(written(tmp_path, comparison))
    twin, latent = (script.configured(settings, run, tmp_path) for run in settings.runs())
    assert twin.pipeline.datamanager.train_num_rays_per_batch == 64 and twin.pipeline.model.num_samples == 4
    assert latent.pipeline.colour_head and latent.optimizers["decoder"]["optimizer"].lr == 0.01
    assert latent.pipeline.latent_supervision_lr_factor == 1  # of the preset quick
    with_steps(latent, [30, 70])
    assert latent.resolved().max_num_iterations == 100 == latent.optimizers["fields"]["scheduler"].max_steps


def test_bad_comparisons_are_refused(script: ModuleType, comparison: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs `scenes` and `variants`"):
        script.Comparison.read(written(tmp_path, {"variants": comparison["variants"]}))
    comparison["scenes"]["box"]["dataparsr"] = "x"
    with pytest.raises(InputError, match="scene box: there is no setting 'dataparsr'; the nearest is 'dataparser'"):
        script.Comparison.read(written(tmp_path, comparison))


@pytest.mark.slow
def test_a_run_that_fails_costs_the_others_nothing(comparison: dict[str, Any], tmp_path: Path) -> None:
    comparison["variants"]["broken"] = {"autoencoder": "nowhere"}
    words = ["--comparison", str(written(tmp_path, comparison)), "--output-dir", str(tmp_path / "out")]
    for there in (0, 2):
        ended = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        said = " ".join(ended.stdout.split())
        assert f"3 runs, {there} there already" in said and "box-tensorf-broken-0 failed:" in said and "nowhere" in said
        assert "| box | tensorf | colour head | 2 + 2 |" in ended.stdout
