"""What a training measures and shows of itself: PSNR of pictures and latents, and a sheet of views."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Iterator

import numpy as np
import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.equivariance import warp_psnr
from igae_nerfstudio.console import log
from igae_nerfstudio.figures import to_uint8
from igae_nerfstudio.metrics import psnr
from igae_nerfstudio.scenes.view_schedule import ViewGroup

if TYPE_CHECKING:
    from igae_nerfstudio.joint.scene_data import SceneData
    from igae_nerfstudio.joint.trainer import Stage, Trainer

VALIDATION_IMAGES = 200
"""At most so many held-out real images are measured."""


def log_validation(trainer: Trainer, stage: Stage, step: int) -> None:
    """In stage 2, every `steps_per_figure` steps: numbers and a figure, for `Trainer.observe`."""
    if stage.images and step % trainer.config.steps_per_figure == 0 and trainer.run_log is not None:
        numbers = validate(trainer.data)
        trainer.run_log.numbers(stage.number, step, {f"validation_{name}": value for name, value in numbers.items()})
        trainer.run_log.figure(stage.number, step, figure_columns(trainer.data))
        log(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in numbers.items()))


@torch.no_grad()
def validate(data: SceneData) -> dict[str, float]:
    """Means of PSNR in dB: `real_psnr` of held-out real images and `view_psnr` of views through the autoencoder,
    `warp_psnr` of real images through moved latents (`autoencoder/equivariance.py`), `render_psnr` of decoded renders,
    `latent_psnr` of normalised latents."""
    result: dict[str, list[float]] = defaultdict(list)
    if data.real is not None:
        for images in data.real.validation_batch(limit=VALIDATION_IMAGES).split(10):
            images = images.to(data.device)
            latents = data.model.encode(images)
            result["real_psnr"] += psnr(data.model.decode(latents).clamp(0, 1), images).tolist()
            result["warp_psnr"] += warp_psnr(images, latents, data.model.decode).tolist()
    for view in shown_views(data):
        result["view_psnr"].append(float(psnr(view["autoencoded"], view["image"])))
        result["render_psnr"].append(float(psnr(view["decoded"], view["image"])))
        result["latent_psnr"].append(float(psnr(view["rendered"], view["encoded"])))
    return {name: sum(values) / len(values) for name, values in result.items()}


@torch.no_grad()
def shown_views(data: SceneData) -> Iterator[dict[str, Tensor]]:
    """The first view of up to four scenes, in every form; pictures (1, 3, H, W), normalised latents (1, h, w, c)."""
    model, number = data.model, data.views.num_scenes
    model.renderer.eval()
    for scene in sorted({round(i * (number - 1) / 3) for i in range(4)}):
        batch = data.batch([ViewGroup(scene, (0,))], images=True)
        assert batch.images is not None
        latents, rendered = model.encode(batch.images), model.render(batch)
        autoencoded, decoded = model.decode(latents).clamp(0, 1), model.decode_render(rendered).clamp(0, 1)
        yield {
            "image": batch.images,
            "autoencoded": autoencoded,
            "encoded": model.normalized(latents),
            "rendered": rendered,
            "decoded": decoded,
        }


def figure_columns(data: SceneData) -> dict[str, list[np.ndarray]]:
    """Columns of a sheet, uint8 pictures (H, W, 3), a row for each shown view."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    titles = {"image": "view", "encoded": "latent of view", "rendered": "rendered latent", "decoded": "decoded render"}
    for view in shown_views(data):
        for name in ("image", "autoencoded", "encoded", "rendered", "decoded"):
            picture = view[name][0]
            if name in ("encoded", "rendered"):
                large = data.model.preview(picture).repeat_interleave(data.downscale, 0)
                picture = large.repeat_interleave(data.downscale, 1).permute(2, 0, 1)
            columns[titles.get(name, name)].append(to_uint8(picture.permute(1, 2, 0)))
    return columns
