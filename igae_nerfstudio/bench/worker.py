"""One side of a comparison in a process of its own, so that its memory can be told from the other side's.

The two sides' processes live at the same time and work in turns: whatever slows the machine down meets both.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from multiprocessing import forkserver
from typing import Any, Callable, Dict, List, Literal, Tuple

import torch
from torch import Tensor

from igae_nerfstudio.bench.sides import RGB_RAYS, Side, trainer_config
from igae_nerfstudio.engine.interruption import undisturbed
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import photo_of, rendered_rgb
from igae_nerfstudio.phases import Phase, TwoPhaseSchedule

Stage = Literal["training", "latent supervision", "RGB alignment"]

PSNR_VIEWS = 4
"""Evaluation views of which PSNR is taken."""
PSNR_RAYS = 4096
"""In RGB, PSNR is taken of so many of their pixels, always the same."""
RENDER_RAYS = 1024
"""An RGB picture that takes too long is timed on rows of so many rays, evenly spread, at least."""
GRID_INTERVAL = 16
"""Nerfacc updates an occupancy grid at every step that this divides."""


class SideWorker:
    """Trains, renders and measures one side; every method is a command of the parent process."""

    def __init__(self, side: Side) -> None:
        from igae_nerfstudio.models.latent_model import without_lpips

        self.side = side
        torch.manual_seed(0)
        self.trainer = trainer_config(side).setup()
        with without_lpips():
            self.trainer.setup()
        self.pipeline = self.trainer.pipeline
        self.device = torch.device(self.trainer.device)
        self._steps: Dict[str, int] = {}
        self._usual: Dict[str, int] = {}
        self._grid_rests = False

    def facts(self) -> Dict[str, Any]:
        """What a step works on: rays of each phase, and pixels of photos that are compared."""
        dataset = self.pipeline.datamanager.train_dataset
        camera = dataset.cameras[0]
        height, width = int(camera.height), int(camera.width)
        if self.side.space == "rgb":
            rays = pixels = {"training": RGB_RAYS}
        else:
            rays, pixels = {}, {}
            area = self.pipeline.datamanager.train_split.downscale**2
            for phase in Phase:
                bundle, batch = self.pipeline.next_batch(0, phase)
                rays[phase.value] = bundle.size
                if "image" not in batch:
                    pixels[phase.value] = bundle.size * area
                else:
                    seen = batch.get("inside", torch.ones(1)).expand(*batch["image"].shape[:3], 1)
                    pixels[phase.value] = int(seen.sum())
        return {
            "views": len(dataset),
            "height": height,
            "width": width,
            "rays": rays,
            "pixels": pixels,
            "parameters": sum(p.numel() for group in self.pipeline.get_param_groups().values() for p in group),
        }

    # Training ------------------------------------------------------------------------------------------------

    def set_schedule(self, latent_supervision_steps: int, rgb_alignment_steps: int) -> Tuple[int, int]:
        """Keep the configured schedule if it has no more steps than these; else take these, with rates that suit short
        runs (those of `scripts/compare_autoencoders.py`).

        Returns:
            The steps of the two phases.
        """
        schedule = self.pipeline.config.schedule()
        if schedule.total_steps > latent_supervision_steps + rgb_alignment_steps:
            schedule = TwoPhaseSchedule(latent_supervision_steps, rgb_alignment_steps, decoder_lr_decay=0.998)
            self.trainer.optimizers.config["decoder"]["optimizer"].lr = 5e-4
        self.pipeline.schedule = schedule
        return schedule.latent_supervision_steps, schedule.rgb_alignment_steps

    def prepare_timing(self) -> None:
        """The usual schedule, and grids as they are for most of a training: those that grow at their last size, and
        Instant-NGP's, which is full at first and soon sparse, the same for both sides and as it is (`upkeep`)."""
        if self.side.space != "rgb":
            self.pipeline.schedule = self.pipeline.config.schedule()
        for step in getattr(self._scene(), "upsampling_iters", ()):
            self._callbacks(int(step), after=True)
        grid = self._occupancy_grid()
        if grid is not None:
            occupy_ball(grid)
            self._grid_rests = True

    def _scene(self) -> Any:
        """Nerfstudio's model, under a decoder or not."""
        return getattr(self.pipeline.model, "scene", self.pipeline.model)

    def _occupancy_grid(self) -> Any:
        """Instant-NGP's, or None."""
        return getattr(self._scene(), "occupancy_grid", None)

    def upkeep(self) -> float:
        """Seconds that a step spends in the mean on its occupancy grid, which is updated in every 16th."""
        grid, model = self._occupancy_grid(), self._scene()
        if grid is None:
            return 0.0
        kept = {name: value.clone() for name, value in grid.state_dict().items()}
        step_size = model.config.render_step_size
        seconds = self._timed(lambda: grid._update(10_000, lambda x: model.field.density_fn(x) * step_size))
        grid.load_state_dict(kept)
        return seconds / GRID_INTERVAL

    def save_state(self, path: str) -> None:
        """For a worker with pictures of another size, which goes on from there."""
        torch.save(self.pipeline.state_dict(), path)

    def load_state(self, path: str) -> None:
        """Only what steps cost matters here: the decoder's latent pixel and the background stay the other's."""
        self.pipeline.load_pipeline(torch.load(path, map_location="cpu", weights_only=True), step=0)

    def train(self, stage: Stage, seconds: float, at_least: int = 1, share: float = 1.0) -> List[float]:
        """Take steps for some time; returns the seconds of each.

        Args:
            stage: what is trained.
            seconds: how long.
            at_least: so many steps in any case.
            share: of the usual rays of a step; in latents of its images or random rays.
        """
        self._set_share(share)
        taken: List[float] = []
        while len(taken) < at_least or sum(taken) < seconds:
            taken.append(self._timed(lambda: self._step(stage)))
        return taken

    def _set_share(self, share: float) -> None:
        data = self.pipeline.datamanager
        if self.side.space == "rgb":
            data.train_pixel_sampler.set_num_rays_per_batch(round(share * RGB_RAYS))
            return
        if not self._usual:  # now, as what is chosen by itself depends on the images of a step
            data.config.alignment_patch_size = data.alignment_patch_size()
            self._usual = {
                "images_per_batch": data.config.images_per_batch,
                "random_latent_rays": data.random_latent_rays(),
            }
        for name, usual in self._usual.items():
            setattr(data.config, name, round(share * usual))

    def _step(self, stage: Stage) -> None:
        first = self.pipeline.schedule.latent_supervision_steps if stage == "RGB alignment" else 0
        step = self._steps.get(stage, 0)
        self._steps[stage] = step + 1
        step += first + (1 + step // (GRID_INTERVAL - 1) if self._grid_rests else 0)
        self.pipeline.train()
        self._callbacks(step, after=False)
        self.trainer.train_iteration(step)
        self._callbacks(step, after=True)
        self.trainer.step = step

    def _callbacks(self, step: int, after: bool) -> None:
        from nerfstudio.engine.callbacks import TrainingCallbackLocation as Location

        for callback in self.trainer.callbacks:
            callback.run_callback_at_location(
                step, Location.AFTER_TRAIN_ITERATION if after else Location.BEFORE_TRAIN_ITERATION
            )

    # Rendering -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def render(self, size: int, seconds: float) -> Dict[str, Any]:
        """Render one picture of a size, in RGB or with its decode.

        Args:
            size: its longer side in pixels.
            seconds: an RGB picture is rendered whole if it takes less; else some of its rows, and the time is scaled.

        Returns:
            `seconds` of the picture, in latents `decode` of its decode, and the `share` of it that was rendered.
        """
        self.pipeline.eval()
        camera = self._camera(size)
        model = self.pipeline.model
        if self.side.space != "rgb":
            taken = self._timed(lambda: model.get_outputs_for_camera(camera))
            latent = model.render(camera).latent[None]
            return {"seconds": taken, "decode": self._timed(lambda: model.decode(latent)), "share": 1.0}
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        height = rays.shape[0]

        def of_rows(count: int) -> float:
            rows = ((torch.arange(count) + 0.5) * (height / count)).long()
            return self._timed(lambda: model.get_outputs_for_camera_ray_bundle(rays[rows]))

        count = min(height, -(-RENDER_RAYS // rays.shape[1]))
        taken = of_rows(count)
        more = min(height, int(count * seconds / max(taken, 1e-6)))
        if more > count:
            count, taken = more, of_rows(more)
        return {"seconds": taken * height / count, "share": count / height}

    def _camera(self, size: int):
        """The first evaluation camera, for pictures of another size; the decoder's latent pixel goes with it."""
        camera = self.pipeline.datamanager.eval_dataset.cameras[0:1].to(self.device)
        factor = (size + 1e-3) / int(max(camera.height.max(), camera.width.max()))
        camera.rescale_output_resolution(factor)
        if self.side.space != "rgb":  # as if it had been trained on such pictures
            self.pipeline.model.set_training_cameras(camera)
        return camera

    @torch.no_grad()
    def psnr(self) -> float:
        """PSNR in dB over some evaluation views; in RGB over some of their pixels."""
        self.pipeline.eval()
        dataset = self.pipeline.datamanager.eval_dataset
        views = [i * len(dataset) // PSNR_VIEWS for i in range(min(PSNR_VIEWS, len(dataset)))]
        errors: List[Tensor] = []
        if self.side.space != "rgb":
            self.pipeline.model.set_training_cameras(self.pipeline.datamanager.train_dataset.cameras)
            for view in views:
                rendered = self.pipeline.model.render(dataset.cameras[view : view + 1]).rgb
                errors.append((rendered.cpu() - dataset.get_image_float32(view)).square().flatten())
        else:
            generator = torch.Generator().manual_seed(0)
            for view in views:
                photo = photo_of(dataset, view)
                rays = dataset.cameras.to(self.device).generate_rays(camera_indices=view, keep_shape=True)
                chosen = torch.randperm(rays.size, generator=generator)[: PSNR_RAYS // len(views)]
                outputs = self.pipeline.model.get_outputs_for_camera_ray_bundle(rays.flatten()[chosen[None]])
                rendered = rendered_rgb(outputs)[0]
                errors.append((rendered.cpu() - photo.view(-1, 3)[chosen]).square().flatten())
        return float(-10 * torch.log10(torch.cat(errors).mean()))

    # Size ----------------------------------------------------------------------------------------------------

    def memory(self) -> Dict[str, float]:
        """Peak memory so far in MiB: of this process, and of the GPU where there is one."""
        scale = 1 if sys.platform == "darwin" else 1024
        result = {"RAM": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20}
        if self.device.type == "cuda":
            result["GPU"] = torch.cuda.max_memory_allocated() / 2**20
        return result

    def checkpoint_size(self) -> float:
        """MiB of a checkpoint, with the optimisers' states."""
        self.trainer.save_checkpoint(self.trainer.step)
        return max(path.stat().st_size for path in self.trainer.checkpoint_dir.glob("*.ckpt")) / 2**20

    def _timed(self, work: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@torch.no_grad()
def occupy_ball(grid: Any) -> None:
    """Occupy what lies in a ball of half the width of an occupancy grid's finest box, a fifteenth of that box."""
    low, high = grid.aabbs[0].view(2, 3)
    size = grid.resolution.to(grid.aabbs)
    for level, box in enumerate(grid.aabbs):
        centres = (grid.grid_coords.to(box) + 0.5) / size * (box[3:] - box[:3]) + box[:3]
        inside = ((centres - (low + high) / 2) / ((high - low) / 4)).norm(dim=-1) < 1
        grid.occs.view(len(grid.aabbs), -1)[level] = inside.float()
        grid.binaries[level] = inside.view(grid.binaries.shape[1:])


def _context() -> Any:
    """Processes that start from one that has imported everything, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "igae_nerfstudio.pipelines.latent_pipeline"])
    with undisturbed():  # ctrl-C is for the parent, which ends them; they take over that it is ignored
        forkserver.ensure_running()
    return context


class Worker:
    """A `SideWorker` in another process: `worker("train", "training", 5.0)` is `train("training", 5.0)` there.

    Raises:
        InputError: it failed, with its last line; the whole trace is in its log.
    """

    def __init__(self, side: Side) -> None:
        context = _context()
        self.side = side
        self.log = side.folder / f"{side.method}-{side.space}-{side.size}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._connection, other = context.Pipe()
        # Not a daemon: some of Nerfstudio's datamanagers start processes of their own.
        self._process = context.Process(target=_serve, args=(side, other, str(self.log)))
        self._process.start()
        other.close()
        self.facts: Dict[str, Any] = {}

    def ready(self) -> Worker:
        """Wait until it can work."""
        self.facts = self.facts or self("facts")
        return self

    def replace(self) -> Worker:
        """A new process in the place of this one, as if nothing had happened."""
        self.close()
        self.__init__(self.side)  # type: ignore[misc]  # of this very class
        return self.ready()

    def __call__(self, command: str, *arguments: Any) -> Any:
        try:
            self._connection.send((command, arguments))
            good, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            good, answer = False, "the process ended (out of memory?)"
        if not good:
            raise InputError(f"{self.log.stem}: {answer}; its log is {self.log}")
        return answer

    def close(self) -> None:
        """End the process."""
        try:
            self._connection.send(("close", ()))
        except (BrokenPipeError, OSError):
            pass
        self._process.join(timeout=10)
        if self._process.is_alive():
            self.kill()

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has gone, or has no group of its own yet
            self._process.kill()
        self._process.join()


def _serve(side: Side, connection: Any, log: str) -> None:
    os.setsid()  # a group of its own
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    worker = None
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            command = "close"
        if command == "close":
            os.killpg(0, signal.SIGKILL)  # with Nerfstudio's data processes, which would outlive an ordinary end
        try:
            worker = worker or SideWorker(side)
            connection.send((True, getattr(worker, command)(*arguments)))
        except BaseException as error:
            traceback.print_exc()
            lines = str(error).splitlines()
            connection.send((False, f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"))
