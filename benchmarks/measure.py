"""One measurement of `igae-bench`: `python -m benchmarks.measure --help`.

Everything is timed on one thread, on a CPU in the process's own seconds (busy neighbours stretch these too, but less).
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
import warnings
from typing import Any, Callable, Iterable

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.engine.trainer import TrainerConfig
from torch import Tensor
from torch.utils import benchmark

from benchmarks.baselines import steps_of, trainer_config
from benchmarks.bench import Cell
from igae_nerfstudio.config_files import to_plain
from igae_nerfstudio.data.photo_dataset import PhotoDataset
from igae_nerfstudio.errors import reported_in_one_line
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.models.latent_model import without_lpips
from igae_nerfstudio.runs import Run

RGB_PHASES = {"training": 12_501}
LATENT_PHASES = {"latent supervision": 5_001, "RGB alignment": 17_501}
"""A step in the middle of each phase, in which no occupancy grid is updated."""
GRID_UPDATE, GRID_INTERVAL = 10_000, 16
"""A step in which nerfacc updates an occupancy grid, as in every 16th."""
RENDER_RAYS = 4096  # of an RGB picture that are timed, in rows evenly spread: Nerfstudio renders chunks of as many
POINTS, CURVE_VIEWS = 10, 4  # of PSNR over time, and the views of each; the metrics at the end are of all
clock = benchmark.timer if torch.cuda.is_available() else time.process_time  # of a GPU's work, or of this process
BEFORE, AFTER = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN_ITERATION


class Training:
    """A trainer that is taken through any steps."""

    def __init__(self, config: TrainerConfig, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.trainer = config.setup()
        with without_lpips():
            self.trainer.setup()
        self.pipeline = self.trainer.pipeline
        self.scene: Any = getattr(self.pipeline.model, "scene", self.pipeline.model)
        """Nerfstudio's model, under a decoder or not."""

    def callbacks(self, step: int, where: TrainingCallbackLocation) -> None:
        """What models do before and after a step."""
        for callback in self.trainer.callbacks:
            callback.run_callback_at_location(step, where)

    def steps(self, steps: Iterable[int]) -> None:
        """Take steps of these numbers, as Nerfstudio's training does."""
        self.pipeline.train()
        for step in steps:
            self.callbacks(step, BEFORE)
            self.trainer.train_iteration(step)
            self.callbacks(step, AFTER)

    def on_test_views(self, name: str) -> Run:
        """The training as a run that is evaluated on the test split."""
        data: Any = self.trainer.config.pipeline.datamanager
        split = data.dataparser.setup().get_dataparser_outputs(split="test")
        return Run(name, self.pipeline, PhotoDataset(split, data.camera_res_scale_factor))


def seconds_of(work: Callable[[], Any], at_least: float = 0.0) -> float:
    """The least seconds of some work on one thread, repeated for `at_least` seconds after a warm-up.

    The least, because whatever disturbs a measurement makes it longer.
    """
    timer = benchmark.Timer("work()", globals={"work": work}, timer=clock)
    return min(timer.blocked_autorange(min_run_time=at_least).times)


def training_in_its_middle(cell: Cell) -> tuple[Training, float]:
    """A training whose grids are as they are for most of its steps, and the seconds of a step's share in their upkeep.

    Grids that grow have their last size. Instant-NGP's occupancy grid, full at first and soon sparse, has a ball
    occupied, the same for all baselines; what its update in every 16th step costs is measured by itself.
    """
    training = Training(trainer_config(cell))
    for step in getattr(training.scene, "upsampling_iters", ()):
        training.callbacks(int(step), AFTER)
    grid = getattr(training.scene, "occupancy_grid", None)
    if grid is None:
        return training, 0.0
    occupy_ball(grid)
    occupied = {name: value.clone() for name, value in grid.state_dict().items()}
    update = seconds_of(lambda: training.callbacks(GRID_UPDATE, BEFORE))
    grid.load_state_dict(occupied)
    return training, update / GRID_INTERVAL


