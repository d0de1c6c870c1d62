"""What `igae-bench` writes: ratios, each with what it compares, tables with the paper's ratios, and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np

Cells = Sequence[dict[str, Any]]
"""As `bench.measure` gives them: a measurement, with its settings under `cell`."""

PAPER = {
    "vanilla-nerf": {"training step": 637 / 28, "picture": 1201 / 26.4},
    "instant-ngp": {"training step": 6 / 19, "picture": 11.3 / 14.0},
    "tensorf": {"training step": 92 / 20, "picture": 101.4 / 17.1},
    "kplanes": {"training step": 88 / 29, "picture": 63.3 / 18.0},
}
"""RGB over latent at 128 pixels (paper, table 7): minutes of 25,000 steps, and milliseconds of a picture."""

BUYS = {
    ("twin", "latent"): "what the latent space itself buys",
    ("stock", "twin"): "what the faster parts alone buy",
    ("stock", "latent"): "both together",
}
"""Numerator and denominator -> what their ratio says."""

COLOURS = {"stock": "tab:gray", "twin": "tab:orange", "latent": "tab:blue"}

TEXT = """# RGB against latents

{facts}, one thread. Seconds are the process's own on a CPU, the least of several repetitions.

- *stock*: Nerfstudio's method in RGB; *twin*: the same in RGB with every part that makes the latent method faster
- twin / latent: what the latent space itself buys; stock / twin: what the faster parts alone buy
- Each baseline has its own batch. A latent ray stands for a square of pixels, 8 x 8 with the bundled autoencoder.
- A latent training step is a mean one of the paper's schedule: 0.4 latent supervision, 0.6 RGB alignment.

{ratios}

{sizes}
"""
QUALITY_TEXT = """
## Quality at equal training time

Small models and batches that learn fast on a CPU, each baseline its own (`bench/over_time.yaml`). Seconds include the
set-up, in which latents are encoded, and no evaluation. Metrics are of all test views, at equal seconds of some.

{quality}

