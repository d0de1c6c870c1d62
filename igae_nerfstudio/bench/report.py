"""What `igae-bench` writes: the records, a table beside the paper's ratios, and two plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from igae_nerfstudio.bench.sides import PAPER_MILLISECONDS, PAPER_MINUTES

COLOURS = {"vanilla-nerf": "tab:blue", "instant-ngp": "tab:orange", "tensorf": "tab:green", "kplanes": "tab:red"}


def write_report(folder: Path, results: Any, facts: Dict[str, Any]) -> None:
    """Write `bench.json`, `curves.json`, `bench.md`, `psnr_over_time.png` and `time_per_picture.png`.

    Args:
        folder: where to.
        results: a `bench.Results`.
        facts: about machine and scene.
    """
    (folder / "bench.json").write_text(json.dumps(results.records, indent=1) + "\n")
    (folder / "curves.json").write_text(json.dumps(results.curves, indent=1) + "\n")
    (folder / "bench.md").write_text(markdown(results, facts))
    plot_curves(folder / "psnr_over_time.png", results.curves)
    plot_pictures(folder / "time_per_picture.png", results)


def markdown(results: Any, facts: Dict[str, Any]) -> str:
    """All figures in tables: medians, with smallest and largest in brackets."""
    parts = [
        "# RGB against latent",
        ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None and name != "seconds")
        + f"; measured in {facts['seconds']:.0f} s.",
        "Ratios are RGB over latent: above 1, latent is faster. Medians, with smallest and largest in brackets.",
        "## Training for 25,000 steps, extrapolated from measured steps",
        _table(
            ("method", "size", "RGB step", "latent step", "alignment step", "RGB", "latent", "ratio", "paper (L4)"),
            _training_rows(results),
        ),
        "## One picture, with its decode",
        _table(("method", "size", "RGB", "latent", "of it decode", "ratio", "paper (L4)"), _picture_rows(results)),
        "## Throughput and size",
        _table(
            ("method", "space", "phase", "rays/s", "supervised pixels/s"),
            _throughput_rows(results),
        ),
        _table(("method", "space", "metric", "value"), _size_rows(results)),
    ]
    if results.curves:
        parts += [
            "## Time to reach a PSNR",
            _table(("method", "PSNR", "RGB", "latent", "RGB / latent", "peer", "peer / latent"), _psnr_rows(results)),
            "![PSNR over time](psnr_over_time.png)",
        ]
    parts.append("![time per picture](time_per_picture.png)")
    notes = list(dict.fromkeys(f"{r['method']}: {r['note']}" for r in results.records if "note" in r))
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _table(header: Tuple[str, ...], rows: List[Tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _methods_and_sizes(results: Any, metric: str) -> List[Tuple[str, int]]:
    return list(dict.fromkeys((r["method"], r["size"]) for r in results.records if r["metric"] == metric))


def _number(record: Optional[Dict[str, Any]]) -> str:
    if record is None:
        return "-"
    middle, low, high = (_digits(record[key]) for key in ("median", "min", "max"))
    return f"{middle} {record['unit']}".strip() + ("" if record["n"] == 1 else f" ({low} to {high})")


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(rgb: Optional[Dict[str, Any]], latent: Optional[Dict[str, Any]]) -> str:
    return f"**{rgb['median'] / latent['median']:.2f}**" if rgb and latent else "-"


def _paper(table: Mapping[str, Tuple[float, float]], method: str, size: int) -> str:
    rgb, latent = table[method]
    return f"{rgb / latent:.2f}" if size == 128 else "-"


def _training_rows(results: Any) -> List[Tuple[str, ...]]:
    rows: List[Tuple[str, ...]] = []
    for method, size in _methods_and_sizes(results, "step"):
        steps = [
            results.get(method, space, size, phase, "step")
            for space, phase in (("rgb", "training"), ("latent", "latent supervision"), ("latent", "RGB alignment"))
        ]
        whole = [results.get(method, space, size, "whole schedule", "training") for space in ("rgb", "latent")]
        numbers = [_number(record) for record in (*steps, *whole)]
        rows.append((method, str(size), *numbers, _ratio(*whole), _paper(PAPER_MINUTES, method, size)))
    return rows


def _picture_rows(results: Any) -> List[Tuple[str, ...]]:
    rows: List[Tuple[str, ...]] = []
    for method, size in _methods_and_sizes(results, "picture"):
        rgb, latent = (results.get(method, space, size, "rendering", "picture") for space in ("rgb", "latent"))
        decode = results.get(method, "latent", size, "rendering", "decode")
        numbers = [_number(record) for record in (rgb, latent, decode)]
        rows.append((method, str(size), *numbers, _ratio(rgb, latent), _paper(PAPER_MILLISECONDS, method, size)))
    return rows


def _throughput_rows(results: Any) -> List[Tuple[str, ...]]:
    rows: List[Tuple[str, ...]] = []
    for record in results.records:
        if record["metric"] == "rays":
            key = [record[name] for name in ("method", "space", "size", "phase")]
            pixels = results.get(*key, "supervised pixels")
            phase = f"{record['phase']}, {record['size']} px"
            rows.append((key[0], key[1], phase, f"{record['median']:,.0f}", f"{pixels['median']:,.0f}"))
    return rows


def _size_rows(results: Any) -> List[Tuple[str, ...]]:
    return [
        (record["method"], record["space"], record["metric"], f"{record['median']:,.0f} {record['unit']}".strip())
        for record in results.records
        if record["phase"] == "training and rendering"
    ]


def _psnr_rows(results: Any) -> List[Tuple[str, ...]]:
    rows: List[Tuple[str, ...]] = []
    for record in results.records:
        if record["phase"] != "short schedule" or record["space"] != "latent":
            continue
        rgb, peer = (
            results.get(record["method"], space, record["size"], "short schedule", record["metric"])
            for space in ("rgb", "peer")
        )
        ratios = ["-" if record["unit"] == "dB" else _ratio(other, record) for other in (rgb, peer)]
        rows.append(
            (record["method"], record["metric"], _number(rgb), _number(record), ratios[0], _number(peer), ratios[1])
        )
    return rows


def plot_curves(path: Path, curves: Dict[str, Dict[str, List[Tuple[float, float]]]]) -> None:
    """PSNR over seconds of training, for all sides of each method."""
    if not curves:
        return
    figure, axes = new_figure(len(curves))
    for axis, (method, sides) in zip(axes, curves.items()):
        for space, style in (("rgb", "--"), ("latent", "-"), ("peer", ":")):
            if space not in sides:
                continue
            seconds, psnr = zip(*sides[space])
            axis.plot(seconds, psnr, style, color=COLOURS[method], label=space, marker=".")
        axis.set(title=method, xlabel="seconds of training", ylabel="PSNR of novel views, dB")
        axis.legend()
    figure.savefig(path, dpi=110)


def plot_pictures(path: Path, results: Any) -> None:
    """Milliseconds of a picture over its size."""
    figure, (axis,) = new_figure(1)
    for space, style in (("rgb", "--"), ("latent", "-")):
        for method in dict.fromkeys(record["method"] for record in results.records):
            found = [r for r in results.records if (r["method"], r["space"], r["metric"]) == (method, space, "picture")]
            if found:
                sizes, times = [r["size"] for r in found], [r["median"] for r in found]
                axis.plot(sizes, times, style, color=COLOURS[method], marker=".", label=f"{method}, {space}")
    axis.set(xlabel="side of the picture, pixels", ylabel="milliseconds", xscale="log", yscale="log")
    sizes = sorted({record["size"] for record in results.records})
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def new_figure(count: int):
    """A figure with so many axes side by side, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]
