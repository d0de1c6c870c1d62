"""Nerfstudio's trainer with checkpoints that can always be read back.

Nerfstudio 1.1.5 writes numpy numbers into its checkpoints, which `torch.load` refuses since torch 2.6, and it
writes them in place, so that a process killed while writing leaves a file that nothing can read. Here they
hold plain numbers and tensors, load with `weights_only=True`, and appear complete or not at all. A resumed run
also ends where the uninterrupted one would have, instead of training the whole number of steps again.
"""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, List, Literal, Optional, Tuple, Type, cast

import numpy as np
import torch
import yaml
from nerfstudio.configs.experiment_config import MachineConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import comms, writer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.misc import step_check
from torch import Tensor

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.engine.interruption import WholeSteps, stopped, undisturbed
from igae_nerfstudio.engine.port import check_port
from igae_nerfstudio.engine.processes import AveragedOptimizers, same_everywhere
from igae_nerfstudio.engine.progress import PhaseProgress
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import append_json_line, keep_json_lines, write_atomically

if TYPE_CHECKING:
    from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline, LatentPipelineConfig


def default_device() -> Literal["cuda", "cpu"]:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class SafeTrainerConfig(TrainerConfig):
    """Nerfstudio's trainer settings; trains on the GPU where there is one and else on the CPU."""

    _target: Type = field(default_factory=lambda: SafeTrainer)
    machine: MachineConfig = field(default_factory=lambda: MachineConfig(device_type=default_device()))


