"""`igae-bench`: what training and rendering cost in RGB and in latents, and how soon each reaches what quality."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple

import tyro

STEPS = 25_000
LATENT_STEPS = {"latent supervision": 10_000, "RGB alignment": 15_000}
"""The paper's schedule (table 11), to which measured steps are extrapolated."""

PSNR_LEVELS = tuple(range(14, 40))
"""In dB: when does each side first get there?"""

SLICES, QUICK_SLICES = 10, 5
"""In training for quality, the sides take turns so many times."""

QUICK_SHARE = 1 / 4
"""Very long steps of `PROPORTIONATE` methods are timed by `--quick` on this share of their rays, and multiplied."""
PROPORTIONATE = ("vanilla-nerf",)
"""Methods whose step is nothing but the network's evaluations for its rays; grids cost as much for few rays as for
many."""


@dataclass
class BenchCommand:
    """Measure every method in RGB (Nerfstudio's own) and in latents, side by side."""

    data: Path
    """A scene."""
    output_dir: Path
    """For bench.json, bench.md, psnr_over_time.png and time_per_picture.png."""
    quick: bool = False
    """The least that tells something: steps at the first size and pictures at two, two rounds, quality of the first
    method only; steps that are very long (vanilla NeRF's on a CPU) are extrapolated from a quarter of their rays."""
    methods: Tuple[str, ...] = ("tensorf", "kplanes", "instant-ngp", "vanilla-nerf")
    """Which ones, of vanilla-nerf, instant-ngp, tensorf and kplanes."""
    sizes: Tuple[int, ...] = (128, 256, 512)
    """The longer side of the pictures in pixels; the scene's are resampled to each."""
    dataparser: str = "auto"
    """As `ns-train` takes it after its options; auto: blender-data or nerfstudio-data, by the files."""
    autoencoder: str = "bundled"
    """As in --pipeline.autoencoder.name-or-path."""
    preset: Literal["paper", "fast"] = "paper"
    """Of the latent side, as in --pipeline.preset."""
    rounds: int = 5
    """The sides take turns so many times in each measurement."""
    seconds: float = 20.0
    """Of every measurement, over all rounds, for each side; a single step or picture may take longer."""
    quality_minutes: float = 10.0
    """Training time for PSNR over time, for each side of each method; 0: none."""
    peer: Optional[Path] = None
    """Settings of a third side in PSNR over time, such as configs/latent_nerf/official.yaml: how much sooner do the
    defaults reach the PSNR that it ends with?"""

    def run(self) -> None:
        """Measure and report."""
        from igae_nerfstudio.engine.interruption import ends_in_one_line

        kept = f"methods that were finished before are in {self.output_dir}; the same command starts again"
        with ends_in_one_line(f"while measuring: {kept}"):
            self._run()

    def _run(self) -> None:
        from igae_nerfstudio.bench.report import write_report
        from igae_nerfstudio.bench.sides import METHODS, native_size
        from igae_nerfstudio.console import log
        from igae_nerfstudio.errors import InputError

        for method in self.methods:
            if method not in METHODS:
                raise InputError(f"there is no method '{method}'; choose from {', '.join(METHODS)}")
        if not self.methods or not self.sizes or min(self.sizes) < 32 or self.rounds < 1 or self.seconds <= 0:
            raise InputError("igae-bench needs a method, --sizes of 32 or more, and positive --rounds and --seconds")
        if self.quick:
            self.rounds, self.seconds = min(self.rounds, 2), min(self.seconds, 4.0)
            self.quality_minutes = min(self.quality_minutes, 0.5)
            self.sizes = self.sizes[:2]
        start = time.monotonic()
        native = native_size(self.dataparser, self.data)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        results = Results()
        for number, method in enumerate(self.methods):
            log(f"{method} ({number + 1} of {len(self.methods)}, {time.monotonic() - start:.0f} s so far)")
            quality = self.quality_minutes if number == 0 or not self.quick else 0.0
            MethodBench(self, method, results).run(quality)
            facts = {**machine(), "scene": self.data.name, "native_size": native, "preset": self.preset}
            facts["seconds"] = time.monotonic() - start
            write_report(self.output_dir, results, facts)  # after every method, so that nothing is lost
        log((self.output_dir / "bench.md").read_text())
        log(f"bench.json, bench.md and two plots are in {self.output_dir}")


