"""The README's picture: one view as a photo, by an RGB NeRF and by a latent NeRF, after equal CPU seconds of training.

    python scripts/make_comparison.py --data demo/lighthouse --output-path docs/images/rgb-and-latent.png

Both are trained as in `igae bench`, with its settings for quality over time: the latent method first, then its RGB twin
(the same model with the same faster parts) for as many steps as fit into the same seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import warnings
from pathlib import Path


def main() -> None:
    """Train both, print their numbers, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a scene")
    parser.add_argument("--output-path", type=Path, default=Path("comparison.png"), help="default: %(default)s")
    parser.add_argument("--method", default="tensorf", help="default: %(default)s")
    parser.add_argument("--view", type=int, default=4, help="test view to show; default: %(default)s")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    import numpy as np
    import torch
    from diffusers import AutoencoderDC  # noqa: F401  imports are not counted
    from PIL import Image

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.baselines import evaluation_views, steps_of, trainer_config
    from benchmarks.bench import Cell
    from benchmarks.measure import Training, clock, seconds_of
    from igae_nerfstudio.figures import sheet, to_uint8
    from igae_nerfstudio.runs import Run

    torch.set_num_threads(1)

    def enlarged(picture: torch.Tensor, side: int = 256) -> list[np.ndarray]:
        """A column of one picture, its pixels as squares."""
        return [np.asarray(Image.fromarray(to_uint8(picture)).resize((side, side), Image.Resampling.NEAREST))]

    with tempfile.TemporaryDirectory() as folder:
        common = {"data": arguments.data, "output_dir": Path(folder), "method": arguments.method, "size": 128}
        cell = Cell(**common, baseline="latent", over_time=True)
        columns, captions, budget = {}, {}, 0.0
        for baseline, title in (("latent", "latent NeRF"), ("twin", "RGB NeRF")):
            cell = dataclasses.replace(cell, baseline=baseline)
            if budget:  # as many steps as fit
                training = Training(trainer_config(cell))
                training.steps(range(3))
                start = clock()
                training.steps(range(3, 33))
                cell = dataclasses.replace(cell, quality=30 * budget / (clock() - start) / sum(steps_of(cell)))
            start = clock()
            training = Training(trainer_config(cell))
            training.steps(range(sum(steps_of(cell))))
            seconds = clock() - start
            budget = budget or seconds
            run = Run(title, training.pipeline, evaluation_views(cell))
            metrics, camera = run.evaluate(), run.cameras[arguments.view]
            view = run.render(camera)
            picture = 1000 * seconds_of(lambda: run.render(camera), 1.0)["least"]  # noqa: B023
            columns[title] = enlarged(view.rgb)
            captions[title] = f"{seconds:.0f} s of training, {picture:.0f} ms a picture\nPSNR {metrics['psnr']:.1f} dB"
            print(title, steps_of(cell), f"{seconds:.1f} s", metrics, f"{picture:.1f} ms")
            if view.latent is not None:
                columns["its latents"] = enlarged(training.pipeline.model.preview(view.latent))
            photo = run.photo(arguments.view)
    columns = {"photo": enlarged(photo), "RGB NeRF": columns.pop("RGB NeRF"), **columns}
    sheet(columns, captions).save(arguments.output_path)


if __name__ == "__main__":
    main()
