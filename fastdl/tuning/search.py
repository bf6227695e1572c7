"""Coordinate descent over the sizes of a plan: which are tried, and which are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastdl.bench.timing import Spread
from fastdl.kernels.tuned import Sizes

# Two runs of one kernel differ by as much.
LEAST_GAIN = 1.02

Evaluate = Callable[[Sequence[Sizes], bool], Mapping[Sizes, Spread]]
"""``evaluate(sizes, confirm)``: the times of those that compile and answer right, measured in turns with one another.

The first of ``sizes`` is always among them. ``confirm`` asks for the longer measurement by which the winner is judged.
"""


@dataclass(frozen=True)
class Found:
    """What a search came to: ``best`` is the default where nothing gained enough.

    ``complete`` is False where the time was over before every neighbour had been tried.
    """

    default: Sizes
    best: Sizes
    default_seconds: float
    best_seconds: float
    tried: int
    complete: bool

    @property
    def gain(self) -> float:
        """How many times as fast."""
        return self.default_seconds / self.best_seconds if self.best_seconds else 1.0


def is_gain(before: Spread, after: Spread) -> bool:
    """Whether it is faster by at least `LEAST_GAIN` and by more than either's interquartile range."""
    noise = max(one.upper_quartile - one.lower_quartile for one in (before, after))
    return before.median >= LEAST_GAIN * after.median and before.median - after.median > noise


def descend(
    default: Sizes,
    neighbours: Callable[[Sizes, int], Sequence[Sizes]],
    evaluate: Evaluate,
    has_time: Callable[[], bool] = lambda: True,
) -> Found:
    """Goes from the default to a neighbour that gains, one size after the other, until none does.

    ``neighbours(sizes, index)`` are those that differ in one size. What won is measured once more against the default,
    and must gain there too.
    """
    best, seen, complete = default, {default}, True
    index, unchanged = 0, 0
    while unchanged < len(default):
        fresh = [one for one in neighbours(best, index) if one not in seen]
        if fresh and not has_time():
            complete = False
            break
        seen.update(fresh)
        winner = _fastest(best, evaluate([best, *fresh], False)) if fresh else best
        if winner != best:
            best, unchanged = winner, 0  # further the same way
            continue
        index, unchanged = (index + 1) % len(default), unchanged + 1
    tried = len(seen) - 1
    if best == default:
        return Found(default, default, 0.0, 0.0, tried, complete)
    times = evaluate([default, best], True)
    if best not in times or not is_gain(times[default], times[best]):
        return Found(default, default, times[default].median, times[default].median, tried, complete)
    return Found(default, best, times[default].median, times[best].median, tried, complete)


def _fastest(current: Sizes, times: Mapping[Sizes, Spread]) -> Sizes:
    """The fastest of those that gain on the current ones, or these."""
    gaining = [one for one in times if one != current and is_gain(times[current], times[one])]
    return min(gaining, key=lambda one: times[one].median, default=current)
