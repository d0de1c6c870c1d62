"""Training a prior over scenes: the joint trainer with two stages of its own, and what it leaves.

    stage 1    the mean scene and the renderer: one scene for all views
    stage 2    the negative ELBO (`prior/elbo.py`)

The autoencoder is frozen; latents of all views are encoded once.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import BUNDLED, load_autoencoder
from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.config_files import to_plain
from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import to_uint8
from igae_nerfstudio.files import job_folder
from igae_nerfstudio.joint.objectives import LatentSupervision
from igae_nerfstudio.joint.run_log import RunLog
from igae_nerfstudio.joint.scene_data import SceneData
from igae_nerfstudio.joint.trainer import Stage, Trainer
from igae_nerfstudio.prior.config import PriorConfig
from igae_nerfstudio.prior.elbo import NegativeElbo
from igae_nerfstudio.prior.model import decoded, prior_model, scenes_of
from igae_nerfstudio.prior.saved import SavedPrior
from igae_nerfstudio.scenes.scene_views import SceneViews
from igae_nerfstudio.scenes.view_schedule import ViewGroup, ViewSchedule

SHOWN_SCENES, DRAWS = 4, 4
"""Rows of a figure, and posterior samples of its deviation."""


def train_prior(
    config: PriorConfig,
    scenes: Path,
    output_dir: Path,
    autoencoder: str = "bundled",
    tensorboard: bool = True,
    wandb: bool = False,
) -> Path:
    """Train a prior over scenes; called again, it goes on where it stopped.

    Args:
        config: settings.
        scenes: folder of scenes in Blender or ShapeNet-SRN format, as `igae render-objects` writes them.
        output_dir: receives checkpoints, metrics.jsonl, figures and the result.
        autoencoder: a folder in diffusers' format, a hub id, `bundled` or `bundled-ae`; it stays as it is.
        tensorboard: write event files.
        wandb: log to Weights & Biases.

    Returns:
        `output_dir`, with `prior.pt`, `prior.json` and `shared.pt`, the prior as a basis for `igae scenes fit`.

    Raises:
        InputError: settings or data cannot be used, or the loss is not finite.
        KeyboardInterrupt: ctrl-C; the last step is kept, and in stage 2 the prior is written as it is.
    """
    with job_folder(output_dir):
        trainer = prior_trainer(config, scenes, output_dir, autoencoder, tensorboard, wandb)
        try:
            trainer.run(begin)
        except KeyboardInterrupt:
            if trainer.main and trainer.number == 2:
                save_prior(trainer, autoencoder)
            raise
        if trainer.main:
            save_prior(trainer, autoencoder)
        if trainer.run_log is not None:
            trainer.run_log.close()
        trainer.accelerator.wait_for_everyone()
    return output_dir


def prior_trainer(
    config: PriorConfig,
    scenes: Path,
    output_dir: Path,
    autoencoder: str,
    tensorboard: bool = False,
    wandb: bool = False,
) -> Trainer:
    """The trainer of `train_prior`."""
    from accelerate import Accelerator

    config.check()
    accelerator, data, cache = Accelerator(), config.data, output_dir / "cache"
    loaded = load_autoencoder(autoencoder)
    if data.view_size % loaded.downscale:
        raise InputError(
            f"the autoencoder's downscale {loaded.downscale} does not divide data.view_size {data.view_size}; take a "
            "multiple"
        )
    with accelerator.local_main_process_first():  # decodes the views once a machine
        open_views = partial(SceneViews.open, limit_scenes=data.max_scenes, limit_views=data.max_views)
        views = open_views(scenes, data.view_size, cache / "views")
    views.check_cameras(config.triplanes.half_extent)
    model = prior_model(config, TrainableAutoencoder(loaded), views.background).to(accelerator.device)
    with accelerator.local_main_process_first():
        scene_data = SceneData(model, views, cache, loaded.encoder_hash[:8])
    first, second = (
        ViewSchedule(scene_data.counts, stage.views_per_batch, stage.views_per_scene, 2 * config.seed + number)
        for number, stage in ((1, config.stage1), (2, config.stage2))
    )
    stages = [
        Stage(1, "Stage 1: the mean scene", config.stage1, LatentSupervision(config.stage1.plane_tv), first),
        Stage(2, "Stage 2: the prior", config.stage2, NegativeElbo(config), second),
    ]
    run_log = RunLog(output_dir, tensorboard, wandb, to_plain(config)) if accelerator.is_main_process else None
    return Trainer(config, model, scene_data, stages, output_dir, accelerator, run_log, observe=show)


def begin(trainer: Trainer) -> None:
    """Normalisation, preview and background from the latents of the views."""
    trainer.model.fit_latents(trainer.data.some_latents())


def save_prior(trainer: Trainer, autoencoder: str) -> None:
    """Write the trained prior, posterior means of its scenes, and its autoencoder, unless the package has that."""
    model, data, output_dir = trainer.model, trainer.data, trainer.output_dir
    most, scenes = max(trainer.config.context), range(data.views.num_scenes)  # type: ignore[attr-defined]
    with torch.no_grad():
        codes = torch.cat([scenes_of(model).encoder(*few_views(data, scene, most)).mean for scene in scenes])
    firsts = data.views.cameras(scenes, [0] * len(scenes)).camera_to_world[..., 3]
    facts = {
        "scenes": data.views.names,
        "views": data.views.total_views,
        "distance": float(firsts.norm(dim=-1).median()),
        "steps": trainer.step,
    }
    name = autoencoder if autoencoder in BUNDLED else ""
    if not name:
        save_autoencoder(output_dir / "autoencoder", model.autoencoder.module)
    saved = SavedPrior(trainer.config, model, codes, name, facts, output_dir)  # type: ignore[arg-type]
    saved.save()
    log(f"The prior is in {output_dir} ({saved.bytes_stored / 1e6:.1f} MB): pass it to --prior")


def few_views(data: SceneData, scene: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the encoder takes of so many views of a scene, evenly spread over its list."""
    views = tuple(sorted({i * data.counts[scene] // count for i in range(count)}))
    return rays_and_latents(data, scene, views)


def rays_and_latents(data: SceneData, scene: int, views: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised latents (1, k, h, w, c), ray origins and directions (1, k, h, w, 3) of views of a scene."""
    batch = data.batch([ViewGroup(scene, views)])
    assert batch.latents is not None
    h, w = batch.sides
    rays = (values.view(1, len(views), h, w, 3) for values in (batch.origins, batch.directions))
    return data.model.normalized(batch.latents)[None], *rays  # type: ignore[return-value]


# --- What a training shows ---


def show(trainer: Trainer, stage: Stage, step: int) -> None:
    """In stage 2, every `steps_per_figure` steps: a figure."""
    if stage.number == 2 and step % trainer.config.steps_per_figure == 0 and trainer.run_log is not None:
        trainer.run_log.figure(stage.number, step, figure_columns(trainer))


@torch.no_grad()
def figure_columns(trainer: Trainer) -> dict[str, list[np.ndarray]]:
    """Columns of a sheet, a row for each shown scene: a context photo, its reconstruction, a new view's photo and
    render, and the deviation of that over the posterior (black: none, white: 1/4 of the range of colours)."""
    data, model, context = trainer.data, trainer.model, sorted(trainer.config.context)  # type: ignore[attr-defined]
    scenes, photos, number = scenes_of(model), context[len(context) // 2], data.views.num_scenes
    model.renderer.eval()
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for scene in sorted({round(i * (number - 1) / (SHOWN_SCENES - 1)) for i in range(SHOWN_SCENES)}):
        last = data.counts[scene] - 1
        posterior = scenes.encoder(*few_views(data, scene, photos))
        _, o, d = rays_and_latents(data, scene, (0, last))
        images, known = data.views.images([scene] * 2, (0, last)), decoded(model, posterior.mean, o, d)
        draws = torch.stack([decoded(model, posterior.sample(), o, d)[1] for _ in range(DRAWS)])
        deviation = draws.std(dim=0).mean(dim=0)
        shown = [images[0], known[0], images[1], known[1], (4 * deviation).expand(3, -1, -1)]
        titles = ("context photo", "reconstruction", "new view, photo", "new view", "deviation")
        for title, image in zip(titles, shown):
            columns[title].append(to_uint8(image.permute(1, 2, 0)))
    return columns
