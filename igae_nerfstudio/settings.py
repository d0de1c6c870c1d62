"""Settings from YAML files that hold only what differs, read strictly: a wrong name or type ends in one line."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, Dict, List, Optional, Type, TypeVar

import yaml

from igae_nerfstudio.errors import InputError

T = TypeVar("T")


def read_yaml(path: Path) -> Dict[str, Any]:
    """The settings of a file, nested by group.

    Raises:
        InputError: no such file, or no YAML of settings.
    """
    if not path.is_file():
        raise InputError(f"config {path} does not exist; pass a YAML file such as configs/igae/debug.yaml")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict):
        raise InputError(f"config {path} must hold `key: value` lines")
    return entries


def merged(entries: Dict[str, Any], over: Dict[str, Any]) -> Dict[str, Any]:
    """Both, groups of settings key by key."""
    groups = {key: merged(entries.get(key, {}), value) for key, value in over.items() if isinstance(value, dict)}
    return {**entries, **over, **groups}


def from_dict(kind: Type[T], entries: Dict[str, Any], where: str, prefix: str = "", default: Optional[T] = None) -> T:
    """A dataclass from nested dictionaries, strictly; what they leave out is as in `default`, or in a new one.

    Raises:
        InputError: a setting that does not exist (with the nearest one that does), or a value of another type.
    """
    default = kind() if default is None else default
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]  # T is a dataclass
    values: Dict[str, Any] = {}
    for key, value in entries.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)
            raise InputError(f"{where}: there is no setting '{prefix}{key}'; the nearest is '{prefix}{close[0]}'")
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, dict):
                raise InputError(f"{where}: '{prefix}{key}' must be a group of settings, and is {value!r}")
            own = getattr(default, key)  # perhaps of a class that says more than the hint
            values[key] = from_dict(type(own), value, where, f"{prefix}{key}.", own)
        else:
            values[key] = _converted(hint, value, f"{where}: '{prefix}{key}'")
    return dataclasses.replace(default, **values)  # type: ignore[type-var]  # T is a dataclass


def _converted(hint: Any, value: Any, what: str) -> Any:
    """The value as its setting's type; YAML reads `1e-4` as text."""
    allowed: List[Any] = [option for option in typing.get_args(hint) or (hint,)]
    if typing.get_origin(hint) is typing.Literal:
        if value in allowed:
            return value
        raise InputError(f"{what} is {value!r}; it must be one of {', '.join(map(str, allowed))}")
    if value is None and type(None) in allowed:
        return None
    for option in allowed:
        if option is bool and isinstance(value, bool):
            return value
        if option in (int, float) and not isinstance(value, bool):
            try:
                number = float(value)
            except (TypeError, ValueError):
                continue
            if option is float:
                return number
            if number == int(number):
                return int(number)
        if option is tuple or typing.get_origin(option) is tuple:
            if isinstance(value, list):
                return tuple(value)
    names = " or ".join("none" if option is type(None) else option.__name__ for option in allowed)
    raise InputError(f"{what} is {value!r}; it must be {names}")


def use_fast_settings(config: Any) -> None:
    """Put the settings of a config's `fast` where its defaults stand; what was chosen by hand stays."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in config.fast.items():
        if getattr(config, name) == defaults[name]:
            setattr(config, name, value)