@dataclass
class Results:
    """What was measured."""

    records: List[Dict[str, Any]] = field(default_factory=list)
    """With method, space, size, phase, metric, unit, median, min, max, n, and a note where something must be said."""
    curves: Dict[str, Dict[str, List[Tuple[float, float]]]] = field(default_factory=dict)
    """PSNR over time: method -> space -> (seconds of training, dB)."""

    def add(
        self,
        where: Tuple[str, str, int, str],
        metric: str,
        unit: str,
        values: Sequence[float],
        note: Optional[str] = None,
    ) -> None:
        """Add the record of one metric.

        Args:
            where: method, space (`rgb` or `latent`), size in pixels, phase.
            metric: what.
            unit: of the values.
            values: one of each repetition.
            note: what one must know to compare it.
        """
        record = {
            **dict(zip(("method", "space", "size", "phase"), where)),
            **{"metric": metric, "unit": unit},
            **{"median": median(values), "min": min(values), "max": max(values), "n": len(values)},
        }
        self.records.append({**record, "note": note} if note else record)

    def get(self, method: str, space: str, size: int, phase: str, metric: str) -> Optional[Dict[str, Any]]:
        """A record, or None."""
        wanted = {"method": method, "space": space, "size": size, "phase": phase, "metric": metric}
        return next((r for r in self.records if all(r[key] == value for key, value in wanted.items())), None)


