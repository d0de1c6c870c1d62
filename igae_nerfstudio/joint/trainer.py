"""Training an inverse graphics autoencoder (paper, section 4).

Symbols: x are views of scenes (B, 3, H, W) and I real images, both in [0, 1]; z = E_phi(x) are latents, y = norm(z)
the same normalised (`autoencoder/normalization.py`), in which latents are rendered and compared; T_tau are the
Tri-Planes and R their renderer.

    stage 1    E and D frozen, latents of all views encoded once; Tri-Planes learn them      (section 4.2)
    stage 2    everything together: L = L_3D(phi, psi, tau) + L_ae(phi, psi)                 (equation 12)

With several processes (Hugging Face accelerate), each works on its share of a step's views and images; gradients
are averaged, so that any number of processes does what one would.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Tuple

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, first_line, load_autoencoder
from igae_nerfstudio.autoencoder.muon import Muon, inner_convolutions
from igae_nerfstudio.autoencoder.normalization import LatentNormalizer
from igae_nerfstudio.autoencoder.preview import LatentPreview
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.console import log, warn
from igae_nerfstudio.engine.interruption import STATUS, WholeSteps, stopped, undisturbed
from igae_nerfstudio.errors import DiskFull, InputError
from igae_nerfstudio.files import bytes_text, reserve, why_not_written, write_atomically
from igae_nerfstudio.joint.config import IGAEConfig, Stage1Config, Stage2Config, to_dict
from igae_nerfstudio.joint.export import export_autoencoder
from igae_nerfstudio.joint.latent_basis import consistent_basis, explained_shares
from igae_nerfstudio.joint.losses import PerceptualLoss, moment_shift
from igae_nerfstudio.joint.run_log import RunLog, psnr
from igae_nerfstudio.rendering.total_variation import plane_variation, total_variation
from igae_nerfstudio.rendering.triplanes import TriPlaneRender, TriPlaneRenderer, initial_planes
from igae_nerfstudio.scenes.plane_store import PlaneStore
from igae_nerfstudio.scenes.real_images import RealImages
from igae_nerfstudio.scenes.scene_views import SceneViews
from igae_nerfstudio.scenes.view_schedule import ViewGroup, ViewSchedule

VALIDATION_IMAGES = 200
"""At most so many held-out real images are measured."""

BACKGROUND_RADIUS = 0.15
"""Normalised latents nearer to the background's than this are taken for background."""

CHECKPOINTS = ("checkpoint.new", "checkpoint", "checkpoint.old")
"""Folders of the checkpoint that is being written, the last one, and the one that it replaces."""

Losses = Dict[str, Tensor]
"""Terms by the name of their weight in the config, unweighted."""


@dataclass
class SceneBatch:
    """Views of some scenes, with everything that a step needs of them. G groups of V views, B = G V."""

    scenes: List[int]
    """The distinct scenes of the whole batch, over all processes (U)."""
    own: Tensor
    """(U, ...) what the store holds of these scenes, a leaf that carries gradient."""
    planes: Tensor
    """(U, 3, F, K, K), made of it; here the same tensor."""
    group_scene: List[int]
    """For each group of this process, its place in `scenes`."""
    views: Tensor
    """Flat indices (B,) of this process's views."""
    images: Optional[Tensor]
    """(B, 3, H, W) in [0, 1]; None in stage 1."""
    origins: Tensor
    """(G, V h w, 3)."""
    directions: Tensor
    """(G, V h w, 3)."""
    pixels: Optional[Tensor] = None
    """Places (P,) in a latent image h w, where only some of its rays are in the batch: R = V P, not V h w."""


