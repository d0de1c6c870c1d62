"""`igae-compare`: the same cameras in several runs, side by side, as one picture or one film."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

import tyro
from typing_extensions import Annotated

CAPTIONS = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}


@dataclass
class CompareCommand:
    """Show several runs of one scene from the same cameras, with their metrics below."""

    runs: Annotated[Tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, or their config.yml: latent or RGB, of any method that loads."""
    output_path: Path = Path("comparison.png")
    """A .png (evaluation views in rows) or an .mp4 (a way through the evaluation cameras)."""
    names: Tuple[str, ...] = ()
    """Titles of the columns; by default methods and experiments."""
    views: int = 4
    """Evaluation views, evenly spread: the rows of a .png, and what metrics are of."""
    seconds: float = 5.0
    """Length of an .mp4."""
    frame_rate: int = 24
    """Of an .mp4, frames per second."""

    def run(self) -> None:
        """Render and write."""
        from igae_nerfstudio.engine.interruption import ends_in_one_line

        with ends_in_one_line(f"while comparing: {self.output_path} was not written, and the runs are as they were"):
            self._run()

    def _run(self) -> None:
        from igae_nerfstudio.console import log
        from igae_nerfstudio.errors import InputError
        from igae_nerfstudio.figures import find_ffmpeg, sheet, to_uint8, write_film
        from igae_nerfstudio.files import write_atomically
        from igae_nerfstudio.pipelines.finished_run import FinishedRun

        film = self.output_path.suffix == ".mp4"
        if not film and self.output_path.suffix != ".png":
            raise InputError(f"--output-path {self.output_path} must end in .png or .mp4")
        if not self.runs or self.views < 1 or self.seconds <= 0 or self.frame_rate < 1:
            raise InputError("igae-compare needs at least one run, and positive --views, --seconds and --frame-rate")
        if self.names and len(self.names) != len(self.runs):
            raise InputError(f"there are {len(self.names)} --names for {len(self.runs)} runs; give one for each")
        if film:
            find_ffmpeg()  # now, and not after minutes of rendering

        first = FinishedRun(self.runs[0])
        views = first.views(self.views)
        cameras = first.path(round(self.seconds * self.frame_rate)) if film else first.cameras(views)
        columns = {} if film else {"photo": [to_uint8(first.photo(view)) for view in views]}
        captions = {}
        for i, path in enumerate(self.runs):
            run = FinishedRun(path) if i else first
            run.check_same_scene(first)
            name = self.names[i] if self.names else run.name
            name = f"{name} ({i + 1})" if name in columns else name
            columns[name] = run.pictures(cameras)
            metrics = run.metrics(views)
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


def main() -> None:
    """The console script."""
    warnings.simplefilter("ignore")  # of torch and Nerfstudio about each other
    tyro.cli(CompareCommand, description=CompareCommand.__doc__).run()


if __name__ == "__main__":
    main()
