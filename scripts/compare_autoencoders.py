"""The same latent NeRFs in the latent spaces of several autoencoders (the shape of the paper's tables 1 and 3).

    python scripts/compare_autoencoders.py --scenes SCENE ... --autoencoders standard=bundled-ae ig-ae=bundled \\
        --methods kplanes tensorf instant-ngp --seeds 42 --processes 2 --output-dir results

Trains and evaluates every combination of scene, method, autoencoder and seed with `ns-train` and `evaluate_phases.py`,
each in a process of its own with one thread. A combination whose result is there already is passed over, so a stopped
comparison goes on with the same command. The scenes are in Blender's format. The schedules are made for a CPU: far
shorter than the paper's, the same for every autoencoder.

Writes `runs/SCENE-METHOD-AUTOENCODER-SEED.json` and `.png`, and prints a table of means over scenes and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev

BIN = Path(sys.executable).parent
EVALUATE = Path(__file__).with_name("evaluate_phases.py")

COMMON = """
--vis tensorboard --logging.local-writer.enable False --save-only-latest-checkpoint False
--steps-per-eval-image 100000 --steps-per-eval-batch 100000 --steps-per-eval-all-images 100000
--pipeline.datamanager.images-per-batch 2
--pipeline.latent-supervision-lr-factor 1 --pipeline.rgb-alignment-lr-factor 1
--optimizers.decoder.optimizer.lr 5e-4 --pipeline.decoder-lr-decay 0.998
"""


@dataclass
class Method:
    """A latent method with a schedule for a CPU."""

    latent_supervision_steps: int
    rgb_alignment_steps: int
    arguments: str
    """Of `ns-train`; TOTAL stands for the number of steps."""


METHODS = {
    "kplanes": Method(
        400,
        300,
        """--pipeline.model.grid-base-resolution 32 32 32 --pipeline.model.multiscale-factors 1 2
        --pipeline.model.grid-feature-dim 16 --pipeline.model.proposal-resolutions 32
        --pipeline.model.num-proposal-samples-per-ray 48 --pipeline.model.num-nerf-samples-per-ray 24
        --pipeline.model.proposal-warmup 200
        --optimizers.fields.scheduler.warm-up-end 50 --optimizers.fields.scheduler.max-steps TOTAL
        --optimizers.proposal-networks.scheduler.warm-up-end 50 --optimizers.proposal-networks.scheduler.max-steps TOTAL
        """,
    ),
    "tensorf": Method(
        250,
        250,
        """--pipeline.model.num-uniform-samples 64 --pipeline.model.num-samples 24
        --pipeline.model.init-resolution 48 --pipeline.model.final-resolution 96
        --pipeline.model.upsampling-iters 100 200
        --optimizers.fields.scheduler.max-steps TOTAL --optimizers.encodings.scheduler.max-steps TOTAL""",
    ),
    "instant-ngp": Method(
        200,
        250,
        """--pipeline.model.log2-hashmap-size 15 --pipeline.model.max-res 128 --pipeline.model.grid-levels 1
        --pipeline.model.grid-resolution 48 --pipeline.model.disable-scene-contraction True
        --pipeline.model.cone-angle 0 --pipeline.model.render-step-size 0.04
        --optimizers.fields.scheduler.max-steps TOTAL --optimizers.fields.scheduler.lr-final 5e-4""",
    ),
    "vanilla-nerf": Method(
        1200,
        400,
        """--pipeline.model.layer-width 128
        --pipeline.model.num-coarse-samples 16 --pipeline.model.num-importance-samples 16
        --pipeline.model.collider-params near_plane 1.2 far_plane 3.0
        --optimizers.fields.optimizer.lr 1.5e-3 --pipeline.datamanager.images-per-batch 1""",
    ),
}

PHASES = ("latent supervision", "RGB alignment")
METRICS = ("psnr", "ssim", "lpips", "latent_psnr")


@dataclass(frozen=True)
class Run:
    """One combination."""

    scene: Path
    method: str
    autoencoder: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.scene.name}-{self.method}-{self.autoencoder}-{self.seed}"


def train_and_evaluate(run: Run, source: str, folder: Path, keep: bool) -> float:
    """Train one run, evaluate both of its phases, and keep the metrics and a picture; returns the seconds it took.

    Raises:
        RuntimeError: a command failed; names its log.
    """
    start = time.monotonic()
    work, log = folder / "work" / run.name, folder / "runs" / f"{run.name}.log"
    shutil.rmtree(work, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    method = METHODS[run.method]
    total = method.latent_supervision_steps + method.rgb_alignment_steps
    train = [
        *(BIN / "ns-train", f"igae-{run.method}", "--output-dir", work, "--experiment-name", run.name),
        *("--timestamp", "run", "--machine.seed", run.seed, "--data", run.scene),
        *("--pipeline.autoencoder.name-or-path", source),
        *("--pipeline.latent-supervision-steps", method.latent_supervision_steps),
        *("--pipeline.rgb-alignment-steps", method.rgb_alignment_steps),
        *("--steps-per-save", method.latent_supervision_steps - 1),
        *COMMON.split(),
        *method.arguments.replace("TOTAL", str(total)).split(),
        "blender-data",
    ]
    results = work / "results"
    config = work / run.name / f"igae-{run.method}" / "run" / "config.yml"
    evaluate = [sys.executable, EVALUATE, "--load-config", config, "--output-dir", results]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        for command in (train, evaluate):
            done = subprocess.run([str(word) for word in command], stdout=file, stderr=file, env=environment)
            if done.returncode:
                raise RuntimeError(f"{run.name} failed; its log is {log}")
    seconds = time.monotonic() - start
    table = json.loads(next(results.glob("*.json")).read_text())
    next(results.glob("*.png")).rename(log.with_suffix(".png"))
    phases = {name.split(", ")[-1]: metrics for name, metrics in table.items()}  # the last checkpoint of each
    log.with_suffix(".json").write_text(json.dumps({"seconds": seconds, **phases}, indent=1) + "\n")
    log.unlink()
    if not keep:
        shutil.rmtree(work)
    return seconds


def print_tables(folder: Path, runs: list[Run]) -> None:
    """Means over scenes and seeds for each method and autoencoder, and each scene's PSNR after both phases."""
    found: dict[Run, dict] = {}
    for run in runs:
        path = folder / "runs" / f"{run.name}.json"
        if path.exists():
            found[run] = json.loads(path.read_text())
    header = f"| method | autoencoder | runs | {' | '.join(METRICS)} |\n|---|---|---|{'---|' * len(METRICS)}"
    for phase in PHASES:
        print(f"\nAfter {phase}\n\n{header}")
        for method, autoencoder in dict.fromkeys((run.method, run.autoencoder) for run in runs):
            values = [r[phase] for run, r in found.items() if (run.method, run.autoencoder) == (method, autoencoder)]
            if values:
                cells = " | ".join(f"{mean(value[name] for value in values):.3f}" for name in METRICS)
                print(f"| {method} | {autoencoder} | {len(values)} | {cells} |")
    print("\nPSNR after latent supervision -> after RGB alignment\n")
    autoencoders = list(dict.fromkeys(run.autoencoder for run in runs))
    print(f"| scene | method | {' | '.join(autoencoders)} |\n|---|---|{'---|' * len(autoencoders)}")
    for scene, method in dict.fromkeys((run.scene.name, run.method) for run in runs):
        cells = []
        for autoencoder in autoencoders:
            key = (scene, method, autoencoder)
            values = [r for run, r in found.items() if (run.scene.name, run.method, run.autoencoder) == key]
            phases = [spread([value[phase]["psnr"] for value in values]) for phase in PHASES]
            cells.append(" -> ".join(phases))
        print(f"| {scene} | {method} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """Mean and, of several values, standard deviation."""
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=Path, nargs="+", required=True, help="folders in Blender's format")
    parser.add_argument("--autoencoders", nargs="+", required=True, metavar="NAME=PATH", help="what to compare")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["kplanes", "tensorf", "instant-ngp"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--output-dir", type=Path, default=Path("results"))
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders with their checkpoints")
    arguments = parser.parse_args()
    sources: dict[str, str] = dict(name.split("=", 1) for name in arguments.autoencoders)
    order = list(product(arguments.seeds, arguments.methods, arguments.scenes, sources))
    runs = [Run(scene.resolve(), method, autoencoder, seed) for seed, method, scene, autoencoder in order]
    missing = [run for run in runs if not (arguments.output_dir / "runs" / f"{run.name}.json").exists()]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} there already", flush=True)

    def work(run: Run) -> None:
        try:
            seconds = train_and_evaluate(run, sources[run.autoencoder], arguments.output_dir, arguments.keep)
            print(f"{run.name}: {seconds:.0f} s", flush=True)
        except RuntimeError as error:
            print(error, flush=True)

    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(work, missing))
    print_tables(arguments.output_dir, runs)


if __name__ == "__main__":
    main()
