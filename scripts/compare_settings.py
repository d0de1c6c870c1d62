"""The same scenes and methods under several settings, each for equal CPU seconds: a table and a sheet of pictures.

    python scripts/compare_settings.py --comparison configs/comparisons/levers.yaml --output-dir results --processes 2

A comparison is a YAML file (`Comparison` says what is in it). Its variants lie over the preset `quick` of the latent
methods; a variant with `baseline: twin` is the same method in RGB as `igae bench` has it. A quarter of the usual
training is rehearsed, and the numbers of steps chosen so that the run, set-up included, takes about `cpu_seconds`; the
table has what it took. Each run has a process of its own with one thread. A run whose result is there is passed over,
so a stopped comparison goes on with the same command.

Writes `runs/SCENE-METHOD-VARIANT-SEED.json`, its first test views as PNG, `table.md` and `sheet.png`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Iterator, Literal

import numpy as np
import tyro
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from igae_nerfstudio.config_files import read_yaml, with_settings  # noqa: E402
from igae_nerfstudio.console import log  # noqa: E402
from igae_nerfstudio.errors import InputError, reported_in_one_line  # noqa: E402
from igae_nerfstudio.files import write_atomically  # noqa: E402
from igae_nerfstudio.metrics import common_names  # noqa: E402

REHEARSAL = 0.25
"""How much of the usual training is rehearsed, to learn how long it takes."""
METRICS = {"psnr": "{:.2f}", "ssim": "{:.3f}", "lpips": "{:.3f}", "lpips_vgg": "{:.3f}"}


Method = Literal["tensorf", "kplanes", "instant-ngp", "splatfacto"]


@dataclass
class Scene:
    """Where a scene is, and how Nerfstudio reads it."""

    data: Path = Path()
    dataparser: str = "auto"
    """As `ns-train` takes it after its options; auto: blender-data or nerfstudio-data, by the files."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the dataparser."""


@dataclass
class Variant:
    """Settings over those of the preset quick, or of the RGB twin."""

    baseline: Literal["latent", "twin"] = "latent"
    autoencoder: str = "bundled"
    """As in --pipeline.autoencoder.name-or-path."""
    pipeline: dict[str, Any] = field(default_factory=dict)
    """As after --pipeline, nested."""
    optimizers: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """As after --optimizers: group, then optimizer or scheduler."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further `pipeline` settings of single methods."""


@dataclass
class Comparison:
    """Every scene with every method and variant, for every seed."""

    scenes: dict[str, Scene] = field(default_factory=dict)
    methods: list[Method] = field(default_factory=lambda: ["tensorf"])
    variants: dict[str, Variant] = field(default_factory=dict)
    cpu_seconds: float = 200.0
    """Of set-up and training together."""
    seeds: list[int] = field(default_factory=lambda: [0])
    views: list[int] = field(default_factory=lambda: [0])
    """Test views on the sheet."""

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """From a file.

        Raises:
            InputError: the file cannot be read, or has settings that do not exist.
        """
        entries = read_yaml(path)
        parts = {name: entries.pop(name, None) or {} for name in ("scenes", "variants")}
        if not all(parts.values()):
            raise InputError(f"{path} needs `scenes` and `variants`; see configs/comparisons/levers.yaml")
        comparison = with_settings(cls(), entries, str(path))
        for name, scene in parts["scenes"].items():
            comparison.scenes[name] = with_settings(Scene(), scene, f"{path}, scene {name}")
        for name, variant in parts["variants"].items():
            comparison.variants[name] = with_settings(Variant(), variant, f"{path}, variant {name}")
        return comparison

    def runs(self) -> Iterator[Run]:
        """All of them, a scene with all its variants first."""
        for seed, scene, method, variant in product(self.seeds, self.scenes, self.methods, self.variants):
            yield Run(scene, method, variant, seed)


@dataclass(frozen=True)
class Run:
    """One of them."""

    scene: str
    method: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.scene}-{self.method}-{self.variant.replace(' ', '_')}-{self.seed}"


@dataclass
class Command:
    """Run what is missing of a comparison, then write its table and sheet."""

    comparison: Path
    """The YAML file."""
    output_dir: Path = Path("results")
    processes: int = 1
    """Runs at the same time."""
    run: str | None = None
    """Only this run, by its name, in this process."""


# --- One run ---


