"""`load_run`: what a latent and an RGB run render, how they are evaluated, and runs that cannot be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import make_runs

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import psnr
from igae_nerfstudio.runs import load_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("kind", ["latent", "rgb"])
def test_a_run_renders_and_evaluates(kind: str, runs: dict[str, Path]) -> None:
    run = load_run(runs[kind])
    assert len(run.cameras) == 3 and run.photo(0).shape == (48, 48, 3)
    assert float(run.photo(0)[0, 0].min()) == 1  # transparent corners are white
    rendered = [run.render(run.cameras[view]) for view in range(3)]
    for view in rendered:
        assert view.rgb.shape == (48, 48, 3) and 0 <= float(view.rgb.min()) <= float(view.rgb.max()) <= 1
        assert view.depth.shape == view.accumulation.shape == (48, 48, 1)
        if kind == "latent":
            assert view.latent is not None and view.latent.shape == (6, 6, 6)
        else:
            assert view.latent is None
    metrics = run.evaluate()
    expected = [float(psnr(view.rgb[None], run.photo(i)[None])) for i, view in enumerate(rendered)]
    assert metrics["psnr"] == pytest.approx(sum(expected) / 3, abs=1e-3) and metrics["ssim"] < 1
    assert run.evaluate([2])["psnr"] == pytest.approx(expected[2], abs=1e-3)


def test_a_camera_of_another_size(runs: dict[str, Path]) -> None:
    camera = load_run(runs["latent"]).cameras[:1]
    camera.rescale_output_resolution(2.0)
    assert load_run(runs["latent"]).render(camera).rgb.shape == (96, 96, 3)


def test_a_run_without_its_photos_renders_and_is_not_evaluated(runs: dict[str, Path]) -> None:
    scene = runs["latent"].parent / "scene"
    away = scene.rename(scene.with_name("away"))
    try:
        run = load_run(runs["latent"])
        assert run.render(run.cameras[0]).rgb.shape == (48, 48, 3)
        with pytest.raises(InputError, match="photos of its dataset are gone"):
            run.evaluate()
    finally:
        away.rename(scene)


def test_a_run_that_was_moved(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are looked for next to config.yml, not where they were written."""
    moved = shutil.copytree(next(runs["rgb"].glob("**/config.yml")).parent, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    camera = load_run(runs["rgb"]).cameras[0]
    torch.testing.assert_close(load_run("moved").render(camera).rgb, load_run(runs["rgb"]).render(camera).rgb)
    for checkpoint in moved.glob("**/*.ckpt"):
        checkpoint.unlink()
    with pytest.raises(InputError, match="moved.config.yml cannot be loaded"):
        load_run("moved")


@pytest.mark.parametrize("text", ["", "!!python/object:nowhere.Config {vis: viewer}\n", "a: [1\n"])
def test_a_config_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(InputError, match="config.yml cannot be (read|loaded)"):
        load_run(tmp_path)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run in .*no config.yml"):
        load_run(tmp_path)


def test_a_truncated_checkpoint(runs: dict[str, Path]) -> None:
    (checkpoint,) = runs["elsewhere"].glob("**/*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_run(runs["elsewhere"])
