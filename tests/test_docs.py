"""The documents are true: their commands and examples run, and their excerpts are the source.

A shell block after the line `<!-- runnable -->` runs as it stands, in a folder that holds the repository's `configs`,
every fourth view of its `demo` and one small scene of each kind that the README names; only `ns-train` is shortened to
a few small steps. A Python block runs there too, after the blocks before it and with their variables; what it prints
must be the text block after `<!-- output -->`, if there is one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from command_server import command_scripts
from conftest import DEMO_SCENE, ROOT, look_at_origin, write_blender_scene, write_nerfstudio_scene
from PIL import Image

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = """
--vis tensorboard --machine.device-type cpu
--pipeline.latent-supervision-steps 2 --pipeline.rgb-alignment-steps 2 --pipeline.datamanager.images-per-batch 1
--pipeline.model.num-uniform-samples 16 --pipeline.model.num-samples 8
--pipeline.model.init-resolution 16 --pipeline.model.final-resolution 16
"""


RUNNABLE = r"<!-- runnable -->\n```(bash|python)\n(.*?)```(?:\n\n<!-- output -->\n```text\n(.*?)```)?"


def runnable_blocks() -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Name, language, text and output of every block that is marked as runnable."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = re.findall(RUNNABLE, text, re.DOTALL)
        yield from ((f"{document.stem}-{number}", block) for number, block in enumerate(blocks, 1))


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


def write_part_of_demo(folder: Path) -> None:
    """Every fourth view."""
    for split in ("train", "val", "test"):
        meta = json.loads((DEMO_SCENE / f"transforms_{split}.json").read_text())
        meta["frames"] = meta["frames"][::4]
        (folder / split).mkdir(parents=True)
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
        for frame in meta["frames"]:
            picture = f"{frame['file_path']}.png"
            (folder / picture).symlink_to(DEMO_SCENE / picture)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the documents' commands find what they name, and the environment to run them in."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = tmp_path_factory.mktemp("docs")
    work = folder / "work"
    work.mkdir()
    for name in ("configs", "scripts"):
        (work / name).symlink_to(ROOT / name)
    write_part_of_demo(work / "demo" / "lighthouse")
    write_nerfstudio_scene(work / "my-photos", photos(10))
    write_blender_scene(work / "my-render")
    write_colmap_scene(work / "my-sparse")
    write_nerfstudio_scene(work / "my-ngp", photos(20))
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}
    environment = {**os.environ, **quiet, "XDG_CACHE_HOME": str(folder / "cache")}
    scripts = command_scripts(folder / "bin", {"ns-train": SHORT.split()})
    (scripts / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = [str(scripts), str(Path(sys.executable).parent), os.environ["PATH"]]
    return work, {**environment, "PATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def variables() -> dict[str, dict[str, Any]]:
    """Those of each document's Python blocks."""
    return {document.stem: {} for document in DOCUMENTS}


@pytest.mark.parametrize("name", BLOCKS)
def test_runnable_blocks_run(
    place: tuple[Path, dict[str, str]],
    variables: dict[str, dict[str, Any]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, environment = place
    language, block, output = BLOCKS[name]
    if language == "python":
        from nerfstudio.engine.trainer import writer  # from there, as the module cannot be imported first

        monkeypatch.chdir(folder)
        for logger in ("EVENT_WRITERS", "EVENT_STORAGE"):  # Nerfstudio keeps the loggers of a process there
            monkeypatch.setattr(writer, logger, [])
        exec(compile(block, name, "exec"), variables[name.rpartition("-")[0]])
        assert capsys.readouterr().out == output or not output
        return
    words = ["bash", "-euo", "pipefail", "-c", block]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_there_are_blocks_to_run() -> None:
    """No marker is misspelt, and the README's commands are among the blocks."""
    marked = sum(document.read_text(encoding="utf-8").count("<!-- runnable") for document in DOCUMENTS)
    assert marked == len(BLOCKS)
    for parser in ("blender-data", "colmap", "instant-ngp-data"):
        assert re.search(rf"ns-train .* {parser}", "".join(block for _, block, _ in BLOCKS.values())), parser


def test_excerpts_are_the_source() -> None:
    """A block after `<!-- source: FILE -->` is that file; after `<!-- source: FILE, NAME -->` a part of it."""
    found = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for path, part, block in re.findall(
            r"<!-- source: ([^,\n]+?)(, [\w-]+)? -->\n```\w+\n(.*?)```", text, re.DOTALL
        ):
            source = (ROOT / path).read_text(encoding="utf-8")
            heading = block.splitlines()[0] if block.startswith("[") else ""  # of a TOML table with other lines
            assert block.removeprefix(f"{heading}\n") in source and heading in source if part else block == source, path
            found += 1
    assert found >= 4