def configured(comparison: Comparison, run: Run, folder: Path) -> Any:
    """Nerfstudio's trainer config of a run."""
    from benchmarks.baselines import longest_side, trainer_config
    from benchmarks.bench import Cell

    scene, variant = comparison.scenes[run.scene], comparison.variants[run.variant]
    where = f"variant '{run.variant}'"
    cell = Cell(
        data=scene.data, output_dir=folder, dataparser=scene.dataparser, autoencoder=variant.autoencoder,
        method=run.method, baseline=variant.baseline, size=0, over_time=True,
    )  # fmt: skip
    config: Any = trainer_config(replace(cell, size=longest_side(cell)))
    data = config.pipeline.datamanager
    data.camera_res_scale_factor = 1.0
    data.dataparser = with_settings(data.dataparser, scene.options, f"scene {run.scene}")
    for entries in (variant.pipeline, variant.methods.get(run.method, {})):
        config.pipeline = with_settings(config.pipeline, entries, where)
    for name, parts in variant.optimizers.items():
        for part, entries in parts.items():
            config.optimizers[name][part] = with_settings(config.optimizers[name][part], entries, where)
    config.machine.seed = run.seed
    return config


def phases_of(config: Any, twin: bool) -> list[int]:
    """Steps of the one phase of RGB, or of the two of latents."""
    if twin:
        return [next(g["scheduler"].max_steps for g in config.optimizers.values() if g["scheduler"] is not None)]
    return [config.pipeline.latent_supervision_steps, config.pipeline.rgb_alignment_steps]


def train_and_evaluate(comparison: Comparison, run: Run, folder: Path) -> None:
    """Train a run for the comparison's CPU seconds, evaluate it after each phase, and keep metrics and pictures."""
    import torch
    from diffusers import AutoencoderDC  # noqa: F401  imports are not counted

    from benchmarks.baselines import with_steps
    from benchmarks.measure import Training
    from igae_nerfstudio.figures import to_uint8

    torch.set_num_threads(1)
    twin = comparison.variants[run.variant].baseline == "twin"
    work = folder / "work" / run.name

    def training(phases: list[int]) -> Training:
        config = configured(comparison, run, work)
        with_steps(config, phases)
        return Training(config, run.seed)

    def timed(trained: Training, phases: list[int]) -> Iterator[float]:
        """Take all steps; the seconds of each phase."""
        for first, end in zip([0, *accumulate(phases)], accumulate(phases)):
            begin = time.process_time()
            trained.steps(range(first, end))
            yield time.process_time() - begin

    usual = phases_of(configured(comparison, run, work), twin)
    rehearsed = [max(2, round(REHEARSAL * count)) for count in usual]
    begin = time.process_time()
    rehearsal = training(rehearsed)
    left = comparison.cpu_seconds - (time.process_time() - begin)
    per_step = [seconds / count for seconds, count in zip(timed(rehearsal, rehearsed), rehearsed)]
    factor = left / sum(count * seconds for count, seconds in zip(usual, per_step))
    phases = [max(2, round(count * factor)) for count in usual]
    del rehearsal

    begin = time.process_time()
    trained = training(phases)
    spent = time.process_time() - begin
    finished = trained.on_test_views(run.name)
    found: dict[str, Any] = {"run": asdict(run), "steps": phases, "metrics": []}
    for number, seconds in enumerate(timed(trained, phases), 1):
        spent += seconds
        networks = ("alex", "vgg") if number == len(phases) else ("alex",)
        found["metrics"].append(finished.evaluate(networks=networks))
    begin = time.process_time()
    pictures = [finished.render(finished.cameras[view : view + 1]).rgb for view in comparison.views]
    found["picture_seconds"] = (time.process_time() - begin) / len(pictures)
    found["cpu_seconds"] = spent
    for view, picture in zip(comparison.views, pictures):
        Image.fromarray(to_uint8(picture)).save(folder / "runs" / f"{run.name}-{view}.png")
        Image.fromarray(to_uint8(finished.photo(view))).save(folder / "runs" / f"{run.scene}-{view}.png")
    text = json.dumps(found, indent=1) + "\n"
    write_atomically(folder / "runs" / f"{run.name}.json", lambda file: file.write(text.encode()))


# --- All runs ---


