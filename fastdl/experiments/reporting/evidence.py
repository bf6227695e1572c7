"""Figures of what was measured beside the accuracy: gradients, saturation, noise of batches, modes of the norm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastdl.experiments.claims import Arm
from fastdl.experiments.reporting.grouping import group_by, label_of, levels_of, other_factors
from fastdl.experiments.reporting.load import Results, Run
from fastdl.experiments.reporting.style import label_panels, logarithmic, panels, shared_legend, style_of, title_panel
from fastdl.experiments.reporting.words import Phrases
from fastdl.experiments.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_gradients", "draw_modes", "draw_noise", "draw_saturation"]

_MOMENTS = 3


def draw_gradients(results: Results, language: str, say: Phrases) -> Figure | None:
    """Norm of the gradient by block at three moments, a panel for each deepest arm; None where it was not measured."""
    figure = _by_block(results, language, say, "gradient_norms", "gradient", _geometric_mean)
    if figure is not None:
        logarithmic(figure.axes[0])  # which shares its y-axis with the others
    return figure


def draw_saturation(results: Results, language: str, say: Phrases) -> Figure | None:
    """Share of saturated activations by block at three moments; None where it was not measured."""
    figure = _by_block(results, language, say, "saturation", "saturation", statistics.fmean, scale=100)
    if figure is not None:
        figure.axes[0].set_ylim(-2, 102)  # which the others share
    return figure


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def _by_block(
    results: Results,
    language: str,
    say: Phrases,
    name: str,
    subject: str,
    mean: Callable[[Sequence[float]], float],
    scale: float = 1,
) -> Figure | None:
    arms = [arm for arm in _deepest_arms(results) if any(_has(run, name) for run in results.runs[arm].values())]
    if not arms:
        return None
    figure, axes = panels(len(arms), say(f"{subject}_title"), columns=3, sharey=True)
    for part, arm in zip(axes, arms, strict=True):
        title_panel(part, results.definition.describe(arm, language))
        runs = [run for run in results.runs[arm].values() if _has(run, name)]
        for moment in range(_MOMENTS):
            rows = [_moment(run, moment) for run in runs]
            epoch = statistics.median(row["epoch"] for row in rows)
            _draw_blocks(part, [row[name] for row in rows], moment, say("at_epoch", epoch=f"{epoch:.3g}"), mean, scale)
    label_panels(figure, axes, say("block_axis"), say(f"{subject}_axis"))
    shared_legend(figure, axes)
    return figure


def _has(run: Run, name: str) -> bool:
    """Whether a run has positive or zero numbers of a kind; a logarithm has no place for a norm of 0."""
    rows = _gradients(run)
    return any(
        value is not None and (value > 0 or name == "saturation") for row in rows for value in row.get(name) or ()
    )


def _gradients(run: Run) -> list[dict[str, Any]]:
    return list((run.get("evidence") or {}).get("gradients") or ())


def _moment(run: Run, moment: int) -> dict[str, Any]:
    rows = _gradients(run)
    return rows[round(moment * (len(rows) - 1) / (_MOMENTS - 1))]


def _deepest_arms(results: Results) -> list[Arm]:
    """Of the arms that differ along an axis alone, the one with most blocks; where there is no axis, every arm."""
    drawn = [figure for figure in results.definition.figures if figure.lines]
    if not drawn:
        return list(results.arms)
    groups = group_by(results.definition, results.arms, other_factors(results.definition, drawn[0].along))
    return [max(arms, key=lambda arm: _blocks(results, arm)) for arms in groups.values()]


def _blocks(results: Results, arm: Arm) -> int:
    rows = [row for run in results.runs[arm].values() for row in _gradients(run)]
    return max((len(row.get("gradient_norms") or ()) for row in rows), default=0)


def _draw_blocks(
    axes: Axes,
    rows: list[Sequence[float | None] | None],
    moment: int,
    label: str,
    mean: Callable[[Sequence[float]], float],
    scale: float,
) -> None:
    logarithmic = mean is _geometric_mean
    found: dict[int, list[float]] = {}
    for row in rows:
        for block, value in enumerate(row or (), start=1):
            if value is not None and math.isfinite(value) and not (logarithmic and value <= 0):
                found.setdefault(block, []).append(scale * value)
    if not found:
        return
    blocks, style = sorted(found), style_of(moment)
    axes.plot(blocks, [mean(found[block]) for block in blocks], label=label, **style.line)
    low, high = [min(found[block]) for block in blocks], [max(found[block]) for block in blocks]
    axes.fill_between(blocks, low, high, color=style.color, alpha=0.18, linewidth=0)
    axes.set_xticks(range(1, max(blocks) + 1))


# -- by the size of a batch -------------------------------------------------------------------------------------------


def draw_noise(results: Results, language: str, say: Phrases) -> Figure | None:
    """Noise of mean and variance by batch size, with a guide of 1/sqrt(n); None where it was not measured."""
    names = ("mean_noise", "variance_noise")
    if not any(_noise(run, name) for run in results.all_runs for name in names):
        return None
    figure, axes = panels(2, say("noise_title"), sharex=True)
    for part, name in zip(axes, names, strict=True):
        title_panel(part, say(f"{name}_title"))
        anchors: list[tuple[float, float]] = []
        for index, (label, runs) in enumerate(_lines(results, language, say)):
            anchors += _draw_noise(part, runs, name, index, label)
        if len({size for size, _ in anchors}) > 1:
            _guide(part, anchors, say("legend_guide"))
        _batch_axis(part, results)
        logarithmic(part)
    label_panels(figure, axes, say("batch_axis"), say("noise_axis"))
    shared_legend(figure, axes)
    return figure


def _draw_noise(axes: Axes, runs: list[Run], name: str, index: int, label: str) -> list[tuple[float, float]]:
    """Draw a line, and return batch sizes and means."""
    by_size: dict[int, list[list[float]]] = {}
    for run in runs:
        if values := _noise(run, name):
            by_size.setdefault(_batch_size(run), []).append(values)
    sizes, style = sorted(by_size), style_of(index)
    if not sizes:
        return []
    # The mean over seeds of each block; what is left is how blocks differ.
    blocks = [[statistics.fmean(values) for values in zip(*by_size[size], strict=False)] for size in sizes]
    means = [statistics.fmean(values) for values in blocks]
    spread = [
        [mean - min(values) for mean, values in zip(means, blocks, strict=True)],
        [max(values) - mean for mean, values in zip(means, blocks, strict=True)],
    ]
    at = [size * 2 ** (0.06 * (index - 0.5)) for size in sizes]
    axes.errorbar(at, means, yerr=spread, capsize=3, label=label, **style.line)
    return list(zip(map(float, sizes), means, strict=True))


def _guide(axes: Axes, anchors: list[tuple[float, float]], label: str) -> None:
    """A line of 1/sqrt(n) through the middle of the smallest size's means."""
    sizes = sorted({size for size, _ in anchors})
    level = _geometric_mean([value for size, value in anchors if size == sizes[0]])
    values = [level * math.sqrt(sizes[0] / size) for size in sizes]
    axes.plot(sizes, values, color="0.4", linewidth=1.2, linestyle=(0, (1, 2)), label=label, zorder=1)


