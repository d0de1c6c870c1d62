# SPDX-License-Identifier: Apache-2.0
"""Train, from scratch, the standard image autoencoder that igae_nerfstudio carries as ``bundled-ae``.

Trains a diffusers ``AutoencoderDC`` (8 times smaller sides, 16 latent channels, images in [-1, 1]) on a folder of
photographs, and on rendered views where there are some, and writes ``config.json``, the weights and a model card. Every
20th photograph of the sorted list is kept for validation.

    python scripts/train_autoencoder.py --images DIR --scenes DIR --minutes 35

The learning rate follows the clock, so ``--minutes`` decides how long it takes and how good it gets. A killed run goes
on with ``--resume``; the time already spent counts. The output folder always holds the newest averaged weights.

It learns fast since the first weights compute the principal components of 8x8 patches (26 dB on photographs, where
random weights need half an hour), and the residual blocks, silent at first, learn what is better than that.
"""

from __future__ import annotations

import copy
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, ResBlock
from PIL import Image, ImageDraw
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.autoencoder.muon import Muon
from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.console import log
from igae_nerfstudio.errors import InputError, reported_in_one_line
from igae_nerfstudio.files import write_atomically
from igae_nerfstudio.images import composite, read_image
from igae_nerfstudio.metrics import psnr

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# Of the scales, full resolution first. Each is four times the one before, so that AutoencoderDC's shortcuts are exactly
# the rearrangement of 2x2 pixels into channels, and 256 channels can hold the 192 numbers of an 8x8 patch. Most layers
# are at a quarter of the resolution, where a block costs least for what it learns.
WIDTHS = (16, 16, 64, 256)
ARCHITECTURE: dict[str, Any] = {
    "latent_channels": 16,
    "encoder_block_out_channels": WIDTHS,
    "decoder_block_out_channels": WIDTHS,
    "encoder_layers_per_block": (0, 1, 4, 0),
    "decoder_layers_per_block": (0, 1, 6, 0),
    "encoder_qkv_multiscales": ((),) * 4,
    "decoder_qkv_multiscales": ((),) * 4,
    "encoder_out_shortcut": False,
    "decoder_in_shortcut": False,
}
PATCH = 3 * 8 * 8
# The last normalisation of the decoder would divide by the size of the picture's own values. Next to channels that are
# constantly so much larger it divides by a constant, and the offset keeps the rectifier after it from cutting.
CONSTANT_CHANNELS = 6.0
OFFSET = 4.0

VALIDATION_EVERY, VALIDATION_SIZE = 20, 128
MINIMUM_IMAGES = 100
NOISE = 0.1
"""Standard deviation of the noise on latents in one of the measurements."""

CROP, BATCH = 64, 16
ADAM_RATE, MUON_RATE = 4e-4, 0.02
"""At their peak; both fall to a hundredth (`FINAL_FRACTION`)."""
WARM_UP_STEPS, FINAL_FRACTION = 50, 0.01
EMA_DECAY = 0.999
SYNTHETIC_SHARE, VIEW_SHARE = 0.06, 0.15
"""Of the crops."""
MOMENT_WEIGHT = 1e-3
"""Keeps each channel near mean 0 and standard deviation 1, about which the pixel error does not care."""
FIRST_CHECKPOINT_SECONDS, CHECKPOINT_SECONDS = 75.0, 150.0


@dataclass
class Settings:
    """Train the standard image autoencoder of the package from scratch."""

    images: Path
    """Folder of photographs."""
    scenes: Path | None = None
    """Folder of rendered scenes (igae-render-objects), to train on too."""
    output_dir: Path = REPOSITORY / "igae_nerfstudio" / "autoencoder" / "bundled-ae"
    """Folder for the weights and the model card."""
    work_dir: Path = Path("outputs") / "autoencoder"
    """Folder for the checkpoint."""
    data_name: str = "photographs"
    """What the model card calls the photographs."""
    card_note: str = ""
    """One more point on the training for the model card."""
    minutes: float = 55.0
    """Time to train."""
    seed: int = 0
    """Seed of all random choices."""
    threads: int = 2
    """CPU threads, at most 16."""
    resume: bool = False
    """Go on from the checkpoint in the work folder."""

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and 1 <= self.threads <= BATCH):
            raise InputError(f"minutes must be above 0 and threads from 1 to {BATCH}")


