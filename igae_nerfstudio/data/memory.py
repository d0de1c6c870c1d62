"""Whether a scene fits into memory, before it is read and before it is trained: a process that the system kills for its
memory cannot say why."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, Set, Tuple

import psutil
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from igae_nerfstudio.autoencoder.autoencoder import Autoencoder
from igae_nerfstudio.errors import InputError

LARGE_SPLIT = 50_000_000
"""Pixels of a split (200 photos of 500 x 500) from which on its memory is looked at."""
LARGE_STEP = 1 << 15
"""Rays of a step (32,768: four photos of 720 x 720) from which on its memory is looked at."""
SHARE = 256
"""Of a large step, one ray in so many is tried."""
SHRINK = "shrink the photos with --pipeline.datamanager.camera-res-scale-factor {factor:g}"
SMALLER_STEPS = "take fewer photos a step (--pipeline.datamanager.images-per-batch), or " + SHRINK


def free_memory(device: torch.device | str) -> int:
    """Bytes that a device has left (of the CPU: that the system can give without swapping)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available


def check_fits(needed: float, device: torch.device | str, what: str, remedy: str = SHRINK) -> None:
    """Raises InputError where `what` needs more bytes than a device has left; it names both and a remedy, in which
    `factor` is a scale of the photos that fits."""
    free = free_memory(device)
    if needed > free:
        factor = next((f for f in (0.5, 0.25, 0.125) if needed * f * f < free), 0.1)
        raise InputError(
            f"{what} need about {needed / 1e9:.1f} GB, more than the {free / 1e9:.1f} GB that are free; "
            f"{remedy.format(factor=factor)}"
        )


def kept_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the gradient of a computation.

    Args:
        module: its parameters do not count.
        forward: the computation.
    """
    seen: Set[int] = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes = [0]

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.enable_grad():
        forward()
    return sum(sizes)


class PeakMemory(TorchDispatchMode):
    """While entered, counts the bytes of the tensors that were made since and live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        """The most so far."""
        self._live: Dict[int, Tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {place for place, _ in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        self._live = {place: (storage, size) for place, (storage, size) in self._live.items() if not storage.expired()}
        for place, storage in _storages(made):
            if place not in given:  # neither a view of what was there nor changed in place
                self._live.setdefault(place, (StorageWeakRef(storage), storage.nbytes()))
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return made


def _storages(values: Any) -> Iterator[Tuple[int, torch.UntypedStorage]]:
    """Address and storage of each tensor in nested containers."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage


def check_split_fits(count: int, size: Tuple[int, int], autoencoder: Autoencoder, device: torch.device | str) -> None:
    """Whether a split can be read and encoded.

    Counted are photos as uint8, latents and rays (11 numbers each), which exist twice while they are stacked, and what
    the encoder needs for one photo, from a small one.

    Args:
        count: photos.
        size: (H, W) of each.
        autoencoder: that encodes them.
        device: where latents and rays go.

    Raises:
        InputError: it cannot.
    """
    height, width = size
    if count * height * width < LARGE_SPLIT:
        return
    latent_pixels = -(-height // autoencoder.downscale) * -(-width // autoencoder.downscale)
    tile = 8 * autoencoder.downscale
    picture = torch.zeros(1, 3, tile, tile, dtype=torch.uint8, device=autoencoder.device)
    with torch.no_grad(), PeakMemory() as peak:
        autoencoder.encode(picture.float() / 255)
    needed = count * height * width * 3 + 2 * count * latent_pixels * (autoencoder.latent_channels + 11) * 4
    needed += peak.bytes * height * width // tile**2
    check_fits(needed, device, f"{count} photos of {width} x {height} and their latents")
