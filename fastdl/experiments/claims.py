"""What an experiment claims, written down as data before any run: each a contrast of arms, with its margin.

A claim is judged by `fastdl.experiments.verdicts`. All of them are about the mean, over seeds, of a number that each
seed gives: arms of a pair share their seed, and with it initial weights, order of the data and augmentation, so that
what varies from seed to seed alike in both does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Arm",
    "Claim",
    "Difference",
    "Equivalence",
    "Measurements",
    "Trend",
    "arms_of",
    "claim_from_dict",
    "claim_to_dict",
    "contrasts",
]

Arm = tuple[str | int | float, ...]
"""An arm by its factors, such as ``("relu", 8)``."""

Measurements = Mapping[Arm, Mapping[int, float | None]]
"""For each arm and seed what was measured; None for a run that diverged."""


@dataclass(frozen=True)
class Difference:
    """``arm`` exceeds ``other`` by more than ``margin``: mean(arm - other) > margin.

    ``text``: the claim in words, by language.
    """

    name: str
    text: Mapping[str, str]
    arm: Arm
    other: Arm
    margin: float = 0.0

    def __post_init__(self) -> None:
        _check_margin(self.name, self.margin, least=-math.inf)


@dataclass(frozen=True)
class Equivalence:
    """``arm`` and ``other`` differ by less than ``margin`` either way: |mean(arm - other)| < margin."""

    name: str
    text: Mapping[str, str]
    arm: Arm
    other: Arm
    margin: float

    def __post_init__(self) -> None:
        _check_margin(self.name, self.margin, least=0.0)


@dataclass(frozen=True)
class Trend:
    """Along ``arms``, which stand at the numbers ``at``, the measure rises (``rises``) or falls.

    Each seed gives the slope of its least-squares line; the claim is about the mean slope's sign.
    """

    name: str
    text: Mapping[str, str]
    arms: tuple[Arm, ...]
    at: tuple[float, ...]
    rises: bool

    def __post_init__(self) -> None:
        if len(self.arms) != len(self.at) or len(set(self.at)) < 2:
            raise ValueError(
                f"claim {self.name!r}: arms and at must be as many, at two different numbers at least; got "
                f"{len(self.arms)} arms at {self.at}"
            )


Claim = Difference | Equivalence | Trend


_KINDS: dict[str, type[Difference] | type[Equivalence] | type[Trend]] = {
    "difference": Difference,
    "equivalence": Equivalence,
    "trend": Trend,
}


def claim_to_dict(claim: Claim) -> dict[str, Any]:
    """A claim as values that JSON can hold."""
    (kind,) = [name for name, cls in _KINDS.items() if type(claim) is cls]
    return {"kind": kind, **asdict(claim), "text": dict(claim.text)}


def claim_from_dict(content: Mapping[str, Any]) -> Claim:
    """The claim that `claim_to_dict` wrote; raises ValueError for anything else."""
    values = dict(content)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"a claim must be one of {', '.join(_KINDS)}; got kind {kind!r}")
    for name in ("arm", "other", "at"):
        if name in values:
            values[name] = tuple(values[name])
    if "arms" in values:
        values["arms"] = tuple(map(tuple, values["arms"]))
    try:
        return _KINDS[kind](**values)
    except TypeError as error:
        raise ValueError(f"this is no claim of kind {kind!r}: {error}") from error


def arms_of(claim: Claim) -> tuple[Arm, ...]:
    """The arms that a claim needs."""
    return claim.arms if isinstance(claim, Trend) else (claim.arm, claim.other)


def contrasts(claim: Claim, measured: Measurements) -> dict[int, float]:
    """The number that each seed gives for a claim: a difference of a pair, or a slope that is positive as claimed.

    Seeds that lack an arm, or in which one diverged, give none.
    """
    by_arm = [measured.get(arm, {}) for arm in arms_of(claim)]
    found: dict[int, float] = {}
    for seed in sorted(set.intersection(*(set(arm) for arm in by_arm)) if by_arm else set()):
        values = [arm[seed] for arm in by_arm]
        complete = [value for value in values if value is not None]
        if len(complete) == len(values):
            found[seed] = _contrast(claim, complete)
    return found


def _contrast(claim: Claim, values: Sequence[float]) -> float:
    if not isinstance(claim, Trend):
        return values[0] - values[1]
    centre = math.fsum(claim.at) / len(claim.at)
    distances = [place - centre for place in claim.at]
    products = (distance * value for distance, value in zip(distances, values, strict=True))
    slope = math.fsum(products) / math.fsum(distance**2 for distance in distances)
    return slope if claim.rises else -slope


def _check_margin(name: str, margin: float, least: float) -> None:
    if not math.isfinite(margin) or margin <= least:
        raise ValueError(f"claim {name!r}: margin must be a finite number above {least}; got {margin!r}")
