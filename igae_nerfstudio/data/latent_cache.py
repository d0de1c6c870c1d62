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
from typing import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.files import write_atomically

FORMAT = 1
"""Raised when the meaning of an entry changes; it is part of every key."""


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

    def latents(
        self,
        images: Sequence[Tensor] | Tensor,
        names: Sequence[str],
        track: Callable[[Iterable[int]], Iterable[int]] = iter,
    ) -> tuple[list[Tensor], CacheReport]:
        """Latent images (h, w, c), float32 on the CPU, of photos (H, W, 3) uint8, from the cache where it has them.

        Sidecars and messages call the photos by `names`, usually file names; `track` wraps the iteration.
        """
        report = CacheReport()
        latents = []
        for index in track(range(len(images))):
            image, name = images[index], names[index]
            key = self.key(image)
            latent = self._read(key, name, report)
            if latent is None:
                pixels = image.to(self.autoencoder.device).permute(2, 0, 1)[None].float() / 255
                latent = self.autoencoder.encode(pixels)[0].permute(1, 2, 0).contiguous().cpu()
                report.encoded += 1
                if report.unwritable is None:
                    try:
                        self._write(key, latent, image, name)
                    except OSError as error:
                        report.unwritable = f"{error.strerror or error} ({self.directory})"
            latents.append(latent)
        return latents, report

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
