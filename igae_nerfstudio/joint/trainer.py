"""Training autoencoder, scenes and what they share, in stages (paper, section 4).

    stage 1    E and D frozen, latents of all views encoded once; scenes learn them           (section 4.2)
    stage 2    everything together: L = L_3D(phi, psi, tau) + L_ae(phi, psi)                  (equation 12)

A training is composed: a `JointModel` says how planes are made and what there is to learn, each `Stage` which losses
apply and at which rates. `joint/compositions.py` has the IG-AE, micro/macro scenes and RGB; `joint/fit.py` new scenes.

With several processes (Hugging Face accelerate), each works on its share of a step's views and images; gradients are
averaged, so that any number of processes does what one would.
"""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.muon import Muon, inner_convolutions
from igae_nerfstudio.config_files import differing, to_plain
from igae_nerfstudio.console import log, progress_bar
from igae_nerfstudio.engine.interruption import StopBetweenSteps
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.config import IGAEConfig, Stage1Config, Stage2Config, TrainingConfig
from igae_nerfstudio.joint.model import Batch, JointModel
from igae_nerfstudio.joint.objectives import Losses, Objective, weighted_sum
from igae_nerfstudio.joint.run_log import RunLog
from igae_nerfstudio.joint.scene_data import SceneData
from igae_nerfstudio.scenes.view_schedule import ViewSchedule

FREE_SETTINGS = ("steps_per_log", "steps_per_figure", "minutes_per_checkpoint", "fit", "exploit")
"""How settings begin that a resumed training may change; `exploit` is what `fit` was called before."""


@dataclass
class Stage:
    """A part of a training: what it minimises, on which views, and what learns at which rate."""

    number: int
    """From 1, as in logs, checkpoints and seeds."""
    title: str
    settings: Stage1Config | Stage2Config
    objective: Objective
    schedule: ViewSchedule
    images: bool = False
    """Batches hold pictures and real images; else the latents that were encoded before."""
    before: Callable[[Trainer], None] | None = None
    """Done once when the stage begins; not for the first stage."""
    after: Callable[[Trainer], None] | None = None
    """Done when the stage's last step is."""

    @property
    def steps(self) -> int:
        return self.settings.epochs * self.schedule.steps_per_epoch


class Clock(nn.Module):
    """Seconds (3,) of encoding, stage 1 and stage 2, on the wall and of this process's CPU time, which other work on
    the machine does not lengthen."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = nn.Buffer(torch.zeros(3, dtype=torch.float64))
        self.cpu_seconds = nn.Buffer(torch.zeros(3, dtype=torch.float64))

    @contextmanager
    def timed(self, place: int) -> Iterator[None]:
        """Add what the block takes."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[place] += time.perf_counter() - wall
        self.cpu_seconds[place] += time.process_time() - cpu


