"""`igae-compare`: the same cameras in several runs, next to each other, as one picture or one film."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Sequence

import tyro

from igae_nerfstudio.errors import InputError, reported_in_one_line

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras

CAPTIONS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}


@dataclass
class CompareCommand:
    """Show several runs of one scene from the same cameras, with their metrics below."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, or their config.yml: latent or RGB, of any method that loads."""
    output_path: Path = Path("comparison.png")
    """A .png (evaluation views in rows) or an .mp4 (a flight through the evaluation cameras)."""
    names: tuple[str, ...] = ()
    """Titles of the columns; by default methods and experiments."""
    views: int = 4
    """Number of evaluation views, evenly spread: the rows of a .png, and what metrics are of."""
    seconds: float = 5.0
    """Length of an .mp4."""
    frame_rate: int = 24
    """Frames per second of an .mp4."""

    def run(self) -> None:
        """Render all runs, print their metrics, and write the picture or the film.

        Raises:
            InputError: an option is out of range, a run cannot be loaded, or the runs are of different scenes.
        """
        import torch

        from igae_nerfstudio.console import log
        from igae_nerfstudio.figures import find_ffmpeg, sheet, to_uint8, write_film
        from igae_nerfstudio.files import write_atomically
        from igae_nerfstudio.runs import load_run

        film = self.output_path.suffix == ".mp4"
        if not film and self.output_path.suffix != ".png":
            raise InputError(f"--output-path {self.output_path} must end in .png or .mp4")
        if not self.runs or self.views < 1 or self.seconds <= 0 or self.frame_rate < 1:
            raise InputError("igae-compare needs at least one run, and positive --views, --seconds and --frame-rate")
        if self.names and len(self.names) != len(self.runs):
            raise InputError(f"there are {len(self.names)} --names for {len(self.runs)} runs; give one for each")
        if film:
            find_ffmpeg()  # now, and not after minutes of rendering

        first = load_run(self.runs[0])
        count = len(first.cameras)
        views = [i * count // self.views for i in range(self.views)] if self.views < count else list(range(count))
        cameras = (
            flight(first.cameras, round(self.seconds * self.frame_rate)) if film else first.cameras[torch.tensor(views)]
        )
        columns = {} if film else {"photo": [to_uint8(first.photo(view)) for view in views]}
        captions = {}
        for i, path in enumerate(self.runs):
            run = load_run(path) if i else first
            poses, others = (cameras.camera_to_worlds.cpu() for cameras in (first.cameras, run.cameras))
            if poses.shape != others.shape or not poses.allclose(others, atol=1e-4):
                raise InputError(
                    f"{path} and {self.runs[0]} have different evaluation cameras; compare runs of one dataset, "
                    "trained with the same dataparser options"
                )
            name = self.names[i] if self.names else run.name
            name = f"{name} ({i + 1})" if name in columns else name
            columns[name] = [to_uint8(run.render(cameras[j : j + 1]).rgb) for j in range(len(cameras))]
            metrics = run.evaluate(views)
            captions[name] = "\n".join(text.format(metrics[key]) for key, text in CAPTIONS.items() if key in metrics)
            log(f"{name}: {captions[name].replace(chr(10), ', ')} (mean of {len(views)} views)")
        self.output_path.parent.mkdir(parents=True, exist_ok=True)
        if film:
            rows = (dict(zip(columns, ([picture] for picture in row))) for row in zip(*columns.values()))
            write_film(self.output_path, [sheet(row, captions) for row in rows], self.frame_rate)
        else:
            picture = sheet(columns, captions)
            write_atomically(self.output_path, lambda file: picture.save(file, format="png"))
        log(str(self.output_path))


def flight(cameras: Cameras, frames: int) -> Cameras:
    """Cameras (frames,) on a path through all of `cameras` (N,), of the first one's size."""
    import torch
    from nerfstudio.cameras.camera_paths import get_interpolated_camera_path

    if len(cameras) == 1:
        return cameras[torch.zeros(frames, dtype=torch.long)]
    path = get_interpolated_camera_path(cameras, steps=max(2, -(-frames // (len(cameras) - 1))), order_poses=True)
    path.height[:], path.width[:] = int(cameras.height[0]), int(cameras.width[0])
    return path[torch.arange(frames) * len(path) // frames]


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command `igae-compare`; `arguments` are by default those of the process, `prog` its name in `--help`."""
    with reported_in_one_line(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other
        tyro.cli(CompareCommand, args=arguments, prog=prog, description=CompareCommand.__doc__).run()


if __name__ == "__main__":
    main()
