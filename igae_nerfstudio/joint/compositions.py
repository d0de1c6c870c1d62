"""The joint trainings, composed: which autoencoder, how planes are made, and which losses apply.

    IG-AE          an autoencoder, plain planes                    `train_igae`
    micro/macro    an autoencoder, planes with a shared basis      `train_scenes`
    RGB            no autoencoder, stage 1 alone, on colours       `train_scenes` with `space: rgb`

Each is a `JointModel` and two `Stage`s for one `Trainer`, which `parts_of` and `two_stages` choose.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator

from igae_nerfstudio import __version__
from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig, load_autoencoder
from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.autoencoder.trainable import IdentityAutoencoder, TrainableAutoencoder
from igae_nerfstudio.config_files import to_plain
from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import job_folder
from igae_nerfstudio.joint.config import IGAEConfig, ManyScenesConfig
from igae_nerfstudio.joint.latent_basis import rescale_latents
from igae_nerfstudio.joint.model import JointModel
from igae_nerfstudio.joint.objectives import JointObjective, LatentSupervision
from igae_nerfstudio.joint.results import SharedBasis, scene_state, write_json, write_scene
from igae_nerfstudio.joint.run_log import RunLog
from igae_nerfstudio.joint.scene_data import SceneData
from igae_nerfstudio.joint.scene_parameters import PlainPlanes, SceneParameters, scene_parameters
from igae_nerfstudio.joint.trainer import Stage, Trainer
from igae_nerfstudio.joint.validation import log_validation, validate
from igae_nerfstudio.metrics import PerceptualLoss
from igae_nerfstudio.scenes.real_images import RealImages
from igae_nerfstudio.scenes.scene_views import SceneViews
from igae_nerfstudio.scenes.view_schedule import ViewSchedule


def train_igae(
    config: IGAEConfig,
    scenes: Path,
    images: Path | None,
    output_dir: Path,
    autoencoder: str | AutoencoderConfig = "bundled-ae",
    tensorboard: bool = True,
    wandb: bool = False,
) -> Path:
    """Train an inverse graphics autoencoder (paper, section 4); called again, it goes on where it stopped.

    Args:
        config: settings; the defaults are the paper's.
        scenes: folder of scenes in Blender or ShapeNet-SRN format.
        images: folder of real images; None where `weights.real_autoencoding` is 0.
        output_dir: receives checkpoints, metrics.jsonl, figures and the result.
        autoencoder: what to start from: a folder in diffusers' format, a hub id, `bundled-ae` or `bundled`.
        tensorboard: write event files.
        wandb: log to Weights & Biases.

    Returns:
        The folder of the trained autoencoder, in diffusers' format.

    Raises:
        InputError: settings or data cannot be used, or the loss is not finite.
        KeyboardInterrupt: ctrl-C; the last step is kept.
    """
    folder = output_dir / "autoencoder"
    with trained(config, scenes, images, output_dir, autoencoder, tensorboard, wandb) as trainer:
        if trainer.main:
            export_autoencoder(folder, trainer, autoencoder, validate(trainer.data))
            log(f"The autoencoder is in {folder}: pass it to --pipeline.autoencoder.name-or-path")
    return folder


def train_scenes(
    config: ManyScenesConfig,
    scenes: Path,
    images: Path | None,
    output_dir: Path,
    autoencoder: str | AutoencoderConfig = "bundled",
    tensorboard: bool = True,
    wandb: bool = False,
) -> Path:
    """Train an autoencoder, a shared basis and scenes together; called again, it goes on where it stopped.

    Arguments and errors are those of `train_igae`.

    Returns:
        `output_dir`, with `autoencoder/` (latent scenes), `shared.pt` and `scenes/NAME/scene.pt` (`joint/results.py`).
    """
    with trained(config, scenes, images, output_dir, autoencoder, tensorboard, wandb) as trainer:
        data = trainer.data
        if trainer.main:
            measured, sizes = validate(data), {}
            if config.space == "latent":
                export_autoencoder(output_dir / "autoencoder", trainer, autoencoder, measured)
            basis = SharedBasis.of(trainer.model, config, data.codes, data.views.names, output_dir)
            basis.save()
            for scene, name in enumerate(basis.scenes):
                state = scene_state(name, data.codes.load([scene])[0], trainer.model, config)
                sizes = write_scene(output_dir / "scenes" / name, state, output_dir)
            numbers = {"bytes_shared": basis.bytes_shared, "bytes_per_scene": sum(sizes.values())}
            write_json(output_dir / "training.json", {"scenes": basis.scenes, "psnr": measured, **numbers})
            log(f"{len(basis.scenes)} scenes and what they share are in {output_dir}: pass it to --shared")
    return output_dir


@contextmanager
def trained(config: IGAEConfig, scenes: Path, images: Path | None, output_dir: Path, *more: Any) -> Iterator[Trainer]:
    """A trainer whose training is done, while its result is written; arguments are those of `train_igae`."""
    with job_folder(output_dir):
        trainer = joint_trainer(config, scenes, images, output_dir, *more)
        trainer.run(begin)
        yield trainer
        if trainer.run_log is not None:
            trainer.run_log.close()
        trainer.accelerator.wait_for_everyone()


def begin(trainer: Trainer) -> None:
    """New scenes, and normalisation, preview and background from the latents of their views."""
    trainer.fit_latents(trainer.data.some_latents())
    trainer.fill_codes(trainer.noise_code)


def joint_trainer(
    config: IGAEConfig,
    scenes: Path,
    images: Path | None,
    output_dir: Path,
    autoencoder: str | AutoencoderConfig,
    tensorboard: bool = False,
    wandb: bool = False,
) -> Trainer:
    """The trainer of an IG-AE, of micro/macro scenes, or of RGB scenes, as the config says; see `train_igae`."""
    from accelerate import Accelerator

    config.check()
    accelerator, size, cache = Accelerator(), config.data.view_size, output_dir / "cache"
    trainable, encoder_hash, planes = parts_of(config, autoencoder)
    if size % trainable.downscale:
        raise InputError(
            f"the autoencoder's downscale {trainable.downscale} does not divide data.view_size {size}; take a multiple"
        )
    if config.weights.equivariance_picture or config.weights.equivariance_latent:
        config.transforms.check(size // trainable.downscale)
    with accelerator.local_main_process_first():  # decodes the views once a machine
        data = config.data
        views = SceneViews.open(scenes, size, cache / "views", limit_scenes=data.max_scenes, limit_views=data.max_views)
    views.check_cameras(config.triplanes.half_extent)
    real = open_real_images(config, images, accelerator.num_processes)
    model = JointModel(config, trainable, planes, views.background).to(accelerator.device)
    perceptual = PerceptualLoss().to(accelerator.device) if real and config.weights.real_perceptual else None
    with accelerator.local_main_process_first():
        scene_data = SceneData(model, views, cache, encoder_hash[:8], real)
    stages = two_stages(config, scene_data, ("Stage 1: scenes", "Stage 2: scenes and autoencoder"), perceptual)
    if config.stage2.latent_rescaling is not None:
        stages[1].before = partial(rescale_latents, smallest=config.stage2.latent_rescaling)
    run_log = RunLog(output_dir, tensorboard, wandb, to_plain(config)) if accelerator.is_main_process else None
    return Trainer(config, model, scene_data, stages, output_dir, accelerator, run_log, observe=log_validation)


def parts_of(
    config: IGAEConfig, autoencoder: str | AutoencoderConfig
) -> tuple[TrainableAutoencoder | IdentityAutoencoder, str, SceneParameters]:
    """The autoencoder, a name of what its encoder computes, and how planes are made."""
    planes: SceneParameters = PlainPlanes(config.triplanes)
    if isinstance(config, ManyScenesConfig):
        planes = scene_parameters(config.triplanes, config.micro_macro, config.seed)
        if config.space == "rgb":
            return IdentityAutoencoder(), "rgb00000", planes
    loaded = load_autoencoder(autoencoder)
    return TrainableAutoencoder(loaded), loaded.encoder_hash, planes


def two_stages(
    config: IGAEConfig,
    data: SceneData,
    titles: tuple[str, str],
    perceptual: PerceptualLoss | None = None,
    after: Callable[[Trainer], None] | None = None,
) -> list[Stage]:
    """Latent supervision with a frozen autoencoder, then equation 12."""
    first, second = (
        ViewSchedule(data.counts, stage.views_per_batch, stage.views_per_scene, 2 * config.seed + number)
        for number, stage in ((1, config.stage1), (2, config.stage2))
    )
    supervision = LatentSupervision(config.stage1.plane_tv)
    joint = JointObjective(config.weights, config.sample_posterior, perceptual, config.transforms)
    return [
        Stage(1, titles[0], config.stage1, supervision, first, after=after),
        Stage(2, titles[1], config.stage2, joint, second, images=True, after=after),
    ]


def open_real_images(config: IGAEConfig, folder: Path | None, processes: int) -> RealImages | None:
    """The real images of equation 10; None where its weight or the stage is 0.

    Raises:
        InputError: there is no folder, or it has too few images, or processes cannot share a batch.
    """
    count = config.stage2.real_per_batch
    if not config.weights.real_autoencoding or not count or not config.stage2.epochs:
        return None
    if folder is None:
        raise InputError("--images is missing: a folder of real images (or set weights.real_autoencoding: 0)")
    real = RealImages.open(folder, config.data.view_size, config.data.hold_out_every)
    if count > len(real.train):
        raise InputError(f"stage2.real_per_batch is {count}, and {folder} has {len(real.train)} real images; lower it")
    if count % processes:
        raise InputError(f"stage2.real_per_batch is {count}, which {processes} processes cannot share equally")
    return real


# --- The result ---

CARD = """---
library_name: diffusers
tags: [autoencoder, nerf]
---

