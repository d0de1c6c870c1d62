"""What the documents say is so: their commands run, their excerpts are the source, their error messages exist.

A shell block after the line `<!-- runnable -->` is run as it stands, in a folder that holds the repository's `demo` and
`configs` and one small scene of each kind that the README names. Only `ns-train` is shortened to a few small steps.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from command_server import CommandServer
from conftest import ROOT, look_at_origin, write_blender_scene, write_nerfstudio_scene
from PIL import Image

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = """
--vis tensorboard --machine.device-type cpu
--pipeline.latent-supervision-steps 2 --pipeline.rgb-alignment-steps 2 --pipeline.datamanager.images-per-batch 1
--pipeline.model.num-uniform-samples 16 --pipeline.model.num-samples 8
--pipeline.model.init-resolution 16 --pipeline.model.final-resolution 16
"""


def runnable_blocks() -> Iterator[tuple[str, str]]:
    """Name and text of every block that is marked as runnable."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(r"<!-- runnable -->\n```bash\n(.*?)```", text, re.DOTALL), 1):
            yield f"{document.stem}-{number}", block


README_ERRORS = DOCUMENTS[0].read_text(encoding="utf-8").split("## When something goes wrong")[1].split("\n## ")[0]
"""The README's table of errors."""

BLOCKS = dict(runnable_blocks())


def photos(count: int, size: int = 48) -> list[np.ndarray]:
    """Small pictures that differ."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    return [np.uint8(255 * np.stack([rows, columns, np.full_like(rows, i / count)], -1)) for i in range(count)]


def write_colmap_scene(folder: Path, count: int = 10, size: int = 48) -> None:
    """Photos and a COLMAP text model with a pinhole camera."""
    from nerfstudio.data.utils.colmap_parsing_utils import rotmat2qvec

    (folder / "images").mkdir(parents=True)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"1 PINHOLE {size} {size} 60 60 {size / 2} {size / 2}\n")
    (model / "points3D.txt").write_text("1 0 0 0 255 0 0 0.1 1 0\n")
    lines = []
    for i, photo in enumerate(photos(count, size)):
        Image.fromarray(photo).save(folder / "images" / f"{i:04d}.png")
        camera_to_world = look_at_origin(azimuth=0.6 * i, elevation=0.3) @ np.diag([1.0, -1.0, -1.0, 1.0])
        world_to_camera = np.linalg.inv(camera_to_world)
        numbers = [*rotmat2qvec(world_to_camera[:3, :3]), *world_to_camera[:3, 3]]
        lines += [f"{i + 1} {' '.join(map(str, numbers))} 1 {i:04d}.png", "24.0 24.0 1"]
    (model / "images.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder in which the documents' commands find what they name, and the environment to run them in."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = tmp_path_factory.mktemp("docs")
    work = folder / "work"
    work.mkdir()
    for name in ("demo", "configs", "scripts"):
        (work / name).symlink_to(ROOT / name)
    write_nerfstudio_scene(work / "my-photos", photos(10))
    write_blender_scene(work / "my-render")
    write_colmap_scene(work / "my-sparse")
    write_nerfstudio_scene(work / "my-ngp", photos(20))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}
    environment = {**os.environ, **quiet, "XDG_CACHE_HOME": str(folder / "cache")}
    server = CommandServer(folder / "server", environment, {"ns-train": SHORT.split()})
    (server.bin / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = [str(server.bin), str(Path(sys.executable).parent), os.environ["PATH"]]
    yield work, {**environment, "PATH": os.pathsep.join(path)}
    server.close()


@pytest.mark.parametrize("name", BLOCKS)
def test_runnable_blocks_run(place: tuple[Path, dict[str, str]], name: str) -> None:
    folder, environment = place
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", BLOCKS[name]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_there_are_blocks_to_run() -> None:
    """The marker is spelt as this test looks for it, and the README's commands are among them."""
    assert sum("ns-train igae-" in block for block in BLOCKS.values()) >= 3
    marked = sum(document.read_text(encoding="utf-8").count("<!-- runnable") for document in DOCUMENTS)
    assert marked == len(BLOCKS)
    parsers = " ".join(BLOCKS.values())
    for parser in ("nerfstudio-data", "blender-data", "colmap", "instant-ngp-data"):
        assert re.search(rf"ns-train .* {parser}", parsers), parser


def test_excerpts_are_the_source() -> None:
    """Blocks after `<!-- source: FILE -->` or `<!-- source: FILE, NAME -->` stand in that file, word for word."""
    found = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path, name, block in re.findall(
            r"<!-- source: ([^,\n]+?)(?:, ([\w-]+))? -->\n```\w+\n(.*?)```", text, re.DOTALL
        ):
            source = (ROOT / path).read_text(encoding="utf-8")
            found += 1
            if name:
                lines = [line for line in block.splitlines() if not line.startswith("[")]
                assert "\n".join(lines) in source and lines[0].startswith(name.replace("-", lines[0][4])), name
            else:
                assert block == source, path
    assert found >= 4


def test_error_messages_are_ours_word_for_word() -> None:
    """Each quoted message stands in the package's source, unless the table says whose it is."""
    source = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "igae_nerfstudio").rglob("*.py"))
    source = re.sub(r'"\s*f?"', "", source)  # strings that are broken over lines
    others = ("Could not find ffmpeg", "Weights only load failed", "NerfAcc will be disabled", "Unrecognized options")
    rows = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows += README_ERRORS
    checked = 0
    for cell in re.findall(r"^\| ([^|]*`[^|]*) \|", rows, re.MULTILINE):
        if "(Nerfstudio)" in cell or "(torch)" in cell or "(tyro)" in cell or "(nerfacc)" in cell or "Killed" in cell:
            continue
        for message in re.findall(r"`([^`]+)`", cell):
            for part in filter(None, (part.strip(" ;,") for part in message.split("..."))):
                if not any(other in part for other in others):
                    assert part in source, part
                    checked += 1
    assert checked > 30
