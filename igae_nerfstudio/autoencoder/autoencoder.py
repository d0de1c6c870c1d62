"""A narrow contract over diffusers' image autoencoders.

Symbols: an image x is (B, 3, H, W) with values in [0, 1]; its latent z = E(x) is (B, c, h, w) with
h = ceil(H / l), w = ceil(W / l), where l is the downscale factor and c the number of latent channels
(paper, section 3.1). Latents are the encoder's own numbers: the mean of the posterior where there is one, and
neither scaled nor shifted. x^ = D(z) is (B, 3, l h, l w), not clamped, so that a loss on it keeps its gradient.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Literal, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Annotated
from tyro.conf import Suppress

from igae_nerfstudio.errors import InputError

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
    subfolder: Optional[str] = None
    """Folder inside `name_or_path` that holds the autoencoder, often `vae`; None: the top."""
    revision: Optional[str] = None
    """Branch, tag or commit on the hub; None: the default branch."""
    encode_precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the frozen encoder; bfloat16 halves its time and memory on recent GPUs."""
    architecture: Annotated[Optional[str], Suppress] = None
    """diffusers' config as JSON. Training writes it into the run's `config.yml`, from which the decoder is
    rebuilt where the autoencoder itself is out of reach."""


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
        config: Any = module.config
        self.latent_channels: int = config["latent_channels"]
        self.downscale = downscale_of(config)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> Autoencoder:
        self.module.to(device)
        return self

    @cached_property
    def architecture(self) -> str:
        """diffusers' config as JSON, enough to rebuild the modules without their weights.

        Without diffusers' private entries, which say where the files lay and which version wrote them: the same
        autoencoder in another folder is the same autoencoder.
        """
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
            return latents_of(self.module.encode(2 * images - 1)).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, size: Optional[tuple[int, int]] = None) -> Tensor:
        """x^ = D(z) without gradient, cropped to `size` = (H, W) and clamped to [0, 1]."""
        images = Decoder(self.module)(latents.to(self.device)).float().clamp(0, 1)
        return images if size is None else images[..., : size[0], : size[1]]

    @torch.no_grad()
    def encode_colour(self, colour: Tensor, size: int = 128) -> Tensor:
        """What the encoder makes of a flat picture: the latent background of scenes on that background.

        Args:
            colour: (3,) in [0, 1].
            size: side of the flat picture in pixels.

        Returns:
            Latent (c,).
        """
        return flat_latent(self.encode, colour.to(self.device), size)

    def make_decoder(self) -> Decoder:
        """A trainable copy of D; this autoencoder stays as it was."""
        return _channels_last(Decoder(copy.deepcopy(self.module)).requires_grad_(True))


def latents_of(encoded: Any, sample: bool = False) -> Tensor:
    """The latents (B, c, h, w) in what a diffusers encoder returns: of its posterior, where there is one, the mean or
    a sample."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.sample() if sample else encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


def flat_latent(encode: Callable[[Tensor], Tensor], colour: Tensor, size: int = 128) -> Tensor:
    """The latent (c,) of a colour (3,), in the inner half of a flat picture, where the zero padding at the encoder's
    borders has no influence."""
    latents = encode(colour.view(1, 3, 1, 1).expand(1, 3, size, size))[0]
    h, w = latents.shape[-2:]
    return latents[:, h // 4 : h - h // 4, w // 4 : w - w // 4].mean(dim=(1, 2))


def receptive_margin(decoder: Decoder, latent_channels: int, tolerance: float = 1e-6) -> Optional[int]:
    """How many latent pixels around its own a decoded pixel depends on; None: more than 20, as with attention.

    Args:
        decoder: D.
        latent_channels: c.
        tolerance: share of the gradient's energy that may lie further away; 0: none.
    """
    parameter = next(decoder.parameters())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, latent_channels, 43, 43, generator=generator).to(parameter.device).requires_grad_(True)
    images = decoder(latents)
    downscale = images.shape[-1] // 43
    middle = slice(21 * downscale, 22 * downscale)
    (gradient,) = torch.autograd.grad(images[:, :, middle, middle].square().sum(), latents)
    energy = gradient[0].double().square().sum(dim=0)
    for margin in range(21):
        inside = slice(21 - margin, 22 + margin)
        outside = energy.clone()
        outside[inside, inside] = 0
        if float(outside.sum()) <= tolerance * float(energy.sum()):
            return margin
    return None


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the right and lower border of (B, C, H, W) until both sides are multiples of `multiple`."""
    height, width = images.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    return F.pad(images, pad, mode="replicate") if any(pad) else images


def downscale_of(config: Any) -> int:
    """l = 2^(stages - 1): all of diffusers' classes halve the picture between consecutive stages."""
    stages = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return 2 ** (len(stages) - 1)


def load_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Load an autoencoder with its weights.

    Raises:
        InputError: it cannot be found or fetched, or it is of a class that cannot be used.
    """
    diffusers = _quiet_diffusers()
    source = BUNDLED.get(config.name_or_path) or Path(config.name_or_path).expanduser()
    local = source.exists() or config.name_or_path.startswith((".", "/", "~"))
    name = str(source) if local else config.name_or_path
    if local and not source.exists():
        raise InputError(
            f"autoencoder folder {source} does not exist; pass an existing one with "
            "--pipeline.autoencoder.name-or-path DIR, or 'bundled'"
        )
    subfolder = config.subfolder
    if local and subfolder is None and not (source / "config.json").exists() and (source / "vae").is_dir():
        subfolder = "vae"
    where = {"subfolder": subfolder, "revision": config.revision}
    try:
        class_name = diffusers.AutoencoderKL.load_config(name, **where).get("_class_name")
    except Exception as error:
        problem = "holds no readable config.json" if local else "could not be fetched from the Hugging Face hub"
        raise InputError(
            f"autoencoder '{name}' {problem} ({first_line(error)}); download it where there is a network and pass "
            "its folder (config.json and diffusion_pytorch_model.safetensors) with "
            "--pipeline.autoencoder.name-or-path DIR, or use 'bundled'"
        ) from error
    if class_name not in SUPPORTED_CLASSES:
        raise InputError(
            f"autoencoder '{name}' is a {class_name}; supported are {', '.join(SUPPORTED_CLASSES)}, "
            "with --pipeline.autoencoder.subfolder NAME where it is one part of a larger model"
        )
    try:
        module = getattr(diffusers, class_name).from_pretrained(name, low_cpu_mem_usage=False, **where)
    except Exception as error:
        raise InputError(
            f"the weights of autoencoder '{name}' cannot be read ({first_line(error)}); fetch them again or pass "
            "another folder with --pipeline.autoencoder.name-or-path DIR"
        ) from error
    return Autoencoder(module, config.encode_precision)


def decoder_from_architecture(architecture: str) -> Decoder:
    """An untrained decoder of a saved architecture, whose weights a checkpoint then fills."""
    diffusers = _quiet_diffusers()
    config = json.loads(architecture)
    return _channels_last(Decoder(getattr(diffusers, config["_class_name"]).from_config(config)))


def _channels_last(decoder: Decoder) -> Decoder:
    """Renders come with channels last, (B, h, w, c): convolutions in that order take a fifth to a quarter less time
    on a CPU."""
    return decoder.to(memory_format=torch.channels_last)


def _quiet_diffusers() -> Any:
    """diffusers, imported when first needed; it warns about keys that its own `save_pretrained` writes."""
    import diffusers
    import safetensors.torch  # noqa: F401  older diffusers use it without importing it

    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for one-line messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
