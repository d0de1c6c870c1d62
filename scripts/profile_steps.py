"""Where the time of a training step goes, for each phase of each latent method.

    python scripts/profile_steps.py --data demo/lighthouse

Prints a Markdown table: milliseconds of a step and of its parts, medians over some steps. On a CPU it is the process's
own time, which other processes hardly change. Steps are timed with grids at the size that they have for most of a
training; updates of Instant-NGP's occupancy grid, in every 16th step, are not in them.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Callable

import torch

PARTS = ("batch", "scene", "losses", "decoder", "backward", "optimisers")


class Stopwatch:
    """Sums the time of named parts.

    Args:
        cuda: wait for the GPU before every look at the clock.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of `owner.name`."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part] += self.now() - start

        object.__setattr__(owner, name, timed) if isinstance(owner, torch.nn.Module) else setattr(owner, name, timed)


def main() -> None:
    """Build each method as `ns-train` does, take steps of both phases, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a scene")
    parser.add_argument("--methods", nargs="+", default=["tensorf", "kplanes", "instant-ngp", "vanilla-nerf"])
    parser.add_argument("--size", type=int, default=128, help="longer side of the pictures; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="timed in each phase; default: %(default)s")
    parser.add_argument("--preset", default="paper", help="as in --pipeline.preset; default: %(default)s")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rows = ["| method | phase | step, ms | " + " | ".join(PARTS) + " | other |", "|---" * (len(PARTS) + 4) + "|"]
    for method in arguments.methods:
        with TemporaryDirectory() as folder:
            rows += profile(method, arguments, Path(folder))
    print("\n".join(rows))


def profile(method: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The table's rows of one method."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.bench import Cell
    from benchmarks.measure import LATENT_PHASES, training_in_its_middle

    cell = Cell(
        data=arguments.data,
        output_dir=folder,
        preset=arguments.preset,
        method=method,
        baseline="latent",
        size=arguments.size,
    )
    training, _ = training_in_its_middle(cell)
    watch = Stopwatch(torch.cuda.is_available())
    model = training.pipeline.model
    watch.watch(training.pipeline.datamanager, "next_train", "batch")
    watch.watch(model.scene, "forward", "scene")
    watch.watch(model.scene, "get_metrics_dict", "losses")
    watch.watch(model.scene, "get_loss_dict", "losses")
    watch.watch(model, "decode", "decoder")
    watch.watch(torch.Tensor, "backward", "backward")
    for name in ("zero_grad_some", "optimizer_scaler_step_some", "scheduler_step_all"):
        watch.watch(training.trainer.optimizers, name, "optimisers")
    rows = []
    for phase, number in LATENT_PHASES.items():
        taken: list[dict[str, float]] = []
        for _ in range(arguments.steps + 1):
            watch.seconds.clear()
            start = watch.now()
            training.steps([number])
            whole = watch.now() - start
            taken.append({**watch.seconds, "whole": whole, "other": whole - sum(watch.seconds.values())})
        cells = [1000 * median(step.get(part, 0.0) for step in taken[1:]) for part in ("whole", *PARTS, "other")]
        rows.append(f"| {method} | {phase} | " + " | ".join(f"{value:,.0f}" for value in cells) + " |")
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
