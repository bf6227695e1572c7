"""Tables and plots of estimates, for people."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdl.data.files import atomic_write
from fastdl.experiments.statistics import Estimate

__all__ = ["Series", "format_estimate", "markdown_table", "plot_by"]

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; markers and dashes say it again.
_STYLES = (("#D55E00", "o", "--"), ("#0072B2", "s", "-"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))


@dataclass(frozen=True)
class Series:
    """A line of a plot.

    Attributes:
        label: its name in the legend.
        x: positions.
        estimates: of the fraction at each position.
        points: each single measurement as (position, fraction).
    """

    label: str
    x: Sequence[float]
    estimates: Sequence[Estimate]
    points: Sequence[tuple[float, float]]


def format_estimate(estimate: Estimate, diverged: int = 0, *, signed: bool = False) -> str:
    """Return a fraction as "98.21 ± 0.43 % (sd 0.17, n 3)", without the uncertainty where there is none to state."""
    lost = f"{diverged} diverged" if diverged else ""
    if estimate.mean is None:
        return lost or "no run"
    mean = f"{100 * estimate.mean:{'+' if signed else ''}.2f}"
    if estimate.half_width is None or estimate.deviation is None:
        text = f"{mean} % (n {estimate.count})"
    else:
        width, deviation = 100 * estimate.half_width, 100 * estimate.deviation
        text = f"{mean} ± {width:.2f} % (sd {deviation:.2f}, n {estimate.count})"
    return f"{text}, {lost}" if lost else text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also aligned as plain text."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def plot_by(
    path: Path, series: Sequence[Series], *, title: str, x_label: str, baseline: tuple[str, float] | None = None
) -> None:
    """Draw fractions as percentages over integer positions, with 95 % intervals, to ``path`` .png and .svg.

    Args:
        path: without the suffix.
        series: the lines; their positions are moved apart a little, so that error bars do not cover each other.
        title, x_label: what the plot shows.
        baseline: name and value of a horizontal line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    positions = sorted({x for line in series for x in line.x})
    gap = min((after - before for before, after in itertools.pairwise(positions)), default=1)
    for index, line in enumerate(series):
        color, marker, dashes = _STYLES[index % len(_STYLES)]
        shift = gap * 0.05 * (index - (len(series) - 1) / 2)
        drawn = [(x + shift, estimate) for x, estimate in zip(line.x, line.estimates, strict=True) if estimate.count]
        means = [_percent(estimate.mean) for _, estimate in drawn]
        axes.plot([x for x, _ in drawn], means, dashes, color=color, marker=marker, label=line.label, zorder=3)
        bars = [(x, estimate) for x, estimate in drawn if estimate.half_width is not None]
        if bars:
            axes.errorbar(
                [x for x, _ in bars],
                [_percent(estimate.mean) for _, estimate in bars],
                yerr=[_percent(estimate.half_width) for _, estimate in bars],
                fmt="none",
                ecolor=color,
                capsize=4,
                zorder=2,
            )
        axes.scatter(
            [x + shift for x, _ in line.points],
            [100 * y for _, y in line.points],
            color=color,
            s=12,
            alpha=0.4,
            zorder=1,
        )
    if baseline is not None:
        name, value = baseline
        axes.axhline(100 * value, color="0.5", linewidth=1, linestyle=(0, (1, 2)), label=name, zorder=0)
    axes.set_xticks(positions)
    axes.set_xlabel(x_label)
    axes.set_ylabel("test accuracy in %")
    axes.set_title(title)
    axes.set_ylim(bottom=0, top=102)
    axes.grid(axis="y", color="0.9", zorder=-1)
    axes.spines[["top", "right"]].set_visible(False)
    has_bars = any(estimate.half_width is not None for line in series for estimate in line.estimates)
    axes.legend(loc="best", title="mean, 95 % interval" if has_bars else None, frameon=False)
    for suffix in ("png", "svg"):
        with atomic_write(path.with_suffix(f".{suffix}")) as file:
            figure.savefig(file, format=suffix, dpi=150, metadata=_METADATA[suffix])


# No date and no random identifiers: equal results give equal files.
_METADATA: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


def _percent(fraction: float | None) -> float:
    return float("nan") if fraction is None else 100 * fraction