# An inverse graphics autoencoder

Trained by igae-nerfstudio {version} from `{source}`, jointly with {scenes} Tri-Planes on {views} views of {size} x
{size} pixels, so that latents of views of one object agree in 3D ("Bringing NeRFs to the Latent Space: Inverse Graphics
Autoencoder", section 4). Everything that is needed to repeat it is in `training.json`.

    ns-train igae-tensorf --data SCENE --pipeline.autoencoder.name-or-path THIS_FOLDER

Measured, PSNR in dB: of held-out real images (`real_psnr`) and training views (`view_psnr`) through the autoencoder, of
decoded Tri-Plane renders (`render_psnr`), and of normalised latents, rendered against encoded (`latent_psnr`);
`warp_psnr` is of real images whose latents are turned by 10 degrees and shifted by half a latent pixel, decoded.

{measured}
"""


def export_autoencoder(
    folder: Path, trainer: Trainer, source: str | AutoencoderConfig, measured: dict[str, float]
) -> None:
    """Write the trained autoencoder in diffusers' format, a model card, and training.json to repeat it.

    Args:
        folder: of the result; goes straight into `--pipeline.autoencoder.name-or-path`.
        trainer: at its end.
        source: what the training started from.
        measured: of `validate`.
    """
    views, size = trainer.data.views, trainer.config.data.view_size
    start = source if isinstance(source, str) else source.name_or_path
    counts = {"scenes": views.num_scenes, "views": views.total_views, "size": size}
    lines = "\n".join(f"- {name}: {value:.2f}" for name, value in measured.items())
    card = CARD.format(version=__version__, source=Path(start).name, measured=lines, **counts)
    facts = {"igae_nerfstudio": __version__, "started_from": start, "scenes": views.names, "views": views.total_views}
    training = json.dumps({**facts, "config": to_plain(trainer.config), "psnr": measured}, indent=1) + "\n"
    save_autoencoder(folder, trainer.model.autoencoder.module, {"training.json": training, "README.md": card})
