"""What a training shows: `metrics.jsonl` and figures; TensorBoard and Weights & Biases if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.figures import sheet
from igae_nerfstudio.files import append_json_line, keep_json_lines, write_atomically


class RunLog:
    """Numbers and figures of one training, in its output folder.

    Args:
        folder: of the training.
        tensorboard: also write event files into `folder/tensorboard`.
        wandb: also log to Weights & Biases (`WANDB_MODE=offline` needs no network).
        config: shown by Weights & Biases.
    """

    def __init__(
        self, folder: Path, tensorboard: bool = False, wandb: bool = False, config: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._run: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
        if wandb:
            try:
                import wandb as library

                self._run = library.init(project="igae-nerfstudio", dir=str(folder), config=config, name=folder.name)
            except Exception as error:
                raise InputError(
                    f"Weights & Biases cannot be used ({one_line(error)}); leave --wandb out, or set WANDB_MODE=offline"
                ) from error

    def numbers(self, stage: int, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl`: stage, step and the values."""
        append_json_line(self.path, {"stage": stage, "step": step, **values})
        named = {f"stage{stage}/{name}": value for name, value in values.items()}
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log({**named, "step": step})

    def figure(self, stage: int, step: int, columns: dict[str, list[np.ndarray]]) -> Path:
        """A PNG of named columns of uint8 pictures (H, W, 3), all of one size; returns its path."""
        picture = sheet(columns)
        path = self.folder / "figures" / f"stage{stage}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: picture.save(file, format="PNG"))
        if self._writer is not None:
            self._writer.add_image(f"stage{stage}/views", np.asarray(picture), step, dataformats="HWC")
        if self._run is not None:
            import wandb

            self._run.log({f"stage{stage}/views": wandb.Image(picture), "step": step})
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
