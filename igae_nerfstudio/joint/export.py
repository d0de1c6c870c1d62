"""The result of an IG-AE training: a diffusers folder, a model card, and a JSON from which it can be repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict

from torch import nn

from igae_nerfstudio import __version__
from igae_nerfstudio.autoencoder.autoencoder import AutoencoderConfig
from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.joint.config import IGAEConfig, to_dict
from igae_nerfstudio.scenes.scene_views import SceneViews

FIGURES = {
    "real_psnr": "real images kept out of training, through the autoencoder",
    "view_psnr": "training views through the autoencoder",
    "render_psnr": "Tri-Plane renders, decoded, against training views",
    "latent_psnr": "rendered against encoded latents, normalised",
}


def export_autoencoder(
    folder: Path,
    module: nn.Module,
    config: IGAEConfig,
    source: AutoencoderConfig,
    views: SceneViews,
    figures: Dict[str, float],
) -> None:
    """Write `config.json`, safetensors, `README.md` and `training.json`.

    Args:
        folder: of the result; goes straight into `--pipeline.autoencoder.name-or-path`.
        module: diffusers' autoencoder.
        config: of the training.
        source: what the training started from.
        views: the scenes.
        figures: PSNR in dB by name, see `FIGURES`.
    """
    facts = {
        "igae_nerfstudio": __version__,
        "started_from": source.name_or_path,
        "scenes": views.names,
        "views": views.total_views,
        "config": to_dict(config),
        "psnr": figures,
    }
    card = model_card(config, source, views, figures)
    save_autoencoder(folder, module, {"training.json": json.dumps(facts, indent=1) + "\n", "README.md": card})


def model_card(config: IGAEConfig, source: AutoencoderConfig, views: SceneViews, figures: Dict[str, float]) -> str:
    """The README.md beside the weights."""
    weights = "\n".join(f"| {name} | {value:g} |" for name, value in to_dict(config)["weights"].items())
    measured = "\n".join(f"| {FIGURES[name]} | {value:.2f} dB |" for name, value in figures.items())
    size = config.data.view_size
    return f"""---
library_name: diffusers
tags: [autoencoder, nerf]
---

# An inverse graphics autoencoder

Trained by `igae-train` of igae-nerfstudio {__version__} from `{Path(source.name_or_path).name}`, jointly with
{len(views.names)} Tri-Planes on {views.total_views} views of {size} x {size} pixels, so that latents of views of one
object agree in 3D ("Bringing NeRFs to the Latent Space: Inverse Graphics Autoencoder", section 4). Everything that is
needed to repeat it is in `training.json`.

    ns-train igae-tensorf --data SCENE --pipeline.autoencoder.name-or-path THIS_FOLDER

- Stage 1: {config.stage1.epochs} epochs; stage 2: {config.stage2.epochs} epochs with {config.stage2.views_per_batch}
  views and {config.stage2.real_per_batch} real images a step; rates {config.stage2.encoder_lr:g} (encoder),
  {config.stage2.decoder_lr:g} (decoder), {config.stage2.planes_lr:g} (planes), times {config.lr_decay:g} per epoch.

| weight | |
|---|---|
{weights}

| measured (PSNR) | |
|---|---|
{measured}
"""