class MethodBench:
    """One method, both sides.

    Args:
        command: the settings.
        method: which one.
        results: where to.
    """

    def __init__(self, command: BenchCommand, method: str, results: Results) -> None:
        self.command, self.method, self.results = command, method, results
        self.size = command.sizes[0]
        self.budget = command.seconds / command.rounds
        self._upkeep: Dict[Any, float] = {}

    def run(self, quality_minutes: float) -> None:
        """Measure everything."""
        rgb, latent = self._worker("rgb", self.size), self._worker("latent", self.size)
        workers = [rgb, latent]
        try:
            for worker in workers:
                worker.ready()
            if rgb.facts["views"] != latent.facts["views"]:
                raise AssertionError("the two sides see different numbers of views")
            if quality_minutes:
                sides = {"rgb": rgb, "latent": latent}
                if self.command.peer is not None:
                    sides["peer"] = self._worker("peer", self.size).ready()
                    workers.append(sides["peer"])
                self._quality(sides, 60 * quality_minutes)
                if self.command.peer is not None:
                    workers.pop().close()
            for worker in workers:
                worker("prepare_timing")
            self._training(rgb, latent)
            self._rendering(rgb, latent)
            self._size(rgb, latent)
            if not self.command.quick:
                state = str(latent.log.with_suffix(".state"))
                latent("save_state", state)
                for size in self.command.sizes[1:]:
                    workers.append(self._worker("latent", size).ready())
                    workers[-1]("prepare_timing")
                    workers[-1]("load_state", state)
                    self._training(rgb, workers[-1])
        except KeyboardInterrupt:
            for worker in workers:
                worker.kill()
            raise
        finally:
            for worker in workers:
                worker.close()

    def _worker(self, space: Literal["rgb", "latent", "peer"], size: int):
        from igae_nerfstudio.bench.sides import Side
        from igae_nerfstudio.bench.worker import Worker

        command = self.command
        folder = command.output_dir / "work"
        side = Side(self.method, space, command.data, command.dataparser, size, command.autoencoder, folder)
        if space != "rgb":
            side = replace(side, preset=command.preset, settings=command.peer if space == "peer" else None)
        return Worker(side)

    def _training(self, rgb, latent) -> None:
        """Seconds of a step, the sides in turns; and what follows from them."""
        size = latent_size = max(latent.facts["height"], latent.facts["width"])
        phases = [(rgb, "rgb", "training"), *((latent, "latent", phase) for phase in LATENT_STEPS)]
        steps, notes = self._timed_steps(phases)
        if size != self.size:
            notes["training"] = (
                f"an RGB step draws {rgb.facts['rays']['training']} rays at any size; "
                f"those measured are of {self.size} px"
            )
        for worker, space, phase in phases:
            if worker not in self._upkeep:
                self._upkeep[worker] = worker("upkeep")
            steps[phase] = [seconds + self._upkeep[worker] for seconds in steps[phase]]
            where, taken = (self.method, space, latent_size, phase), steps[phase]
            said = notes.get(phase)
            self.results.add(where, "step", "s", taken, said)
            self.results.add(where, "rays", "1/s", [worker.facts["rays"][phase] / s for s in taken], said)
            self.results.add(
                where, "supervised pixels", "1/s", [worker.facts["pixels"][phase] / s for s in taken], said
            )
        whole = [STEPS * s / 60 for s in steps["training"]]
        self.results.add((self.method, "rgb", size, "whole schedule"), "training", "min", whole, notes.get("training"))
        of_phases = [[count * s / 60 for s in steps[phase]] for phase, count in LATENT_STEPS.items()]
        ends = [sum(pick(values) for values in of_phases) for pick in (median, min, max)]
        self.results.add((self.method, "latent", size, "whole schedule"), "training", "min", ends)

    def _timed_steps(self, phases: Sequence[Tuple[Any, str, str]]) -> Tuple[Dict[str, List[float]], Dict[str, str]]:
        """Seconds of a step in each phase, the sides in turns, and what must be said of them."""
        steps: Dict[str, List[float]] = {}
        shares: Dict[str, float] = {}
        for worker, _, phase in phases:  # warms up; a step that takes this long is no worse than the next
            share = QUICK_SHARE if self.command.quick and self.method in PROPORTIONATE else 1.0
            first = worker("train", phase, 0.0, 1, share)
            shares[phase] = share if first[0] > 2 * self.budget else 1.0
            steps[phase] = first if first[0] > self.budget and shares[phase] == share else []
        for round_number in range(self.command.rounds):
            for worker, _, phase in phases:
                if round_number or not steps[phase]:
                    steps[phase] += worker("train", phase, self.budget, 1, shares[phase])
        notes = {
            phase: f"steps of {self.method}, {phase}, are extrapolated from {share:.0%} of their rays"
            for phase, share in shares.items()
            if share < 1
        }
        return {phase: [seconds / shares[phase] for seconds in taken] for phase, taken in steps.items()}, notes

    def _rendering(self, rgb, latent) -> None:
        """Milliseconds of one picture, at every size, the sides in turns."""
        for size in self.command.sizes:
            pictures: Dict[str, List[Dict[str, float]]] = {"rgb": [], "latent": []}
            latent("render", size, self.budget)  # warms up
            for _ in range(self.command.rounds):
                pictures["rgb"].append(rgb("render", size, self.budget))
                pictures["latent"].append(latent("render", size, self.budget))
            for space, taken in pictures.items():
                share = min(picture["share"] for picture in taken)
                note = (
                    None if share == 1 else f"RGB pictures of {size} px are extrapolated from {share:.0%} of their rows"
                )
                where = (self.method, space, size, "rendering")
                self.results.add(where, "picture", "ms", [1000 * picture["seconds"] for picture in taken], note)
            decodes = [1000 * picture["decode"] for picture in pictures["latent"]]
            self.results.add((self.method, "latent", size, "rendering"), "decode", "ms", decodes)

    def _size(self, rgb, latent) -> None:
        for worker, space in ((rgb, "rgb"), (latent, "latent")):
            where = (self.method, space, self.size, "training and rendering")
            for kind, value in worker("memory").items():
                self.results.add(where, f"peak {kind}", "MiB", [value])
            self.results.add(where, "checkpoint", "MiB", [worker("checkpoint_size")])
            self.results.add(where, "parameters", "", [worker.facts["parameters"]])

    def _quality(self, sides: Dict[str, Any], seconds: float) -> None:
        """PSNR over time: latent schedules that fill the time, and RGB training of the same time."""
        slices = QUICK_SLICES if self.command.quick else SLICES
        curves: Dict[str, List[Tuple[float, float]]] = {space: [] for space in sides}
        spent = dict.fromkeys(sides, 0.0)
        ahead = {space: self._schedule(worker, seconds) for space, worker in sides.items() if space != "rgb"}
        schedules = {space: " + ".join(str(count) for count in counts.values()) for space, counts in ahead.items()}
        for number in range(slices):
            for space, worker in sides.items():
                if space == "rgb":
                    taken = sum(worker("train", "training", seconds / slices))
                else:  # the last one takes what the schedule has left
                    most = seconds / slices if number < slices - 1 else math.inf
                    taken = self._latent_slice(worker, most, ahead[space])
                if taken:
                    spent[space] += taken
                    curves[space].append((spent[space], worker("psnr")))
        self.results.curves[self.method] = curves
        for space, curve in curves.items():
            steps = f"{schedules[space]} steps, {space}" if space in schedules else "RGB training of the same time"
            note = (
                f"PSNR over time is of {steps}, at {self.size} px, in RGB of a sample of the views' pixels; a schedule "
                "that the time cuts short has rates that suit short runs"
            )
            where = (self.method, space, self.size, "short schedule")
            self.results.add(where, "PSNR at the end", "dB", [curve[-1][1]], note)
            for level in PSNR_LEVELS:
                self._add_time_to(where, f"time to {level} dB", level, curve, note)
            if "peer" in curves and space != "peer":
                self._add_time_to(where, "time to the peer's last PSNR", curves["peer"][-1][1], curve, note)
            elif space == "peer":
                self.results.add(where, "time to the peer's last PSNR", "s", [curve[-1][0]], note)

    def _add_time_to(self, where: Tuple[str, str, int, str], metric: str, level: float, curve, note: str) -> None:
        reached = [at for at, psnr in curve if psnr >= level]
        if reached:
            self.results.add(where, metric, "s", reached[:1], note)

    def _schedule(self, worker, seconds: float) -> Dict[str, int]:
        """Give a latent side its own schedule if that fits into the time, else one that fills it; returns its steps."""
        supervision, alignment = (min(worker("train", phase, 0.0, 4)[1:]) for phase in LATENT_STEPS)
        worker.replace()  # the steps that told the schedule do not count
        counts = (max(1, round(0.35 * seconds / supervision)), max(1, round(0.65 * seconds / alignment)))
        return dict(zip(LATENT_STEPS, worker("set_schedule", *counts)))

    def _latent_slice(self, latent, seconds: float, ahead: Dict[str, int]) -> float:
        """Train for at most some seconds, in whatever phase has steps ahead; returns the seconds."""
        spent = 0.0
        for phase in LATENT_STEPS:
            while ahead[phase] and spent < seconds:
                taken = latent("train", phase, 0.0)
                spent += sum(taken)
                ahead[phase] -= len(taken)
        return spent


def machine() -> Dict[str, Any]:
    """What the figures hold for."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "gpu": gpu,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """The console script."""
    warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other, here and in the workers
    os.environ["PYTHONWARNINGS"] = "ignore"
    tyro.cli(BenchCommand, description=BenchCommand.__doc__).run()


if __name__ == "__main__":
    main()
