"""How figures look: colours, markers, dashes, panels, and the files they are written to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdl.data.files import atomic_write
from fastdl.experiments.reporting.fonts import font_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Picture",
    "Style",
    "label_panels",
    "logarithmic",
    "panels",
    "save",
    "settings",
    "shared_legend",
    "style_of",
    "title_panel",
]


@dataclass(frozen=True)
class Picture:
    """A figure that was written.

    Attributes:
        title, caption: in the language of the report.
        png, svg: its files.
    """

    title: str
    caption: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class Style:
    """Of a line, the marker and dashes of which tell it from others where colours do not."""

    color: str
    marker: str
    dashes: Any

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.dashes, "markersize": 5, "linewidth": 1.6}


# Okabe and Ito's colours, without the yellow that is hard to see on white.
_STYLES = (
    Style("#D55E00", "o", (0, (5, 2))),
    Style("#0072B2", "s", "-"),
    Style("#009E73", "^", (0, (6, 2, 1.5, 2))),
    Style("#CC79A7", "D", (0, (1.5, 1.5))),
    Style("#E69F00", "v", (0, (3, 1.5))),
    Style("#56B4E9", "P", (0, (8, 2))),
    Style("#000000", "X", (0, (4, 2, 1, 2, 1, 2))),
)
_COLUMNS = 4
_TITLE_WIDTH = 32
"""Of a panel's title, in Latin letters."""


def style_of(index: int) -> Style:
    """The style of a line by its place among the lines."""
    return _STYLES[index % len(_STYLES)]


@contextmanager
def settings(language: str) -> Iterator[None]:
    """Set what figures in a language need while the block runs; afterwards all is as it was."""
    import matplotlib

    ours = {
        **font_settings(language),
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.title_fontsize": 9,
        "figure.titlesize": 12,
        "figure.labelsize": 10,
        "figure.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "0.9",
        # Text as outlines, so that the file needs no font; no random identifiers: equal results give equal files.
        "svg.fonttype": "path",
        "svg.hashsalt": "fastdl",
    }
    with matplotlib.rc_context(ours):  # type: ignore[arg-type]
        yield


def panels(count: int, title: str, *, columns: int = _COLUMNS, **sharing: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, 1 at least, in rows of ``columns`` at most.

    ``sharing``: arguments of ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    # A single panel is wide enough for its legend, many are small.
    width, height = (6.4, 4.2) if count == 1 else (max(6.4, 2.9 * columns), 2.5 * rows + 1.2)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **sharing)
    figure.suptitle(title)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    for place in range(count - columns, count):
        axes[place].tick_params(labelbottom=True)
    return figure, axes[:count]


def title_panel(axes: Axes, text: str) -> None:
    """Name a panel, in lines short enough for it."""
    lines = [""]
    for word in text.split():
        if lines[-1] and _width(f"{lines[-1]} {word}") > _TITLE_WIDTH:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    axes.set_title("\n".join(lines))


def label_panels(figure: Figure, axes: Sequence[Axes], x: str, y: str) -> None:
    """Name the axes: x below the last panel of each column, y once, at the left."""
    columns = min(len(axes), next(part.get_gridspec().ncols for part in axes))  # type: ignore[union-attr]
    for part in axes[-columns:]:
        part.set_xlabel(x)
    figure.supylabel(y)


def logarithmic(axes: Axes) -> None:
    """Make the y-axis logarithmic, with ticks written as plain numbers, at 1, 2 and 5 where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,), numticks=7))
    # Powers of ten would need a minus sign that some Korean fonts lack.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def shared_legend(figure: Figure, axes: Sequence[Axes], title: str | None = None) -> None:
    """One legend below all panels, each label once."""
    from matplotlib.container import ErrorbarContainer

    found: dict[str, Any] = {}
    for part in axes:
        for handle, label in zip(*part.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if not found:
        return
    # What was measured before what it is compared with.
    found = dict(sorted(found.items(), key=lambda entry: not isinstance(entry[1], ErrorbarContainer)))
    # About 0.085 inches a letter, and as much again for the handle as for six letters.
    room = figure.get_figwidth() / (0.085 * (max(map(_width, found)) + 8))
    columns = max(1, min(len(found), int(room)))
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False, title=title
    )


def _width(text: str) -> int:
    """Of a text in Latin letters; a Hangul syllable is as wide as two."""
    return sum(2 if ord(character) >= 0x1100 else 1 for character in text)


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as PNG and SVG, each in one piece, and return the paths."""
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    metadata: tuple[dict[str, Any], ...] = ({}, {"Date": None})
    for path, data in zip(paths, metadata, strict=True):
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=data)
        # Laid out once; to do it again takes as long as to draw.
        figure.set_layout_engine("none")
    return paths
