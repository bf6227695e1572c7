"""The figures of a report: accuracies, learning curves, and what was measured beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import Figure as FigureDefinition
from fastdl.experiments.reporting.curves import draw_curves
from fastdl.experiments.reporting.evidence import draw_gradients, draw_modes, draw_noise, draw_saturation
from fastdl.experiments.reporting.grouping import (
    group_by,
    label_of,
    level_of,
    levels_of,
    other_factors,
    positions_of,
)
from fastdl.experiments.reporting.load import Results
from fastdl.experiments.reporting.style import (
    Picture,
    Style,
    label_panels,
    panels,
    save,
    settings,
    shared_legend,
    style_of,
    title_panel,
)
from fastdl.experiments.reporting.words import Phrases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_figures"]


def draw_figures(results: Results, language: str, say: Phrases, folder: Path) -> list[Picture]:
    """Write every figure that the results have something for, as PNG and SVG, and return them in order.

    Raises ValueError where the language needs a font that is not there.
    """
    if not results.all_runs:
        return []
    suffix = "" if language == "en" else f".{language}"
    pictures = []
    with settings(language):
        for name, title, caption, figure in _figures(results, language, say):
            pictures.append(Picture(title, caption, *save(figure, folder, name + suffix)))
    return pictures


def _figures(results: Results, language: str, say: Phrases) -> Iterator[tuple[str, str, str, Figure]]:
    """Name, title, caption and figure, of those that are not empty."""
    for definition in results.definition.figures:
        drawing = _Accuracies(results, definition, language, say)
        figure = drawing.along_a_factor() if definition.lines else drawing.side_by_side()
        if figure is not None:
            yield definition.name, definition.title[language], drawing.caption, figure
    others = {
        "learning_curves": ("curves", draw_curves),
        "gradients_by_block": ("gradient", draw_gradients),
        "saturation_by_block": ("saturation", draw_saturation),
        "batch_noise": ("noise", draw_noise),
        "modes": ("modes", draw_modes),
    }
    for name, (subject, draw) in others.items():
        figure = draw(results, language, say)
        if figure is not None:
            yield name, say(f"{subject}_title"), say(f"{subject}_caption"), figure


@dataclass(frozen=True)
class _Accuracies:
    """Accuracies by the arms' levels, as a `FigureDefinition` asks for."""

    results: Results
    figure: FigureDefinition
    language: str
    say: Phrases

    @property
    def caption(self) -> str:
        published = any(arm in self.results.definition.published for arm in self.results.arms)
        return self.say(
            "accuracy_caption" if self.figure.lines else "dots_caption",
            title=self.figure.title[self.language],
            published=self.say("with_published") if published else "",
        )

    def along_a_factor(self) -> Figure | None:
        """A panel for each level of further factors, in it a line for each level of ``lines``; None without arms."""
        definition, lines = self.results.definition, self.figure.lines
        assert lines is not None
        rest = other_factors(definition, self.figure.along, lines)
        groups = group_by(definition, self.results.arms, rest)
        if not groups:
            return None
        figure, axes = panels(len(groups), self.figure.title[self.language], columns=2, sharex=True, sharey=True)
        for part, arms in zip(axes, groups.values(), strict=True):
            if rest:
                title_panel(part, label_of(definition, arms[0], rest, self.language))
            self._panel(part, arms, lines)
        (along,) = [factor for factor in definition.factors if factor.name == self.figure.along]
        label_panels(figure, axes, along.label[self.language], self.say("accuracy_axis"))
        shared_legend(figure, axes, self.say("legend_intervals"))
        return figure

    def _panel(self, axes: Axes, arms: list[Arm], lines: str) -> None:
        definition, along = self.results.definition, self.figure.along
        levels = levels_of(definition, self.results.arms, along)
        places = dict(zip(levels, positions_of(levels), strict=True))
        names = levels_of(definition, self.results.arms, lines)
        for index, name in enumerate(names):
            members = [arm for arm in arms if level_of(definition, arm, lines) == name]
            members.sort(key=lambda arm: places[level_of(definition, arm, along)])
            if members:
                shift = self._shift(index - (len(names) - 1) / 2, list(places.values()))
                at = [shift(places[level_of(definition, arm, along)]) for arm in members]
                beside = [shift(places[level_of(definition, arm, along)], 0.45) for arm in members]
                label = label_of(definition, members[0], [lines], self.language)
                self._points(axes, members, beside, style_of(index))
                self._line(axes, members, at, style_of(index), label)
        if self.results.chance is not None:
            axes.axhline(
                100 * self.results.chance,
                color="0.5",
                linewidth=1,
                linestyle=(0, (1, 2)),
                label=self.say("legend_chance"),
            )
        if self.figure.logarithmic and all(place > 0 for place in places.values()):
            axes.set_xscale("log", base=2)
        axes.set_xticks(list(places.values()), self._tick_labels(levels))
        axes.minorticks_off()
        axes.set_ylim(0, 102)

    def _tick_labels(self, levels: list[str | int | float]) -> list[str]:
        (factor,) = [factor for factor in self.results.definition.factors if factor.name == self.figure.along]
        return [
            factor.levels[str(level)][self.language] if str(level) in factor.levels else f"{level}" for level in levels
        ]

    def _shift(self, steps: float, places: list[float]) -> Any:
        """A function that moves a line a little aside, and its points ``more``, so that none covers another."""
        if self.figure.logarithmic and all(place > 0 for place in places):
            return lambda place, more=0.0: place * 2 ** (0.14 * (steps + more))
        ordered = sorted(places)
        gap = min((after - before for before, after in itertools.pairwise(ordered)), default=1)
        return lambda place, more=0.0: place + 0.08 * gap * (steps + more)

    def _points(self, axes: Axes, arms: list[Arm], at: list[float], style: Style) -> None:
        points = [(place, 100 * y) for arm, place in zip(arms, at, strict=True) for y in self.results.accuracies(arm)]
        axes.scatter(*_columns(points), color=style.color, s=12, alpha=0.4, linewidths=0, zorder=2)

    def _line(self, axes: Axes, arms: list[Arm], at: list[float], style: Style, label: str) -> None:
        found = [self.results.accuracy(arm) for arm in arms]
        drawn = [(place, value) for place, value in zip(at, found, strict=True) if value.mean is not None]
        means = [100 * value.mean for _, value in drawn if value.mean is not None]
        axes.plot([place for place, _ in drawn], means, label=label, zorder=3, **style.line)
        bars = [(place, value) for place, value in drawn if value.half_width is not None]
        axes.errorbar(
            [place for place, _ in bars],
            [100 * (value.mean or 0) for _, value in bars],
            yerr=[100 * (value.half_width or 0) for _, value in bars],
            fmt="none", ecolor=style.color, capsize=4, zorder=3,
        )  # fmt: skip
        lost = [place for arm, place in zip(arms, at, strict=True) if self.results.count_diverged(arm)]
        if lost:
            axes.plot(
                lost, [2] * len(lost), "x", color=style.color, markersize=7, clip_on=False,
                label=f"{label}: {self.say('legend_diverged')}",
            )  # fmt: skip
        published = [
            (place, 100 * self.results.definition.published[arm])
            for arm, place in zip(arms, at, strict=True)
            if arm in self.results.definition.published
        ]
        if published:
            axes.plot(
                *_columns(published), color=style.color, marker=style.marker, markerfacecolor="white", markersize=6,
                linestyle=(0, (1, 2.5)), linewidth=1.2, label=f"{label}: {self.say('legend_published')}", zorder=2.5,
            )  # fmt: skip

    def side_by_side(self) -> Figure | None:
        """A row for each arm with its mean and interval, on an axis zoomed to the data; None without arms."""
        from matplotlib.figure import Figure

        arms = self.results.arms
        if not arms:
            return None
        figure = Figure(figsize=(6.8, 1.7 + 0.5 * len(arms)), layout="constrained")
        axes = figure.subplots()
        figure.suptitle(self.figure.title[self.language])
        for place, arm in enumerate(arms):
            self._row(axes, arm, place, style_of(place))
        axes.set_yticks(range(len(arms)), [self._name(arm) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlabel(self.say("accuracy_axis_zoomed"))
        axes.margins(x=0.08)
        shared_legend(figure, [axes])
        return figure

    def _name(self, arm: Arm) -> str:
        name, lost = self.results.definition.describe(arm, self.language), self.results.count_diverged(arm)
        return f"{name}\n({self.say('legend_diverged')}: {lost})" if lost else name

    def _row(self, axes: Axes, arm: Arm, place: int, style: Style) -> None:
        found, published = self.results.accuracy(arm), self.results.definition.published.get(arm)
        points = [(100 * value, place + 0.25) for value in self.results.accuracies(arm)]
        axes.scatter(
            *_columns(points), color=style.color, s=16, alpha=0.45, linewidths=0, label=self.say("legend_runs")
        )
        if found.mean is not None:
            width = None if found.half_width is None else [100 * found.half_width]
            axes.errorbar(
                [100 * found.mean], [place], xerr=width, fmt=style.marker, color=style.color, capsize=4, markersize=7,
                label=self.say("legend_intervals"),
            )  # fmt: skip
        if published is not None:
            axes.plot(
                [100 * published], [place - 0.25], style.marker, color=style.color, markerfacecolor="white",
                markersize=6, linestyle="none", label=self.say("legend_published"),
            )  # fmt: skip


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
