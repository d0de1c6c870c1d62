"""Runs of other versions: what their `config.yml` names and this version lacks, and the other way round.

Nerfstudio writes a run's configuration as pickled YAML, with the dotted names of classes. Its commands read it before
any code of a method runs, so a class that has moved or a setting that is new ends them in a traceback. This module
reads the objects of this package, and of others only what lies within: a name that has moved is followed, one that is
gone ends in one line, settings that the file lacks take their defaults, and those that are no longer known are passed
over.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, Callable, Dict, Iterator

import yaml

from igae_nerfstudio import __version__
from igae_nerfstudio.console import warn
from igae_nerfstudio.errors import InputError

PACKAGE = "igae_nerfstudio."

MOVED: Dict[str, str] = {}
"""Dotted names of earlier versions and what they are called now."""


def read_own_classes() -> None:
    """Let `yaml.Loader` read this package's objects as described above."""
    inherited = yaml.Loader.yaml_multi_constructors
    own: Dict[str, Callable] = {}
    for kind, construct in (("object", _construct_object), ("name", _construct_name)):
        own[f"tag:yaml.org,2002:python/{kind}:{PACKAGE}"] = construct
    # The first prefix that matches wins, so the longer ones go first.
    yaml.Loader.yaml_multi_constructors = {**own, **{key: value for key, value in inherited.items() if key not in own}}


def _find(name: str) -> Any:
    """What a dotted name of this package stands for.

    Raises:
        InputError: nothing.
    """
    module, _, attribute = MOVED.get(name, name).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the run's config.yml names {name}, which igae-nerfstudio {__version__} does not have; the run was made "
            "with another version: install that one, or train again"
        ) from error


def _construct_name(loader: yaml.Loader, suffix: str, node: yaml.Node) -> Any:
    return _find(PACKAGE + suffix)


def _construct_object(loader: yaml.Loader, suffix: str, node: yaml.MappingNode) -> Iterator[Any]:
    kind = _find(PACKAGE + suffix)
    instance = kind.__new__(kind)
    yield instance
    try:  # deep: what is inside is made now, and what it lacks is met here
        state: Dict[Any, Any] = loader.construct_mapping(node, deep=True)
    except yaml.constructor.ConstructorError as error:
        raise InputError(
            f"the run's config.yml cannot be read: {error.problem}; it is damaged, or made with other versions "
            "of Nerfstudio or of its plugins: install those, or train again"
        ) from error
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _fit(kind, state)
    instance.__dict__.update(state)


def _fit(kind: type, state: Dict[str, Any]) -> None:
    """Give a saved object the fields that its class has now."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(state) - set(fields))
    for name in unknown:
        del state[name]
    missing = [field for name, field in fields.items() if name not in state]
    for field in missing:
        if field.default_factory is not dataclasses.MISSING:
            state[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            state[field.name] = field.default
    told = []
    if missing:
        told.append(f"{', '.join(field.name for field in missing)} take their defaults")
    if unknown:
        told.append(f"{', '.join(unknown)} are no longer known")
    if told:
        warn(f"The run was made with another version than {__version__}: of {kind.__name__}, {'; '.join(told)}.")
