"""What `igae prior reconstruct`, `sample` and `interpolate` do: z of photos or of the prior, as scenes and pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from PIL import Image
from torch import Tensor

from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.figures import sheet, to_uint8, write_film
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.joint.results import LearntScene
from igae_nerfstudio.joint.scene_export import write_run
from igae_nerfstudio.prior.elbo import gaussian_nll
from igae_nerfstudio.prior.model import decoded
from igae_nerfstudio.prior.photos import Dataset, Photos
from igae_nerfstudio.prior.saved import SavedPrior
from igae_nerfstudio.scenes.scene_views import ViewCameras

FIELD_OF_VIEW, ELEVATION = 0.6911112, 20.0
"""Of turntables: radians across, and degrees above the horizon."""
TURNTABLE = 6
"""Pictures of a scene on a contact sheet."""
REFINE_RATE = 0.02
"""Adam's rate for z."""
TRAINED = (1, 1)
"""Steps of each phase that a run of a prior's scene is said to have had, so that `ns-train` goes on with the first."""


def reconstruct(
    prior: Path,
    data: Path,
    output_dir: Path,
    views: int = 4,
    refine: int = 0,
    dataparser: str | None = None,
    timestamp: str | None = None,
) -> None:
    """Make a scene of a few photos with cameras: a run of igae-triplanes, for ns-viewer, ns-render, ns-eval, ns-export.

    Args:
        prior: The --output-dir of a finished `igae prior train`, or `bundled`.
        data: A dataset that Nerfstudio reads; its other photos are for evaluation.
        output_dir: The run is NAME/igae-triplanes/TIMESTAMP in it; `context.png` in it shows the photos that were taken
            and their reconstruction.
        views: Photos to take, far from each other.
        refine: Steps of gradient descent on z, with the network frozen; 0: one pass.
        dataparser: What reads the dataset, as ns-train calls it; by default what its files tell.
        timestamp: The last part of the run's folder; by default the time.
    """
    saved = SavedPrior.load(prior)
    dataset = Dataset.read(data, saved, dataparser)
    photos = dataset.photos(saved, views)
    z = posterior_mean(saved, photos, refine)
    shown = {
        "context photo": pictures_of(photos.images),
        "reconstruction": pictures_of(seen(saved, z, photos)),
    }
    name = dataset.data.name
    if saved.config.network.conditioning != "planes":
        save_sheet(output_dir / name / "context.png", sheet(shown))
        save_sheet(output_dir / name / "turntable.png", turntable_sheet(saved, z))
        log(
            f"A prior of conditioning {saved.config.network.conditioning} renders, and has no planes to export: "
            f"{output_dir / name} has the pictures"
        )
        return
    scene, basis = learnt(saved, z, name), saved.basis()
    config = write_run(scene, basis, dataset.splits, dataset.data, output_dir, timestamp, TRAINED)
    save_sheet(config.parent / "context.png", sheet(shown))
    log(f"ns-viewer --load-config {config}")
    log(f"ns-train {train_options(saved, config.parent / 'nerfstudio_models')} --data {data} {dataset.options}")


def train_options(prior: SavedPrior, checkpoints: Path) -> str:
    """The method and options with which `ns-train` goes on from a run of a prior's scene."""
    options: dict[str, Any] = {"load-dir": checkpoints}
    for name in ("resolution", "features", "hidden", "half_extent"):
        options[f"pipeline.model.{name.replace('_', '-')}"] = getattr(prior.config.triplanes, name)
    if prior.autoencoder != "bundled":
        options["pipeline.autoencoder.name-or-path"] = prior.basis().autoencoder_source
    return "igae-triplanes " + " ".join(f"--{name} {value}" for name, value in options.items())


def sample(
    prior: Path,
    output_dir: Path,
    count: int = 16,
    runs: int | None = None,
    seed: int = 0,
    standard: bool = False,
) -> None:
    """Make new scenes: a contact sheet of turntables, and runs of igae-triplanes.

    Args:
        prior: The --output-dir of a finished `igae prior train`, or `bundled`.
        output_dir: Receives samples.png, and the runs sample-00/igae-triplanes/SEED and so on.
        count: How many scenes.
        runs: How many of them become runs; by default all.
        seed: Of the draws.
        standard: Draw z from N(0, I) instead of the Gaussian of the training scenes' z.
    """
    if count < 1:
        raise InputError(f"--count is {count}; it must be 1 or more")
    saved = SavedPrior.load(prior)
    codes = saved.draw(count, torch.Generator().manual_seed(seed), standard)
    save_sheet(output_dir / "samples.png", turntable_sheet(saved, codes))
    if saved.config.network.conditioning == "planes":
        for number in range(count if runs is None else min(runs, count)):
            scene = learnt(saved, codes[number : number + 1], f"sample-{number:02d}")
            splits = no_photos(saved, output_dir)
            write_run(scene, saved.basis(), splits, output_dir, output_dir, f"seed-{seed}", TRAINED)
    log(f"{output_dir / 'samples.png'}")


