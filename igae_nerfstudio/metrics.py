"""PSNR, SSIM and LPIPS."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from igae_nerfstudio.console import warn
from igae_nerfstudio.errors import InputError, one_line

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels; smaller pictures have no SSIM."""


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

    LPIPS (AlexNet) is loaded when first used and kept out of every module, hence out of checkpoints. Where its
    weights cannot be had it is left out, after one line that says so.
    """

    def __init__(self) -> None:
        self._lpips: nn.Module | None = None
        self._lpips_missing = False

    def __call__(
        self, prediction: Tensor, target: Tensor, prefix: str = "", mask: Tensor | None = None
    ) -> dict[str, float]:
        """`psnr`, `ssim` and, of RGB pictures, `lpips`, each with `prefix` before its name.

        Args:
            prediction: (H, W, C).
            target: (H, W, C); PSNR's and SSIM's data range is 1.
            prefix: before the names of the metrics.
            mask: (H, W, 1) bool; where it is False the pictures count as equal, and PSNR is that of the other pixels.
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
        if target.shape[1] == 3 and (lpips := self._load_lpips(target.device)) is not None:
            metrics["lpips"] = float(lpips(prediction.clamp(0, 1), target.clamp(0, 1)))
        return {prefix + name: value for name, value in metrics.items()}

    def _load_lpips(self, device: torch.device) -> nn.Module | None:
        if self._lpips is None and not self._lpips_missing:
            try:
                self._lpips = PerceptualLoss()
            except InputError as error:
                self._lpips_missing = True
                warn(
                    f"LPIPS is left out: the weights of its AlexNet cannot be had ({type(error.__cause__).__name__}); "
                    f"put alexnet-owt-7be5be79.pth into {torch.hub.get_dir()}/checkpoints to have it."
                )
        return None if self._lpips is None else self._lpips.to(device)


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al. 2018) with AlexNet, frozen; L_p of equation 10.

    Raises:
        InputError: its weights are neither in torch's cache nor can be fetched.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            import lpips

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it calls torchvision in an older way
                self.network: nn.Module = lpips.LPIPS(net="alex", verbose=False)
        except Exception as error:
            raise InputError(
                f"the perceptual loss needs AlexNet's weights, which cannot be had ({one_line(error)}); fetch them "
                "once where there is a network, or set its weight to 0"
            ) from error
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean distance of images (B, 3, H, W) about [0, 1]; gradient to `images`."""
        return self.network(2 * images - 1, 2 * targets - 1).mean()
