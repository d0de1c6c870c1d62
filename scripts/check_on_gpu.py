"""Everything that a GPU shows of this package, in one call.

    python scripts/check_on_gpu.py --minutes 9 --output-dir OUT

Writes gpu.json, gpu.md (a table) and a log for each part:

    machine   GPU, driver, torch; whether gsplat, nerfacc and tinycudann are there, and the kernels of the last two run
    tests     the tests that are skipped where there is no GPU
    train     both stages of `igae train` on the demo scene, in bfloat16 and in float32
    viewer    pictures per second of `ns-viewer` while its camera moves, for a client that is no browser
    bench     seconds of steps and pictures in RGB and in latents at 128 and 512 pixels, as in `igae bench`
    quality   PSNR over the seconds of training: each latent method at its own rates (the paper's), and stock RGB

Each part has processes of its own, which are killed when their share of the time is over; what they leave goes to the
later ones. What was measured before a failure is kept. The status is 1 where a part did not end well, and 2 without
CUDA; `--device cpu` does the same in tiny sizes.

No part needs a network, or this package to be installed. What must be installed is what the parts import: run them all
with `--device cpu` where that is there; `--list-wheels` then prints it for `pip download -r`. Leave out what the
machine has, but its numpy must be below 2. Of what has no wheel in that version take the newest that has one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from itertools import cycle
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, Callable, Sequence

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo" / "lighthouse"
METHODS = ("tensorf", "kplanes", "instant-ngp", "vanilla-nerf", "nerfacto", "splatfacto", "triplanes")
"""The latent methods without their `igae-`."""
Values = dict[str, Any]


@dataclass
class Work:
    """What a part has: a device (`cpu`: take tiny sizes), a folder for its files, and an end, of `time.monotonic`."""

    device: str
    folder: Path
    end: float
    methods: Sequence[str] = ()
    failed: list[str] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    def report(self, what: str, **values: Any) -> None:
        """Keep values of something, over earlier ones of the same name."""
        print(what, values, flush=True)
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps({"what": what, **values}) + "\n")

    def attempt(self, what: str, measure: Callable[[], Values]) -> None:
        """Report what `measure` returns, or that it failed."""
        try:
            self.report(what, **measure())
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            self.failed.append(what)
            self.report(what, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def cell(self, method: str, baseline: str, size: int = 128) -> Any:
        """The benchmark's cell of the demo scene, with pictures of `size` pixels."""
        from benchmarks import baselines, bench, measure

        settings: Values = {"method": method, "baseline": baseline, "size": size, "seconds": 0.5}
        if self.tiny:
            baselines.RGB_RAYS = measure.RENDER_RAYS = 64
            settings |= {"preset": "fast", "size": size // 4, "seconds": 0.0}
        return bench.Cell(data=DEMO, output_dir=self.folder, **settings)


# --- The parts ---


def machine(work: Work) -> None:
    import torch

    software: Values = {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda}
    if not work.tiny:
        command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        work.attempt("GPU and driver", lambda: {"nvidia-smi": subprocess.check_output(command, text=True).strip()})
        software |= {"capability": torch.cuda.get_device_capability(), "bfloat16": torch.cuda.is_bf16_supported()}
    work.report("software", **software, cores=os.cpu_count())
    for name, kernel in {"gsplat": None, "nerfacc": nerfacc_kernel, "tinycudann": tinycudann_kernel}.items():
        try:
            importlib.import_module(name)
        except Exception as error:  # tinycudann has one of its own for other GPUs
            work.report(name, missing=str(error))
            continue
        run = kernel if kernel and not work.tiny else lambda: {"imports": True}
        work.attempt(name, run)


def nerfacc_kernel() -> Values:
    """March a ray through a full box of side 2 in steps of 0.1; where nvcc is, nerfacc compiles its kernels first."""
    import nerfacc
    import torch

    start = time.monotonic()
    grid = nerfacc.OccGridEstimator([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], resolution=16).cuda()
    grid.binaries[:] = True
    origin, direction = torch.tensor([[[-2.0, 0.01, 0.01]], [[1.0, 0.0, 0.0]]]).cuda()
    _, starts, _ = grid.sampling(origin, direction, render_step_size=0.1)
    return {"samples (about 20 are right)": len(starts), "seconds": time.monotonic() - start}


def tinycudann_kernel() -> Values:
    """A hash encoding of random points, with its gradient."""
    import tinycudann
    import torch

    encoding = tinycudann.Encoding(3, {"otype": "HashGrid", "n_levels": 16, "n_features_per_level": 2}).cuda()
    encoded = encoding(torch.rand(4096, 3).cuda())
    encoded.float().square().sum().backward()
    return {"features": encoded.shape[1], "gradient is finite": bool(encoding.params.grad.isfinite().all())}


def tests(work: Work) -> None:
    import pytest

    counts = {"passed": 0, "failed": 0, "skipped": 0}

    class Plugin:
        """Keeps the tests that are skipped without a GPU, and reports on each."""

        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            reasons = [" ".join(mark.kwargs["reason"] for mark in item.iter_markers("skipif")) for item in items]
            items[:] = [item for item, reason in zip(items, reasons) if "GPU" in reason or "CUDA" in reason]

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
                work.report("tests", **counts)
            if report.failed:
                work.failed.append(report.nodeid)
                work.report(report.nodeid, failed=str(report.longrepr).strip().rpartition("\n")[2][:200])

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # of packages that have nothing to do with it
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "cuda.is_available()" in path.read_text()]
    status = pytest.main(["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), *files], [Plugin()])
    if status and not work.failed:
        raise SystemExit(f"pytest ended with status {int(status)}")


def train(work: Work) -> None:
    for precision in ("float32",) if work.tiny else ("bfloat16", "float32"):
        work.attempt(precision, lambda: igae_training(work, precision))  # noqa: B023


def igae_training(work: Work, precision: str) -> Values:
    """Of each stage the steps, the seconds of one, and the first and last loss; then PSNRs in dB (`validate`)."""
    from igae_nerfstudio.config_files import read_yaml, with_settings
    from igae_nerfstudio.joint.compositions import begin, joint_trainer
    from igae_nerfstudio.joint.config import IGAEConfig
    from igae_nerfstudio.joint.validation import validate

    file, folder = ROOT / "configs" / "igae" / "debug.yaml", work.folder / precision
    config = with_settings(IGAEConfig(), read_yaml(file), str(file))
    config.mixed_precision, config.weights.real_perceptual = precision == "bfloat16", 0.0  # LPIPS is downloaded
    if not work.tiny:
        config.data.max_views, config.stage1.epochs, config.stage2.epochs = 100, 10, 10
    folder.mkdir()
    trainer = joint_trainer(config, ROOT / "demo", DEMO / "train", folder, "bundled-ae")
    if trainer.amp != config.mixed_precision:
        raise RuntimeError("there is no bfloat16 on this GPU")
    ends: dict[int, list[float]] = {1: [], 2: []}
    trainer.observe = lambda _, stage, step: ends[stage.number].append(time.perf_counter())
    trainer.run(begin)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: Values = {}
    for stage, times in ends.items():
        losses = [line["total"] for line in lines if line["stage"] == stage]
        seconds = median(after - before for before, after in zip(times, times[1:]))
        found[f"stage {stage}: steps, seconds of one, losses"] = [len(times), seconds, losses[0], losses[-1]]
    return {**found, **validate(trainer.data)}


def viewer(work: Work) -> None:
    for baseline in ("latent",) if work.tiny else ("latent", "stock"):
        work.attempt(f"K-Planes, {baseline}", lambda: viewer_rates(work, work.cell("kplanes", baseline)))  # noqa: B023


def viewer_rates(work: Work, cell: Any) -> Values:
    """Pictures that a client gets while it moves the camera, and the seconds from then to the sharp one."""
    import measure_viewer
    import nerfstudio.scripts.viewer.run_viewer  # noqa: F401  for `--list-wheels`: the viewer's process imports it

    from benchmarks.baselines import dataparser_config, trainer_config
    from benchmarks.measure import Training

    training = Training(trainer_config(cell))
    training.steps(range(2 if work.tiny else 100))
    training.trainer.save_checkpoint(1)
    training.trainer.config.save_config()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nerfstudio.scripts.viewer.run_viewer", "--viewer.websocket-port", str(port)]
    command += ["--viewer.websocket-host", "127.0.0.1", "--load-config", str(training.trainer.base_dir / "config.yml")]
    poses = dataparser_config(cell).setup().get_dataparser_outputs(split="train").cameras.camera_to_worlds
    process = subprocess.Popen(command)
    try:
        measure_viewer.wait_for(process, port)
        client = ViewerClient(f"ws://127.0.0.1:{port}")
        while client.frusta < len(poses):  # the training cameras are drawn first
            client.wait_for_timeout(100)
        pictures = measure_viewer.Pictures(client)
        client.look_from(poses[0])
        pictures.sharp_after(0.0)
        start = time.monotonic()
        for pose in cycle(poses):
            client.look_from(pose)
            client.wait_for_timeout(15)
            if (last := time.monotonic()) > start + 5:
                break
        moving = [size for when, size in pictures.seen if start < when < last]
        sharp = pictures.sharp_after(last) - last
    finally:
        process.kill()
    sizes = [f"{width} x {height}" for width, height in sorted(set(moving))]
    return {"pictures per second": len(moving) / (last - start), "pixels": sizes, "seconds to the sharp one": sharp}


class ViewerClient:
    """What `measure_viewer.Pictures` needs of a browser's page, on viser's websocket."""

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self.socket = connect(address, max_size=None)
        self.frusta = 0
        self.received: Callable[[Any], None] = lambda data: None

    def on(self, event: str, handler: Callable[[Any], None]) -> None:
        """The page's event is `websocket`, which this is as well; that one's is `framereceived`."""
        handler(self) if event == "websocket" else setattr(self, "received", handler)

    def wait_for_timeout(self, milliseconds: float) -> None:
        """Read what comes in that time."""
        end = time.monotonic() + milliseconds / 1000
        while (left := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                data: Any = self.socket.recv(timeout=left)
                self.frusta += data.count(b"CameraFrustumMessage")
                self.received(data)

    def look_from(self, pose: Any) -> None:
        """Move the camera to a pose (3, 4) of the scene, camera to world."""
        import msgspec
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
        from viser.transforms import SO3

        turn = SO3.from_matrix(pose[:, :3].numpy()) @ SO3.from_x_radians(math.pi)
        message: Values = {"type": "ViewerCameraMessage", "wxyz": turn.wxyz.tolist(), "fov": 0.7, "aspect": 1.5}
        message |= {"position": (VISER_NERFSTUDIO_SCALE_RATIO * pose[:, 3]).tolist()}
        message |= {"look_at": [0.0, 0.0, 0.0], "up_direction": [0.0, 0.0, 1.0]}
        self.socket.send(msgspec.msgpack.encode(message))


def bench(work: Work) -> None:
    from benchmarks.bench import BASELINES
    from benchmarks.report import ratios

    for size in (128, 512):
        for name, baselines in list(BASELINES.items())[: 1 if work.tiny else None]:
            found: list[Values] = []
            for baseline in baselines:
                cell = work.cell(name, baseline, size)
                work.attempt(f"{name}, {baseline}, {cell.size} px", lambda: speed(cell, found))  # noqa: B023
            for ratio in ratios(found):
                what = f"{name}, {ratio['size']} px, {ratio['metric']}"
                work.report(what, **{f"{ratio['of']} / {ratio['over']}": ratio["ratio"]})


def speed(cell: Any, found: list[Values]) -> Values:
    """Seconds of a step of each phase, of a picture and of the decode in it, and memory; the whole goes to `found`."""
    import torch

    from benchmarks.measure import measure_speed
    from igae_nerfstudio.config_files import to_plain

    gc.collect()  # earlier trainings
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = measure_speed(cell)
    found.append({"cell": to_plain(cell), **result})
    sizes = {f"{name}, MiB": size / 2**20 for name, size in result["bytes"].items() if name != "peak RAM"}
    return {**{f"{name}, s": value for name, value in result["seconds"].items()}, **sizes}


def quality(work: Work) -> None:
    import torch

    pairs = [(method, baseline) for method in work.methods for baseline in ("latent", "stock")]
    missing = {"triplanes", "" if torch.cuda.is_available() else "splatfacto"}  # in RGB
    pairs = [pair for pair in pairs if pair[1] == "latent" or pair[0] not in missing]
    # The rest is for set-up and evaluation. In tiny sizes one step for each point is enough.
    seconds = 0.0 if work.tiny else 0.5 * (work.end - time.monotonic()) / len(pairs)
    for method, baseline in pairs:
        what, cell = f"{method}, {'RGB' if baseline == 'stock' else 'latent'}", work.cell(method, baseline)
        work.attempt(what, lambda: psnr_over_time(work, what, cell, seconds))  # noqa: B023


def psnr_over_time(work: Work, what: str, cell: Any, seconds: float) -> Values:
    """Train for so many seconds, in latents 40 % of them in the first phase, as the paper's steps are.

    Returns:
        Steps, seconds of training after set-up and first steps, and PSNR in dB (mean of some test views), in a row.
    """
    from benchmarks.baselines import trainer_config
    from benchmarks.measure import CURVE_VIEWS, Training, clock
    from igae_nerfstudio.metrics import psnr

    config: Any = trainer_config(cell)
    if work.tiny and hasattr(config.pipeline.model, "grid_resolution"):  # an occupancy grid, filled at the start
        config.pipeline.model.grid_resolution = 16
    training = Training(config)
    run = training.on_test_views(what)
    views = [0] if work.tiny else range(0, len(run.cameras), -(-len(run.cameras) // CURVE_VIEWS))
    points, chunk = (5, 1) if work.tiny else (10, 10)
    training.steps(range(chunk))  # to warm up
    step, spent = chunk, 0.0
    found: dict[str, list[float]] = {"steps": [], "seconds": [], "PSNR": []}
    for point in range(1, points + 1):
        before = step
        while step == before or spent < seconds * point / points:
            start = clock()
            training.steps(range(step, step + chunk))
            spent, step = spent + clock() - start, step + chunk
        pairs = [(run.render(run.cameras[view : view + 1]).rgb, run.photo(view)) for view in views]
        reached = mean(float(psnr(picture[None], photo[None])) for picture, photo in pairs)
        for values, value in zip(found.values(), (step, spent, reached)):
            values.append(value)
        work.report(what, **found)
        if cell.baseline == "latent" and point == 0.4 * points:  # RGB alignment begins
            pipeline = training.pipeline
            pipeline.schedule = replace(pipeline.schedule, latent_supervision_steps=step)
            pipeline.datamanager.schedule = pipeline.schedule
    return found


PARTS: dict[str, tuple[Callable[[Work], None], float]] = {
    "machine": (machine, 3),  # nerfacc compiles for minutes
    "tests": (tests, 1.5),
    "train": (train, 1),
    "viewer": (viewer, 2.5),
    "bench": (bench, 2.5),
    "quality": (quality, 1.5),  # for each method
}
"""What a part does, and its share of the time."""


# --- Their processes ---


def run(part: str, methods: Sequence[str], device: str, seconds: float, log: Path) -> Values:
    """Do a part, of some methods, in a process of its own, which is killed with all its children when its time is over.

    Returns:
        How it `ended`, its `seconds`, its `results` by name, and the distributions that it `imported`.
    """
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start, ended = time.monotonic(), "done"
    results: dict[str, Values] = {}
    with TemporaryDirectory() as folder, log.open("ab") as file:
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--device", device, "--output-dir", folder]
        command += ["--minutes", str(seconds / 60), "--work", part, *methods]
        how: Values = {"stdout": file, "stderr": file, "start_new_session": True}
        process = subprocess.Popen(command, cwd=folder, env=environment, **how)
        try:
            if process.wait(seconds):
                ended = f"failed: {log.read_text(errors='replace').strip().rpartition(chr(10))[2][:300]}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        rows, wheels = Path(folder) / "rows.jsonl", Path(folder) / "imported.json"
        for line in rows.read_text().splitlines() if rows.exists() else []:
            with suppress(json.JSONDecodeError):  # the kill cut it off
                row = json.loads(line)
                results.setdefault(row.pop("what"), {}).update(row)
        imported = json.loads(wheels.read_text()) if wheels.exists() else {}
    name, spent = f"{part} {methods[0]}" if len(methods) == 1 else part, round(time.monotonic() - start, 1)
    return {"part": name, "ended": ended, "seconds": spent, "results": results, "imported": imported}


def imported() -> dict[str, str]:
    """What `--list-wheels` says of each distribution that this process has imported from."""
    owners, found = metadata.packages_distributions(), {}
    for name in {name for module in sys.modules for name in owners.get(module.partition(".")[0], ())}:
        own = metadata.distribution(name)
        if name != "igae-nerfstudio" and "_vendor" not in str(own.locate_file("")):  # setuptools has its own copies
            size = sum(file.size or 0 for file in own.files or []) / 2**20
            found[name] = f"{name}=={own.version}  # {size:.1f} MiB installed"
    return found


def text(value: Any) -> str:
    """Four digits of numbers; lists with commas."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(folder: Path, device: str, done: list[Values]) -> None:
    """`gpu.json` and `gpu.md`."""
    (folder / "gpu.json").write_text(json.dumps({"device": device, "parts": done}, indent=1))
    rows = [["part", "what", "result"], ["---"] * 3]
    for entry in done:
        rows.append([f"**{entry['part']}**", f"{entry['seconds']:.0f} s", f"**{entry['ended']}**"])
        for what, values in entry["results"].items():
            rows.append([entry["part"], what, "; ".join(f"{name}: {text(value)}" for name, value in values.items())])
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows]
    (folder / "gpu.md").write_text(f"`check_on_gpu.py --device {device}`\n\n{''.join(lines)}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="of the report")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts; default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="of quality; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--list-wheels", action="store_true", help="print what the parts of a report imported")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder, device, end = arguments.output_dir.resolve(), arguments.device, time.monotonic() + 60 * arguments.minutes
    if arguments.work:
        part, *methods = arguments.work
        work = Work(device, folder, end, methods)
        try:
            PARTS[part][0](work)
        finally:
            (folder / "imported.json").write_text(json.dumps(imported()))
        sys.exit(", ".join(work.failed) or 0)
    if arguments.list_wheels:
        parts = json.loads((folder / "gpu.json").read_text())["parts"]
        print("\n".join(sorted({line for part in parts for line in part["imported"].values()}, key=str.lower)))
        return
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print("check_on_gpu.py: torch sees no CUDA device; --device cpu does all in tiny sizes", file=sys.stderr)
            sys.exit(2)
    folder.mkdir(parents=True, exist_ok=True)
    each: list[Sequence[str]] = [[method] for method in arguments.methods]  # a CUDA error ends a process
    of_quality = each if device == "cuda" else [arguments.methods]
    jobs = [(part, methods) for part in arguments.parts for methods in (of_quality if part == "quality" else [()])]
    done: list[Values] = []
    for part in arguments.parts:
        (folder / f"{part}.log").unlink(missing_ok=True)
    for number, (part, methods) in enumerate(jobs):
        shares = [PARTS[later][1] * max(1, len(some)) for later, some in jobs[number:]]
        seconds = max(1.0, (end - time.monotonic()) * shares[0] / sum(shares))
        done.append(run(part, methods, device, seconds, folder / f"{part}.log"))
        write_report(folder, device, done)
        print(f"{done[-1]['part']}: {done[-1]['ended']} ({done[-1]['seconds']:.0f} s)", flush=True)
    print(folder / "gpu.md")
    sys.exit(int(any(entry["ended"] != "done" for entry in done)))


if __name__ == "__main__":
    main()