def _noise(run: Run, name: str) -> list[float]:
    values = ((run.get("evidence") or {}).get("batch_statistics") or {}).get(name) or ()
    return [value for value in values if value is not None and math.isfinite(value) and value > 0]


def _batch_size(run: Run) -> int:
    """From the evidence, the factors or the configuration; 0 where it is not told."""
    told = ((run.get("evidence") or {}).get("batch_statistics") or {}).get("batch_size")
    return int(
        told or run.get("batch_size") or ((run.get("config") or {}).get("training") or {}).get("batch_size") or 0
    )


def _lines(results: Results, language: str, say: Phrases) -> list[tuple[str, list[Run]]]:
    """Runs by all factors but the batch size, with a label."""
    definition = results.definition
    factors = other_factors(definition, "batch_size")
    telling = [name for name in factors if len(levels_of(definition, results.arms, name)) > 1]
    lines = []
    for arms in group_by(definition, results.arms, factors).values():
        runs = [run for arm in arms for run in results.runs[arm].values()]
        lines.append((label_of(definition, arms[0], telling, language) or say("legend_all"), runs))
    return lines


def _batch_axis(axes: Axes, results: Results) -> None:
    sizes = sorted({_batch_size(run) for run in results.all_runs} - {0})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def draw_modes(results: Results, language: str, say: Phrases) -> Figure | None:
    """Accuracy in training mode less that in evaluation mode by batch size; None where it was not measured."""
    if not any(_gap(run) is not None for run in results.all_runs):
        return None
    figure, (axes,) = panels(1, say("modes_title"))
    lines = _lines(results, language, say)
    for index, (label, runs) in enumerate(lines):
        by_size: dict[int, list[float]] = {}
        for run in runs:
            gap = _gap(run)
            if gap is not None and _batch_size(run):
                by_size.setdefault(_batch_size(run), []).append(gap)
        if not by_size:
            continue
        shift = 2 ** (0.1 * (index - (len(lines) - 1) / 2))
        found = [estimate(by_size[size]) for size in sorted(by_size)]
        axes.errorbar(
            [shift * size for size in sorted(by_size)],
            [100 * (value.mean or 0) for value in found],
            yerr=[100 * (value.half_width or 0) for value in found],
            capsize=4, label=label, **style_of(index).line,
        )  # fmt: skip
    axes.axhline(0, color="0.4", linewidth=1)
    _batch_axis(axes, results)
    axes.set_xlabel(say("batch_axis"))
    axes.set_ylabel(say("gap_axis"))
    shared_legend(figure, [axes], say("legend_intervals"))
    return figure


def _gap(run: Run) -> float | None:
    modes = (run.get("evidence") or {}).get("modes") or {}
    training, evaluation = modes.get("training_mode_accuracy"), modes.get("evaluation_mode_accuracy")
    return None if training is None or evaluation is None else training - evaluation