@dataclass
class Trainer:
    """Trains stage by stage; run again with the same folder, it goes on where it stopped, as if it had not."""

    config: TrainingConfig
    """Settings, which checkpoints keep."""
    model: JointModel
    data: SceneData
    stages: list[Stage]
    output_dir: Path
    accelerator: Any
    """Of Hugging Face accelerate."""
    run_log: RunLog | None = None
    """Receives losses; None in all but the first process."""
    observe: Callable[[Trainer, Stage, int], None] | None = None
    """Called in the first process after each step, with the stage and the number of its steps that are done."""
    clock: Clock | None = None
    """Kept in checkpoints, if given."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        self.amp = self.config.mixed_precision and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.kept = {**dict(self.model.named_children()), **({} if self.clock is None else {"clock": self.clock})}
        """What checkpoints hold beside codes and optimisers."""
        self._clock = self.clock or Clock()
        self.number, self.step = 1, 0
        """The stage, and how many of its steps are done."""
        self.optimizers = make_optimizers(self.model, self.stages[0].settings)
        self._last_checkpoint = time.monotonic()

    def run(self, begin: Callable[[Trainer], None]) -> None:
        """All stages, from where the last run ended.

        Args:
            begin: fills codes and fits what is to be fitted, where no checkpoint does it.

        Raises:
            KeyboardInterrupt: ctrl-C; the step was finished and its state is kept.
            InputError: the loss is not finite, or the folder holds another training.
        """
        resumed = self._resume()
        if not all(stage.images for stage in self.stages[self.number - 1 :]):
            with self.timed(0):
                self.data.encode_views(self.accelerator, self.quiet)
        if not resumed:
            begin(self)
        with StopBetweenSteps() as interruption:
            for stage in self.stages[self.number - 1 :]:
                if stage.number > self.number:
                    self._enter(stage)
                self._train(stage, interruption)
                if stage.after is not None:
                    stage.after(self)
        self.save_checkpoint()

    def fill_codes(self, code: Callable[[int], Tensor]) -> None:
        """Set the code (L,) of every scene to a function of its index."""
        if self.accelerator.is_local_main_process:
            for scene in range(len(self.data.codes)):
                self.data.codes.fill(scene, code(scene))
        self.accelerator.wait_for_everyone()

    def noise_code(self, scene: int) -> Tensor:
        """The code (L,) of a scene of which nothing is known; the same in every run of one seed."""
        return self.model.shared.initial_code(torch.Generator().manual_seed(1_000_003 * self.config.seed + scene))

    def fit_latents(self, latents: Tensor) -> None:
        """Normalisation, preview and background from latents z of views (n, h, w, c)."""
        moments = isinstance(self.config, IGAEConfig) and self.config.weights.real_latent_moments
        self.model.fit_latents(latents, self.data.some_real_images(self.config.seed) if moments else None)

    def timed(self, place: int) -> Any:
        """Count the block's time as that of encoding (0) or of a stage."""
        return self._clock.timed(place)

    # A step --------------------------------------------------------------------------------------------------

    def train_step(self, stage: Stage, step: int) -> Losses:
        """Losses, gradients over all processes, and one step of every optimiser.

        Returns:
            The stage's terms, unweighted, and `total`.
        """
        self._seed(stage, step)
        self.model.renderer.train()
        batch = self.batch(stage, step)  # x, p, I, and the scenes' planes T
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            losses = stage.objective(self.model, batch)  # L_latent, L_RGB, L_ae, ...: equations 6 to 14
        total = weighted_sum(stage.objective, losses)  # equation 12
        self._stop_at_nan(stage, step, losses, total)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._average_gradients(batch.codes)
        self._update(stage, step, batch)
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def batch(self, stage: Stage, step: int) -> Batch:
        """This process's share of a step's views and real images, and the scenes of all processes."""
        scenes = sorted({group.scene for group in stage.schedule.groups(step)})
        groups = stage.schedule.groups(step, self.rank, self.world)
        batch = self.data.batch(groups, scenes, stage.images, getattr(stage.settings, "rays_per_view", None))
        batch.progress = step / stage.steps
        if isinstance(stage.settings, Stage2Config) and self.data.real is not None:
            real = self.data.real.batch(step, stage.settings.real_per_batch, self.config.seed)
            batch.real = real[self.rank :: self.world].to(self.device)
        return batch

    def _seed(self, stage: Stage, step: int) -> None:
        """Random numbers are a function of seed, stage, step and process: a resumed run draws the same."""
        torch.manual_seed(((self.config.seed * 3 + stage.number) * 100_003 + step) * 1009 + self.rank)

    def _stop_at_nan(self, stage: Stage, step: int, losses: Losses, total: Tensor) -> None:
        if self.device.type == "cuda" and step % 20:  # the check waits for the device
            return
        if bool(torch.isfinite(total)):
            return
        bad = ", ".join(name for name, value in losses.items() if not bool(torch.isfinite(value))) or "their sum"
        kept = newest_checkpoint(self.output_dir)
        where = f"the last good state is kept in {kept}" if kept else "there is no checkpoint yet"
        raise InputError(
            f"the loss became {float(total.detach())} in stage {stage.number} at step {step} ({bad}); {where}. Lower "
            f"the rates of this stage, with another --output-dir"
        )

    def _average_gradients(self, codes: Tensor) -> None:
        if self.world > 1:
            from igae_nerfstudio.engine.processes import average_gradients  # imports Nerfstudio's engine: seconds

            groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
            average_gradients([weight for group in groups for weight in group["params"]] + [codes])

    def _update(self, stage: Stage, step: int, batch: Batch) -> None:
        """All optimisers at the rates of the step's epoch; codes have an Adam of their own, which is on disk."""
        epoch = step // stage.schedule.steps_per_epoch
        factor, rests = self.config.lr_decay**epoch, getattr(stage.settings, "renderer_epochs", None)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                resting = group.get("name") == "renderer" and rests is not None and epoch >= rests
                group["lr"] = 0.0 if resting else factor * group["base_lr"]
            optimizer.step()
        if self.accelerator.is_local_main_process and batch.codes.grad is not None:
            rates = factor * self.model.shared.code_rates(stage.settings)
            self.data.codes.step(batch.scenes, batch.codes.detach(), batch.codes.grad, rates)
        if self.world > 1:  # the codes' file is shared by the processes of a machine
            self.accelerator.wait_for_everyone()

    # Stages --------------------------------------------------------------------------------------------------

    def _enter(self, stage: Stage) -> None:
        self.number, self.step = stage.number, 0
        if stage.before is not None:
            stage.before(self)
        self.optimizers = make_optimizers(self.model, stage.settings)
        self.save_checkpoint()

    def _train(self, stage: Stage, interruption: StopBetweenSteps) -> None:
        if self.step >= stage.steps:
            return
        with progress_bar(stage.title, self.quiet or not self.main) as progress:
            bar = progress.add_task("", total=stage.steps, completed=self.step)
            for step in range(self.step, stage.steps):
                with self.timed(stage.number):
                    losses = self.train_step(stage, step)
                self.step = step + 1
                progress.update(bar, completed=self.step)
                if self.run_log is not None and self.step % self.config.steps_per_log == 0:
                    self.run_log.numbers(stage.number, self.step, {n: float(value) for n, value in losses.items()})
                if self.main and self.observe is not None:
                    self.observe(self, stage, self.step)
                self._save_in_time(interruption.requested)

    def _save_in_time(self, interrupted: bool) -> None:
        """A checkpoint where the first process's clock says so, or any process was interrupted; then all stop."""
        due = self.main and time.monotonic() - self._last_checkpoint > 60 * self.config.minutes_per_checkpoint
        if self.world > 1:
            flags = torch.tensor([due, interrupted], dtype=torch.float32, device=self.device)
            due, interrupted = (bool(flag) for flag in self.accelerator.reduce(flags, reduction="sum"))
        if due or interrupted:
            self.save_checkpoint()
        if interrupted:
            raise KeyboardInterrupt(
                f"stopped by ctrl-C after step {self.step} of stage {self.number}, which is kept in "
                f"{self.output_dir / 'checkpoint'}; the same command goes on from there"
            )

    # Checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """State and codes, in a new folder that takes the place of the last checkpoint when it is complete."""
        self._last_checkpoint = time.monotonic()
        self.accelerator.wait_for_everyone()
        if self.main:
            new, current, old = (self.output_dir / f"checkpoint{end}" for end in (".new", "", ".old"))
            shutil.rmtree(new, ignore_errors=True)
            state = {
                "config": to_plain(self.config),
                "scenes": self.data.views.names,
                "stage": self.number,
                "step": self.step,
                **{name: module.state_dict() for name, module in self.kept.items()},
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "visits": self.data.codes.visits,
            }
            self.data.codes.save(new)
            write_atomically(new / "state.pt", lambda file: torch.save(state, file))
            shutil.rmtree(old, ignore_errors=True)
            if current.exists():
                current.rename(old)
            new.rename(current)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> bool:
        """Take up the last checkpoint; whether there is one."""
        folder = newest_checkpoint(self.output_dir)
        if folder is None:
            if self.run_log is not None:
                self.run_log.rewind(0, 0)  # of a training that died before its first checkpoint
            return False
        try:
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"the checkpoint {folder} cannot be read ({one_line(error)}); move it away to train from the start, or "
                "choose another --output-dir"
            ) from error
        names = differing(state["config"], to_plain(self.config), default=to_plain(type(self.config)()))
        names = [name for name in names if not name.startswith(FREE_SETTINGS)]
        if names or state["scenes"] != self.data.views.names:
            what = f"settings ({', '.join(sorted(names))})" if names else "scenes"
            raise InputError(f"{folder} was made with other {what}; use the same, or another --output-dir")
        for name, module in self.kept.items():
            module.load_state_dict(state.get(name, {}))  # plain planes have no state
        self.number, self.step = state["stage"], state["step"]
        self.optimizers = make_optimizers(self.model, self.stages[self.number - 1].settings)
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        if self.accelerator.is_local_main_process:
            self.data.codes.restore(folder, state["visits"])
        if self.run_log is not None:
            self.run_log.rewind(self.number, self.step)
        if self.main:
            log(f"Going on with stage {self.number} after step {self.step}, from {folder}")
        self.accelerator.wait_for_everyone()
        return True


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint's folder; a kill between two renames leaves the older one under another name."""
    folders = (output_dir / "checkpoint", output_dir / "checkpoint.old")
    return next((folder for folder in folders if (folder / "state.pt").exists()), None)


def make_optimizers(model: JointModel, settings: Stage1Config | Stage2Config) -> list[torch.optim.Optimizer]:
    """Adam for what learns in a stage, codes aside, and what the settings say for the autoencoder's convolutions."""
    groups = [{"name": "renderer", "params": list(model.renderer.parameters()), "lr": settings.renderer_lr}]
    groups += model.shared.groups(settings)
    optimizers: list[torch.optim.Optimizer] = []
    if isinstance(settings, Stage2Config):
        taken: set[int] = set()
        if settings.convolutions_lr is not None:
            convolutions = inner_convolutions(model.autoencoder.module)
            optimizers.append(Muon(convolutions, lr=settings.convolutions_lr))
            taken = {id(weight) for weight in convolutions}
        for half, rate in (("encoder", settings.encoder_lr), ("decoder", settings.decoder_lr)):
            weights = [weight for weight in model.autoencoder.parameters_of(half) if id(weight) not in taken]
            groups.append({"name": half, "params": weights, "lr": rate})
    optimizers.append(torch.optim.Adam(groups, betas=(0.9, 0.99)))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["base_lr"] = group["lr"]
    return optimizers