![PSNR over time](psnr_over_time.png)
"""


def seconds_of(cell: dict[str, Any], metric: str) -> float:
    """The least seconds of a `picture`, or of a `training step`: in latents a mean one of the paper's schedule.

    The least, because whatever disturbs a measurement makes it longer.
    """
    seconds = {name: values["least"] for name, values in cell["seconds"].items()}
    if metric == "picture":
        return seconds["picture"]
    if "training" in seconds:
        return seconds["training"]
    return 0.4 * seconds["latent supervision"] + 0.6 * seconds["RGB alignment"]  # of 25,000 steps (table 11)


def ratios(cells: Cells) -> list[dict[str, Any]]:
    """Every ratio of seconds between two baselines of a method at one size, above 1 where the second is faster."""
    speed = {_key(cell): cell for cell in cells if "rays" in cell}
    found = []
    for method, size in dict.fromkeys(key[:2] for key in speed):
        for metric in ("training step", "picture"):
            for (of, over), buys in BUYS.items():
                slower, faster = speed.get((method, size, of)), speed.get((method, size, over))
                if slower is not None and faster is not None:
                    value = seconds_of(slower, metric) / seconds_of(faster, metric)
                    what = {"method": method, "size": size, "metric": metric, "of": of, "over": over}
                    found.append({**what, "ratio": value, "is": buys})
    return found


def psnr_at(curve: Sequence[Sequence[float]], seconds: float) -> float:
    """PSNR in dB of a curve of (seconds, dB) at a time within it, between its points by interpolation."""
    times, values = zip(*curve)
    return float(np.interp(seconds, times, values))


def write_report(folder: Path, cells: Cells) -> None:
    """Write `bench.json`, `bench.md` and `psnr_over_time.png`.

    Args:
        folder: for the files.
        cells: all measurements.
    """
    text = json.dumps({"ratios": ratios(cells), "cells": list(cells)}, indent=1)
    (folder / "bench.json").write_text(text + "\n")
    speed, curves = [cell for cell in cells if "rays" in cell], [cell for cell in cells if "curve" in cell]
    settings = cells[0]["cell"]
    facts = {"scene": settings["data"], "preset": settings["preset"], **cells[0]["machine"]}
    markdown = TEXT.format(
        facts=", ".join(f"{name} {value}" for name, value in facts.items()),
        ratios=_table(_ratio_rows(speed)),
        sizes=_table([_size_row(cell) for cell in speed]),
    )
    if curves:
        markdown += QUALITY_TEXT.format(quality=_table([_quality_row(cell, curves) for cell in curves]))
        plot_curves(folder / "psnr_over_time.png", curves)
    (folder / "bench.md").write_text(markdown)


def _key(cell: dict[str, Any]) -> tuple[str, int, str]:
    return cell["cell"]["method"], cell["cell"]["size"], cell["cell"]["baseline"]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(seconds: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _ratio_rows(cells: Cells) -> list[dict[str, Any]]:
    speed = {_key(cell): cell for cell in cells}
    found = {
        tuple(ratio[name] for name in ("method", "size", "metric", "of", "over")): ratio for ratio in ratios(cells)
    }
    rows = []
    for method, size, metric in dict.fromkeys(key[:3] for key in found):
        row = {"method": method, "px": size, "seconds of": metric}
        for baseline in COLOURS:
            cell = speed.get((method, size, baseline))
            row[baseline] = "-" if cell is None else _time(seconds_of(cell, metric))
        for of, over in BUYS:
            ratio = found.get((method, size, metric, of, over))
            row[f"{of} / {over}"] = "-" if ratio is None else f"{ratio['ratio']:.2f}"
        rows.append({**row, "paper (L4): stock / latent": f"{PAPER[method][metric]:.2f}" if size == 128 else "-"})
    return rows


def _size_row(cell: dict[str, Any]) -> dict[str, Any]:
    method, size, baseline = _key(cell)
    decode = cell["seconds"].get("decode")
    return {
        **{"method": method, "px": size, "baseline": baseline},
        "rays of a step": " + ".join(f"{rays:,}" for rays in cell["rays"].values()),
        "step": " + ".join(_time(cell["seconds"][phase]["least"]) for phase in cell["rays"]),
        "decode": "-" if decode is None else _time(decode["least"]),
        **{name: f"{size / 2**20:,.0f} MiB" for name, size in cell["bytes"].items()},
        "parameters": f"{cell['parameters']:,}",
    }


def _quality_row(cell: dict[str, Any], curves: Cells) -> dict[str, Any]:
    method, size, baseline = _key(cell)
    end = min(other["curve"][-1][0] for other in curves if _key(other)[:2] == (method, size))
    return {
        **{"method": method, "px": size, "baseline": baseline},
        "steps": " + ".join(map(str, cell["steps"])),
        "seconds": f"{cell['curve'][-1][0]:.0f}",
        **{
            name.upper(): f"{value:.2f} dB" if name == "psnr" else f"{value:.3f}"
            for name, value in cell["metrics"].items()
        },
        "PSNR at equal seconds": f"{psnr_at(cell['curve'], end):.2f} dB after {end:.0f} s",
        "picture": _time(cell["seconds"]["picture"]["least"]),
    }


def plot_curves(path: Path, cells: Cells) -> None:
    """PSNR over seconds of training, one plot for each method."""
    methods = list(dict.fromkeys(_key(cell)[0] for cell in cells))
    figure, axes = new_figure(len(methods))
    for cell in cells:
        method, size, baseline = _key(cell)
        axis = axes[methods.index(method)]
        axis.plot(*zip(*cell["curve"]), color=COLOURS[baseline], marker=".", label=f"{baseline}, {size} px")
        axis.set(title=method, xlabel="seconds of training", ylabel="PSNR of test views, dB")
        axis.legend()
    figure.savefig(path, dpi=110)


def new_figure(count: int) -> tuple[Any, list[Any]]:
    """A figure and `count` axes next to each other, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]
