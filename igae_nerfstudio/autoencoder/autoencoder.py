"""A narrow contract over diffusers' image autoencoders.

Symbols: an image x is (B, 3, H, W) with values in [0, 1]; its latent z = E(x) is (B, c, h, w) with
h = ceil(H / l), w = ceil(W / l), where l is the downscale factor and c the number of latent channels
(paper, section 3.1). Latents are the encoder's own numbers: the mean of the posterior where there is one, and
neither scaled nor shifted. x^ = D(z) is (B, 3, l h, l w), not clamped, so that a loss on it keeps its gradient.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Callable, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tyro.conf import Suppress

from igae_nerfstudio.errors import InputError, one_line

BUNDLED = {name: Path(__file__).parent / name for name in ("bundled", "bundled-ae")}
"""The autoencoders that come with the package."""

SUPPORTED_CLASSES = ("AutoencoderDC", "AutoencoderKL", "AutoencoderTiny")


@dataclass
class AutoencoderConfig:
    """Which autoencoder a latent NeRF lives in."""

    name_or_path: str = "bundled"
    """A folder in diffusers' format (`config.json` and weights), a Hugging Face hub id such as
    `ostris/vae-kl-f8-d16`, or one of the two small ones that come with the package and need no hub: `bundled`, an
    IG-AE, and `bundled-ae`, the standard autoencoder that it was made from."""
    subfolder: str | None = None
    """Folder inside `name_or_path` that holds the autoencoder, often `vae`; None: the top."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None: the default branch."""
    encode_precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the frozen encoder; bfloat16 halves its time and memory on recent GPUs."""
    architecture: Annotated[str | None, Suppress] = None
    """diffusers' config as JSON (`resolve_autoencoder`), from which a finished run rebuilds its decoder where the
    autoencoder itself is out of reach."""


class Decoder(nn.Module):
    """D: the trainable half that a latent NeRF fine-tunes in its RGB alignment (paper, equation 3).

    Forward takes latents (B, c, h, w) and returns images (B, 3, l h, l w), about [0, 1], not clamped.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.post_quant_conv: nn.Module = getattr(autoencoder, "post_quant_conv", None) or nn.Identity()
        self.decoder: nn.Module = autoencoder.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return (self.decoder(self.post_quant_conv(latents)) + 1) / 2


