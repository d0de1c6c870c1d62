"""`igae bench`: what training and rendering cost in RGB and in latents, and what quality each reaches in equal time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Literal, Sequence

import torch
import tyro

from igae_nerfstudio.config_files import read_yaml, to_plain
from igae_nerfstudio.errors import InputError, reported_in_one_line

Method = Literal["tensorf", "kplanes", "instant-ngp", "vanilla-nerf", "splatfacto"]
Baseline = Literal["stock", "twin", "latent"]

BASELINES: dict[Method, tuple[Baseline, ...]] = {
    "tensorf": ("stock", "twin", "latent"),
    "kplanes": ("twin", "latent"),
    "instant-ngp": ("stock", "twin", "latent"),
    "vanilla-nerf": ("twin", "latent"),
    "splatfacto": ("stock", "twin", "latent") if torch.cuda.is_available() else ("twin", "latent"),
}
"""Nerfstudio has no K-Planes, its splatfacto needs CUDA, vanilla NeRF has no faster parts: no stock but the twin."""

PATH = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
"""Where a process of its own finds this package, which is not installed."""

OVER_TIME = Path(__file__).with_name("over_time.yaml")
"""Settings of the baselines whose quality over time is measured."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of all measurements."""

    data: Path
    """A scene."""
    output_dir: Path
    """For bench.json, bench.md, psnr_over_time.png and, in cells/, the measurements."""
    dataparser: str = "auto"
    """As `ns-train` takes it after its options; auto: blender-data or nerfstudio-data, by the files."""
    autoencoder: str = "bundled"
    """As in --pipeline.autoencoder.name-or-path."""
    preset: Literal["paper", "fast"] = "paper"
    """Of the latent models whose speed is measured, as in --pipeline.preset."""
    seconds: float = 5.0
    """Repeat each step and picture for at least so long, after one to warm up."""
    quality: float = 1.0
    """Also measure PSNR over time at the first size, in trainings of two to three CPU minutes (of TensoRF
    and K-Planes); 2: twice as many steps; 0: not at all."""


@dataclass(frozen=True, kw_only=True)
class Cell(Settings):
    """One measurement, made in a process of its own: speed and memory, or quality over time."""

    method: Method
    baseline: Baseline
    size: int
    over_time: tyro.conf.FlagConversionOff[bool] = False

    @property
    def path(self) -> Path:
        """The file of its results."""
        kind = "over-time" if self.over_time else "speed"
        return self.output_dir / "cells" / f"{self.method}-{self.baseline}-{self.size}-{kind}.json"

    def options(self) -> list[str]:
        """As `python -m benchmarks.measure` takes them."""
        return [f"--{name}={value}" for name, value in to_plain(self).items()]

    def result(self) -> dict[str, Any]:
        """Its results, measured now where they are missing or of other settings.

        Raises:
            InputError: measuring failed; with the last line of its log.
        """
        if self.path.exists() and (found := json.loads(self.path.read_text()))["cell"] == to_plain(self):
            return found
        command = [sys.executable, "-m", "benchmarks.measure", *self.options()]
        log = self.path.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            ended = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", **PATH}
            )
        if ended.returncode:
            last = log.read_text().strip().rpartition("\n")[2]
            raise InputError(f"{log.stem}: {last or f'exit status {ended.returncode}'} (log: {log})")
        return json.loads(self.path.read_text())


@dataclass(frozen=True, kw_only=True)
class BenchCommand(Settings):
    """Compare each method in RGB as Nerfstudio has it (stock), in RGB with this package's faster parts (twin), and in
    latents. Finished measurements are kept: after ctrl-C the same command goes on."""

    methods: tuple[Method, ...] = tuple(BASELINES)
    """The methods."""
    sizes: tuple[int, ...] = (128,)
    """The longer side of the pictures in pixels; the scene's are resampled to each."""

    def cells(self) -> Iterator[Cell]:
        """All measurements."""
        common: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(Settings)}
        learners = read_yaml(OVER_TIME)
        for method in self.methods:
            for size in self.sizes:
                for baseline in BASELINES[method]:
                    yield Cell(**common, method=method, baseline=baseline, size=size)
            for baseline in learners.get(method, ()) if self.quality else ():
                yield Cell(**common, method=method, baseline=baseline, size=self.sizes[0], over_time=True)

    def run(self) -> None:
        """Measure what is missing and write the report.

        Raises:
            InputError: the scene or the autoencoder cannot be used.
        """
        from benchmarks.report import write_report
        from igae_nerfstudio.console import log

        if not self.data.exists():
            raise InputError(f"--data {self.data} does not exist; pass the folder of a scene")
        results: list[dict[str, Any]] = []
        for cell in self.cells():
            log(cell.path.stem)
            results.append(cell.result())
            write_report(self.output_dir, results)
        log((self.output_dir / "bench.md").read_text())


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command `igae-bench`; `arguments` are by default those of the process, `prog` its name in `--help`."""
    with reported_in_one_line(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other
        tyro.cli(BenchCommand, args=arguments, prog=prog, description=BenchCommand.__doc__).run()
