"""Nerfstudio's trainer with checkpoints that can always be read back.

Nerfstudio 1.1.5 writes numpy numbers into its checkpoints, which `torch.load` refuses since torch 2.6, and it
writes them in place, so that a process killed while writing leaves a file that nothing can read. Here they
hold plain numbers and tensors, load with `weights_only=True`, and are written atomically. A resumed run also ends where
the uninterrupted one would have, instead of training the whole number of steps again.
"""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Type, cast

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
from igae_nerfstudio.engine.interruption import StopBetweenSteps, StoppedBetweenSteps
from igae_nerfstudio.engine.processes import AveragedOptimizers, same_everywhere
from igae_nerfstudio.engine.progress import PhaseProgress
from igae_nerfstudio.errors import InputError, reported_in_one_line
from igae_nerfstudio.files import append_json_line, keep_json_lines, write_atomically
from igae_nerfstudio.presets import with_quick_settings

if TYPE_CHECKING:
    from igae_nerfstudio.pipelines.latent_pipeline import LatentPipeline, LatentPipelineConfig


def default_device() -> Literal["cuda", "cpu"]:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def ending_of_command() -> AbstractContextManager[None]:
    """`reported_in_one_line` under `ns-train`; from Python an `InputError` passes through as it is."""
    return reported_in_one_line() if Path(sys.argv[0]).stem == "ns-train" else nullcontext()


@dataclass
class SafeTrainerConfig(TrainerConfig):
    """Nerfstudio's trainer settings; trains on the GPU where there is one and else on the CPU."""

    _target: Type = field(default_factory=lambda: SafeTrainer)
    machine: MachineConfig = field(default_factory=lambda: MachineConfig(device_type=default_device()))