class Autoencoder:
    """A frozen encoder E and its decoder D with one value range and one padding rule.

    Not an `nn.Module`, so that a pipeline can hold it without its weights entering the checkpoint.

    Args:
        module: of a class in `SUPPORTED_CLASSES`.
        precision: arithmetic of `encode`.
    """

    def __init__(self, module: nn.Module, precision: Literal["float32", "bfloat16"] = "float32") -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.precision = precision
        self.latent_channels, self.downscale = architecture_shape(self.architecture)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Autoencoder:
        self.module.to(device)
        return self

    @cached_property
    def architecture(self) -> str:
        """diffusers' config as JSON, enough to rebuild the modules without their weights; independent of the folder
        and of the diffusers version that wrote it."""
        public = {key: value for key, value in self.module.config.items() if not key.startswith("_")}
        return json.dumps({**public, "_class_name": type(self.module).__name__}, sort_keys=True)

    @cached_property
    def encoder_hash(self) -> str:
        """SHA-256 over everything that decides what `encode` returns: architecture and encoder weights."""
        digest = hashlib.sha256(self.architecture.encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """z = E(x) without gradient.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W need not be multiples of the downscale factor.

        Returns:
            Latents (B, c, ceil(H / l), ceil(W / l)), float32. The border is repeated to the right and below up
            to a multiple of l, so the principal point keeps its pixel coordinates and nothing is stretched.
        """
        images = pad_to_multiple(images, self.downscale).to(self.device)
        dtype = getattr(torch, self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return in_tiles(self._encode, images, self.downscale, 1, lambda: self._encoder_margin).float()

    def _encode(self, images: Tensor) -> Tensor:
        return latents_of(self.module.encode(2 * images - 1))

    @cached_property
    def encoder_influence(self) -> Tensor:
        """(43, 43): how much a latent pixel depends on each square of l x l pixels around its own (`influence`)."""
        return influence(self._encode, 3, self.downscale, self.device)

    @cached_property
    def _encoder_margin(self) -> int | None:
        return receptive_margin(self.encoder_influence, SEAMLESS)

    @cached_property
    def _decoder_margin(self) -> int | None:
        return decoder_margin(Decoder(self.module), self.latent_channels, SEAMLESS)

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x^ = D(z) without gradient.

        Args:
            latents: (B, c, h, w).
            size: (H, W) to crop to, that of the encoded images; None: (l h, l w).

        Returns:
            Images (B, 3, H, W), clamped to [0, 1].
        """
        latents = latents.to(self.device)
        images = in_tiles(Decoder(self.module), latents, 1, self.downscale, lambda: self._decoder_margin)
        images = images.float().clamp(0, 1)
        return images if size is None else images[..., : size[0], : size[1]]

    @torch.no_grad()
    def encode_colour(self, colour: Tensor) -> Tensor:
        """The latent (c,) of a flat colour (3,) in [0, 1]: the background of a scene's latents."""
        return flat_latent(self.encode, colour.to(self.device))

    def make_decoder(self) -> Decoder:
        """A trainable copy of D; this autoencoder stays as it was."""
        return Decoder(copy.deepcopy(self.module)).requires_grad_(True)


def latents_of(encoded: Any, sample: bool = False) -> Tensor:
    """The latents (B, c, h, w) that a diffusers encoder returned: the mean or a sample of its posterior, if any."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.sample() if sample else encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


def flat_latent(encode: Callable[[Tensor], Tensor], colour: Tensor, size: int = 128) -> Tensor:
    """The latent (c,) of a colour (3,): from the middle of a flat image, far from the encoder's zero padding."""
    latents = encode(colour.view(1, 3, 1, 1).expand(1, 3, size, size))[0]
    h, w = latents.shape[-2:]
    return latents[:, h // 4 : h - h // 4, w // 4 : w - w // 4].mean(dim=(1, 2))


MIDDLE = 21
"""`influence` looks at so many cells on either side of the middle one."""


def influence(network: Callable[[Tensor], Tensor], channels: int, cell: int, device: torch.device) -> Tensor:
    """(43, 43): how much the middle cell of an encoder's or decoder's output depends on each cell of its input.

    Args:
        network: fully convolutional, or nearly so.
        channels: of its input.
        cell: input pixels along the side of a cell, l for an encoder and 1 for a decoder.
        device: of its weights.

    Returns:
        The energy of the gradient, float64, with the sum 1.
    """
    side = 2 * MIDDLE + 1
    inputs = torch.randn(1, channels, side * cell, side * cell, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(device).requires_grad_(True)
    with torch.enable_grad():
        outputs = network(inputs)
        middle = slice(MIDDLE * outputs.shape[-1] // side, (MIDDLE + 1) * outputs.shape[-1] // side)
        (gradient,) = torch.autograd.grad(outputs[:, :, middle, middle].square().sum(), inputs)
    energy = F.avg_pool2d(gradient.double().square().sum(dim=1, keepdim=True), cell)[0, 0]
    return energy / energy.sum()


def receptive_margin(energy: Tensor, tolerance: float = 1e-6) -> int | None:
    """How many cells around its own a cell depends on, but for a share of the energy (`influence`); None: more than 20,
    as with attention."""
    offsets = (torch.arange(len(energy), device=energy.device) - MIDDLE).abs()
    distance = torch.maximum(offsets[:, None], offsets)
    beyond = [float(energy[distance > margin].sum()) for margin in range(MIDDLE)]
    return next((margin for margin in range(MIDDLE) if beyond[margin] <= tolerance), None)


def decoder_margin(decoder: nn.Module, latent_channels: int, tolerance: float = 1e-6) -> int | None:
    """How many latent pixels around its own a decoded pixel depends on, as `receptive_margin`."""
    device = next(decoder.parameters()).device
    return receptive_margin(influence(decoder, latent_channels, 1, device), tolerance)


def seen_share(share: Tensor, weights: Tensor, radius: int = 4) -> Tensor:
    """The mean of a map (B, 1, h, w) over what each cell looks at, as far as it lies in the picture.

    Args:
        share: values of cells.
        weights: (43, 43) of the cells around a cell.
        radius: cells further away are left out.
    """
    kernel = weights[None, None, MIDDLE - radius : MIDDLE + radius + 1, MIDDLE - radius : MIDDLE + radius + 1]
    ones = torch.ones_like(share)
    return F.conv2d(share, kernel, padding=radius) / F.conv2d(ones, kernel, padding=radius)


TILE = 96
"""Cells of l x l pixels along the side of a tile."""
SEAMLESS = 1e-12
"""Tolerance of `receptive_margin` at which tiles show no seams."""


def in_tiles(
    network: Callable[[Tensor], Tensor], inputs: Tensor, cell: int, output_cell: int, margin: Callable[[], int | None]
) -> Tensor:
    """What an encoder or decoder makes of inputs (B, C, H, W), in tiles where they are large, which bounds the memory.

    A tile overlaps its neighbours by what the network looks at, so that nothing changes but for rounding.

    Args:
        network: fully convolutional.
        inputs: their sides are multiples of `cell`.
        cell: input pixels along the side of a cell, l for an encoder and 1 for a decoder.
        output_cell: output pixels along that side.
        margin: of `receptive_margin`, asked for large inputs; None: the network looks at the whole picture, and gets
            it.
    """
    rows, columns = inputs.shape[-2] // cell, inputs.shape[-1] // cell
    if rows * columns <= 4 * TILE**2 or (around := margin()) is None:
        return network(inputs)
    outputs = None
    for top in range(0, rows, TILE):
        for left in range(0, columns, TILE):
            first = max(0, top - around), max(0, left - around)
            last = min(rows, top + TILE + around), min(columns, left + TILE + around)
            window = inputs[..., first[0] * cell : last[0] * cell, first[1] * cell : last[1] * cell]
            made = network(window)
            if outputs is None:
                outputs = made.new_empty(*made.shape[:2], rows * output_cell, columns * output_cell)
            bottom, right = min(rows, top + TILE), min(columns, left + TILE)
            rows_made = slice((top - first[0]) * output_cell, (bottom - first[0]) * output_cell)
            columns_made = slice((left - first[1]) * output_cell, (right - first[1]) * output_cell)
            outputs[..., top * output_cell : bottom * output_cell, left * output_cell : right * output_cell] = made[
                ..., rows_made, columns_made
            ]
    assert outputs is not None
    return outputs


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the right and lower border of (B, C, H, W) until both sides are multiples of `multiple`."""
    height, width = images.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    return F.pad(images, pad, mode="replicate") if any(pad) else images


def architecture_shape(architecture: str) -> tuple[int, int]:
    """c and l of an architecture, as `Autoencoder.architecture` gives it.

    l = 2^(stages - 1): all of diffusers' classes halve the image between consecutive stages.
    """
    config = json.loads(architecture)
    stages = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return config["latent_channels"], 2 ** (len(stages) - 1)


def resolve_autoencoder(config: AutoencoderConfig) -> AutoencoderConfig:
    """A copy with `architecture` filled in, from the autoencoder's `config.json` alone.

    A config that has its architecture is returned as it is, whether its autoencoder is in reach or not.

    Raises:
        InputError: as `load_autoencoder`, weights aside.
    """
    if config.architecture is not None:
        return config
    _, _, without_weights = _find(config)
    return dataclasses.replace(config, architecture=Autoencoder(without_weights).architecture)


def load_autoencoder(autoencoder: str | Path | AutoencoderConfig) -> Autoencoder:
    """Load an autoencoder with its weights, on the CPU.

    Args:
        autoencoder: `bundled` or `bundled-ae`, which come with the package; a folder in diffusers' format; a Hugging
            Face hub id; or a config, which also takes a subfolder, a revision and the encoder's precision.

    Returns:
        The frozen autoencoder. `encode` takes images (B, 3, H, W) in [0, 1] to latents (B, c, ceil(H / l),
        ceil(W / l)), `decode` takes them back. For `bundled`, c = `latent_channels` = 16 and l = `downscale` = 8.

    Raises:
        InputError: it cannot be found or fetched, its class cannot be used, the installed diffusers does not know all
            keys of its `config.json`, or its weights cannot be read.
    """
    config = autoencoder if isinstance(autoencoder, AutoencoderConfig) else AutoencoderConfig(str(autoencoder))
    name, where, without_weights = _find(config)
    try:
        module = without_weights.from_pretrained(name, low_cpu_mem_usage=False, **where)
    except Exception as error:
        raise InputError(
            f"the weights of autoencoder '{name}' cannot be read ({one_line(error)}); fetch them again, or give "
            "another folder as name_or_path"
        ) from error
    return Autoencoder(module, config.encode_precision)


def decoder_from_architecture(architecture: str) -> Decoder:
    """An untrained decoder of a saved architecture, whose weights a checkpoint then fills.

    Raises:
        InputError: the installed diffusers does not know the architecture.
    """
    return Decoder(_untrained(json.loads(architecture), "the run's autoencoder"))


def _find(config: AutoencoderConfig) -> tuple[str, dict[str, str | None], Any]:
    """The name and the further arguments by which diffusers finds an autoencoder, and its module without weights."""
    import diffusers

    path = BUNDLED.get(config.name_or_path) or Path(config.name_or_path).expanduser()
    local = path.exists() or config.name_or_path.startswith((".", "/", "~"))
    name = str(path) if local else config.name_or_path
    if local and not path.exists():
        raise InputError(f"autoencoder folder {path} does not exist; give another as name_or_path, or 'bundled'")
    subfolder = config.subfolder
    if local and subfolder is None and not (path / "config.json").exists() and (path / "vae").is_dir():
        subfolder = "vae"
    where = {"subfolder": subfolder, "revision": config.revision}
    try:
        architecture = diffusers.AutoencoderKL.load_config(name, **where)
    except Exception as error:
        problem = "holds no readable config.json" if local else "could not be fetched from the Hugging Face hub"
        raise InputError(
            f"autoencoder '{name}' {problem} ({one_line(error)}); download it where there is a network and give its "
            "folder (config.json and diffusion_pytorch_model.safetensors) as name_or_path, or 'bundled'"
        ) from error
    with torch.device("meta"):  # neither time nor memory for weights
        return name, where, _untrained(architecture, f"autoencoder '{name}'")


def _untrained(architecture: dict[str, Any], what: str) -> nn.Module:
    """An autoencoder of an architecture, with random weights.

    Raises:
        InputError: the class cannot be used, or does not have all the keys. diffusers would ignore those and build
            another network, in which the same weights decode to rubbish.
    """
    import diffusers

    class_name = architecture.get("_class_name")
    if class_name not in SUPPORTED_CLASSES:
        raise InputError(
            f"{what} is a {class_name}; supported are {', '.join(SUPPORTED_CLASSES)}; where one is part of a larger "
            "model, give its folder as subfolder"
        )
    model_class: Any = getattr(diffusers, class_name)
    known = inspect.signature(model_class.__init__).parameters
    public = {key: value for key, value in architecture.items() if not key.startswith("_")}
    module = model_class.from_config({key: value for key, value in public.items() if key in known})
    unknown = [key for key in public if key not in module.config]  # AutoencoderTiny adds a key to its arguments
    if unknown:
        written_by = architecture.get("_diffusers_version", "a newer one")
        raise InputError(
            f"{what} has settings that {class_name} of diffusers {diffusers.__version__} does not know "
            f"({', '.join(unknown)}); install the version that wrote them ({written_by}), or correct its config.json"
        )
    return module
