"""docs/file-formats.md against files that are made here: every key is in its table, with its type and shape."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
from conftest import ROOT, latent_config, write_blender_scene

DOCUMENT = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")


def table(name: str) -> List[Tuple[str, str, str]]:
    """Key, type and shape of each row after `<!-- keys: NAME -->`."""
    block = re.search(rf"<!-- keys: {name} -->\n((?:\|.*\n)+)", DOCUMENT)
    assert block, name
    head, _, *rows = block[1].splitlines()
    with_shape = "shape" in head
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(row[0].strip("`"), row[1], row[2] if with_shape else "") for row in cells]


def leaves(value: Any, key: str = "") -> Iterator[Tuple[str, Any]]:
    """Dotted keys and values of nested dictionaries."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def check(content: Dict[str, Any], rows: List[Tuple[str, str, str]], known: Dict[str, int]) -> None:
    """Every leaf has a row, every row has a leaf; types are right, and letters in shapes stand for one number each."""
    used = set()
    for key, value in leaves(content):
        row = next((row for row in rows if fnmatchcase(key, row[0])), None)
        assert row is not None, f"{key} is not in the table"
        used.add(row)
        kind = str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else type(value).__name__
        assert row[1] in (kind, "any"), f"{key} is {kind}, and not {row[1]}"
        if isinstance(value, torch.Tensor) and row[2] not in ("", "*"):
            sides = [side.strip() for side in row[2].strip("()").split(",")]
            assert len(sides) == value.ndim, f"{key}: {tuple(value.shape)}, and not {row[2]}"
            for side, number in zip(sides, value.shape):
                times, letter = re.fullmatch(r"(\d*)(\w?)", side).groups()
                expected = int(times or 1) * (known.setdefault(letter, number // int(times or 1)) if letter else 1)
                assert number == expected, f"{key}: {tuple(value.shape)}, and not {row[2]} with {known}"
    free = ("schedulers.*", "scalers.*", "optimizers.*.state.*.*")
    unused = [row[0] for row in rows if row not in used and row[0] not in free]
    assert not unused, f"not in the file: {unused}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `igae-tensorf` with the bundled autoencoder; its latents are in `latents`."""
    folder = tmp_path_factory.mktemp("formats")
    phases = {"latent_supervision_steps": 1, "rgb_alignment_steps": 1}
    scene = write_blender_scene(folder / "scene", counts=(3, 1, 1))
    config = latent_config("tensorf", scene, Path("bundled"), folder, **phases)
    config.pipeline.datamanager.latent_cache_dir = folder / "latents"
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    (trainer.base_dir / "latents").symlink_to(folder / "latents")
    return trainer.base_dir


def test_checkpoint(run: Path) -> None:
    (path,) = (run / "nerfstudio_models").iterdir()
    content = torch.load(path, weights_only=True)
    assert set(content) == {"step", "pipeline", "optimizers", "schedulers", "scalers"}
    check(content, table("checkpoint"), {"c": 16})


def test_scene_record(run: Path) -> None:
    content = torch.load(run / "scene.pt", weights_only=True)
    assert set(content["splits"]) == {"train", "val", "test"}
    for name, split in content["splits"].items():
        check({**content, "splits": {name: split}}, table("scene"), {})


def test_latent_cache(run: Path) -> None:
    import numpy as np

    sidecar = next((run / "latents").glob("*.json"))
    content = json.loads(sidecar.read_text())
    check(content, table("cache"), {})
    array = np.load(sidecar.with_suffix(".npy"))
    assert list(array.shape) == content["latent_size"] == [6, 6, 16] and str(array.dtype) == content["dtype"]
    assert content["image_size"] == [48, 48, 3] and len(sidecar.stem) == 40


def test_files_of_a_run(run: Path) -> None:
    rows = DOCUMENT.split("## A run's folder")[1].split("###")[0]
    named = {name.replace("X" * 9, "000000001") for name in re.findall(r"^\| `([\w./-]+)`", rows, re.MULTILINE)}
    there = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "latents" not in path.parts}
    assert named == {name for name in there if "tfevents" not in name}


@pytest.mark.parametrize("name", ["bundled", "bundled-ae"])
def test_autoencoder_folder(name: str) -> None:
    from safetensors.torch import load_file

    folder = ROOT / "igae_nerfstudio" / "autoencoder" / name
    rows = DOCUMENT.split("## An autoencoder's folder")[1].split("###")[0]
    named = set(re.findall(r"^\| `([\w.]+)` \|", rows.split("<!-- keys")[0], re.MULTILINE))
    there = {path.name for path in folder.iterdir()}
    assert there == (named if name == "bundled" else named - {"training.json"})
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert json.loads((folder / "config.json").read_text())["_class_name"] in rows + DOCUMENT + "AutoencoderDC"
    if name == "bundled":
        check(json.loads((folder / "training.json").read_text()), table("training"), {})


def test_training_state_of_an_igae(tmp_path: Path) -> None:
    from igae_nerfstudio.config_files import read_yaml, with_settings
    from igae_nerfstudio.joint.compositions import train_igae
    from igae_nerfstudio.joint.config import IGAEConfig

    config = with_settings(IGAEConfig(), read_yaml(ROOT / "configs" / "igae" / "debug.yaml"), "debug.yaml")
    config.data.max_views, config.stage1.epochs, config.stage1.views_per_batch = 4, 1, 4
    config.weights.real_perceptual = config.weights.real_autoencoding = 0
    train_igae(config, ROOT / "demo", None, tmp_path / "out", "bundled", tensorboard=False)
    folder = tmp_path / "out" / "checkpoint"
    content = torch.load(folder / "state.pt", weights_only=True)
    check(content, table("igae-state"), {"c": 16, "S": 1})
    floats = 3 * config.triplanes.features * config.triplanes.resolution**2
    for name in ("planes", "first_moment", "second_moment"):
        assert (folder / f"{name}.f32").stat().st_size == 4 * floats