class SafeTrainer(Trainer):
    """Writes checkpoints atomically and in plain types, resumes to the same last step, stops at NaN."""

    averages_gradients: ClassVar[bool] = False
    """Whether several processes can train together."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        with ending_of_command():
            self._setup(test_mode)

    def _setup(self, test_mode: Literal["test", "val", "inference"]) -> None:
        if self.world_size > 1 and not self.averages_gradients:
            raise InputError(f"{self.config.method_name} trains on one device; leave --machine.num-devices at 1")
        self.base_dir.mkdir(parents=True, exist_ok=True)  # Nerfstudio's viewer opens its log there
        super().setup(test_mode)

    # Training ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from the first or the resumed step to the last.

        Raises:
            InputError: the loss is no longer finite.
            KeyboardInterrupt: ctrl-C; the step was finished and its state saved, and the message names the checkpoint.
        """
        with ending_of_command():
            self._train()

    def _train(self) -> None:
        whole = self.config
        remaining = whole.max_num_iterations - self._start_step
        if remaining <= 0:
            log(f"Nothing left to train: the checkpoint is at step {self._start_step - 1}, the last one.")
            return
        stop = StopBetweenSteps()
        after_step, after_all = TrainingCallbackLocation.AFTER_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN
        self.callbacks.append(TrainingCallback([after_step], lambda step: stop.check(), 1))
        # With a viewer, Nerfstudio's training does not return: the page stays up until ctrl-C.
        self.callbacks.append(TrainingCallback([after_all], lambda step: stop.release()))
        self.config = replace(whole, max_num_iterations=remaining)  # Nerfstudio counts from the resumed step
        try:
            with stop:
                super().train()
        except StoppedBetweenSteps:
            self.save_checkpoint(self.step)
            raise KeyboardInterrupt(
                f"stopped by ctrl-C: the state after step {self.step} is kept in {self.checkpoint_dir}; go on with the "
                f"same command and --load-dir {self.checkpoint_dir}"
            ) from None
        except KeyboardInterrupt:
            if self.training_state != "completed":
                raise
            log(f"Closed by ctrl-C; the finished run is {self.base_dir}")
        finally:
            self.config = whole
            del self.callbacks[-2:]

    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
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

    def checkpoints(self, folder: Path | None = None) -> list[tuple[int, Path]]:
        """Step and path of every checkpoint in a folder, oldest first."""
        folder = self.checkpoint_dir if folder is None else folder
        found = [(re.fullmatch(r"step-(\d+)\.ckpt", path.name), path) for path in folder.glob("step-*.ckpt")]
        return sorted((int(match[1]), path) for match, path in found if match)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write `step-XXXXXXXXX.ckpt` atomically, then delete older ones if so configured.

        A disk that is full costs this checkpoint, not the training: earlier ones are kept.
        """
        state = to_plain_types(
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

    def resolved(self) -> LatentTrainerConfig:
        """A copy with the pipeline's open settings, the number of steps and the place of the cameras filled in.

        Raises:
            InputError: a setting cannot be used.
        """
        config: Any = replace(self, pipeline=cast("LatentPipelineConfig", self.pipeline).with_file())
        if config.pipeline.preset == "quick":
            config = with_quick_settings(config)
        pipeline = config.pipeline.resolved()
        total = pipeline.schedule().total_steps
        if not 0 <= self.max_num_iterations <= total:
            raise InputError(
                f"--max-num-iterations is {self.max_num_iterations}, but the two phases have {total} steps; leave it "
                "out and set --pipeline.latent-supervision-steps and --pipeline.rgb-alignment-steps"
            )
        datamanager = replace(pipeline.datamanager, scene_record=self.get_base_dir() / "scene.pt")
        return replace(
            config,
            pipeline=replace(pipeline, datamanager=datamanager),
            max_num_iterations=self.max_num_iterations or total,
        )

    def save_config(self) -> None:
        """Nothing yet: the trainer writes `config.yml` once, resolved."""


class LatentTrainer(SafeTrainer):
    """A trainer whose number of steps follows from the two phases, on one device or several.

    The run's folder holds, beside Nerfstudio's files, `metrics.jsonl` (losses and evaluations), `figure.png` (the last
    evaluation image) and `scene.pt` (the cameras), with or without a logger.
    """

    averages_gradients = True
    pipeline: LatentPipeline

    def __init__(self, config: LatentTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.progress: PhaseProgress | None = None
        with ending_of_command():
            super().__init__(config.resolved(), local_rank, world_size)

    def _setup(self, test_mode: Literal["test", "val", "inference"]) -> None:
        super()._setup(test_mode)
        if self.world_size > 1:  # each process has drawn its own first weights
            same_everywhere(v for v in self.pipeline.state_dict().values() if isinstance(v, Tensor) and v.numel())
        if comms.is_main_process():
            self.pipeline.datamanager.save_scene_record()
            text = yaml.dump(self.config)
            write_atomically(self.base_dir / "config.yml", lambda file: file.write(text.encode()))

    def setup_optimizers(self) -> Optimizers:
        if self.world_size == 1:
            return super().setup_optimizers()
        return AveragedOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())

    def _train(self) -> None:
        if comms.is_main_process():  # a resumed run writes its own lines again
            keep_json_lines(self.base_dir / "metrics.jsonl", lambda entry: entry["step"] < self._start_step)
        # A callback, because with a viewer Nerfstudio's training never returns: the page stays up.
        evaluate = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], func=self._evaluate_at_the_end)
        self.callbacks.append(evaluate)
        with PhaseProgress(self.pipeline.schedule, self.config.max_num_iterations - 1) as self.progress:
            super()._train()

    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        loss, losses, metrics = super().train_iteration(step)
        if step % self.config.logging.steps_per_log == 0:
            values = {"loss": loss, **losses, **metrics}
            self._log(step, {name: float(torch.as_tensor(value).detach()) for name, value in values.items()})
        if self.progress is not None and comms.is_main_process():
            self.progress.step_done(step)
        return loss, losses, metrics

    def eval_iteration(self, step: int) -> None:
        """As in Nerfstudio, which evaluates nothing where there is no logger."""
        self.pipeline.last_evaluation = None
        super().eval_iteration(step)
        if self.pipeline.last_evaluation is not None:
            self._keep_evaluation(step)
        elif step_check(step, self.config.steps_per_eval_image):
            self._evaluate_one_image(step)

    def _evaluate_at_the_end(self, step: int) -> None:
        self._evaluate_one_image(step)
        if writer.is_initialized() and self.pipeline.last_evaluation is not None:
            metrics, images = self.pipeline.last_evaluation
            # Nerfstudio has just written the total time one step later; Weights & Biases takes nothing older.
            writer.put_dict(name="Eval Images Metrics", scalar_dict=metrics, step=step + 1)
            for name, image in images.items():
                writer.put_image(name=f"Eval Images/{name}", image=image, step=step + 1)
            writer.write_out_storage()

    def _evaluate_one_image(self, step: int) -> None:
        self.pipeline.get_eval_image_metrics_and_images(step)
        self._keep_evaluation(step)

    @check_main_thread
    def _keep_evaluation(self, step: int) -> None:
        from torchvision.utils import save_image

        assert self.pipeline.last_evaluation is not None
        metrics, images = self.pipeline.last_evaluation
        if self.progress is not None:
            self.progress.psnr = f"PSNR {metrics['psnr']:.2f} dB"
        self._log(step, {f"eval_{name}": value for name, value in metrics.items()})
        picture = images["figure"].permute(2, 0, 1)
        write_atomically(self.base_dir / "figure.png", lambda file: save_image(picture, file, format="png"))

    @check_main_thread
    def _log(self, step: int, values: dict[str, float]) -> None:
        phase = self.pipeline.schedule.phase(step).value
        append_json_line(self.base_dir / "metrics.jsonl", {"step": step, "phase": phase, **values})


def to_plain_types(value: Any) -> Any:
    """Containers and tensors as they are, numpy scalars as Python numbers: what `weights_only=True` accepts."""
    if isinstance(value, dict):
        return {to_plain_types(key): to_plain_types(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain_types(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
