"""The pictures of docs/performance.md, drawn from the results alone; the one module here that needs matplotlib.

``python -m bench pictures``. Colours are Okabe and Ito's, which colour-blind readers tell apart, and every colour has a
marker or a hatch of its own, so that a print without colours can be read too.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import machine, results
from .figures import BASELINES, CASES, FORMATS, RATIOS, ROOFLINE, Figure, leftovers, make_figures, stale
from .sections import ReportError, load_sections
from .summary import FORWARD, FORWARD_BACKWARD

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#666666"
# Okabe and Ito's yellow is left out: it cannot be seen on white paper.
OPERATOR_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK, GREY)
# Shapes wide enough to be told filled from hollow: crosses and stars were not.
OPERATOR_STYLES = tuple(zip(OPERATOR_COLOURS, ("o", "s", "^", "D", "v", "h", "<", "p"), strict=True))
BASELINE_COLOURS = dict(zip(BASELINES, (BLUE, ORANGE), strict=True))
BASELINE_HATCHES = dict(zip(BASELINES, ("", "///"), strict=True))
BASELINE_NAMES = {"eager": "over eager torch", "compile": "over torch.compile"}
PASS_NAMES = {FORWARD: "forward", FORWARD_BACKWARD: "forward + backward"}
NARROW_TICKS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
TICKS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # travels with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "fastdl",  # else every drawing has other identifiers
    "savefig.facecolor": "white",
}
RESOLUTION = 120
# What a picture of flat colours needs with its smoothed edges: a third of the bytes, and no difference to be seen.
PNG_COLOURS = 128
# Points of several ops at one intensity stand beside each other, each further to the right by this factor.
SIDE_STEP = 1.12


def draw(figure: Figure, folder: Path) -> list[Path]:
    """Writes a picture's files, each replaced at once, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        canvas = DRAWERS[figure.kind](figure)
        FigureCanvasAgg(canvas)
        paths = [folder / name for name in figure.files]
        for path, ending in zip(paths, FORMATS, strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            about = {"Title": figure.title, "Description": figure.fingerprint}
            if ending == "png":
                _save_png(canvas, temporary, about)
            else:  # without the date, which would change the file with every drawing
                canvas.savefig(temporary, format=ending, metadata={**about, "Date": None})
            temporary.replace(path)
    return paths


def _save_png(canvas: Canvas, path: Path, about: dict[str, str]) -> None:
    memory = io.BytesIO()
    canvas.savefig(memory, format="png", dpi=RESOLUTION)
    texts = PngInfo()
    for name, value in about.items():
        texts.add_text(name, value)
    picture = Image.open(memory).convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE)
    picture.save(path, format="png", pnginfo=texts, optimize=True)


def draw_roofline(figure: Figure) -> Canvas:
    """Operations/s over operations a byte, one panel a dtype; the roofs are what this machine was measured to do."""
    data = figure.data
    dtypes: list[str] = data["dtypes"]
    canvas = Canvas(figsize=(5.6 * len(dtypes), 5.6), layout="constrained")
    canvas.suptitle(figure.title, fontsize=12)
    operators = list(dict.fromkeys(point["operator"] for point in data["points"]))
    styles = {name: OPERATOR_STYLES[i % len(OPERATOR_STYLES)] for i, name in enumerate(operators)}
    all_axes: list[Axes] = [canvas.add_subplot(1, len(dtypes), 1 + i) for i in range(len(dtypes))]
    for axes, dtype in zip(all_axes, dtypes, strict=True):
        chosen = [point for point in data["points"] if point["dtype"] == dtype]
        _roofs(axes, data, dtype, chosen)
        for point in chosen:
            colour, marker = styles[point["operator"]]
            x = point["intensity"] * _side_step(point, chosen)
            axes.plot([x, x], [point["eager"], point["ours"]], color=colour, linewidth=0.6, alpha=0.5, zorder=2)
            axes.plot(x, point["eager"], marker, color=colour, markerfacecolor="white", markersize=5, zorder=3)
            axes.plot(x, point["ours"], marker, color=colour, markersize=5.5, markeredgecolor="white",
                      markeredgewidth=0.3, zorder=4)  # fmt: skip
        axes.set_title(dtype)
        axes.set_xlabel("operations / byte that must be moved")
    all_axes[0].set_ylabel("GFLOP/s")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
        for name, (colour, marker) in styles.items()
    ]
    handles += [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="filled: fastdl"),
        Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="hollow: eager torch"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return canvas


