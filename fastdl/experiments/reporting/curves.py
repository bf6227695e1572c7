"""Learning curves: small panels of the validation accuracy by epoch."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fastdl.experiments.claims import Arm
from fastdl.experiments.reporting.grouping import group_by, label_of, levels_of, other_factors
from fastdl.experiments.reporting.load import Results, Run
from fastdl.experiments.reporting.style import Style, label_panels, panels, shared_legend, style_of, title_panel
from fastdl.experiments.reporting.words import Phrases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves"]

_LINES = 4
"""At most in a panel."""


def draw_curves(results: Results, language: str, say: Phrases) -> Figure | None:
    """A panel for each level along the first figure's axis, a line for each arm; None where no run has a history."""
    arms = [arm for arm in results.arms if any(_curve(run) for run in results.runs[arm].values())]
    if not arms:
        return None
    parts, names = _parts(results, arms, language)
    styles = {label: style_of(index) for index, label in enumerate(dict.fromkeys(names.values()))}
    figure, axes = panels(len(parts), say("curves_title"), sharex=True, sharey=True)
    for part, (title, members) in zip(axes, parts, strict=True):
        if title:
            title_panel(part, title)
        for arm in members:
            _draw(part, list(results.runs[arm].values()), styles[names[arm]], names[arm])
    label_panels(figure, axes, say("epoch_axis"), say("validation_axis"))
    shared_legend(figure, axes)
    return figure


def _parts(results: Results, arms: list[Arm], language: str) -> tuple[list[tuple[str, list[Arm]]], dict[Arm, str]]:
    """The panels with their titles, and what each arm is called in them."""
    definition = results.definition
    drawn = [figure for figure in definition.figures if figure.lines]
    if not drawn:
        every = [factor.name for factor in definition.factors]
        return _split("", arms), {arm: label_of(definition, arm, every, language) for arm in arms}
    along = drawn[0].along
    rest = other_factors(definition, along)
    groups = group_by(definition, arms, [along])
    parts = []
    for level in levels_of(definition, arms, along):
        members = groups[(level,)]
        parts += _split(label_of(definition, members[0], [along], language), members)
    # A factor that has one level here tells no line from another.
    telling = [name for name in rest if len(levels_of(definition, arms, name)) > 1] or rest
    return parts, {arm: label_of(definition, arm, telling, language) for arm in arms}


def _split(title: str, arms: list[Arm]) -> list[tuple[str, list[Arm]]]:
    return [(title, arms[start : start + _LINES]) for start in range(0, len(arms), _LINES)]


def _curve(run: Run) -> list[tuple[float, float]]:
    """Epochs trained and validation accuracy behind them, in per cent; the history counts epochs from 0."""
    rows = [(row.get("epoch"), row.get("validation_accuracy")) for row in run.get("history") or ()]
    return [(epoch + 1, 100 * value) for epoch, value in rows if epoch is not None and value is not None]


def _draw(axes: Axes, runs: list[Run], style: Style, label: str) -> None:
    by_epoch: dict[float, list[float]] = {}
    for run in runs:
        curve = _curve(run)
        if run["status"] != "diverged":
            for epoch, value in curve:
                by_epoch.setdefault(epoch, []).append(value)
        elif curve:
            axes.plot(*zip(*curve, strict=True), color=style.color, linestyle=style.dashes, linewidth=0.8)
            axes.plot(*curve[-1], "x", color=style.color, markersize=7)
    epochs = sorted(by_epoch)
    values = [by_epoch[epoch] for epoch in epochs]
    every = max(1, len(epochs) // 5)
    axes.plot(epochs, list(map(statistics.fmean, values)), label=label, markevery=every, **style.line)
    axes.fill_between(
        epochs, list(map(min, values)), list(map(max, values)), color=style.color, alpha=0.18, linewidth=0
    )
