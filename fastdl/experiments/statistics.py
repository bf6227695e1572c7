"""Mean, deviation and confidence interval over the seeds of an experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "estimate"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """What a sample of independent measurements says about the mean they come from.

    Attributes:
        count: of measurements.
        mean: of the sample; None for an empty one.
        deviation: standard deviation with the divisor n - 1; None for fewer than two measurements.
        half_width: of the 95 % confidence interval of the mean by Student's t with n - 1 degrees of freedom;
            None for fewer than two measurements, since one says nothing about its own uncertainty.
    """

    count: int
    mean: float | None
    deviation: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean behind ``values``, with t_{0.975, n-1} * s / sqrt(n) around it."""
    count = len(values)
    if count == 0:
        return Estimate(0, None, None, None)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(1, mean, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    from scipy.special import stdtrit

    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    return Estimate(count, mean, deviation, quantile * deviation / math.sqrt(count))