def _side_step(point: dict[str, Any], points: Sequence[dict[str, Any]]) -> float:
    """The factor by which a point stands aside, so that no op's points hide another's."""

    def place(one: dict[str, Any]) -> float:
        return round(10 * math.log10(one["intensity"]))

    beside = sorted({other["operator"] for other in points if place(other) == place(point)})
    return float(SIDE_STEP ** (beside.index(point["operator"]) - (len(beside) - 1) / 2))


def _roofs(axes: Axes, data: dict[str, Any], dtype: str, points: Sequence[dict[str, Any]]) -> None:
    rate = data["matrix_rates"].get(dtype)
    low, high = data["bandwidths"]
    right = 2 * max([point["intensity"] for point in points] + ([rate / low] if rate else []))
    left = 0.6 * min(point["intensity"] for point in points)
    bottom = 0.5 * min(min(point["eager"], point["ours"]) for point in points)
    top = 2.5 * max([max(point["eager"], point["ours"]) for point in points] + ([rate] if rate else []))
    ends = [left, right]
    axes.fill_between(ends, [x * low for x in ends], [x * high for x in ends], color=SKY, alpha=0.35, linewidth=0,
                      zorder=1)  # fmt: skip
    axes.plot(ends, [x * high for x in ends], color=BLACK, linewidth=1, zorder=1)
    if low < high:
        axes.plot(ends, [x * low for x in ends], color=BLACK, linewidth=1, linestyle=":", zorder=1)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value / 1e9:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    for axis in (axes.xaxis, axes.yaxis):  # within two decades matplotlib would write at every one of them
        axis.set_minor_formatter(NullFormatter())
    copied = f"{high / 1e9:.0f}" if round(low / 1e9) == round(high / 1e9) else f"{low / 1e9:.0f} to {high / 1e9:.0f}"
    boxed = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.annotate(f"copying memory: {copied} GB/s", (0.03, 0.03), xycoords="axes fraction", fontsize=9, bbox=boxed)
    if rate:
        axes.axhline(rate, color=BLACK, linewidth=1, linestyle="--", zorder=1)
        axes.annotate(f"{dtype} products: {rate / 1e9:.0f} GFLOP/s", (left * 1.1, rate * 1.12), fontsize=9, bbox=boxed)


def draw_ratios(figure: Figure) -> Canvas:
    """Bars of the geometric means from 1, a dot for every case; beyond 1 fastdl is the faster one."""
    passes = figure.data["passes"]
    count = max(map(len, passes.values()))
    canvas = Canvas(figsize=(5.8 * len(passes), 1.9 + 0.75 * count), layout="constrained")
    canvas.suptitle(figure.title, fontsize=12)
    for number, (pass_name, rows) in enumerate(passes.items(), 1):
        axes = canvas.add_subplot(1, len(passes), number)
        values = []
        for position, row in enumerate(rows):
            for shift, baseline in zip((-0.2, 0.2), BASELINES, strict=True):
                if baseline not in row:
                    continue
                mean, cases = row[baseline]["mean"], row[baseline]["cases"]
                values += cases
                axes.barh(position + shift, mean - 1, 0.36, left=1, color=BASELINE_COLOURS[baseline],
                          hatch=BASELINE_HATCHES[baseline], edgecolor="white", alpha=0.75, zorder=2)  # fmt: skip
                offsets = [0.10 * ((i * 7) % 5 - 2) / 2 for i in range(len(cases))]
                axes.plot(cases, [position + shift + offset for offset in offsets], ".", color=BLACK, markersize=3.5,
                          alpha=0.7, zorder=3)  # fmt: skip
                axes.annotate(f"{mean:.2f}", (1.01, position + shift), xycoords=("axes fraction", "data"), fontsize=9,
                              va="center", color=BLACK, annotation_clip=False)  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["operator"] for row in rows])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        _ratio_axis(axes, values)
        axes.set_title(PASS_NAMES[pass_name])
        axes.grid(visible=False, axis="y")
    handles: list[Any] = [
        mpl.patches.Patch(facecolor=BASELINE_COLOURS[b], hatch=BASELINE_HATCHES[b], edgecolor="white",
                          label=f"{BASELINE_NAMES[b]} (geometric mean, at the right)")
        for b in BASELINES
    ]  # fmt: skip
    handles.append(Line2D([], [], color=BLACK, marker=".", linestyle="", label="one case"))
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return canvas