class SafeTrainer(Trainer):
    """Writes checkpoints atomically and in plain types, resumes to the same last step, stops at NaN."""

    averages_gradients: ClassVar[bool] = False
    """Whether several processes can train together."""

    def total_steps(self) -> int:
        """The number of steps of the whole run, resumed or not."""
        return self.config.max_num_iterations

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        if self.world_size > 1 and not self.averages_gradients:
            raise InputError(f"{self.config.method_name} trains on one device; leave --machine.num-devices at 1")
        if self.config.is_viewer_enabled() and self.config.viewer.websocket_port is not None and self.local_rank == 0:
            check_port(self.config.viewer.websocket_port)
        try:
            super().setup(test_mode)
        except KeyboardInterrupt:
            raise stopped("before the first step: photos that are already encoded stay in the latent cache") from None
        self._watch_steps()

    def _watch_steps(self) -> None:
        """Tell `self.steps` where a step begins, before all other callbacks, and where it ends, after all others."""
        self.steps = WholeSteps()
        self._last_done = self._start_step - 1

        def begin(step: int) -> None:
            self.steps.begin()

        def end(step: int) -> None:
            self._last_done = step
            self.steps.end()

        before, after = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN_ITERATION
        first = TrainingCallback(where_to_run=[before], update_every_num_iters=1, func=begin)
        last = TrainingCallback(where_to_run=[after], update_every_num_iters=1, func=end)
        self.callbacks = [first, *self.callbacks, last]

    # Training ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from the first or the resumed step to the last."""
        remaining = self.total_steps() - self._start_step
        if remaining <= 0:
            log(f"Nothing left to train: the checkpoint is at step {self._start_step - 1}, the last one.")
            return
        configured = self.config.max_num_iterations
        self.config.max_num_iterations = remaining  # Nerfstudio counts from the resumed step
        try:
            with self.steps:
                super().train()
        except KeyboardInterrupt:
            self.config.logging.profiler = "none"  # whose table would stand below the line that is to be read
            if self._last_done + 1 < self.total_steps():
                raise self._stopped() from None
            self._keep_last_step()
            log(f"Closed by ctrl-C; the finished run is {self.base_dir}")
        finally:
            self.config.max_num_iterations = configured

    def _stopped(self) -> SystemExit:
        """Keep the last whole step and name it."""
        self._keep_last_step()
        kept = self.checkpoints()
        if not kept:
            return stopped(f"{self._where()}: no step was done, nothing is kept but the latent cache")
        step, path = kept[-1]
        return stopped(
            f"{self._where()}: the state after step {step} is kept in {path}. Go on with the same command and "
            f"--load-dir {self.checkpoint_dir}"
        )

    def _keep_last_step(self) -> None:
        whole = not self.steps.inside and self._last_done >= self._start_step
        if whole and self._last_done not in [step for step, _ in self.checkpoints()]:
            with undisturbed():
                self.save_checkpoint(self._last_done)

    def _where(self) -> str:
        """Where the training is, for a message."""
        return f"in step {self.step}"

    def train_iteration(self, step: int) -> Tuple[Tensor, Dict[str, Tensor], Dict[str, Tensor]]:
        loss, losses, metrics = super().train_iteration(step)
        # On a GPU the check waits for the device, so it is not made at every step.
        if (self.device == "cpu" or step % 10 == 0) and not bool(torch.isfinite(loss)):
            bad = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
            self._stop_at_nan(f"the loss became {float(loss)} at step {step} ({', '.join(bad) or 'their sum'})")
        return loss, losses, metrics

    def _stop_at_nan(self, what: str) -> None:
        kept = self.checkpoints()
        where = f"the last good checkpoint is {kept[-1][1]}" if kept else "there is no checkpoint yet"
        raise InputError(
            f"{what}; {where}. Lower the learning rate (--pipeline.latent-supervision-lr-factor, "
            "--pipeline.rgb-alignment-lr-factor or --optimizers...) and resume with --load-dir"
        )

    # Checkpoints ---------------------------------------------------------------------------------------------

    def checkpoints(self, folder: Path | None = None) -> List[Tuple[int, Path]]:
        """Step and path of every checkpoint in a folder, oldest first."""
        folder = self.checkpoint_dir if folder is None else folder
        found = [(re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in folder.glob("step-*.ckpt")]
        return sorted((int(match[1]), path) for match, path in found if match)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write `step-XXXXXXXXX.ckpt`, whole or not at all, then delete older ones if so configured."""
        state = plain(
            {
                "step": step,
                "pipeline": self.pipeline.state_dict(),
                "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.optimizers.items()},
                "schedulers": {name: sched.state_dict() for name, sched in self.optimizers.schedulers.items()},
                "scalers": self.grad_scaler.state_dict(),
            }
        )
        for name, value in state["pipeline"].items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                self._stop_at_nan(f"'{name}' is no longer finite at step {step}")
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        try:
            # The unfinished file lies outside the folder in which Nerfstudio takes every name for a checkpoint.
            write_atomically(path, lambda file: torch.save(state, file), scratch=self.base_dir)
        except (OSError, RuntimeError) as error:
            warn(f"No checkpoint at step {step}: {error}; earlier ones are kept. Free some space.")
            return
        if self.config.save_only_latest_checkpoint:
            for _, older in self.checkpoints():
                if older != path:
                    older.unlink(missing_ok=True)

    def _load_checkpoint(self) -> None:
        """Resume from `--load-checkpoint`, or from the newest readable checkpoint of `--load-dir`."""
        if self.config.load_checkpoint is not None:
            candidates = [self.config.load_checkpoint]
        elif self.config.load_dir is not None:
            candidates = [
                path
                for step, path in reversed(self.checkpoints(self.config.load_dir))
                if self.config.load_step is None or step == self.config.load_step
            ]
            if not candidates:
                which = "" if self.config.load_step is None else f" of step {self.config.load_step}"
                raise InputError(
                    f"{self.config.load_dir} holds no checkpoint{which}; pass a run's `nerfstudio_models` folder to "
                    "--load-dir"
                )
        else:
            return
        for path in candidates:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                break
            except Exception as error:
                warn(f"{path} cannot be read ({type(error).__name__}); trying an older one.")
        else:
            raise InputError(f"no checkpoint can be read: {', '.join(map(str, candidates))}")
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        # Some models (TensoRF) hold new parameters after loading; the optimisers must hold those too.
        self.optimizers = self.setup_optimizers()
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        self.grad_scaler.load_state_dict(state["scalers"])
        self._start_step = state["step"] + 1
        self.step = state["step"]
        log(f"Resuming after step {state['step']} from {path}")


@dataclass
class LatentTrainerConfig(SafeTrainerConfig):
    """Trains a latent NeRF through both phases."""

    _target: Type = field(default_factory=lambda: LatentTrainer)
    max_num_iterations: int = 0
    """Stop after this many steps; 0: after both phases (`--pipeline.latent-supervision-steps` and
    `--pipeline.rgb-alignment-steps`)."""


class LatentTrainer(SafeTrainer):
    """A trainer whose number of steps follows from the two phases, on one device or several."""

    averages_gradients = True
    pipeline: LatentPipeline

    def __init__(self, config: LatentTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self._configured_iterations = config.max_num_iterations
        self.progress: Optional[PhaseProgress] = None
        pipeline = cast("LatentPipelineConfig", config.pipeline)
        pipeline.resolve()
        total = pipeline.schedule().total_steps
        if not 0 <= config.max_num_iterations <= total:
            raise InputError(
                f"--max-num-iterations is {config.max_num_iterations}, but the two phases have {total} steps; leave it "
                "out and set --pipeline.latent-supervision-steps and --pipeline.rgb-alignment-steps"
            )
        config.max_num_iterations = config.max_num_iterations or total
        super().__init__(config, local_rank, world_size)

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        super().setup(test_mode)
        if self.world_size > 1:  # each process has drawn its own first weights
            same_everywhere(v for v in self.pipeline.state_dict().values() if isinstance(v, Tensor) and v.numel())
        self._save_scene_record()
        self._save_resolved_config()

    def setup_optimizers(self) -> Optimizers:
        if self.world_size == 1:
            return super().setup_optimizers()
        return AveragedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    def _where(self) -> str:
        return f"in {self.pipeline.phase.value}"

    # What a run leaves to look at, with a logger or without ---------------------------------------------------

    def train(self) -> None:
        """Train through both phases; `metrics.jsonl` and `figure.png` in the run's folder follow the way."""
        last = self._start_step
        self._keep_log(lambda entry: entry["step"] < last)
        # A callback, because with a viewer Nerfstudio's training never returns: the page stays up.
        evaluate = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], func=self._evaluate_at_the_end)
        self.callbacks.append(evaluate)
        with PhaseProgress(self.pipeline.schedule, self.total_steps() - 1) as self.progress:
            super().train()

    def train_iteration(self, step: int) -> Tuple[Tensor, Dict[str, Tensor], Dict[str, Tensor]]:
        loss, losses, metrics = super().train_iteration(step)
        if step % self.config.logging.steps_per_log == 0:
            values = {"loss": loss, **losses, **metrics}
            numbers = {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}
            self._log(step, {"phase": self.pipeline.phase.value, **numbers})
        if self.progress is not None and comms.is_main_process():
            self.progress.update(step)
        return loss, losses, metrics

    def eval_iteration(self, step: int) -> None:
        """As in Nerfstudio, which evaluates nothing where there is no logger."""
        self.pipeline.last_evaluation = None
        super().eval_iteration(step)
        if self.pipeline.last_evaluation is not None:
            self._leave_evaluation(step)
        elif step_check(step, self.config.steps_per_eval_image):
            self._evaluate_one_image(step)

    def _evaluate_at_the_end(self, step: int) -> None:
        if self.stop_training:
            return
        self._evaluate_one_image(step)
        if writer.is_initialized() and self.pipeline.last_evaluation is not None:
            metrics, images = self.pipeline.last_evaluation
            # Nerfstudio has just written the total time one step later; Weights & Biases takes nothing older.
            writer.put_dict(name="Eval Images Metrics", scalar_dict=metrics, step=step + 1)
            for name, image in images.items():
                writer.put_image(name=f"Eval Images/{name}", image=image, step=step + 1)
            writer.write_out_storage()

    def _evaluate_one_image(self, step: int) -> None:
        if len(self.pipeline.datamanager.eval_dataset) and self.pipeline.datamanager.train_split is not None:
            self.pipeline.get_eval_image_metrics_and_images(step)
            self._leave_evaluation(step)

    @check_main_thread
    def _leave_evaluation(self, step: int) -> None:
        from torchvision.utils import save_image

        metrics, images = self.pipeline.last_evaluation
        if self.progress is not None:
            self.progress.psnr = metrics["psnr"]
        self._log(step, {"phase": self.pipeline.phase.value, **{f"eval_{name}": v for name, v in metrics.items()}})
        picture = images["figure"].permute(2, 0, 1)
        try:
            write_atomically(self.base_dir / "figure.png", lambda file: save_image(picture, file, format="png"))
        except OSError as error:
            warn(f"No figure at step {step}: {error}; training goes on.")

    @check_main_thread
    def _log(self, step: int, values: Dict[str, Any]) -> None:
        try:
            append_json_line(self.base_dir / "metrics.jsonl", {"step": step, **values})
        except OSError as error:
            warn(f"metrics.jsonl cannot be written at step {step}: {error}; training goes on.")

    @check_main_thread
    def _keep_log(self, keep: Callable[[Dict[str, Any]], bool]) -> None:
        keep_json_lines(self.base_dir / "metrics.jsonl", keep)

    @check_main_thread
    def _save_scene_record(self) -> None:
        self.pipeline.datamanager.save_scene_record(self.base_dir / "scene.pt")

    @check_main_thread
    def _save_resolved_config(self) -> None:
        """Write `config.yml` again, now with what the autoencoder decided (its architecture, the channel count) and
        where the cameras are kept: the other commands rebuild the run from its folder alone."""
        config = dataclasses.replace(self.config, max_num_iterations=self._configured_iterations)
        text = io.BytesIO(yaml.dump(config).encode())
        write_atomically(self.base_dir / "config.yml", lambda file: file.write(text.getvalue()))


def plain(value: Any) -> Any:
    """Containers and tensors as they are, numpy scalars as Python numbers: what `weights_only=True` accepts."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
