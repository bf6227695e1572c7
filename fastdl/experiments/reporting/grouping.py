"""Arms by their factors: what stands on an axis, in a panel, in a line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import ExperimentDefinition

__all__ = ["group_by", "label_of", "level_of", "levels_of", "other_factors", "positions_of"]

Level = str | int | float


def level_of(definition: ExperimentDefinition, arm: Arm, name: str) -> Level:
    """The level of an arm in the factor called ``name``."""
    return definition.factors_of(arm)[name]


def levels_of(definition: ExperimentDefinition, arms: Iterable[Arm], name: str) -> list[Level]:
    """The levels of a factor that are there: numbers in their order, others in that of the arms."""
    found = list(dict.fromkeys(level_of(definition, arm, name) for arm in arms))
    return found if any(isinstance(level, str) for level in found) else sorted(found)


def positions_of(levels: Sequence[Level]) -> list[float]:
    """Where levels stand on an axis: at their number, or one behind the other."""
    if any(isinstance(level, str) for level in levels):
        return [float(place) for place in range(len(levels))]
    return [float(level) for level in levels]


def other_factors(definition: ExperimentDefinition, *names: str | None) -> tuple[str, ...]:
    """Names of the factors that are none of ``names``."""
    return tuple(factor.name for factor in definition.factors if factor.name not in names)


def group_by(definition: ExperimentDefinition, arms: Iterable[Arm], names: Sequence[str]) -> dict[Arm, list[Arm]]:
    """Arms by their levels in the factors ``names``, in the order in which they come."""
    found: dict[Arm, list[Arm]] = {}
    for arm in arms:
        found.setdefault(tuple(level_of(definition, arm, name) for name in names), []).append(arm)
    return found


def label_of(definition: ExperimentDefinition, arm: Arm, names: Sequence[str], language: str) -> str:
    """An arm in words, as far as the factors ``names`` go."""
    parts = []
    for factor, level in zip(definition.factors, arm, strict=True):
        if factor.name in names:
            known = factor.levels.get(str(level))
            parts.append(known[language] if known else f"{factor.label[language]} {level}")
    return ", ".join(parts)
