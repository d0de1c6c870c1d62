"""What a training leaves to look at: `metrics.jsonl` and figures always, TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import append_json_line, keep_json_lines, write_atomically

COLUMNS = ("view", "autoencoded", "latent of view", "rendered latent", "decoded render")


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR in dB (B,) of pictures or latents (B, ...) with range 1."""
    error = (images.float() - targets.float()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-10))


class RunLog:
    """Numbers and figures of one training.

    Args:
        folder: the training's output folder.
        tensorboard: also write event files into `folder/tensorboard`.
        wandb: also log to Weights & Biases (`WANDB_MODE=offline` needs no network).
        config: written with the run where the logger can show it.
    """

    def __init__(self, folder: Path, tensorboard: bool, wandb: bool, config: Dict[str, Any]) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = self._run = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
        if wandb:
            try:
                import wandb as library

                self._run = library.init(project="igae-nerfstudio", dir=str(folder), config=config, name=folder.name)
            except Exception as error:
                raise InputError(
                    f"Weights & Biases cannot be used ({' '.join(str(error).split()) or type(error).__name__}); leave "
                    "--wandb out, or set WANDB_MODE=offline"
                ) from error

    def numbers(self, stage: int, step: int, values: Dict[str, float]) -> None:
        """One line of `metrics.jsonl`: stage, step and the values."""
        append_json_line(self.path, {"stage": stage, "step": step, **values})
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"stage{stage}/{name}", value, step)
        if self._run is not None:
            self._run.log({**{f"stage{stage}/{name}": value for name, value in values.items()}, "step": step})

    def figure(self, stage: int, step: int, rows: List[List[Tensor]]) -> Path:
        """A PNG of rows of pictures (H, W, 3) in [0, 1] under the names in `COLUMNS`; returns its path."""
        pictures = torch.cat([torch.cat(row, dim=1) for row in rows], dim=0)
        height, width = rows[0][0].shape[:2]
        sheet = Image.new("RGB", (pictures.shape[1], pictures.shape[0] + 14), "white")
        array = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(array), (0, 14))
        draw = ImageDraw.Draw(sheet)
        for column, name in enumerate(COLUMNS):
            draw.text((column * width + 2, 1), name, fill="black")
        path = self.folder / "figures" / f"stage{stage}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: sheet.save(file, format="PNG"))
        if self._writer is not None:
            self._writer.add_image(f"stage{stage}/views", torch.from_numpy(array), step, dataformats="HWC")
        if self._run is not None:
            import wandb

            self._run.log({f"stage{stage}/views": wandb.Image(sheet), "step": step})
        return path

    def rewind(self, stage: int, step: int) -> None:
        """Forget lines after a step, which a resumed training writes again."""
        keep_json_lines(self.path, lambda entry: (entry["stage"], entry["step"]) <= (stage, step))

    def close(self) -> None:
        """Write what is still in buffers."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()