def interpolate(
    first: Path,
    second: Path,
    /,
    prior: Path,
    output_dir: Path,
    views: int = 4,
    steps: int = 6,
    film: bool = False,
) -> None:
    """Show the scenes between those of two datasets: a contact sheet of turntables, and a film if asked.

    Args:
        first: A dataset, as for `reconstruct`.
        second: Another.
        prior: The --output-dir of a finished `igae prior train`, or `bundled`.
        output_dir: Receives interpolation.png and interpolation.mp4.
        views: Photos to take of each.
        steps: Scenes, with both ends.
        film: Also write the film; it needs ffmpeg.
    """
    if steps < 2:
        raise InputError(f"--steps is {steps}; it must be 2 or more")
    saved = SavedPrior.load(prior)
    a, b = (posterior_mean(saved, Dataset.read(data, saved).photos(saved, views)) for data in (first, second))
    codes = torch.cat([torch.lerp(a, b, share) for share in torch.linspace(0, 1, steps).tolist()])
    save_sheet(output_dir / "interpolation.png", turntable_sheet(saved, codes))
    if film:
        shares, ring = torch.linspace(0, 1, 48).tolist(), circle(saved, 48)
        frames = [render(saved, torch.lerp(a, b, x), one(ring, i)) for i, x in enumerate(shares)]
        write_film(output_dir / "interpolation.mp4", [Image.fromarray(f) for f in pictures_of(torch.cat(frames))], 12)
    log(f"{output_dir / 'interpolation.png'}")


# --- z ---


@torch.no_grad()
def posterior_mean(prior: SavedPrior, photos: Photos, refine: int = 0) -> Tensor:
    """z (1, M, D) of photos: the mean of the posterior, then `refine` steps of gradient descent."""
    z = prior.scenes.encoder(*photos.encoded).mean
    return refined(prior, z, photos, refine) if refine else z


@torch.enable_grad()
def refined(prior: SavedPrior, start: Tensor, photos: Photos, steps: int) -> Tensor:
    """z (1, M, D) after steps of Adam on -log p(photos | z) - log p(z), the network frozen.

    The stand-in for the paper's iterative amortised inference, whose updates a network makes of the same gradients.
    """
    if steps < 0:
        raise InputError(f"--refine is {steps}; it must be 0 or more")
    model, z = prior.model, start.clone().requires_grad_(True)
    target, o, d = (value.flatten(1, 3) for value in photos.encoded)
    optimizer = torch.optim.Adam([z], lr=REFINE_RATE)
    prior_share = 0.0 if prior.config.network.deterministic else 0.5
    for _ in range(steps):
        error = model.renderer(prior.scenes.scene(z), o, d).latents - target
        loss = gaussian_nll(error, prior.scenes.log_deviation).sum() + prior_share * z.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return z.detach()


# --- Pictures ---


@torch.no_grad()
def render(prior: SavedPrior, z: Tensor, cameras: ViewCameras) -> Tensor:
    """Decoded renders (n, 3, H, W) in [0, 1] of one scene z (1, M, D)."""
    return LearntScene("", prior.scenes.scene(z)[0], prior.model).images(cameras)


@torch.no_grad()
def seen(prior: SavedPrior, z: Tensor, photos: Photos) -> Tensor:
    """Decoded renders (k, 3, H, W) at the photos' own cameras."""
    _, o, d = photos.encoded
    return decoded(prior.model, z, o, d)[..., : photos.images.shape[-2], : photos.images.shape[-1]]


def learnt(prior: SavedPrior, z: Tensor, name: str) -> LearntScene:
    """A scene z (1, M, D) as one that was learnt."""
    with torch.no_grad():
        return LearntScene(name, prior.scenes.scene(z)[0], prior.model)


def circle(prior: SavedPrior, count: int) -> ViewCameras:
    """Cameras around the origin, as far away as the prior's training cameras."""
    size, distance, up = prior.config.data.view_size, prior.facts["distance"], math.radians(ELEVATION)
    angles = torch.arange(count) * (2 * math.pi / count)
    level = math.cos(up)
    back = torch.stack([level * angles.cos(), level * angles.sin(), torch.full_like(angles, math.sin(up))], dim=-1)
    right = torch.stack([-angles.sin(), angles.cos(), torch.zeros_like(angles)], dim=-1)
    poses = torch.stack([right, torch.linalg.cross(back, right), back, distance * back], dim=-1)
    focal = size / (2 * math.tan(FIELD_OF_VIEW / 2))
    return ViewCameras(poses, torch.tensor([[focal, focal, size / 2, size / 2]]).expand(count, -1), size, size)


def one(cameras: ViewCameras, index: int) -> ViewCameras:
    """One of some cameras."""
    some = slice(index, index + 1)
    return ViewCameras(cameras.camera_to_world[some], cameras.intrinsics[some], cameras.height, cameras.width)


def turntable_sheet(prior: SavedPrior, codes: Tensor) -> Image.Image:
    """A row of pictures around each scene z (n, M, D)."""
    ring = circle(prior, TURNTABLE)
    rows = [pictures_of(render(prior, z[None], ring)) for z in codes]
    return sheet({f"{360 * i // TURNTABLE} degrees": [row[i] for row in rows] for i in range(TURNTABLE)})


def pictures_of(images: Tensor) -> list[np.ndarray]:
    """Images (n, 3, H, W) in [0, 1] as bytes (H, W, 3)."""
    return [to_uint8(image.permute(1, 2, 0)) for image in images]


def save_sheet(path: Path, picture: Image.Image) -> None:
    """Write a PNG, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def no_photos(prior: SavedPrior, folder: Path) -> dict[str, DataparserOutputs]:
    """Cameras around a scene that nobody took photos of, for the splits of its run."""
    ring, extent = circle(prior, 2 * TURNTABLE), prior.config.triplanes.half_extent
    fx, fy, cx, cy = ring.intrinsics[..., None].unbind(1)
    outputs = DataparserOutputs(
        image_filenames=[folder / "no-photos" / f"{i:02d}.png" for i in range(2 * TURNTABLE)],
        cameras=Cameras(ring.camera_to_world, fx, fy, cx, cy, width=ring.width, height=ring.height),
        alpha_color=torch.tensor(prior.model.background),
        scene_box=SceneBox(aabb=torch.tensor([[-extent] * 3, [extent] * 3])),
    )
    return {split: outputs for split in ("train", "val", "test")}
