"""The preset `quick` of a method: sizes, phase lengths and learning rates for minutes instead of hours."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError

if TYPE_CHECKING:
    from igae_nerfstudio.engine.trainer import LatentTrainerConfig

QUICK = Path(__file__).with_name("quick.yaml")
DECODER_ENDS_AT = 0.26
"""The decoder's learning rate at the end of a quick run, as a part of its first one."""


def decoder_decay(steps: int) -> float:
    """`--pipeline.decoder-lr-decay` with which RGB alignment of so many steps ends there."""
    return DECODER_ENDS_AT ** (1 / steps)


def with_quick_settings(config: LatentTrainerConfig) -> LatentTrainerConfig:
    """A copy in which all that is left at the method's default has the preset's value (`quick.yaml`), and says so.

    Schedules of learning rates then end with the last step.

    Raises:
        InputError: the method has no such preset.
    """
    from igae_nerfstudio import method_configs  # which imports the trainer

    presets = read_yaml(QUICK)
    if config.method_name not in presets:
        raise InputError(
            f"{config.method_name} has no preset quick, which is for {', '.join(presets)}; take --pipeline.preset fast"
        )
    default = getattr(method_configs, str(config.method_name).replace("-", "_")).config
    entries, where = presets[config.method_name], "the preset quick"
    chosen = untouched(config.pipeline, default.pipeline, entries["pipeline"])
    pipeline: Any = with_settings(config.pipeline, chosen, where)
    if pipeline.decoder_lr_decay == default.pipeline.decoder_lr_decay:
        pipeline = replace(pipeline, decoder_lr_decay=decoder_decay(pipeline.rgb_alignment_steps))
    optimizers: dict[str, Any] = {}
    for name, group in config.optimizers.items():
        optimizers[name] = dict(group)
        own = default.optimizers.get(name, group)
        for part, settings in entries["optimizers"].get(name, {}).items():
            optimizers[name][part] = with_settings(group[part], untouched(group[part], own[part], settings), where)
        scheduler = optimizers[name]["scheduler"]
        if scheduler is not None and scheduler.max_steps == own["scheduler"].max_steps:
            optimizers[name]["scheduler"] = replace(scheduler, max_steps=pipeline.schedule().total_steps)
    if said := ", ".join(f"{name.replace('_', '-')} {value}" for name, value in flat(chosen)):
        log(f"The preset quick chooses {said}, and rates that end with the last step ({QUICK})")
    return replace(config, pipeline=pipeline, optimizers=optimizers)


def untouched(mine: Any, default: Any, entries: dict[str, Any]) -> dict[str, Any]:
    """The entries, nested like the settings, whose setting is what the default says."""
    kept: dict[str, Any] = {}
    for name, value in entries.items():
        one, other = getattr(mine, name), getattr(default, name)
        if is_dataclass(one):
            kept[name] = untouched(one, other, value)
        elif one == other:
            kept[name] = value
    return kept


def flat(entries: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested entries as names joined by dots, and values."""
    found: list[tuple[str, Any]] = []
    for name, value in entries.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
