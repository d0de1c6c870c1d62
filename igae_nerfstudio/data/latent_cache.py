"""Encoded photos on disk: encode once, never again for the same encoder and the same picture.

An entry is two files, named by its key: `KEY.npy` with the latent image (h, w, c) in float32 and `KEY.json`, a
sidecar that a person can read and that holds the SHA-256 of the latents. The key is a hash of everything that
decides the latents: encoder weights and architecture, the picture's pixels and size, and the arithmetic. Nothing
else is in it: two scenes that share a photo share its entry.

Both files are written beside their place and moved there, the sidecar last, so a process that dies leaves
either a whole entry or none. An entry that does not match its sidecar is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.files import write_atomically

FORMAT = 1
"""Raised when the meaning of an entry changes; it is part of every key."""
BATCH_PIXELS = 2**22
"""Pixels that a GPU encodes at a time."""


@dataclass
class CacheReport:
    """What happened to the pictures of one call."""

    found: int = 0
    encoded: int = 0
    damaged: list[str] = field(default_factory=list)
    unwritable: str | None = None
    """Why nothing could be written any more; the latents are then in memory only."""

    def __str__(self) -> str:
        text = f"{self.found} latent images from the cache, {self.encoded} encoded"
        if self.damaged:
            text += f" ({len(self.damaged)} of them replace damaged entries)"
        return text


@dataclass
class LatentCache:
    """A folder of latent images of one autoencoder."""

    directory: Path
    autoencoder: Autoencoder

    def key(self, image: Tensor) -> str:
        """The entry's name: SHA-256 over all that decides the latents of `image`, (H, W, 3) uint8."""
        identity = {
            "format": FORMAT,
            "encoder": self.autoencoder.encoder_hash,
            "precision": self.autoencoder.precision,
            "pixels": hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest(),
            "size": list(image.shape),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:40]

    def latents(self, images: Iterable[Tensor], names: Sequence[str]) -> tuple[list[Tensor], CacheReport]:
        """Latent images (h, w, c) on the CPU, of photos (H, W, 3) uint8, from the cache where it has them.

        Photos are taken one after another, and on a GPU encoded several at a time. Latents are kept as `compact`
        says. Sidecars and messages call the photos by `names`, usually file names.
        """
        report = CacheReport()
        latents: list[Tensor] = []
        waiting: list[tuple[int, str, Tensor]] = []  # photos of one size, to be encoded together

        def encode() -> None:
            pixels = torch.stack([image for _, _, image in waiting]).to(self.autoencoder.device)
            encoded = self.autoencoder.encode(pixels.permute(0, 3, 1, 2).float() / 255).permute(0, 2, 3, 1)
            for (index, key, image), latent in zip(waiting, encoded.cpu()):
                report.encoded += 1
                if report.unwritable is None:
                    try:
                        self._write(key, latent.contiguous(), image, names[index])
                    except OSError as error:
                        report.unwritable = f"{error.strerror or error} ({self.directory})"
                latents[index] = compact(latent)
            waiting.clear()

        for index, image in enumerate(images):
            key = self.key(image)
            latent = self._read(key, names[index], report)
            latents.append(torch.empty(0) if latent is None else compact(latent))
            if latent is None:
                if waiting and (waiting[0][2].shape != image.shape or len(waiting) >= self._together(image)):
                    encode()
                waiting.append((index, key, image))
        if waiting:
            encode()
        return latents, report

    def _together(self, image: Tensor) -> int:
        """How many photos of this size are encoded at a time."""
        pixels = image.shape[0] * image.shape[1]
        return 1 if self.autoencoder.device.type == "cpu" else max(1, BATCH_PIXELS // pixels)

    def _read(self, key: str, name: str, report: CacheReport) -> Tensor | None:
        entry, sidecar = self.directory / f"{key}.npy", self.directory / f"{key}.json"
        if not sidecar.exists():
            return None
        try:
            expected = json.loads(sidecar.read_text())["sha256"]
            latent = np.load(entry, allow_pickle=False)
            if hashlib.sha256(latent.tobytes()).hexdigest() != expected:
                raise ValueError("checksum differs")
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            report.damaged.append(name)
            return None
        report.found += 1
        return torch.from_numpy(latent)

    def _write(self, key: str, latent: Tensor, image: Tensor, name: str) -> None:
        array = latent.numpy()
        sidecar = {
            "image": name,
            "image_size": list(image.shape),
            "latent_size": list(array.shape),
            "dtype": str(array.dtype),
            "precision": self.autoencoder.precision,
            "encoder_sha256": self.autoencoder.encoder_hash,
            "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / f"{key}.npy", lambda file: np.save(file, array))
        write_atomically(
            self.directory / f"{key}.json", lambda file: file.write(json.dumps(sidecar, indent=1).encode())
        )


def compact(latents: Tensor) -> Tensor:
    """Latents in half precision, if that changes them by no more than a thousandth of their deviation (60 dB)."""
    half = latents.half()
    error = (half.float() - latents).square().mean().sqrt()
    return half if bool(error <= 1e-3 * latents.std()) else latents