def draw_cases(figure: Figure) -> Canvas:
    """Every case of an op on a line of its own."""
    rows = figure.data["rows"]
    canvas = Canvas(figsize=(9.5, 1.7 + 0.21 * len(rows)), layout="constrained")
    canvas.suptitle(figure.title, fontsize=12)
    axes = canvas.add_subplot()
    values = []
    for position, row in enumerate(rows):
        for pass_name, filled in ((FORWARD, False), (FORWARD_BACKWARD, True)):
            for baseline, marker in zip(BASELINES, ("o", "s"), strict=True):
                ratio = row.get(pass_name, {}).get(baseline)
                if ratio is None:
                    continue
                values.append(ratio)
                colour = BASELINE_COLOURS[baseline]
                axes.plot(ratio, position, marker, color=colour, markersize=5.5, zorder=3,
                          markerfacecolor=colour if filled else "white")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _ratio_axis(axes, values)
    handles = [
        Line2D([], [], color=BASELINE_COLOURS[b], marker=marker, linestyle="", label=f"{BASELINE_NAMES[b]}, {way}",
               markerfacecolor=BASELINE_COLOURS[b] if filled else "white")
        for b, marker in zip(BASELINES, ("o", "s"), strict=True)
        for way, filled in (("forward", False), ("forward + backward", True))
    ]  # fmt: skip
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return canvas


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of ratios with plain numbers, and a line at 1."""
    axes.set_xscale("log")
    low, high = min([*values, 0.95]) * 0.93, max([*values, 1.1]) * 1.08
    axes.set_xlim(low, high)
    shown = [tick for tick in (NARROW_TICKS if high < 2.5 * low else TICKS) if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color=VERMILLION, linewidth=1.4, zorder=4)
    axes.set_xlabel("torch's time / fastdl's time (right of 1: fastdl is faster)")


DRAWERS: dict[str, Callable[[Figure], Canvas]] = {ROOFLINE: draw_roofline, RATIOS: draw_ratios, CASES: draw_cases}


def main(argv: list[str]) -> int:
    """``pictures``: draws those that are out of date, or all with ``--all``, and removes what nothing is known of."""
    parser = argparse.ArgumentParser(
        prog="python -m bench pictures", description="Draws the pictures of docs/performance.md."
    )
    parser.add_argument("--results-dir", type=Path, default=machine.BENCH / "results", help="folder of the results")
    parser.add_argument("--output-dir", type=Path, default=machine.CHECKOUT / "docs" / "images", help="docs/images")
    parser.add_argument("--all", action="store_true", help="draw those too that are up to date")
    options = parser.parse_args(argv)
    try:
        figures = make_figures(load_sections(options.results_dir))
        paths = write(figures if options.all else stale(figures, options.output_dir), options.output_dir)
    except (ReportError, results.ResultsError, OSError) as error:
        print(f"bench pictures: {error}", file=sys.stderr)
        return 1
    for path in leftovers(figures, options.output_dir):
        path.unlink()
        print(f"removed: {path}")
    for path in paths:
        print(f"drawn: {path}")
    if not paths:
        print("Every picture is up to date.")
    return 0


def write(figures: Sequence[Figure], folder: Path) -> list[Path]:
    return [path for figure in figures for path in draw(figure, folder)]
