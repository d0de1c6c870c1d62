"""Wheel and sdist: the carried autoencoders are inside and nothing else that is large; slow: both work on their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import DEMO_SCENE, ROOT

OUTSIDE = dict(os.environ)
"""The environment before the tests' own cache folder: uv finds what it has downloaded before."""
LARGE = 100_000
"""Bytes from which on a file must be a known one."""
WEIGHTS = {
    *(f"igae_nerfstudio/autoencoder/{name}/diffusion_pytorch_model.safetensors" for name in ("bundled", "bundled-ae")),
    *(f"igae_nerfstudio/prior/bundled/{name}.pt" for name in ("prior", "shared")),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and an sdist of a copy of the repository, without what lies in it beside the tracked files."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("packaging")
    beside = shutil.ignore_patterns(
        ".venv*", ".git", "outputs", "*.egg-info", "build", "dist", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "copy", ignore=beside)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "copy"]
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def sizes(archive: Path) -> dict[str, int]:
    """Files and their sizes, without the sdist's own folder."""
    if archive.suffix == ".whl":
        return {item.filename: item.file_size for item in zipfile.ZipFile(archive).infolist()}
    with tarfile.open(archive) as file:
        return {item.name.partition("/")[2]: item.size for item in file.getmembers() if item.isfile()}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_contents(built: dict[str, Path], kind: str) -> None:
    found = sizes(built[kind])
    assert {name for name, size in found.items() if size > LARGE} == WEIGHTS
    for name, size in found.items():
        if name.startswith("igae_nerfstudio/"):
            assert size == (ROOT / name).stat().st_size, name
    package = {path.relative_to(ROOT) for path in (ROOT / "igae_nerfstudio").rglob("*") if path.is_file()}
    expected = {str(path) for path in package if "__pycache__" not in path.parts}
    assert expected == {name for name in found if name.startswith("igae_nerfstudio/")}
    assert built[kind].stat().st_size < 15_000_000


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the installation may have to download Nerfstudio and torch
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_works_where_nothing_else_is(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """In an environment of its own, far from the repository: help, and a few steps on the demo scene."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not installed")
    bin_folder = tmp_path / "env" / "bin"

    def run(*words: str | Path, timeout: int = 1200) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        environment.update(XDG_CACHE_HOME=str(tmp_path / "cache"), COLUMNS="200")
        environment.pop("PYTHONPATH", None)
        result = subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    python = str(bin_folder / "python")
    subprocess.run([uv, "venv", "--python", sys.executable, str(tmp_path / "env")], check=True, env=OUTSIDE)
    subprocess.run([uv, "pip", "install", "--python", python, str(built[kind])], check=True, env=OUTSIDE)
    where = run(bin_folder / "python", "-c", "import igae_nerfstudio; print(igae_nerfstudio.__file__)")
    assert where.startswith(str(tmp_path))
    assert "--pipeline.rgb-alignment-steps" in run(bin_folder / "ns-train", "igae-tensorf", "--help")
    steps = "--pipeline.latent-supervision-steps 2 --pipeline.rgb-alignment-steps 2"
    small = "--pipeline.datamanager.images-per-batch 1 --pipeline.model.num-uniform-samples 16"
    more = "--pipeline.model.num-samples 8 --vis tensorboard --timestamp run"
    options = f"{steps} {small} {more}".split()
    run(bin_folder / "ns-train", "igae-tensorf", "--data", DEMO_SCENE, *options, "blender-data")
    models = tmp_path / "outputs" / DEMO_SCENE.name / "igae-tensorf" / "run" / "nerfstudio_models"
    assert [path.name for path in models.iterdir()] == ["step-000000003.ckpt"]
