"""What sharing buys numerous scenes: quality, bytes and seconds side by side, and what a step costs at 10 to 1,000.

    python scripts/measure_many_scenes.py compare --scenes CITY --output-dir OUT \\
        --variants micro/macro=JOINT:joint plain=JOINT:plain scratch=JOINT:scratch rgb=JOINT:rgb
    python scripts/measure_many_scenes.py scale --output-dir OUT

`compare` learns every new scene in every variant, a scene's variants one after another, so that a part of the scenes
is a comparison too; run again, it goes on. JOINT is the --output-dir of an `igae scenes train`. The kinds: `joint`, as
it is; `plain`, without the shared planes, but with the renderer and the start that the joint training gives
(`as_plain`); `scratch`, plain latent Tri-Planes from noise, which have nothing of it but the scale of the
latents; `rgb`, plain Tri-Planes of colours from noise (configs/many_scenes/rgb.yaml); `learnt`, what an `igae scenes
fit` with fit.train_shared has learnt, whose --output-dir then stands in the place of JOINT. It writes results.json,
table.md and comparison.png. `scale` writes scale.json and scale.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch

from igae_nerfstudio.autoencoder.normalization import LatentNormalizer
from igae_nerfstudio.autoencoder.preview import LatentPreview
from igae_nerfstudio.config_files import read_yaml, with_settings
from igae_nerfstudio.console import log
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.fit import find_tasks, run_task
from igae_nerfstudio.joint.results import SharedBasis, scene_state, write_scene
from igae_nerfstudio.joint.scene_parameters import MicroMacroConfig
from igae_nerfstudio.rendering.triplanes import TriPlaneRenderer

COLOURS = ("tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red", "tab:purple")
CONFIGS = Path(__file__).parents[1] / "configs" / "many_scenes"
KINDS = ("joint", "plain", "scratch", "rgb", "learnt")
COUNTS = (10, 100, 1000)
"""Numbers of scenes in `scale`."""


def main() -> None:
    """One of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="variants side by side")
    compare.add_argument("--scenes", type=Path, nargs="+", required=True, help="folders of scenes")
    compare.add_argument("--output-dir", type=Path, required=True)
    compare.add_argument("--variants", nargs="+", required=True, metavar="NAME=FOLDER:KIND")
    compare.add_argument("--config", type=Path, nargs="*", default=[], help="YAML files over every variant's settings")
    compare.add_argument("--max-scenes", type=int, default=None)
    compare.add_argument("--joint-seconds", nargs="*", default=[], metavar="NAME=SECONDS", help="of CPU time")
    compare.add_argument("--only-report", action="store_true", help="learn nothing, write what is there")
    scale = commands.add_parser("scale", help="a step at 10, 100 and 1,000 scenes")
    scale.add_argument("--output-dir", type=Path, required=True)
    scale.add_argument("--steps", type=int, default=15, help="of each stage (default: %(default)s)")
    scale.add_argument("--one", type=int, help="measure this number of scenes in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "compare":
        run_comparison(arguments)
    elif arguments.one:
        measure_scale(arguments.output_dir, arguments.one, arguments.steps)
    else:
        run_scale(arguments)


# --- Variants side by side ---


def run_comparison(arguments: argparse.Namespace) -> None:
    """Learn, and report after each scene."""
    jobs: Dict[str, Tuple[SharedBasis, List[Any]]] = {}
    for item in arguments.variants:
        name, _, folder = item.partition("=")
        folder, _, kind = folder.partition(":")
        if kind not in KINDS:
            raise SystemExit(f"variant {item}: after the colon must stand one of {', '.join(KINDS)}")
        if kind == "learnt":
            if not (Path(folder) / "shared.pt").exists():
                raise SystemExit(f"variant {item}: no shared.pt in {folder}; fit its scenes with fit.train_shared")
            jobs[name] = (SharedBasis.load(Path(folder)), finished_tasks(Path(folder), arguments.scenes))
            continue
        part = shared_part(Path(folder), kind)
        config = part.config
        for path in arguments.config:
            config = with_settings(config, read_yaml(path), str(path))
        out = arguments.output_dir / name.replace("/", "-")
        jobs[name] = (part, find_tasks(arguments.scenes, part.folder, out, config)[: arguments.max_scenes])
    seconds = {name: float(value) for name, _, value in (item.partition("=") for item in arguments.joint_seconds)}
    for tasks in zip(*(tasks for _, tasks in jobs.values())):
        for name, task in zip(jobs, tasks):
            if task.result_path.exists() or arguments.only_report:
                continue
            scene, error = run_task(task)
            log(f"{time.strftime('%H:%M:%S')} {name}: {scene}: {error or 'fitted'}")
        report(arguments.output_dir, jobs, seconds)


@dataclasses.dataclass
class FinishedTask:
    """A scene that is fitted; what `SceneTask` says of it."""

    scene: Path
    result_path: Path


def finished_tasks(folder: Path, scenes: List[Path]) -> List[FinishedTask]:
    """What `igae-scenes fit` has learnt of some folders of scenes."""
    results = {path.parent.name: path for path in folder.glob("scenes/*/result.json")}
    found = sorted(scene for place in scenes for scene in place.iterdir() if scene.name in results)
    return [FinishedTask(scene, results[scene.name]) for scene in found]


def shared_part(folder: Path, kind: str) -> SharedBasis:
    """Of a folder, as a kind of `KINDS`; all but the joint one in a folder beside it."""
    part = SharedBasis.load(folder)
    if kind == "joint":
        return part
    beside = folder.with_name(f"{folder.name}-{kind}")
    if not (beside / "shared.pt").exists():
        beside.mkdir(exist_ok=True)
        torch.manual_seed(0)
        joint, part = part, as_plain(part, beside)
        if kind == "rgb":
            part.config = with_settings(part.config, read_yaml(CONFIGS / "rgb.yaml"), "rgb.yaml")
            part.latent_channels, part.downscale = 3, 1
            part.normalizer, part.preview = LatentNormalizer(3, "none").state_dict(), LatentPreview(3).state_dict()
        else:
            (beside / "autoencoder").symlink_to((folder / "autoencoder").resolve())
        if kind != "plain":
            background = part.renderer["composite.background"]
            renderer = TriPlaneRenderer(part.config.triplanes, part.latent_channels)
            renderer.set_background(torch.tensor(part.background) if kind == "rgb" else background)
            part.renderer, part.config.fit.start = renderer.state_dict(), "noise"
        part.save()
        if kind == "plain":
            planes, model = joint.make_model().shared, part.make_model()
            for name, code in zip(joint.scenes, joint.training_codes(len(joint.scenes))):
                state = scene_state(name, planes(code[None]).detach().flatten(), model, part.config)
                write_scene(beside / "scenes" / name, state, beside, part.sha256)
    return SharedBasis.load(beside)


def as_plain(basis: SharedBasis, folder: Path) -> SharedBasis:
    """A basis without shared planes, for a folder: all F features are a scene's own, and a new one starts where it
    would have. The renderer, the normalisation and the start are all that is left of the joint training."""
    config = dataclasses.replace(basis.config, micro_macro=MicroMacroConfig(shared_planes=0))
    with torch.no_grad():
        mean = basis.make_model().shared(basis.mean_record[None])[0].flatten()
    return dataclasses.replace(basis, config=config, planes={}, mean_record=mean, folder=folder)


def report(output_dir: Path, jobs: Dict[str, Tuple[SharedBasis, List[Any]]], seconds: Dict[str, float]) -> None:
    """Means over the scenes that all variants have learnt."""
    found = {
        name: {t.scene.name: json.loads(t.result_path.read_text()) for t in tasks if t.result_path.exists()}
        for name, (_, tasks) in jobs.items()
    }
    names = sorted(set.intersection(*(set(results) for results in found.values())))
    if not names:
        return
    summary: Dict[str, Any] = {"scenes": names, "variants": {}}
    for name, results in found.items():
        part = jobs[name][0]
        each = [results[scene] for scene in names]
        summary["variants"][name] = {
            "phases": {
                phase: {key: mean([result[phase][key] for result in each]) for key in each[0][phase]}
                for phase in ("latent_supervision", "rgb_alignment")
                if phase in each[0]
            },
            "cpu_seconds": mean([result["cpu_seconds"] for result in each]),
            "seconds": mean([result["seconds"] for result in each]),
            "bytes": {key: mean([result["bytes"][key] for result in each]) for key in each[0]["bytes"]},
            "bytes_on_disk": mean([result["bytes_on_disk"] for result in each]),
            "bytes_shared": part.bytes_shared if part.planes else 0,
            "joint_cpu_seconds": seconds.get(name, 0.0),
            "psnr": {scene: last_phase(results[scene])["psnr"] for scene in names},
            "curve": mean_curve([result["curve"] for result in each]),
        }
    text = json.dumps(summary, indent=1).encode()
    write_atomically(output_dir / "results.json", lambda file: file.write(text))
    table = markdown(summary).encode()
    write_atomically(output_dir / "table.md", lambda file: file.write(table))
    plot_comparison(output_dir / "comparison.png", summary)


def last_phase(result: Dict[str, Any]) -> Dict[str, float]:
    return result.get("rgb_alignment") or result["latent_supervision"]


def mean(values: List[float]) -> float:
    return sum(values) / len(values)


def mean_curve(curves: List[List[Dict[str, float]]]) -> List[Tuple[float, float]]:
    """(CPU seconds, held-out PSNR) at each measurement, means over scenes."""
    return [(mean([p["cpu_seconds"] for p in row]), mean([p["held_out_psnr"] for p in row])) for row in zip(*curves)]


def markdown(summary: Dict[str, Any]) -> str:
    """Two tables: variants, and PSNR of each scene."""
    lines = [
        f"{len(summary['scenes'])} scenes",
        "",
        "| | PSNR: supervision | PSNR | SSIM | LPIPS | CPU s a scene | kB a scene: planes | with the rest | on disk |"
        " shared, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in summary["variants"].items():
        first, last = row["phases"]["latent_supervision"], last_phase(row["phases"])
        sizes = row["bytes"]
        lines.append(
            f"| {name} | {first['psnr']:.2f} | {last['psnr']:.2f} | {last['ssim']:.3f} | {last.get('lpips', 0):.3f} "
            f"| {row['cpu_seconds']:.1f} | {(sizes['planes'] + sizes['weights']) / 1e3:.1f} "
            f"| {sizes['total'] / 1e3:.1f} | {row['bytes_on_disk'] / 1e3:.1f} | {row['bytes_shared'] / 1e6:.2f} |"
        )
    lines += ["", f"| PSNR | {' | '.join(summary['variants'])} |", "|---|" + "---|" * len(summary["variants"])]
    for scene in summary["scenes"]:
        values = " | ".join(f"{row['psnr'][scene]:.2f}" for row in summary["variants"].values())
        lines.append(f"| {scene} | {values} |")
    return "\n".join(lines) + "\n"


def cost(row: Dict[str, Any], scenes: float) -> float:
    """Bytes per scene where so many share: own + shared / N."""
    return row["bytes"]["total"] + row["bytes_shared"] / scenes


def plot_comparison(path: Path, summary: Dict[str, Any]) -> None:
    """Bytes per scene over the number of scenes; PSNR over bytes; PSNR over seconds."""
    from igae_nerfstudio.figures import new_figure

    figure, (over_n, over_bytes, over_time) = new_figure(3)
    counts = [2 ** (i / 2) for i in range(0, 25)]
    for (name, row), colour in zip(summary["variants"].items(), COLOURS):
        psnr = last_phase(row["phases"])["psnr"]
        over_n.plot(counts, [cost(row, n) / 1e3 for n in counts], color=colour, label=name)
        stops = (16, 100, 1000)
        sizes = [cost(row, n) / 1e3 for n in stops]
        over_bytes.plot(sizes, [psnr] * 3, marker="o", color=colour, label=name)
        if row["bytes_shared"]:
            for count, size in zip(stops, sizes):
                over_bytes.annotate(f"N = {count}", (size, psnr), (0, 6), textcoords="offset points", fontsize=7)
        if row["curve"]:
            seconds, values = zip(*row["curve"])
            over_time.plot(seconds, values, marker=".", color=colour, label=name)
        else:
            over_time.plot([row["cpu_seconds"]], [psnr], marker="o", linestyle="", color=colour, label=name)
    over_n.set(xlabel="N, scenes that share", ylabel="effective kB per scene", xscale="log", yscale="log")
    over_bytes.set(xlabel="effective kB per scene", ylabel="PSNR of held-out views, dB", xscale="log")
    over_time.set(xlabel="CPU seconds of one scene's learning", ylabel="PSNR of held-out views, dB")
    for axis in (over_n, over_bytes, over_time):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


# --- Scale ---

SCALE = {
    "data": {"view_size": 64, "max_scenes": None},
    "stage1": {"views_per_batch": 8, "views_per_scene": 2, "epochs": 1000},
    "stage2": {"views_per_batch": 4, "views_per_scene": 2, "epochs": 1000},
}
"""Over configs/many_scenes/cpu.yaml."""


def run_scale(arguments: argparse.Namespace) -> None:
    """Every number of scenes in a process of its own, whose peak memory is then its own too."""
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for count in COUNTS:
        path = arguments.output_dir / f"scale-{count}.json"
        if not path.exists():
            command = [sys.executable, __file__, "scale", "--output-dir", str(arguments.output_dir)]
            subprocess.run([*command, "--one", str(count), "--steps", str(arguments.steps)], check=True)
        rows.append(json.loads(path.read_text()))
        log(json.dumps(rows[-1]))
    text = json.dumps(rows, indent=1).encode()
    write_atomically(arguments.output_dir / "scale.json", lambda file: file.write(text))
    plot_scale(arguments.output_dir / "scale.png", rows)


def measure_scale(output_dir: Path, count: int, steps: int) -> None:
    """Step times and memory with `count` scenes of two views of 64 x 64 pixels."""
    from igae_nerfstudio.joint.compositions import begin, joint_trainer
    from igae_nerfstudio.joint.trainer import make_optimizers

    folder = output_dir / f"scenes-{count}"
    if not folder.exists():
        write_balls(folder, count)
    config = with_settings(ManyScenesConfig(), read_yaml(CONFIGS / "cpu.yaml"), "cpu.yaml")
    out = output_dir / f"training-{count}"
    trainer = joint_trainer(with_settings(config, SCALE, "SCALE"), folder, None, out, "bundled")
    trainer.data.encode_views(trainer.accelerator)
    begin(trainer)
    row: Dict[str, Any] = {"scenes": count, "record_numbers": trainer.model.shared.code_numbers}
    memory = []
    for stage in trainer.stages:
        trainer.optimizers, times = make_optimizers(trainer.model, stage.settings), []
        for step in range(steps):
            start = time.process_time()
            trainer.train_step(stage, step)
            times.append(time.process_time() - start)
            memory.append(own_memory())
        row[f"stage{stage.number}_step_seconds"] = statistics.median(times)
    row["peak_memory"] = max(memory)
    row["disk"] = sum(path.stat().st_size for path in (out / "cache" / "planes").iterdir())
    text = json.dumps(row).encode()
    write_atomically(output_dir / f"scale-{count}.json", lambda file: file.write(text))


def own_memory() -> int:
    """Bytes of this process's memory that is no mapped file's (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def write_balls(folder: Path, count: int, size: int = 64) -> None:
    """Scenes of a ball of some colour, in Blender format."""
    import math

    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[:size, :size] + 0.5
    inside = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 4) ** 2
    rng = np.random.default_rng(0)
    frames = []
    for i in range(2):
        a = 2 * math.pi * i / 2
        back = np.array([math.cos(a), math.sin(a), 0.0])
        axes = np.stack([[-math.sin(a), math.cos(a), 0.0], [0.0, 0.0, 1.0], back, 2.1 * back], axis=-1)
        pose = [*axes.tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"./r_{i}", "transform_matrix": pose})
    for scene in range(count):
        own = folder / f"ball_{scene:04d}"
        own.mkdir(parents=True)
        image = np.full((size, size, 3), 255, np.uint8)
        image[inside] = rng.integers(0, 256, 3)
        for i in range(2):
            Image.fromarray(image).save(own / f"r_{i}.png")
        (own / "transforms_train.json").write_text(json.dumps({"camera_angle_x": 0.69, "frames": frames}))


def plot_scale(path: Path, rows: List[Dict[str, Any]]) -> None:
    """Step time and memory over the number of scenes, and disk for comparison."""
    from igae_nerfstudio.figures import new_figure

    figure, (times, memory) = new_figure(2)
    counts = [row["scenes"] for row in rows]
    for stage, colour in ((1, COLOURS[0]), (2, COLOURS[1])):
        values = [row[f"stage{stage}_step_seconds"] for row in rows]
        times.plot(counts, values, marker="o", color=colour, label=f"stage {stage}")
    times.set(xlabel="scenes", ylabel="CPU seconds of a step", xscale="log", ylim=(0, None))
    memory.plot(counts, [row["peak_memory"] / 1e9 for row in rows], marker="o", color=COLOURS[2], label="peak memory")
    memory.plot(counts, [row["disk"] / 1e9 for row in rows], marker="o", color=COLOURS[3], label="disk: scenes, Adam")
    memory.set(xlabel="scenes", ylabel="GB", xscale="log", ylim=(0, None))
    for axis in (times, memory):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