def read_photograph(path: Path) -> Image.Image:
    """One photograph in RGB."""
    return Image.fromarray(read_image(path)[..., :3])


def read_views(scenes: Path | None) -> list[np.ndarray]:
    """The training views (H, W, 3 or 4) of a folder of scenes in Blender's layout."""
    if scenes is None:
        return []
    paths = sorted(path for path in scenes.glob("*/train/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    views = [read_image(path) for path in paths]
    if not views or min(side for view in views for side in view.shape[:2]) < CROP:
        raise InputError(f"{scenes} holds no scenes with a folder train of pictures of at least {CROP}x{CROP} pixels")
    return views


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (N, H, W, 3) to a float tensor (N, 3, H, W) in [-1, 1]."""
    # The permuted view already is channels_last in memory, which makes the convolutions up to twice as fast.
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def validation_pictures(paths: list[Path]) -> Tensor:
    """The centre squares of the validation photographs, (N, 3, 128, 128) in [0, 1]."""
    pictures = []
    for image in map(read_photograph, paths):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        pictures.append(np.asarray(square.resize((VALIDATION_SIZE, VALIDATION_SIZE), Image.Resampling.LANCZOS)))
    return (to_tensor(np.stack(pictures)) + 1) / 2


class CropSampler:
    """Random training crops: most from photographs, a few made up.

    The made-up ones teach what photographs rarely show and rendered objects always do: backgrounds of one exact
    colour, white above all, right up to a hard edge.
    """

    def __init__(self, photographs: list[Image.Image], views: list[np.ndarray], rng: np.random.Generator) -> None:
        self.photographs, self.views, self.rng = photographs, views, rng

    def batch(self, size: int) -> Tensor:
        """A batch of crops (size, 3, CROP, CROP) in [-1, 1]."""
        return to_tensor(np.stack([self._crop(kind) for kind in self.rng.random(size)]))

    def _crop(self, kind: float) -> np.ndarray:
        if kind < SYNTHETIC_SHARE:
            return self._synthetic()
        is_view = self.views and kind < SYNTHETIC_SHARE + VIEW_SHARE
        return self._view() if is_view else self._photograph()

    def _view(self) -> np.ndarray:
        """A crop of a rendered object before white or, half as often, any colour."""
        view = self.views[self.rng.integers(len(self.views))]
        colour = np.full(3, 255.0) if self.rng.random() < 0.67 else self._colour()
        left, top = (int(self.rng.integers(0, side - CROP + 1)) for side in (view.shape[1], view.shape[0]))
        return self._flipped(composite(view[top : top + CROP, left : left + CROP], colour / 255))

    def _photograph(self) -> np.ndarray:
        image = self.photographs[self.rng.integers(len(self.photographs))]
        # Half the size is how the photographs are validated, so it comes up often.
        scale = 0.5 if self.rng.random() < 0.6 else self.rng.uniform(0.4, 1.0)
        side = min(CROP / scale, *image.size)
        left, top = (self.rng.uniform(0, length - side) for length in image.size)
        # Cutting and shrinking in one go costs a fraction of shrinking the whole photograph.
        box = (left, top, left + side, top + side)
        return self._flipped(np.asarray(image.resize((CROP, CROP), Image.Resampling.LANCZOS, box=box)))

    def _flipped(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[:, ::-1] if self.rng.random() < 0.5 else pixels

    def _colour(self) -> np.ndarray:
        kind = self.rng.random()
        if kind < 0.6:
            return np.full(3, 255.0 if kind < 0.4 else 0.0)
        return self.rng.integers(0, 256, 3).astype(np.float64)

    def _mask(self) -> np.ndarray:
        """A random ellipse or polygon with smooth edges, (CROP, CROP, 1) in [0, 1]."""
        fine = 4 * CROP
        mask = Image.new("L", (fine, fine))
        if self.rng.random() < 0.4:
            (left, right), (top, bottom) = np.sort(self.rng.uniform(-0.2, 1.2, (2, 2)) * fine, axis=1)
            ImageDraw.Draw(mask).ellipse((left, top, right, bottom), fill=255)
        else:
            corners = self.rng.uniform(-0.2, 1.2, (self.rng.integers(3, 6), 2)) * fine
            ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=255)
        return np.asarray(mask.resize((CROP, CROP), Image.Resampling.BOX), dtype=np.float64)[..., None] / 255.0

    def _synthetic(self) -> np.ndarray:
        picture = np.broadcast_to(self._colour(), (CROP, CROP, 3))
        kind = self.rng.random()
        if kind < 0.4:  # flat regions with hard edges
            for _ in range(self.rng.integers(1, 5)):
                mask = self._mask()
                picture = (1 - mask) * picture + mask * self._colour()
        elif kind < 0.7:  # an object with texture before a flat background
            mask = self._mask()
            picture = (1 - mask) * picture + mask * self._photograph()
        return np.rint(picture).astype(np.uint8)


def patches_as_channels(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as patches (N, 192, H / 8, W / 8), in the channel order of three halvings."""
    for _ in range(3):
        pictures = torch.nn.functional.pixel_unshuffle(pictures, 2)
    return pictures


@torch.no_grad()
def start_from_principal_components(model: AutoencoderDC, pictures: Tensor) -> None:
    """Weights with which `model` is the best linear autoencoder of 8x8 patches of `pictures`, near enough.

    The residual blocks start silent. The channels beyond a patch's 192 numbers are free for them.
    """
    patches = patches_as_channels(pictures).movedim(1, -1).reshape(-1, PATCH)
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    kept = ARCHITECTURE["latent_channels"]
    basis, spread = directions[:, -kept:].flip(1).T, variances[-kept:].flip(0).sqrt()[:, None]

    encoder, decoder = model.encoder, model.decoder
    silent: list[torch.nn.Module] = [encoder.conv_in.conv, encoder.conv_out, decoder.conv_in, decoder.conv_out.conv]
    for module in (*encoder.down_blocks.modules(), *decoder.up_blocks.modules()):
        if isinstance(module, ResBlock):
            silent.append(module.norm)
        elif isinstance(module, (DCDownBlock2d, DCUpBlock2d)):  # their shortcuts alone
            silent.append(module.conv)
    for parameter in (parameter for module in silent for parameter in module.parameters()):
        parameter.zero_()
    encoder.conv_in.conv.weight[:3, :, 1, 1] = torch.eye(3)
    encoder.conv_out.weight[:, :PATCH, 1, 1] = basis / spread
    encoder.conv_out.bias.copy_(-(basis / spread) @ mean)
    decoder.conv_in.weight[:PATCH, :, 1, 1] = (basis * spread).T
    decoder.conv_in.bias[:PATCH] = mean
    constant = WIDTHS[1] - 12  # 12 of the last channels are 2x2 pixels
    decoder.up_blocks[1][0].conv.bias[-4 * constant :] = CONSTANT_CHANNELS
    decoder.norm_out.weight.fill_(CONSTANT_CHANNELS * math.sqrt(constant / WIDTHS[1]))
    decoder.norm_out.bias.fill_(OFFSET)
    decoder.conv_out.conv.weight[:, :12, 1, 1] = torch.eye(12)
    decoder.conv_out.conv.bias.fill_(-OFFSET)


def set_gradients(
    pool: ThreadPoolExecutor, parts: int, model: AutoencoderDC, weights: list[torch.nn.Parameter], pictures: Tensor
) -> float:
    """Compute the gradients on a batch in equal parts at the same time; returns the mean squared error.

    Each part has a thread of its own. Threads within the convolutions would wait for each other after every layer.
    """

    def gradients_of(part: Tensor) -> tuple[tuple[Tensor, ...], float]:
        latents = model.encoder(part)
        error = (model.decoder(latents) - part).square().mean()
        spread, mean = torch.std_mean(latents, dim=(0, 2, 3))  # of each channel
        moments = (spread - 1).square().mean() + mean.square().mean()
        return torch.autograd.grad(error + MOMENT_WEIGHT * moments, weights), error.item()

    results = list(pool.map(gradients_of, pictures.chunk(parts)))
    for weight, *gradients in zip(weights, *(gradients for gradients, _ in results), strict=True):
        weight.grad = sum(gradients[1:], gradients[0]) / len(gradients)
    return sum(error for _, error in results) / len(results)


def make_optimizers(model: AutoencoderDC) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions of the residual blocks, Adam for everything else."""
    blocks = [module for module in model.modules() if isinstance(module, ResBlock)]
    inside = [conv.weight for block in blocks for conv in (block.conv1, block.conv2)]
    known = {id(weight) for weight in inside}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    return [Muon(inside, lr=MUON_RATE), torch.optim.Adam(others, lr=ADAM_RATE, betas=(0.9, 0.99))]


@torch.inference_mode()
def evaluate(model: AutoencoderDC, pictures: Tensor) -> dict[str, str]:
    """The rows of the model card's table, of pictures in [0, 1] and of a white and a black one."""
    autoencoder, found = Autoencoder(model), []
    generator = torch.Generator().manual_seed(0)
    for picture in pictures.split(10):
        latents = autoencoder.encode(picture)
        decoded = autoencoder.decode(latents)
        # What latents that are slightly off do, as those of a radiance field always are.
        noisy = autoencoder.decode(latents + NOISE * torch.randn(latents.shape, generator=generator))
        # A patch cut out of the latents meets the zero padding where the whole picture had more picture.
        patch, whole = autoencoder.decode(latents[..., 4:12, 4:12]), decoded[..., 32:96, 32:96]
        inner = psnr(patch[..., 16:-16, 16:-16], whole[..., 16:-16, 16:-16])
        found.append((psnr(decoded, picture), psnr(noisy, picture), psnr(patch, whole), inner, latents))
    score, noisy_score, patch_score, inner_score, latents = (torch.cat(values) for values in zip(*found))
    flat = torch.stack([torch.full(pictures.shape[1:], value) for value in (1.0, 0.0)])
    white, black = 255 * (autoencoder.decode(autoencoder.encode(flat)) - flat).abs()
    return {
        "PSNR, mean over the pictures": f"{score.mean():.2f} dB",
        "PSNR, worst picture": f"{score.min():.2f} dB",
        "Latents: mean, standard deviation": f"{latents.mean():.3f}, {latents.std():.3f}",
        "Latents: smallest, largest": f"{latents.min():.2f}, {latents.max():.2f}",
        "White picture: mean and largest error (of 255)": f"{white.mean():.2f}, {white.max():.2f}",
        "Black picture: mean and largest error (of 255)": f"{black.mean():.2f}, {black.max():.2f}",
        f"PSNR with noise of deviation {NOISE:g} on the latents": f"{noisy_score.mean():.2f} dB",
        "8x8 latents cut out, against the same place in the whole picture": f"{patch_score.mean():.2f} dB",
        "the same, without the outer 16 pixels": f"{inner_score.mean():.2f} dB",
    }


def model_card(settings: Settings, model: AutoencoderDC, report: dict[str, str], steps: int, data: str) -> str:
    """The README.md that lies beside the weights."""
    encoder, decoder = (sum(weight.numel() for weight in half.parameters()) for half in (model.encoder, model.decoder))
    note = f"\n- {settings.card_note}" if settings.card_note else ""
    table = "\n".join(f"| {name} | {value} |" for name, value in report.items())
    return f"""---
license: apache-2.0
library_name: diffusers
---

# A standard image autoencoder, downscale 8, 16 channels

A small `AutoencoderDC` of [diffusers](https://github.com/huggingface/diffusers), trained from scratch by
`scripts/train_autoencoder.py`. It takes and gives pictures in [-1, 1] of every size that is a multiple of 8, and makes
them 8 times smaller on each side with {ARCHITECTURE["latent_channels"]} latent channels. It is what `igae-train` starts
from, and what its result is compared with.

- Widths {WIDTHS[1:]} at a half, a quarter and an eighth of the picture's size; residual blocks: encoder
  {ARCHITECTURE["encoder_layers_per_block"]}, decoder {ARCHITECTURE["decoder_layers_per_block"]}. Normalisation over
  channels only and no attention, so decoding is local. {encoder:,} and {decoder:,} parameters.

```python
from igae_nerfstudio.autoencoder.autoencoder import load_autoencoder

autoencoder = load_autoencoder("bundled-ae")
latents = autoencoder.encode(pictures)  # (B, 3, H, W) in [0, 1] -> (B, 16, H / 8, W / 8)
pictures = autoencoder.decode(latents)
```

## Training

```
python scripts/train_autoencoder.py --images DIR --scenes DIR --minutes {settings.minutes:g} \
    --seed {settings.seed} --threads {settings.threads}
```

- Machine: {settings.threads} CPU cores, no GPU; {steps:,} steps of {BATCH} crops of {CROP}x{CROP} pixels.
- Data: {data}; {SYNTHETIC_SHARE:.0%} of the crops are made up (flat colours, flat shapes, cut-out photographs before
  flat colours). None of it is shipped.
- No pretrained weights: the first weights are the principal components of 8x8 patches of the same crops.
- Loss: mean squared error of the pixels, and {MOMENT_WEIGHT:g} times the squared distance of each channel's mean and
  standard deviation from 0 and 1.
- Muon for the convolutions of the residual blocks (learning rate {MUON_RATE:g}), Adam for the rest ({ADAM_RATE:g}),
  both falling along a cosine; averaged weights (decay {EMA_DECAY:g}).{note}

## Measured

On photographs kept out of training (centre square, {VALIDATION_SIZE}x{VALIDATION_SIZE}, outputs clamped):

| | |
|---|---|
{table}

Fine texture and small lettering come out soft. The decoder was trained neither on noisy latents nor on cut-out ones
(the last three rows): cut patches with some latents around them to spare, and fine-tune it on rendered latents.
"""


def train(settings: Settings) -> None:
    """Train until the time is spent, then write the final weights and the model card."""
    torch.set_num_threads(1)  # The parts of a batch run in parallel instead: see set_gradients.
    paths = sorted(path for path in settings.images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < MINIMUM_IMAGES:
        raise InputError(f"{settings.images} holds {len(paths)} photographs; give a folder of {MINIMUM_IMAGES} or more")
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint_path = settings.work_dir / "checkpoint.pt"
    if settings.resume and not checkpoint_path.is_file():
        raise InputError(f"{checkpoint_path} does not exist; leave --resume out to start a training")

    validation = validation_pictures(paths[::VALIDATION_EVERY])
    # Decoded once and kept as uint8: a thousand of these take about a quarter of a gigabyte.
    photographs = [read_photograph(path) for index, path in enumerate(paths) if index % VALIDATION_EVERY]
    views = read_views(settings.scenes)
    log(f"{len(photographs)} photographs and {len(views)} views to train on, {len(validation)} to validate on")

    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    sampler = CropSampler(photographs, views, rng)
    model = AutoencoderDC(**ARCHITECTURE)
    start_from_principal_components(model, sampler.batch(1024))
    model = model.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model)
    step, spent, error = 0, 0.0, math.nan
    if settings.resume:
        state = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        rng.bit_generator.state = state["rng"]
        step, spent = state["step"], state["seconds"]
        log(f"resumed at step {step} after {spent:.0f} s")

    def checkpoint() -> dict[str, str]:
        state = {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "rng": rng.bit_generator.state,
            "step": step,
            "seconds": spent,
        }
        write_atomically(checkpoint_path, lambda file: torch.save(state, file))
        save_autoencoder(settings.output_dir, averaged)
        report = evaluate(averaged, validation)
        log(f"Step {step}, {max(settings.minutes - spent / 60, 0):.1f} min left, training error {error:.5f}")
        log("; ".join(f"{name}: {value}" for name, value in report.items()))
        return report

    budget = settings.minutes * 60
    weights, averaged_weights = list(model.parameters()), list(averaged.parameters())
    next_checkpoint = spent + FIRST_CHECKPOINT_SECONDS
    pool = ThreadPoolExecutor(settings.threads, initializer=torch.set_num_threads, initargs=(1,))
    # `spent` counts everything after loading, evaluation included: the time given is the time taken.
    begin = time.monotonic() - spent
    while spent < budget:
        cosine = 0.5 * (1 + math.cos(math.pi * spent / budget))
        fraction = min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)
        for optimizer, peak in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = fraction * peak
        error = set_gradients(pool, settings.threads, model, weights, sampler.batch(BATCH))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        # A shorter memory at first, so that early exports are not averaged with noise.
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged_weights, weights, 1 - decay)
        spent = time.monotonic() - begin
        if spent >= next_checkpoint:
            checkpoint()
            next_checkpoint = spent + CHECKPOINT_SECONDS

    pool.shutdown()
    report = checkpoint()
    card = model_card(settings, model, report, step, f"{len(photographs)} {settings.data_name}, {len(views)} views")
    save_autoencoder(settings.output_dir, averaged, {"README.md": card})
    log(f"done after {spent:.0f} s, written to {settings.output_dir}")


if __name__ == "__main__":
    with reported_in_one_line():
        train(tyro.cli(Settings))