def measure_speed(cell: Cell) -> dict[str, Any]:
    """Seconds of training steps and of a picture, and memory. Fields are untrained.

    Returns:
        `seconds` by phase, and of a `picture` (and the `decode` in it); `rays` of a step by phase; `parameters`;
        `bytes`.
    """
    training, upkeep = training_in_its_middle(cell)
    period = getattr(training.scene.config, "proposal_update_every", 0) + 1  # proposals learn in one of so many steps
    seconds, rays, activations = {}, {}, 0
    for phase, number in (LATENT_PHASES if cell.baseline == "latent" else RGB_PHASES).items():
        steps = [number] * period
        seconds[phase] = seconds_of(lambda: training.steps(steps), cell.seconds) / period + upkeep  # noqa: B023
        rays[phase], kept = rays_and_activations(training, number)
        activations = max(activations, kept)
    seconds.update(picture_seconds(training, cell.seconds))
    training.trainer.save_checkpoint(1)
    (checkpoint,) = training.trainer.checkpoint_dir.glob("*.ckpt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sizes = {"activations of a step": activations, "checkpoint": checkpoint.stat().st_size, "peak RAM": peak}
    if torch.cuda.is_available():
        sizes["peak GPU memory"] = torch.cuda.max_memory_allocated()
    groups = training.pipeline.get_param_groups().values()
    parameters = sum(parameter.numel() for group in groups for parameter in group)
    return {"seconds": seconds, "rays": rays, "parameters": parameters, "bytes": sizes}


def rays_and_activations(training: Training, step: int) -> tuple[int, int]:
    """Rays of a training step, and bytes that it keeps for its gradient, without the parameters."""
    rays: list[int] = []
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def count(module: Any, inputs: tuple[Any, ...]) -> None:
        seen = inputs[0]  # rays, or cameras of whole pictures
        rays.append(int((seen.height * seen.width).sum()) if isinstance(seen, Cameras) else seen.size)

    hook = training.scene.register_forward_pre_hook(count)
    with hook, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.steps([step])
    own = {value.untyped_storage().data_ptr() for value in training.pipeline.parameters()}
    return sum(rays), sum(size for pointer, size in kept.items() if pointer not in own)


@torch.no_grad()
def picture_seconds(training: Training, at_least: float) -> dict[str, float]:
    """Of the `picture` of the first evaluation camera and, in latents, of the `decode` in it."""
    model = training.pipeline.eval().model
    camera = training.pipeline.datamanager.eval_dataset.cameras[0:1].to(training.trainer.device)
    if training.scene is not model:
        latent = model.render(camera).latent[None]
        decode = seconds_of(lambda: model.decode(latent), at_least)
        return {"picture": seconds_of(lambda: model.get_outputs_for_camera(camera), at_least), "decode": decode}
    if hasattr(model, "gauss_params"):
        return {"picture": seconds_of(lambda: model.get_outputs_for_camera(camera), at_least)}
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    height, width = rays.shape
    count = min(height, -(-RENDER_RAYS // width))
    rows = rays[((torch.arange(count) + 0.5) * (height / count)).long()]
    of_rows = seconds_of(lambda: model.get_outputs_for_camera_ray_bundle(rows), at_least)
    return {"picture": of_rows * height / count}


@torch.no_grad()
def occupy_ball(grid: Any) -> None:
    """Occupy what lies in a ball of half the width of an occupancy grid's finest box, a fifteenth of that box."""
    low, high = grid.aabbs[0].view(2, 3)
    for level, box in enumerate(grid.aabbs):
        centres = (grid.grid_coords.to(box) + 0.5) / grid.resolution.to(box) * (box[3:] - box[:3]) + box[:3]
        occupied = ((centres - (low + high) / 2) / ((high - low) / 4)).norm(dim=-1) < 1
        grid.occs.view(len(grid.aabbs), -1)[level] = occupied.float()
        grid.binaries[level] = occupied.view(grid.binaries.shape[1:])


def measure_quality(cell: Cell) -> dict[str, Any]:
    """Quality over the seconds of a training, from the set-up, in which latents are encoded; evaluation is not counted.

    Returns:
        `curve`, a list of (seconds, PSNR in dB of some test views), `metrics` of all test views at the end, `steps`,
        and the `seconds` of a picture.
    """
    from diffusers import AutoencoderDC  # noqa: F401  imports are not counted

    config, steps, curve = trainer_config(cell), steps_of(cell), []
    start = clock()
    training = Training(config)
    spent = clock() - start
    run = training.on_test_views(cell.path.stem)
    views = range(0, len(run.cameras), -(-len(run.cameras) // CURVE_VIEWS))
    marks = [round(i * sum(steps) / POINTS) for i in range(POINTS + 1)]
    for first, end in zip(marks, marks[1:]):
        start = clock()
        training.steps(range(first, end))
        spent += clock() - start
        curve.append((spent, run.evaluate(views, networks=())["psnr"]))
    picture = seconds_of(lambda: run.render(run.cameras[:1]), 1.0)
    return {"steps": steps, "curve": curve, "metrics": run.evaluate(), "seconds": {"picture": picture}}


def measure(cell: Cell) -> dict[str, Any]:
    """The cell's results, with the cell itself and the machine."""
    torch.set_num_threads(1)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine = {"GPU": gpu, "CPU": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    found = measure_quality(cell) if cell.over_time else measure_speed(cell)
    return {"cell": to_plain(cell), "machine": machine, **found}


def main() -> None:
    """Measure one cell and write its file."""
    with reported_in_one_line():
        warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other
        cell = tyro.cli(Cell)
        text = json.dumps(measure(cell), indent=1).encode()
        write_atomically(cell.path, lambda file: file.write(text))


if __name__ == "__main__":
    main()
