"""Diffusers folders, as they are written."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.autoencoder.saving import save_autoencoder


def test_what_is_saved_loads_and_says_nothing_of_this_machine(tmp_path: Path) -> None:
    module = load_autoencoder(AutoencoderConfig("bundled-ae")).module
    folder = tmp_path / "new" / "autoencoder"
    save_autoencoder(folder, module, {"README.md": "first"})
    (folder / "notes.txt").write_text("of the user")
    save_autoencoder(folder, module.to(memory_format=torch.channels_last), {"README.md": "second"})
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors", "README.md", "notes.txt"}
    assert (folder / "README.md").read_text() == "second"
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir() if path.name != "notes.txt")
    assert "_name_or_path" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.parent.glob(".export-*"))

    loaded = load_autoencoder(AutoencoderConfig(str(folder))).module
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