def in_own_process(command: Command, run: Run) -> None:
    """Train and evaluate a run in a process of its own; a failure is named, and costs the others nothing."""
    from shutil import rmtree

    record = command.output_dir / "runs" / f"{run.name}.log"
    words = ["--comparison", command.comparison, "--output-dir", command.output_dir, "--run", run.name]
    with record.open("w") as file:
        ended = subprocess.run(
            [sys.executable, __file__, *map(str, words)], stdout=file, stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    rmtree(command.output_dir / "work" / run.name, ignore_errors=True)
    if ended.returncode:
        log(f"{run.name} failed: {record.read_text().strip().rpartition(chr(10))[2]} (log: {record})")
        return
    result = json.loads(record.with_suffix(".json").read_text())
    record.unlink()
    log(f"{run.name}: {said(result['metrics'][-1])} in {result['cpu_seconds']:.0f} CPU s, {result['steps']} steps")


def said(metrics: dict[str, float]) -> str:
    """PSNR, SSIM, LPIPS with AlexNet and with VGG16."""
    return ", ".join(text.format(metrics[name]) for name, text in METRICS.items() if name in metrics)


def report(comparison: Comparison, folder: Path) -> str:
    """Write `table.md` and `sheet.png` of the runs that are there; returns the table."""
    from igae_nerfstudio.figures import sheet

    paths = {run: folder / "runs" / f"{run.name}.json" for run in comparison.runs()}
    found = {run: json.loads(path.read_text()) for run, path in paths.items() if path.exists()}
    lines = [
        "| scene | method | variant | steps | CPU s | after latent supervision | at the end | a picture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns: dict[str, list[np.ndarray]] = {"photo": [], **{variant: [] for variant in comparison.variants}}
    for scene, method in product(comparison.scenes, comparison.methods):
        for variant in comparison.variants:
            of_seeds = [Run(scene, method, variant, seed) for seed in comparison.seeds]
            if results := [found[run] for run in of_seeds if run in found]:
                lines.append(f"| {scene} | {method} | {variant} | {row(results)} |")
        for view in comparison.views:
            runs = [Run(scene, method, variant, comparison.seeds[0]) for variant in comparison.variants]
            if all(run in found for run in runs):
                columns["photo"].append(picture(folder / "runs" / f"{scene}-{view}.png"))
                for run in runs:
                    columns[run.variant].append(picture(folder / "runs" / f"{run.name}-{view}.png"))
    lines += ["", "Means over all scenes: PSNR, SSIM, LPIPS with AlexNet and with VGG16", ""]
    lines += ["| method | variant | runs | at the end |", "|---|---|---|---|"]
    for method, variant in product(comparison.methods, comparison.variants):
        ends = [r["metrics"][-1] for run, r in found.items() if (run.method, run.variant) == (method, variant)]
        if ends:
            lines.append(f"| {method} | {variant} | {len(ends)} | {said_means(ends)} |")
    table = "\n".join(lines) + "\n"
    write_atomically(folder / "table.md", lambda file: file.write(table.encode()))
    if columns["photo"]:
        whole = sheet(columns)
        write_atomically(folder / "sheet.png", lambda file: whole.save(file, format="png"))
    return table


def row(results: list[dict[str, Any]]) -> str:
    """Steps, CPU seconds, metrics after each phase, and milliseconds of a picture: means over seeds."""
    phases = [with_spread([r["metrics"][phase] for r in results]) for phase in (0, -1)]
    if len(results[0]["metrics"]) == 1:
        phases[0] = "-"
    steps = " + ".join(map(str, results[0]["steps"]))
    seconds, ms = (mean(r[name] for r in results) for name in ("cpu_seconds", "picture_seconds"))
    return f"{steps} | {seconds:.0f} | {phases[0]} | {phases[1]} | {1000 * ms:.0f} ms"


def said_means(metrics: list[dict[str, float]]) -> str:
    """The means of what all have."""
    return said({name: mean(each[name] for each in metrics) for name in common_names(metrics)})


def with_spread(metrics: list[dict[str, float]]) -> str:
    """Means, with PSNR's standard deviation where there are several."""
    spread = f" (± {stdev(each['psnr'] for each in metrics):.2f} dB)" if len(metrics) > 1 else ""
    return said_means(metrics) + spread


def picture(path: Path, side: int = 256) -> np.ndarray:
    """A picture in a square of one size, its pixels as they are or enlarged."""
    image = Image.open(path)
    factor = side / max(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.NEAREST)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image)
    return np.asarray(square)


def main() -> None:
    """Run what is missing, then write table and sheet."""
    with reported_in_one_line(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other
        command = tyro.cli(Command, description=(__doc__ or "").splitlines()[0])
        comparison = Comparison.read(command.comparison)
        (command.output_dir / "runs").mkdir(parents=True, exist_ok=True)
        runs = {run.name: run for run in comparison.runs()}
        if command.run is not None:
            train_and_evaluate(comparison, runs[command.run], command.output_dir)
            return
        missing = [run for name, run in runs.items() if not (command.output_dir / "runs" / f"{name}.json").exists()]
        log(f"{len(runs)} runs, {len(runs) - len(missing)} there already")
        with ThreadPoolExecutor(command.processes) as pool:
            list(pool.map(lambda run: in_own_process(command, run), missing))
        print(report(comparison, command.output_dir))


if __name__ == "__main__":
    main()
