"""PSNR, SSIM and LPIPS: closed forms, which pictures have which, and networks whose weights cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from lpips import LPIPS
from torch import Tensor, nn

from igae_nerfstudio import metrics as module
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.metrics import ImageMetrics, PerceptualLoss, common_names

BOTH: Any = ("alex", "vgg")


class Distance(nn.Module):
    """Stands in for LPIPS: 1 for AlexNet and 2 for VGG16, times the mean absolute difference in [-1, 1]."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        self.scale = {"alex": 1, "vgg": 2}[net]

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.scale * (images - targets).abs().mean()


@pytest.fixture(autouse=True)
def vgg_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in torch's cache in the place of VGG16's weights, which are never downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir()
    path.touch()
    return path


def test_vgg_is_not_downloaded(
    vgg_in_the_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lpips, "LPIPS", Distance)
    vgg_in_the_cache.unlink()
    metrics, image = ImageMetrics(), torch.rand(32, 32, 3)
    for _ in range(2):
        assert set(metrics(image, image, networks=BOTH)) == {"psnr", "ssim", "lpips"}
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("lpips.LPIPS(net='vgg')") == 1


def test_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "LPIPS", Distance)
    image = torch.rand(32, 32, 3) / 2
    result = ImageMetrics()(image + 0.1, image, networks=BOTH)
    assert result["psnr"] == pytest.approx(20, abs=1e-3) and result["ssim"] < 1
    assert result["lpips"] == pytest.approx(0.2, abs=1e-5) and result["lpips_vgg"] == pytest.approx(0.4, abs=1e-5)
    assert set(ImageMetrics()(image, image, prefix="x_")) == {"x_psnr", "x_ssim", "x_lpips"}
    mask = torch.zeros(32, 32, 1, dtype=torch.bool)
    mask[:16] = True
    assert ImageMetrics()(image + 0.1, image, mask=mask, networks=BOTH)["lpips_vgg"] == pytest.approx(0.2, abs=1e-5)


def test_which_pictures_have_which(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lpips, "LPIPS", Distance)
    monkeypatch.setattr(module, "LARGEST_VGG_PICTURE", 32 * 32)
    metrics, large = ImageMetrics(), torch.rand(32, 33, 3)
    small = metrics(large[:, :32], large[:, :32], networks=BOTH)
    found = [small, metrics(large, large, networks=BOTH), metrics(large, large, networks=BOTH)]
    assert set(small) == {"psnr", "ssim", "lpips", "lpips_vgg"} and set(found[1]) == {"psnr", "ssim", "lpips"}
    assert common_names(found) == ["psnr", "ssim", "lpips"]
    assert capsys.readouterr().out.count("lpips_vgg is left out: pictures have more than 1,024 pixels") == 1
    assert set(metrics(large[:8, :8], large[:8, :8])) == {"psnr", "lpips"}
    assert set(metrics(large[..., :2], large[..., :2], networks=BOTH)) == {"psnr", "ssim"}


@pytest.mark.parametrize(("missing", "metric"), [("alex", "lpips"), ("vgg", "lpips_vgg")])
def test_a_network_without_weights_costs_itself_and_one_line(
    missing: str, metric: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(net: str, verbose: bool) -> Distance:
        if net == missing:
            raise OSError("no network")
        return Distance(net, verbose)

    monkeypatch.setattr(lpips, "LPIPS", offline)
    metrics, image = ImageMetrics(), torch.rand(32, 32, 3)
    for _ in range(2):
        assert set(metrics(image, image, networks=BOTH)) == {"psnr", "ssim", "lpips", "lpips_vgg"} - {metric}
    assert capsys.readouterr().out.count(f"{metric} is left out") == 1


@pytest.mark.parametrize(
    ("network", "file", "content"),
    [("alex", "alexnet-owt-7be5be79.pth", "of another network"), ("vgg", "vgg16-397923af.pth", b"no weights")],
)
def test_damaged_and_wrong_weights(
    network: Any, file: str, content: bytes | str, vgg_in_the_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lpips, "LPIPS", LPIPS)
    path = vgg_in_the_cache.parent / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError) as error:
        PerceptualLoss(network)
    message = str(error.value)
    assert f"delete {path}" in message and "\n" not in message and len(message) < 400 + len(str(path))
