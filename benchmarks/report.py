"""What `igae-bench` writes: ratios, each with what it compares, tables with the paper's ratios, and a plot."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from igae_nerfstudio.figures import new_figure

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


def seconds_of(cell: dict[str, Any], metric: str) -> float:
    """Seconds of a `picture`, or of a `training step`: in latents a mean one of the paper's schedule."""
    seconds = cell["seconds"]
    if metric == "picture":
        return seconds["picture"]
    if "training" in seconds:
        return seconds["training"]
    return 0.4 * seconds["latent supervision"] + 0.6 * seconds["RGB alignment"]  # of 25,000 steps (table 11)


def ratios(cells: Cells) -> list[dict[str, Any]]:
    """Every ratio of seconds between two baselines of a method at one size, above 1 where the second is faster."""
    speed = {_key(cell): cell for cell in cells if "rays" in cell}
    found = []
    places = dict.fromkeys(key[:2] for key in speed)
    for place, metric, (pair, buys) in product(places, ("training step", "picture"), BUYS.items()):
        slower, faster = (speed.get((*place, baseline)) for baseline in pair)
        if slower is not None and faster is not None:
            what = dict(zip(("method", "size", "metric", "of", "over"), (*place, metric, *pair)))
            found.append({**what, "ratio": seconds_of(slower, metric) / seconds_of(faster, metric), "is": buys})
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
    (folder / "bench.json").write_text(json.dumps({"ratios": ratios(cells), "cells": list(cells)}, indent=1) + "\n")
    curves = [cell for cell in cells if "curve" in cell]
    facts = {"scene": cells[0]["cell"]["data"], "preset": cells[0]["cell"]["preset"], **cells[0]["machine"]}
    text = Path(__file__).with_name("report.md").read_text()
    text = text.format(
        facts=", ".join(f"{name} {value}" for name, value in facts.items()),
        ratios=_table(_ratio_rows(cells)),
        speed=_table([_speed_row(cell) for cell in cells if "rays" in cell]),
        quality=_table([_quality_row(cell, curves) for cell in curves]) or "Not measured.",
    )
    (folder / "bench.md").write_text(text)
    plot_curves(folder / "psnr_over_time.png", curves)


def _key(cell: dict[str, Any]) -> tuple[str, int, str]:
    return cell["cell"]["method"], cell["cell"]["size"], cell["cell"]["baseline"]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(seconds: float) -> str:
    """Three digits, in milliseconds below a second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _ratio_rows(cells: Cells) -> list[dict[str, Any]]:
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for ratio in ratios(cells):
        method, size, metric = key = ratio["method"], ratio["size"], ratio["metric"]
        paper = f"{PAPER[method][metric]:.2f}" if size == 128 else "-"
        pairs = {f"{of} / {over}": "-" for of, over in BUYS}
        empty = {"method": method, "px": size, "seconds of": metric, **pairs, "paper (L4): stock / latent": paper}
        rows.setdefault(key, empty)[f"{ratio['of']} / {ratio['over']}"] = f"{ratio['ratio']:.2f}"
    return list(rows.values())


def _speed_row(cell: dict[str, Any]) -> dict[str, Any]:
    seconds = {name: _time(value) for name, value in cell["seconds"].items()}
    return {
        **dict(zip(("method", "px", "baseline"), _key(cell))),
        "rays of a step": " + ".join(f"{rays:,}" for rays in cell["rays"].values()),
        "step": " + ".join(seconds[phase] for phase in cell["rays"]),
        "picture": seconds["picture"],
        "of it decode": seconds.get("decode", "-"),
        **{name: f"{size / 2**20:,.0f} MiB" for name, size in cell["bytes"].items()},
        "parameters": f"{cell['parameters']:,}",
    }


def _quality_row(cell: dict[str, Any], curves: Cells) -> dict[str, Any]:
    end = min(other["curve"][-1][0] for other in curves if _key(other)[:2] == _key(cell)[:2])
    return {
        **dict(zip(("method", "px", "baseline"), _key(cell))),
        "steps": " + ".join(map(str, cell["steps"])),
        "seconds": f"{cell['curve'][-1][0]:.0f}",
        **{name.upper(): f"{value:.3f}" for name, value in cell["metrics"].items()},
        "PSNR at equal seconds": f"{psnr_at(cell['curve'], end):.2f} after {end:.0f} s",
        "picture": _time(cell["seconds"]["picture"]),
    }


def plot_curves(path: Path, cells: Cells) -> None:
    """PSNR over seconds of training, one plot for each method."""
    methods = list(dict.fromkeys(_key(cell)[0] for cell in cells))
    if not methods:
        return
    figure, axes = new_figure(len(methods))
    for cell in cells:
        method, size, baseline = _key(cell)
        axis = axes[methods.index(method)]
        axis.plot(*zip(*cell["curve"]), color=COLOURS[baseline], marker=".", label=f"{baseline}, {size} px")
        axis.set(title=method, xlabel="seconds of training", ylabel="PSNR of test views, dB")
        axis.legend()
    figure.savefig(path, dpi=110)
