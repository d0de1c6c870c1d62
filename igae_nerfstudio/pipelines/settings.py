"""Settings of a pipeline from a YAML file, for whole schedules that one wants to name and keep."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, Dict

import yaml

from igae_nerfstudio.errors import InputError


def apply_settings(config: Any, path: Path) -> None:
    """Write the settings of a file into a config dataclass; groups such as `datamanager:` are nested.

    Raises:
        InputError: no such file, no YAML, a setting that does not exist, or a value of another type.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"settings {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict):
        raise InputError(f"settings {path} must hold `name: value` lines")
    _apply(config, entries, path)


def _apply(config: Any, entries: Dict[str, Any], path: Path, prefix: str = "") -> None:
    names = [field.name for field in dataclasses.fields(config) if not field.name.startswith("_")]
    for name, value in entries.items():
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {prefix}{nearest[0]}?" if nearest else ""
            raise InputError(f"settings {path}: there is no {prefix}{name}{hint}")
        current = getattr(config, name)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            _apply(current, value, path, f"{prefix}{name}.")
            continue
        if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(current, tuple) and isinstance(value, list):
            value = tuple(value)
        if current is not None and type(value) is not type(current):
            raise InputError(
                f"settings {path}: {prefix}{name} is {value!r}; it must be of type {type(current).__name__}"
            )
        setattr(config, name, value)
