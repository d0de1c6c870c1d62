"""The README's picture: one view as a photo, by an RGB NeRF and by a latent NeRF, after equal CPU seconds of training.

    python scripts/make_comparison.py --data demo/lighthouse --output-path docs/images/rgb-and-latent.png --quality 0.5

Both are trained as in `igae bench`, with its settings for quality over time: the latent method, and its RGB twin (the
same model with the same faster parts) for as many steps as fit into the same seconds. They train in turns in one
process, so other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import warnings
from pathlib import Path

TURNS = 20


def main() -> None:
    """Train both, print their numbers, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a scene")
    parser.add_argument("--output-path", type=Path, default=Path("comparison.png"), help="default: %(default)s")
    parser.add_argument("--method", default="tensorf", help="default: %(default)s")
    parser.add_argument("--quality", type=float, default=1.0, help="of the latent side, as in igae bench")
    parser.add_argument("--view", type=int, default=4, help="test view to show; default: %(default)s")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.baselines import dataparser_config, steps_of, trainer_config
    from benchmarks.bench import Cell
    from benchmarks.measure import Training, clock, seconds_of
    from igae_nerfstudio.data.photo_dataset import PhotoDataset
    from igae_nerfstudio.figures import sheet, to_uint8
    from igae_nerfstudio.runs import Run

    torch.set_num_threads(1)

    def enlarged(picture: torch.Tensor, side: int = 256) -> list[np.ndarray]:
        """A column of one picture, its pixels as squares."""
        return [np.asarray(Image.fromarray(to_uint8(picture)).resize((side, side), Image.Resampling.NEAREST))]

    def seconds(training: Training, first: int, end: int) -> float:
        """Of steps."""
        start = clock()
        training.steps(range(first, end))
        return clock() - start

    with tempfile.TemporaryDirectory() as folder:
        common = {"data": arguments.data, "output_dir": Path(folder), "method": arguments.method, "size": 128}
        latent = Cell(**common, baseline="latent", over_time=True, quality=arguments.quality)
        twin = dataclasses.replace(latent, baseline="twin", quality=1.0)

        # How many steps of the twin fit: the seconds of some steps of each, in turns, where there is a scene already.
        first, total = steps_of(latent)[0], sum(steps_of(latent))
        share = first / total
        trials = {cell: Training(trainer_config(cell)) for cell in (latent, twin)}
        trials[latent].steps(range(20))
        trials[latent].steps(range(first, first + 20))
        trials[twin].steps(range(60))
        spent = {latent: 0.0, twin: 0.0}
        for turn in range(3):
            spent[latent] += 2 * share * seconds(trials[latent], 20 + 3 * turn, 23 + 3 * turn)
            spent[latent] += 2 * (1 - share) * seconds(trials[latent], first + 20 + 3 * turn, first + 23 + 3 * turn)
            spent[twin] += seconds(trials[twin], 60 + 6 * turn, 66 + 6 * turn)
        fit = total * spent[latent] / spent[twin]
        twin = dataclasses.replace(twin, quality=fit / sum(steps_of(twin)))

        trainings = {cell: Training(trainer_config(cell)) for cell in (latent, twin)}
        spent = {latent: 0.0, twin: 0.0}
        for turn in range(TURNS):
            for cell, training in trainings.items():
                first, end = (round(part * sum(steps_of(cell)) / TURNS) for part in (turn, turn + 1))
                spent[cell] += seconds(training, first, end)
            print({cell.baseline: round(value, 1) for cell, value in spent.items()}, flush=True)

        test_views = PhotoDataset(dataparser_config(latent).setup().get_dataparser_outputs(split="test"))
        columns, captions = {}, {}
        for cell, title in ((twin, "RGB NeRF"), (latent, "latent NeRF")):
            run = Run(title, trainings[cell].pipeline, test_views)
            columns.setdefault("photo", enlarged(run.photo(arguments.view)))
            metrics, camera = run.evaluate(), run.cameras[arguments.view]
            view = run.render(camera)
            picture = 1000 * min(seconds_of(lambda: run.render(camera), 1.0) for _ in range(3))  # noqa: B023
            columns[title] = enlarged(view.rgb)
            captions[title] = f"{spent[cell]:.0f} s of training, {metrics['psnr']:.1f} dB\n{picture:.0f} ms a picture"
            print(title, steps_of(cell), f"{spent[cell]:.1f} s", metrics, f"{picture:.1f} ms")
            if view.latent is not None:
                columns["its latents"] = enlarged(trainings[cell].pipeline.model.preview(view.latent))
    sheet(columns, captions).save(arguments.output_path)


if __name__ == "__main__":
    main()