class IGAETrainer:
    """Both stages, checkpoints and the result.

    Args:
        config: settings.
        scenes_dir: folder of scenes (`SceneViews`).
        images_dir: folder of real images (`RealImages`).
        autoencoder: where to start from.
        output_dir: for everything that comes out; an unfinished training in it goes on.
        accelerator: of Hugging Face accelerate; None makes one for this process.
        tensorboard: write event files.
        wandb: write to Weights & Biases.

    A subclass may make planes of something else than themselves: `own_shape`, `initial_own`, `planes_of` and
    `own_rates` say what the store holds of a scene and how it learns, `shared_groups` what learns beside it.
    """

    STAGES = {1: "Stage 1: Tri-Planes", 2: "Stage 2: Tri-Planes and autoencoder"}
    """Names of the stages, for the terminal."""
    FREE_SETTINGS: Tuple[str, ...] = ("steps_per_log", "steps_per_figure", "minutes_per_checkpoint")
    """How settings begin that a resumed training may change."""

    def __init__(
        self,
        config: IGAEConfig,
        scenes_dir: Path,
        images_dir: Optional[Path],
        autoencoder: AutoencoderConfig,
        output_dir: Path,
        accelerator: Any = None,
        tensorboard: bool = True,
        wandb: bool = False,
    ) -> None:
        from accelerate import Accelerator

        self.config, self.output_dir, self.source = config, output_dir, autoencoder
        self.quiet = False
        self.accelerator = accelerator or Accelerator()
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        self.amp = config.mixed_precision and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        torch.manual_seed(config.seed)

        self.autoencoder, encoder_hash = self.make_autoencoder()
        self.downscale, c = self.autoencoder.downscale, self.autoencoder.latent_channels
        size = config.data.view_size
        if size % self.downscale:
            raise InputError(
                f"the autoencoder's downscale {self.downscale} does not divide data.view_size {size}; choose a multiple"
            )
        with self.accelerator.local_main_process_first():  # decodes the views once a machine
            self.views = self.open_views(scenes_dir)
        self.views.check_cameras(config.triplanes.half_extent)
        name = f"latents-{encoder_hash[:8]}-{self.views.fingerprint[:8]}.f16"
        self._latents_path = output_dir / "cache" / name
        self.real = self._real_images(images_dir)
        self.counts = [self.views.num_views(scene) for scene in range(self.views.num_scenes)]

        self.renderer = TriPlaneRenderer(config.triplanes, c).to(self.device)
        self.normalizer = LatentNormalizer(c, config.latent_normalization).to(self.device)
        self.real_normalizer = LatentNormalizer(c).to(self.device)
        self.preview = LatentPreview(c).to(self.device)
        perceptual = config.weights.real_perceptual and config.weights.real_autoencoding
        self.perceptual = PerceptualLoss().to(self.device) if perceptual else None
        self.make_shared()
        with self.accelerator.local_main_process_first():
            self.planes = PlaneStore(output_dir / "cache" / "planes", (self.views.num_scenes, *self.own_shape()))
        self.log = RunLog(output_dir, tensorboard, wandb, to_dict(config)) if self.main else None
        self.stage, self.step = 1, 0
        self.whole_steps = WholeSteps()
        self._begun = False
        self._saved = (1, 0)
        self.optimizers = self._make_optimizers()
        self._last_checkpoint = time.monotonic()

    def make_autoencoder(self) -> Tuple[TrainableAutoencoder, str]:
        """E and D, and a name of what E computes."""
        loaded = load_autoencoder(self.source).to(self.device)
        return TrainableAutoencoder(loaded), loaded.encoder_hash

    def open_views(self, scenes_dir: Path) -> SceneViews:
        """The training views."""
        data = self.config.data
        return SceneViews.open(
            scenes_dir,
            data.view_size,
            self.output_dir / "cache" / "views",
            limit_scenes=data.max_scenes,
            limit_views=data.max_views,
        )

    # What a scene's planes are made of -----------------------------------------------------------------------

    def make_shared(self) -> None:
        """Make what all scenes share beside the renderer; here there is nothing."""

    def own_shape(self) -> Tuple[int, ...]:
        """Of what the store holds of one scene; here its planes."""
        k, f = self.config.triplanes.resolution, self.config.triplanes.features
        return (3, f, k, k)

    def initial_own(self, generator: torch.Generator) -> Tensor:
        """A new scene, of `own_shape`."""
        return initial_planes(self.config.triplanes, generator)

    def planes_of(self, own: Tensor) -> Tensor:
        """(U, *own_shape) -> (U, 3, F, K, K)."""
        return own

    def own_rates(self) -> float | Tensor:
        """Adam's rate in this stage for what the store holds; a number, or one for each number of `own_shape`."""
        return self.settings.planes_lr

    def shared_groups(self) -> List[Dict[str, Any]]:
        """Parameter groups (name, params, lr) of what `make_shared` made."""
        return []

    def rate(self, group: Dict[str, Any], factor: float, epoch: int) -> float:
        """Of a parameter group in an epoch of this stage, where all rates have come down by `factor`."""
        del epoch
        return factor * group["base_lr"]

    @property
    def settings(self) -> Stage1Config | Stage2Config:
        """Of the stage that runs."""
        return self.config.stage1 if self.stage == 1 else self.config.stage2

    def _real_images(self, folder: Optional[Path]) -> Optional[RealImages]:
        stage, weights = self.config.stage2, self.config.weights
        if not weights.real_autoencoding or not stage.real_per_batch or not stage.epochs:
            return None
        if folder is None:
            raise InputError("--images is missing: a folder of real images (or set weights.real_autoencoding: 0)")
        if stage.real_per_batch % self.world:
            raise InputError(
                f"stage2.real_per_batch is {stage.real_per_batch}, which {self.world} processes cannot share equally"
            )
        real = RealImages.open(folder, self.config.data.view_size, self.config.data.hold_out_every)
        if len(real.train) < stage.real_per_batch:
            raise InputError(
                f"{folder} has fewer real images ({len(real.train)}) than a batch ({stage.real_per_batch}); add some "
                "or lower stage2.real_per_batch"
            )
        return real

    # The run -------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Both stages, from the start or from where the last run ended; returns the autoencoder's folder.

        Raises:
            SystemExit: ctrl-C; the step was finished, its state is kept and named.
        """
        try:
            with self.whole_steps:
                return self._run()
        except KeyboardInterrupt:
            raise self._stopped() from None

    def _run(self) -> Path:
        resumed = self._resume()
        if self.main:
            self._check_room()
        self._encode_all_views()
        if not resumed:
            self._begin()
        self._begun = True
        if self.stage == 1:
            self._run_stage(1)
            self.end_stage(1)
            self.whole_steps.begin()  # between the stages no state is whole
            self.stage, self.step = 2, 0
            if self.config.stage2.latent_rescaling is not None:
                self._rescale_latents(self.config.stage2.latent_rescaling)
            self.optimizers = self._make_optimizers()
            self.save_checkpoint()
            self.whole_steps.end()
        self._run_stage(2)
        self.end_stage(2)
        self.save_checkpoint()
        folder = self.output_dir / "autoencoder"
        if self.main:
            self.export(folder)
            self.log.close()
        self.accelerator.wait_for_everyone()
        return folder

    def _stopped(self) -> SystemExit:
        """Keep the last whole step and name it. One of several processes may be a step ahead of the others, so those
        keep the checkpoint before."""
        if self._begun and not self.whole_steps.inside and self.world == 1:
            with undisturbed():
                self.save_checkpoint()
        if not self.main:
            return SystemExit(STATUS)
        kept, (stage, step) = self._newest_checkpoint(), self._saved
        if kept is None:
            return stopped(f"before the first checkpoint of {self.output_dir}; the same command starts again")
        return stopped(
            f"in stage {self.stage} at step {self.step}: the state after step {step} of stage {stage} is kept in "
            f"{kept}; the same command goes on from there"
        )

    def _check_room(self) -> None:
        """Raises DiskFull where the training's checkpoints have no room: a new one is written beside the last."""
        folders = [self.output_dir / name for name in CHECKPOINTS]
        there = sum(path.stat().st_size for folder in folders for path in folder.glob("*"))
        needed = max(0, 2 * self.checkpoint_bytes() - there)
        free = shutil.disk_usage(self.output_dir).free
        if needed > free:
            raise DiskFull(
                f"the checkpoints of this training take {bytes_text(needed)} and {self.output_dir} has "
                f"{bytes_text(free)} left; free some space and run the same command again, or choose another "
                "--output-dir"
            )

    def checkpoint_bytes(self) -> int:
        """About so many bytes has a checkpoint: scenes, weights, and two moments of what learns."""
        modules = self.modules()
        weights = sum(value.numel() for module in modules.values() for value in module.state_dict().values())
        if not self.config.stage2.epochs:
            modules.pop("autoencoder")
        parameters = [value for module in modules.values() for value in module.parameters()]
        learning = sum(value.numel() for value in parameters if value.requires_grad)
        return 4 * (3 * math.prod(self.planes.shape) + weights + 2 * learning)

    def export(self, folder: Path) -> None:
        """Write the result; `folder` is the autoencoder's."""
        export_autoencoder(folder, self.autoencoder.module, self.config, self.source, self.views, self.validate())
        log(f"The autoencoder is in {folder}: pass it to --pipeline.autoencoder.name-or-path")

    def end_stage(self, stage: int) -> None:
        """Called when a stage's steps are done, before anything else; here there is nothing to do."""

    def _begin(self) -> None:
        """New planes, and everything that stays fixed: normalisation and preview of the latents."""
        self._fit_to(self._some_latents())
        if self.accelerator.is_local_main_process:
            for scene in range(len(self.planes)):
                generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + scene)
                self.planes.fill(scene, self.initial_own(generator))
        self.accelerator.wait_for_everyone()

    def _some_latents(self) -> Tensor:
        """Latents (n, h, w, c) of about 2,000 views, as stage 1 has them."""
        return self._latents[:: max(1, len(self._latents) // 2000)].permute(0, 2, 3, 1).to(self.device).float()

    def _fit_to(self, latents: Tensor) -> None:
        """Normalisation and preview of these latents (n, h, w, c), and the background's."""
        self.normalizer.fit(latents)
        self.preview.fit(self.normalizer.normalize(latents))
        self._fit_real_normalizer()
        self._set_background()

    @torch.no_grad()
    def _fit_real_normalizer(self) -> None:
        if self.real is None or not self.config.weights.real_latent_moments:
            return
        count = self.config.stage2.real_per_batch
        batches = [self.real.batch(step, count, self.config.seed) for step in range(-(-200 // count))]
        latents = torch.cat([self.autoencoder.encode(images.to(self.device)) for images in batches])
        self.real_normalizer.fit(latents.permute(0, 2, 3, 1))

    @torch.no_grad()
    def _rescale_latents(self, smallest: float) -> None:
        """Change autoencoder, normalisation and renderer so that what the Tri-Planes explain counts most; renders and
        autoencoded images stay what they are."""
        shares, directions = explained_shares(*self._latents_on_objects())
        matrix = consistent_basis(shares, directions, smallest).to(self.device)  # of y - 1/2
        matrix = self.accelerator.reduce(matrix, reduction="mean")  # the same to the last bit in all processes
        old = 4 * self.normalizer.std.double()
        self.autoencoder.change_basis(matrix / old)  # of z
        self._fit_to(self._some_latents() @ (matrix / old).float().T)
        self.renderer.change_latents((matrix.T / (4 * self.normalizer.std.double())).T)
        if self.main:
            log(f"Share of the variance of latents explained, by direction: {', '.join(f'{s:.2f}' for s in shares)}")

    def _latents_on_objects(self) -> Tuple[Tensor, Tensor]:
        """Encoded and rendered latents (n, c), normalised, of a few views of every scene, away from the background."""
        self.renderer.eval()
        encoded, rendered = [], []
        for scene, count in enumerate(self.counts):
            batch = self._scene_batch([ViewGroup(scene, tuple(range(0, count, max(1, count // 4))[:4]))], [scene])
            render = self.render(batch)
            y = self._normalized(self._latents[batch.views].to(self.device)).reshape(render.latents.shape)
            there = (y - self.renderer.composite.background).norm(dim=-1) > BACKGROUND_RADIUS
            encoded.append(y[there])
            rendered.append(render.latents[there])
        return torch.cat(encoded), torch.cat(rendered)

    def _run_stage(self, stage: int) -> None:
        schedule, total = self.schedule(stage), self.steps(stage)
        if self.step >= total:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *times, disable=self.quiet or not self.main) as progress:
            task = progress.add_task(self.STAGES[stage], total=total, completed=self.step)
            while self.step < total:
                self.whole_steps.begin()
                losses = self.train_step(schedule.groups(self.step, self.rank, self.world), schedule)
                self.step += 1
                self.whole_steps.end()
                self._report(losses, progress)
                progress.update(task, completed=self.step)

    def _report(self, losses: Losses, progress: Progress) -> None:
        """Numbers, figures and checkpoints, each when it is time."""
        config = self.config
        if self.step % config.steps_per_log == 0 and self.main:
            values = {name: float(value) for name, value in losses.items()}
            self.log.numbers(self.stage, self.step, values)
        if self.stage == 2 and self.step % config.steps_per_figure == 0 and self.main:
            numbers = self.validate()
            self.log.numbers(self.stage, self.step, {f"validation_{name}": value for name, value in numbers.items()})
            self.log.figure(self.stage, self.step, self.figure_rows())
            progress.console.print(
                f"step {self.step}: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
            )
        due = time.monotonic() - self._last_checkpoint > 60 * config.minutes_per_checkpoint
        if self.world > 1:  # all processes save together, when the first one's clock says so
            due = bool(self.accelerator.reduce(torch.tensor(float(due and self.main), device=self.device)))
        if due:
            self.save_checkpoint()

    def schedule(self, stage: int) -> ViewSchedule:
        """The order of views in a stage."""
        settings = self.config.stage1 if stage == 1 else self.config.stage2
        seed = 2 * self.config.seed + stage
        return ViewSchedule(self.counts, settings.views_per_batch, settings.views_per_scene, seed)

    def steps(self, stage: int) -> int:
        """Number of steps of a stage."""
        settings = self.config.stage1 if stage == 1 else self.config.stage2
        return settings.epochs * self.schedule(stage).steps_per_epoch

    # A step --------------------------------------------------------------------------------------------------

    def train_step(self, groups: List[ViewGroup], schedule: ViewSchedule) -> Losses:
        """Losses, gradients over all processes, and one step of every optimiser."""
        torch.manual_seed(((self.config.seed * 3 + self.stage) * 100_003 + self.step) * 1009 + self.rank)
        self.renderer.train()
        everyone = schedule.groups(self.step)
        batch = self._scene_batch(groups, sorted({group.scene for group in everyone}))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            if self.stage == 1:
                losses, weights = self.stage1_losses(batch), self._stage1_weights()
            else:
                losses, weights = {**self.scene_losses(batch), **self.real_losses()}, self._stage2_weights()
        total: Tensor = sum((weights[name] * value for name, value in losses.items()), start=torch.zeros(()))
        self._stop_at_nan(total, losses)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        self._average_gradients(batch.own)
        epoch = self.step // schedule.steps_per_epoch
        factor = self.config.lr_decay**epoch
        for group in self._parameter_groups(self.optimizers):
            group["lr"] = self.rate(group, factor, epoch)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.accelerator.is_local_main_process and batch.own.grad is not None:
            self.planes.step(batch.scenes, batch.own.detach(), batch.own.grad, factor * self.own_rates())
        if self.world > 1:  # the planes' file is shared by the processes of a machine
            self.accelerator.wait_for_everyone()
        return {name: value.detach() for name, value in {**losses, "total": total}.items()}

    def stage1_losses(self, batch: SceneBatch) -> Losses:
        """Rendered against cached latents; E and D rest."""
        encoded = self._latents[batch.views]
        if batch.pixels is not None:
            encoded = encoded.flatten(2)[:, :, batch.pixels, None]
        encoded = encoded.to(self.device).float()
        rendered = self.render(batch)
        target = self._normalized(encoded)
        return {"latent": F.mse_loss(rendered.latents, self._like(target, rendered)), **self._plane_tv(batch)}

    def scene_losses(self, batch: SceneBatch) -> Losses:
        """L_3D and L_ae (synth) on views of scenes (equations 5 to 9).

        `latent` has gradients to phi and tau, `rgb` to psi and tau, `scene_autoencoding` to phi and psi,
        `plane_tv` to the planes.
        """
        weights, losses = self.config.weights, {}
        self._set_background()
        latents = None
        if weights.latent or weights.scene_autoencoding:
            latents = self.autoencoder.encode(batch.images, sample=self.config.sample_posterior)  # z = E(x)
        rendered = self.render(batch) if weights.latent or weights.rgb else None  # y~ = R(T, p)
        if weights.latent:
            losses["latent"] = F.mse_loss(rendered.latents, self._like(self._normalized(latents), rendered))
        if weights.rgb:
            losses["rgb"] = F.mse_loss(self.decode_render(rendered, len(batch.images)), batch.images)
        if weights.scene_autoencoding:
            losses["scene_autoencoding"] = F.mse_loss(self.autoencoder.decode(latents).float(), batch.images)
        return {**losses, **self._plane_tv(batch)}

    def real_losses(self) -> Losses:
        """L_ae (real), equation 10, to phi and psi."""
        if self.real is None:
            return {}
        settings, weights = self.config.stage2, self.config.weights
        images = self.real.batch(self.step, settings.real_per_batch, self.config.seed)[self.rank :: self.world]
        images = images.to(self.device)
        latents = self.autoencoder.encode(images, sample=self.config.sample_posterior)
        decoded = self.autoencoder.decode(latents).float()
        losses = {"real_autoencoding": F.mse_loss(decoded, images)}
        if self.perceptual is not None:
            losses["real_perceptual"] = self.perceptual(decoded, images)
        if weights.real_latent_tv:
            losses["real_latent_tv"] = total_variation(self._normalized(latents).permute(0, 3, 1, 2), 2, 1)
        if weights.real_latent_moments:
            losses["real_latent_moments"] = moment_shift(self.real_normalizer.normalize(latents.permute(0, 2, 3, 1)))
        return losses

    def _stage1_weights(self) -> Dict[str, float]:
        return {"latent": 1.0, "plane_tv": self.config.stage1.plane_tv}

    def _stage2_weights(self) -> Dict[str, float]:
        w = self.config.weights
        real = w.real_autoencoding  # the lambda in front of the whole of equation 10
        return {
            "latent": w.latent,
            "rgb": w.rgb,
            "scene_autoencoding": w.scene_autoencoding,
            "plane_tv": w.plane_tv,
            "real_autoencoding": real,
            "real_perceptual": real * w.real_perceptual,
            "real_latent_tv": real * w.real_latent_tv,
            "real_latent_moments": w.real_latent_moments,
        }

    def _plane_tv(self, batch: SceneBatch) -> Losses:
        weight = self.config.stage1.plane_tv if self.stage == 1 else self.config.weights.plane_tv
        return {"plane_tv": plane_variation(batch.planes)} if weight else {}

    # Renders -------------------------------------------------------------------------------------------------

    def render(self, batch: SceneBatch) -> TriPlaneRender:
        """y~ of the batch's views: latents (G, V h w, c)."""
        place = torch.as_tensor(batch.group_scene, device=self.device)
        return self.renderer(batch.planes[place], batch.origins, batch.directions)

    def decode_render(self, rendered: TriPlaneRender, views: int) -> Tensor:
        """x~ = D(z~), (B, 3, H, W) about [0, 1]."""
        side = self.config.data.view_size // self.downscale
        latents = self.normalizer.denormalize(rendered.latents).reshape(views, side, side, -1)
        return self.autoencoder.decode(latents.permute(0, 3, 1, 2)).float()

    def _normalized(self, latents: Tensor) -> Tensor:
        """z (B, c, h, w) -> y (B, h, w, c)."""
        return self.normalizer.normalize(latents.permute(0, 2, 3, 1).float())

    @staticmethod
    def _like(encoded: Tensor, rendered: TriPlaneRender) -> Tensor:
        """y (B, h, w, c) in the shape (G, V h w, c) of a render."""
        return encoded.reshape(rendered.latents.shape)

    def _set_background(self) -> None:
        """The latent background: what E now makes of the views' background colour."""
        colour = self.autoencoder.encode_colour(torch.as_tensor(self.views.background, dtype=torch.float32))
        self.renderer.set_background(self.normalizer.normalize(colour))

    def _scene_batch(self, groups: List[ViewGroup], scenes: List[int]) -> SceneBatch:
        scene_of_view = torch.tensor([group.scene for group in groups for _ in group.views])
        views = torch.tensor([view for group in groups for view in group.views])
        cameras = self.views.cameras(scene_of_view, views)
        origins, directions = (rays.to(self.device) for rays in cameras.latent_rays(self.downscale))
        images = None
        if self.stage == 2:
            images = self.views.images(scene_of_view, views).to(self.device)
        pixels = self.some_pixels(origins.shape[1] * origins.shape[2])
        if pixels is not None:
            origins, directions = (rays.flatten(1, 2)[:, pixels] for rays in (origins, directions))
        shape = (len(groups), -1, 3)
        own = self.planes.load(scenes, self.device).requires_grad_(True)
        return SceneBatch(
            scenes=scenes,
            own=own,
            planes=self.planes_of(own),
            group_scene=[scenes.index(group.scene) for group in groups],
            views=self.views.flat_index(scene_of_view, views),
            images=images,
            origins=origins.reshape(shape),
            directions=directions.reshape(shape),
            pixels=pixels,
        )

    def some_pixels(self, count: int) -> Optional[Tensor]:
        """Which of the `count` pixels of every latent image a batch has; None: all."""
        del count
        return None

    # Latents of all views ------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode_all_views(self) -> None:
        """The latents (V, c, h, w) of stage 1, in a memory-mapped file; encoded once a machine."""
        side = self.config.data.view_size // self.downscale
        shape = (self.views.total_views, self.autoencoder.latent_channels, side, side)
        path, count = self._latents_path, math.prod(shape)
        if self.stage == 1 and self.accelerator.is_local_main_process and not path.exists():
            part = path.with_suffix(".part")
            try:
                reserve(part, 2 * count)
            except OSError as error:
                raise DiskFull(
                    f"the latents of all views take {bytes_text(2 * count)} and {part.parent} has "
                    f"{bytes_text(shutil.disk_usage(part.parent).free)} left ({error.strerror or error}); free some "
                    "space and run the same command again, or take fewer scenes or views"
                ) from error
            latents = torch.from_file(str(part), shared=True, size=count, dtype=torch.float16).view(shape)
            flat = [(scene, view) for scene, number in enumerate(self.counts) for view in range(number)]
            with Progress(disable=self.quiet or not self.main) as progress:
                for start in progress.track(range(0, len(flat), 32), description="Encoding views"):
                    scenes, views = torch.tensor(flat[start : start + 32]).T
                    encoded = self.autoencoder.encode(self.views.images(scenes, views).to(self.device))
                    latents[self.views.flat_index(scenes, views)] = encoded.half().cpu()
            os.replace(part, path)
        self.accelerator.wait_for_everyone()
        if path.exists():
            self._latents = torch.from_file(str(path), shared=False, size=count, dtype=torch.float16).view(shape)

    # Optimisers and processes --------------------------------------------------------------------------------

    def _make_optimizers(self) -> List[torch.optim.Optimizer]:
        """Adam, and for the autoencoder's convolutions whatever the config says; the planes have their own Adam
        (`PlaneStore`)."""
        settings = self.settings
        groups = [{"name": "renderer", "params": list(self.renderer.parameters()), "lr": settings.renderer_lr}]
        groups += self.shared_groups()
        optimizers: List[torch.optim.Optimizer] = []
        if self.stage == 2:
            convolutions: List[nn.Parameter] = []
            stage2 = self.config.stage2
            if stage2.convolutions_lr is not None:
                convolutions = inner_convolutions(self.autoencoder.module)
                optimizers.append(Muon(convolutions, lr=stage2.convolutions_lr))
            taken = {id(weight) for weight in convolutions}
            halves: Tuple[Tuple[Literal["encoder", "decoder"], float], ...]
            halves = (("encoder", stage2.encoder_lr), ("decoder", stage2.decoder_lr))
            for half, lr in halves:
                params = [weight for weight in self.autoencoder.parameters_of(half) if id(weight) not in taken]
                groups.append({"name": half, "params": params, "lr": lr})
        optimizers.append(torch.optim.Adam(groups, betas=(0.9, 0.99)))
        for group in self._parameter_groups(optimizers):
            group["base_lr"] = group["lr"]
        return optimizers

    @staticmethod
    def _parameter_groups(optimizers: List[torch.optim.Optimizer]) -> Iterator[Dict[str, Any]]:
        return (group for optimizer in optimizers for group in optimizer.param_groups)

    def _average_gradients(self, own: Tensor) -> None:
        """The mean of all processes' gradients, of shared parameters and of the batch's scenes, in one message."""
        if self.world == 1:
            return
        tensors = [p for group in self._parameter_groups(self.optimizers) for p in group["params"]] + [own]
        flat = torch.cat([(t.grad if t.grad is not None else torch.zeros_like(t)).flatten() for t in tensors])
        flat = self.accelerator.reduce(flat, reduction="mean")
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors])):
            tensor.grad = part.view_as(tensor).clone()

    def _stop_at_nan(self, total: Tensor, losses: Losses) -> None:
        if self.device.type == "cuda" and self.step % 20:  # the check waits for the device
            return
        if bool(torch.isfinite(total)):
            return
        bad = [name for name, value in losses.items() if not bool(torch.isfinite(value))]
        kept = self._newest_checkpoint()
        where = f"the last good state is kept in {kept}" if kept else "there is no checkpoint yet"
        raise InputError(
            f"the loss became {float(total)} in stage {self.stage} at step {self.step} "
            f"({', '.join(bad) or 'their sum'}); {where}. "
            f"Lower the rates of stage{self.stage} and run the same command again"
        )

    # Checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """State and planes, whole or not at all: a new folder takes the place of the old one."""
        self._last_checkpoint = time.monotonic()
        self.accelerator.wait_for_everyone()
        if self.main:
            new, current, old = (self.output_dir / name for name in CHECKPOINTS)
            shutil.rmtree(new, ignore_errors=True)
            state = {
                "config": to_dict(self.config),
                "scenes": self.views.names,
                "stage": self.stage,
                "step": self.step,
                **{name: module.state_dict() for name, module in self.modules().items()},
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "visits": self.planes.visits,
            }
            try:
                self.planes.save(new)
                write_atomically(new / "state.pt", lambda file: torch.save(state, file))
                shutil.rmtree(old, ignore_errors=True)
                if current.exists():
                    current.rename(old)
                new.rename(current)
                shutil.rmtree(old, ignore_errors=True)
                self._saved = (self.stage, self.step)
            except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
                shutil.rmtree(new, ignore_errors=True)
                reason = why_not_written(error)
                if reason is None and not isinstance(error, OSError):
                    raise
                warn(
                    f"No checkpoint at step {self.step} of stage {self.stage} in {self.output_dir} "
                    f"({reason or error}); earlier ones are kept, and the training goes on. Free "
                    f"{bytes_text(self.checkpoint_bytes())}."
                )
        self.accelerator.wait_for_everyone()

    def modules(self) -> Dict[str, nn.Module]:
        """Everything whose state is in a checkpoint, scenes and optimisers aside."""
        names = ("autoencoder", "renderer", "normalizer", "real_normalizer", "preview")
        return {name: getattr(self, name) for name in names}

    def _newest_checkpoint(self) -> Optional[Path]:
        """The checkpoint's folder; a kill between two renames leaves the older one under another name."""
        for name in ("checkpoint", "checkpoint.old"):
            if (self.output_dir / name / "state.pt").exists():
                return self.output_dir / name
        return None

    def _resume(self) -> bool:
        folder = self._newest_checkpoint()
        if folder is None:
            return False
        try:
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            self._check_same(folder, state)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(
                f"the checkpoint {folder} cannot be read ({reason}); move it away to train from the start, or choose "
                "another --output-dir"
            ) from error
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.stage, self.step = self._saved = state["stage"], state["step"]
        self.optimizers = self._make_optimizers()
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        if self.accelerator.is_local_main_process:
            self.planes.restore(folder, state["visits"])
        if self.main:
            self.log.rewind(self.stage, self.step)
            log(f"Going on with stage {self.stage} after step {self.step}, from {folder}")
        self.accelerator.wait_for_everyone()
        return True

    def _check_same(self, folder: Path, state: Dict[str, Any]) -> None:
        """Raises InputError where the checkpoint belongs to another configuration or other scenes."""
        differing = sorted(set(_flat(state["config"]).items()) ^ set(_flat(to_dict(self.config)).items()), key=str)
        keys = sorted({key for key, _ in differing if not key.startswith(self.FREE_SETTINGS)})
        if keys:
            raise InputError(
                f"{folder} was made with other settings ({', '.join(keys)}); use the same config, or another "
                "--output-dir"
            )
        if state["scenes"] != self.views.names:
            raise InputError(f"{folder} was made with other scenes; use the same --scenes, or another --output-dir")

    # Looking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> Dict[str, float]:
        """PSNR in dB: held-out real images through the autoencoder; views through it; decoded renders; latents."""
        result: Dict[str, List[float]] = defaultdict(list)
        if self.real is not None:
            for images in self.real.validation_batch(limit=VALIDATION_IMAGES).split(10):
                images = images.to(self.device)
                decoded = self.autoencoder.decode(self.autoencoder.encode(images)).float().clamp(0, 1)
                result["real_psnr"] += psnr(decoded, images).tolist()
        for view in self._shown_views():
            result["view_psnr"].append(float(psnr(view["autoencoded"], view["image"])[0]))
            result["render_psnr"].append(float(psnr(view["decoded"], view["image"])[0]))
            result["latent_psnr"].append(float(psnr(view["rendered"], view["encoded"])[0]))
        return {name: sum(values) / len(values) for name, values in result.items()}

    @torch.no_grad()
    def _shown_views(self) -> Iterator[Dict[str, Tensor]]:
        """The first view of up to four scenes, in every form; pictures (1, 3, H, W), latents (1, c, h, w)."""
        self.renderer.eval()
        stage, self.stage = self.stage, 2
        number = self.views.num_scenes
        for scene in sorted({round(i * (number - 1) / 3) for i in range(4)}):
            batch = self._scene_batch([ViewGroup(scene, (0,))], [scene])
            latents = self.autoencoder.encode(batch.images)
            rendered = self.render(batch)
            encoded = self._normalized(latents)
            yield {
                "image": batch.images,
                "autoencoded": self.autoencoder.decode(latents).float().clamp(0, 1),
                "encoded": encoded.permute(0, 3, 1, 2),
                "rendered": rendered.latents.reshape(encoded.shape).permute(0, 3, 1, 2),
                "decoded": self.decode_render(rendered, 1).clamp(0, 1),
            }
        self.stage = stage

    def figure_rows(self) -> List[List[Tensor]]:
        """For each shown view: photo, autoencoded, latent of the view, rendered latent, decoded render; (H, W, 3)."""
        rows = []
        for view in self._shown_views():
            previews = [self.preview(view[name][0].permute(1, 2, 0)) for name in ("encoded", "rendered")]
            previews = [p.repeat_interleave(self.downscale, 0).repeat_interleave(self.downscale, 1) for p in previews]
            pictures = [view[name][0].permute(1, 2, 0) for name in ("image", "autoencoded", "decoded")]
            rows.append([picture.float().cpu() for picture in (*pictures[:2], *previews, pictures[2])])
        return rows


def _flat(entries: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    result: Dict[str, Any] = {}
    for key, value in entries.items():
        result.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return result
