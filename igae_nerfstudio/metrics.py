"""PSNR, SSIM and LPIPS."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.errors import InputError, one_line

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels; smaller pictures have no SSIM."""

PerceptualNetwork = Literal["alex", "vgg"]
"""The network whose features LPIPS compares."""


class _Weights(NamedTuple):
    metric: str
    network: str
    file: str


_WEIGHTS: dict[PerceptualNetwork, _Weights] = {
    "alex": _Weights("lpips", "AlexNet", "alexnet-owt-7be5be79.pth"),
    "vgg": _Weights("lpips_vgg", "VGG16", "vgg16-397923af.pth"),
}

LARGEST_VGG_PICTURE = 2_000_000
"""Pixels of a picture above which `lpips_vgg` is left out: VGG16's features of two such pictures are 5 GB."""


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, for values in [0, 1].

    Args:
        prediction: (B, ...).
        target: the same.

    Returns:
        (B,), of each picture; at most 120 dB.
    """
    error = (prediction.detach().float() - target.float()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-12))


class ImageMetrics:
    """Metrics of pictures (H, W, C) with values in [0, 1].

    LPIPS' networks are loaded when first used and kept out of every module, hence out of checkpoints. A network whose
    weights cannot be had is left out, after one line that says so; VGG16's are never downloaded here.
    """

    def __init__(self) -> None:
        self._lpips: dict[PerceptualNetwork, PerceptualLoss | None] = {}
        self._said_too_large = False

    def __call__(
        self,
        prediction: Tensor,
        target: Tensor,
        prefix: str = "",
        mask: Tensor | None = None,
        networks: Sequence[PerceptualNetwork] = ("alex",),
    ) -> dict[str, float]:
        """`psnr`, `ssim` and, of RGB pictures, `lpips` and `lpips_vgg`, each with `prefix` before its name.

        Args:
            prediction: (H, W, C).
            target: (H, W, C); PSNR's and SSIM's data range is 1.
            prefix: before the names of the metrics.
            mask: (H, W, 1) bool; where it is False the pictures count as equal, and PSNR is that of the other pixels.
            networks: of LPIPS: `alex` gives `lpips`, `vgg` gives `lpips_vgg`, for some 20 times the computing time.
        """
        from torchmetrics.functional.image import structural_similarity_index_measure

        prediction, target = (image.permute(2, 0, 1)[None].float() for image in (prediction, target))
        compared = (prediction, target)
        if mask is not None:
            compared = (prediction[..., mask[..., 0]], target[..., mask[..., 0]])
            prediction = torch.where(mask.permute(2, 0, 1), prediction, target)
        metrics = {"psnr": float(psnr(*compared))}
        if min(target.shape[-2:]) >= SSIM_WINDOW:
            channels = zip(prediction.split(1, dim=1), target.split(1, dim=1))  # one at a time: SSIM of 4K takes GiB
            ssim: Any = [structural_similarity_index_measure(*pair, data_range=1.0) for pair in channels]
            metrics["ssim"] = float(torch.stack(ssim).mean())
        for network in networks if target.shape[1] == 3 else ():
            if network == "vgg" and target[0, 0].numel() > LARGEST_VGG_PICTURE:
                if not self._said_too_large:
                    warn(f"lpips_vgg is left out: pictures have more than {LARGEST_VGG_PICTURE:,} pixels.")
                self._said_too_large = True
            elif (lpips := self._load_lpips(network, target.device)) is not None:
                metrics[_WEIGHTS[network].metric] = float(lpips(prediction.clamp(0, 1), target.clamp(0, 1)))
        return {prefix + name: value for name, value in metrics.items()}

    def _load_lpips(self, network: PerceptualNetwork, device: torch.device) -> PerceptualLoss | None:
        if network not in self._lpips:
            self._lpips[network] = None
            if network == "vgg" and not _file_of(network).exists():
                fetch = "python -c \"import lpips; lpips.LPIPS(net='vgg')\""
                log(f"lpips_vgg is left out: VGG16's weights (528 MB) are not in torch's cache; {fetch} fetches them")
            else:
                try:
                    self._lpips[network] = PerceptualLoss(network)
                except InputError as error:
                    warn(f"{_WEIGHTS[network].metric} is left out: {error}")
        lpips = self._lpips[network]
        return None if lpips is None else lpips.to(device)


def _file_of(network: PerceptualNetwork) -> Path:
    """Where torch keeps its weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS[network].file


def common_names(found: Sequence[dict[str, float]]) -> list[str]:
    """The metrics that all pictures have: small and very large ones lack some."""
    return [name for name in found[0] if all(name in metrics for metrics in found)]


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018), frozen; L_p of equation 10.

    Args:
        network: `alex` (AlexNet) or `vgg` (VGG16).

    Raises:
        InputError: its weights can neither be read from torch's cache nor fetched.
    """

    def __init__(self, network: PerceptualNetwork = "alex") -> None:
        super().__init__()
        try:
            import lpips

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls torchvision in an older way
                self.network: nn.Module = lpips.LPIPS(net=network, verbose=False)
        except Exception as error:
            file = _file_of(network)
            remedy = f"delete {file}" if file.exists() else f"put torchvision's {file.name} into {file.parent}"
            raise InputError(
                f"the weights of {_WEIGHTS[network].network} for LPIPS cannot be read or fetched "
                f"({type(error).__name__}: {one_line(error)[:100]}); {remedy}, or run once where there is a network"
            ) from error
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean distance of images (B, 3, H, W) about [0, 1]; gradient to `images`."""
        return self.network(2 * images - 1, 2 * targets - 1).mean()
