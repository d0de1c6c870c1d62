"""What a training leaves to look at: `metrics.jsonl` and figures always, TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from igae_nerfstudio.console import warn
from igae_nerfstudio.errors import InputError
from igae_nerfstudio.files import append_json_line, keep_json_lines, write_atomically

COLUMNS = ("view", "autoencoded", "latent of view", "rendered latent", "decoded render")


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR in dB (B,) of pictures or latents (B, ...) with range 1."""
    error = (images.float() - targets.float()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-10))


class RunLog:
    """Numbers and figures of one training, which goes on without those that cannot be written.

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
        self._writer: Any = None
        self._run: Any = None
        self._warned = False
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            _quiet_writer_threads()
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
        with self._going_on():
            append_json_line(self.path, {"stage": stage, "step": step, **values})
        with self._events():
            for name, value in values.items() if self._writer is not None else ():
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
        with self._going_on():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, lambda file: sheet.save(file, format="PNG"))
        with self._events():
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
        with self._events():
            if self._writer is not None:
                self._writer.close()
        if self._run is not None:
            self._run.finish()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A log that cannot be written stops no training; one line says so, the first time."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                warn(
                    f"Figures or numbers cannot be written to {self.folder} ({error.strerror or error}); the training "
                    "goes on without them. Free some space."
                )
            self._warned = True

    @contextmanager
    def _events(self) -> Iterator[None]:
        """TensorBoard's file, which cannot be gone on with after a write that failed."""
        with self._going_on():
            try:
                yield
            except OSError:
                self._writer = None
                raise


def _quiet_writer_threads() -> None:
    """TensorBoard writes in a thread of its own. An error there is raised by the next call; that the thread shows it as
    a traceback as well helps nobody."""
    before = threading.excepthook

    def hook(arguments: Any) -> None:
        of_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    threading.excepthook = hook
