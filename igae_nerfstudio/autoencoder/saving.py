"""Writing an autoencoder as a diffusers folder."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch import nn


def save_autoencoder(folder: Path, module: nn.Module, texts: Optional[Dict[str, str]] = None) -> None:
    """Write `config.json`, safetensors and `texts`; every file is there whole or not at all.

    Args:
        folder: of the result, made if it is missing; other files in it stay.
        module: diffusers' autoencoder; stays as it is.
        texts: further files, contents by name.
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
