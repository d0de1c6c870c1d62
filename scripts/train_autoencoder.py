# SPDX-License-Identifier: Apache-2.0
"""Train, from scratch, the standard image autoencoder that igae_nerfstudio carries as ``bundled-ae``.

What it does
    Trains a diffusers ``AutoencoderDC`` (8 times smaller sides, 16 latent channels, images in [-1, 1]) on a
    folder of ordinary photographs, and on rendered views where there are some, and writes ``config.json``,
    ``diffusion_pytorch_model.safetensors`` and a model card to the output folder. No pretrained weights are
    used anywhere: the loss is the mean squared error of the pixels plus a very small term on the latents.
    Every 20th photograph (of the sorted list, from the first) is kept out of training and used for
    validation only.

How to run it
    python scripts/train_autoencoder.py --images DIR --scenes DIR --minutes 35

    The learning rate follows the clock, so ``--minutes`` decides both how long it takes and how good it
    gets. A killed run goes on with ``--resume`` and loses the few minutes since the last checkpoint; the
    time already spent counts. The output folder always holds the newest averaged weights, so an early
    version can be used during training. A run that is resumed when its time is spent only writes its files
    again.

Why it learns fast
    It starts where linear methods end: the first weights compute the principal components of 8x8 patches (26 dB
    on photographs, where random weights need half an hour), and the residual blocks, silent at first, learn
    what is better than that.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, ResBlock
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from igae_nerfstudio.autoencoder.orthogonal_momentum import OrthogonalMomentum
from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# Widths of the scales, full resolution first. Each is four times the one before, so that the shortcuts of AutoencoderDC
# are exactly the rearrangement of 2x2 pixels into channels, and 256 channels can hold the 192 numbers of an 8x8 patch.
# Nothing is computed at full resolution, and most at a quarter of it, where a block costs least for what it learns.
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

VALIDATION_EVERY = 20
VALIDATION_SIZE = 128
MINIMUM_IMAGES = 100
# Standard deviation of the noise on latents in one of the measurements.
NOISE = 0.1

CROP = 64
BATCH = 16
# Learning rates at their peak, of Adam and of the momentum with orthogonal steps; both fall to a hundredth.
ADAM_RATE = 4e-4
ORTHOGONAL_RATE = 0.02
FINAL_FRACTION = 0.01
WARM_UP_STEPS = 50
EMA_DECAY = 0.999
SYNTHETIC_SHARE = 0.06
VIEW_SHARE = 0.15

# Keeps each channel near mean 0 and standard deviation 1, about which the pixel error does not care.
MOMENT_WEIGHT = 1e-3

FIRST_CHECKPOINT_SECONDS = 75.0
CHECKPOINT_SECONDS = 150.0
PROGRESS_SECONDS = 30.0


@dataclass
class Report:
    """What the validation photographs say about one set of weights; pixel errors are in 8-bit levels."""

    psnr: float
    psnr_min: float
    latent_mean: float
    latent_std: float
    latent_min: float
    latent_max: float
    white_mean: float
    white_max: float
    black_mean: float
    black_max: float
    noisy_psnr: float
    patch_psnr: float
    patch_inner_psnr: float


def list_images(folder: Path) -> list[Path]:
    """The image files of ``folder``, sorted; stops with one line where there are none or too few."""
    if not folder.is_dir():
        raise SystemExit(f"error: the image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < MINIMUM_IMAGES:
        raise SystemExit(f"error: {folder} holds {len(paths)} images; at least {MINIMUM_IMAGES} are needed")
    return paths


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """One decoded picture."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise SystemExit(f"error: cannot read the image {path}: {error}") from None


