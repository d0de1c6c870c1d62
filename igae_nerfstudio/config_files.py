"""YAML files that hold only the settings that differ, laid over a dataclass of settings.

pydantic converts each value to the type of its field; unknown names are refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import typing
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, TypeVar

import tyro
import yaml
from pydantic import TypeAdapter, ValidationError

from igae_nerfstudio.errors import InputError, one_line, reported_in_one_line

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file, nested by group.

    Raises:
        InputError: no such file, or no YAML of settings.
    """
    if not path.is_file():
        raise InputError(f"config {path} does not exist; pass a YAML file such as configs/igae/debug.yaml")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is no readable YAML: {one_line(error)}") from error
    if not isinstance(entries, dict):
        raise InputError(f"config {path} must hold `key: value` lines")
    return entries


def with_settings(config: T, entries: dict[str, Any], where: str, prefix: str = "") -> T:
    """A copy of a dataclass with settings in place of its own, nested groups field by field.

    Args:
        config: a dataclass; nested dataclasses are groups of settings.
        entries: nested settings, as YAML gives them.
        where: what messages call their source, such as the file.
        prefix: of the names in messages.

    Raises:
        InputError: a setting that does not exist (with the nearest one that does), or a value of another type.
    """
    hints = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config) if field.init]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in entries.items():
        name = f"{prefix}{key}"
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise InputError(f"{where}: there is no setting '{name}'; the nearest is '{prefix}{nearest}'")
        own = getattr(config, key)
        if dataclasses.is_dataclass(own):
            if not isinstance(value, dict):
                raise InputError(f"{where}: '{name}' must be a group of settings, and is {value!r}")
            values[key] = with_settings(own, value, where, f"{name}.")
            continue
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            reasons = "; or ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
            raise InputError(f"{where}: '{name}' is {value!r}: {reasons}") from error
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass of settings as nested dictionaries of what YAML and JSON hold: tuples are lists, paths text."""
    return TypeAdapter(dict).dump_python(dataclasses.asdict(config), mode="json")


def differing(
    one: dict[str, Any], other: dict[str, Any], default: dict[str, Any] | None = None, prefix: str = ""
) -> list[str]:
    """Names, joined by dots, of the settings in which two nested dictionaries differ.

    Args:
        one: such as the settings of a file.
        other: such as those of a command.
        default: counts for what one of them lacks, such as a setting that is newer than the file.
        prefix: of the names.
    """
    names: list[str] = []
    for key in {**one, **other}:
        usual = (default or {}).get(key)
        a, b = one.get(key, usual), other.get(key, usual)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing(a, b, usual, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def run_subcommand(
    commands: Mapping[str, Callable[[Sequence[str], str], None]],
    arguments: Sequence[str] | None,
    prog: str,
    description: str | None,
    note: str = "",
) -> None:
    """Run the one of some subcommands that a command line names.

    Args:
        commands: by name; each takes the rest of the line and its own name in `--help`.
        arguments: by default those of the process.
        prog: the command's name in `--help`.
        description: what it does.
        note: on the names of the subcommands.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog, description=description)
    parser.add_argument("command", choices=commands, help=f"`COMMAND --help` shows its options{note}")
    name = parser.parse_args(arguments[:1]).command
    with reported_in_one_line():
        commands[name](arguments[1:], f"{prog} {name}")


def parse_command(kind: type[T], default: T, arguments: Sequence[str] | None = None, prog: str | None = None) -> T:
    """A command from its command line: defaults, then the files of `--config` in order, then the other options.

    Args:
        kind: a dataclass with the fields `config` (files, `tuple[Path, ...]`) and `settings`, a dataclass of settings
            without a prefix of its own: `Annotated[Settings, tyro.conf.arg(name="")]`.
        default: what is not given.
        arguments: by default those of the process.
        prog: the command's name in `--help`.

    Raises:
        InputError: a file of `--config` cannot be used.
        SystemExit: the command line has an error, which tyro has printed, or asks for help.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", nargs="+", type=Path, default=[])
    settings = default.settings  # type: ignore[attr-defined]
    for path in files.parse_known_args(arguments)[0].config:
        settings = with_settings(settings, read_yaml(path), str(path))
    start = dataclasses.replace(default, settings=settings)  # type: ignore[type-var]
    return tyro.cli(kind, args=arguments, default=start, description=kind.__doc__, prog=prog)
