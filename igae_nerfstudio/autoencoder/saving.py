"""Writing an autoencoder as a diffusers folder."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_autoencoder(folder: Path, module: nn.Module, texts: dict[str, str] | None = None) -> None:
    """Write `config.json`, the weights as safetensors, and `texts`; each file atomically.

    Args:
        folder: made if it is missing; other files in it stay.
        module: diffusers' autoencoder, which stays as it is.
        texts: contents of further files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain: Any = copy.deepcopy(module).to("cpu").to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        new = Path(name)
        plain.save_pretrained(new)
        architecture = json.loads((new / "config.json").read_text(encoding="utf-8"))
        architecture.pop("_name_or_path", None)  # where it was loaded from, on this machine
        (new / "config.json").write_text(json.dumps(architecture, indent=2) + "\n", encoding="utf-8")
        for file, text in (texts or {}).items():
            (new / file).write_text(text, encoding="utf-8")
        for path in sorted(new.iterdir()):
            path.chmod(0o644)  # safetensors writes files for their owner alone
            os.replace(path, folder / path.name)