def read_views(scenes: Path | None) -> list[Image.Image]:
    """The training views (RGBA) of a folder of scenes in Blender's layout."""
    if scenes is None:
        return []
    paths = sorted(path for path in scenes.glob("*/train/*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"error: {scenes} holds no scenes with a folder train of pictures")
    views = []
    for path in paths:
        views.append(read_image(path, "RGBA"))
        if min(views[-1].size) < CROP:
            raise SystemExit(f"error: {path} is smaller than {CROP}x{CROP} pixels")
    return views


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (N, H, W, 3) to a float tensor (N, 3, H, W) in [-1, 1]."""
    # The permuted view already is channels_last in memory, which makes the convolutions up to twice as fast.
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def validation_pictures(paths: list[Path]) -> Tensor:
    """The centre squares of the validation photographs at 128x128."""
    pictures = []
    for path in paths:
        image = read_image(path)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        small = square.resize((VALIDATION_SIZE, VALIDATION_SIZE), Image.Resampling.LANCZOS)
        pictures.append(np.asarray(small))
    return to_tensor(np.stack(pictures))


class CropSampler:
    """Random training crops: most from photographs, a few made up.

    The made-up ones teach what photographs rarely show and rendered objects always do: backgrounds of one
    exact colour, white above all, right up to a hard edge.
    """

    def __init__(self, photographs: list[Image.Image], views: list[Image.Image], rng: np.random.Generator) -> None:
        self.photographs = photographs
        self.views = views
        self.rng = rng

    def batch(self, size: int) -> Tensor:
        """A batch of crops (size, 3, CROP, CROP) in [-1, 1]."""
        return to_tensor(np.stack([self._crop(kind) for kind in self.rng.random(size)]))

    def _crop(self, kind: float) -> np.ndarray:
        if kind < SYNTHETIC_SHARE:
            return self._synthetic()
        if self.views and kind < SYNTHETIC_SHARE + VIEW_SHARE:
            return self._view()
        return self._photograph()

    def _view(self) -> np.ndarray:
        """A crop of a rendered object before white or, half as often, any colour."""
        image = self.views[self.rng.integers(len(self.views))]
        colour = np.full(3, 255.0) if self.rng.random() < 0.67 else self._colour()
        left, top = (int(self.rng.integers(0, side - CROP + 1)) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), dtype=np.float64)
        alpha = pixels[..., 3:] / 255.0
        pixels = np.rint(alpha * pixels[..., :3] + (1 - alpha) * colour).astype(np.uint8)
        return pixels[:, ::-1] if self.rng.random() < 0.5 else pixels

    def _photograph(self) -> np.ndarray:
        image = self.photographs[self.rng.integers(len(self.photographs))]
        # Half the size is how the photographs are validated, so it comes up often.
        scale = 0.5 if self.rng.random() < 0.6 else self.rng.uniform(0.4, 1.0)
        side = min(CROP / scale, *image.size)
        left = self.rng.uniform(0, image.width - side)
        top = self.rng.uniform(0, image.height - side)
        # Cutting and shrinking in one go costs a fraction of shrinking the whole photograph.
        crop = image.resize((CROP, CROP), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if self.rng.random() < 0.5 else pixels

    def _colour(self) -> np.ndarray:
        kind = self.rng.random()
        if kind < 0.4:
            return np.full(3, 255.0)
        if kind < 0.6:
            return np.zeros(3)
        return self.rng.integers(0, 256, 3).astype(np.float64)

    def _mask(self) -> np.ndarray:
        """A random ellipse or polygon with smooth edges, (CROP, CROP, 1) in [0, 1]."""
        fine = 4 * CROP
        mask = Image.new("L", (fine, fine))
        draw = ImageDraw.Draw(mask)
        if self.rng.random() < 0.4:
            (left, right), (top, bottom) = np.sort(self.rng.uniform(-0.2, 1.2, (2, 2)) * fine, axis=1)
            draw.ellipse((left, top, right, bottom), fill=255)
        else:
            corners = self.rng.uniform(-0.2, 1.2, (self.rng.integers(3, 6), 2)) * fine
            draw.polygon([(float(x), float(y)) for x, y in corners], fill=255)
        small = mask.resize((CROP, CROP), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float64)[..., None] / 255.0

    def _synthetic(self) -> np.ndarray:
        picture = np.broadcast_to(self._colour(), (CROP, CROP, 3))
        kind = self.rng.random()
        if kind < 0.4:
            # Flat regions with hard edges.
            for _ in range(self.rng.integers(1, 5)):
                mask = self._mask()
                picture = (1 - mask) * picture + mask * self._colour()
        elif kind < 0.7:
            # An object with texture before a flat background.
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
    for module in (*encoder.down_blocks.modules(), *decoder.up_blocks.modules()):
        if isinstance(module, ResBlock):
            torch.nn.init.zeros_(module.norm.weight)
            torch.nn.init.zeros_(module.norm.bias)
        elif isinstance(module, (DCDownBlock2d, DCUpBlock2d)):  # their shortcuts alone
            torch.nn.init.zeros_(module.conv.weight)
            torch.nn.init.zeros_(module.conv.bias)
    for conv in (encoder.conv_in.conv, encoder.conv_out, decoder.conv_in, decoder.conv_out.conv):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)

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


def training_loss(model: AutoencoderDC, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The loss to minimise and the plain mean squared error in it."""
    latents = model.encoder(pictures)
    error = (model.decoder(latents) - pictures).square().mean()
    # Spread over positions and batch together, for each channel.
    spread, mean = torch.std_mean(latents, dim=(0, 2, 3))
    moments = (spread - 1).square().mean() + mean.square().mean()
    return error + MOMENT_WEIGHT * moments, error.detach()


def part_gradients(
    model: AutoencoderDC, weights: list[torch.nn.Parameter], pictures: Tensor
) -> tuple[tuple[Tensor, ...], float]:
    """The gradients of the loss on one part of a batch, and its mean squared error."""
    loss, error = training_loss(model, pictures)
    return torch.autograd.grad(loss, weights), error.item()


def set_gradients(
    pool: ThreadPoolExecutor,
    parts: int,
    model: AutoencoderDC,
    weights: list[torch.nn.Parameter],
    pictures: Tensor,
) -> float:
    """Compute the gradients on a batch in equal parts at the same time; returns the mean squared error.

    Each part runs on a thread of its own, which meets the others once a step. Threads within the convolutions
    would meet after every layer, and on a machine that does other work too they would mostly wait.
    """
    results = list(pool.map(lambda part: part_gradients(model, weights, part), pictures.chunk(parts)))
    for weight, *gradients in zip(weights, *(gradients for gradients, _ in results), strict=True):
        weight.grad = sum(gradients[1:], gradients[0]) / len(gradients)
    return sum(error for _, error in results) / len(results)


def make_optimizers(model: AutoencoderDC) -> list[torch.optim.Optimizer]:
    """Orthogonal momentum for the convolutions of the residual blocks, Adam for everything else."""
    blocks = [module for module in model.modules() if isinstance(module, ResBlock)]
    inside = [conv.weight for block in blocks for conv in (block.conv1, block.conv2)]
    known = {id(weight) for weight in inside}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    optimizers = [
        OrthogonalMomentum(inside, lr=ORTHOGONAL_RATE),
        torch.optim.Adam(others, lr=ADAM_RATE, betas=(0.9, 0.99)),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate_fraction(step: int, progress: float) -> float:
    """Linear warm-up by steps, then a cosine over the time there is (``progress`` from 0 to 1)."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """The PSNR of each picture in dB."""
    # Pixels run from -1 to 1 here, so the largest possible squared error is 4.
    return 10 * torch.log10(4 / (pictures - reference).square().mean(dim=(1, 2, 3)).clamp_min(1e-10))


@torch.inference_mode()
def evaluate(model: AutoencoderDC, pictures: Tensor) -> Report:
    """Measure ``model`` on pictures in [-1, 1] and on one white and one black picture of the same size."""
    scores, latents = [], []
    noisy, patches, inner = [], [], []
    generator = torch.Generator().manual_seed(0)
    for picture in pictures.split(10):
        encoded = model.encode(picture).latent
        decoded = model.decode(encoded).sample.clamp(-1, 1)
        scores.append(psnr(decoded, picture))
        latents.append(encoded)
        # What latents that are slightly off do, as those of a radiance field always are.
        noise = NOISE * torch.randn(encoded.shape, generator=generator)
        noisy.append(psnr(model.decode(encoded + noise).sample.clamp(-1, 1), picture))
        # A patch cut out of the latents meets the zero padding where the whole picture had more picture.
        patch = model.decode(encoded[..., 4:12, 4:12]).sample.clamp(-1, 1)
        whole = decoded[..., 32:96, 32:96]
        patches.append(psnr(patch, whole))
        inner.append(psnr(patch[..., 16:-16, 16:-16], whole[..., 16:-16, 16:-16]))
    flat = torch.ones(2, 3, *pictures.shape[-2:])
    flat[1] = -1
    error = (model.decode(model.encode(flat).latent).sample.clamp(-1, 1) - flat).abs() * 127.5
    score, latent = torch.cat(scores), torch.cat(latents)
    noisy_score, patch_score, inner_score = torch.cat(noisy), torch.cat(patches), torch.cat(inner)
    return Report(
        psnr=score.mean().item(),
        psnr_min=score.min().item(),
        latent_mean=latent.mean().item(),
        latent_std=latent.std().item(),
        latent_min=latent.min().item(),
        latent_max=latent.max().item(),
        white_mean=error[0].mean().item(),
        white_max=error[0].max().item(),
        black_mean=error[1].mean().item(),
        black_max=error[1].max().item(),
        noisy_psnr=noisy_score.mean().item(),
        patch_psnr=patch_score.mean().item(),
        patch_inner_psnr=inner_score.mean().item(),
    )


def model_card(arguments: argparse.Namespace, report: Report, facts: dict[str, Any]) -> str:
    """The README.md that lies beside the weights."""
    note = f"\n- {arguments.card_note}" if arguments.card_note else ""
    return f"""---
license: apache-2.0
library_name: diffusers
---

# A standard image autoencoder, downscale 8, 16 channels

A small `AutoencoderDC` of [diffusers](https://github.com/huggingface/diffusers), trained from scratch for
this package by `scripts/train_autoencoder.py`. It makes pictures 8 times smaller on each side with
{ARCHITECTURE["latent_channels"]} latent channels, takes and gives pictures in [-1, 1], and works at every
size that is a multiple of 8. It knows nothing of 3D: it is what `igae-train` starts from, and what its result
is compared with.

- Widths {WIDTHS[1:]} at a half, a quarter and an eighth of the picture's size; residual blocks: encoder
  {ARCHITECTURE["encoder_layers_per_block"]}, decoder {ARCHITECTURE["decoder_layers_per_block"]}. Normalisation
  over channels only and no attention, so decoding is local.
- Parameters: {facts["encoder_parameters"]:,} in the encoder, {facts["decoder_parameters"]:,} in the decoder.
- Size of the weights: {facts["bytes"] / 1e6:.2f} MB.
- Licence: Apache-2.0, like the package.

```python
from diffusers import AutoencoderDC

autoencoder = AutoencoderDC.from_pretrained("igae_nerfstudio/autoencoder/bundled-ae")
latents = autoencoder.encode(pictures).latent
pictures = autoencoder.decode(latents).sample.clamp(-1, 1)
```

## Training

```
python scripts/train_autoencoder.py --images DIR --scenes DIR --minutes {arguments.minutes:g} \
--seed {arguments.seed} --threads {arguments.threads}
```

- Machine: {arguments.threads} CPU cores, no GPU. Training took {facts["seconds"]:.0f} seconds and
  {facts["steps"]:,} steps of {BATCH} crops of {CROP}x{CROP} pixels.
- Data: {facts["training"]} {arguments.data_name} (random crops, scales and flips), used for training only and not
  shipped; {SYNTHETIC_SHARE:.0%} made-up crops (flat colours, flat shapes, cut-out photographs before flat colours);
  {VIEW_SHARE if facts["views"] else 0:.0%} crops of {facts["views"]} rendered views.
- No pretrained weights of any kind: the first weights are the principal components of 8x8 patches of the same crops.
- Loss: mean squared error of the pixels, and {MOMENT_WEIGHT:g} times the squared distance of each channel's mean and
  standard deviation from 0 and 1.
- Momentum with orthogonalised steps for the convolutions of the residual blocks (learning rate
  {ORTHOGONAL_RATE:g}), Adam for the rest ({ADAM_RATE:g}), both falling along a cosine; averaged weights
  (decay {EMA_DECAY:g}).{note}

## Measured

On {facts["validation"]} photographs kept out of training (centre square, {VALIDATION_SIZE}x{VALIDATION_SIZE},
outputs clamped):

| | |
|---|---|
| PSNR, mean over the pictures | {report.psnr:.2f} dB |
| PSNR, worst picture | {report.psnr_min:.2f} dB |
| Latents: mean, standard deviation | {report.latent_mean:.3f}, {report.latent_std:.3f} |
| Latents: smallest, largest | {report.latent_min:.2f}, {report.latent_max:.2f} |
| White picture: mean and largest error (of 255) | {report.white_mean:.2f}, {report.white_max:.2f} |
| Black picture: mean and largest error (of 255) | {report.black_mean:.2f}, {report.black_max:.2f} |
| PSNR with noise of deviation {NOISE:g} on the latents | {report.noisy_psnr:.2f} dB |
| 8x8 latents cut out, against the same place in the whole picture | {report.patch_psnr:.2f} dB |
| the same, without the outer 16 pixels | {report.patch_inner_psnr:.2f} dB |

Fine texture and small lettering come out soft. The decoder was trained neither on noisy latents nor on
cut-out ones: the last three rows say what these cost. Cut patches with some latents around them to spare, and
fine-tune the decoder on latents that do not come from the encoder.
"""


def train(arguments: argparse.Namespace) -> None:
    """Train until the time is spent, then write the final weights and the model card."""
    torch.set_num_threads(1)  # The parts of a batch run in parallel instead: see set_gradients.
    paths = list_images(arguments.images)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint_path = arguments.work_dir / "checkpoint.pt"
    if arguments.resume and not checkpoint_path.is_file():
        raise SystemExit(f"error: nothing to resume: {checkpoint_path} does not exist")

    validation = validation_pictures(paths[::VALIDATION_EVERY])
    training_paths = [path for index, path in enumerate(paths) if index % VALIDATION_EVERY]
    # Decoded once and kept as uint8: a thousand of these take about a quarter of a gigabyte.
    photographs = [read_image(path) for path in training_paths]
    views = read_views(arguments.scenes)
    print(
        f"{len(photographs)} photographs and {len(views)} views to train on, {len(validation)} to validate on",
        flush=True,
    )

    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    sampler = CropSampler(photographs, views, rng)
    model = AutoencoderDC(**ARCHITECTURE)
    start_from_principal_components(model, sampler.batch(1024))
    model = model.to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model)
    step, spent = 0, 0.0
    if arguments.resume:
        state = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        rng.bit_generator.state = state["rng"]
        step, spent = state["step"], state["seconds"]
        print(f"resumed at step {step} after {spent:.0f} s", flush=True)

    def checkpoint() -> Report:
        state = {
            "model": model.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "rng": rng.bit_generator.state,
            "step": step,
            "seconds": spent,
        }
        write_atomically(checkpoint_path, lambda file: torch.save(state, file))
        save_autoencoder(arguments.output_dir, averaged)
        report = evaluate(averaged, validation)
        print(
            f"step {step}  {max(budget - spent, 0) / 60:.1f} min left  validation {report.psnr:.2f} dB  "
            f"latents {report.latent_mean:+.2f} +- {report.latent_std:.2f} in "
            f"[{report.latent_min:.1f}, {report.latent_max:.1f}]  white {report.white_max:.1f}  "
            f"black {report.black_max:.1f} of 255 at most",
            flush=True,
        )
        return report

    budget = arguments.minutes * 60
    weights, averaged_weights = list(model.parameters()), list(averaged.parameters())
    next_progress, next_checkpoint = spent + PROGRESS_SECONDS, spent + FIRST_CHECKPOINT_SECONDS
    errors: list[float] = []
    pool = ThreadPoolExecutor(arguments.threads, initializer=torch.set_num_threads, initargs=(1,))
    # `spent` counts everything after loading, evaluation included: the time given is the time taken.
    begin = time.monotonic() - spent
    while spent < budget:
        fraction = rate_fraction(step, spent / budget)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = fraction * group["peak"]
        errors.append(set_gradients(pool, arguments.threads, model, weights, sampler.batch(BATCH)))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        # A shorter memory at first, so that early exports are not averaged with noise.
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averaged_weights, weights, 1 - decay)
        spent = time.monotonic() - begin
        if spent >= next_progress:
            mean = sum(errors) / len(errors)
            print(
                f"step {step}  {max(budget - spent, 0) / 60:.1f} min left  train loss {mean:.5f} "
                f"({10 * math.log10(4 / mean):.2f} dB)  rate {fraction:.0%} of its peak",
                flush=True,
            )
            errors.clear()
            next_progress = spent + PROGRESS_SECONDS
        if spent >= next_checkpoint:
            checkpoint()
            next_checkpoint = spent + CHECKPOINT_SECONDS

    pool.shutdown()
    report = checkpoint()
    facts = {
        "encoder_parameters": sum(weight.numel() for weight in model.encoder.parameters()),
        "decoder_parameters": sum(weight.numel() for weight in model.decoder.parameters()),
        "bytes": (arguments.output_dir / "diffusion_pytorch_model.safetensors").stat().st_size,
        "seconds": spent,
        "steps": step,
        "training": len(photographs),
        "views": len(views),
        "validation": len(validation),
    }
    save_autoencoder(arguments.output_dir, averaged, {"README.md": model_card(arguments, report, facts)})
    print(f"done: {report.psnr:.2f} dB after {spent:.0f} s, written to {arguments.output_dir}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the standard image autoencoder of the package from scratch.")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--scenes", type=Path, help="folder of rendered scenes (igae-render-objects), to train on too")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=REPOSITORY / "igae_nerfstudio" / "autoencoder" / "bundled-ae",
        help="folder for the weights and the model card (default: the one inside the package)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("outputs") / "autoencoder",
        help="folder for the checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--data-name",
        default="photographs",
        help="what the model card calls the photographs (default: %(default)s)",
    )
    parser.add_argument("--card-note", default="", help="one more point on the training for the model card")
    parser.add_argument("--minutes", type=float, default=55.0, help="time to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the work folder")
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error("--minutes must be above 0")
    if not 1 <= arguments.threads <= BATCH:
        parser.error(f"--threads must be from 1 to {BATCH}")
    return arguments


def main() -> None:
    """Run the training."""
    train(parse_arguments())


if __name__ == "__main__":
    main()
